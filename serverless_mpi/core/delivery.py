"""Duplicate detection, reordering and reassembly.

A channel may deliver any frame twice, late, or before an older one. Above this module every message
exists once, and messages of one source are in order:

- A `ReorderBuffer`, one per (context, source), releases messages in the order in which they were
  sent. A message is released at its first frame, so that matching does not wait for a long body.
- An `Assembly`, one per message or step, puts the body together from frames in any order.
- A `CompletedSet`, one per context, records which collectives are over, and `Freed` which contexts
  are, so that late duplicates of theirs are dropped.

Invariant: a sequence number below `ReorderBuffer.next_seq` that is neither waiting nor open has
been received completely, so any further frame of it is a duplicate.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

from serverless_mpi.core.envelope import Envelope
from serverless_mpi.core.wire import FLAG_SYNC, Frame


class Assembly:
    """The body of one message, put together from its frames in any order.

    A body that arrives in one writable frame is not copied.

    Parameters
    ----------
    total
        Length of the body in bytes.
    chunks
        Number of its frames.

    Attributes
    ----------
    body : memoryview or None
        Writable; None until a frame has been stored or a buffer has been attached.
    complete : bool
        Whether every frame has been stored.
    """

    __slots__ = ("body", "chunks", "total", "complete", "_piece", "_seen")

    def __init__(self, total: int, chunks: int) -> None:
        self.total = total
        self.chunks = chunks
        self.body: memoryview | None = None
        self.complete = False
        self._piece = 0  # length of all pieces but the last; 0 until a frame has arrived
        self._seen: set[int] | None = None if chunks == 1 else set()

    @property
    def held(self) -> int:
        """Bytes of memory in use: the whole body's as soon as a frame has arrived."""
        return self.total if self.body is not None else 0

    def agrees(self, frame: Frame, nbytes: int) -> bool:
        """Return whether a frame with a body of `nbytes` is a piece of this message.

        `wire.decode` has checked each frame by itself. If also all of them have one length of
        pieces, their bodies neither overlap nor leave a gap.

        Parameters
        ----------
        frame
            Header of a frame whose tag was right.
        nbytes
            Length of its body in bytes.
        """
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
        """Assemble the body in `into` (at least `total` bytes), unless a frame has arrived.

        Parameters
        ----------
        into
            At least `total` writable bytes; borrowed until the body is complete.
        """
        if self.body is None and self.chunks > 1:
            self.body = into[: self.total]

    def reserve(self, offset: int, nbytes: int, into: memoryview | None) -> memoryview:
        """Return memory for the body of a frame that has not been read yet.

        It is part of `into` (None: of new memory) if this is the first frame of the message.

        Parameters
        ----------
        offset, nbytes
            Place of the frame's body in the message, in bytes.
        into
            Memory of the receive that waits for the message, borrowed; None: new memory.
        """
        if self.body is None:
            self.body = memoryview(bytearray(self.total)) if into is None else into[: self.total]
        return self.body[offset : offset + nbytes]

    def add(self, chunk: int, offset: int, body: memoryview, in_place: bool = False) -> bool:
        """Store the body of one frame.

        Parameters
        ----------
        chunk, offset
            Of the frame.
        body
            Kept, not copied, if it is writable and the only one of its message.
        in_place
            It has been read into the memory that `reserve` returned.

        Returns
        -------
        bool
            False for a duplicate.
        """
        if self._seen is None:
            if self.complete:
                return False
            self.complete = True
            if not in_place:
                self.body = memoryview(bytearray(body)) if body.readonly else body
            return True
        if chunk in self._seen:
            return False
        self._seen.add(chunk)
        if not in_place:
            if self.body is None:
                self.body = memoryview(bytearray(self.total))
            self.body[offset : offset + body.nbytes] = body
        self.complete = len(self._seen) == self.chunks
        return True

    def has(self, chunk: int) -> bool:
        """Return whether frame `chunk` has been stored.

        Parameters
        ----------
        chunk
            Number of the frame in the message.
        """
        return self.complete or (self._seen is not None and chunk in self._seen)

    def missing(self) -> int:
        """Return the number of the first frame that has not been stored."""
        seen = self._seen or ()
        return next(chunk for chunk in range(self.chunks + 1) if chunk not in seen)


