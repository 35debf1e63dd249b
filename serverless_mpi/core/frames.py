"""Frames between the core and a channel: their names, their bytes, and which of them are awaited.

A sender gives a channel `OutgoingFrame`s. A receiver gives it `ExpectedFrame`s, from which a
channel without delivery of its own (`object`) derives where to look. Both sides derive the same
`FrameName` independently, so no message is needed to agree on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SHARED = -1  # FrameName.dest of a frame that any number of ranks may read
SCATTERED = -2  # FrameName.dest of frames stored next to each other under one name, one per reader


class FrameName(NamedTuple):
    """The name of one frame, which its sender and its receivers derive independently.

    Attributes
    ----------
    kind : int
        A `core.wire.Kind`.
    context : int
        Of the communicator.
    source : int
        World rank.
    dest : int
        World rank, SHARED or SCATTERED.
    seq : int
        Number of the message in its stream, or of the collective on its communicator.
    tag : int
        The message's tag, or the slot of a collective's step.
    chunk : int
        Number of the piece of the message.
    """

    kind: int
    context: int
    source: int
    dest: int
    seq: int
    tag: int
    chunk: int

    def key(self) -> str:
        """Return the suffix of an object's key.

        Frames to one rank share that rank's prefix, and sort by context, source and sequence
        number. The tag of a point-to-point frame is not part of it: a receiver awaits the next
        message of a source, whatever its tag is. Frames for several ranks share a prefix per
        collective, so one listing shows which of its objects exist.
        """
        if self.dest < 0:
            collective = f"m/{self.context:016x}/{self.kind}/{self.seq:012x}"
            return f"{collective}/{self.source:06d}.{self.tag:06d}.{self.chunk:06d}"
        stream = f"{self.context:016x}/{self.source:06d}/{self.kind}/{self.seq:012x}"
        return f"r/{self.dest:06d}/{stream}.{self.chunk:06d}"

    def prefix(self) -> str:
        """Return the prefix of the keys that are listed together with this one's, up to a "/"."""
        if self.dest < 0:
            return f"m/{self.context:016x}/{self.kind}/{self.seq:012x}/"
        return f"r/{self.dest:06d}/{self.context:016x}/"


class OutgoingFrame(NamedTuple):
    """One frame for all of its readers, or, scattered, one frame for each of them.

    Attributes
    ----------
    dests : tuple of int
        World ranks of the readers.
    name : FrameName
        `name.dest` is SCATTERED if there is a frame for each reader.
    parts : tuple of memoryview
        C-contiguous byte views that together are the frame; empty if scattered. They stay valid and
        unchanged until `Channel.put` returns.
    bodies : tuple of tuple of memoryview
        If scattered, the parts of each reader's frame, in the order of `dests`.
    """

    dests: tuple[int, ...]
    name: FrameName
    parts: tuple[memoryview, ...]
    bodies: tuple[tuple[memoryview, ...], ...] = ()

    @property
    def nbytes(self) -> int:
        """Total length of the frame, or of the frames, in bytes."""
        nbytes = 0
        for part in self.parts:
            nbytes += part.nbytes
        for parts in self.bodies:
            for part in parts:
                nbytes += part.nbytes
        return nbytes

    def split_per_reader(self) -> list[OutgoingFrame]:
        """Return a frame per reader, for channels without ranged reads; [self] if not scattered."""
        if not self.bodies:
            return [self]
        return [
            OutgoingFrame((dest,), self.name, parts)
            for dest, parts in zip(self.dests, self.bodies, strict=True)
        ]

    @property
    def constant(self) -> bool:
        """Whether its bytes cannot change, since all of them belong to `bytes` objects."""
        return all(
            type(part.obj) is bytes for parts in (self.parts, *self.bodies) for part in parts
        )

    def copied(self) -> OutgoingFrame:
        """Return the frame, or frames, in memory of their own; each has one part then."""
        if not self.bodies:
            return OutgoingFrame(self.dests, self.name, (memoryview(b"".join(self.parts)),))
        bodies = tuple((memoryview(b"".join(parts)),) for parts in self.bodies)
        return OutgoingFrame(self.dests, self.name, (), bodies)


class ExpectedFrame(NamedTuple):
    """A frame that a receive waits for: a `FrameName` whose `source` may be ANY_SOURCE."""

    kind: int
    context: int
    source: int
    dest: int
    seq: int
    tag: int
    chunk: int

    def name(self) -> FrameName:
        """Return the frame's name; not for ANY_SOURCE."""
        return FrameName(
            self.kind, self.context, self.source, self.dest, self.seq, self.tag, self.chunk
        )


def cut(data: Sequence[memoryview], size: int) -> list[tuple[memoryview, ...]]:
    """Cut `data` into pieces of `size` bytes; the last one may be shorter.

    Parameters
    ----------
    data
        C-contiguous byte views.
    size
        In bytes.

    Returns
    -------
    list of tuple of memoryview
        Views of `data` that together are each piece; nothing is copied.
    """
    pieces: list[tuple[memoryview, ...]] = []
    piece: list[memoryview] = []
    missing = size  # bytes that the current piece still needs
    for part in data:
        start = 0
        while start < part.nbytes:
            take = min(missing, part.nbytes - start)
            piece.append(part[start : start + take])
            start += take
            missing -= take
            if missing == 0:
                pieces.append(tuple(piece))
                piece, missing = [], size
    if piece:
        pieces.append(tuple(piece))
    return pieces
