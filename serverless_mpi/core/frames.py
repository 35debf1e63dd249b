"""Frames as the core hands them to a channel: their names, their bytes, and what receivers wait
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SHARED = -1  # FrameName.dest of a frame that any number of ranks may read
SCATTERED = -2  # and of frames that lie side by side under one name, one for each reader


class FrameName(NamedTuple):
    """The name of one frame, the same for the sender and for a receiver that awaits it.

    kind: a `core.wire.Kind`; dest: world rank, MANY or EACH; seq: position in its
    stream; tag: the message's tag, or the slot of a collective; chunk: piece.
    """

    kind: int
    context: int
    source: int
    dest: int
    seq: int
    tag: int
    chunk: int

    def key(self) -> str:
        """A suffix for object keys.

        Frames to one rank sort below that rank's own prefix, then by context, source, sequence. The
        tag of an ordered frame is not in its key: a receiver awaits the next one whatever its tag.
        """
        if self.dest < 0:
            return f"m/{self.context:016x}/{self.source:06d}/{self.kind}/{self.seq:012x}.{self.tag:06d}.{self.chunk:06d}"
        return f"r/{self.dest:06d}/{self.context:016x}/{self.source:06d}/{self.kind}/{self.seq:012x}.{self.chunk:06d}"


class OutgoingFrame(NamedTuple):
    """One frame on its way to any subset of the ranks, or, dealt, a frame of his own for each of
    them.

    parts: C-contiguous byte views which together are the frame; they stay
    valid and unchanged until `put` returns.  own: where dealt, such parts for
    each of `dests`; `parts` is empty then, and name.dest is EACH.
    """

    dests: tuple[int, ...]
    name: FrameName
    parts: tuple[memoryview, ...]
    bodies: tuple[tuple[memoryview, ...], ...] = ()

    @property
    def nbytes(self) -> int:
        """Length of the frame, or frames, in bytes."""
        nbytes = 0
        for part in self.parts:
            nbytes += part.nbytes
        for parts in self.bodies:
            for part in parts:
                nbytes += part.nbytes
        return nbytes

    def split_per_reader(self) -> list[OutgoingFrame]:
        """A dealt parcel as one for each reader, for media that have no ranges; any other as it
        is.
        """
        if not self.bodies:
            return [self]
        return [
            OutgoingFrame((dest,), self.name, parts)
            for dest, parts in zip(self.dests, self.bodies, strict=True)
        ]

    @property
    def constant(self) -> bool:
        """Whether nobody can change its bytes: all of them are those of `bytes` objects."""
        return all(
            type(part.obj) is bytes for parts in (self.parts, *self.bodies) for part in parts
        )

    def copied(self) -> OutgoingFrame:
        """A parcel of the same frames in memory of its own."""
        if not self.bodies:
            return OutgoingFrame(self.dests, self.name, (memoryview(b"".join(self.parts)),))
        bodies = tuple((memoryview(b"".join(parts)),) for parts in self.bodies)
        return OutgoingFrame(self.dests, self.name, (), bodies)


class ExpectedFrame(NamedTuple):
    """A frame some receive waits for.  source is ANY_SOURCE where it may be anybody's."""

    kind: int
    context: int
    source: int
    dest: int
    seq: int
    tag: int
    chunk: int

    def name(self) -> FrameName:
        """The frame's name; only for a known source."""
        return FrameName(
            self.kind, self.context, self.source, self.dest, self.seq, self.tag, self.chunk
        )


def cut(data: Sequence[memoryview], size: int) -> list[tuple[memoryview, ...]]:
    """`data` cut into pieces of `size` bytes, as views."""
    pieces: list[tuple[memoryview, ...]] = []
    piece: list[memoryview] = []
    room = size
    for part in data:
        start = 0
        while start < part.nbytes:
            take = min(room, part.nbytes - start)
            piece.append(part[start : start + take])
            start += take
            room -= take
            if room == 0:
                pieces.append(tuple(piece))
                piece, room = [], size
    if piece:
        pieces.append(tuple(piece))
    return pieces