class Incoming:
    """An incoming message, and the part of its body that has arrived.

    `sync`: the sender waits for an acknowledgement; `receive`: what has matched it, or None.
    """

    __slots__ = ("envelope", "seq", "sync", "assembly", "receive")

    def __init__(self, envelope: Envelope, seq: int, sync: bool, assembly: Assembly) -> None:
        self.envelope = envelope
        self.seq = seq
        self.sync = sync
        self.assembly = assembly
        self.receive: object = None


class ReorderBuffer:
    """Messages of one context from one source, released in the order of their sequence numbers."""

    __slots__ = ("next_seq", "waiting", "open", "progress_at")

    def __init__(self) -> None:
        self.next_seq = 0
        self.waiting: dict[int, Incoming] = {}  # arrived before an older message
        self.open: dict[int, Incoming] = {}  # released, but the body is not complete
        self.progress_at = 0.0  # when the last frame arrived

    def receive(self, frame: Frame, now: float) -> tuple[Incoming | None, Sequence[Incoming]]:
        """Register the arrival of one frame; its body is stored by the caller.

        Parameters
        ----------
        frame
            Of this context and source.
        now
            Seconds of a monotonic clock.

        Returns
        -------
        message : Incoming or None
            The message of the frame; None for a duplicate of a complete one.
        released : sequence of Incoming
            Messages whose turn it is now, oldest first.
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
            # the usual case: a short message, in order
            if seq == self.next_seq and not self.waiting and frame.chunks == 1:
                self.progress_at = now
                self.next_seq = seq + 1
                return message, (message,)
            self.waiting[seq] = message
        self.progress_at = now
        released: list[Incoming] = []
        while self.next_seq in self.waiting:
            head = self.waiting.pop(self.next_seq)
            if not head.assembly.complete:  # it may have completed while it waited for an older one
                self.open[self.next_seq] = head
            self.next_seq += 1
            released.append(head)
        return message, released

    def close(self, message: Incoming) -> None:
        """Drop a message whose body is complete; further frames of it are duplicates.

        Parameters
        ----------
        message
            A message of this stream that has been delivered.
        """
        self.open.pop(message.seq, None)

    @property
    def settled(self) -> bool:
        """Whether no message is incomplete or waits for an older one."""
        return not self.waiting and not self.open


class CompletedSet:
    """The set of retired sequence numbers: all below a low-water mark, and some above it."""

    __slots__ = ("floor", "above")

    def __init__(self) -> None:
        self.floor = 0
        self.above: set[int] = set()

    def retire(self, seq: int) -> None:
        """Add `seq`.

        Parameters
        ----------
        seq
            Sequence number of a stream; each is added once or more.
        """
        self.above.add(seq)
        while self.floor in self.above:
            self.above.remove(self.floor)
            self.floor += 1

    def contains(self, seq: int) -> bool:
        """Return whether `seq` has been retired.

        Parameters
        ----------
        seq
            Sequence number of the stream.
        """
        return seq < self.floor or seq in self.above


class Freed:
    """The contexts that have been freed, in 8 bytes each: a late frame must not create one again.

    Contexts are never removed, since none is used twice (`envelope.derive_context`).  The array is
    sorted, so a look-up takes a few comparisons; only frames of contexts without state need one.
    """

    __slots__ = ("_contexts",)

    def __init__(self) -> None:
        self._contexts = array("Q")

    def add(self, context: int) -> None:
        """Add `context`.

        Parameters
        ----------
        context
            Context that has been freed.
        """
        insort(self._contexts, context)

    def __contains__(self, context: int) -> bool:
        index = bisect_left(self._contexts, context)
        return index < len(self._contexts) and self._contexts[index] == context

    def __len__(self) -> int:
        return len(self._contexts)
