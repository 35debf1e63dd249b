"""The whole language of a collective algorithm: `Send`, `Scatter` and `Recv`, and the packing of several blobs into one.

An algorithm is a generator that yields one step, or a list of steps done
together; it is sent what a `Recv` received (a list, with None for each Send,
where it yielded a list) and returns its result.  Ranks are those of the
communicator.  A sender uses each slot for one Send or Deal of a call alone,
because (sender, slot) names what is sent, whoever reads it; slots are below
2**31.  A Send or Deal never waits.  Nobody sends to himself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

Blob = memoryview | Sequence[memoryview]  # bytes, gathered on the wire if several
Combine = Callable[
    [memoryview, memoryview], memoryview
]  # (lower ranks' operand, higher ranks' operand)
Steps = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A Combine of vectors whose elements of `grain` bytes it combines one by one, so that they can be cut.

    grain 0: it may only see whole vectors.
    """

    combine: Combine
    grain: int

    def __call__(self, a: memoryview, b: memoryview) -> memoryview:
        return self.combine(a, b) if a.nbytes or b.nbytes else a

    def cut(self, data: memoryview, count: int) -> list[memoryview]:
        """`count` pieces of whole elements, as equal as can be; of a vector that must stay whole all are empty but the last."""
        elements, grain = (
            (data.nbytes // self.grain, self.grain) if self.grain else (1, data.nbytes)
        )
        ends = [elements * piece // count * grain for piece in range(count + 1)]
        return [data[start:end] for start, end in zip(ends, ends[1:])]


NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Send:
    """Give `data` to every rank of `dests`, who name it by (sender, slot)."""

    dests: tuple[int, ...]
    data: Sequence[memoryview]
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Scatter:
    """Give each rank of `blobs` (dest, data) its own data, all under (sender, slot).

    One object where readers can take a range of it, else a message each.
    """

    blobs: tuple[tuple[int, Sequence[memoryview]], ...]
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait for what `source` sends under `slot`; `scattered` if it comes of a Deal."""

    source: int
    slot: int = 0
    scattered: bool = False


def parts(blob: Blob) -> Sequence[memoryview]:
    """The pieces of a blob."""
    return (blob,) if isinstance(blob, memoryview) else blob


def whole(blob: Blob) -> memoryview:
    """A blob in one piece; copied only if it has several."""
    if isinstance(blob, memoryview):
        return blob
    return blob[0] if len(blob) == 1 else memoryview(bytearray().join(blob))


def fold(blobs: Sequence[memoryview], combine: Combine) -> memoryview:
    """All blobs combined, from the first up."""
    total = blobs[0]
    for blob in blobs[1:]:
        total = combine(total, blob)
    return total


def pack(blobs: Sequence[Blob]) -> list[memoryview]:
    """Several blobs as one: 8 bytes of length each, then their bytes."""
    pieces = [parts(blob) for blob in blobs]
    lengths = [sum(piece.nbytes for piece in blob) for blob in pieces]
    head = memoryview(struct.pack(f"<{len(blobs)}Q", *lengths))
    return [head, *(piece for blob in pieces for piece in blob)]


def unpack(data: memoryview, count: int) -> list[memoryview]:
    """The `count` blobs that `pack` packed, as views."""
    lengths = struct.unpack_from(f"<{count}Q", data)
    blobs, start = [], 8 * count
    for length in lengths:
        blobs.append(data[start : start + length])
        start += length
    return blobs


def within(members: Sequence[int], steps: Steps, slot: int = 0) -> Steps:
    """An algorithm of some ranks as a part of one of more: its rank r is rank members[r] here.

    slot: added to its slots, so that they are not those of another part.
    """
    value: Any = None
    while True:
        try:
            step = steps.send(value)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, (list, tuple)):
            value = yield [_moved(one, members, slot) for one in step]
        else:
            value = yield _moved(step, members, slot)


def _moved(step: Send | Scatter | Recv, members: Sequence[int], slot: int) -> Send | Scatter | Recv:
    if isinstance(step, Send):
        return Send(tuple(members[dest] for dest in step.dests), step.data, step.slot + slot)
    if isinstance(step, Scatter):
        return Scatter(tuple((members[dest], data) for dest, data in step.blobs), step.slot + slot)
    return Recv(members[step.source], step.slot + slot, step.scattered)
