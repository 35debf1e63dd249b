"""Barrier: nobody leaves before everybody has come (MPI 4.1, section 6.3)."""

from __future__ import annotations

from serverless_mpi.collectives.steps import NOTHING, Algorithm, Recv, Send


def dissemination(rank: int, size: int) -> Algorithm:
    """ceil(log2 P) rounds; as many messages of 0 bytes per rank."""
    distance, slot = 1, 0
    while distance < size:
        yield [
            Send(((rank + distance) % size,), (NOTHING,), slot),
            Recv((rank - distance) % size, slot),
        ]
        distance, slot = 2 * distance, slot + 1


def fan(rank: int, size: int) -> Algorithm:
    """2 rounds: P-1 messages to rank 0, then one to everybody."""
    if rank:
        yield [Send((0,), (NOTHING,)), Recv(0)]
    elif size > 1:
        yield [Recv(source) for source in range(1, size)]
        yield Send(tuple(range(1, size)), (NOTHING,))
