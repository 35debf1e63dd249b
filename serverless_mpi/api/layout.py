"""Layouts: which bytes of memory an element of a datatype is, and how elements are packed.

A layout has one of three forms, from cheap to expensive:

- dense: any number of elements is one run of bytes. It is packed as a view, without a copy.
- regular: runs of equal length at constant strides (vectors, subarrays, and what they are nested
  in). It is packed by one strided copy of NumPy, without an index.
- irregular: anything else. It is gathered by one `numpy.take` with an index of units; a unit is the
  largest number of bytes that divides all pieces.

Bounds are computed when a layout is made. Strides are composed from those of the inner layout at
the same time, and pieces and indices are computed at first use. A layout never changes, so types
that were constructed alike share one (type_constructors.py).

Pitfall: packed data are in type-map order, which need not be the order of addresses. So dimensions
of a regular layout are never sorted, only merged with their neighbours.

References
----------
MPI 4.1, section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from serverless_mpi.errors import ERR_TRUNCATE, ERR_TYPE, MPIException

# (k, 2): displacement and length in bytes, in type-map order
Pieces = np.ndarray[Any, np.dtype[np.int64]]
Block = tuple[Any, Any, "Layout"]  # displacements in bytes, numbers of elements (as many), of what
Dimensions = tuple[tuple[int, int], ...]  # (how many, bytes from one to the next), outermost first
# dtype, shape and strides (in bytes) of the NumPy array that an element is
Array = tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...]]
_WIDEST = 16  # bytes of an index's unit: wider ones gain nothing
_UNITS: dict[int, np.dtype[Any]] = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


class Strides(NamedTuple):
    """The bytes of one element of a regular layout.

    Attributes
    ----------
    first
        Displacement of the first run in bytes.
    dimensions
        How the runs repeat, outermost dimension first; none for a single run.
    run
        Bytes of a run.
    """

    first: int
    dimensions: Dimensions
    run: int

    @classmethod
    def merged(cls, first: int, dimensions: Iterable[tuple[int, int]], run: int) -> Strides:
        """Return the same bytes in the same order with the fewest dimensions.

        Parameters
        ----------
        first
            Offset of the first run, in bytes.
        dimensions
            (count, step in bytes) of each dimension, outermost first.
        run
            Bytes of a run.
        """
        kept: list[tuple[int, int]] = []  # innermost first
        for many, step in reversed(tuple(dimensions)):
            if many == 1:
                continue
            if not kept and step == run:
                run *= many
            elif kept and step == kept[-1][0] * kept[-1][1]:
                kept[-1] = (many * kept[-1][0], kept[-1][1])
            else:
                kept.append((many, step))
        return cls(first, tuple(reversed(kept)), run)

    def repeated(self, offset: int, dimensions: Dimensions) -> Strides:
        """Return the strides of elements with these strides, repeated along outer dimensions.

        Parameters
        ----------
        offset
            Bytes to add to the offset of the first run.
        dimensions
            (count, step in bytes) of the outer dimensions, outermost first.
        """
        return self.merged(self.first + offset, (*dimensions, *self.dimensions), self.run)


class Layout:
    """The type map of one element, in bytes.

    Parameters
    ----------
    size
        Bytes of data in one element.
    bounds
        Where an element begins and ends in an array of them.
    true_bounds
        Where its data begin and end.
    align
        Alignment of its most aligned number.
    blocks
        Returns what the element is made of, in type-map order; None for one run of bytes.
    strides
        The same bytes as strides, if the layout is known to be regular.

    Attributes
    ----------
    extent
        Bytes from one element to the next.
    strides
        The element as strides; None if it is irregular or has no data.
    dense
        Whether any number of elements is one run of bytes from their address on.
    """

    __slots__ = (
        "size",
        "lb",
        "ub",
        "true_lb",
        "true_ub",
        "align",
        "extent",
        "strides",
        "dense",
        "_blocks",
        "_known_strides",
        "_array",
        "_pieces",
        "_plan",
        "_overlaps",
    )

    extent: int
    strides: Strides | None
    dense: bool

    def __init__(
        self,
        size: int,
        bounds: tuple[int, int],
        true_bounds: tuple[int, int],
        align: int,
        blocks: Callable[[], Sequence[Block]] | None,
        strides: Strides | None = None,
    ) -> None:
        self.size = size
        self.lb, self.ub = bounds
        self.true_lb, self.true_ub = true_bounds
        self.align = align
        self._blocks = blocks
        self._known_strides = strides
        self._array: Array | None = None
        self._pieces: Pieces | None = None
        self._plan: tuple[int, np.ndarray[Any, Any]] | None = None
        self._overlaps: bool | None = None

    def __getattr__(self, name: str) -> object:
        """Compute `extent`, `strides` or `dense` at first use; later reads are those of a slot."""
        value: object
        if name == "extent":
            value = self.ub - self.lb
        elif name == "strides":
            value = self._known_strides or _regular(self.pieces)
        elif name == "dense":
            value = (
                self.size == self.ub - self.lb == self.true_ub - self.true_lb
                and self.lb == self.true_lb == 0
                and (not self.size or (self.strides is not None and not self.strides.dimensions))
            )
        else:
            raise AttributeError(name)
        setattr(self, name, value)
        return value

    @classmethod
    def run(cls, nbytes: int, align: int) -> Layout:
        """Return the layout of `nbytes` consecutive bytes.

        Parameters
        ----------
        nbytes
            Number of bytes; also the extent.
        align
            Alignment in bytes.
        """
        return cls(nbytes, (0, nbytes), (0, nbytes), align, None, Strides(0, (), nbytes))

    @classmethod
    def of_blocks(
        cls,
        extremes: Sequence[tuple[int, int, Layout]],
        size: int,
        blocks: Callable[[], Sequence[Block]],
        strides: Strides | None = None,
    ) -> Layout:
        """Return the layout of blocks of elements.

        Parameters
        ----------
        extremes
            (displacement, count, layout) of at least those blocks that reach lowest and highest.
        size
            Bytes of data in all blocks.
        blocks
            Returns all blocks, in type-map order.
        strides
            The same bytes as strides, if they are known.
        """
        full = [(d, c, of) for d, c, of in extremes if c > 0]
        if not full:
            return cls(0, (0, 0), (0, 0), 1, lambda: ())
        low, high, true = [], [], []
        for d, c, of in full:
            reach = of.extent * (c - 1)
            back, forth = min(0, reach), max(0, reach)
            low.append(d + of.lb + back)
            high.append(d + of.ub + forth)
            if of.size:
                true += [d + of.true_lb + back, d + of.true_ub + forth]
        return cls(
            size,
            (min(low), max(high)),
            (min(true, default=0), max(true, default=0)),
            max(of.align for _, _, of in full),
            blocks,
            strides if size else None,
        )

    def bounded(self, lb: int, ub: int) -> Layout:
        """Return the layout of the same data between other bounds.

        Parameters
        ----------
        lb, ub
            Lower and upper bound of an element, in bytes.
        """
        return Layout(
            self.size,
            (lb, ub),
            (self.true_lb, self.true_ub),
            self.align,
            lambda: [((0,), (1,), self)],
            self._known_strides,
        )

    def strided(self, offset: int, dimensions: Dimensions) -> Strides | None:
        """Return the strides of elements that repeat along `dimensions`; None if irregular.

        Looks at what is known without computing pieces.

        Parameters
        ----------
        offset
            Offset of the first element, in bytes.
        dimensions
            (count, step in bytes) of each dimension, outermost first.
        """
        known = self._known_strides
        return None if known is None else known.repeated(offset, dimensions)

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

    def compile(self) -> None:
        """Compute now what packing needs."""
        if self.size and self.strides is None:
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

    def _view(self, buf: memoryview, offset: int, count: int) -> np.ndarray[Any, Any]:
        """`count` elements of a regular layout at byte `offset` of `buf`, as an array."""
        strides = self.strides
        assert strides is not None
        if self._array is None:
            self._array = _array_of(strides)
        dtype, shape, steps = self._array
        if count != 1:
            shape, steps = (count, *shape), (self.extent, *steps)
        elements: np.ndarray[Any, Any] = np.ndarray(
            shape, dtype, buf, offset + strides.first, steps
        )
        return elements

    def overlaps(self, count: int) -> bool:
        """Return whether `count` elements have a byte twice; nothing can be received into them.

        Parameters
        ----------
        count
            Number of elements, one extent apart.
        """
        if not count or not self.size:
            return False
        strides = self.strides
        if self._overlaps is None:
            apart = strides is not None and _apart(strides.dimensions, strides.run)
            self._overlaps = not apart and _collide(self.pieces)
        if self._overlaps or count == 1:
            return self._overlaps
        if abs(self.extent) >= self.true_ub - self.true_lb:
            return False
        if strides is not None and _apart(((count, self.extent), *strides.dimensions), strides.run):
            return False
        starts = np.arange(count, dtype=np.int64) * self.extent
        shifts = np.stack([starts, np.zeros_like(starts)], 1)
        return _collide((self.pieces[None, :, :] + shifts[:, None, :]).reshape(-1, 2))

    # --- packing ---------------------------------------------------------------

    def span(self, count: int) -> tuple[int, int]:
        """Return the first and last byte (exclusive) that `count` elements at address 0 touch.

        Parameters
        ----------
        count
            Number of elements, one extent apart.
        """
        if count == 0 or not self.size:
            return 0, 0
        last = (count - 1) * self.extent
        return self.true_lb + min(0, last), self.true_ub + max(0, last)

    def is_dense(self, count: int) -> bool:
        """Return whether `count` elements are one run of bytes from their address on.

        Parameters
        ----------
        count
            Number of elements, one extent apart.
        """
        if self.dense or not self.size:
            return True
        if count != 1 or self.true_lb or self.true_ub != self.size:
            return False
        strides = self.strides
        return strides is not None and not strides.dimensions

    def pack(self, buf: memoryview, offset: int, count: int) -> memoryview:
        """Return the bytes of elements: a view if they are dense, else a copy.

        Parameters
        ----------
        buf
            Bytes (format "B") that hold the elements.
        offset
            Address of the first element in `buf`.
        count
            Number of elements.
        """
        if self.is_dense(count):
            return buf[offset : offset + count * self.size]
        if count and self.strides is not None:
            packed: memoryview = self._view(buf, offset, count).copy().data.cast("B")
            return packed
        unit, index = self._index(offset, count)
        return np.take(_in_units(buf, unit), index).data.cast("B")

    def unpack(self, data: memoryview, buf: memoryview, offset: int, count: int) -> None:
        """Put packed bytes to their places.

        Parameters
        ----------
        data
            Bytes of whole numbers, of at most `count` elements; copied.
        buf, offset, count
            As for `pack`.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: `data` is longer than `count` elements. ERR_TYPE: `data` ends inside a
            number. Nothing is changed then.
        """
        nbytes = data.nbytes
        if nbytes > count * self.size:
            raise too_long(nbytes, count * self.size)
        if self.is_dense(count):
            buf[offset : offset + nbytes] = data
            return
        if nbytes == 0:
            return
        whole = nbytes // self.size
        if self.strides is not None and whole * self.size == nbytes:
            view = self._view(buf, offset, whole)
            view[...] = np.ndarray(view.shape, view.dtype, data)
            return
        unit, index = self._index(offset, -(-nbytes // self.size))
        if nbytes % unit:
            raise MPIException(
                ERR_TYPE, f"a message of {nbytes} bytes ends inside a number of the datatype"
            )
        _in_units(buf, unit)[index[: nbytes // unit]] = np.frombuffer(data, f"V{unit}")


def too_long(nbytes: int, capacity: int) -> MPIException:
    """Return the error of a message that is longer than its buffer.

    Parameters
    ----------
    nbytes
        Bytes of the message.
    capacity
        Bytes of the buffer.

    Returns
    -------
    MPIException
        ERR_TRUNCATE; it is not raised.
    """
    return MPIException(
        ERR_TRUNCATE, f"a message of {nbytes} bytes does not fit in {capacity} bytes"
    )


def _in_units(buf: memoryview, unit: int) -> np.ndarray[Any, Any]:
    """The bytes of `buf` as opaque units."""
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


def _regular(pieces: Pieces) -> Strides | None:
    """Joined pieces as strides of one dimension, if their lengths and distances are equal."""
    if not len(pieces):
        return None
    first, run = (int(number) for number in pieces[0])
    if len(pieces) == 1:
        return Strides(first, (), run)
    step = int(pieces[1, 0]) - first
    if (pieces[:, 1] != run).any() or (np.diff(pieces[:, 0]) != step).any():
        return None
    return Strides(first, ((len(pieces), step),), run)


def _array_of(strides: Strides) -> Array:
    """How NumPy describes an element: its units are numbers only so that it copies them fast."""
    unit = gcd(strides.run, 8)
    return (
        _UNITS[unit],
        (*(many for many, _ in strides.dimensions), strides.run // unit),
        (*(step for _, step in strides.dimensions), unit),
    )


def _apart(dimensions: Dimensions, run: int) -> bool:
    """Whether no byte occurs twice because each dimension steps over all that is inside of it.

    False does not mean that one does.
    """
    span = run
    for many, step in sorted(dimensions, key=lambda dimension: abs(dimension[1])):
        if abs(step) < span:
            return False
        span += abs(step) * (many - 1)
    return True


def _collide(pieces: Pieces) -> bool:
    """Whether any two pieces have a byte in common."""
    ordered = pieces[np.argsort(pieces[:, 0], kind="stable")]
    return bool((ordered[1:, 0] < ordered[:-1, 0] + ordered[:-1, 1]).any())


def _ramps(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0, 1, .., c-1 for each c of `counts`, concatenated."""
    ends = np.cumsum(counts)
    ramps: Pieces = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(
        ends - counts, counts
    )
    return ramps
