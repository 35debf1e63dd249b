"""THE table: operation -> [(condition, algorithm)]; of the rows whose condition holds, the best by its formula in cost.py.

The best is the cheapest of the fastest, and the first of several as good or
where no formula is known: simple ones stand before others.

Conditions see only facts that every rank of a call shares: two ranks must never choose differently.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from serverless_mpi.collectives import (
    allgather,
    alltoall,
    barrier,
    bcast,
    gather,
    inter,
    neighbor,
    reduce,
    scan,
)
from serverless_mpi.collectives.cost import FORMULAS, Facts, bcast_tree4, cost
from serverless_mpi.collectives.steps import Algorithm

__all__ = ["TABLE", "Facts", "name_of", "select"]

Condition = Callable[[Facts], bool]
Choice = Callable[..., Algorithm]


def _always(_: Facts) -> bool:
    return True


def _fanout(facts: Facts) -> bool:
    return facts.figures.fanout


def _ranges(facts: Facts) -> bool:
    """One put can carry a part for each rank."""
    return facts.figures.ranges


def _known(facts: Facts) -> bool:
    """Every rank knows the blobs' length, as of buffers: vectors, which can be cut, too."""
    return facts.nbytes is not None


def _few(facts: Facts) -> bool:
    """So few ranks that one of them can do the work of all in the time of a tree's rounds."""
    return facts.size <= 4


TABLE: dict[str, list[tuple[Condition, Choice]]] = {
    "barrier": [(_always, barrier.fan), (_always, barrier.dissemination)],
    "bcast": [(_always, bcast.fan_out), (_always, bcast.binomial), (_always, bcast_tree4)],
    "gather": [(_always, gather.gather_flat), (_always, gather.gather_binomial)],
    "scatter": [
        (_ranges, gather.scatter_packed),
        (_always, gather.scatter_flat),
        (_always, gather.scatter_binomial),
    ],
    "allgather": [
        (_always, allgather.fan_out),
        (_always, allgather.bruck),
        (_always, allgather.ring),
    ],
    "alltoall": [
        (_ranges, alltoall.packed),
        (_always, alltoall.pairwise),
        (_known, alltoall.bruck),
    ],
    "reduce": [
        (_always, reduce.reduce_flat),
        (_always, reduce.reduce_binomial),
        (_known, reduce.reduce_shares),
    ],
    "allreduce": [
        (_always, reduce.allreduce_fan),
        (_always, reduce.allreduce_doubling),
        (_known, reduce.allreduce_shares),
        (_known, reduce.allreduce_rabenseifner),
    ],
    "reduce_scatter": [(_ranges, reduce.reduce_scatter_packed), (_always, reduce.reduce_scatter)],
    "scan": [(_always, scan.scan), (_fanout, scan.scan_fan_out)],
    "exscan": [(_always, scan.exscan), (_fanout, scan.exscan_fan_out)],
    "neighbor_allgather": [(_always, neighbor.allgather_fan)],
    "neighbor_alltoall": [(_always, neighbor.alltoall_direct)],
    # between two groups; size is that of both together
    "inter_barrier": [(_always, inter.barrier_leaders)],
    "inter_bcast": [
        (_fanout, inter.bcast_fan),
        (_few, inter.bcast_fan),
        (_always, inter.bcast_leader),
    ],
    "inter_gather": [(_always, inter.gather_flat)],
    "inter_scatter": [(_always, inter.scatter_packed)],
    "inter_allgather": [(_always, inter.allgather_fan)],
    "inter_alltoall": [(_always, inter.alltoall_packed)],
    "inter_reduce": [(_always, inter.reduce_flat)],
    "inter_allreduce": [
        (_fanout, inter.allreduce_fan),
        (_few, inter.allreduce_fan),
        (_always, inter.allreduce_leaders),
    ],
    "inter_reduce_scatter": [(_always, inter.reduce_scatter_leaders)],
}

AS_FAST = 1.1  # seconds within this of the least count as equal: formulas are no better than that


@lru_cache(4096)
def select(operation: str, facts: Facts) -> Callable[..., Any]:
    """The algorithm for a call; the same on every rank."""
    rows = [algorithm for condition, algorithm in TABLE[operation] if condition(facts)]
    if len(rows) == 1 or rows[0] not in FORMULAS:
        return rows[0]
    costs = [cost(algorithm, facts) for algorithm in rows]
    fastest = min(one.seconds for one in costs)
    able = [place for place, one in enumerate(costs) if one.seconds <= AS_FAST * fastest]
    return rows[min(able, key=lambda place: (costs[place].usd, place))]


def name_of(algorithm: Choice) -> str:
    """An algorithm's name, and its arguments if they are fixed."""
    fixed = getattr(algorithm, "keywords", {})
    name: str = getattr(algorithm, "func", algorithm).__name__
    return name + "".join(f"_{value}" for value in fixed.values())
