"""What a rank has sent and its channel has not got yet: gathered, and put by the caller or by a thread.

Where a put takes a round trip, what is sent is gathered (`Limits.background`):
it goes out when a caller blocks, when much of it is there, or when no more has
come for a moment; so bursts fill batches and a lone message is not delayed.
A sender thread puts it, so that receiving goes on meanwhile; only where the
medium is a process of this machine (`Limits.alone`) the caller does, since
asking that for frames at the same time would slow the put.

`Outgoing.add` is the one place that copies what is sent.  A frame's tag covers its body, so a body that
changes before it is put is dropped by its receiver as forged.  Whoever calls says in a `Payload` when the
bytes may change, and nothing above this file copies by size: two thresholds would have a gap between them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from serverless_mpi.channels.base import Channel
from serverless_mpi.core.frames import OutgoingFrame
from serverless_mpi.operation import Operation, Payload

EAGER_COPY_BYTES = 64 * 1024  # a frame of at most this is copied, so that its send is done at once
GATHER_FRAMES = 256  # most frames of one put
GATHER_QUIET_S = 0.001  # what is queued goes out when no more has come for so long (an isend takes a twentieth of it)
GATHER_LONGEST_S = 0.02  # and after so long in any case: half a round trip to SQS
LOOK_EVERY_S = 0.002  # how often the sender thread looks for that: to wake it at every send costs more than a send
LOOK_SELDOM_S = 0.016  # and while it finds that callers, who block, put all that they send
DOZE_AFTER_S = 0.1  # without a send it looks no more until it is told of one


class Outgoing:
    """Frames on their way to the channel.  All calls are made under `lock`, which is let go while the channel puts.

    changed(error): told under the lock of a put that failed, and after each batch (None).  lost: nothing is put any more.
    """

    def __init__(
        self,
        channel: Channel,
        lock: threading.Lock,
        changed: Callable[[BaseException | None], None],
    ) -> None:
        self.async_put = channel.limits.async_put
        self.serial = channel.limits.serial
        self.queued: list[tuple[OutgoingFrame, Operation | None]] = []
        self.putting = 0  # frames that the sender thread is putting now
        self.frames = 0  # put, or being put
        self._channel = channel
        self._lock = lock
        self._changed = changed
        self._work = threading.Condition(lock)
        self._sender: threading.Thread | None = None
        self._dozing = False  # the sender thread waits to be told
        self._urgent = False  # a caller blocks: what is queued is to go out now
        self._queued_at = self._first_queued_at = 0.0
        self._ended = False  # no more will come
        self.lost = False
        self.on_span: Callable[[str, int], None] | None = None  # see Runtime.record

    def add(
        self,
        parcels: Sequence[OutgoingFrame],
        operation: Operation | None,
        payload: Payload = Payload.BORROWED,
    ) -> None:
        """Queue frames to be put.

        Parameters
        ----------
        operation
            What each frame holds until it is put, unless it is a short one that is copied.  None: the
            core made the frames, nobody waits for them, and their bytes never change.
        payload
            When the bytes may change.
        """
        if self.async_put and parcels:
            self._queued_at = time.monotonic()
            if not self.queued:
                self._first_queued_at = self._queued_at
        for frame in parcels:
            if operation is None:
                self.queued.append((frame, None))
            elif self.async_put and frame.nbytes <= EAGER_COPY_BYTES:
                self.queued.append((frame.copied(), None))
            else:
                # a long frame holds its operation even if it is copied, so that waiting bounds what is queued
                operation.hold()
                if payload is Payload.TRANSIENT and not frame.constant:
                    frame = frame.copied()
                self.queued.append((frame, operation))

    def flush(self, blocking: bool = False) -> None:
        """See that what is queued is put, here or by the sender thread; at once if the caller blocks."""
        if not self.queued:
            return
        if not self.async_put or (blocking and self.serial):
            while self.queued:
                self._put_some()
            return
        if blocking or len(self.queued) >= GATHER_FRAMES:
            self._urgent = True
        elif self._sender is not None and not self._dozing:
            return  # it looks by itself, soon
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_loop, name="smpi-sender", daemon=True)
            self._sender.start()
        self._work.notify()

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        """Give frames to the channel at once."""
        self.putting += len(parcels)
        self.frames += len(parcels)
        on_span = self.on_span
        begin = 0 if on_span is None else time.perf_counter_ns()
        self._lock.release()
        try:
            self._channel.put(parcels)
        except BaseException as error:
            self._lock.acquire()  # first: whoever sees the failure shall see the operations ended by it, too
            self._changed(error)
            raise
        else:
            self._lock.acquire()
        finally:
            self.putting -= len(parcels)
            if on_span is not None:
                on_span("channel.put", begin)

    def finish(self) -> None:
        """No more will come: the sender thread puts what is queued, and ends."""
        self._ended = True
        self._work.notify()

    def abandon(self) -> None:
        """In a forked child: the sender thread, and what is queued, are the parent's."""
        self.queued, self.putting, self._sender = [], 0, None

    def join(self) -> None:
        """Without the lock, after `finish`: wait for the sender thread's end."""
        if self._sender is not None:
            self._sender.join()

    def _put_some(self) -> None:
        batch, self.queued = self.queued[:GATHER_FRAMES], self.queued[GATHER_FRAMES:]
        frames, operations = zip(*batch, strict=True)  # a comprehension would be one more call
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
        self._changed(None)
        if error is not None and threading.current_thread() is not self._sender:
            raise error

    def _send_loop(self) -> None:
        pause = LOOK_EVERY_S
        with self._lock:
            while not self._ended or self.queued:
                now = time.monotonic()
                due = min(
                    self._queued_at + GATHER_QUIET_S, self._first_queued_at + GATHER_LONGEST_S
                )
                if self.queued and (self._urgent or self._ended or now >= due):
                    self._put_some()
                    pause = LOOK_EVERY_S
                elif self.queued or now < self._queued_at + DOZE_AFTER_S:
                    self._urgent = False
                    pause = LOOK_EVERY_S if self.queued else min(2 * pause, LOOK_SELDOM_S)
                    self._work.wait(pause)
                else:
                    pause = LOOK_EVERY_S
                    self._dozing = True
                    self._work.wait()
                    self._dozing = False
                if self.lost:
                    return
