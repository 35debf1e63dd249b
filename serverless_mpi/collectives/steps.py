"""The language of collective algorithms: `Send`, `Scatter` and `Recv`, and the packing of blobs.

An algorithm is a generator. It yields a step, or a list of steps that run together. For a `Recv` it
is resumed with the received blob; for a list of steps, with a list that has None for each Send and
Scatter. It returns the result of the call. Ranks are those of the communicator.

Rules
- A rank uses each slot for one Send or Scatter per call: (sender, slot) identifies a message for
  all its readers. Slots are below 2**31.
- A Send or a Scatter never waits.
- No rank sends to itself.

The same generator serves blocking and nonblocking calls (`runtime.icollective`), the simulation
(`simulation.run.Player`) and the contract suite (`testing.dry_run`). A new kind of step has to be
added to all three, and to `within`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

Blob = memoryview | Sequence[memoryview]  # bytes, gathered on the wire if several
# (operand of the lower ranks, operand of the higher ranks) -> both combined
Combine = Callable[[memoryview, memoryview], memoryview]
Steps = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A `Combine` of vectors that works element by element, so that vectors can be cut.

    Attributes
    ----------
    combine
        Combines two vectors of equal length.
    grain
        Bytes of an element; 0 if `combine` needs whole vectors.
    """

    combine: Combine
    grain: int

    def __call__(self, a: memoryview, b: memoryview) -> memoryview:
        return self.combine(a, b) if a.nbytes or b.nbytes else a

    def cut(self, data: memoryview, count: int) -> list[memoryview]:
        """Cut a vector into pieces of whole elements, as equal as possible.

        Parameters
        ----------
        data
            The vector.
        count
            Number of pieces.

        Returns
        -------
        list of memoryview
            Views of the vector. A vector that must not be cut (grain 0) is the last piece, and the
            others are empty.
        """
        elements, grain = (
            (data.nbytes // self.grain, self.grain) if self.grain else (1, data.nbytes)
        )
        ends = [elements * piece // count * grain for piece in range(count + 1)]
        return [data[start:end] for start, end in zip(ends, ends[1:])]


NOTHING = memoryview(b"")


@dataclass(slots=True)  # not frozen: that would triple the time of making one
class Send:
    """Step: send a blob to some ranks, which receive it by (sender, slot).

    Attributes
    ----------
    dests
        The ranks that receive it; not the sender.
    data
        The blob in pieces; borrowed until the call ends.
    slot
        Number of the message, unique among the steps of the sender in the call.
    """

    dests: tuple[int, ...]
    data: Sequence[memoryview]
    slot: int = 0


@dataclass(slots=True)  # not frozen: that would triple the time of making one
class Scatter:
    """Step: send each of some ranks its own blob, which it receives by (sender, slot).

    It is one object if the channel lets readers get a range of it, otherwise a message for each.

    Attributes
    ----------
    blobs
        Pairs of (dest, data) as in `Send`.
    slot
        As in `Send`.
    """

    blobs: tuple[tuple[int, Sequence[memoryview]], ...]
    slot: int = 0


@dataclass(slots=True)  # not frozen: that would triple the time of making one
class Recv:
    """Step: receive a blob.

    Attributes
    ----------
    source
        The rank that sends it.
    slot
        Slot with which it sends it.
    scattered
        Whether it sends it by a Scatter.
    """

    source: int
    slot: int = 0
    scattered: bool = False


def parts(blob: Blob) -> Sequence[memoryview]:
    """Return the pieces of a blob.

    Parameters
    ----------
    blob
        A blob in one or several pieces.
    """
    return (blob,) if isinstance(blob, memoryview) else blob


def whole(blob: Blob) -> memoryview:
    """Return a blob in one piece.

    Parameters
    ----------
    blob
        A blob; copied only if it has several pieces.
    """
    if isinstance(blob, memoryview):
        return blob
    return blob[0] if len(blob) == 1 else memoryview(bytearray().join(blob))


def fold(blobs: Sequence[memoryview], combine: Combine) -> memoryview:
    """Combine operands from the first to the last.

    Parameters
    ----------
    blobs
        At least one operand.
    combine
        Combines two of them.
    """
    total = blobs[0]
    for blob in blobs[1:]:
        total = combine(total, blob)
    return total


def pack(blobs: Sequence[Blob]) -> list[memoryview]:
    """Join several blobs: the lengths, 8 bytes each, then the bytes.

    Parameters
    ----------
    blobs
        The blobs; borrowed while the result is in use.

    Returns
    -------
    list of memoryview
        The pieces, borrowed from the blobs.
    """
    pieces = [parts(blob) for blob in blobs]
    lengths = [sum(piece.nbytes for piece in blob) for blob in pieces]
    head = memoryview(struct.pack(f"<{len(blobs)}Q", *lengths))
    return [head, *(piece for blob in pieces for piece in blob)]


def unpack(data: memoryview, count: int) -> list[memoryview]:
    """Separate blobs that `pack` has joined.

    Parameters
    ----------
    data
        What `pack` returned, in one piece.
    count
        Number of blobs.

    Returns
    -------
    list of memoryview
        Views of `data`.
    """
    lengths = struct.unpack_from(f"<{count}Q", data)
    blobs, start = [], 8 * count
    for length in lengths:
        blobs.append(data[start : start + length])
        start += length
    return blobs


def within(members: Sequence[int], steps: Steps, slot: int = 0) -> Steps:
    """Run an algorithm among some of the ranks of a call.

    Parameters
    ----------
    members
        Ranks of the call: rank r of `steps` is members[r].
    steps
        The generator of this rank.
    slot
        Added to the slots of `steps`, so that they differ from those of other parts.

    Returns
    -------
    Any
        What `steps` returns.
    """
    value: Any = None
    while True:
        try:
            step = steps.send(value)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, (list, tuple)):
            value = yield [_moved(part, members, slot) for part in step]
        else:
            value = yield _moved(step, members, slot)


def _moved(step: Send | Scatter | Recv, members: Sequence[int], slot: int) -> Send | Scatter | Recv:
    """Return a step with its ranks and slot renumbered."""
    if isinstance(step, Send):
        return Send(tuple(members[dest] for dest in step.dests), step.data, step.slot + slot)
    if isinstance(step, Scatter):
        return Scatter(tuple((members[dest], data) for dest, data in step.blobs), step.slot + slot)
    return Recv(members[step.source], step.slot + slot, step.scattered)
