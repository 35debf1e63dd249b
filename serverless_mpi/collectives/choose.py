"""THE table: operation -> [(condition, algorithm)], the first row whose condition holds.

Conditions see only facts that every rank of a call shares: two ranks must never choose differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serverless_mpi.channels.base import Figures
from serverless_mpi.collectives import allgather, alltoall, barrier, bcast, gather, reduce, scan
from serverless_mpi.collectives.steps import Algorithm


@dataclass(frozen=True, slots=True)
class Facts:
    """What all ranks know of a call.

    size: ranks; nbytes: of one blob, None where ranks may differ (objects, vectors);
    figures: the channel's.
    """

    size: int
    nbytes: int | None
    figures: Figures

    @property
    def round_bound(self) -> bool:
        """Whether a message costs about a round trip whatever its length (unknown lengths count as short)."""
        return (self.nbytes or 0) <= self.figures.latency_s * self.figures.bandwidth_Bps

    @property
    def fanout(self) -> bool:
        """Whether one put reaches every rank."""
        return self.figures.fanout


Condition = Callable[[Facts], bool]
Choice = Callable[..., Algorithm]


def _always(_: Facts) -> bool:
    return True


def _fanout(facts: Facts) -> bool:
    return facts.fanout


def _ranges(facts: Facts) -> bool:
    """One put can carry a part for each rank."""
    return facts.figures.ranges


def _few(facts: Facts) -> bool:
    """So few ranks that one of them can do the work of all in the time of a tree's rounds."""
    return facts.size <= 4


def _paid(facts: Facts) -> bool:
    """Requests cost money and a round trip: fewest rounds, then fewest requests, win over fewest bytes at one rank."""
    return facts.figures.put_usd > 0


TABLE: dict[str, list[tuple[Condition, Choice]]] = {
    "barrier": [(_paid, barrier.fan), (_always, barrier.dissemination)],
    "bcast": [(_fanout, bcast.fan_out), (_few, bcast.fan_out), (_always, bcast.binomial)],
    "gather": [(_paid, gather.gather_flat), (_few, gather.gather_flat), (_always, gather.gather_binomial)],
    "scatter": [(_ranges, gather.scatter_packed), (_paid, gather.scatter_flat), (_few, gather.scatter_flat), (_always, gather.scatter_binomial)],
    "allgather": [
        (_fanout, allgather.fan_out),
        (_few, allgather.fan_out),
        (lambda facts: facts.round_bound, allgather.bruck),
        (_always, allgather.ring),
    ],
    "alltoall": [
        (_ranges, alltoall.packed),
        (_paid, alltoall.pairwise),
        (lambda facts: facts.nbytes is not None and facts.size >= 8 and facts.round_bound, alltoall.bruck),
        (_always, alltoall.pairwise),
    ],
    "reduce": [(_paid, reduce.reduce_flat), (_few, reduce.reduce_flat), (_always, reduce.reduce_binomial)],
    "allreduce": [(_fanout, reduce.allreduce_fan), (_always, reduce.allreduce_doubling)],
    "reduce_scatter": [(_ranges, reduce.reduce_scatter_packed), (_always, reduce.reduce_scatter)],
    "scan": [(_always, scan.scan)],
    "exscan": [(_always, scan.exscan)],
}


def select(operation: str, facts: Facts) -> Callable[..., Any]:
    """The algorithm for a call; the same on every rank."""
    return next(algorithm for condition, algorithm in TABLE[operation] if condition(facts))
