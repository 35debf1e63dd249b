"""Order out of disorder: dedupe, reorder, reassemble.

A channel may deliver any frame twice, late, or before an older one.  A
`Stream` (one per context and source) releases messages in the order they were
sent, each once; a message is released at its first frame, so that matching
never waits for a long body.  A `Ledger` (one per context) remembers which
collectives are over, so that their late duplicates are dropped.
"""

from __future__ import annotations

from serverless_mpi.core.envelope import Envelope
from serverless_mpi.core.wire import Frame


class Assembly:
    """The body of one message, put together from its frames in any order.

    A body that comes in one frame is not copied.  `land` names memory for the
    body to be put together in, if nothing has come yet.
    """

    __slots__ = ("body", "chunks", "total", "seen", "stored")

    def __init__(self, total: int, chunks: int) -> None:
        self.total = total
        self.chunks = chunks
        self.body: memoryview | None = None
        self.seen: set[int] = set()
        self.stored = 0  # bytes held so far

    @property
    def complete(self) -> bool:
        """Whether every frame is here."""
        return len(self.seen) == self.chunks

    def land(self, into: memoryview) -> None:
        """Assemble straight in `into` (at least `total` bytes); only before the first frame is stored."""
        if self.body is None and self.chunks > 1:
            self.body = into[: self.total]

    def add(self, chunk: int, offset: int, body: memoryview) -> bool:
        """Store one frame's body; False if it was here already."""
        if chunk in self.seen:
            return False
        self.seen.add(chunk)
        self.stored += body.nbytes
        if self.chunks == 1:
            self.body = memoryview(bytearray(body)) if body.readonly else body
        else:
            if self.body is None:
                self.body = memoryview(bytearray(self.total))
            self.body[offset : offset + body.nbytes] = body
        return True

    def missing(self) -> int:
        """The first frame that is not here."""
        return next(chunk for chunk in range(self.chunks + 1) if chunk not in self.seen)


class Incoming:
    """A message on its way in: its envelope, its place in the order, its body as far as it is here."""

    __slots__ = ("envelope", "seq", "sync", "assembly", "receive")

    def __init__(self, envelope: Envelope, seq: int, sync: bool, assembly: Assembly) -> None:
        self.envelope = envelope
        self.seq = seq
        self.sync = sync
        self.assembly = assembly
        self.receive: object = None  # the receive that took it


class Stream:
    """Messages of one context from one source, released in the order of their sequence numbers."""

    __slots__ = ("next_seq", "waiting", "open", "progress_at")

    def __init__(self) -> None:
        self.next_seq = 0
        self.waiting: dict[int, Incoming] = {}  # came before an older one
        self.open: dict[int, Incoming] = {}  # released, body not complete
        self.progress_at = 0.0

    def receive(self, frame: Frame, now: float) -> tuple[Incoming | None, list[Incoming]]:
        """Take one frame.

        Returns the message it belongs to (None for a duplicate) and the
        messages that are released by it, oldest first.
        """
        seq = frame.seq
        message = self.waiting.get(seq) or self.open.get(seq)
        if message is None:
            if seq < self.next_seq:
                return None, []
            envelope = Envelope(frame.context, frame.source, frame.tag, frame.total)
            message = Incoming(envelope, seq, bool(frame.flags & 1), Assembly(frame.total, frame.chunks))
            self.waiting[seq] = message
        self.progress_at = now
        released: list[Incoming] = []
        while self.next_seq in self.waiting:
            head = self.waiting.pop(self.next_seq)
            if not head.assembly.complete:  # it may have become whole while it waited for an older one
                self.open[self.next_seq] = head
            self.next_seq += 1
            released.append(head)
        return message, released

    def close(self, message: Incoming) -> None:
        """The body is complete; forget everything but that it has been."""
        self.open.pop(message.seq, None)

    def stalled_since(self) -> float | None:
        """When the last frame came, if an older message or part of one is still missing."""
        return self.progress_at if self.waiting or self.open else None


class Ledger:
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

    def over(self, seq: int) -> bool:
        """Whether `seq` is over."""
        return seq < self.floor or seq in self.above
