"""Collectives between two groups: the ranks of one group receive what those of the other give.

The ranks of both groups are numbered together, one group after the other. `groups` is (numbers of
this rank's group, numbers of the other group); `rank` is the rank within its own group. `root` is
such a number as well, or None for a rank that takes no part in a rooted call.

A call may consist of parts that run within one group (`steps.within`). Each part has its own range
of slots (FIRST, LEADERS, LAST); a new part needs a new range.

References
----------
MPI 4.1, section 6.2.3 and the section of each call.
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
    """Report to the leader of the own group; the leaders meet and release their groups.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.

    Notes
    -----
    3 rounds; 2 (P-2) + 2 messages of 0 bytes.
    """
    group, _ = groups
    yield from within(group, gather.gather_flat(rank, len(group), 0, NOTHING), FIRST)
    yield from _leaders(rank, groups, NOTHING)
    yield from within(
        group, bcast.fan_out(rank, len(group), 0, NOTHING if rank == 0 else None), LAST
    )


def _leaders(rank: int, groups: Groups, data: Blob | None) -> Steps:
    """Exchange blobs between the two leaders; return None on other ranks."""
    if rank:
        return None
    assert data is not None
    leader = groups[1][0]
    _, received = yield [Send((leader,), parts(data), LEADERS), Recv(leader, LEADERS)]
    return received


@algorithm("inter_bcast", condition=fanout_or_few_ranks)
def bcast_fan(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """Send the root's blob to all ranks of the other group at once.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    root
        Number of the root; None on the other ranks of its group.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob or None
        The root's blob; None on the other ranks of its group.

    Notes
    -----
    1 round; 1 message of n bytes, which every rank of the other group reads.
    """
    group, remote = groups
    if root is None:
        return None
    if root != group[rank]:
        return (yield Recv(root))
    assert data is not None
    yield Send(tuple(remote), parts(data))
    return data


@algorithm("inter_bcast")
def bcast_leader(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """Send the root's blob to the leader of the other group, and on down a binomial tree.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    root
        Number of the root; None on the other ranks of its group.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob or None
        The root's blob; None on the other ranks of its group.

    Notes
    -----
    At most 1 + ceil(log2 Q) rounds for Q receivers; Q messages of n bytes.
    """
    group, remote = groups
    if root is None:
        return None
    if root == group[rank]:
        assert data is not None
        yield Send((remote[0],), parts(data), LEADERS)
        return data
    first = (yield Recv(root, LEADERS)) if rank == 0 else None
    return (yield from within(group, bcast.binomial(rank, len(group), 0, first), LAST))


@algorithm("inter_gather")
def gather_flat(rank: int, groups: Groups, root: int | None, data: Blob | None) -> Steps:
    """Send every blob of the other group to the root.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    root
        Number of the root; None on the other ranks of its group.
    data
        Blob of this rank, if it is in the other group. Borrowed until the call ends.

    Returns
    -------
    list of memoryview or None
        On the root the blobs of the other group, in the order of its ranks.

    Notes
    -----
    1 round; each rank of the other group sends 1 message of n bytes.
    """
    group, remote = groups
    if root is None:
        return None
    if root == group[rank]:
        return (yield [Recv(source) for source in remote])
    assert data is not None
    yield Send((root,), parts(data))
    return None


@algorithm("inter_scatter")
def scatter_packed(
    rank: int, groups: Groups, root: int | None, blobs: Sequence[Blob] | None
) -> Steps:
    """Put the root's blobs together, so that each rank of the other group takes its range.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    root
        Number of the root; None on the other ranks of its group.
    blobs
        On the root a blob for each rank of the other group. Borrowed until the call ends.

    Returns
    -------
    memoryview or None
        The blob for this rank; None in the root's group.

    Notes
    -----
    1 round; n bytes per receiver in one put, or a message each on a channel without ranges.
    """
    group, remote = groups
    if root is None:
        return None
    if root != group[rank]:
        return (yield Recv(root, scattered=True))
    assert blobs is not None
    yield Scatter(tuple((dest, parts(blob)) for dest, blob in zip(remote, blobs, strict=True)))
    return None


@algorithm("inter_allgather")
def allgather_fan(rank: int, groups: Groups, data: Blob) -> Steps:
    """Send the own blob to all ranks of the other group at once.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blobs of the other group, in the order of its ranks.

    Notes
    -----
    1 round; 1 message of n bytes per rank, which every rank of the other group reads.
    """
    _, remote = groups
    return (yield [Send(tuple(remote), parts(data)), *(Recv(source) for source in remote)])[1:]


@algorithm("inter_alltoall")
def alltoall_packed(rank: int, groups: Groups, blobs: Sequence[Blob]) -> Steps:
    """Put all blobs together, so that each rank of the other group takes its range.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    blobs
        A blob for each rank of the other group. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blobs that the other group has sent to this rank, in the order of its ranks.

    Notes
    -----
    1 round; each rank puts n bytes per rank of the other group.
    """
    _, remote = groups
    scatter = Scatter(tuple((dest, parts(blob)) for dest, blob in zip(remote, blobs, strict=True)))
    return (yield [scatter, *(Recv(source, scattered=True) for source in remote)])[1:]


@algorithm("inter_reduce")
def reduce_flat(
    rank: int, groups: Groups, root: int | None, data: Blob | None, combine: Combine
) -> Steps:
    """Send all operands of the other group to the root, which folds them from their rank 0 up.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    root
        Number of the root; None on the other ranks of its group.
    data
        Operand of this rank, if it is in the other group. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        On the root the operands of the other group, combined.

    Notes
    -----
    1 round; each rank of the other group sends 1 message of n bytes.
    """
    blobs = yield from gather_flat(rank, groups, root, data)
    return None if blobs is None else fold(blobs, combine)


@algorithm("inter_allreduce", condition=fanout_or_few_ranks)
def allreduce_fan(rank: int, groups: Groups, data: Blob, combine: Combine) -> Steps:
    """Send the own operand to all ranks of the other group; each folds what it receives.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands of the other group, combined.

    Notes
    -----
    1 round; 1 message of n bytes per rank, which every rank of the other group reads.
    """
    return fold((yield from allgather_fan(rank, groups, data)), combine)


@algorithm("inter_allreduce")
def allreduce_leaders(rank: int, groups: Groups, data: Blob, combine: Combine) -> Steps:
    """Fold in each group, exchange the totals between the leaders, broadcast in each group.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands of the other group, combined.

    Notes
    -----
    At most 1 + 2 ceil(log2 P) rounds; 2 P - 2 messages of n bytes.
    """
    group, _ = groups
    total = yield from within(
        group, reduce.reduce_binomial(rank, len(group), 0, data, combine), FIRST
    )
    received = yield from _leaders(rank, groups, total)
    return (yield from within(group, bcast.binomial(rank, len(group), 0, received), LAST))


@algorithm("inter_reduce_scatter")
def reduce_scatter_leaders(
    rank: int, groups: Groups, blobs: Sequence[Blob], combine: Combine
) -> Steps:
    """Fold in each group, exchange the totals between the leaders, scatter them in each group.

    The pieces are as long as `blobs` are.

    Parameters
    ----------
    rank, groups
        Rank of the caller in its group, and the numbers of both groups' ranks.
    blobs
        Operand of this rank, cut as the result is. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        This rank's piece of the other group's operands, combined.

    Notes
    -----
    3 rounds; P-2 messages of n bytes, 2 between the leaders, and one scatter in each group.
    """
    group, _ = groups
    data = [piece for blob in blobs for piece in parts(blob)]
    total = yield from within(group, reduce.reduce_flat(rank, len(group), 0, data, combine), FIRST)
    received = yield from _leaders(rank, groups, total)
    pieces = None
    if received is not None:
        pieces, start = [], 0
        for blob in blobs:
            length = whole(blob).nbytes
            pieces.append(received[start : start + length])
            start += length
    return (yield from within(group, gather.scatter_packed(rank, len(group), 0, pieces), LAST))
