"""Alltoall: a blob of each rank for each rank (MPI 4.1, section 6.8).  Blobs may differ in size."""

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
    one = t.deal(t.n, t.size - 1) + t.get(t.n) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


@algorithm("alltoall", cost=_packed_cost, condition=ranges)
def packed(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """1 round; each rank deals its P-1 blobs: one put, of which each reader takes its own range (else P-1 messages)."""
    others = [other for other in range(size) if other != rank]
    result: list[Blob] = [blobs[rank]] * size
    if others:
        got = yield [
            Scatter(tuple((other, parts(blobs[other])) for other in others)),
            *(Recv(other, scattered=True) for other in others),
        ]
        for other, blob in zip(others, got[1:], strict=True):
            result[other] = blob
    return [whole(blob) for blob in result]


def _pairwise_cost(t: Tally) -> None:
    one = (t.put(t.n) + t.get(t.n)) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


@algorithm("alltoall", cost=_pairwise_cost)
def pairwise(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """1 round; each rank sends P-1 messages, each to its reader alone, all at once so that they fill batches."""
    order = [(rank + turn) % size for turn in range(1, size)]
    result: list[Blob] = [blobs[rank]] * size
    if order:
        got = yield [
            *(Send((other,), parts(blobs[other]), other) for other in order),
            *(Recv(other, rank) for other in order),
        ]
        for other, blob in zip(order, got[size - 1 :], strict=True):
            result[other] = blob
    return [whole(blob) for blob in result]


def _bruck_cost(t: Tally) -> None:
    for level in range(log2_rounds(t.size)):
        span = 1 << level
        moved = t.size // (2 * span) * span + max(
            0, t.size % (2 * span) - span
        )  # numbers below P with this bit
        nbytes = moved * (t.n + PACK_BYTES)
        one = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, one)
        t.all(one * t.size)


@algorithm("alltoall", cost=_bruck_cost, condition=known_length)
def bruck(rank: int, size: int, blobs: Sequence[Blob]) -> Steps:
    """ceil(log2 P) rounds; as many messages per rank, each of about half of the blobs, packed."""
    turned: list[Blob] = [blobs[(rank + turn) % size] for turn in range(size)]
    distance, slot = 1, 0
    while distance < size:
        moved = [turn for turn in range(size) if turn & distance]
        _, got = yield [
            Send(((rank + distance) % size,), pack([turned[turn] for turn in moved]), slot),
            Recv((rank - distance) % size, slot),
        ]
        for turn, blob in zip(moved, unpack(got, len(moved)), strict=True):
            turned[turn] = blob
        distance, slot = 2 * distance, slot + 1
    return [whole(turned[(rank - other) % size]) for other in range(size)]
