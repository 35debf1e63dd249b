"""Layouts: which bytes of memory an element of a datatype is, and how many elements are packed at once.

A layout is described by blocks of another one. Its bounds are computed from the description; its bytes only when it is compiled, once,
into a NumPy index plan. A contiguous layout is packed as a view, without a copy; any other is gathered by one `numpy.take` over the
largest unit that divides all its pieces.
Source: MPI 4.1, chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import numpy as np

from serverless_mpi.errors import ERR_TRUNCATE, ERR_TYPE, MPIException

Pieces = np.ndarray[
    Any, np.dtype[np.int64]
]  # (k, 2): displacement and length in bytes, in type-map order
Block = tuple[Any, Any, "Layout"]  # displacements in bytes, numbers of elements (as many), of what
_WIDEST = 16  # bytes of a unit: wider ones gain nothing


class Layout:
    """The type map of one element, in bytes.

    size: of data; lb, ub: where an element begins and ends in an array of them; true_lb, true_ub: where its data do; align: of its
    most aligned number.
    """

    __slots__ = (
        "size",
        "lb",
        "ub",
        "true_lb",
        "true_ub",
        "align",
        "_blocks",
        "_pieces",
        "_plan",
        "_dense",
        "_overlaps",
    )

    def __init__(
        self,
        size: int,
        bounds: tuple[int, int],
        true_bounds: tuple[int, int],
        align: int,
        blocks: Callable[[], Sequence[Block]] | None,
    ) -> None:
        self.size = size
        self.lb, self.ub = bounds
        self.true_lb, self.true_ub = true_bounds
        self.align = align
        self._blocks = blocks  # None: one dense run from true_lb on
        self._pieces: Pieces | None = None
        self._plan: tuple[int, np.ndarray[Any, Any]] | None = None
        self._dense: bool | None = None
        self._overlaps: bool | None = None

    @classmethod
    def run(cls, nbytes: int, align: int) -> Layout:
        """`nbytes` one after the other."""
        return cls(nbytes, (0, nbytes), (0, nbytes), align, None)

    @classmethod
    def of_blocks(
        cls,
        extremes: Sequence[tuple[int, int, Layout]],
        elements: int,
        blocks: Callable[[], Sequence[Block]],
    ) -> Layout:
        """Blocks of elements.

        extremes: (displacement, count, layout) of at least those blocks that reach lowest and highest; elements: bytes of all
        blocks' data; blocks: gives all of them, in type-map order.
        """
        full = [(d, c, of) for d, c, of in extremes if c > 0]
        if not full:
            return cls(0, (0, 0), (0, 0), 1, lambda: ())
        low, high, true = [], [], []
        for d, c, of in full:
            back, forth = min(0, of.extent * (c - 1)), max(0, of.extent * (c - 1))
            low.append(d + of.lb + back)
            high.append(d + of.ub + forth)
            if of.size:
                true += [d + of.true_lb + back, d + of.true_ub + forth]
        align = max(of.align for _, _, of in full)
        return cls(
            elements,
            (min(low), max(high)),
            (min(true, default=0), max(true, default=0)),
            align,
            blocks,
        )

    def bounded(self, lb: int, ub: int) -> Layout:
        """The same data between other bounds."""
        return Layout(
            self.size,
            (lb, ub),
            (self.true_lb, self.true_ub),
            self.align,
            lambda: [((0,), (1,), self)],
        )

    @property
    def extent(self) -> int:
        """Bytes from one element to the next."""
        return self.ub - self.lb

    # --- compiling -------------------------------------------------------------

    @property
    def pieces(self) -> Pieces:
        """The runs of bytes that an element is made of, neighbours joined."""
        if self._pieces is None:
            if self._blocks is None:
                self._pieces = np.array([[self.true_lb, self.size]], np.int64)
            else:
                parts = [
                    _repeat(np.asarray(d, np.int64), np.asarray(c, np.int64), of)
                    for d, c, of in self._blocks()
                ]
                self._pieces = _join(np.concatenate(parts)) if parts else np.empty((0, 2), np.int64)
        return self._pieces

    @property
    def dense(self) -> bool:
        """Whether any number of elements is one run of bytes from their address on."""
        if self._dense is None:
            one = (
                self.size == self.ub - self.lb == self.true_ub - self.true_lb
                and self.lb == self.true_lb == 0
            )
            self._dense = one and len(self.pieces) <= 1
        return self._dense

    def compile(self) -> None:
        """Make the plan now."""
        if not self.dense:
            self._units()

    def _units(self) -> tuple[int, np.ndarray[Any, Any]]:
        """(unit in bytes, the element's units in type-map order, as displacements in bytes)."""
        if self._plan is None:
            unit = _WIDEST
            numbers = self.pieces.reshape(-1)
            if len(numbers):
                unit = gcd(unit, int(np.gcd.reduce(numbers)))
            unit = gcd(unit, self.extent)
            self._plan = unit, _cut(self.pieces, unit)
        return self._plan

    def _index(self, offset: int, count: int) -> tuple[int, np.ndarray[Any, Any]]:
        """(unit in bytes, positions in that unit) of `count` elements at byte `offset`."""
        unit, within = self._units()
        if offset % unit:
            unit = gcd(unit, offset)
            within = _cut(self.pieces, unit)
        starts = offset + np.arange(count, dtype=np.int64) * self.extent
        return unit, (starts[:, None] + within[None, :]).reshape(-1) // unit

    def overlaps(self, count: int) -> bool:
        """Whether `count` elements have a byte twice: they can be sent, and not received into."""
        if not count or not self.size:
            return False
        if self._overlaps is None:
            self._overlaps = _collide(self.pieces)
        if self._overlaps or count == 1:
            return self._overlaps
        if abs(self.extent) >= self.true_ub - self.true_lb:
            return False
        starts = np.arange(count, dtype=np.int64) * self.extent
        return _collide(
            (
                self.pieces[None, :, :] + np.stack([starts, np.zeros_like(starts)], 1)[:, None, :]
            ).reshape(-1, 2)
        )

    # --- packing ---------------------------------------------------------------

    def span(self, count: int) -> tuple[int, int]:
        """First and last byte (exclusive) that `count` elements touch, relative to their address."""
        if count == 0 or not self.size:
            return 0, 0
        last = (count - 1) * self.extent
        return self.true_lb + min(0, last), self.true_ub + max(0, last)

    def is_dense(self, count: int) -> bool:
        """Whether `count` elements are one run of bytes from their address on."""
        return (
            self.dense
            or not self.size
            or (
                count == 1
                and not self.true_lb
                and self.true_ub == self.size
                and len(self.pieces) == 1
            )
        )

    def pack(self, buf: memoryview, offset: int, count: int) -> memoryview:
        """The bytes of `count` elements at byte `offset` of `buf`: a view if they are dense, else a copy."""
        if self.is_dense(count):
            return buf[offset : offset + count * self.size]
        unit, index = self._index(offset, count)
        return np.take(_in_units(buf, unit), index).data.cast("B")

    def unpack(self, data: memoryview, buf: memoryview, offset: int, count: int) -> None:
        """Put packed `data` (whole elements, or fewer than `count`) to its places.

        Raises
        ------
        MPIException
            ERR_TRUNCATE if `data` is longer than `count` elements; nothing is changed then.
        """
        room = count * self.size
        if data.nbytes > room:
            raise too_long(data.nbytes, room)
        if self.is_dense(count):
            buf[offset : offset + data.nbytes] = data
            return
        if data.nbytes == 0:
            return
        unit, index = self._index(offset, -(-data.nbytes // self.size))
        if data.nbytes % unit:
            raise MPIException(
                ERR_TYPE, f"a message of {data.nbytes} bytes ends inside a number of the datatype"
            )
        _in_units(buf, unit)[index[: data.nbytes // unit]] = np.frombuffer(data, f"V{unit}")


def too_long(nbytes: int, room: int) -> MPIException:
    """Return the error of a message that is longer than its buffer."""
    return MPIException(ERR_TRUNCATE, f"a message of {nbytes} bytes does not fit in {room} bytes")


def _in_units(buf: memoryview, unit: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(buf[: buf.nbytes // unit * unit], f"V{unit}")


def _cut(pieces: Pieces, unit: int) -> np.ndarray[Any, Any]:
    """The displacements of all units of `pieces`."""
    lengths = pieces[:, 1] // unit
    places: Pieces = np.repeat(pieces[:, 0], lengths) + _ramps(lengths) * unit
    return places


def _repeat(displacements: Pieces, counts: Pieces, of: Layout) -> Pieces:
    """The pieces of blocks of `counts[i]` elements at byte `displacements[i]`."""
    if of.dense:  # a block is one piece
        return np.stack([displacements, counts * of.size], axis=1)
    starts: Pieces = np.repeat(displacements, counts) + of.extent * _ramps(counts)
    moved: Pieces = np.broadcast_to(of.pieces, (len(starts), *of.pieces.shape)).copy()
    moved[:, :, 0] += starts[:, None]
    return moved.reshape(-1, 2)


def _join(pieces: Pieces) -> Pieces:
    """Join pieces that follow each other in memory and in order."""
    pieces = pieces[pieces[:, 1] > 0]
    if len(pieces) < 2:
        return pieces
    joins = pieces[1:, 0] == pieces[:-1, 0] + pieces[:-1, 1]
    if not joins.any():
        return pieces
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    return np.stack([pieces[first, 0], np.add.reduceat(pieces[:, 1], first)], axis=1)


def _collide(pieces: Pieces) -> bool:
    ordered = pieces[np.argsort(pieces[:, 0], kind="stable")]
    return bool((ordered[1:, 0] < ordered[:-1, 0] + ordered[:-1, 1]).any())


def _ramps(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0, 1, .., c-1 for each c of `counts`, concatenated."""
    ends = np.cumsum(counts)
    ramps: Pieces = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(
        ends - counts, counts
    )
    return ramps
