"""Constructors of datatypes: from arguments to a `Construction`.

Rule: a construction depends on nothing but its key, (constructor, inner construction, arguments),
and never changes. So the last `MOST_SHARED` of them are kept, and a program that makes the same
type for each message pays for it once. `construct` is the only function that reads or changes that
table.

A construction is not kept

- if its key has more than `MOST_NUMBERS` numbers, or an index for it would take more than about
  `MOST_INDEXED` bytes: keeping it would hold memory that the program has freed;
- if an inner one is not: it would keep that one alive.

To add a constructor: write a function (inner construction, arguments) -> Construction, and a method
of `Datatype` that converts the arguments to integers and calls `construct`.

References
----------
MPI 4.1, section 5.1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import numpy as np

from serverless_mpi.api.arrays import indices_of_rank, part_of_array
from serverless_mpi.api.datatype_state import (
    COMBINER_CONTIGUOUS,
    COMBINER_DARRAY,
    COMBINER_DUP,
    COMBINER_HINDEXED,
    COMBINER_HINDEXED_BLOCK,
    COMBINER_HVECTOR,
    COMBINER_INDEXED,
    COMBINER_INDEXED_BLOCK,
    COMBINER_RESIZED,
    COMBINER_STRUCT,
    COMBINER_SUBARRAY,
    COMBINER_VECTOR,
    Construction,
)
from serverless_mpi.api.layout import Block, Layout
from serverless_mpi.errors import ERR_ARG, ERR_COUNT, ERR_RANK, MPIException

MOST_SHARED = 256
MOST_NUMBERS = 1024
MOST_INDEXED = 32 << 10

Numbers = tuple[int, ...]
Key = int | Numbers

_shared: dict[tuple[object, ...], Construction] = {}
_changing = threading.Lock()


def integers(values: Sequence[Any]) -> Numbers:
    """Return integers, NumPy's included, as Python's.

    Parameters
    ----------
    values
        Integers, or a one-dimensional array of integers; copied.

    Raises
    ------
    TypeError
        A value is not an integer.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.ndim == 1:
        return tuple(values.tolist())
    return tuple(map(index, values))


def construct(
    constructor: Callable[..., Construction], of: Construction | tuple[Construction, ...], *key: Key
) -> Construction:
    """Return constructor(of, *key), the same object for equal arguments.

    Parameters
    ----------
    constructor
        A function of this module.
    of
        What the type is made of.
    key
        Integers and tuples of integers.
    """
    whole_key = (constructor, of, *key)
    made = _shared.get(whole_key)
    if made is None:
        made = constructor(of, *key)
        if _may_share(of, key, made.layout):
            made.shared = True
            with _changing:
                while len(_shared) >= MOST_SHARED:
                    del _shared[next(iter(_shared))]
                _shared[whole_key] = made
    return made


def _may_share(
    of: Construction | tuple[Construction, ...], key: tuple[Key, ...], layout: Layout
) -> bool:
    """Whether keeping a construction holds little memory."""
    inner = of if isinstance(of, tuple) else (of,)
    numbers = sum(len(part) if isinstance(part, tuple) else 1 for part in key)
    return (
        numbers <= MOST_NUMBERS
        and (layout.size <= MOST_INDEXED or layout.strided(0, ()) is not None)
        and all(one.shared for one in inner)
    )


def _derived(
    of: Construction,
    layout: Layout,
    combiner: int,
    count: int,
    params: dict[str, Any],
    counts: Sequence[int],
    more: Sequence[int] = (),
) -> Construction:
    """A type of `count` elements of one other type."""
    return Construction(layout, of.base, combiner, ((of, count),), params, counts, more)


def duplicate(of: Construction) -> Construction:
    """`Dup`: another type that is laid out and named alike.

    Parameters
    ----------
    of
        Construction that is duplicated.
    """
    made = Construction(of.layout, of.base, COMBINER_DUP, ((of, 1),))
    made.pair, made.typechar, made.typestr, made.code = of.pair, of.typechar, of.typestr, of.code
    return made


def contiguous(of: Construction, count: int) -> Construction:
    """`Create_contiguous`.

    Parameters
    ----------
    of
        Construction of the element type.
    count
        Number of elements.

    Raises
    ------
    MPIException
        ERR_COUNT: the count is negative.
    """
    _check_count(count)
    inner = of.layout
    layout = Layout.of_blocks(
        [(0, count, inner)],
        count * inner.size,
        lambda: [((0,), (count,), inner)],
        inner.strided(0, ((count, inner.extent),)),
    )
    return _derived(of, layout, COMBINER_CONTIGUOUS, count, {"count": count}, (count,))


