"""Parts of arrays as layouts: boxes, and the part of a distributed array that one process has.

A part is described by the indices along each dimension. Where those are ranges (boxes, block and
cyclic distributions) the layout is regular; otherwise its index is computed at first use.

References
----------
MPI 4.1, sections 5.1.3 (subarrays) and 5.1.4 (distributed arrays).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from serverless_mpi.api.layout import Block, Layout, Strides
from serverless_mpi.errors import ERR_ARG, MPIException

ORDER_C = 56
ORDER_FORTRAN = ORDER_F = 57
DISTRIBUTE_BLOCK = 121
DISTRIBUTE_CYCLIC = 122
DISTRIBUTE_NONE = 123
DISTRIBUTE_DFLT_DARG = -49767


def part_of_array(
    of: Layout, sizes: Sequence[int], indices: Sequence[Any], order: int
) -> tuple[Layout, int]:
    """Return the layout of a part of an array, with the bounds of the whole array.

    Parameters
    ----------
    of
        Layout of an element of the array.
    sizes
        Shape of the array.
    indices
        For each dimension the ascending indices of the part: a range, or an array of integers.
    order
        MPI.ORDER_C or MPI.ORDER_FORTRAN.

    Returns
    -------
    tuple
        The layout, and the number of elements in the part.

    Raises
    ------
    MPIException
        ERR_ARG: another order.
    """
    if order not in (ORDER_C, ORDER_FORTRAN):
        raise MPIException(ERR_ARG, f"order {order} is neither ORDER_C nor ORDER_FORTRAN")
    slowest_first = list(zip(sizes, indices, strict=True))
    if order == ORDER_FORTRAN:
        slowest_first.reverse()
    extent, step = of.extent, 1
    steps: list[int] = []  # elements from one index to the next, slowest dimension first
    for length, _ in reversed(slowest_first):
        steps.insert(0, step)
        step *= length
    along = [chosen for _, chosen in slowest_first]
    total = prod(map(len, along))
    ends = [0, 0]
    if total:
        for chosen, distance in zip(along, steps, strict=True):
            ends[0] += int(chosen[0]) * distance
            ends[1] += int(chosen[-1]) * distance

    def blocks() -> list[Block]:
        at = np.zeros(1, np.int64)
        for chosen, distance in zip(along, steps, strict=True):
            at = (at[:, None] + np.asarray(chosen, np.int64)[None, :] * distance).reshape(-1)
        return [(at * extent, np.ones(len(at), np.int64), of)]

    extremes = [(end * extent, min(total, 1), of) for end in ends]
    strides = _strides(of, along, steps, ends[0]) if total else None
    made = Layout.of_blocks(extremes, total * of.size, blocks, strides)
    made.lb, made.ub = 0, prod(sizes) * extent
    return made, total


def _strides(of: Layout, along: Sequence[Any], steps: Sequence[int], first: int) -> Strides | None:
    """The part as strides, if the indices along each dimension are a range."""
    if not all(isinstance(chosen, range) for chosen in along):
        return None
    dimensions = tuple(
        (len(chosen), chosen.step * distance * of.extent)
        for chosen, distance in zip(along, steps, strict=True)
    )
    return of.strided(first * of.extent, dimensions)


def indices_of_rank(
    size: int,
    rank: int,
    sizes: Sequence[int],
    distributions: Sequence[int],
    arguments: Sequence[int],
    grid: Sequence[int],
) -> list[Any]:
    """Return the indices along each dimension that one rank of a row-major grid of processes has.

    Parameters
    ----------
    size, rank
        Number of processes, and the rank in question.
    sizes
        Shape of the array.
    distributions, arguments
        Distribution of each dimension (DISTRIBUTE_BLOCK, ...) and its argument.
    grid
        Shape of the grid of processes.

    Raises
    ------
    MPIException
        ERR_ARG: the grid does not have `size` processes, or a distribution does not fit.
    """
    if prod(grid) != size or min(grid, default=1) < 1 or min(sizes, default=1) < 1:
        raise MPIException(
            ERR_ARG,
            f"a grid of {list(grid)} processes for {size} ranks and an array of {list(sizes)}",
        )
    coords: list[int] = []
    for processes in reversed(grid):
        rank, coordinate = divmod(rank, processes)
        coords.insert(0, coordinate)
    return [
        _owned(*dimension)
        for dimension in zip(sizes, distributions, arguments, grid, coords, strict=True)
    ]


def _owned(size: int, distribution: int, argument: int, processes: int, coordinate: int) -> Any:
    """The indices along one dimension that the process of a coordinate has."""
    default = argument == DISTRIBUTE_DFLT_DARG
    if distribution == DISTRIBUTE_NONE:
        if processes != 1:
            raise MPIException(
                ERR_ARG, f"a dimension that is not distributed has 1 process, not {processes}"
            )
        return range(size)
    if distribution == DISTRIBUTE_BLOCK:
        block = -(-size // processes) if default else argument
        if block < 1 or block * processes < size:
            raise MPIException(ERR_ARG, f"{processes} blocks of {block} do not hold {size}")
        return range(min(coordinate * block, size), min((coordinate + 1) * block, size))
    if distribution == DISTRIBUTE_CYCLIC:
        block = 1 if default else argument
        if block < 1:
            raise MPIException(ERR_ARG, f"a cyclic distribution in blocks of {block}")
        if block == 1:
            return range(min(coordinate, size), size, processes)
        every = np.arange(size)
        return every[every // block % processes == coordinate]
    raise MPIException(ERR_ARG, f"distribution {distribution} is not known")


__all__ = [name for name in list(globals()) if name.startswith(("DISTRIBUTE_", "ORDER_"))]
