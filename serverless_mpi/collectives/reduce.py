"""Reductions to one, to all, and scattered (MPI 4.1, sections 6.9 and 6.10).

`combine(a, b)` gets operands of adjacent groups of ranks, the lower first, so
an operation need only be associative.  All ranks fold in the same shape, so an
allreduce has the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serverless_mpi.collectives.alltoall import packed
from serverless_mpi.collectives.bcast import fan_out_cost
from serverless_mpi.collectives.choose import algorithm, known_length, ranges
from serverless_mpi.collectives.cost import Tally, log2_rounds
from serverless_mpi.collectives.steps import (
    Blob,
    Combine,
    Elementwise,
    Recv,
    Send,
    Steps,
    fold,
    parts,
    whole,
)


def _reduce_flat_cost(t: Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) + t.get(t.n, t.n) * others)
    t.all((t.put(t.n) + t.get(t.n, t.n)) * others)


@algorithm("reduce", cost=_reduce_flat_cost)
def reduce_flat(rank: int, size: int, root: int, data: Blob, combine: Combine) -> Steps:
    """1 round; each rank but the root sends 1 message of n bytes; the root folds them from rank 0 up."""
    if rank != root:
        yield Send((root,), parts(data))
        return None
    others = [source for source in range(size) if source != root]
    blobs = (yield [Recv(source) for source in others]) if others else []
    blobs.insert(root, whole(data))
    return fold(blobs, combine)


def _reduce_binomial_cost(t: Tally) -> None:
    one = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, one, log2_rounds(t.size))
    t.all(one * (t.size - 1))


@algorithm("reduce", cost=_reduce_binomial_cost)
def reduce_binomial(rank: int, size: int, root: int, data: Blob, combine: Combine) -> Steps:
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


def _reduce_scatter_packed_cost(t: Tally, share: int | None = None) -> None:
    share = t.n if share is None else share
    one = t.deal(share, t.size - 1) + t.get(share, share) * (t.size - 1)
    t.step(share, one)
    t.all(one * t.size)


def _reduce_shares_cost(t: Tally) -> None:
    share, others = -(-t.n // t.size), t.size - 1
    _reduce_scatter_packed_cost(t, share)
    t.step(share, t.put(share) + t.get(share, share) * others)
    t.all((t.put(share) + t.get(share, share)) * others)


@algorithm("reduce", cost=_reduce_shares_cost, condition=known_length)
def reduce_shares(rank: int, size: int, root: int, data: Blob, combine: Elementwise) -> Steps:
    """2 rounds; each rank deals out n (1 - 1/P) bytes and, but the root, sends it 1 message of n/P bytes."""
    mine = yield from reduce_scatter_packed(rank, size, combine.cut(whole(data), size), combine)
    if rank != root:
        yield Send((root,), (mine,), 1)
        return None
    others = [other for other in range(size) if other != root]
    shares = (yield [Recv(other, 1) for other in others]) if others else []
    shares.insert(root, mine)
    return memoryview(bytearray().join(shares))


def _allreduce_fan_cost(t: Tally) -> None:
    _reduce_flat_cost(t)
    fan_out_cost(t)


@algorithm("allreduce", cost=_allreduce_fan_cost)
def allreduce_fan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """2 rounds; P-1 messages of n bytes to rank 0, and 1 from it that P-1 ranks read."""
    if size == 1:
        return whole(data)
    if rank:
        _, total = yield [Send((0,), parts(data)), Recv(0)]
        return total
    blobs = yield [Recv(source) for source in range(1, size)]
    total = fold([whole(data), *blobs], combine)
    yield Send(tuple(range(1, size)), (total,))
    return total


def _doubling(pair: _Pairs, total: memoryview, combine: Combine) -> Steps:
    distance, slot = 1, 2
    while distance < pair.power:
        partner = pair.partner(distance)
        _, got = yield [Send((partner,), (total,), slot), Recv(partner, slot)]
        total = combine(got, total) if pair.place & distance else combine(total, got)
        distance, slot = 2 * distance, slot + 1
    return total


def _paired_cost(t: Tally, power: int) -> None:
    extra = t.size - power
    if extra:
        t.step(t.n, t.put(t.n) + t.get(t.n, t.n))
        t.step(t.n, t.put(t.n) + t.get(t.n))
        t.all((t.put(t.n) * 2 + t.get(t.n, t.n) + t.get(t.n)) * extra)


def _doubling_cost(t: Tally) -> None:
    rounds = t.size.bit_length() - 1
    _paired_cost(t, 1 << rounds)
    one = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, one, rounds)
    t.all(one * (rounds << rounds))


@algorithm("allreduce", cost=_doubling_cost)
def allreduce_doubling(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """At most floor(log2 P) rounds, 2 more where P is no power of two; as many messages of n bytes per rank."""
    return (yield from _paired(rank, size, whole(data), combine, _doubling))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A rank's place among the largest power of two of ranks; the first 2 * extra ranks are folded to pairs."""

    place: int
    power: int
    extra: int

    def partner(self, distance: int) -> int:
        """The rank whose place differs by `distance`."""
        other = self.place ^ distance
        return 2 * other if other < self.extra else other + self.extra


