"""MPI in an event loop: requests are awaitable, and probes and barriers have async forms.

    data = await comm.irecv(source=1)
    await aio.gather(comm.isend(x, 1), comm.irecv(source=2))

One thread per process, the reader, drives the runtime while something is awaited, and sleeps
otherwise.  It waits inside the channel, as a blocking call does, so nothing polls.  An operation
that completes, in whatever thread, wakes the loop that awaits it.

Cancelling a task withdraws the receive that it awaits.  One that has been matched cannot be
withdrawn: then its request stays active and may be awaited again, so no message is lost.

Under mpirun the real MPI has nothing that a loop could wait for.  There the functions of this
module test the request in the loop, with pauses that grow to `LONGEST_PAUSE_S`; its requests are
not awaitable by themselves.

Invariant: a callback of an operation runs under the runtime's lock, so it only schedules.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from serverless_mpi import MPI
from serverless_mpi.api.p2p import PointToPoint
from serverless_mpi.api.request import Request, operation_of
from serverless_mpi.runtime import Runtime, get_runtime
from serverless_mpi.runtime.operation import Operation

__all__ = ["barrier", "gather", "mprobe", "probe", "recv", "send", "wait"]

T = TypeVar("T")
LEAST_PAUSE_S, LONGEST_PAUSE_S = 0.0002, 0.01  # between two tests of a request of a real MPI
IDLE_S = 5.0  # after which a reader without work ends
Waker = Callable[[], None]


class _Reader:
    """Drives one runtime while operations or messages are awaited.

    `_lock` may be taken under the runtime's lock, and not the other way round.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = weakref.ref(runtime)
        self._lock = threading.Lock()
        self._wakers: set[Waker] = set()  # of operations that are awaited
        self._watches: list[tuple[Callable[[], bool], Waker]] = []
        self._work = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        """Let the thread work; something has been added."""
        runtime = self._runtime()
        self._work.release()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="smpi-aio", daemon=True)
                self._thread.start()
        if runtime is not None:
            runtime.poke()

    def _run(self) -> None:
        while self._has_work():
            runtime, looks = self._runtime(), 0

            def idle() -> bool:
                nonlocal looks
                looks += 1  # the first look of `wait_until` is not under the runtime's lock
                return looks > 1 and self._idle()

            try:
                assert runtime is not None  # whoever waits holds it
                runtime.wait_until(idle)
            except Exception:  # the rank has failed or finalized: each call that waits finds out
                with self._lock:
                    wakers = [*self._wakers, *(wake for _, wake in self._watches)]
                for wake in wakers:
                    wake()

    def _has_work(self) -> bool:
        """Wait for work; return False, and forget the thread, if there is none for a while."""
        if self._work.acquire(timeout=IDLE_S):
            return True
        with self._lock:
            if self._work.acquire(blocking=False):
                return True
            self._thread = None
            return False

    def _idle(self) -> bool:
        """Return whether nothing is awaited; called under the runtime's lock after each change."""
        with self._lock:
            seen = [watch for watch in self._watches if watch[0]()]
            for watch in seen:
                self._watches.remove(watch)
            for _, wake in seen:
                wake()
            return not self._wakers and not self._watches

    def add(self, operation: Operation, wake: Waker) -> None:
        """Call `wake` when an operation is done, or the rank has failed."""
        runtime = self._runtime()
        assert runtime is not None

        def done(_: Operation) -> None:
            with self._lock:
                self._wakers.discard(wake)
            wake()

        with self._lock:
            self._wakers.add(wake)
        runtime.on_done(operation, done)
        self._start()

    def watch(self, look: Callable[[], bool], wake: Waker) -> None:
        """Call `wake` once when `look`, a predicate of the runtime, is true, or it has failed."""
        with self._lock:
            self._watches.append((look, wake))
        self._start()

    def forget(self, wake: Waker) -> None:
        """Call `wake` no more."""
        with self._lock:
            self._wakers.discard(wake)
            self._watches = [watch for watch in self._watches if watch[1] is not wake]


_readers: weakref.WeakKeyDictionary[Runtime, _Reader] = weakref.WeakKeyDictionary()


def _reader(runtime: Runtime) -> _Reader:
    return _readers.setdefault(runtime, _Reader(runtime))


def _waker(future: asyncio.Future[None]) -> Waker:
    """Return a function that completes a future from any thread."""
    loop = future.get_loop()

    def settle() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    return wake


