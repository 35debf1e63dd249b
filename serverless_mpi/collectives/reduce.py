"""Reductions to one, to all, and scattered (MPI 4.1, sections 6.9 and 6.10).

`combine(a, b)` gets operands of adjacent groups of ranks, the lower first, so
an operation need only be associative.  All ranks fold in the same shape, so an
allreduce has the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.collectives.alltoall import packed
from serverless_mpi.collectives.steps import Algorithm, Blob, Combine, Recv, Send, parts, whole


def reduce_flat(rank: int, size: int, root: int, data: Blob, combine: Combine) -> Algorithm:
    """1 round; each rank but the root sends 1 message of n bytes; the root folds them from rank 0 up."""
    if rank != root:
        yield Send((root,), parts(data))
        return None
    others = [source for source in range(size) if source != root]
    blobs = (yield [Recv(source) for source in others]) if others else []
    blobs.insert(root, whole(data))
    return _fold(blobs, combine)


def reduce_binomial(rank: int, size: int, root: int, data: Blob, combine: Combine) -> Algorithm:
    """At most ceil(log2 P) rounds (one more where root is not 0); each rank but rank 0 sends 1 message of n bytes."""
    total = whole(data)
    distance = 1
    while distance < size:
        if rank & distance:
            yield Send((rank - distance,), (total,))
            break
        if rank + distance < size:
            total = combine(total, (yield Recv(rank + distance)))
        distance *= 2
    if root == 0:
        return total if rank == 0 else None
    if rank == 0:
        yield Send((root,), (total,), 1)
    return (yield Recv(0, 1)) if rank == root else None


def allreduce_fan(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """2 rounds; P-1 messages of n bytes to rank 0, and 1 from it that P-1 ranks read."""
    if size == 1:
        return whole(data)
    if rank:
        _, total = yield [Send((0,), parts(data)), Recv(0)]
        return total
    blobs = yield [Recv(source) for source in range(1, size)]
    total = _fold([whole(data), *blobs], combine)
    yield Send(tuple(range(1, size)), (total,))
    return total


def allreduce_doubling(rank: int, size: int, data: Blob, combine: Combine) -> Algorithm:
    """At most floor(log2 P) rounds, 2 more where P is no power of two; as many messages of n bytes per rank."""
    power = 1 << (size.bit_length() - 1)
    extra = size - power  # the first 2 * extra ranks are folded to pairs
    total = whole(data)
    if rank < 2 * extra:
        if rank % 2:
            _, total = yield [Send((rank - 1,), (total,)), Recv(rank - 1, 1)]
            return total
        total = combine(total, (yield Recv(rank + 1)))
        place = rank // 2
    else:
        place = rank - extra
    distance, slot = 1, 2
    while distance < power:
        other = place ^ distance
        partner = 2 * other if other < extra else other + extra
        _, got = yield [Send((partner,), (total,), slot), Recv(partner, slot)]
        total = combine(total, got) if place < other else combine(got, total)
        distance, slot = 2 * distance, slot + 1
    if rank < 2 * extra:
        yield Send((rank + 1,), (total,), 1)
    return total


def reduce_scatter(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Algorithm:
    """1 round; each rank sends P-1 messages, one a destination, and folds what it gets from rank 0 up."""
    mine = whole(blobs[rank])
    order = [(rank + turn) % size for turn in range(1, size)]
    if not order:
        return mine
    got = yield [
        *(Send((other,), parts(blobs[other]), other) for other in order),
        *(Recv(other, rank) for other in order),
    ]
    column: list[memoryview] = [mine] * size
    for other, blob in zip(order, got[size - 1 :], strict=True):
        column[other] = blob
    return _fold(column, combine)


def reduce_scatter_packed(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Algorithm:
    """1 round; each rank deals its P-1 blobs, as in alltoall, and folds what it gets from rank 0 up."""
    return _fold((yield from packed(rank, size, blobs)), combine)


def _fold(blobs: Sequence[memoryview], combine: Combine) -> memoryview:
    total = blobs[0]
    for blob in blobs[1:]:
        total = combine(total, blob)
    return total
