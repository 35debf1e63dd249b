"""Scan and exscan: what the ranks up to me, or below me, make together (MPI 4.1, section 6.11)."""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm, fanout
from serverless_mpi.collectives.cost import Tally, log2_rounds
from serverless_mpi.collectives.steps import Blob, Combine, Recv, Send, Steps, fold, parts, whole


def _doubling_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        one = t.put(t.n) + t.get(t.n, 2 * t.n)
        t.step(t.n, one)
        t.all(one * (t.size - (1 << level)))


@algorithm("scan", cost=_doubling_cost)
def scan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """At most ceil(log2 P) rounds, recursive doubling; ceil(log2 P) messages of n bytes per rank at most."""
    below, mine = yield from _prefix(rank, size, data, combine)
    return mine if below is None else combine(below, mine)


def _fan_out_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n, 1, others) + t.get(t.n, t.n) * others)
    t.all(t.put(t.n, others, t.size * others // 2) + t.get(t.n, t.n) * (t.size * others // 2))


@algorithm("scan", cost=_fan_out_cost, condition=fanout)
def scan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """1 round; each rank but the last sends 1 message of n bytes that all higher ranks read."""
    below = yield from exscan_fan_out(rank, size, data, combine)
    return whole(data) if below is None else combine(below, whole(data))


@algorithm("exscan", cost=_doubling_cost)
def exscan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """The same without one's own; None on rank 0."""
    below, _ = yield from _prefix(rank, size, data, combine)
    return below


@algorithm("exscan", cost=_fan_out_cost, condition=fanout)
def exscan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """The same without one's own; None on rank 0."""
    steps: list[Send | Recv] = [Recv(source) for source in range(rank)]
    if rank < size - 1:
        steps.append(Send(tuple(range(rank + 1, size)), parts(data)))
    got = (yield steps) if steps else []
    return fold(got[:rank], combine) if rank else None


def _prefix(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
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
