"""`steps`: a loop over numbered steps that saves its state now and then, and resumes where it was.

It makes only calls that mpi4py has as well, so a program can use it under `mpirun`. Before a step:

1. If the ranks voted before the previous step, wait for the tally and do what `Cadence` decides:
   copy the state and let the `Saver` write it, or let the first rank publish the last one.
2. If they vote before this step, start the reduction. It completes while the program computes.

Opening is collective: the first rank claims the place (log.py) and broadcasts the record; then each
rank reads its part. An error of one rank is raised on all, with the rank that has it.

A loop that is left by `break` or an exception makes no collective call any more, since other ranks
may be anywhere. Then the last published checkpoint stays.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.checkpoint import s3
from serverless_mpi.checkpoint.cadence import FIELDS, Action, Cadence, Period, Vote
from serverless_mpi.checkpoint.log import Record, Saved, claim, perform
from serverless_mpi.checkpoint.part import decode, pickled, size_of
from serverless_mpi.checkpoint.places import Folder, Place
from serverless_mpi.checkpoint.saver import Saver
from serverless_mpi.env import ENV_CHECKPOINTS
from serverless_mpi.errors import CheckpointError, ServerlessMPIError, UsageError
from serverless_mpi.job import current_spec

T = TypeVar("T")


class Comm(Protocol):
    """What a loop uses of a communicator, of this package or of mpi4py."""

    rank: int
    size: int

    def Dup(self) -> Comm:
        """Return a duplicate."""

    def Free(self) -> None:
        """Free it."""

    def allgather(self, sendobj: T) -> list[T]:
        """Return the objects of all ranks."""

    def allreduce(self, sendobj: int, op: object) -> int:
        """Return the reduction of the numbers of all ranks."""

    def bcast(self, obj: T, root: int = 0) -> T:
        """Return the object of one rank."""

    def Iallreduce(self, sendbuf: object, recvbuf: object, op: object) -> Request:
        """Start a reduction."""


class Request(Protocol):
    """What a loop uses of a request."""

    def Wait(self) -> object:
        """Wait until it completes."""


State = MutableMapping[str, Any]
Redistribute = Callable[["SavedStates", Comm], Mapping[str, Any]]

_MAX: Any = vars(MPI)["MAX"]
_loops = 0  # that this process has begun


class SavedStates(Sequence[Mapping[str, Any]]):
    """The states of all ranks of a checkpoint; one is read when it is asked for.

    Parameters
    ----------
    place
        Where it lies.
    saved
        The checkpoint.
    key
        Of its parts, or none.
    """

    def __init__(self, place: Place, saved: Saved, key: bytes) -> None:
        self._place = place
        self._saved = saved
        self._key = key

    def __len__(self) -> int:
        return self._saved.size

    @overload
    def __getitem__(self, rank: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, rank: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, rank: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        if isinstance(rank, slice):
            return [self[one] for one in range(*rank.indices(len(self)))]
        if not -len(self) <= rank < len(self):
            raise IndexError(f"the checkpoint has ranks 0 to {len(self) - 1}")
        identity = self._saved.part(rank % len(self))
        data = self._place.read(identity.name)
        where = f"{self._place.title}/{identity.name}"
        if data is None:
            raise CheckpointError(f"{where} is missing; every rank must see the same place")
        try:
            return decode(data, identity, self._key)
        except CheckpointError as error:
            raise CheckpointError(
                f"{where}: {error}; remove {self._place.title} to begin anew"
            ) from None


class Steps(Iterator[int]):
    """The steps of a loop that are left to do; `steps` makes it.

    Attributes
    ----------
    resumed_at
        The step with which the loop went on from a checkpoint; None if it began.
    place
        Where its checkpoints lie.
    """

    def __init__(
        self, comm: Comm, count: int, state: State, period: Period, first: int, opened: _Opened
    ) -> None:
        self.resumed_at = None if opened.record.saved is None else first
        self.place = opened.place.title
        self._comm = comm
        self._count = count
        self._state = state
        self._next = first
        self._opened = opened
        self._saver = Saver(opened.place, comm.rank, opened.key, opened.record)
        self._saver.prepare(size_of(state))
        self._cadence = Cadence(period, first)
        self._saved_time = time.monotonic()
        self._request: Request | None = None
        self._vote, self._tally = np.zeros(FIELDS), np.zeros(FIELDS)
        self._over = False

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> int:
        if self._over:
            raise StopIteration
        step = self._next
        if step >= self._count:
            self._finish()
            raise StopIteration
        if self._request is not None:
            self._request.Wait()
            self._request = None
            self._act(step, Vote(self._tally[0], bool(self._tally[1]), int(self._tally[2])))
        if step == self._cadence.votes_at:
            self._start_vote()
        self._next = step + 1
        return step

    def __del__(self) -> None:
        if hasattr(self, "_saver"):
            self._saver.close()

    def _start_vote(self) -> None:
        busy = self._saver.busy  # before `error`, which is set before the thread is idle
        failed = 0 if self._saver.error is None else self._comm.rank + 1
        self._vote[:] = time.monotonic() - self._saved_time, busy, failed
        self._request = self._comm.Iallreduce(self._vote, self._tally, _MAX)

    def _act(self, step: int, tally: Vote) -> None:
        action = self._cadence.decide(step, tally)
        if action is Action.SAVE:
            self._saved_time = time.monotonic()
            self._saver.save(self._state, self._comm.size, step)
        elif action is Action.PUBLISH:
            self._saver.publish()
        elif action is Action.FAIL:
            self._fail(tally.failed - 1)

    def _fail(self, rank: int) -> None:
        """Raise the error of a rank on all ranks."""
        self._over = True
        self._saver.close()
        text = self._comm.bcast(self._saver.error, root=rank)
        raise CheckpointError(f"rank {rank} cannot save: {text}")

    def _finish(self) -> None:
        """Complete the save in progress; remove checkpoints that nobody needs any more."""
        self._over = True
        if self._request is not None:
            self._request.Wait()
        self._settle()
        if self._cadence.saving and not self._opened.temporary:
            # The tally that would have decided may be missing; what follows does not depend on it.
            if self._saver.unpublished:
                self._saver.publish()
            self._settle()
        self._saver.close()
        if self._opened.temporary and self._comm.rank == 0:
            self._opened.place.clear()
        self._comm.Free()

    def _settle(self) -> None:
        """Wait until no rank's thread is busy; raise if one has failed."""
        self._saver.wait()
        failed = self._comm.allreduce(0 if self._saver.error is None else self._comm.rank + 1, _MAX)
        if failed:
            self._fail(failed - 1)


