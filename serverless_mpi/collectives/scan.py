"""Scan and exscan: the operands of the ranks up to this one, or below it, combined.

References
----------
MPI 4.1, section 6.11.
"""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm, fanout
from serverless_mpi.collectives.cost import Tally, log2_rounds
from serverless_mpi.collectives.steps import Blob, Combine, Recv, Send, Steps, fold, parts, whole


def _doubling_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        work = t.put(t.n) + t.get(t.n, 2 * t.n)
        t.step(t.n, work)
        t.all(work * (t.size - (1 << level)))


@algorithm("scan", cost=_doubling_cost)
def scan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Combine the operands of ranks 0 to this one by recursive doubling.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands of ranks 0 to this one, combined.

    Notes
    -----
    At most ceil(log2 P) rounds and as many messages of n bytes per rank.
    """
    below, own = yield from _prefix(rank, size, data, combine)
    return own if below is None else combine(below, own)


def _fan_out_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n, 1, others) + t.get(t.n, t.n) * others)
    t.all(t.put(t.n, others, t.size * others // 2) + t.get(t.n, t.n) * (t.size * others // 2))


@algorithm("scan", cost=_fan_out_cost, condition=fanout)
def scan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Send the own operand to all higher ranks; each folds from rank 0 up to its own.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands of ranks 0 to this one, combined.

    Notes
    -----
    1 round; each rank except the last sends 1 message of n bytes, which all higher ranks read.
    """
    below = yield from exscan_fan_out(rank, size, data, combine)
    return whole(data) if below is None else combine(below, whole(data))


@algorithm("exscan", cost=_doubling_cost)
def exscan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Combine the operands of the ranks below this one by recursive doubling; None on rank 0.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        The operands of the ranks below this one, combined; None on rank 0.

    Notes
    -----
    At most ceil(log2 P) rounds and as many messages of n bytes per rank.
    """
    below, _ = yield from _prefix(rank, size, data, combine)
    return below


@algorithm("exscan", cost=_fan_out_cost, condition=fanout)
def exscan_fan_out(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Send the own operand to all higher ranks; each folds what it receives; None on rank 0.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        The operands of the ranks below this one, combined; None on rank 0.

    Notes
    -----
    1 round; each rank except the last sends 1 message of n bytes, which all higher ranks read.
    """
    steps: list[Send | Recv] = [Recv(source) for source in range(rank)]
    if rank < size - 1:
        steps.append(Send(tuple(range(rank + 1, size)), parts(data)))
    received = (yield steps) if steps else []
    return fold(received[:rank], combine) if rank else None


def _prefix(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Return the combined operands of all lower ranks (None on rank 0), and the own operand."""
    own = whole(data)
    total = own  # of ranks rank - distance + 1 .. rank
    below: memoryview | None = None
    distance, slot = 1, 0
    while distance < size:
        steps: list[Send | Recv] = []
        if rank + distance < size:
            steps.append(Send((rank + distance,), (total,), slot))
        if rank >= distance:
            steps.append(Recv(rank - distance, slot))
        received = (yield steps)[-1] if steps else None
        if received is not None:
            below = received if below is None else combine(received, below)
            total = combine(received, total)
        distance, slot = 2 * distance, slot + 1
    return below, own
