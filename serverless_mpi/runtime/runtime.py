"""`Runtime`: what the MPI calls of `api/` use of one rank.

It starts operations and returns handles (`isend`, `irecv`, `icollective`), looks for messages
(`probe` and its variants), waits, and ends the rank.  Receiving and waiting are in `progress.py`.

What happens if a signal handler raises while a call waits:

- a blocking receive that no message has matched is withdrawn; one that has been matched returns its
  message, and the exception is raised by the statement after it;
- a probe has not taken a message;
- a message that was to be sent has been sent: a blocking send waits for its own put, and only a
  synchronous one, which waits for its match, is interrupted;
- a request stays as it is and can be waited for again;
- a collective goes on: its number is used up, later calls of this rank advance it, its buffers are
  in use until the other ranks have completed it, and its result is lost.  The construction of a
  communicator is not interrupted.

A forked child is not the rank: every call raises, `finalize` does nothing, and the channel closes
its descriptors without a message to the other ranks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from serverless_mpi import channels, plugins
from serverless_mpi.collectives import choose
from serverless_mpi.core.delivery import Incoming
from serverless_mpi.core.endpoint import Endpoint, Receive
from serverless_mpi.core.envelope import Envelope
from serverless_mpi.deadlock import WaitReporter
from serverless_mpi.env import ENV_EXPLAIN, ENV_MAX_HELD, ENV_PROFILE, ENV_TRACE
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from serverless_mpi.runtime import host
from serverless_mpi.runtime.collective_driver import CollectiveDriver, Steps
from serverless_mpi.runtime.operation import SENT, Operation, Payload, any_done
from serverless_mpi.runtime.progress import Entry, Until, never
from serverless_mpi.runtime.serving import Serving
from serverless_mpi.runtime.statistics import RankStatistics
from serverless_mpi.signals import shield

if TYPE_CHECKING:
    from serverless_mpi.observers import Observer


class Runtime(Serving):
    """One rank of a job.  Safe to call from any number of threads.

    After an error of the channel every later call raises that error: a rank that has lost its
    connection to the others cannot go on.

    Parameters
    ----------
    spec
        The rank, and the job that it belongs to.

    Raises
    ------
    UsageError
        The job names a channel or an algorithm that does not exist, or `SMPI_MAX_HELD_BYTES` is not
        a number of bytes.

    Attributes
    ----------
    figures : CostParameters
        Of the channel, by which algorithms are chosen.
    algorithms : mapping
        Algorithms that the user forced, by operation.
    process_names : tuple
        In a bridge, the name of each of its processes outside of it (`name_processes`); else empty.
    chosen : dict or None
        With `--explain`: kind of a collective call -> (calls, blobs given, bytes of them).
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.size = spec.size
        plugins.import_algorithms(spec.plugins)
        self.algorithms = choose.forced(spec.algorithms)
        observer: Observer | None = None
        if ENV_TRACE in os.environ or ENV_PROFILE in os.environ:
            from serverless_mpi import observers  # only here: otherwise it is not imported

            observer, self.meter = observers.asked_for(), observers.meter()
        else:
            self.meter = Meter()
        self._started = time.monotonic()
        channel = channels.load(spec.channel)(spec, self.meter)
        self.figures = channel.figures
        self.nodes = spec.nodes
        endpoint = Endpoint(
            spec.rank,
            bytes.fromhex(spec.job_id),
            spec.key,
            channel.limits.max_frame_bytes,
            _max_held_bytes(),
            channel.limits.trusted_transport,
        )
        reporter = None
        if spec.deadlock_s and spec.stats_dir is not None:
            reporter = WaitReporter(Path(spec.stats_dir), spec.rank, spec.deadlock_s)
        super().__init__(spec.rank, channel, endpoint, reporter)
        self.chosen: dict[tuple[Any, ...], tuple[int, int, int]] | None = (
            {} if ENV_EXPLAIN in os.environ else None
        )
        # of a bridge: what its ranks are called outside of it
        self.process_names: tuple[Any, ...] = ()
        self._forked = False  # this process is a child, and its parent is the rank
        host.watch_forks(self)
        self._recorder: Observer | None = None
        if observer is not None:
            self.record(observer)

    def record(self, recorder: Observer | None) -> None:
        """Report what this rank does to `recorder`; None ends that.

        The recorder gets the two ends of every message.  If it has `span` and `request`, it also
        gets a span per collective that begins, per `get` of the channel, per `put` that runs in the
        background (another one is most of the call that makes it), and per attempt of a request to
        a service.

        Parameters
        ----------
        recorder
            Borrowed until another one, or None, replaces it.
        """
        with self._lock:
            self._recorder = recorder
            self._on_span = None if recorder is None else recorder.span
            self._send_queue.on_span = self._on_span if self._send_queue.async_put else None
            self.meter.on_request = None if recorder is None else recorder.request
            endpoint = self._endpoint
            endpoint.on_send = None if recorder is None else recorder.sent
            endpoint.on_match = None if recorder is None else recorder.matched
            endpoint.on_step = None if recorder is None else recorder.step

    def name_processes(self, names: Sequence[Hashable]) -> None:
        """Give the processes of a bridge the names by which groups are compared.

        Parameters
        ----------
        names
            Of each rank of the bridge: its rank in this process's own job, or something else that
            is not an integer.
        """
        self.process_names = tuple(names)

    def ranks(self, names: Sequence[Any]) -> Sequence[Any]:
        """Return the world ranks of processes of a group.

        Parameters
        ----------
        names
            In a bridge one of `process_names` each, otherwise world ranks. Those of processes that
            this runtime does not have stay as they are, or become -1.
        """
        if not self.process_names:
            return names
        ranks = {name: rank for rank, name in enumerate(self.process_names)}
        return tuple(ranks.get(name, -1) for name in names)

    def in_use(self) -> bool:
        """Return whether a communicator that has not been freed, or a request, uses the runtime."""
        owners = [reference() for reference in list(self._owners.values())]
        return any(owner is not None and not getattr(owner, "freed", False) for owner in owners)

    def entered(self) -> Entry:
        """Return a context manager that holds the lock, as in every call of the runtime."""
        return self._inside

    def when_faults(self, call: Callable[[], None]) -> None:
        """Call `call`, under the lock, before the first message of a fault-tolerant rank.

        Parameters
        ----------
        call
            See failures.py.
        """
        self._endpoint.on_faults = call

    # --- point-to-point ---------------------------------------------------------------------------

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
        """Start sending a point-to-point message.

        Parameters
        ----------
        context, dest, tag
            Of the communicator; world rank; 0 to `TAG_UB`.
        data
            C-contiguous byte views that together are the payload.
        sync
            The operation also waits until a receive has matched the message.
        payload
            When the caller may change the bytes of `data`.

        Returns
        -------
        Operation
            Done when the payload may be changed, and with `sync` the message has been matched.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator has been freed.
        JobError, ChannelError
            The rank has finalized MPI, or lost its channel.
        """
        queue = self._send_queue
        if not sync and (
            not queue.async_put or (queue.at_once is not None and queue.at_once((dest,)))
        ):
            with self._inside:  # as `send`, without the call
                frames = self._endpoint.send(
                    context, dest, tag, data, None, time.monotonic() if dest == self.rank else 0.0
                )
                if frames:
                    self._send_queue.put(frames)
            return SENT
        operation = Operation()
        with self._inside:
            on_matched = None
            if sync:
                operation.hold()
                on_matched = operation.release
            frames = self._endpoint.send(context, dest, tag, data, on_matched, time.monotonic())
            if self._send_queue.async_put:
                self._send_queue.add(frames, operation, payload)
            elif frames:
                self._send_queue.put(frames)
            operation.release()
        return operation

    def send(
        self, context: int, dest: int, tag: int, data: Sequence[memoryview], *, sync: bool = False
    ) -> None:
        """Send a point-to-point message; return when its bytes may be changed.

        Parameters and errors are those of `isend`.  Where the caller puts, nothing is left to be
        waited for, so there is no operation.

        Parameters
        ----------
        context, dest, tag, data, sync
            As for `isend`.
        """
        queue = self._send_queue
        if not sync and (
            not queue.async_put or (queue.at_once is not None and queue.at_once((dest,)))
        ):
            with self._inside:
                frames = self._endpoint.send(
                    context, dest, tag, data, None, time.monotonic() if dest == self.rank else 0.0
                )
                if frames:
                    self._send_queue.put(frames)
            return
        shield.enter()
        try:
            operation = self.isend(context, dest, tag, data, sync=sync)
            if not operation.done:
                self.complete_send(operation)
            if operation.error is not None:
                raise operation.error
        finally:
            shield.leave()

    def recv(self, context: int, source: int, tag: int, into: memoryview | None = None) -> Receive:
        """Receive a point-to-point message; parameters are those of `irecv`.

        The exception of a signal handler withdraws the receive, unless it has been matched: then
        the message is received, and the exception is raised after the call.  The caller keeps the
        signal shield until it has taken the message.

        Parameters
        ----------
        context, source, tag, into
            As for `irecv`.
        """
        with self._inside:
            receive = self._endpoint.post(context, source, tag, into)
            if not receive.done:
                try:
                    self._wait(receive, None, receive.unmatched)
                except BaseException as error:
                    if (
                        self._failure is not None
                        or self._endpoint.cancel(receive)
                        or not shield.postpone(error)
                    ):
                        raise
                    self._wait(receive, None, never)
                if receive.error is not None:
                    raise receive.error
        return receive

    def irecv(
        self, context: int, source: int, tag: int, into: memoryview | None = None
    ) -> Operation:
        """Start receiving a point-to-point message.

        Parameters
        ----------
        context
            Of the communicator.
        source
            World rank, or ANY_SOURCE.
        tag
            A tag, or ANY_TAG.
        into
            Writable memory, borrowed until the operation is done.  A payload that fits is received
            there, and `landed` of the operation is True then.
        """
        with self._inside:
            return self._receiving(self._endpoint.post(context, source, tag, into))

    def irecv_matched(self, message: Incoming, into: memoryview | None = None) -> Operation:
        """Start receiving a message that `improbe` or `mprobe` took; `into` as for `irecv`.

        Parameters
        ----------
        message
            What `improbe` or `mprobe` returned; it must not be received again.
        into
            As for `irecv`.
        """
        with self._inside:
            return self._receiving(self._endpoint.post_matched(message, into))

    def irecv_parts(
        self,
        context: int,
        source: int,
        head: Callable[[memoryview], int],
        part: Callable[[int, memoryview], None],
    ) -> Operation:
        """Start receiving a message with tag 0 that states how many more follow, and those.

        Parameters
        ----------
        context, source
            As for `irecv`.
        head
            Given the payload of the message with tag 0, returns the number of further messages,
            which have the tags 1, 2, ...
        part
            part(i, payload) is called for the message with tag i + 1, in any order.

        Returns
        -------
        Operation
            Done when every message has been received.  An exception of `head` or `part`, neither of
            which may call the runtime, is its error.
        """
        operation = Operation()

        def each(receive: Receive) -> None:
            if receive.error is not None:
                operation.fail(receive.error)
                return
            assert receive.data is not None
            try:
                if receive.pattern[2] > 0:
                    part(receive.pattern[2] - 1, receive.data)
                else:
                    for index in range(head(receive.data)):
                        operation.hold()
                        take(index + 1)
            except Exception as error:
                operation.fail(error)
            else:
                operation.release()

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
        operation.receive = receive
        if receive.done:
            operation.received(receive)
        else:
            receive.on_done = operation.received
        return operation

    def cancel(self, operation: Operation) -> bool:
        """Withdraw a receive; return False if it has been matched, or is not one.

        Parameters
        ----------
        operation
            What `irecv` returned; anything else is not withdrawn.
        """
        with self._inside:
            receive = operation.receive
            if operation.done or receive is None or not self._endpoint.cancel(receive):
                return False
            operation.cancelled = True
            operation.complete()
            return True

    def on_done(self, operation: Operation, callback: Callable[[Operation], None]) -> None:
        """Call a function when an operation is done, at once if it is.

        Parameters
        ----------
        operation
            Of this runtime.
        callback
            Called under the lock, in any thread; must not call the runtime.
        """
        with self._inside:
            operation.add_done_callback(callback)

    @contextlib.contextmanager
    def watching(self, context: int, source: int, tag: int) -> Iterator[Callable[[], bool]]:
        """Look for a message meanwhile; yield a predicate of `wait_until`: whether there is one.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        pattern = (context, source, tag)
        with self._inside:
            self._endpoint.watched.append(pattern)
        try:
            yield lambda: self._endpoint.probe(*pattern) is not None
        finally:
            with self._inside:
                self._endpoint.watched.remove(pattern)

    def iprobe(self, context: int, source: int, tag: int) -> Envelope | None:
        """Return the envelope of the message that a receive would get now, or None.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        envelope = self._look(
            lambda: self._endpoint.probe(context, source, tag), (context, source, tag), block=False
        )
        assert envelope is None or isinstance(envelope, Envelope)
        return envelope

    def probe(self, context: int, source: int, tag: int) -> Envelope:
        """Wait for a message, and return the envelope of the one that a receive would get.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        envelope = self._look(
            lambda: self._endpoint.probe(context, source, tag), (context, source, tag), block=True
        )
        assert isinstance(envelope, Envelope)
        return envelope

    def improbe(self, context: int, source: int, tag: int) -> Incoming | None:
        """Take the message that a receive would get now, for `irecv_matched`; or None.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        message = self._look(
            lambda: self._endpoint.mprobe(context, source, tag), (context, source, tag), block=False
        )
        assert message is None or isinstance(message, Incoming)
        return message

    def mprobe(self, context: int, source: int, tag: int) -> Incoming:
        """Wait for a message and take it, for `irecv_matched`.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        message = self._look(
            lambda: self._endpoint.mprobe(context, source, tag), (context, source, tag), block=True
        )
        assert isinstance(message, Incoming)
        return message

    def _look(self, look: Callable[[], Any], pattern: tuple[int, int, int], block: bool) -> Any:
        """Return the first result of `look` that is not None; without `block`, None after one try.

        `pattern` is watched meanwhile, so that channels that look for named frames look for it.
        """
        result: Any = None

        def seen() -> bool:
            nonlocal result
            if result is None:
                result = look()
            return result is not None

        with self._inside:
            if not seen():
                self._endpoint.watched.append(pattern)
                try:
                    if block:
                        self._wait(Until(seen), None)
                    else:
                        self._pump(0.0, None)
                        seen()
                finally:
                    self._endpoint.watched.remove(pattern)
        return result

    # --- collectives ------------------------------------------------------------------------------

    def icollective(self, context: int, seq: int, steps: Steps, ranks: Sequence[int]) -> Operation:
        """Start a collective.

        Parameters
        ----------
        context
            Of the communicator.
        seq
            Number of this collective on its communicator, the same on every rank.
        steps
            Generator of the algorithm (collectives/).
        ranks
            World rank of each rank that the generator names.

        Returns
        -------
        Operation
            Its `result` is what the generator returns; an exception of the generator is its error.
        """
        operation = Operation()
        on_span = self._on_span
        begin = 0 if on_span is None else time.perf_counter_ns()
        with self._inside:
            CollectiveDriver(
                self._endpoint,
                self._send_queue,
                self.figures.ranges,
                operation,
                context,
                seq,
                steps,
                ranks,
            ).step()
        if on_span is not None:
            on_span(getattr(steps, "__name__", "collective"), begin)
        return operation

    def collective(self, context: int, seq: int, steps: Steps, ranks: Sequence[int]) -> Operation:
        """Start a collective and wait for it; otherwise as `icollective`.

        Parameters
        ----------
        context, seq, steps, ranks
            As for `icollective`.
        """
        if self._on_span is not None:
            operation = self.icollective(context, seq, steps, ranks)
            self.wait_for(operation)
            return operation
        operation = Operation()
        with self._inside:
            CollectiveDriver(
                self._endpoint,
                self._send_queue,
                self.figures.ranges,
                operation,
                context,
                seq,
                steps,
                ranks,
            ).step()
            if not operation.done:
                self._wait(operation, None)
        return operation

    # --- waiting ----------------------------------------------------------------------------------

    def wait(
        self, operations: Sequence[Operation], all: bool = True, timeout: float | None = None
    ) -> bool:
        """Wait until all (or any) of `operations` are done.

        Errors of operations stay in them: the caller raises them.

        Parameters
        ----------
        operations
            None at all counts as done.
        all
            False: one of them is enough.
        timeout
            Seconds; None for no limit.

        Returns
        -------
        bool
            False if `timeout` seconds have passed first.
        """
        pending = list(operations)
        if len(pending) == 1:
            (operation,) = pending
            return self.wait_for(operation, timeout)

        def enough() -> bool:
            if all:
                while pending and pending[-1].done:
                    pending.pop()
                return not pending
            return any_done(pending)

        return self.wait_until(enough, timeout)

    def complete_send(self, operation: Operation) -> None:
        """Wait for a send to which the caller has no other handle.

        Parameters
        ----------
        operation
            What `isend` returned.
        """
        queue = self._send_queue
        self.wait_for(operation, interruptible=lambda: not (queue.queued or queue.putting))

    def complete_receive(self, operation: Operation) -> None:
        """Wait for a receive to which the caller has no other handle.

        The exception of a signal handler withdraws it, unless it has been matched: then the message
        is received, and the exception is raised after the call.

        Parameters
        ----------
        operation
            What `irecv` returned.
        """
        receive = operation.receive
        assert receive is not None
        try:
            self.wait_for(operation, interruptible=receive.unmatched)
        except BaseException as error:
            if self._failure is not None or self.cancel(operation) or not shield.postpone(error):
                raise
            self.wait_for(operation, interruptible=never)

    # --- entry, exit ------------------------------------------------------------------------------

    def abort(self, code: int, reason: str = "") -> NoReturn:
        """Print `reason` and end this process at once; the launcher then ends the other ranks.

        Neither closed standard streams nor a full disk prevent it.  A code that would be 0 after
        truncation to 8 bits becomes 1, unless it is 0.

        Parameters
        ----------
        code
            Exit code; the system keeps its last 8 bits.
        reason
            One line for standard error; none if it is empty.
        """
        try:
            folder = self.spec.stats_dir
            if folder is not None and self._recorder is not None and not self._forked:
                self._recorder.write(Path(folder), self.rank)
        finally:
            host.end(code & 0xFF or (1 if code else 0), reason)

    def finalize(self) -> None:
        """Send what is queued, close the channel, and write the counters to `stats_dir`.

        A second call does nothing.

        Raises
        ------
        ChannelError
            The channel has failed, so messages of this rank may never arrive.  Any other error that
            ended the rank is raised as it is.
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
            self._drain()
            self._stop()
        self._send_queue.join()
        failure = self._failure
        try:
            self._channel.close()
        except Exception as error:
            failure = failure or error
        if self.spec.stats_dir is not None:
            try:
                self._write_statistics(Path(self.spec.stats_dir))
            except OSError as error:
                host.warn(
                    f"rank {self.rank}: its counters cannot be written to {self.spec.stats_dir}"
                    f" ({error.strerror or error}); the job's statistics lack them"
                )
        if failure is not None:
            raise failure

    def after_fork(self) -> None:
        """Disown the rank, in a forked child: nothing in it may act for the rank."""
        self._forked = True
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._changed = threading.Condition(self._lock)
        self._sleepers, self._pumping, self._pump_waited, self._agent = 0, False, None, None
        self._failure = JobError(
            f"this process was forked from rank {self.rank} and is not a rank itself: it cannot"
            " communicate; communicate in the parent, or start the child as a program of its own"
            " (subprocess, spawn)"
        )
        self._send_queue.abandon()
        self._channel.abandon()

    def _write_statistics(self, folder: Path) -> None:
        RankStatistics(
            rank=self.rank,
            seconds=time.monotonic() - self._started,
            meter=self.meter.snapshot(),
            dropped=self._endpoint.dropped,
            duplicates=self._endpoint.duplicates,
            collectives=[[*call, *counts] for call, counts in (self.chosen or {}).items()],
        ).write(folder)
        if self._recorder is not None:
            self._recorder.write(folder, self.rank)


def _max_held_bytes() -> int:
    """Bytes of unexpected messages that may be held; by default half of the memory."""
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
