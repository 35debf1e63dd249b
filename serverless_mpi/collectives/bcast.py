"""Broadcast: the root's blob to every rank (MPI 4.1, section 6.4)."""

from __future__ import annotations

from serverless_mpi.collectives.steps import Algorithm, Blob, Recv, Send, parts


def fan_out(rank: int, size: int, root: int, data: Blob | None) -> Algorithm:
    """1 round, 1 message of n bytes that P-1 ranks read."""
    if rank == root:
        assert data is not None
        if size > 1:
            yield Send(tuple(other for other in range(size) if other != root), parts(data))
        return data
    return (yield Recv(root))


def binomial(rank: int, size: int, root: int, data: Blob | None) -> Algorithm:
    """At most ceil(log2 P) rounds, P-1 messages of n bytes in all, at most ceil(log2 P) from one rank."""
    relative = (rank - root) % size
    distance = 1
    while distance < size and not relative & distance:
        distance *= 2
    if relative:
        data = yield Recv((rank - distance) % size, rank)
    assert data is not None
    children = []
    distance //= 2
    while distance:
        if relative + distance < size:
            children.append((rank + distance) % size)
        distance //= 2
    for child in children:  # the child with the most descendants first
        yield Send((child,), parts(data), child)
    return data
