"""Collectives between two groups: what one group gives, the other gets (MPI 4.1, section 6.2.3 and those of each call).

The ranks of both groups are numbered together, the two groups one after the
other; `groups` is (numbers of my group, numbers of the other one), `rank` my
place in mine.  `root` is a number too, or None for a rank that has no part.
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.collectives import bcast, gather, reduce
from serverless_mpi.collectives.choose import algorithm, fanout_or_few_ranks
from serverless_mpi.collectives.steps import (
    NOTHING,
    Blob,
    Combine,
    Recv,
    Scatter,
    Send,
    Steps,
    fold,
    parts,
    whole,
    within,
)

Groups = tuple[range, range]

# slots of the parts of one call; an algorithm of one group uses fewer than 2**14
FIRST, LEADERS, LAST = 0, 1 << 14, 1 << 15


@algorithm("inter_barrier")
def barrier_leaders(rank: int, groups: Groups) -> Steps:
    """3 rounds: to the leader of one's group, between the leaders, and back; 2 (P-2) + 2 messages of 0 bytes."""
    mine, _ = groups
    yield from within(mine, gather.gather_flat(rank, len(mine), 0, NOTHING), FIRST)
    yield from _leaders(rank, groups, NOTHING)
    yield from within(mine, bcast.fan_out(rank, len(mine), 0, NOTHING if rank == 0 else None), LAST)


def _leaders(rank: int, groups: Groups, data: Blob | None) -> Steps:
    """What the other group's leader has, on the leader of mine; None elsewhere."""
    if rank:
        return None
    assert data is not None
    leader = groups[1][0]
    _, got = yield [Send((leader,), parts(data), LEADERS), Recv(leader, LEADERS)]
    return got


@algorithm("inter_bcast", condition=fanout_or_few_ranks)
def bcast_fan(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """1 round; the root sends 1 message of n bytes that every rank of the other group reads."""
    mine, theirs = groups
    if root is None:
        return None
    if root != mine[rank]:
        return (yield Recv(root))
    assert data is not None
    yield Send(tuple(theirs), parts(data))
    return data


@algorithm("inter_bcast")
def bcast_leader(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """At most 1 + ceil(log2 Q) rounds for Q receivers: to their leader, and down a binomial tree; Q messages of n bytes."""
    mine, theirs = groups
    if root is None:
        return None
    if root == mine[rank]:
        assert data is not None
        yield Send((theirs[0],), parts(data), LEADERS)
        return data
    first = (yield Recv(root, LEADERS)) if rank == 0 else None
    return (yield from within(mine, bcast.binomial(rank, len(mine), 0, first), LAST))


@algorithm("inter_gather")
def gather_flat(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """1 round; each rank of the other group sends 1 message of its n bytes to the root."""
    mine, theirs = groups
    if root is None:
        return None
    if root == mine[rank]:
        return (yield [Recv(source) for source in theirs])
    assert data is not None
    yield Send((root,), parts(data))
    return None


@algorithm("inter_scatter")
def scatter_packed(
    rank: int, groups: Groups, root: int | None, blobs: Sequence[Blob] | None
) -> Steps:
    """1 round; the root deals n bytes to each rank of the other group."""
    mine, theirs = groups
    if root is None:
        return None
    if root != mine[rank]:
        return (yield Recv(root, scattered=True))
    assert blobs is not None
    yield Scatter(tuple((dest, parts(blob)) for dest, blob in zip(theirs, blobs, strict=True)))
    return None


@algorithm("inter_allgather")
def allgather_fan(rank: int, groups: Groups, data: Blob) -> Steps:
    """1 round; each rank sends 1 message of its n bytes that every rank of the other group reads."""
    _, theirs = groups
    return (yield [Send(tuple(theirs), parts(data)), *(Recv(source) for source in theirs)])[1:]


@algorithm("inter_alltoall")
def alltoall_packed(rank: int, groups: Groups, blobs: Sequence[Blob]) -> Steps:
    """1 round; each rank deals n bytes to each rank of the other group."""
    _, theirs = groups
    deal = Scatter(tuple((dest, parts(blob)) for dest, blob in zip(theirs, blobs, strict=True)))
    return (yield [deal, *(Recv(source, scattered=True) for source in theirs)])[1:]


@algorithm("inter_reduce")
def reduce_flat(
    rank: int, groups: Groups, root: int | None, data: Blob | None, combine: Combine
) -> Steps:
    """1 round; each rank of the other group sends n bytes to the root, which folds them from their rank 0 up."""
    blobs = yield from gather_flat(rank, groups, root, data)
    return None if blobs is None else fold(blobs, combine)


@algorithm("inter_allreduce", condition=fanout_or_few_ranks)
def allreduce_fan(rank: int, groups: Groups, data: Blob, combine: Combine) -> Steps:
    """1 round; each rank sends 1 message of n bytes that every rank of the other group reads, and folds what it gets."""
    return fold((yield from allgather_fan(rank, groups, data)), combine)


@algorithm("inter_allreduce")
def allreduce_leaders(rank: int, groups: Groups, data: Blob, combine: Combine) -> Steps:
    """At most 1 + 2 ceil(log2 P) rounds: to the leader, between the leaders, and back; 2 P - 2 messages of n bytes."""
    mine, _ = groups
    total = yield from within(
        mine, reduce.reduce_binomial(rank, len(mine), 0, data, combine), FIRST
    )
    got = yield from _leaders(rank, groups, total)
    return (yield from within(mine, bcast.binomial(rank, len(mine), 0, got), LAST))


@algorithm("inter_reduce_scatter")
def reduce_scatter_leaders(
    rank: int, groups: Groups, blobs: Sequence[Blob], combine: Combine
) -> Steps:
    """3 rounds: folded at the leader, exchanged by the leaders, dealt out in pieces as long as `blobs` are."""
    mine, _ = groups
    data = [piece for blob in blobs for piece in parts(blob)]
    total = yield from within(mine, reduce.reduce_flat(rank, len(mine), 0, data, combine), FIRST)
    got = yield from _leaders(rank, groups, total)
    pieces = None
    if got is not None:
        pieces, start = [], 0
        for blob in blobs:
            length = whole(blob).nbytes
            pieces.append(got[start : start + length])
            start += length
    return (yield from within(mine, gather.scatter_packed(rank, len(mine), 0, pieces), LAST))
