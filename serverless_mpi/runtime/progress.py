"""The lock, receiving, and waiting: drives a channel and the sans-IO core.

One lock guards the endpoint, the send queue and every operation.  It is released only while the
channel works (`get`, `put`, `ack`), while a thread sleeps, and while signal handlers run.

A thread that waits drives the rank: it takes frames from the channel, gives them to the endpoint,
and so completes its own operations and those of other threads.  One thread at a time does
(`_pumping`); the others sleep on a condition and look at what they wait for when it has received
something.  What is done in another way (a send was put, `poke`) wakes the thread that is inside the
channel (`Channel.wake`), if it waits for that.

What is waited for has an attribute `done`: a `Receive`, an `Operation`, or a predicate in an
`Until`.  A thread that waits looks at it after each `get`, and an attribute costs less than a call.

An error of the channel ends the rank: the first one is kept (`_failure`), and every later call
raises it.

Pitfalls.  A predicate runs under the lock and must not call the runtime.  Whatever makes
something done must call `_notify`, or do it inside `Entry`, whose exit does.  Signal handlers run
only in `_wait`, with the lock released (signals.py), so a channel never sees the exception of one:
every exception that comes out of a channel is the channel's.
"""

from __future__ import annotations

import collections
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from types import TracebackType
from typing import Any, Protocol

from serverless_mpi.channels.base import Channel
from serverless_mpi.core.endpoint import Endpoint, Receive, ReceiveSlot
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.core.frames import ExpectedFrame
from serverless_mpi.deadlock import WaitReporter
from serverless_mpi.errors import JobError
from serverless_mpi.runtime.send_queue import SendQueue
from serverless_mpi.signals import shield

LONG_POLL_S = (
    20.0  # longest single wait; SQS allows no longer one (ReceiveMessage, WaitTimeSeconds)
)
MAX_REPORTED = 8  # awaited messages that a deadlock report names per rank


def never() -> bool:
    """For `interruptible`: signal handlers run when the call is over."""
    return False


class Waited(Protocol):
    """What a thread waits for."""

    @property
    def done(self) -> bool:
        """Whether the wait is over."""


class Agent:
    """State of the agent thread, and what it waits for while it receives; see serving.py."""

    def __init__(self, lock: threading.Lock) -> None:
        self.done = False  # no service is left
        self.yields = False  # a thread of the program wants to receive
        self.idle = threading.Condition(lock)
        self.thread: threading.Thread | None = None


class Until:
    """A predicate as something to wait for."""

    __slots__ = ("_predicate",)

    def __init__(self, predicate: Callable[[], bool]) -> None:
        self._predicate = predicate

    @property
    def done(self) -> bool:
        """Whether the predicate is true."""
        return self._predicate()


