"""Scan and exscan: what the ranks up to me, or below me, make together (MPI 4.1, section 6.11)."""

from __future__ import annotations

from serverless_mpi.collectives.steps import (
    Algorithm,
    Blob,
    Combine,
    Recv,
    Send,
    fold,
    parts,
    whole,
)


def scan(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """At most ceil(log2 P) rounds, recursive doubling; ceil(log2 P) messages of n bytes per rank at most."""
    below, mine = yield from _prefix(rank, size, data, combine)
    return mine if below is None else combine(below, mine)


def scan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """1 round; each rank but the last sends 1 message of n bytes that all higher ranks read."""
    below = yield from exscan_fan_out(rank, size, data, combine)
    return whole(data) if below is None else combine(below, whole(data))


def exscan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """The same without one's own; None on rank 0."""
    steps: list[Send | Recv] = [Recv(source) for source in range(rank)]
    if rank < size - 1:
        steps.append(Send(tuple(range(rank + 1, size)), parts(data)))
    got = (yield steps) if steps else []
    return fold(got[:rank], combine) if rank else None


def exscan(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """The same without one's own; None on rank 0."""
    below, _ = yield from _prefix(rank, size, data, combine)
    return below


def _prefix(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """(everything below this rank or None, this rank's own)."""
    mine = whole(data)
    total = mine  # of ranks rank - distance + 1 .. rank
    below: memoryview | None = None
    distance, slot = 1, 0
    while distance < size:
        steps: list[Send | Recv] = []
        if rank + distance < size:
            steps.append(Send((rank + distance,), (total,), slot))
        if rank >= distance:
            steps.append(Recv(rank - distance, slot))
        got = (yield steps)[-1] if steps else None
        if got is not None:
            below = got if below is None else combine(got, below)
            total = combine(got, total)
        distance, slot = 2 * distance, slot + 1
    return below, mine
