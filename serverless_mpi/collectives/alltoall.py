"""Alltoall: every rank has a blob for every rank; the blobs may differ in size.

References
----------
MPI 4.1, section 6.8.
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.collectives.choose import algorithm, known_length, ranges
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


def _packed_cost(t: Tally) -> None:
    work = t.scatter(t.n, t.size - 1) + t.get(t.n) * (t.size - 1)
    t.step(t.n, work)
    t.all(work * t.size)


@algorithm("alltoall", cost=_packed_cost, condition=ranges)
def packed(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """Put all blobs together, so that each reader takes its own range.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        A blob for each rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blob that each rank has sent to this one, in their order.

    Notes
    -----
    1 round. Each rank makes one put of (P-1) n bytes; on a channel without ranges, P-1 messages of
    n bytes.
    """
    others = [other for other in range(size) if other != rank]
    result: list[Blob] = [blobs[rank]] * size
    if others:
        received = yield [
            Scatter(tuple((other, parts(blobs[other])) for other in others)),
            *(Recv(other, scattered=True) for other in others),
        ]
        for other, blob in zip(others, received[1:], strict=True):
            result[other] = blob
    return [whole(blob) for blob in result]


def _pairwise_cost(t: Tally) -> None:
    work = (t.put(t.n) + t.get(t.n)) * (t.size - 1)
    t.step(t.n, work)
    t.all(work * t.size)


@algorithm("alltoall", cost=_pairwise_cost)
def pairwise(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """Send every blob as a message of its own.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        A blob for each rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blob that each rank has sent to this one, in their order.

    Notes
    -----
    1 round; P-1 messages of n bytes per rank, in one step, so that they fill the channel's batches.
    In turn t rank r sends to rank r + t, so no reader is addressed by all ranks at once.
    """
    order = [(rank + turn) % size for turn in range(1, size)]
    result: list[Blob] = [blobs[rank]] * size
    if order:
        received = yield [
            *(Send((other,), parts(blobs[other]), other) for other in order),
            *(Recv(other, rank) for other in order),
        ]
        for other, blob in zip(order, received[size - 1 :], strict=True):
            result[other] = blob
    return [whole(blob) for blob in result]


def _bruck_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        span = 1 << level
        # How many numbers below P have this bit.
        moved = t.size // (2 * span) * span + max(0, t.size % (2 * span) - span)
        nbytes = moved * (t.n + PACK_BYTES)
        work = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, work)
        t.all(work * t.size)


@algorithm("alltoall", cost=_bruck_cost, condition=known_length)
def bruck(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """Pass packed blobs over doubling distances (Bruck).

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        A blob for each rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blob that each rank has sent to this one, in their order.

    Notes
    -----
    ceil(log2 P) rounds; as many messages per rank, each of about P/2 packed blobs. Of blob number t
    (destined for rank + t) round k forwards those with bit k set, by 2**k ranks.

    References
    ----------
    J. Bruck et al., "Efficient Algorithms for All-to-All Communications in Multiport
    Message-Passing Systems", IEEE TPDS 8(11), 1997.
    """
    turned: list[Blob] = [blobs[(rank + turn) % size] for turn in range(size)]
    distance, slot = 1, 0
    while distance < size:
        moved = [turn for turn in range(size) if turn & distance]
        _, received = yield [
            Send(((rank + distance) % size,), pack([turned[turn] for turn in moved]), slot),
            Recv((rank - distance) % size, slot),
        ]
        for turn, blob in zip(moved, unpack(received, len(moved)), strict=True):
            turned[turn] = blob
        distance, slot = 2 * distance, slot + 1
    return [whole(turned[(rank - other) % size]) for other in range(size)]
