"""The origin side of one-sided communication, without IO: epochs, and commands that wait.

`Epochs` checks that the calls of a process come in an order that MPI permits, and holds the
commands of each target until they have to be sent.  What it returns from `take` goes to the target
as one request (core/window.py).

Rules:

- A lock is requested by the first request of its epoch, not by the call, except that the caller
  locks at once where the program may touch the memory directly.  So a small put between Lock and
  Unlock is one message and one answer, and an epoch without an operation sends nothing.
- After a fence a process may access, be accessed, or begin an epoch of another kind, until the
  next call decides which (`Access.FENCE`, `used`).
- An access epoch and an exposure epoch are independent of each other.

References
----------
MPI 4.1, section 12.5.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

from serverless_mpi.core.window import COMPLETE, LOCK_EXCLUSIVE, LOCK_SHARED, UNLOCK, Command
from serverless_mpi.errors import ERR_RMA_SYNC, MPIException

# a request is sent when so much waits for it; a put of that length needs no company
FULL_COMMANDS = 256
FULL_BYTES = 1 << 20

Sink = Callable[[memoryview], Any]  # takes what a command has read


class Access(enum.Enum):
    """The kind of a process's access epoch."""

    NONE = "no epoch"
    FENCE = "an epoch that Fence began"
    START = "an epoch that Start began"
    LOCK = "an epoch that Lock began"
    LOCK_ALL = "an epoch that Lock_all began"


class Held:
    """A lock of this process on a target.

    Attributes
    ----------
    exclusive : bool
        Whether no other process may have it meanwhile.
    requested : bool
        Whether the target has been asked for it.
    needed : bool
        False if the program has stated that nobody else asks for it (MODE_NOCHECK).
    """

    __slots__ = ("exclusive", "requested", "needed")

    def __init__(self, exclusive: bool, needed: bool) -> None:
        self.exclusive = exclusive
        self.requested = not needed
        self.needed = needed


class Waiting:
    """Commands for one target that have not been sent, and what takes the results of each."""

    __slots__ = ("commands", "sinks", "nbytes")

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.sinks: list[tuple[int, Sink]] = []  # (bytes of the result, what takes it)
        self.nbytes = 0

    @property
    def full(self) -> bool:
        """Whether they should be sent although nothing demands it."""
        return self.nbytes >= FULL_BYTES or len(self.commands) >= FULL_COMMANDS