class _Opened:
    """A place that this run has claimed."""

    def __init__(self, place: Place, key: bytes, record: Record, *, temporary: bool) -> None:
        self.place = place
        self.key = key
        self.record = record
        self.temporary = temporary


def steps(
    comm: Comm,
    n: int,
    state: State,
    every: str | float = "60 s",
    to: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    version: str = "",
    redistribute: Redistribute | None = None,
) -> Steps:
    """Iterate over steps 0 to n - 1, save the state now and then, and resume where the job was.

    Collective: all ranks of `comm` call it, with the same arguments, and run every step.

    Parameters
    ----------
    comm
        Intracommunicator of this package or of mpi4py; a duplicate of it is used.
    n
        Number of steps.
    state
        Name -> value of everything that must survive, random generators included. It is read when
        it is saved, before a step. If there is a checkpoint, its values are put into this mapping
        before the call returns: arrays of the same shape and type and generators are filled in
        place, other values are replaced.
    every
        Period between two saves, as "60 s", "5 min" or "100 steps"; a number is seconds.
    to
        A folder, or "s3://bucket/prefix". By default the job's own folder (`smpirun --restarts`),
        or else one in the working directory, which is removed at the end of the loop.
    name
        Name of the loop below `to`; needed only if a program that starts again begins its loops in
        another order.
    version
        Version of the program; a checkpoint of another one is refused.
    redistribute
        redistribute(saved, comm) returns this rank's state from a checkpoint of another number of
        ranks; `saved[r]` is the state of its rank r. Without it such a checkpoint is refused.

    Returns
    -------
    Steps
        Iterator over the steps that are left.

    Raises
    ------
    UsageError
        An argument is not valid, or differs between ranks. Raised on all ranks.
    CheckpointError
        The state cannot be pickled, the place cannot be used, or its checkpoint is damaged, of
        another program, version or number of ranks. Raised on all ranks; nothing has been
        overwritten. The iterator raises it if a rank cannot save.

    Notes
    -----
    What is sent in a step must be received in it. A save blocks the program while the state is
    copied. Ranks agree on the step by nonblocking Allreduces of 24 bytes, about 20 for each save.
    """
    return _begin(comm.Dup(), n, state, every, to, name, version, redistribute)