def _paired(
    rank: int,
    size: int,
    total: memoryview,
    combine: Combine,
    body: Callable[[_Pairs, memoryview, Combine], Steps],
) -> Steps:
    """Run `body` among a power of two of ranks: where P is none, ranks are folded to pairs before, and told the result after."""
    power = 1 << (size.bit_length() - 1)
    extra = size - power
    if rank >= 2 * extra:
        return (yield from body(_Pairs(rank - extra, power, extra), total, combine))
    if rank % 2:
        _, total = yield [Send((rank - 1,), (total,)), Recv(rank - 1, 1)]
        return total
    total = combine(total, (yield Recv(rank + 1)))
    total = yield from body(_Pairs(rank // 2, power, extra), total, combine)
    yield Send((rank + 1,), (total,), 1)
    return total


def _allreduce_shares_cost(t: Tally) -> None:
    share, others = -(-t.n // t.size), t.size - 1
    _reduce_scatter_packed_cost(t, share)
    one = t.put(share, 1, others) + t.get(share, share) * others
    t.step(share, one)
    t.all(one * t.size)


@algorithm("allreduce", cost=_allreduce_shares_cost, condition=known_length)
def allreduce_shares(rank: int, size: int, data: Blob, combine: Elementwise) -> Steps:
    """2 rounds; each rank deals out n (1 - 1/P) bytes and sends 1 message of n/P bytes that P-1 ranks read.

    Each rank reduces its share of the vector, which it gives to all.
    """
    mine = yield from reduce_scatter_packed(rank, size, combine.cut(whole(data), size), combine)
    if size == 1:
        return mine
    others = [other for other in range(size) if other != rank]
    got = yield [Send(tuple(others), (mine,), 1), *(Recv(other, 1) for other in others)]
    shares = got[1:]
    shares.insert(rank, mine)
    return memoryview(bytearray().join(shares))


def _rabenseifner_cost(t: Tally) -> None:
    rounds = t.size.bit_length() - 1
    _paired_cost(t, 1 << rounds)
    nbytes = t.n
    for _ in range(rounds):
        nbytes = -(-nbytes // 2)
        # the halves are joined at the end: n bytes; as much again is what so many rounds in step cost where it was measured
        for one in (
            t.put(nbytes) + t.get(nbytes, nbytes),
            t.put(nbytes) + t.get(nbytes, 2 * nbytes),
        ):
            t.step(nbytes, one)
            t.all(one * (1 << rounds))


@algorithm("allreduce", cost=_rabenseifner_cost, condition=known_length)
def allreduce_rabenseifner(rank: int, size: int, data: Blob, combine: Elementwise) -> Steps:
    """2 floor(log2 P) rounds, 2 more where P is no power of two; as many messages, 2 n (1 - 1/P) bytes per rank.

    Halves of the vector are reduced and scattered, then gathered.  Near ranks first, so that operands are adjacent.
    Source: R. Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004.
    """

    cut = combine.cut

    def halving(pair: _Pairs, total: memoryview, combine: Combine) -> Steps:
        halves: list[tuple[int, int]] = []  # distance, slot
        distance, slot = 1, 2
        while distance < pair.power:
            partner, upper = pair.partner(distance), bool(pair.place & distance)
            low, high = cut(total, 2)
            kept, given = (high, low) if upper else (low, high)
            _, got = yield [Send((partner,), (given,), slot), Recv(partner, slot)]
            halves.append((distance, slot))
            total = combine(got, kept) if upper else combine(kept, got)
            distance, slot = 2 * distance, slot + 1
        pieces = [total]
        for distance, turn in reversed(halves):
            partner, upper = pair.partner(distance), bool(pair.place & distance)
            _, got = yield [
                Send((partner,), pieces, turn + len(halves)),
                Recv(partner, turn + len(halves)),
            ]
            pieces = [got, *pieces] if upper else [*pieces, got]
        return whole(pieces)

    return (yield from _paired(rank, size, whole(data), combine, halving))


@algorithm("reduce_scatter", cost=_reduce_scatter_packed_cost, condition=ranges)
def reduce_scatter_packed(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Steps:
    """1 round; each rank deals its P-1 blobs, as in alltoall, and folds what it gets from rank 0 up."""
    return fold((yield from packed(rank, size, blobs)), combine)


def _reduce_scatter_cost(t: Tally) -> None:
    one = (t.put(t.n) + t.get(t.n, t.n)) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


@algorithm("reduce_scatter", cost=_reduce_scatter_cost)
def reduce_scatter(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Steps:
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
    return fold(column, combine)
