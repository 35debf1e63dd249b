"""The pump between a channel and the core: with the clock and the lock.

Whoever waits pumps: it asks the channel for frames, feeds them to the
endpoint, and thereby completes its own operations and everybody else's.  What
is sent goes by `outgoing.py`.

Signal handlers run only where nothing is half done (`signals.py`), in `_wait`
with the lock released, so a channel never sees the exception of one and every
exception that comes out of a channel is the channel's.  When a handler raises,

- a blocking receive that nothing has matched is withdrawn; one that has been
  matched returns its message, and the exception comes out of the statement
  after it;
- a probe has taken nothing;
- a message that was to be sent has been sent.  A blocking send waits for its
  own put, and only a synchronous one, for the match, is interrupted;
- a request stays as it is and can be waited for again;
- a collective goes on: its number is used up, later calls of this rank move it
  along, its buffers are in use until the other ranks have completed it, and
  what it would have returned is lost.  Communicators are made without
  interruption.

A forked child is not the rank: every call raises, `finalize` does nothing, and
the channel's descriptors are closed without a word to the other ranks.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, NoReturn

from serverless_mpi import channels, plugins
from serverless_mpi.channels.base import Channel
from serverless_mpi.collectives import choose
from serverless_mpi.collectives.steps import Recv, Scatter, Send
from serverless_mpi.core.delivery import Incoming
from serverless_mpi.core.endpoint import Endpoint, Receive, ReceiveSlot
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, Envelope
from serverless_mpi.core.frames import ExpectedFrame
from serverless_mpi.deadlock import WaitReporter
from serverless_mpi.env import ENV_EXPLAIN, ENV_TRACE
from serverless_mpi.env import ENV_MAX_HELD as ENV_MAX_HELD
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.job import JobSpec, take_spec
from serverless_mpi.metering import Meter
from serverless_mpi.operation import Operation, Payload, any_done
from serverless_mpi.outgoing import Outgoing
from serverless_mpi.signals import shield

LONG_POLL_S = (
    20.0  # the longest single wait; SQS allows no longer (ReceiveMessage, WaitTimeSeconds)
)
MOST_TOLD = 8  # awaited things that a report of a deadlock names for each rank

Steps = Generator[Any, Any, Any]


def never() -> bool:
    """For `interruptible`: handlers run when the call is over."""
    return False


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()  # that a fork would copy


class Runtime:
    """One rank: its channel, its endpoint, and the waiting.

    Safe to call from any number of threads.  After an error of the channel
    every later call raises it: a rank that has lost its medium cannot go on.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.rank = spec.rank
        self.size = spec.size
        plugins.import_algorithms(spec.plugins)
        self.algorithms = choose.forced(spec.algorithms)
        self.meter = Meter()
        self._started = time.monotonic()
        self._channel: Channel = channels.load(spec.channel)(spec, self.meter)
        self.figures = self._channel.figures
        limits = self._channel.limits
        self._endpoint = Endpoint(
            spec.rank,
            bytes.fromhex(spec.job_id),
            spec.key,
            limits.max_frame_bytes,
            _max_held_bytes(),
            limits.trusted_transport,
        )
        if limits.trusted_transport:
            self._channel.land = self._land
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sleepers = 0  # threads that wait for _changed
        self._inside = _Entry(self)
        self._pump_predicate: Callable[[], bool] | None = None
        self._pumping = False
        self._failure: BaseException | None = None
        self._outgoing = Outgoing(self._channel, self._lock, self._have_put)
        self.finalized = False
        self._received = 0  # frames
        self.communicators: weakref.WeakValueDictionary[int, Any] = (
            weakref.WeakValueDictionary()
        )  # by context
        self._unowned: collections.deque[int] = (
            collections.deque()
        )  # contexts without an owner, to be freed
        self._wait_reporter = None
        if spec.deadlock_s and spec.stats_dir is not None:
            self._wait_reporter = WaitReporter(Path(spec.stats_dir), spec.rank, spec.deadlock_s)
        # kind of a collective call -> (calls, blobs given, their bytes): see api.collective
        self.chosen: dict[tuple[Any, ...], tuple[int, int, int]] | None = (
            {} if ENV_EXPLAIN in os.environ else None
        )
        self._forked = False  # this is a child, whose parent is the rank
        _runtimes.add(self)
        shield.guard(self)
        self._recorder: Any = None
        if ENV_TRACE in os.environ:
            from serverless_mpi import trace

            self._recorder = trace.attach(self)

    # --- point-to-point ------------------------------------------------------

    def isend(
        self,
        context: int,
        dest: int,
        tag: int,
        data: Sequence[memoryview],
        *,
        sync: bool = False,
        payload: Payload = Payload.BORROWED,
    ) -> Operation:
        """Start sending `data` to world rank `dest`.

        payload: when the caller may change the memory of `data`.
        """
        operation = Operation()
        with self._inside:
            on_matched = None
            if sync:
                operation._holds += 1
                on_matched = operation._release
            parcels = self._endpoint.send(context, dest, tag, data, on_matched, time.monotonic())
            if self._outgoing.async_put:
                self._outgoing.add(parcels, operation, payload)
            elif parcels:
                self._outgoing.put(parcels)
            operation._release()
        return operation

    def irecv(
        self, context: int, source: int, tag: int, into: memoryview | None = None
    ) -> Operation:
        """Start receiving from world rank `source` or ANY_SOURCE; a payload that fits goes to `into`."""
        with self._inside:
            return self._receiving(self._endpoint.post(context, source, tag, into))

    def irecv_matched(self, message: Incoming, into: memoryview | None = None) -> Operation:
        """Start receiving the message that a matched probe took."""
        with self._inside:
            return self._receiving(self._endpoint.post_matched(message, into))

    def irecv_parts(
        self,
        context: int,
        source: int,
        head: Callable[[memoryview], int],
        part: Callable[[int, memoryview], None],
    ) -> Operation:
        """Start receiving message 0 of a source, and then as many more (tags 1, 2, ..) as `head` finds in it.

        part(i, data) is called for the message of tag i + 1, in whatever order they come; like `head` it must not
        call the runtime.  An exception of either is the operation's error.
        """
        operation = Operation()

        def each(receive: Receive) -> None:
            assert receive.data is not None
            try:
                if receive.pattern[2] > 0:
                    part(receive.pattern[2] - 1, receive.data)
                else:
                    for index in range(head(receive.data)):
                        operation._holds += 1
                        take(index + 1)
            except Exception as error:
                operation._end(error)
            else:
                operation._release()

        def take(tag: int) -> None:
            receive = self._endpoint.post(context, source, tag)
            if receive.done:
                each(receive)
            else:
                receive.on_done = each

        with self._inside:
            take(0)
        return operation

    def _receiving(self, receive: Receive) -> Operation:
        operation = Operation()
        operation._receive = receive

        def finish(receive: Receive) -> None:
            operation.envelope = receive.envelope
            operation.data = receive.data
            operation.landed = receive.landed
            operation._release()

        if receive.done:
            finish(receive)
        else:
            receive.on_done = finish
        return operation

    def cancel(self, operation: Operation) -> bool:
        """Withdraw a receive that nothing has matched; False for anything else."""
        with self._inside:
            receive = operation._receive
            if operation.done or receive is None or not self._endpoint.cancel(receive):
                return False
            operation.cancelled = True
            operation._end()
            return True

    def iprobe(self, context: int, source: int, tag: int) -> Envelope | None:
        """The envelope of the message a receive would get now, or None."""
        found = self._look(
            lambda: self._endpoint.probe(context, source, tag), (context, source, tag), block=False
        )
        assert found is None or isinstance(found, Envelope)
        return found

    def probe(self, context: int, source: int, tag: int) -> Envelope:
        """The same; waits for one."""
        found = self._look(
            lambda: self._endpoint.probe(context, source, tag), (context, source, tag), block=True
        )
        assert isinstance(found, Envelope)
        return found

    def improbe(self, context: int, source: int, tag: int) -> Incoming | None:
        """Take the message a receive would get now, for `irecv_matched`, or None."""
        found = self._look(
            lambda: self._endpoint.mprobe(context, source, tag), (context, source, tag), block=False
        )
        assert found is None or isinstance(found, Incoming)
        return found

    def mprobe(self, context: int, source: int, tag: int) -> Incoming:
        """The same; waits for one."""
        found = self._look(
            lambda: self._endpoint.mprobe(context, source, tag), (context, source, tag), block=True
        )
        assert isinstance(found, Incoming)
        return found

    def _look(self, look: Callable[[], Any], pattern: tuple[int, int, int], block: bool) -> Any:
        found: list[Any] = []

        def seen() -> bool:
            if not found:
                item = look()
                if item is not None:
                    found.append(item)
            return bool(found)

        with self._inside:
            if not seen():
                self._endpoint.watched.append(pattern)
                try:
                    if block:
                        self._wait(seen, None)
                    else:
                        self._pump(0.0, seen)
                        seen()
                finally:
                    self._endpoint.watched.remove(pattern)
        return found[0] if found else None

    # --- collectives ---------------------------------------------------------

    def icollective(self, context: int, seq: int, steps: Steps, ranks: Sequence[int]) -> Operation:
        """Start running a collective's generator; the operation's `result` is what it returns.

        seq: the number of this collective on its communicator; ranks: world
        rank of each rank the generator speaks of.
        """
        operation = Operation()
        with self._inside:
            self._advance(operation, context, seq, steps, ranks, None)
        return operation

    def _advance(
        self,
        operation: Operation,
        context: int,
        seq: int,
        steps: Steps,
        ranks: Sequence[int],
        value: Any,
    ) -> None:
        while True:
            try:
                step = steps.send(value)
            except StopIteration as stop:
                operation.result = stop.value
                self._endpoint.retire(context, seq)
                operation._release()
                return
            except (
                Exception
            ) as error:  # the caller's operation or datatype failed; the call that waits raises it
                self._endpoint.retire(context, seq)
                operation._end(error)
                return
            several = isinstance(step, (list, tuple))
            group: Sequence[Send | Scatter | Recv] = step if several else (step,)
            receives: list[Receive | None] = []
            missing: list[Receive] = []
            for one in group:
                if isinstance(one, Send):
                    dests = [ranks[dest] for dest in one.dests]
                    if dests:
                        parcels = self._endpoint.publish(context, seq, one.slot, dests, one.data)
                        self._outgoing.add(parcels, operation)
                    receives.append(None)
                elif isinstance(one, Scatter):
                    blobs = [(ranks[dest], data) for dest, data in one.blobs]
                    if blobs:
                        parcels = self._endpoint.deal(context, seq, one.slot, blobs)
                        if not self.figures.ranges:
                            parcels = [
                                single for frame in parcels for single in frame.split_per_reader()
                            ]
                        self._outgoing.add(parcels, operation)
                    receives.append(None)
                else:
                    receive = self._endpoint.expect(
                        context, ranks[one.source], seq, one.slot, one.scattered
                    )
                    receives.append(receive)
                    if not receive.done:
                        missing.append(receive)

            def values(receives: list[Receive | None] = receives, several: bool = several) -> Any:
                data = [None if receive is None else receive.data for receive in receives]
                return data if several else data[0]

            if missing:
                left = len(missing)

                def arrived(_: Receive) -> None:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        self._advance(operation, context, seq, steps, ranks, values())

                for receive in missing:
                    receive.on_done = arrived
                return
            value = values()

    # --- contexts ------------------------------------------------------------

    def own(self, owner: object, context: int) -> None:
        """Keep the state of `context` as long as `owner`, without which nothing on it can be begun."""
        weakref.finalize(owner, self._unowned.append, context).atexit = False
        with self._lock:
            self._free_contexts()

    def _free_contexts(self) -> None:
        """Under the lock: free the contexts that have lost their owners.

        An owner can vanish at any moment, also with the lock held: the garbage collector decides.
        """
        while self._unowned:
            self._endpoint.free(self._unowned.popleft())

    # --- waiting -------------------------------------------------------------

    def wait(
        self, operations: Sequence[Operation], all: bool = True, timeout: float | None = None
    ) -> bool:
        """Wait until all (or any) of `operations` are done; False if `timeout` seconds passed first.

        Errors stay in the operations: it is the caller's to raise them.
        """
        pending = list(operations)
        if len(pending) == 1:
            (one,) = pending
            return self.wait_until(lambda: one.done, timeout)

        def over() -> bool:
            if all:
                while pending and pending[-1].done:
                    pending.pop()
                return not pending
            return any_done(pending)

        return self.wait_until(over, timeout)

    def wait_until(
        self,
        predicate: Callable[[], bool],
        timeout: float | None = None,
        interruptible: Callable[[], bool] | None = None,
    ) -> bool:
        """Pump until `predicate()`, which is called under the lock and must not call the runtime.

        interruptible: whether signal handlers may run now, and end the wait with an exception; None for always.
        """
        if self._failure is None and predicate():
            return True
        with self._inside:
            return self._wait(predicate, timeout, interruptible)

    def complete_send(self, operation: Operation) -> None:
        """Wait for a send that the caller has no other handle to."""
        outgoing = self._outgoing
        self.wait_until(
            lambda: operation.done, interruptible=lambda: not (outgoing.queued or outgoing.putting)
        )

    def complete_receive(self, operation: Operation) -> None:
        """Wait for a receive that the caller has no other handle to.

        The exception of a signal handler withdraws it, unless a message has been matched to it: then the message is
        received, and the exception is raised after the call.
        """
        receive = operation._receive
        assert receive is not None
        try:
            self.wait_until(lambda: operation.done, interruptible=lambda: receive.envelope is None)
        except BaseException as error:
            if self._failure is not None or self.cancel(operation) or not shield.postpone(error):
                raise
            self.wait_until(lambda: operation.done, interruptible=never)

    def progress(self) -> None:
        """Take what has come, without waiting."""
        with self._inside:
            self._pump(0.0, lambda: True)

    def poke(self) -> None:
        """Something outside the runtime has changed; let those who wait look again."""
        with self._lock:
            self._notify()

    def interrupt(self) -> None:
        """A signal handler is due in the main thread, which may be waiting; called by another thread."""
        with self._lock:
            if self._sleepers:
                self._changed.notify_all()
            if self._pump_predicate is not None:
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
        self,
        predicate: Callable[[], bool],
        timeout: float | None,
        interruptible: Callable[[], bool] | None = None,
    ) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._outgoing.queued or self._endpoint.outbox:
            self._flush(blocking=True)
        reporter, began, told = self._wait_reporter, 0.0, False
        longest = LONG_POLL_S if reporter is None else min(LONG_POLL_S, reporter.interval_s)
        try:
            while not predicate():
                if self._failure is not None or self.finalized:
                    raise self._failure or self._over()
                if shield.deferred and shield.due() and (interruptible is None or interruptible()):
                    self._handle_signals()
                    continue
                now = time.monotonic()
                left = longest if deadline is None else min(deadline - now, longest)
                if left <= 0:
                    return False
                if reporter is not None and deadline is None:
                    began = began or now
                    if now - began >= reporter.interval_s:
                        told = True
                        reporter.report(self._outgoing.frames + self._received, self._awaited)
                self._pump(left, predicate)
        finally:
            if told and reporter is not None:
                reporter.over()
        return True

    def _awaited(self) -> list[str]:
        """Under the lock: what the rank waits for, in words."""
        said = []
        for what, context, source, tag in self._endpoint.awaited()[:MOST_TOLD]:
            communicator = self.communicators.get(context)
            places = {} if communicator is None else communicator.places
            who = "any rank" if source == ANY_SOURCE else f"rank {places.get(source, source)}"
            which = {ANY_TAG: " with any tag", None: ""}.get(tag, f" with tag {tag}")
            where = (
                f"a communicator of its own ({context:x})"
                if communicator is None
                else communicator.name or "a communicator"
            )
            said.append(f"{what} {who}{which} on {where}")
        return said

    def _pump(self, max_wait_s: float, predicate: Callable[[], bool]) -> None:
        """Under the lock: feed the endpoint once, or wait while another thread does."""
        if self._unowned:
            self._free_contexts()
        if self._pumping:
            if max_wait_s > 0:
                self._sleep(max_wait_s)
            return
        if (
            max_wait_s > 0
            and (self._outgoing.queued or self._outgoing.putting)
            and not self._endpoint.awaits()
        ):
            self._sleep(
                max_wait_s
            )  # nothing can come that anybody waits for: only the sender thread is busy
            return
        self._pumping = True
        self._pump_predicate = predicate
        receipts: list[object] = []
        try:
            self._lock.release()
            try:
                deliveries = self._channel.get(max_wait_s, self._wanted)
            finally:
                self._lock.acquire()
                self._pump_predicate = None
            now = time.monotonic()
            self._received += len(deliveries)
            for delivery in deliveries:
                if delivery.landing is None:
                    self._endpoint.receive(delivery.data, now, delivery.leaves)
                else:
                    self._endpoint.landed(delivery.landing)
                if delivery.receipt is not None:
                    receipts.append(delivery.receipt)
            if not deliveries and max_wait_s > 0:
                self._endpoint.check(now)
            if self._outgoing.queued or self._endpoint.outbox:
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

    def _sleep(self, seconds: float) -> None:
        """Under the lock: until something has changed."""
        self._sleepers += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._sleepers -= 1

    def _wanted(self) -> list[ExpectedFrame]:
        with self._lock:
            return self._endpoint.wanted()

    def _land(self, head: memoryview, nbytes: int) -> ReceiveSlot | None:
        with self._lock:
            return self._endpoint.land(head, nbytes, time.monotonic())

    def _notify(self) -> None:
        """Under the lock, not pumping: wake the threads whose predicates may have become true."""
        if self._sleepers:
            self._changed.notify_all()
        predicate = self._pump_predicate
        if predicate is not None and (self._failure is not None or predicate()):
            self._pump_predicate = None
            self._channel.wake()

    def _have_put(self, error: BaseException | None) -> None:
        """Under the lock: frames were put, or could not be."""
        if error is None:
            self._notify()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Under the lock: the medium is lost."""
        self._failure = self._failure or error
        self._outgoing.lost = True

    def _flush(self, blocking: bool = False) -> None:
        """Under the lock: see that what is queued is put; at once if the caller blocks."""
        if self._endpoint.outbox:
            self._outgoing.add(self._endpoint.outbox, None)
            self._endpoint.outbox.clear()
        self._outgoing.flush(blocking)

    # --- entry, exit ---------------------------------------------------------

    def abort(self, code: int, reason: str = "") -> NoReturn:
        """Print `reason` and end this process at once with `code`; the launcher then ends the others.

        Nothing keeps it from ending: neither closed standard streams nor a full disk.
        """
        try:
            folder = self.spec.stats_dir
            if folder is not None and self._recorder is not None and not self._forked:
                self._recorder.write(Path(folder), self.rank)
        finally:
            end(code & 0xFF or (1 if code else 0), reason)

    def finalize(self) -> None:
        """Put what is queued, close the channel, leave the counters in `stats_dir`; later calls do nothing.

        Raises
        ------
        ChannelError
            The medium was lost, so messages of this rank may never arrive.  (Or whatever else ended the runtime.)
        """
        if self._forked:
            return
        shield.enter()
        try:
            self._finalize()
        finally:
            shield.leave()

    def _finalize(self) -> None:
        with self._lock:
            if self.finalized:
                return
            outgoing = self._outgoing
            while (
                outgoing.queued or outgoing.putting or self._endpoint.outbox
            ) and self._failure is None:
                try:
                    self._flush(blocking=True)
                except Exception:
                    if self._failure is None:
                        raise
                    break  # it is raised when the channel is closed
                if outgoing.queued or outgoing.putting:
                    self._sleep(LONG_POLL_S)
                if shield.due():
                    self._handle_signals()
            self.finalized = True
            outgoing.finish()
            while (
                self._pumping
            ):  # a thread still waits for messages; it shall see that this is the end
                self._changed.notify_all()
                if self._pump_predicate is not None:
                    self._pump_predicate = None
                    self._channel.wake()
                self._sleep(LONG_POLL_S)
            self._changed.notify_all()
        outgoing.join()
        failure = self._failure
        try:
            self._channel.close()
        except Exception as error:
            failure = failure or error
        if self.spec.stats_dir is not None:
            try:
                self._write_stats(Path(self.spec.stats_dir))
            except OSError as error:
                _say(
                    f"rank {self.rank}: its counters cannot be written to {self.spec.stats_dir}"
                    f" ({error.strerror or error}); the job's statistics lack them"
                )
        if failure is not None:
            raise failure

    def _over(self) -> JobError:
        return JobError(f"rank {self.rank} has finalized MPI and cannot communicate any more")

    def _after_fork(self) -> None:
        """In a child, which must not speak for the rank."""
        self._forked = True
        self._lock = threading.Lock()  # whoever held it was a thread of the parent
        self._changed = threading.Condition(self._lock)
        self._sleepers, self._pumping, self._pump_predicate = 0, False, None
        self._failure = JobError(
            f"this process was forked from rank {self.rank} and is not a rank itself: it cannot communicate;"
            " communicate in the parent, or start the child as a program of its own (subprocess, spawn)"
        )
        self._outgoing.abandon()
        self._channel.abandon()

    def _write_stats(self, folder: Path) -> None:
        record = {
            "rank": self.rank,
            "seconds": time.monotonic() - self._started,
            "meter": self.meter.snapshot(),
            "dropped": self._endpoint.dropped,
            "duplicates": self._endpoint.duplicates,
            "collectives": [[*call, *counts] for call, counts in (self.chosen or {}).items()],
        }
        path = folder / f"rank-{self.rank}.json"
        path.with_suffix(".tmp").write_text(json.dumps(record))
        path.with_suffix(".tmp").rename(path)
        if self._recorder is not None:
            self._recorder.write(folder, self.rank)


class _Entry:
    """The inside of a call: with the lock, if the rank can communicate; what it queued is seen to at its end."""

    __slots__ = ("_runtime",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __enter__(self) -> None:
        runtime = self._runtime
        if shield.depth and get_ident() == shield.main:  # `enter`, 0.1 us faster inside a call
            shield.depth += 1
        else:
            shield.enter()
        runtime._lock.acquire()
        if runtime._failure is not None or runtime.finalized:
            runtime._lock.release()
            shield.leave()
            raise runtime._failure or runtime._over()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        runtime = self._runtime
        try:
            if kind is None:
                if runtime._outgoing.queued or runtime._endpoint.outbox:
                    runtime._flush()
                if runtime._sleepers or runtime._pump_predicate is not None:
                    runtime._notify()
        finally:
            runtime._lock.release()
            if get_ident() == shield.main:  # `leave`
                shield.depth -= 1


def end(code: int, reason: str = "") -> NoReturn:
    """Print `reason`, if there is one, and end this process with `code`, whatever has become of the standard streams."""
    try:
        if reason:
            _say(reason)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody can be told
        print(text, file=sys.stderr, flush=True)


def _max_held_bytes() -> int:
    text = os.environ.get(ENV_MAX_HELD)
    if text is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int(text)
    except ValueError:
        limit = 0
    if limit < 1:
        raise UsageError(f"{ENV_MAX_HELD}={text!r} is not a number of bytes; try {1 << 30}")
    return limit


_runtime: Runtime | None = None
_runtime_lock = threading.Lock()


def get_runtime() -> Runtime:
    """The process's runtime, made at first use; a process that no launcher started is a job of size 1."""
    global _runtime
    if _runtime is None:
        with _runtime_lock:
            if _runtime is None:
                _runtime = Runtime(take_spec(os.environ) or JobSpec.new(1, "memory"))
    return _runtime


def _after_fork() -> None:
    global _runtime_lock
    _runtime_lock = threading.Lock()
    for runtime in list(_runtimes):
        runtime._after_fork()


os.register_at_fork(after_in_child=_after_fork)
