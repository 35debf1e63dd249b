"""Allgather: every rank's blob to every rank (MPI 4.1, section 6.7).  Blobs may differ in size."""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.cost import PACK_BYTES, Tally, log2_rounds
from serverless_mpi.collectives.steps import Blob, Recv, Send, Steps, pack, parts, unpack, whole


def _fan_out_cost(t: Tally) -> None:
    others = t.size - 1
    one = t.put(t.n, 1, others) + t.get(t.n) * others
    t.step(t.n, one)
    t.all(one * t.size)


@algorithm("allgather", cost=_fan_out_cost)
def fan_out(rank: int, size: int, data: Blob) -> Steps:
    """1 round; each rank sends 1 message of its n bytes that P-1 ranks read."""
    others = [other for other in range(size) if other != rank]
    if not others:
        return [whole(data)]
    got = yield [Send(tuple(others), parts(data)), *(Recv(other) for other in others)]
    blobs = got[1:]
    blobs.insert(rank, whole(data))
    return blobs


def _bruck_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        nbytes = min(1 << level, t.size - (1 << level)) * (t.n + PACK_BYTES)
        one = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, one)
        t.all(one * t.size)


@algorithm("allgather", cost=_bruck_cost)
def bruck(rank: int, size: int, data: Blob) -> Steps:
    """ceil(log2 P) rounds; as many messages per rank, (P-1) n bytes in all, and 8 bytes of length a blob."""
    blobs: list[memoryview] = [whole(data)]  # of ranks rank, rank + 1, ...
    slot = 0
    while len(blobs) < size:
        distance = len(blobs)
        count = min(distance, size - distance)
        _, got = yield [
            Send(((rank - distance) % size,), pack(blobs[:count]), slot),
            Recv((rank + distance) % size, slot),
        ]
        blobs += unpack(got, count)
        slot += 1
    return [blobs[(other - rank) % size] for other in range(size)]


def _ring_cost(t: Tally) -> None:
    one = t.put(t.n) + t.get(t.n)
    t.step(t.n, one, t.size - 1)
    t.all(one * (t.size * (t.size - 1)))


@algorithm("allgather", cost=_ring_cost)
def ring(rank: int, size: int, data: Blob) -> Steps:
    """P-1 rounds; each rank sends P-1 messages of n bytes, to one neighbour alone."""
    blobs: list[memoryview] = [whole(data)] * size
    right, left = (rank + 1) % size, (rank - 1) % size
    for turn in range(size - 1):
        _, got = yield [Send((right,), (blobs[(rank - turn) % size],), turn), Recv(left, turn)]
        blobs[(rank - turn - 1) % size] = got
    return blobs