def _begin(
    comm: Comm,
    n: int,
    state: State,
    every: str | float,
    to: str | os.PathLike[str] | None,
    name: str | None,
    version: str,
    redistribute: Redistribute | None,
) -> Steps:
    """Do what `steps` says, on a communicator of the loop's own."""
    global _loops
    _loops += 1
    arguments = _on_all(comm, lambda: _checked(n, state, every, to, name, redistribute))
    _compare(comm, n, every, version)
    opened = _open(comm, arguments, version)
    record = opened.record
    first = 0
    if record.saved is not None:
        first = record.saved.step
        _on_all(comm, lambda: _resume(comm, n, state, opened, redistribute))
    return Steps(comm, n, state, Period.parse(every), first, opened)


# -- arguments


def _checked(
    n: object, state: object, every: object, to: object, name: object, redistribute: object
) -> tuple[str | None, str]:
    """Return `to` as text, and the name of the loop; raise UsageError for a wrong argument."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise UsageError(f"n={n!r} is not a number of steps")
    if not isinstance(state, MutableMapping) or not all(isinstance(key, str) for key in state):
        raise UsageError("state is not a dict from names to values")
    if redistribute is not None and not callable(redistribute):
        raise UsageError("redistribute is not a function")
    Period.parse(every)
    if to is not None and (not isinstance(to, str | os.PathLike) or not os.fspath(to)):
        raise UsageError(f"to={to!r} is not a folder or s3://bucket/prefix")
    own = f"loop{_loops}-{MPI.COMM_WORLD.rank}" if name is None else name
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
    if not isinstance(own, str) or own.strip(".") == "" or set(own) - set(letters):
        raise UsageError(f"name={name!r} is not a name of letters, digits, '-', '_' and '.'")
    pickled(state)
    return None if to is None else os.fsdecode(os.fspath(to)), own


def _compare(comm: Comm, n: int, every: object, version: str) -> None:
    """Raise UsageError on all ranks if an argument differs between them."""
    given = comm.allgather((n, every, version))
    for index, what in enumerate(("n", "every", "version")):
        for rank, theirs in enumerate(given):
            if theirs[index] != given[0][index]:
                raise UsageError(
                    f"{what} is {given[0][index]!r} on rank 0 and {theirs[index]!r} on rank {rank};"
                    " give all ranks the same"
                )


def _on_all(comm: Comm, call: Callable[[], T]) -> T:
    """Return call(); if it fails on a rank, raise that error on all, with the rank."""
    result: Any = None
    own: Exception | None = None
    try:
        result = call()
    except Exception as error:
        own = error
    text = None
    if own is not None:
        kind = UsageError if isinstance(own, UsageError) else CheckpointError
        known = isinstance(own, ServerlessMPIError)
        text = (kind, str(own) if known else f"{type(own).__name__}: {own}")
    for rank, failure in enumerate(comm.allgather(text)):
        if failure is not None:
            raise failure[0](f"rank {rank}: {failure[1]}") from own
    return result  # type: ignore[no-any-return]


# -- opening


def _program() -> str:
    """Return the name of the program."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return os.path.basename(sys.argv[0]) or "python"


