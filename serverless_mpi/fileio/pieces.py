"""Bytes at several places of a file, and the same bytes in one run: copies and set operations.

Places are an array of shape (k, 2): offset and length in bytes. Places of one access are in the
order of its data. A *set* of places is sorted, and its members neither touch nor overlap.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

Places = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
NONE: Places = np.empty((0, 2), np.int64)
_FEW = 32  # up to as many places, slices are faster than an index


def places(*pairs: tuple[int, int]) -> Places:
    """Return an array of places.

    Parameters
    ----------
    *pairs
        (offset, length) in bytes.
    """
    return np.array(pairs, np.int64).reshape(-1, 2)


def total(at: Places) -> int:
    """Return the bytes of places.

    Parameters
    ----------
    at
        Places, shape (k, 2).
    """
    return int(at[:, 1].sum())


def joined(at: Places) -> Places:
    """Join places that follow each other in the file and in order; drop empty ones.

    Parameters
    ----------
    at
        Places, shape (k, 2).
    """
    if len(at) and not at[:, 1].all():
        at = at[at[:, 1] > 0]
    if len(at) < 2:
        return at
    starts = np.concatenate([[True], at[1:, 0] != at[:-1, 0] + at[:-1, 1]])
    if starts.all():
        return at
    first = np.flatnonzero(starts)
    return np.stack([at[first, 0], np.add.reduceat(at[:, 1], first)], axis=1)


def union(at: Places, gap: int = 0) -> Places:
    """Return the set of bytes that any of the places covers.

    Parameters
    ----------
    at
        Places in any order, which may overlap.
    gap
        Bytes between two places that still joins them, and is then covered too.
    """
    at = at[at[:, 1] > 0]
    if len(at) < 2:
        return at
    starts = at[:, 0]
    if (starts[1:] < starts[:-1]).any():
        at = at[np.argsort(starts, kind="stable")]
    ends = np.maximum.accumulate(at[:, 0] + at[:, 1])
    first = np.flatnonzero(np.concatenate([[True], at[1:, 0] > ends[:-1] + gap]))
    begin = at[first, 0]
    last = np.concatenate([first[1:], [len(at)]]) - 1
    return np.stack([begin, ends[last] - begin], axis=1)


def covered(among: Places, start: int, end: int) -> int:
    """Return how many bytes from `start` to `end` a set covers.

    Parameters
    ----------
    among
        A set of places.
    start, end
        Offsets in bytes; `end` is exclusive.
    """
    begins = np.maximum(among[:, 0], start)
    ends = np.minimum(among[:, 0] + among[:, 1], end)
    return int(np.maximum(ends - begins, 0).sum())


def cut(at: Places, start: int, end: int, origin: Places | None = None) -> tuple[Places, Places]:
    """Return the parts of places between two offsets.

    Parameters
    ----------
    at
        Places in the order of their data, in any order in the file.
    start, end
        Offsets in the file, in bytes; `end` is exclusive.
    origin
        Where each of `at` is in the data; None if the data are one run.

    Returns
    -------
    tuple
        The parts as places in the file, and where each is in the data.
    """
    begins = np.maximum(at[:, 0], start)
    lengths = np.minimum(at[:, 0] + at[:, 1], end) - begins
    chosen = lengths > 0
    before = np.cumsum(at[:, 1]) - at[:, 1] if origin is None else origin[:, 0]
    within = before[chosen] + begins[chosen] - at[chosen, 0]
    lengths = lengths[chosen]
    return np.stack([begins[chosen], lengths], 1), np.stack([within, lengths], 1)


def located(at: Places, among: Places) -> Places:
    """Return where places are in the data of a set that covers each of them.

    Parameters
    ----------
    at
        Places, each within one member of the set.
    among
        The set, whose data are one run.
    """
    index = np.searchsorted(among[:, 0], at[:, 0], "right") - 1
    before = np.cumsum(among[:, 1]) - among[:, 1]
    return np.stack([before[index] + at[:, 0] - among[index, 0], at[:, 1]], axis=1)


def _units(size: int, *ats: Places) -> int:
    """The largest power of 2 up to 16 that divides all offsets and lengths and `size`."""
    unit = gcd(16, size)
    for at in ats:
        if len(at):
            unit = gcd(unit, int(np.gcd.reduce(at.reshape(-1))))
    return unit


def _index(at: Places, unit: int) -> np.ndarray[Any, Any]:
    """Positions of all units of places, in order."""
    counts = at[:, 1] // unit
    ends = np.cumsum(counts)
    ramps = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - counts, counts)
    index: np.ndarray[Any, Any] = np.repeat(at[:, 0] // unit, counts) + ramps
    return index


def _in_units(data: memoryview, unit: int) -> np.ndarray[Any, Any]:
    """Bytes as opaque units; what does not fill one at the end is omitted."""
    return np.frombuffer(data[: data.nbytes // unit * unit], f"V{unit}")


def gather(data: memoryview, at: Places) -> memoryview:
    """Return the bytes at places of `data` in one run: a view of one place, else a copy.

    Parameters
    ----------
    data
        Bytes.
    at
        Places in `data`.
    """
    if len(at) == 1:
        offset, length = (int(number) for number in at[0])
        return data[offset : offset + length]
    if len(at) <= _FEW:
        pieces = [data[offset : offset + length] for offset, length in at.tolist()]
        return memoryview(b"".join(pieces))
    unit = _units(0, at)
    return np.take(_in_units(data, unit), _index(at, unit)).data.cast("B")


def scatter(data: memoryview, into: memoryview, at: Places) -> None:
    """Copy bytes in one run to places of `into`.

    Parameters
    ----------
    data
        The bytes, as many as the places have.
    into
        Writable bytes.
    at
        Places in `into`, in the order of the data.
    """
    if len(at) <= _FEW:
        done = 0
        for offset, length in at.tolist():
            into[offset : offset + length] = data[done : done + length]
            done += length
        return
    unit = _units(data.nbytes, at)
    _in_units(into, unit)[_index(at, unit)] = _in_units(data, unit)


def as_array(data: memoryview) -> Bytes:
    """Return bytes as an array, which pickles without a copy.

    Not a `PickleBuffer`: in a reference cycle, one of a memoryview crashes CPython 3.11.

    Parameters
    ----------
    data
        The bytes; borrowed.
    """
    return np.frombuffer(data, np.uint8)


def move(source: memoryview, origin: Places, into: memoryview, at: Places) -> None:
    """Copy bytes from places of `source` to places of `into`, which have as many bytes.

    Parameters
    ----------
    source, origin
        Bytes, and places in them.
    into, at
        Writable bytes, and places in them.
    """
    scatter(gather(source, origin), into, at)


def present(at: Places, size: int) -> int:
    """Return the bytes of the data that exist in a file, up to the first that does not.

    Parameters
    ----------
    at
        Places in the order of the data.
    size
        Size of the file in bytes.
    """
    there = np.clip(size - at[:, 0], 0, at[:, 1])
    short = np.flatnonzero(there < at[:, 1])
    if not len(short):
        return int(there.sum())
    return int(there[: short[0] + 1].sum())
