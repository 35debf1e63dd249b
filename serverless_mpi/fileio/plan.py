"""Who does what in a collective access: pure functions of facts that all ranks share.

- `groups`: which places of one rank are read in one go;
- `domains`: equal parts of what a collective access touches, one for each rank;
- `cells`: the parts of a multipart upload, and which rank uploads each;
- `shared_reads`: whether ranks read for each other.

References
----------
R. Thakur, W. Gropp, E. Lusk, "Data Sieving and Collective I/O in ROMIO", 1999: two-phase access.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverless_mpi.fileio.pieces import NONE, Places, total, union


def groups(at: Places, most: int, gap: int) -> list[tuple[int, int]]:
    """Return which places are read together.

    Parameters
    ----------
    at
        Places by rising offset.
    most
        Bytes that are read in one go; a longer place is a group of its own.
    gap
        Bytes between two places that may be read and dropped; -1 for groups of one place.

    Returns
    -------
    list of (int, int)
        First and last place (exclusive) of each group.
    """
    if gap < 0:
        return [(index, index + 1) for index in range(len(at))]
    starts, ends = at[:, 0], at[:, 0] + at[:, 1]
    apart = np.flatnonzero(starts[1:] > ends[:-1] + gap) + 1
    bounds = [0, *apart.tolist(), len(at)]
    found: list[tuple[int, int]] = []
    for first, last in zip(bounds, bounds[1:], strict=False):
        while first < last:
            until = int(np.searchsorted(ends[first:last], int(starts[first]) + most, "right"))
            until = first + max(1, until)
            found.append((first, until))
            first = until
    return found


Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Domain:
    """A part of the file that one rank handles for all.

    Attributes
    ----------
    start, end
        Offsets in bytes; `end` is exclusive.
    owner
        Rank that handles it.
    """

    start: int
    end: int
    owner: int


def domains(wanted: Sequence[Places], ranks: int) -> list[Domain]:
    """Return parts of what any rank touches, about equal in bytes, one for each rank.

    Parameters
    ----------
    wanted
        The set of places that each rank touches.
    ranks
        Number of ranks.

    Returns
    -------
    list of Domain
        By rising offset; fewer than `ranks` if there is little.
    """
    touched = union(np.concatenate([*wanted, NONE]))
    nbytes = total(touched)
    if not nbytes:
        return []
    share = -(-nbytes // ranks)
    ends = np.cumsum(touched[:, 1])
    bounds = [int(touched[0, 0])]
    for rank in range(1, ranks):
        position = rank * share
        if position >= nbytes:
            break
        piece = int(np.searchsorted(ends, position, "right"))
        before = int(ends[piece] - touched[piece, 1])
        bounds.append(int(touched[piece, 0]) + position - before)
    bounds.append(int(touched[-1].sum()))
    return [
        Domain(start, end, rank)
        for rank, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]


@dataclass(frozen=True)
class Cell:
    """A part of a multipart upload.

    Attributes
    ----------
    number
        Number of the part in the upload, from 1.
    start, end
        Bytes of the file; `end` is exclusive.
    owner
        Rank that uploads it.
    copied
        Whether the object that is replaced has all of it, and S3 copies it by itself.
    """

    number: int
    start: int
    end: int
    owner: int
    copied: bool = False


def bytes_in_cells(at: Places, first: int, last: int, cell: int) -> Numbers:
    """Return how many bytes of each cell of a grid a set covers.

    Parameters
    ----------
    at
        A set of places.
    first, last
        Numbers of the first and last (exclusive) cell.
    cell
        Bytes of a cell.
    """
    bounds = np.arange(first, last + 1, dtype=np.int64) * cell
    if not len(at):
        return np.zeros(last - first, np.int64)
    # bytes of the set before each bound
    index = np.searchsorted(at[:, 0], bounds, "right") - 1
    before = np.concatenate([[0], np.cumsum(at[:, 1])])
    inside = np.clip(bounds - at[index, 0], 0, at[index, 1])
    counts = np.where(index < 0, 0, before[np.maximum(index, 0)] + inside)
    return np.diff(counts)


def _owners(touched: Sequence[Places], first: int, last: int, cell: int) -> list[int]:
    """The rank that uploads each cell of a range: one that has much of it and little to do."""
    shares = np.stack([bytes_in_cells(at, first, last, cell) for at in touched])
    load = [0] * len(touched)
    owners = []
    for index in range(last - first):
        most = int(shares[:, index].max())
        # nothing is sent if the rank with most of the bytes uploads them; among ranks with about
        # as many, the one with the fewest parts
        able = [rank for rank in range(len(touched)) if 2 * int(shares[rank, index]) >= most]
        owner = min(able, key=lambda rank: (load[rank], -int(shares[rank, index]), rank))
        load[owner] += 1
        owners.append(owner)
    return owners


def full_cells(touched: Sequence[Places], cell: int) -> list[Cell]:
    """Return the cells that all ranks together have written completely.

    Parameters
    ----------
    touched
        The set of places that each rank has written and not uploaded.
    cell
        Bytes of a cell.
    """
    everything = union(np.concatenate([*touched, NONE]))
    found: list[Cell] = []
    for start, length in everything.tolist():
        first, last = -(-start // cell), (start + length) // cell
        if first >= last:
            continue
        owners = _owners(touched, first, last, cell)
        found += [
            Cell(number + 1, number * cell, (number + 1) * cell, owner)
            for number, owner in zip(range(first, last), owners, strict=True)
        ]
    return found


def remaining_cells(
    touched: Sequence[Places],
    uploaded: frozenset[int],
    cell: int,
    size: int,
    base: int,
    most_copied: int,
) -> list[Cell]:
    """Return the cells that are missing for a whole object.

    Parameters
    ----------
    touched
        The set of places that each rank has written and not uploaded.
    uploaded
        Numbers of cells that are uploaded.
    cell
        Bytes of a cell; all but the last are as long.
    size
        Bytes of the object.
    base
        Bytes of the object that it replaces, as far as they count.
    most_copied
        Bytes that one request copies at most; 0 if nothing is copied.

    Returns
    -------
    list of Cell
        By rising number. Untouched cells that the replaced object has are joined, so that one
        request copies them; a joined cell has the number of its first.
    """
    count = -(-size // cell)
    shares = bytes_in_cells(union(np.concatenate([*touched, NONE])), 0, count, cell)
    owners = _owners(touched, 0, count, cell)
    found: list[Cell] = []
    number = idle = 0  # `idle` deals cells that nobody has touched to all ranks in turn
    while number < count:
        last = number + 1
        if last in uploaded:
            number = last
            continue
        if shares[number]:
            found.append(Cell(last, number * cell, min(last * cell, size), owners[number]))
            number = last
            continue
        owner, idle = idle % len(touched), idle + 1
        copied = bool(most_copied) and min(last * cell, size) <= base
        while (
            copied
            and last < count
            and not shares[last]
            and last + 1 not in uploaded
            and min((last + 1) * cell, size) <= base
            and (last + 1 - number) * cell <= most_copied
        ):
            last += 1
        found.append(Cell(number + 1, number * cell, min(last * cell, size), owner, copied))
        number = last
    return found


def shared_reads(wanted: Sequence[Places], most: int, gap: int) -> tuple[int, int]:
    """Return the requests of a collective read if ranks read alone, and if they share.

    Parameters
    ----------
    wanted
        The set of places that each rank reads.
    most
        Bytes of one request.
    gap
        Bytes between two places that one request reads across.

    Returns
    -------
    int, int
        Requests of all ranks together.
    """

    def requests(at: Places) -> int:
        return int((-(-union(at, gap)[:, 1] // most)).sum())

    return sum(requests(at) for at in wanted), requests(np.concatenate([*wanted, NONE]))