def _default_place() -> tuple[str, bool]:
    """Return the folder for a loop that names none, and whether it is removed at its end."""
    given = os.environ.get(ENV_CHECKPOINTS)
    # a process that a rank has started is a job of its own
    if given is not None and current_spec(os.environ) is not None:
        return given, False
    stem = _program().removesuffix(".py")
    if len(sys.argv) > 1:  # other arguments are another job
        stem += f"-{hashlib.sha256(repr(sys.argv[1:]).encode()).hexdigest()[:8]}"
    return os.path.abspath(f"{stem}.checkpoints"), True


def _place(root: str, name: str, *, durable: bool) -> Place:
    if s3.is_name(root):
        return s3.Prefix(f"{root.rstrip('/')}/{name}")
    return Folder(Path(root) / name, durable=durable)


def _open(comm: Comm, arguments: tuple[str | None, str], version: str) -> _Opened:
    """Claim the place, on all ranks."""
    to, name = arguments
    root, temporary = _default_place() if to is None else (to, False)
    if not s3.is_name(root):
        root = os.path.abspath(root)
    durable = to is not None or temporary
    # what the first rank says holds for all
    root, name, temporary, durable = comm.bcast((root, name, temporary, durable))
    key = b""
    if s3.is_name(root):
        key = comm.bcast(_on_all(comm, lambda: s3.key() if comm.rank == 0 else b""))
    place = _on_all(comm, lambda: _place(root, name, durable=durable))

    def claimed() -> Record | None:
        if comm.rank:
            return None
        owner, program = secrets.token_hex(8), _program()
        try:
            return perform(claim(owner, program, version, key), place)
        except CheckpointError as error:
            text = str(error)
            raise CheckpointError(
                text if place.title in text else f"{place.title}: {text}"
            ) from error

    record = comm.bcast(_on_all(comm, claimed))
    assert record is not None

    def seen() -> None:
        if place.read(record.name) is None:
            raise CheckpointError(
                f"{place.title} is another folder than that of rank 0; name one with to= that all"
                " machines share"
            )

    _on_all(comm, seen)
    return _Opened(place, key, record, temporary=temporary)


def _resume(
    comm: Comm, n: int, state: State, opened: _Opened, redistribute: Redistribute | None
) -> None:
    """Put this rank's part of the last checkpoint into its state."""
    saved = opened.record.saved
    assert saved is not None
    title = opened.place.title
    if saved.step > n:
        raise CheckpointError(
            f"the checkpoint in {title} is after {saved.step} steps, and this loop has {n};"
            " name another place with to=, or remove this one"
        )
    states = SavedStates(opened.place, saved, opened.key)
    if saved.size == comm.size:
        loaded = states[comm.rank]
    elif redistribute is None:
        raise CheckpointError(
            f"the checkpoint in {title} is of {saved.size} ranks, and this job has {comm.size};"
            f" start {saved.size} ranks, or give redistribute="
        )
    else:
        loaded = redistribute(states, comm)
    if set(loaded) != set(state):
        raise CheckpointError(
            f"the checkpoint in {title} has {sorted(loaded)}, and the state of this program has"
            f" {sorted(state)}; run the version of the program that wrote it, or remove {title}"
        )
    for name, value in loaded.items():
        if not _filled(state[name], value):
            state[name] = value


def _filled(there: object, value: object) -> bool:
    """Put a value into an object that the program has already; return whether that was possible."""
    if isinstance(there, np.ndarray) and isinstance(value, np.ndarray):
        if type(there) is type(value) and there.flags.writeable:
            if (there.shape, there.dtype) == (value.shape, value.dtype):
                there[...] = value
                return True
    elif isinstance(there, np.random.Generator) and isinstance(value, np.random.Generator):
        if type(there.bit_generator) is type(value.bit_generator):
            there.bit_generator.state = value.bit_generator.state
            return True
    return False