def vector(of: Construction, count: int, blocklength: int, stride: int) -> Construction:
    """`Create_vector`: the stride is in elements.

    Parameters
    ----------
    of
        Construction of the element type.
    count
        Number of blocks.
    blocklength
        Number of elements of each block.
    stride
        Distance between the beginnings of two blocks, in elements.

    Raises
    ------
    MPIException
        ERR_COUNT: a count or a length is negative.
    """
    step = stride * of.layout.extent
    return _blocks_at_steps(of, COMBINER_VECTOR, count, blocklength, stride, step)


def hvector(of: Construction, count: int, blocklength: int, stride: int) -> Construction:
    """`Create_hvector`: the stride is in bytes.

    Parameters
    ----------
    of
        Construction of the element type.
    count
        Number of blocks.
    blocklength
        Number of elements of each block.
    stride
        Distance between the beginnings of two blocks, in bytes.

    Raises
    ------
    MPIException
        ERR_COUNT: a count or a length is negative.
    """
    return _blocks_at_steps(of, COMBINER_HVECTOR, count, blocklength, stride, stride)


def _blocks_at_steps(
    of: Construction, combiner: int, count: int, blocklength: int, stride: int, step: int
) -> Construction:
    """Equal blocks whose beginnings are `step` bytes apart."""
    _check_count(count)
    _check_count(blocklength)
    inner, total = of.layout, count * blocklength
    layout = Layout.of_blocks(
        [(at, blocklength, inner) for at in ((0, (count - 1) * step) if count else ())],
        total * inner.size,
        lambda: [(np.arange(count) * step, np.full(count, blocklength), inner)],
        inner.strided(0, ((count, step), (blocklength, inner.extent))),
    )
    params = {"count": count, "blocklength": blocklength, "stride": stride}
    return _derived(of, layout, combiner, total, params, (count, blocklength, stride))


def indexed(of: Construction, lengths: Numbers, displacements: Numbers) -> Construction:
    """`Create_indexed`: displacements are in elements.

    Parameters
    ----------
    of
        Construction of the element type.
    lengths
        Number of elements of each block.
    displacements
        Displacement of each block, in elements; as many as `lengths`.

    Raises
    ------
    MPIException
        ERR_COUNT: a length is negative.
    """
    extent = of.layout.extent
    return _blocks(
        of,
        COMBINER_INDEXED,
        [displacement * extent for displacement in displacements],
        lengths,
        {"blocklengths": lengths, "displacements": displacements},
        (len(lengths), *lengths, *displacements),
    )


def hindexed(of: Construction, lengths: Numbers, displacements: Numbers) -> Construction:
    """`Create_hindexed`: displacements are in bytes.

    Parameters
    ----------
    of
        Construction of the element type.
    lengths
        Number of elements of each block.
    displacements
        Displacement of each block, in bytes; as many as `lengths`.

    Raises
    ------
    MPIException
        ERR_COUNT: a length is negative.
    """
    return _blocks(
        of,
        COMBINER_HINDEXED,
        displacements,
        lengths,
        {"blocklengths": lengths, "displacements": displacements},
        (len(lengths), *lengths, *displacements),
    )


def indexed_block(of: Construction, length: int, displacements: Numbers) -> Construction:
    """`Create_indexed_block`: displacements are in elements.

    Parameters
    ----------
    of
        Construction of the element type.
    length
        Number of elements of each block.
    displacements
        Displacement of each block, in elements.

    Raises
    ------
    MPIException
        ERR_COUNT: a length is negative.
    """
    extent = of.layout.extent
    return _blocks(
        of,
        COMBINER_INDEXED_BLOCK,
        [displacement * extent for displacement in displacements],
        (length,) * len(displacements),
        {"blocklength": length, "displacements": displacements},
        (len(displacements), length, *displacements),
    )


def hindexed_block(of: Construction, length: int, displacements: Numbers) -> Construction:
    """`Create_hindexed_block`: displacements are in bytes.

    Parameters
    ----------
    of
        Construction of the element type.
    length
        Number of elements of each block.
    displacements
        Displacement of each block, in bytes.

    Raises
    ------
    MPIException
        ERR_COUNT: a length is negative.
    """
    return _blocks(
        of,
        COMBINER_HINDEXED_BLOCK,
        displacements,
        (length,) * len(displacements),
        {"blocklength": length, "displacements": displacements},
        (len(displacements), length, *displacements),
    )


def _blocks(
    of: Construction,
    combiner: int,
    displacements: Sequence[int],
    lengths: Numbers,
    params: dict[str, Any],
    counts: Numbers,
) -> Construction:
    """Blocks of given lengths at displacements in bytes."""
    _check_lengths(lengths)
    inner, total = of.layout, sum(lengths)

    def blocks() -> list[Block]:
        return [(displacements, lengths, inner)]

    extremes = [(d, c, inner) for d, c in zip(displacements, lengths, strict=True)]
    layout = Layout.of_blocks(extremes, total * inner.size, blocks)
    return _derived(of, layout, combiner, total, params, counts)


