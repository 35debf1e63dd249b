"""The exchange of two-phase access: pieces go to the rank that owns their part of the file.

Every rank knows the places that all ranks touch, so it knows from whom pieces come, and nobody
sends an empty message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np

from serverless_mpi.fileio.base import Ranks
from serverless_mpi.fileio.pieces import (
    Bytes,
    Places,
    as_array,
    covered,
    cut,
    gather,
    scatter,
    union,
)


class _Part(Protocol):
    """What one rank owns: `Domain` or `Cell` of `plan.py`."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def owner(self) -> int: ...


def senders(touched: Sequence[Places], parts: Sequence[_Part], owner: int) -> list[int]:
    """Return the other ranks that have bytes of a rank's parts.

    Parameters
    ----------
    touched
        The set of places of each rank.
    parts
        All parts.
    owner
        The rank.
    """
    own = [part for part in parts if part.owner == owner]
    return [
        rank
        for rank, at in enumerate(touched)
        if rank != owner and any(covered(at, part.start, part.end) for part in own)
    ]


def send_pieces(
    ranks: Ranks,
    touched: Sequence[Places],
    parts: Sequence[_Part],
    pieces_of: Callable[[Any], object],
) -> tuple[list[Any], list[Any]]:
    """Send what others own, and receive what they have of this rank's parts.

    Parameters
    ----------
    ranks
        The ranks of the file.
    touched
        The set of places of each rank.
    parts
        All parts.
    pieces_of
        pieces_of(part) returns what this rank has of a part; it must pickle.

    Returns
    -------
    list, list
        What `pieces_of` returned on each other rank that has something, by (rank, part); and
        functions that return when the memory of what was sent may change.
    """
    me = ranks.rank
    waits = []
    for owner in range(ranks.size):
        if owner == me:
            continue
        theirs = [
            (index, pieces_of(part))
            for index, part in enumerate(parts)
            if part.owner == owner and covered(touched[me], part.start, part.end)
        ]
        if theirs:
            waits.append(ranks.send(theirs, owner))
    received = []
    for source in senders(touched, parts, me):
        theirs = cast(list[tuple[int, Any]], ranks.recv(source))
        received += [(source, index, pieces) for index, pieces in theirs]
    return received, waits


def collect(
    ranks: Ranks, touched: Sequence[Places], parts: Sequence[_Part], at: Places, data: memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Exchange the pieces of a collective write; return the runs that this rank writes.

    Parameters
    ----------
    ranks
        The ranks of the file.
    touched
        The set of places of each rank.
    parts
        Parts of the file with their owners; they hold all of `touched`.
    at, data
        This rank's places and bytes.

    Returns
    -------
    iterator of (int, memoryview)
        Offset and bytes of each run.
    """

    def pieces_of(part: _Part) -> tuple[Places, Bytes]:
        there, within = cut(at, part.start, part.end)
        return there, as_array(gather(data, within))

    received, waits = send_pieces(ranks, touched, parts, pieces_of)
    runs: list[tuple[int, memoryview]] = []
    for index, part in enumerate(parts):
        if part.owner != ranks.rank:
            continue
        pieces = [(ranks.rank, pieces_of(part))]
        pieces += [(source, got) for source, which, got in received if which == index]
        pieces.sort(key=lambda pair: pair[0])
        whole = memoryview(bytearray(part.end - part.start))
        for _, (there, some) in pieces:
            moved = there.copy()
            moved[:, 0] -= part.start
            scatter(some.data, whole, moved)
        every = union(np.concatenate([there for _, (there, _) in pieces]))
        for start, length in every.tolist():
            runs.append((start, whole[start - part.start : start - part.start + length]))
    for wait in waits:
        wait()
    yield from runs


__all__ = ["collect", "send_pieces", "senders"]