class Progress:
    """One rank's channel, endpoint and send queue, and the waiting.  Safe for threads.

    Parameters
    ----------
    rank
        World rank, for messages.
    channel, endpoint
        Owned: no other code calls them while this object lives.
    reporter
        Reports long waits to the launcher; None if no deadlock detection was requested.
    """

    def __init__(
        self, rank: int, channel: Channel, endpoint: Endpoint, reporter: WaitReporter | None
    ) -> None:
        self.rank = rank
        self._channel = channel
        self._endpoint = endpoint
        self._wait_reporter = reporter
        if channel.limits.trusted_transport:
            channel.land = self._land
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sleepers = 0  # threads that wait for _changed
        self._inside = Entry(self)
        self._pump_waited: Waited | None = None  # of the thread inside the channel
        self._pumping = False
        self._failure: BaseException | None = None
        self._send_queue = SendQueue(channel, self._lock, self._batch_done)
        self.finalized = False
        self._received = 0  # frames
        self._on_span: Callable[[str, int], None] | None = None  # see Runtime.record
        # (context, tag) -> the receive of a service, and the thread that receives for them;
        # see serving.py
        self._services: dict[tuple[int, int | None], Receive] = {}
        self._agent: Agent | None = None
        self._owners: dict[int, _Owner] = {}  # by context
        # contexts that have lost their owners and are to be freed
        self._unowned: collections.deque[int] = collections.deque()
        shield.guard(self)

    # --- contexts ---------------------------------------------------------------------------------

    def own(self, owner: object, context: int) -> None:
        """Free the state of `context` when `owner`, which every use needs, is collected.

        Parameters
        ----------
        owner
            Referenced weakly.
        context
            Context that the owner alone uses.
        """
        reference = self._owners[context] = _Owner(owner, self._lost)
        reference.context = context
        with self._lock:
            self._free_contexts()

    def _lost(self, owner: _Owner) -> None:
        """An owner has been collected."""
        del self._owners[owner.context]
        self._unowned.append(owner.context)

    def _free_contexts(self) -> None:
        """Under the lock: free the contexts that have lost their owners.

        The garbage collector may collect an owner at any moment, even while this thread has the
        lock, so the finalizer only appends to a deque.
        """
        while self._unowned:
            self._endpoint.free(self._unowned.popleft())

    # --- waiting ----------------------------------------------------------------------------------

    def wait_until(
        self,
        predicate: Callable[[], bool],
        timeout: float | None = None,
        interruptible: Callable[[], bool] | None = None,
    ) -> bool:
        """Drive the rank until `predicate()` is true.

        Parameters
        ----------
        predicate
            Called under the lock; must not call the runtime.
        timeout
            Seconds; None for no limit.
        interruptible
            Whether signal handlers may run now, and end the wait by an exception; None for always.

        Returns
        -------
        bool
            False if `timeout` seconds have passed first.

        Raises
        ------
        ChannelError, JobError
            The channel has failed; the rank has finalized MPI.
        """
        return self.wait_for(Until(predicate), timeout, interruptible)

    def wait_for(
        self,
        waited: Waited,
        timeout: float | None = None,
        interruptible: Callable[[], bool] | None = None,
    ) -> bool:
        """Drive the rank until `waited.done`; otherwise as `wait_until`.

        Parameters
        ----------
        waited
            What has an attribute `done`.
        timeout, interruptible
            As for `wait_until`.
        """
        if self._failure is None and waited.done:
            return True
        with self._inside:
            return self._wait(waited, timeout, interruptible)

    def progress(self) -> None:
        """Receive what has arrived, without waiting."""
        with self._inside:
            self._pump(0.0, None)

    def poke(self) -> None:
        """Have waiting threads look at their predicates again."""
        with self._lock:
            self._notify()

    def interrupt(self) -> None:
        """Wake the main thread, if it waits: a signal handler is due.  Called by another thread."""
        with self._lock:
            if self._sleepers:
                self._changed.notify_all()
            if self._pump_waited is not None:
                try:
                    self._channel.wake()
                except Exception as error:
                    self._fail(error)

    def _handle_signals(self) -> None:
        """Under the lock, in the main thread: run the handlers that are due, without the lock."""
        self._lock.release()
        try:
            shield.run()
        finally:
            self._lock.acquire()

    def _wait(
        self, waited: Waited, timeout: float | None, interruptible: Callable[[], bool] | None = None
    ) -> bool:
        """Under the lock: `wait_for`, without a first look at `waited` before the flush."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._endpoint.outbox:
            self._flush(blocking=True)
        elif self._send_queue.queued:
            self._send_queue.flush(blocking=True)
        reporter, began, reported = self._wait_reporter, 0.0, False
        longest = LONG_POLL_S if reporter is None else min(LONG_POLL_S, reporter.interval_s)
        try:
            while not waited.done:
                if self._failure is not None or self.finalized:
                    raise self._failure or self._over()
                if shield.deferred and shield.due() and (interruptible is None or interruptible()):
                    self._handle_signals()
                    continue
                pause = longest
                if deadline is not None:
                    pause = min(deadline - time.monotonic(), longest)
                    if pause <= 0:
                        return False
                elif reporter is not None:
                    # only a wait without a time limit can be part of a deadlock
                    now = time.monotonic()
                    began = began or now
                    if now - began >= reporter.interval_s:
                        reported = True
                        reporter.report(self._send_queue.frames + self._received, self._awaited)
                self._pump(pause, waited)
        finally:
            if reported and reporter is not None:
                reporter.over()
        return True

    def _awaited(self) -> list[str]:
        """Under the lock: descriptions of what the rank waits for, at most `MAX_REPORTED`."""
        descriptions = []
        awaited = [
            each for each in self._endpoint.awaited() if (each[1], each[3]) not in self._services
        ]
        for what, context, source, tag in awaited[:MAX_REPORTED]:
            reference = self._owners.get(context)
            communicator = None if reference is None else reference()
            if not hasattr(communicator, "places"):  # a request that has a context of its own
                communicator = None
            local_ranks = {} if communicator is None else communicator.places
            peer = f"rank {local_ranks.get(source, source)}" if source != ANY_SOURCE else "any rank"
            tagged = {ANY_TAG: " with any tag", None: ""}.get(tag, f" with tag {tag}")
            where = (
                f"a communicator of its own ({context:x})"
                if communicator is None
                else communicator.name or "a communicator"
            )
            descriptions.append(f"{what} {peer}{tagged} on {where}")
        return descriptions

    def _pump(self, max_wait_s: float, waited: Waited | None) -> None:
        """Under the lock: receive once, or sleep if another thread does."""
        if self._unowned:
            self._free_contexts()
        if self._pumping:
            agent = self._agent
            if agent is not None and self._pump_waited is agent:
                self._pump_waited = None
                agent.yields = True
                self._channel.wake()
            if max_wait_s > 0:
                self._sleep(max_wait_s)
            return
        sending = self._send_queue.queued or self._send_queue.putting
        if max_wait_s > 0 and sending and not self._endpoint.awaits():
            self._sleep(max_wait_s)  # the sender thread will wake it; no frame is awaited
            return
        self._pumping = True
        self._pump_waited = waited
        try:
            receipts = self._receive(max_wait_s)
            if self._send_queue.queued or self._endpoint.outbox:
                self._flush(blocking=True)
            if receipts:
                self._lock.release()
                try:
                    self._channel.ack(receipts)
                finally:
                    self._lock.acquire()
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._pumping = False
            if self._sleepers:
                self._changed.notify_all()

    def _receive(self, max_wait_s: float) -> list[object]:
        """Under the lock: give the endpoint what the channel has; return the receipts."""
        on_span = self._on_span
        if on_span is not None and self._agent is not None and self._pump_waited is self._agent:
            on_span = None  # the program does not wait
        begin = 0 if on_span is None else time.perf_counter_ns()
        self._lock.release()
        try:
            deliveries = self._channel.get(max_wait_s, self._wanted)
        finally:
            self._lock.acquire()
            self._pump_waited = None
            if on_span is not None:
                on_span("channel.get", begin)
        now = time.monotonic()
        self._received += len(deliveries)
        receipts: list[object] = []
        for data, receipt, landing, leaves in deliveries:
            if landing is None:
                self._endpoint.receive(data, now, leaves)
            else:
                self._endpoint.landed(landing)
            if receipt is not None:
                receipts.append(receipt)
        if not deliveries and max_wait_s > 0:
            self._endpoint.check(now)  # only now: a frame that was in the channel is not lost
        return receipts

    def _sleep(self, seconds: float) -> None:
        """Under the lock: wait until another thread has changed something, at most `seconds`."""
        self._sleepers += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._sleepers -= 1

    def _wanted(self) -> list[ExpectedFrame]:
        """Without the lock, from `Channel.get`: names of the awaited frames."""
        with self._lock:
            return self._endpoint.wanted()

    def _land(self, head: memoryview, nbytes: int) -> ReceiveSlot | None:
        """Without the lock, from the channel: memory for a body, see `Channel.land`."""
        with self._lock:
            return self._endpoint.land(head, nbytes, time.monotonic())

    def _notify(self) -> None:
        """Under the lock, not pumping: wake the threads whose predicates may have become true."""
        if self._sleepers:
            self._changed.notify_all()
        waited = self._pump_waited
        if waited is not None and (self._failure is not None or waited.done):
            self._pump_waited = None
            self._channel.wake()

    def _batch_done(self, error: BaseException | None) -> None:
        """Under the lock: frames have been put, or could not be put."""
        if error is not None:
            self._fail(error)
        elif self._sleepers or self._pump_waited is not None:
            self._notify()

    def _fail(self, error: BaseException) -> None:
        """Under the lock: keep the first error of the channel, which ends the rank."""
        self._failure = self._failure or error
        self._send_queue.lost = True

    def _flush(self, blocking: bool = False) -> None:
        """Under the lock: queue acknowledgements, and flush the send queue."""
        if self._endpoint.outbox:
            self._send_queue.add(self._endpoint.outbox, None)
            self._endpoint.outbox.clear()
        self._send_queue.flush(blocking)

    # --- the end ----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Under the lock: wait until everything has been put, or the channel has failed."""
        send_queue = self._send_queue
        while (
            send_queue.queued or send_queue.putting or self._endpoint.outbox
        ) and self._failure is None:
            try:
                self._flush(blocking=True)
            except Exception:
                if self._failure is None:
                    raise
                return  # `finalize` raises it when the channel has been closed
            if send_queue.queued or send_queue.putting:
                self._sleep(LONG_POLL_S)
            if shield.due():
                self._handle_signals()

    def _stop(self) -> None:
        """Under the lock: end the sender thread, and every wait of other threads."""
        self.finalized = True
        self._send_queue.finish()
        while self._pumping:
            self._changed.notify_all()
            if self._pump_waited is not None:
                self._pump_waited = None
                self._channel.wake()
            self._sleep(LONG_POLL_S)
        self._changed.notify_all()

    def _over(self) -> JobError:
        return JobError(f"rank {self.rank} has finalized MPI and cannot communicate any more")


class _Owner(weakref.ref[Any]):
    """A reference to what owns a context: a communicator, or a request with one of its own."""

    __slots__ = ("context",)
    context: int


class Entry:
    """Context manager around every call of the runtime.

    Entering takes the lock and raises if the rank has failed or finalized.  Leaving flushes queued
    frames, wakes the threads whose predicates may have become true, and releases the lock.  The
    calls of `Shield.enter` and `leave` are partly written out here, which saves 0.1 us each.
    """

    __slots__ = ("_progress",)

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> None:
        progress = self._progress
        if get_ident() == shield.main:
            if shield.depth or (shield.installed and not shield.deferred):
                shield.depth += 1
            else:
                shield.enter()
        progress._lock.acquire()
        if progress._failure is not None or progress.finalized:
            progress._lock.release()
            shield.leave()
            raise progress._failure or progress._over()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        progress = self._progress
        try:
            if kind is None:
                if progress._endpoint.outbox:
                    progress._flush()
                elif progress._send_queue.queued:
                    progress._send_queue.flush()
                if progress._sleepers or progress._pump_waited is not None:
                    progress._notify()
        finally:
            progress._lock.release()
            if get_ident() == shield.main:
                shield.depth -= 1