class Epochs:
    """The epochs of one process on one window.  Not thread-safe: the caller has a lock.

    Attributes
    ----------
    access : Access
        Kind of the access epoch.
    used : bool
        Whether an operation was started since the last fence.
    targets : tuple
        Ranks of the group that Start was given.
    posted : tuple or None
        Ranks of the group that Post was given, while an exposure epoch is open.
    locks : dict
        Target -> its lock.
    waiting : dict
        Target -> commands for it that have not been sent.
    """

    def __init__(self) -> None:
        self.access = Access.NONE
        self.used = False
        self.targets: tuple[int, ...] = ()
        self.posted: tuple[int, ...] | None = None
        self.locks: dict[int, Held] = {}
        self.waiting: dict[int, Waiting] = {}

    # --- what the calls need ----------------------------------------------------------------------

    def _free_for(self, call: str) -> None:
        """ERR_RMA_SYNC unless an access epoch of another kind may begin now."""
        if self.access is Access.FENCE and not self.used:
            self.access = Access.NONE
        if self.access is not Access.NONE:
            raise _wrong(f"{call} in {self.access.value}")

    def fence(self, last: bool) -> None:
        """Begin and end a fence epoch; the operations of the last one have completed.

        Parameters
        ----------
        last
            Whether no operation follows (MODE_NOSUCCEED).
        """
        self.check_fence()
        self.access = Access.NONE if last else Access.FENCE
        self.used = False

    def check_fence(self) -> None:
        """Raise ERR_RMA_SYNC unless a fence may be called now."""
        if self.access not in (Access.NONE, Access.FENCE):
            raise _wrong(f"Fence in {self.access.value}")
        if self.posted is not None:
            raise _wrong("Fence in an exposure epoch that Post began")

    def start(self, targets: Iterable[int]) -> None:
        """Begin an access epoch on a group.

        Parameters
        ----------
        targets
            Its ranks in the window.
        """
        self._free_for("Start")
        self.access, self.targets = Access.START, tuple(targets)

    def complete(self) -> tuple[int, ...]:
        """Return the targets of the epoch that Start began; `end` ends it."""
        if self.access is not Access.START:
            raise _wrong(f"Complete without Start, in {self.access.value}")
        return self.targets

    def end(self) -> None:
        """End the epoch that Start began."""
        self.access, self.targets = Access.NONE, ()

    def post(self, origins: Iterable[int]) -> None:
        """Begin an exposure epoch for a group.

        Parameters
        ----------
        origins
            Its ranks in the window.
        """
        if self.posted is not None:
            raise _wrong("Post in an exposure epoch; call Wait first")
        if self.access is Access.FENCE and not self.used:
            self.access = Access.NONE
        if self.access is Access.FENCE:
            raise _wrong(f"Post in {self.access.value}")
        self.posted = tuple(origins)

    def exposed(self, call: str) -> tuple[int, ...]:
        """Return the origins of the exposure epoch.

        Parameters
        ----------
        call
            Name of the call, for the error.
        """
        if self.posted is None:
            raise _wrong(f"{call} without Post")
        return self.posted

    def lock(self, target: int, exclusive: bool, needed: bool) -> Held:
        """Begin an access epoch on one target.

        Parameters
        ----------
        target
            Its rank.
        exclusive
            Whether no other process may access it meanwhile.
        needed
            False if nobody else asks for it (MODE_NOCHECK).
        """
        if self.access is not Access.LOCK:
            self._free_for("Lock")
        if target in self.locks:
            raise _wrong(f"Lock of rank {target}, which this process has locked already")
        held = self.locks[target] = Held(exclusive, needed)
        self.access = Access.LOCK
        return held

    def lock_all(self, targets: Iterable[int], needed: bool) -> None:
        """Begin an access epoch on every target.

        Parameters
        ----------
        targets
            All ranks of the window.
        needed
            As for `lock`.
        """
        self._free_for("Lock_all")
        self.access = Access.LOCK_ALL
        for target in targets:
            self.locks[target] = Held(False, needed)

    def locked(self, target: int, call: str) -> Held:
        """Return the lock on a target; ERR_RMA_SYNC if there is none.

        Parameters
        ----------
        target
            Its rank.
        call
            Name of the call, for the error.
        """
        held = self.locks.get(target)
        if held is None or (call == "Unlock" and self.access is Access.LOCK_ALL):
            raise _wrong(f"{call} of rank {target}, which Lock has not locked")
        return held

    def locked_all(self) -> None:
        """Raise ERR_RMA_SYNC unless an epoch that Lock_all began is open."""
        if self.access is not Access.LOCK_ALL:
            raise _wrong(f"Unlock_all without Lock_all, in {self.access.value}")

    def passive(self, call: str) -> list[int]:
        """Return the targets that are locked.

        Parameters
        ----------
        call
            Name of the call, for the error.
        """
        if self.access not in (Access.LOCK, Access.LOCK_ALL):
            raise _wrong(f"{call} without Lock or Lock_all, in {self.access.value}")
        return list(self.locks)

    def unlocked(self, target: int) -> None:
        """End the epoch on one target; its commands have been taken.

        Parameters
        ----------
        target
            Its rank.
        """
        del self.locks[target]
        if not self.locks:
            self.access = Access.NONE

    def freeable(self) -> None:
        """Raise ERR_RMA_SYNC if an epoch is open."""
        if self.access is Access.FENCE and not self.used:
            self.access = Access.NONE
        if self.access is not Access.NONE:
            raise _wrong(f"Free in {self.access.value}")
        if self.posted is not None:
            raise _wrong("Free in an exposure epoch; call Wait first")

    # --- operations -------------------------------------------------------------------------------

    def check(self, target: int | None, call: str) -> None:
        """Raise ERR_RMA_SYNC unless an operation on a target may be started now.

        Parameters
        ----------
        target
            Its rank; None for MPI.PROC_NULL.
        call
            Name of the call, for the error.
        """
        if self.access is Access.NONE:
            raise _wrong(f"{call} outside of an epoch; call Fence, Start, Lock or Lock_all first")
        if self.access is Access.FENCE or target is None:
            return
        if self.access is Access.START:
            if target not in self.targets:
                raise _wrong(f"{call} to rank {target}, which Start was not given")
        elif target not in self.locks:
            raise _wrong(f"{call} to rank {target}, which is not locked")

    def add(self, target: int, command: Command, sink: Sink | None, nbytes: int) -> Waiting:
        """Hold a command until it has to be sent.

        Parameters
        ----------
        target
            Its rank.
        command
            Borrows its data until the epoch ends, or the target is flushed.
        sink
            Takes what it reads; None if it reads nothing.
        nbytes
            Length of what it reads.
        """
        waiting = self.waiting.get(target)
        if waiting is None:
            waiting = self.waiting[target] = Waiting()
        waiting.commands.append(command)
        waiting.nbytes += command.data.nbytes
        if sink is not None:
            waiting.sinks.append((nbytes, sink))
        return waiting

    def take(self, target: int, last: bool = False) -> Waiting:
        """Return what has to be sent to a target now, with its lock around it.

        Parameters
        ----------
        target
            Its rank.
        last
            Whether the epoch on the target ends with it.
        """
        waiting = self.waiting.pop(target, None) or Waiting()
        held = self.locks.get(target)
        if held is not None and held.needed:
            if not held.requested and waiting.commands:
                code = LOCK_EXCLUSIVE if held.exclusive else LOCK_SHARED
                waiting.commands.insert(0, Command(code))
                held.requested = True
            if last and held.requested:
                waiting.commands.append(Command(UNLOCK))
        elif last and self.access is Access.START:
            waiting.commands.append(Command(COMPLETE))
        return waiting


def _wrong(what: str) -> MPIException:
    return MPIException(ERR_RMA_SYNC, what)
