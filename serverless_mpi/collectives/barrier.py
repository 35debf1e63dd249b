"""Barrier: no rank leaves before every rank has entered.

References
----------
MPI 4.1, section 6.3.
"""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.cost import Tally, log2_rounds
from serverless_mpi.collectives.steps import NOTHING, Recv, Send, Steps


def _fan_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(0, t.put(0) + t.get(0) * others)
    t.step(0, t.put(0, 1, others) + t.get(0))
    t.all((t.put(0) + t.get(0) * 2) * others + t.put(0, 1, others))


@algorithm("barrier", cost=_fan_cost)
def fan(rank: int, size: int) -> Steps:
    """Report to rank 0, which releases all ranks.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.

    Notes
    -----
    2 rounds; P-1 messages of 0 bytes to rank 0, then one that P-1 ranks read.
    """
    if rank:
        yield [Send((0,), (NOTHING,)), Recv(0)]
    elif size > 1:
        yield [Recv(source) for source in range(1, size)]
        yield Send(tuple(range(1, size)), (NOTHING,))


def _dissemination_cost(t: Tally) -> None:
    work = t.put(0) + t.get(0)
    t.step(0, work, log2_rounds(t.size))
    t.all(work * (t.size * log2_rounds(t.size)))


@algorithm("barrier", cost=_dissemination_cost)
def dissemination(rank: int, size: int) -> Steps:
    """Notify the rank at doubling distances.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.

    Notes
    -----
    ceil(log2 P) rounds; as many messages of 0 bytes per rank.

    References
    ----------
    D. Hensgen, R. Finkel, U. Manber, "Two Algorithms for Barrier Synchronization", 1988.
    """
    distance, slot = 1, 0
    while distance < size:
        yield [
            Send(((rank + distance) % size,), (NOTHING,), slot),
            Recv((rank - distance) % size, slot),
        ]
        distance, slot = 2 * distance, slot + 1
