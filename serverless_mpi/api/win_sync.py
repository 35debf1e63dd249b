"""Synchronization of a window: fences, groups, locks and flushes.

| call | messages |
|---|---|
| Fence | per target with operations a request and an answer; then a barrier |
| Post, Complete | per pair of processes one each; an answer to Complete if the origin reads |
| Lock, Unlock | per target with operations a request that takes and releases it, and an answer |
| Flush | per target with operations a request and an answer |

A lock of this process on itself, and in a shared window every lock, is taken by the call that asks
for it, because the program may then touch the memory directly.

Pitfall: a call that completes something also sends what waits for other targets, without waiting
for it, because programs wait in loops of Flush or Sync for what such an operation brings about.

References
----------
MPI 4.1, section 12.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from serverless_mpi.api.group import Group, group_ranks
from serverless_mpi.api.win_state import REQUEST, WinState
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.core.epochs import Epochs
from serverless_mpi.core.window import LOCK_EXCLUSIVE as LOCK_COMMAND
from serverless_mpi.core.window import LOCK_SHARED as LOCK_SHARED_COMMAND
from serverless_mpi.core.window import POST, Answer, Command, encode_request
from serverless_mpi.errors import ERR_ARG, ERR_GROUP, ERR_RANK, MPIException

MODE_NOCHECK, MODE_NOSTORE, MODE_NOPUT, MODE_NOPRECEDE, MODE_NOSUCCEED = (
    1024,
    2048,
    4096,
    8192,
    16384,
)
LOCK_EXCLUSIVE, LOCK_SHARED = 234, 235

_OF_FENCE = MODE_NOSTORE | MODE_NOPUT | MODE_NOPRECEDE | MODE_NOSUCCEED
_OF_POST = MODE_NOCHECK | MODE_NOSTORE | MODE_NOPUT


def _asserted(assertion: int, allowed: int, call: str) -> None:
    """ERR_ARG, as of MPICH, unless an assertion consists of modes that a call takes."""
    if assertion & ~allowed:
        raise MPIException(ERR_ARG, f"{call} does not take the assertion {assertion}")


class Synchronization:
    """The synchronizing calls of `Win`, which provides `_window`."""

    @property
    def _window(self) -> WinState:
        raise NotImplementedError

    # --- fences -----------------------------------------------------------------------------------

    def Fence(self, assertion: int = 0) -> None:
        """Complete all operations of the epoch everywhere, and begin the next one; collective.

        Parameters
        ----------
        assertion
            Sum of MPI.MODE_NOSTORE, MODE_NOPUT, MODE_NOPRECEDE and MODE_NOSUCCEED, or 0. After
            MODE_NOSUCCEED no operation may follow; the others change nothing.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: an epoch of another kind is open. ERR_ARG: another assertion.

        References
        ----------
        MPI 4.1, section 12.5.1.
        """
        state = self._window
        _asserted(assertion, _OF_FENCE, "Fence")
        epochs = state.epochs
        with state.lock:
            epochs.check_fence()
            for target in list(epochs.waiting):
                state.send(target, epochs.take(target), answer=True)
            for target in list(state.unconfirmed):
                state.send(target, epochs.take(target), answer=True)
        try:
            state.finish(list(state.batches))
        finally:
            if state.size > 1:
                state.comm.Barrier()
            epochs.fence(bool(assertion & MODE_NOSUCCEED))

    # --- groups -----------------------------------------------------------------------------------

    def Start(self, group: Group, assertion: int = 0) -> None:
        """Begin to access the windows of a group, each of which calls `Post`.

        Parameters
        ----------
        group
            Targets; processes of the window.
        assertion
            MPI.MODE_NOCHECK if they have called Post already, with the same assertion; or 0.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: an epoch is open. ERR_GROUP: the group is null, or has processes that the
            window does not have. ERR_ARG: another assertion.

        References
        ----------
        MPI 4.1, section 12.5.2.
        """
        state = self._window
        _asserted(assertion, MODE_NOCHECK, "Start")
        with state.lock:
            state.epochs.start(_places(state, group))
            state.checked = not assertion & MODE_NOCHECK

    def Complete(self) -> None:
        """End the epoch that `Start` began; the operations have completed at this process.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: Start was not called.

        References
        ----------
        MPI 4.1, section 12.5.2.
        """
        state = self._window
        epochs = state.epochs
        with state.lock:
            targets = epochs.complete()
        dynamic = state.exposed.regions is not None  # only the target finds errors there
        for target in targets:
            self._await_post(state, target)
            state.awaited.discard(target)
            if target == state.rank:
                self._perform_own(state)
                state.locally(lambda: self._completed(state))
                continue
            with state.lock:
                state.send(target, epochs.take(target, last=True), answer=dynamic)
                # without an answer, what was sent is complete here
                state.unconfirmed.discard(target)
        epochs.end()
        state.finish(targets)

    def Post(self, group: Group, assertion: int = 0) -> None:
        """Let a group access this process's window, until `Wait`.

        Parameters
        ----------
        group
            Origins; processes of the window.
        assertion
            Sum of MPI.MODE_NOCHECK (they call Start with the same assertion, later than this),
            MODE_NOSTORE and MODE_NOPUT, or 0.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: an exposure epoch is open. ERR_GROUP, ERR_ARG: as for `Start`.

        References
        ----------
        MPI 4.1, section 12.5.2.
        """
        state = self._window
        _asserted(assertion, _OF_POST, "Post")
        with state.lock:
            origins = _places(state, group)
            state.epochs.post(origins)
        if assertion & MODE_NOCHECK:
            return
        message = encode_request([Command(POST)], answer=False)
        for origin in origins:
            if origin == state.rank:
                state.locally(lambda: _count(state.target.posts, state.rank))
            else:
                state.runtime.isend(state.context, state.ranks[origin], REQUEST, message)

    def Wait(self) -> Literal[True]:
        """Wait until every origin of the exposure epoch has called `Complete`; end the epoch.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: Post was not called.

        References
        ----------
        MPI 4.1, section 12.5.2.
        """
        state = self._window
        origins = state.epochs.exposed("Wait")
        state.runtime.wait_until(lambda: _all(state, origins))
        self._unexpose(state, origins)
        return True

    def Test(self) -> bool:
        """Return whether every origin has called `Complete`; if so, the exposure epoch is over.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: Post was not called.

        References
        ----------
        MPI 4.1, section 12.5.2.
        """
        state = self._window
        origins = state.epochs.exposed("Test")
        if not _all(state, origins):
            state.runtime.progress()
            if not _all(state, origins):
                return False
        self._unexpose(state, origins)
        return True

    def _unexpose(self, state: WinState, origins: Iterable[int]) -> None:
        """End the exposure epoch, whose origins have completed."""

        def use() -> Iterable[Answer]:
            state.target.completions.subtract(origins)
            return ()

        state.locally(use)
        state.epochs.posted = None

    def _completed(self, state: WinState) -> Iterable[Answer]:
        return _count(state.target.completions, state.rank)

    def _await_post(self, state: WinState, rank: int) -> None:
        """Wait until a target of the epoch that Start began has called Post, once per epoch."""
        if not state.checked or rank in state.awaited:
            return
        posts = state.target.posts
        state.runtime.wait_until(lambda: posts[rank] > 0)

        def use() -> Iterable[Answer]:
            posts[rank] -= 1
            return ()

        state.locally(use)
        state.awaited.add(rank)

    def _perform_own(self, state: WinState) -> None:
        """Perform the commands for this process itself that have waited for its Post."""
        waiting = state.epochs.waiting.pop(state.rank, None)
        if waiting is None:
            return
        sinks = iter(waiting.sinks)
        for command in waiting.commands:
            sink = next(sinks)[1] if command.reads else None
            state.perform(state.exposed, command, sink)

    # --- locks ------------------------------------------------------------------------------------

    def Lock(self, rank: int, lock_type: int = LOCK_EXCLUSIVE, assertion: int = 0) -> None:
        """Begin to access a target that does not take part.

        Parameters
        ----------
        rank
            The target, or MPI.PROC_NULL.
        lock_type
            MPI.LOCK_EXCLUSIVE, or MPI.LOCK_SHARED, which several processes may have together.
        assertion
            MPI.MODE_NOCHECK if no other process locks the target meanwhile; or 0.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: an epoch is open that permits no lock. ERR_RANK: the window has no such
            rank. ERR_ARG: another lock type or assertion.

        Notes
        -----
        Sends nothing: the first request takes the lock. On this process itself, and in a shared
        window, the call waits for the lock.

        References
        ----------
        MPI 4.1, section 12.5.3.
        """
        state = self._window
        if lock_type not in (LOCK_EXCLUSIVE, LOCK_SHARED):
            raise MPIException(ERR_ARG, f"{lock_type} is not a lock type")
        _asserted(assertion, MODE_NOCHECK, "Lock")
        if not _is_rank(state, rank):
            return
        with state.lock:
            state.epochs.lock(rank, lock_type == LOCK_EXCLUSIVE, not assertion & MODE_NOCHECK)
        self._lock_now(state, rank)

    def Unlock(self, rank: int) -> None:
        """Complete all operations on a target, and end the epoch that `Lock` began.

        Parameters
        ----------
        rank
            The target, or MPI.PROC_NULL.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: Lock has not locked it. ERR_RMA_RANGE: an operation on a dynamic window
            exceeded the attached memory.

        References
        ----------
        MPI 4.1, section 12.5.3.
        """
        state = self._window
        if _is_rank(state, rank):
            with state.lock:
                state.epochs.locked(rank, "Unlock")
            self._unlock(state, [rank])

    def Lock_all(self, assertion: int = 0) -> None:
        """Begin to access every process of the window, with shared locks; not collective.

        Parameters
        ----------
        assertion
            MPI.MODE_NOCHECK if no process asks for an exclusive lock meanwhile; or 0.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: an epoch is open. ERR_ARG: another assertion.

        References
        ----------
        MPI 4.1, section 12.5.3.
        """
        state = self._window
        _asserted(assertion, MODE_NOCHECK, "Lock_all")
        with state.lock:
            state.epochs.lock_all(range(state.size), not assertion & MODE_NOCHECK)
        for target in state.reachable:
            self._lock_now(state, target)

    def Unlock_all(self) -> None:
        """Complete all operations, and end the epoch that `Lock_all` began.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: Lock_all was not called. ERR_RMA_RANGE: as for `Unlock`.

        References
        ----------
        MPI 4.1, section 12.5.3.
        """
        state = self._window
        with state.lock:
            state.epochs.locked_all()
        self._unlock(state, range(state.size))

    def _lock_now(self, state: WinState, rank: int) -> None:
        """Wait for a lock on memory that the program may touch directly."""
        held = state.epochs.locks[rank]
        if not held.needed or rank not in state.reachable:
            return
        held.requested = True
        if rank != state.rank:
            with state.lock:
                waiting = state.epochs.take(rank)
                waiting.commands.insert(
                    0, Command(LOCK_COMMAND if held.exclusive else LOCK_SHARED_COMMAND)
                )
                state.send(rank, waiting, answer=True)
            state.finish([rank])
            return

        def ask() -> Iterable[Answer]:
            state.target.acquire(rank, held.exclusive)
            return ()

        state.locally(ask)
        state.runtime.wait_until(lambda: state.target.holds(rank))

    def _unlock(self, state: WinState, targets: Iterable[int]) -> None:
        """Complete the operations on targets and release the locks on them."""
        epochs = state.epochs
        targets = list(targets)
        with state.lock:
            for target in targets:
                held = epochs.locks[target]
                if target != state.rank:
                    waiting = epochs.take(target, last=True)
                    # with all operations complete, nobody waits for the release
                    confirm = len(waiting.commands) > 1 or target in state.unconfirmed
                    state.send(target, waiting, answer=confirm)
                    if not confirm:
                        state.unconfirmed.discard(target)
                elif held.needed:
                    state.locally(lambda: state.target.release(state.rank))
            for target in targets:
                epochs.unlocked(target)
        state.finish(targets)

    # --- flushes ----------------------------------------------------------------------------------

    def Flush(self, rank: int) -> None:
        """Complete all operations on a target, there and here.

        Parameters
        ----------
        rank
            The target, or MPI.PROC_NULL.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: it is not locked. ERR_RMA_RANGE: as for `Unlock`.

        References
        ----------
        MPI 4.1, section 12.5.4.
        """
        state = self._window
        if _is_rank(state, rank):
            with state.lock:
                state.epochs.locked(rank, "Flush")
            self._flush(state, [rank], confirm=True)

    def Flush_all(self) -> None:
        """Complete all operations on every target, there and here.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: no target is locked. ERR_RMA_RANGE: as for `Unlock`.

        References
        ----------
        MPI 4.1, section 12.5.4.
        """
        state = self._window
        self._flush(state, state.epochs.passive("Flush_all"), confirm=True)

    def Flush_local(self, rank: int) -> None:
        """Complete all operations on a target here: the program may use their buffers again.

        Parameters
        ----------
        rank
            The target, or MPI.PROC_NULL.

        Raises
        ------
        MPIException
            As for `Flush`.

        References
        ----------
        MPI 4.1, section 12.5.4.
        """
        state = self._window
        if _is_rank(state, rank):
            with state.lock:
                state.epochs.locked(rank, "Flush_local")
            self._flush(state, [rank], confirm=False)

    def Flush_local_all(self) -> None:
        """Complete all operations on every target here, as `Flush_local`.

        Raises
        ------
        MPIException
            As for `Flush_all`.

        References
        ----------
        MPI 4.1, section 12.5.4.
        """
        state = self._window
        self._flush(state, state.epochs.passive("Flush_local_all"), confirm=False)

    def Sync(self) -> None:
        """Let the program see what others have written, and others what it has written.

        Memory is the same for both, so this only receives what has arrived, and sends what waits.

        References
        ----------
        MPI 4.1, section 12.5.4.
        """
        state = self._window
        _send_waiting(state, state.epochs)
        if state.size > 1:
            state.runtime.progress()

    def _flush(self, state: WinState, targets: Iterable[int], confirm: bool) -> None:
        """Send what waits, and complete it at `targets`; `confirm`: also there."""
        epochs = state.epochs
        targets = [target for target in targets if target != state.rank]
        with state.lock:
            for target in targets:
                state.send(target, epochs.take(target), answer=confirm)
        _send_waiting(state, epochs)
        if targets:
            state.finish(targets)
        elif state.size > 1:
            state.runtime.progress()  # programs poll with a flush of themselves


def _send_waiting(state: WinState, epochs: Epochs) -> None:
    """Send what waits for targets that are locked, without waiting for it."""
    with state.lock:
        for target in [target for target in epochs.waiting if target in epochs.locks]:
            state.send(target, epochs.take(target), answer=False)


def _is_rank(state: WinState, rank: int) -> bool:
    """Whether a rank is a process of the window; ERR_RANK unless it is, or MPI.PROC_NULL."""
    if 0 <= rank < state.size:
        return True
    if rank == PROC_NULL:
        return False
    raise MPIException(ERR_RANK, f"the window has no rank {rank}, only 0 to {state.size - 1}")


def _places(state: WinState, group: Group) -> tuple[int, ...]:
    """The ranks in the window of a group's processes; ERR_GROUP if it does not have them."""
    places = tuple(state.places.get(rank, -1) for rank in group_ranks(group, state.runtime))
    if -1 in places:
        raise MPIException(ERR_GROUP, "the group has a process that the window does not have")
    return places


def _all(state: WinState, origins: Iterable[int]) -> bool:
    """Whether every origin has completed its epoch."""
    return all(state.target.completions[origin] > 0 for origin in origins)


def _count(counter: dict[int, int], rank: int) -> Iterable[Answer]:
    """Add one to a counter; no answer is due."""
    counter[rank] += 1
    return ()


__all__ = [
    "LOCK_EXCLUSIVE",
    "LOCK_SHARED",
    "MODE_NOCHECK",
    "MODE_NOPRECEDE",
    "MODE_NOPUT",
    "MODE_NOSTORE",
    "MODE_NOSUCCEED",
]