async def _finished(operation: Operation) -> None:
    """Wait until an operation is done, or the rank has failed."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wake, reader = _waker(future), _reader(get_runtime())
    reader.add(operation, wake)
    try:
        await future
    finally:
        reader.forget(wake)


async def wait(request: MPI.Request, status: MPI.Status | None = None) -> Any:
    """Wait for a request of `serverless_mpi.MPI` or of a real MPI.

    Parameters
    ----------
    request
        Becomes null, or inactive if it is persistent.  A cancelled task withdraws a receive that
        has not been matched; after that the request is null.  Otherwise it stays active.
    status
        Filled as by `Request.wait`.

    Returns
    -------
    object
        What an object receive received; None for other requests.
    """
    if not isinstance(request, Request):
        return await _tested(request, status)
    operation = operation_of(request)
    if operation is not None and not operation.done:
        try:
            await _finished(operation)
        except asyncio.CancelledError:
            request.Cancel()
            if operation.cancelled:
                request.wait()  # it is over: the request becomes null
            raise
    return request.wait(status)


async def _tested(request: MPI.Request, status: MPI.Status | None) -> object:
    """Wait for a request of a real MPI by testing it."""
    pause = LEAST_PAUSE_S
    try:
        while True:
            done, value = request.test(status)
            if done:
                return value
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
    except asyncio.CancelledError:
        request.Cancel()
        raise


async def gather(*requests: MPI.Request) -> list[Any]:
    """Wait for several requests.

    Parameters
    ----------
    *requests
        Active or null requests.

    Returns
    -------
    list
        The value of each, as `wait` returns it.
    """
    return list(await asyncio.gather(*map(wait, requests)))


async def send(comm: MPI.Comm, obj: object, dest: int, tag: int = 0) -> None:
    """Send an object, as `comm.send`.

    Parameters
    ----------
    comm, obj, dest, tag
        As for `comm.send`.
    """
    await wait(comm.isend(obj, dest, tag))


async def recv(
    comm: MPI.Comm,
    source: int = MPI.ANY_SOURCE,
    tag: int = MPI.ANY_TAG,
    status: MPI.Status | None = None,
) -> Any:
    """Receive an object, as `comm.recv`; a cancelled task withdraws the receive.

    Parameters
    ----------
    comm, source, tag, status
        As for `comm.recv`.

    Returns
    -------
    object
        The received object.
    """
    return await wait(comm.irecv(source=source, tag=tag), status)


async def barrier(comm: MPI.Comm) -> None:
    """Wait until all ranks have called it, as `comm.barrier`.

    Parameters
    ----------
    comm
        The communicator.
    """
    await wait(comm.Ibarrier())


async def probe(
    comm: MPI.Comm,
    source: int = MPI.ANY_SOURCE,
    tag: int = MPI.ANY_TAG,
    status: MPI.Status | None = None,
) -> None:
    """Wait for a message without receiving it, as `comm.probe`.

    Parameters
    ----------
    comm, source, tag, status
        As for `comm.probe`.
    """
    await _looked_for(comm, source, tag, lambda: comm.iprobe(source, tag, status) or None)


async def mprobe(
    comm: MPI.Comm,
    source: int = MPI.ANY_SOURCE,
    tag: int = MPI.ANY_TAG,
    status: MPI.Status | None = None,
) -> MPI.Message:
    """Wait for a message and take it out of matching, as `comm.mprobe`.

    Parameters
    ----------
    comm, source, tag, status
        As for `comm.mprobe`.

    Returns
    -------
    Message
        Only this object can receive the message.
    """
    return await _looked_for(comm, source, tag, lambda: comm.improbe(source, tag, status))


async def _looked_for(comm: MPI.Comm, source: int, tag: int, look: Callable[[], T | None]) -> T:
    """Return the first result of `look` that is not None; it is tried again as messages come."""
    pause = LEAST_PAUSE_S
    while (found := look()) is None:
        if isinstance(comm, PointToPoint):
            await _message(comm, source, tag)
        else:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
    return found


async def _message(comm: PointToPoint, source: int, tag: int) -> None:
    """Wait until there is a message that matches."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wake = _waker(future)
    with comm.watching(source, tag) as (runtime, seen):
        reader = _reader(runtime)
        reader.watch(seen, wake)
        try:
            await future
        finally:
            reader.forget(wake)
