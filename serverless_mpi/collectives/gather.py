"""Gather and scatter: a blob of each rank to the root, and back.

References
----------
MPI 4.1, sections 6.5 and 6.6.
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.collectives.choose import algorithm, ranges
from serverless_mpi.collectives.cost import PACK_BYTES, Tally, log2_rounds
from serverless_mpi.collectives.steps import (
    Blob,
    Recv,
    Scatter,
    Send,
    Steps,
    pack,
    parts,
    unpack,
    whole,
)


def _gather_flat_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) + t.get(t.n) * others)
    t.all((t.put(t.n) + t.get(t.n)) * others)


@algorithm("gather", cost=_gather_flat_cost)
def gather_flat(rank: int, size: int, root: int, data: Blob) -> Steps:
    """Send every blob to the root.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview or None
        On the root the blobs of all ranks, in their order.

    Notes
    -----
    1 round; each rank except the root sends 1 message of n bytes.
    """
    if rank != root:
        yield Send((root,), parts(data))
        return None
    others = [source for source in range(size) if source != root]
    blobs = (yield [Recv(source) for source in others]) if others else []
    blobs.insert(root, whole(data))
    return blobs


def _binomial_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        span = 1 << level
        # The ranks span, 3 span, 5 span, ... send at this level.
        full, last = divmod(t.size - 1 - span, 2 * span)
        for count, blobs in ((full, span), (1, min(span, last + 1))):
            nbytes = blobs * (t.n + PACK_BYTES)
            t.all((t.put(nbytes) + t.get(nbytes)) * count)
        nbytes = min(span, t.size - span) * (t.n + PACK_BYTES)
        t.step(nbytes, t.put(nbytes) + t.get(nbytes))


@algorithm("gather", cost=_binomial_cost)
def gather_binomial(rank: int, size: int, root: int, data: Blob) -> Steps:
    """Collect packed blobs up a binomial tree.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview or None
        On the root the blobs of all ranks, in their order.

    Notes
    -----
    At most ceil(log2 P) rounds; each rank except the root sends 1 message with the blobs of its
    subtree.
    """
    relative = (rank - root) % size
    # Blobs of the relative ranks from `relative` on.
    blobs_of_subtree: list[Blob] = [data]
    distance = 1
    while distance < size:
        if relative & distance:
            yield Send(((rank - distance) % size,), pack(blobs_of_subtree))
            return None
        if relative + distance < size:
            count = min(distance, size - relative - distance)
            blobs_of_subtree += unpack((yield Recv((rank + distance) % size)), count)
        distance *= 2
    return [whole(blobs_of_subtree[(other - root) % size]) for other in range(size)]


def _scatter_packed_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.scatter(t.n, others) + t.get(t.n))
    t.all(t.scatter(t.n, others) + t.get(t.n) * others)


@algorithm("scatter", cost=_scatter_packed_cost, condition=ranges)
def scatter_packed(rank: int, size: int, root: int, blobs: Sequence[Blob] | None) -> Steps:
    """Put all blobs together, so that each reader takes its own range.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    blobs
        On the root a blob for each rank; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob
        The blob for this rank.

    Notes
    -----
    1 round; the root makes one put of (P-1) n bytes; on a channel without ranges, P-1 messages.
    """
    if rank != root:
        return (yield Recv(root, scattered=True))
    assert blobs is not None
    if size > 1:
        yield Scatter(tuple((dest, parts(blobs[dest])) for dest in range(size) if dest != root))
    return blobs[root]


def _scatter_flat_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) * others + t.get(t.n))
    t.all((t.put(t.n) + t.get(t.n)) * others)


@algorithm("scatter", cost=_scatter_flat_cost)
def scatter_flat(rank: int, size: int, root: int, blobs: Sequence[Blob] | None) -> Steps:
    """Send every rank its blob.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    blobs
        On the root a blob for each rank; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob
        The blob for this rank.

    Notes
    -----
    1 round; the root sends P-1 messages of n bytes.
    """
    if rank != root:
        return (yield Recv(root, rank))
    assert blobs is not None
    if size > 1:
        yield [Send((dest,), parts(blobs[dest]), dest) for dest in range(size) if dest != root]
    return blobs[root]


@algorithm("scatter", cost=_binomial_cost)
def scatter_binomial(rank: int, size: int, root: int, blobs: Sequence[Blob] | None) -> Steps:
    """Pass packed blobs down a binomial tree.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    blobs
        On the root a blob for each rank; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob
        The blob for this rank.

    Notes
    -----
    At most ceil(log2 P) rounds; P-1 messages in all, each with the blobs of its reader's subtree.
    """
    relative = (rank - root) % size
    distance = 1
    while distance < size and not relative & distance:
        distance *= 2
    if relative:
        count = min(distance, size - relative)
        blobs_of_subtree: list[Blob] = list(
            unpack((yield Recv((rank - distance) % size, rank)), count)
        )
    else:
        assert blobs is not None
        blobs_of_subtree = [blobs[(root + other) % size] for other in range(size)]
    distance //= 2
    while distance:
        if distance < len(blobs_of_subtree):
            child = (rank + distance) % size
            yield Send((child,), pack(blobs_of_subtree[distance:]), child)
            del blobs_of_subtree[distance:]
        distance //= 2
    return blobs_of_subtree[0]
