"""Reductions: to one rank, to all ranks, and scattered.

Rule: `combine(a, b)` receives operands of adjacent groups of ranks, the lower group first, so an
operation need only be associative. All ranks fold in the same shape, so the result of an allreduce
has the same bits on every rank.

Pitfall: the algorithms that cut a vector (`*_shares`, `allreduce_rabenseifner`) are registered with
the condition `known_length`, because a pickled object cannot be cut. A user-defined operation that
is not element-wise is not cut either: `Elementwise.cut` gives its whole vector to one rank.

References
----------
MPI 4.1, sections 6.9 and 6.10.
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
    """Send all operands to the root, which folds them from rank 0 up.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        On the root all operands, combined in the order of ranks.

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
    return fold(blobs, combine)


def _reduce_binomial_cost(t: Tally) -> None:
    work = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, work, log2_rounds(t.size))
    t.all(work * (t.size - 1))


@algorithm("reduce", cost=_reduce_binomial_cost)
def reduce_binomial(rank: int, size: int, root: int, data: Blob, combine: Combine) -> Steps:
    """Fold operands up a binomial tree to rank 0, which passes the result to the root.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        On the root all operands, combined in the order of ranks.

    Notes
    -----
    At most ceil(log2 P) rounds, one more if the root is not rank 0; each rank except rank 0 sends 1
    message of n bytes.
    """
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
    work = t.scatter(share, t.size - 1) + t.get(share, share) * (t.size - 1)
    t.step(share, work)
    t.all(work * t.size)


