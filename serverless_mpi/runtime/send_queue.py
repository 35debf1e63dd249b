"""The send queue: outgoing frames, gathered until they are given to the channel.

Where a put takes about a round trip (`Limits.async_put`), frames are gathered.  They go out when a
caller blocks, when the queue is long, or when no frame has been added for a moment
(`GatherPolicy`). So a burst fills batches, and a lone message is not delayed.  A sender thread puts
them, so that the rank can receive meanwhile.  Only where the service handles one request at a time
(`Limits.serial`, an emulator) the blocking caller puts them itself, since a concurrent poll would
slow the put down. Elsewhere the caller puts every frame at once.

`SendQueue.add` is the one place that copies what is sent.  A frame's tag covers its body, so a
frame whose body changes before it is put is dropped by its receiver as forged.  The caller states
in a `Payload` when the bytes may change, and nothing above this module copies by size: with two
thresholds there would be sizes that nobody copies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from serverless_mpi.channels.base import Channel
from serverless_mpi.core.frames import OutgoingFrame
from serverless_mpi.runtime.operation import Operation, Payload

EAGER_COPY_BYTES = 64 * 1024  # a frame of at most this is copied, so that its send is done at once
GATHER_FRAMES = 256  # most frames of one put
GATHER_QUIET_S = 0.001  # frames go out after this long without a new one; an isend takes 0.05 ms
GATHER_LONGEST_S = 0.02  # and after this long in any case: half a round trip to SQS
LOOK_EVERY_S = 0.002  # period of the sender thread: waking it at every send costs more than a send
LOOK_SELDOM_S = 0.016  # its longest period, while blocking callers put all that they send
DOZE_AFTER_S = 0.1  # without a new frame for this long it waits until it is notified


class GatherPolicy:
    """When queued frames are due, and for how long the sender thread pauses.

    Pure: times are arguments.

    Attributes
    ----------
    first_at, last_at : float
        When the oldest and the newest of the queued frames were added, in seconds of a monotonic
        clock.  The queue sets them.
    """

    __slots__ = ("first_at", "last_at", "_pause_s")

    def __init__(self) -> None:
        self.first_at = self.last_at = 0.0
        self._pause_s = LOOK_EVERY_S

    def due_at(self) -> float:
        """Return when the queued frames are to go out, even if no caller blocks."""
        return min(self.last_at + GATHER_QUIET_S, self.first_at + GATHER_LONGEST_S)

    def pause(self, now: float, queued: bool) -> float | None:
        """Return for how many seconds the sender thread may wait; None: until it is notified.

        With an empty queue every pause is twice the one before, up to `LOOK_SELDOM_S`.

        Parameters
        ----------
        now
            Seconds of the clock that `first_at` and `last_at` use.
        queued
            Whether frames are queued.
        """
        if queued:
            self._pause_s = LOOK_EVERY_S
        elif now < self.last_at + DOZE_AFTER_S:
            self._pause_s = min(2 * self._pause_s, LOOK_SELDOM_S)
        else:
            self._pause_s = LOOK_EVERY_S
            return None
        return self._pause_s

    def restart(self) -> None:
        """Begin with short pauses again: frames have been put."""
        self._pause_s = LOOK_EVERY_S


class SendQueue:
    """Frames on their way to the channel.

    Every method but `join` is called with `lock` held, which is released while the channel puts.

    Parameters
    ----------
    channel
        Gets the frames.
    lock
        The runtime's.
    on_batch_done
        Called with the lock held: with the error of a put that failed, and with None after each
        batch.

    Attributes
    ----------
    queued : list
        Frames to be put, each with the operation that it holds, or None.
    putting : int
        Frames that are being put now.
    frames : int
        Frames that have been put, or are being put.
    at_once : callable or None
        `Channel.at_once`, if the channel has one of its own.
    lost : bool
        The channel has failed: queued frames stay where they are.
    on_span : callable or None
        Hook of an observer, see `Runtime.record`.
    """

    def __init__(
        self,
        channel: Channel,
        lock: threading.Lock,
        on_batch_done: Callable[[BaseException | None], None],
    ) -> None:
        self.async_put = channel.limits.async_put
        self.serial = channel.limits.serial
        self.queued: list[tuple[OutgoingFrame, Operation | None]] = []
        self.putting = 0
        self.frames = 0
        self.lost = False
        self.on_span: Callable[[str, int], None] | None = None
        self._channel = channel
        self._lock = lock
        self._on_batch_done = on_batch_done
        self.at_once = channel.at_once if type(channel).at_once is not Channel.at_once else None
        self._policy = GatherPolicy()
        self._work = threading.Condition(lock)
        self._sender: threading.Thread | None = None
        self._dozing = False  # the sender thread waits until it is notified
        self._urgent = False  # a caller blocks: queued frames are to go out now
        self._ended = False  # no frame will be added any more

    def add(
        self,
        frames: Sequence[OutgoingFrame],
        operation: Operation | None,
        payload: Payload = Payload.BORROWED,
    ) -> None:
        """Queue frames.

        Parameters
        ----------
        frames
            Their bytes are borrowed until they are put, unless they are copied here.
        operation
            Each frame holds it until it is put, unless it is a short one that is copied.  None: the
            core made the frames, no call waits for them, and their bytes never change.
        payload
            When the bytes may change.
        """
        if self.async_put and frames:
            self._policy.last_at = time.monotonic()
            if not self.queued:
                self._policy.first_at = self._policy.last_at
        for frame in frames:
            if operation is None:
                self.queued.append((frame, None))
            elif self.async_put and frame.nbytes <= EAGER_COPY_BYTES:
                self.queued.append((frame.copied(), None))
            else:
                # a long frame holds its operation even if it is copied: waiting bounds the queue
                operation.hold()
                if payload is Payload.TRANSIENT and not frame.constant:
                    frame = frame.copied()
                self.queued.append((frame, operation))

    def flush(self, blocking: bool = False) -> None:
        """Have the queued frames put, by the calling thread or by the sender thread.

        Parameters
        ----------
        blocking
            The caller is about to wait, so nothing is gained by gathering more.

        Raises
        ------
        ChannelError
            The calling thread put the frames, and the channel failed.
        """
        if not self.queued:
            return
        if not self.async_put or (blocking and self.serial):
            while self.queued:
                self._put_batch()
            return
        if self.at_once is not None:
            self._put_at_once(self.at_once)
            if not self.queued:
                return
        if blocking or len(self.queued) >= GATHER_FRAMES:
            self._urgent = True
        elif self._sender is not None and not self._dozing:
            return  # it looks by itself, soon
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_loop, name="smpi-sender", daemon=True)
            self._sender.start()
        self._work.notify()

    def _put_at_once(self, at_once: Callable[[Sequence[int]], bool]) -> None:
        """Put the queued frames that need no round trip; leave the others queued."""
        now: list[tuple[OutgoingFrame, Operation | None]] = []
        later: list[tuple[OutgoingFrame, Operation | None]] = []
        for entry in self.queued:
            (now if at_once(entry[0].dests) else later).append(entry)
        if now:
            self.queued = now + later  # they stay queued for whoever looks meanwhile
            self._put_batch(len(now))

    def put(self, frames: Sequence[OutgoingFrame]) -> None:
        """Give frames to the channel at once, before anything that is queued.

        Parameters
        ----------
        frames
            Their bytes are borrowed until the channel has them.

        Raises
        ------
        ChannelError
            The channel failed.
        """
        self.putting += len(frames)
        self.frames += len(frames)
        on_span = self.on_span
        begin = 0 if on_span is None else time.perf_counter_ns()
        self._lock.release()
        try:
            self._channel.put(frames)
        except BaseException as error:
            # the lock first: whoever sees the failure must also see the operations that it ended
            self._lock.acquire()
            self._on_batch_done(error)
            raise
        else:
            self._lock.acquire()
        finally:
            self.putting -= len(frames)
            if on_span is not None:
                on_span("channel.put", begin)

    def finish(self) -> None:
        """Accept no more frames: the sender thread puts what is queued, and ends."""
        self._ended = True
        self._work.notify()

    def abandon(self) -> None:
        """Drop, in a forked child, what is the parent's: queued frames and the thread."""
        self.queued, self.putting, self._sender = [], 0, None

    def join(self) -> None:
        """Wait, without the lock and after `finish`, until the sender thread has ended."""
        if self._sender is not None:
            self._sender.join()

    def _put_batch(self, most: int = GATHER_FRAMES) -> None:
        """Put up to `most` frames; raise an error unless this is the sender thread."""
        frames: tuple[OutgoingFrame, ...]
        operations: tuple[Operation | None, ...]
        if len(self.queued) == 1:
            ((frame, operation),) = self.queued
            self.queued = []
            frames, operations = (frame,), (operation,)
        else:
            batch, self.queued = self.queued[:most], self.queued[most:]
            frames, operations = zip(*batch, strict=True)  # a comprehension would be a call more
        error: BaseException | None = None
        try:
            self.put(frames)
        except BaseException as caught:
            error = caught
        for operation in operations:
            if operation is None:
                continue
            if error is None:
                operation.release()
            else:
                operation.fail(error)
        self._on_batch_done(None)
        if error is not None and threading.current_thread() is not self._sender:
            raise error

    def _send_loop(self) -> None:
        """The sender thread: put what is due until `finish`, or until the channel has failed."""
        policy = self._policy
        with self._lock:
            while not self._ended or self.queued:
                now = time.monotonic()
                if self.queued and (self._urgent or self._ended or now >= policy.due_at()):
                    self._put_batch()
                    policy.restart()
                else:
                    pause = policy.pause(now, bool(self.queued))
                    if pause is None:
                        self._dozing = True
                    else:
                        self._urgent = False
                    self._work.wait(pause)
                    self._dozing = False
                if self.lost:
                    return