def struct(
    of: tuple[Construction, ...], lengths: Numbers, displacements: Numbers, several: bool
) -> Construction:
    """`Create_struct`.

    Parameters
    ----------
    of
        Construction of the elements of each block.
    lengths
        Number of elements of each block.
    displacements
        Displacement of each block, in bytes.
    several
        Whether the blocks are of more than one type, so that the extent is padded to the alignment.

    Raises
    ------
    MPIException
        ERR_COUNT: a length is negative.
    """
    _check_lengths(lengths)
    every = [(d, c, one.layout) for d, c, one in zip(displacements, lengths, of, strict=True)]
    size = sum(c * layout.size for _, c, layout in every)
    layout = Layout.of_blocks(every, size, lambda: [((d,), (c,), layout) for d, c, layout in every])
    rest = (layout.ub - layout.lb) % layout.align
    if several and rest:
        layout.ub += layout.align - rest
    bases = {one.base for one in of}
    return Construction(
        layout,
        bases.pop() if len(bases) == 1 else None,
        COMBINER_STRUCT,
        tuple(zip(of, lengths, strict=True)),
        {"blocklengths": lengths, "displacements": displacements},
        (len(of), *lengths, *displacements),
    )


def subarray(
    of: Construction, sizes: Numbers, subsizes: Numbers, starts: Numbers, order: int
) -> Construction:
    """`Create_subarray`.

    Parameters
    ----------
    of
        Construction of the element type.
    sizes, subsizes, starts
        Lengths of the array, lengths of the box, and where the box begins, in elements: one integer
        per dimension.
    order
        MPI.ORDER_C or MPI.ORDER_FORTRAN.

    Raises
    ------
    MPIException
        ERR_COUNT: a length or a start is negative. ERR_ARG: the box is not inside the array.
    """
    if min((*subsizes, *starts), default=0) < 0:
        raise MPIException(
            ERR_COUNT, f"box {list(subsizes)} at {list(starts)}: a length or a start is negative"
        )
    if any(n < 1 or s + b > n for n, b, s in zip(sizes, subsizes, starts, strict=True)):
        raise MPIException(
            ERR_ARG, f"box {list(subsizes)} at {list(starts)} is not inside {list(sizes)}"
        )
    box = [range(start, start + length) for start, length in zip(starts, subsizes, strict=True)]
    layout, total = part_of_array(of.layout, sizes, box, order)
    params = {"sizes": sizes, "subsizes": subsizes, "starts": starts, "order": order}
    counts = (*sizes, *subsizes, *starts)
    return _derived(of, layout, COMBINER_SUBARRAY, total, params, counts, (len(sizes), order))


def darray(
    of: Construction,
    size: int,
    rank: int,
    gsizes: Numbers,
    distribs: Numbers,
    dargs: Numbers,
    psizes: Numbers,
    order: int,
) -> Construction:
    """`Create_darray`.

    Parameters
    ----------
    of
        Construction of the element type.
    size, rank
        Number of processes, and the process whose part of the array is described.
    gsizes
        Lengths of the global array, in elements.
    distribs, dargs, psizes
        Kind of distribution, its argument and the number of processes, one per dimension.
    order
        MPI.ORDER_C or MPI.ORDER_FORTRAN.

    Raises
    ------
    MPIException
        ERR_RANK: the rank is not in 0..size - 1. ERR_ARG: the grid does not have `size`
        processes, or a distribution does not fit.
    """
    if not 0 <= rank < size:
        raise MPIException(ERR_RANK, f"rank {rank} is outside 0..{size - 1}")
    indices = indices_of_rank(size, rank, gsizes, distribs, dargs, psizes)
    layout, total = part_of_array(of.layout, gsizes, indices, order)
    params = {
        "size": size,
        "rank": rank,
        "gsizes": gsizes,
        "distribs": distribs,
        "dargs": dargs,
        "psizes": psizes,
        "order": order,
    }
    more = (size, rank, len(gsizes), *distribs, *dargs, *psizes, order)
    return _derived(of, layout, COMBINER_DARRAY, total, params, gsizes, more)


def resized(of: Construction, lb: int, extent: int) -> Construction:
    """`Create_resized`.

    Parameters
    ----------
    of
        Construction of the element type.
    lb, extent
        New lower bound and extent, in bytes.
    """
    layout = of.layout.bounded(lb, lb + extent)
    return _derived(of, layout, COMBINER_RESIZED, 1, {"lb": lb, "extent": extent}, (lb, extent))


def _check_count(count: int) -> None:
    """Raise ERR_COUNT for a negative count."""
    if count < 0:
        raise MPIException(ERR_COUNT, f"a count of {count} is negative")


def _check_lengths(lengths: Numbers) -> None:
    """Raise ERR_COUNT if a block has a negative length."""
    if min(lengths, default=0) < 0:
        raise MPIException(ERR_COUNT, f"a block of {min(lengths)} elements")