def _reduce_shares_cost(t: Tally) -> None:
    share, others = -(-t.n // t.size), t.size - 1
    _reduce_scatter_packed_cost(t, share)
    t.step(share, t.put(share) + t.get(share, share) * others)
    t.all((t.put(share) + t.get(share, share)) * others)


@algorithm("reduce", cost=_reduce_shares_cost, condition=known_length)
def reduce_shares(rank: int, size: int, root: int, data: Blob, combine: Elementwise) -> Steps:
    """Reduce one share of the vector on each rank, then collect the shares at the root.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview or None
        On the root all operands, combined in the order of ranks.

    Notes
    -----
    2 rounds; each rank scatters n (1 - 1/P) bytes, and each except the root sends 1 message of n/P
    bytes.
    """
    own = yield from reduce_scatter_packed(rank, size, combine.cut(whole(data), size), combine)
    if rank != root:
        yield Send((root,), (own,), 1)
        return None
    others = [other for other in range(size) if other != root]
    shares = (yield [Recv(other, 1) for other in others]) if others else []
    shares.insert(root, own)
    return memoryview(bytearray().join(shares))


def _allreduce_fan_cost(t: Tally) -> None:
    _reduce_flat_cost(t)
    fan_out_cost(t)


@algorithm("allreduce", cost=_allreduce_fan_cost)
def allreduce_fan(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Fold all operands on rank 0, which sends the result to all ranks.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        All operands, combined in the order of ranks; the same bits on every rank.

    Notes
    -----
    2 rounds; P-1 messages of n bytes to rank 0, and 1 from it, which P-1 ranks read.
    """
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
    """Exchange and combine totals with partners at doubling distances."""
    distance, slot = 1, 2
    while distance < pair.power:
        partner = pair.partner(distance)
        _, received = yield [Send((partner,), (total,), slot), Recv(partner, slot)]
        total = combine(received, total) if pair.place & distance else combine(total, received)
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
    work = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, work, rounds)
    t.all(work * (rounds << rounds))


@algorithm("allreduce", cost=_doubling_cost)
def allreduce_doubling(rank: int, size: int, data: Blob, combine: Combine) -> Steps:
    """Exchange totals with partners at doubling distances.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        All operands, combined in the order of ranks; the same bits on every rank.

    Notes
    -----
    floor(log2 P) rounds, 2 more if P is not a power of two; at most as many messages of n bytes per
    rank.
    """
    return (yield from _paired(rank, size, whole(data), combine, _doubling))


@dataclass(slots=True)
class _Pairs:
    """A rank's place among the largest power of two of ranks.

    The first 2 * extra ranks form pairs, of which the even rank takes part for both.
    """

    place: int
    power: int
    extra: int

    def partner(self, distance: int) -> int:
        """Return the rank whose place differs by `distance`."""
        other = self.place ^ distance
        return 2 * other if other < self.extra else other + self.extra


def _paired(
    rank: int,
    size: int,
    total: memoryview,
    combine: Combine,
    body: Callable[[_Pairs, memoryview, Combine], Steps],
) -> Steps:
    """Run `body` among a power of two of ranks.

    If P is not a power of two, the first ranks are folded in pairs before, and the even rank of a
    pair sends the result to the odd one after.
    """
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
    work = t.put(share, 1, others) + t.get(share, share) * others
    t.step(share, work)
    t.all(work * t.size)


@algorithm("allreduce", cost=_allreduce_shares_cost, condition=known_length)
def allreduce_shares(rank: int, size: int, data: Blob, combine: Elementwise) -> Steps:
    """Reduce one share of the vector on each rank, then give every share to all ranks.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        All operands, combined in the order of ranks; the same bits on every rank.

    Notes
    -----
    2 rounds; each rank scatters n (1 - 1/P) bytes and sends 1 message of n/P bytes, which P-1 ranks
    read.
    """
    own = yield from reduce_scatter_packed(rank, size, combine.cut(whole(data), size), combine)
    if size == 1:
        return own
    others = [other for other in range(size) if other != rank]
    received = yield [Send(tuple(others), (own,), 1), *(Recv(other, 1) for other in others)]
    shares = received[1:]
    shares.insert(rank, own)
    return memoryview(bytearray().join(shares))


def _rabenseifner_cost(t: Tally) -> None:
    rounds = t.size.bit_length() - 1
    _paired_cost(t, 1 << rounds)
    nbytes = t.n
    for _ in range(rounds):
        nbytes = -(-nbytes // 2)
        # joining the halves at the end copies n bytes; rounds in lock step were measured to cost as
        # much again, so the second exchange counts 2 n
        for work in (
            t.put(nbytes) + t.get(nbytes, nbytes),
            t.put(nbytes) + t.get(nbytes, 2 * nbytes),
        ):
            t.step(nbytes, work)
            t.all(work * (1 << rounds))


@algorithm("allreduce", cost=_rabenseifner_cost, condition=known_length)
def allreduce_rabenseifner(rank: int, size: int, data: Blob, combine: Elementwise) -> Steps:
    """Reduce and scatter halves of the vector, then gather them.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        All operands, combined in the order of ranks; the same bits on every rank.

    Notes
    -----
    2 floor(log2 P) rounds, 2 more if P is not a power of two; as many messages, of 2 n (1 - 1/P)
    bytes in all per rank. Near ranks exchange first, so that operands are adjacent.

    References
    ----------
    R. Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004.
    """

    cut = combine.cut

    def halving(pair: _Pairs, total: memoryview, combine: Combine) -> Steps:
        halves: list[tuple[int, int]] = []  # distance, slot
        distance, slot = 1, 2
        while distance < pair.power:
            partner, upper = pair.partner(distance), bool(pair.place & distance)
            low, high = cut(total, 2)
            kept, given = (high, low) if upper else (low, high)
            _, received = yield [Send((partner,), (given,), slot), Recv(partner, slot)]
            halves.append((distance, slot))
            total = combine(received, kept) if upper else combine(kept, received)
            distance, slot = 2 * distance, slot + 1
        pieces = [total]
        for distance, turn in reversed(halves):
            partner, upper = pair.partner(distance), bool(pair.place & distance)
            _, received = yield [
                Send((partner,), pieces, turn + len(halves)),
                Recv(partner, turn + len(halves)),
            ]
            pieces = [received, *pieces] if upper else [*pieces, received]
        return whole(pieces)

    return (yield from _paired(rank, size, whole(data), combine, halving))


@algorithm("reduce_scatter", cost=_reduce_scatter_packed_cost, condition=ranges)
def reduce_scatter_packed(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Steps:
    """Put all blobs together; each rank reads its range of every object and folds from rank 0 up.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        An operand for each rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands for this rank, combined in the order of ranks.

    Notes
    -----
    1 round; each rank makes one put of (P-1) n bytes; on a channel without ranges, P-1 messages.
    """
    return fold((yield from packed(rank, size, blobs)), combine)


def _reduce_scatter_cost(t: Tally) -> None:
    work = (t.put(t.n) + t.get(t.n, t.n)) * (t.size - 1)
    t.step(t.n, work)
    t.all(work * t.size)


@algorithm("reduce_scatter", cost=_reduce_scatter_cost)
def reduce_scatter(rank: int, size: int, blobs: Sequence[Blob], combine: Combine) -> Steps:
    """Send every rank its blob; each rank folds what it receives from rank 0 up.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        An operand for each rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.

    Returns
    -------
    memoryview
        The operands for this rank, combined in the order of ranks.

    Notes
    -----
    1 round; P-1 messages of n bytes per rank.
    """
    own = whole(blobs[rank])
    order = [(rank + turn) % size for turn in range(1, size)]
    if not order:
        return own
    received = yield [
        *(Send((other,), parts(blobs[other]), other) for other in order),
        *(Recv(other, rank) for other in order),
    ]
    column: list[memoryview] = [own] * size
    for other, blob in zip(order, received[size - 1 :], strict=True):
        column[other] = blob
    return fold(column, combine)
