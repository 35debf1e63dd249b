"""Parts of arrays as layouts: boxes, and what a process of a grid has of an array dealt out to it (MPI 4.1, sections 5.1.3 and 5.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from serverless_mpi.api.layout import Block, Layout
from serverless_mpi.errors import ERR_ARG, MPIException

ORDER_C = 56
ORDER_FORTRAN = ORDER_F = 57
DISTRIBUTE_BLOCK = 121
DISTRIBUTE_CYCLIC = 122
DISTRIBUTE_NONE = 123
DISTRIBUTE_DFLT_DARG = -49767


def part_of_array(
    of: Layout, sizes: Sequence[int], owned: Sequence[Any], order: int
) -> tuple[Layout, int]:
    """(those elements of an array whose index along dimension d is in owned[d], ascending; their number); the array's bounds."""
    if order not in (ORDER_C, ORDER_FORTRAN):
        raise MPIException(ERR_ARG, f"order {order} is neither ORDER_C nor ORDER_FORTRAN")
    fastest_last = list(zip(sizes, owned, strict=True))
    if order == ORDER_FORTRAN:
        fastest_last.reverse()
    steps: list[int] = []
    for length, _ in reversed(fastest_last):
        steps.insert(0, length * steps[0] if steps else length)
    strides = [*steps[1:], 1]
    total = prod(len(indices) for _, indices in fastest_last)
    ends = [0, 0]
    if total:
        for (_, indices), stride in zip(fastest_last, strides, strict=False):
            ends[0] += int(indices[0]) * stride
            ends[1] += int(indices[-1]) * stride
    extent = of.extent

    def blocks() -> list[Block]:
        at = np.zeros(1, np.int64)
        for (_, indices), stride in zip(fastest_last, strides, strict=False):
            at = (at[:, None] + np.asarray(indices, np.int64)[None, :] * stride).reshape(-1)
        return [(at * extent, np.ones(len(at), np.int64), of)]

    made = Layout.of_blocks(
        [(end * extent, min(total, 1), of) for end in ends], total * of.size, blocks
    )
    made.lb, made.ub = 0, prod(sizes) * extent
    return made, total


def indices_of_rank(
    size: int,
    rank: int,
    sizes: Sequence[int],
    distributions: Sequence[int],
    arguments: Sequence[int],
    grid: Sequence[int],
) -> list[Any]:
    """The indices along each dimension that rank `rank` has of an array of shape `sizes`, of a row-major grid of processes."""
    if prod(grid) != size or min(grid, default=1) < 1 or min(sizes, default=1) < 1:
        raise MPIException(
            ERR_ARG,
            f"a grid of {list(grid)} processes for {size} ranks and an array of {list(sizes)}",
        )
    coords: list[int] = []
    for processes in reversed(grid):
        rank, mine = divmod(rank, processes)
        coords.insert(0, mine)
    return [
        _owned(*dimension)
        for dimension in zip(sizes, distributions, arguments, grid, coords, strict=True)
    ]


def _owned(size: int, distribution: int, argument: int, processes: int, mine: int) -> Any:
    """The indices along one dimension that process `mine` of `processes` has."""
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
        return range(min(mine * block, size), min((mine + 1) * block, size))
    if distribution == DISTRIBUTE_CYCLIC:
        block = 1 if default else argument
        if block < 1:
            raise MPIException(ERR_ARG, f"a cyclic distribution in blocks of {block}")
        every = np.arange(size)
        return every[every // block % processes == mine]
    raise MPIException(ERR_ARG, f"distribution {distribution} is not known")


__all__ = [name for name in list(globals()) if name.startswith(("DISTRIBUTE_", "ORDER_"))]
