"""Order out of disorder: dedupe, reorder, reassemble.

A channel may deliver any frame twice, late, or before an older one.  A
`ReorderBuffer` (one per context and source) releases messages in the order they were
sent, each once; a message is released at its first frame, so that matching
never waits for a long body.  A `CompletedSet` (one per context) remembers which
collectives are over, and `Freed` which contexts are, so that their late
duplicates are dropped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

from serverless_mpi.core.envelope import Envelope
from serverless_mpi.core.wire import FLAG_SYNC, Frame


class Assembly:
    """The body of one message, put together from its frames in any order.

    A body that comes in one frame is not copied.  `land` names memory for the
    body to be put together in, if nothing has come yet.
    """

    __slots__ = ("body", "chunks", "total", "complete", "_piece", "_seen")

    def __init__(self, total: int, chunks: int) -> None:
        self.total = total
        self.chunks = chunks
        self.body: memoryview | None = None
        self.complete = False  # every frame is here
        self._piece = 0  # length of all pieces but the last, once a frame has come
        self._seen: set[int] | None = None if chunks == 1 else set()

    @property
    def held(self) -> int:
        """Bytes of memory that it takes: all of the body's as soon as a frame has come."""
        return self.total if self.body is not None else 0

    def agrees(self, frame: Frame, nbytes: int) -> bool:
        """Whether a frame with a body of `nbytes` is a piece of this very message.

        `wire.decode` has seen that each frame agrees with itself; with one length of pieces for all
        of them their bodies neither overlap nor leave a gap."""
        if frame.chunks != self.chunks or frame.total != self.total:
            return False
        if self.chunks == 1:
            return True
        last = self.chunks - 1
        piece = nbytes if frame.chunk < last else frame.offset // last
        if not self._piece:
            self._piece = piece
        return piece == self._piece

    def attach_buffer(self, into: memoryview) -> None:
        """Assemble straight in `into` (at least `total` bytes); only before the first frame is
        stored.
        """
        if self.body is None and self.chunks > 1:
            self.body = into[: self.total]

    def reserve(self, offset: int, nbytes: int, into: memoryview | None) -> memoryview:
        """Where the body of a frame that is still to come may be put, in `into` if nothing has come
        yet.
        """
        if self.body is None:
            self.body = memoryview(bytearray(self.total)) if into is None else into[: self.total]
        return self.body[offset : offset + nbytes]

    def add(self, chunk: int, offset: int, body: memoryview, there: bool = False) -> bool:
        """Store one frame's body, which is `there` if it was put where `room` said; False if it was
        here already.
        """
        if self._seen is None:
            if self.complete:
                return False
            self.complete = True
            if not there:
                self.body = memoryview(bytearray(body)) if body.readonly else body
            return True
        if chunk in self._seen:
            return False
        self._seen.add(chunk)
        if not there:
            if self.body is None:
                self.body = memoryview(bytearray(self.total))
            self.body[offset : offset + body.nbytes] = body
        self.complete = len(self._seen) == self.chunks
        return True

    def has(self, chunk: int) -> bool:
        """Whether frame `chunk` is here."""
        return self.complete or (self._seen is not None and chunk in self._seen)

    def missing(self) -> int:
        """The first frame that is not here."""
        seen = self._seen or ()
        return next(chunk for chunk in range(self.chunks + 1) if chunk not in seen)


class Incoming:
    """A message on its way in: its envelope, its place in the order, its body as far as it is
    here.
    """

    __slots__ = ("envelope", "seq", "sync", "assembly", "receive")

    def __init__(self, envelope: Envelope, seq: int, sync: bool, assembly: Assembly) -> None:
        self.envelope = envelope
        self.seq = seq
        self.sync = sync
        self.assembly = assembly
        self.receive: object = None  # the receive that took it


class ReorderBuffer:
    """Messages of one context from one source, released in the order of their sequence numbers."""

    __slots__ = ("next_seq", "waiting", "open", "progress_at")

    def __init__(self) -> None:
        self.next_seq = 0
        self.waiting: dict[int, Incoming] = {}  # came before an older one
        self.open: dict[int, Incoming] = {}  # released, body not complete
        self.progress_at = 0.0  # when the last frame came

    def receive(self, frame: Frame, now: float) -> tuple[Incoming | None, Sequence[Incoming]]:
        """Take one frame.

        Returns the message it belongs to (None for a duplicate) and the
        messages that are released by it, oldest first.
        """
        seq = frame.seq
        message = self.waiting.get(seq) or self.open.get(seq)
        if message is None:
            if seq < self.next_seq:
                return None, ()
            envelope = Envelope(frame.context, frame.source, frame.tag, frame.total)
            message = Incoming(
                envelope, seq, bool(frame.flags & FLAG_SYNC), Assembly(frame.total, frame.chunks)
            )
            if seq == self.next_seq and not self.waiting and frame.chunks == 1:  # as nearly all are
                self.progress_at = now
                self.next_seq = seq + 1
                return message, (message,)
            self.waiting[seq] = message
        self.progress_at = now
        released: list[Incoming] = []
        while self.next_seq in self.waiting:
            head = self.waiting.pop(self.next_seq)
            if (
                not head.assembly.complete
            ):  # it may have become whole while it waited for an older one
                self.open[self.next_seq] = head
            self.next_seq += 1
            released.append(head)
        return message, released

    def close(self, message: Incoming) -> None:
        """The body is complete; forget everything but that it has been."""
        self.open.pop(message.seq, None)

    @property
    def settled(self) -> bool:
        """Whether nothing is missing of what has begun."""
        return not self.waiting and not self.open


class CompletedSet:
    """Which of a growing sequence of numbers are over: a floor, and those above it."""

    __slots__ = ("floor", "above")

    def __init__(self) -> None:
        self.floor = 0
        self.above: set[int] = set()

    def retire(self, seq: int) -> None:
        """Number `seq` is over."""
        self.above.add(seq)
        while self.floor in self.above:
            self.above.remove(self.floor)
            self.floor += 1

    def contains(self, seq: int) -> bool:
        """Whether `seq` is over."""
        return seq < self.floor or seq in self.above


class Freed:
    """The contexts that are over, in 8 bytes each: a late frame of one must not begin it again.

    None is removed, since a context is never used twice (`envelope.derive_context`). Sorted, so
    that a look takes a few comparisons; only frames of a context without any state look."""

    __slots__ = ("_contexts",)

    def __init__(self) -> None:
        self._contexts = array("Q")

    def add(self, context: int) -> None:
        """`context` is over."""
        insort(self._contexts, context)

    def __contains__(self, context: int) -> bool:
        place = bisect_left(self._contexts, context)
        return place < len(self._contexts) and self._contexts[place] == context

    def __len__(self) -> int:
        return len(self._contexts)
