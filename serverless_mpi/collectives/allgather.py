"""Allgather: every rank receives the blobs of all ranks; they may differ in size.

References
----------
MPI 4.1, section 6.7.
"""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.cost import PACK_BYTES, Tally, log2_rounds
from serverless_mpi.collectives.steps import Blob, Recv, Send, Steps, pack, parts, unpack, whole


def _fan_out_cost(t: Tally) -> None:
    others = t.size - 1
    work = t.put(t.n, 1, others) + t.get(t.n) * others
    t.step(t.n, work)
    t.all(work * t.size)


@algorithm("allgather", cost=_fan_out_cost)
def fan_out(rank: int, size: int, data: Blob) -> Steps:
    """Send the own blob to all other ranks at once.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blobs of all ranks, in their order.

    Notes
    -----
    1 round; 1 message of n bytes per rank, which P-1 ranks read.
    """
    others = [other for other in range(size) if other != rank]
    if not others:
        return [whole(data)]
    received = yield [Send(tuple(others), parts(data)), *(Recv(other) for other in others)]
    blobs = received[1:]
    blobs.insert(rank, whole(data))
    return blobs


def _bruck_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        nbytes = min(1 << level, t.size - (1 << level)) * (t.n + PACK_BYTES)
        work = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, work)
        t.all(work * t.size)


@algorithm("allgather", cost=_bruck_cost)
def bruck(rank: int, size: int, data: Blob) -> Steps:
    """Double the number of known blobs in every round (Bruck).

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blobs of all ranks, in their order.

    Notes
    -----
    ceil(log2 P) rounds; as many messages per rank, of (P-1) (n + 8) bytes in all: a length of 8
    bytes precedes each blob.

    References
    ----------
    J. Bruck et al., IEEE TPDS 8(11), 1997.
    """
    blobs: list[memoryview] = [whole(data)]  # of ranks rank, rank + 1, ...
    slot = 0
    while len(blobs) < size:
        distance = len(blobs)
        count = min(distance, size - distance)
        _, received = yield [
            Send(((rank - distance) % size,), pack(blobs[:count]), slot),
            Recv((rank + distance) % size, slot),
        ]
        blobs += unpack(received, count)
        slot += 1
    return [blobs[(other - rank) % size] for other in range(size)]


def _ring_cost(t: Tally) -> None:
    work = t.put(t.n) + t.get(t.n)
    t.step(t.n, work, t.size - 1)
    t.all(work * (t.size * (t.size - 1)))


@algorithm("allgather", cost=_ring_cost)
def ring(rank: int, size: int, data: Blob) -> Steps:
    """Pass blobs around a ring.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list of memoryview
        The blobs of all ranks, in their order.

    Notes
    -----
    P-1 rounds; P-1 messages of n bytes per rank, all to the right neighbour.
    """
    blobs: list[memoryview] = [whole(data)] * size
    right, left = (rank + 1) % size, (rank - 1) % size
    for turn in range(size - 1):
        _, received = yield [Send((right,), (blobs[(rank - turn) % size],), turn), Recv(left, turn)]
        blobs[(rank - turn - 1) % size] = received
    return blobs
