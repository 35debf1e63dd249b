"""What each algorithm costs on a medium, as a formula of the ranks P, the blob's bytes n and the channel's figures.

A formula says the critical path (puts, hops and gets that wait for each other)
and the work of all ranks together; `choose.py` compares them.  Where ranks
share a machine or a server, the work of all counts as much as the path.  Only
the four operations + - * / on numbers all ranks share are used, so every rank
computes the same bits.  The dry run in `simulate.py` counts the real
generators; tests hold the messages and puts of these formulas to it.
Source of the bound for ranks that share `lanes`: R. L. Graham, "Bounds for
Certain Multiprocessing Anomalies", 1966: path + (work - path) / lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from serverless_mpi.channels.base import Figures
from serverless_mpi.collectives import allgather, alltoall, barrier, bcast, gather, reduce, scan

FRESH_BPS = 1.2e9  # what is received, combined or joined goes to fresh memory, which takes longer than the copying
UNKNOWN_BYTES = 1024  # taken for the length of an object, which ranks do not share
PACK_BYTES = 8  # of length before each packed blob


@dataclass(frozen=True, slots=True)
class Facts:
    """What all ranks know of a call.

    size: ranks; nbytes: of one blob, None where ranks may differ (objects, vectors);
    figures: the channel's.
    """

    size: int
    nbytes: int | None
    figures: Figures

    @property
    def length(self) -> int:
        """nbytes, or a guess."""
        return UNKNOWN_BYTES if self.nbytes is None else self.nbytes


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds that ranks are busy, dollars, puts and messages."""

    seconds: float = 0.0
    usd: float = 0.0
    puts: int = 0
    messages: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.seconds + other.seconds,
            self.usd + other.usd,
            self.puts + other.puts,
            self.messages + other.messages,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.seconds * times, self.usd * times, self.puts * times, self.messages * times
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """A call's cost: seconds until the last rank has it, dollars, rounds, and puts and messages of all ranks."""

    seconds: float
    usd: float
    rounds: int
    puts: int
    messages: int


Formula = Callable[["_Tally"], None]


class _Tally:
    """Sums up one algorithm."""

    def __init__(self, facts: Facts) -> None:
        self.size = facts.size
        self.n = facts.length
        self._figures = facts.figures
        self.rounds = 0
        self._path = 0.0
        self._busy = 0.0  # the part of the path in which a rank works
        self._total = Work()

    def _of(self, nbytes: int) -> Figures:
        beyond = self._figures.beyond
        return self._figures if beyond is None or nbytes <= beyond[0] else beyond[1]

    def put(self, nbytes: int, sends: int = 1, copies: int = 1) -> Work:
        """`sends` Sends, which `copies` ranks read in all."""
        one = self._of(nbytes)
        count = sends if one.fanout else copies
        return Work(
            count * (one.put_s + nbytes / one.bandwidth_Bps),
            count * one.put_usd * self._bills(one, nbytes),
            sends,
            copies,
        )

    def deal(self, nbytes: int, readers: int) -> Work:
        """One Deal of `nbytes` to each of `readers`."""
        one = self._of(nbytes)
        small = (
            one.beyond is not None
        )  # where long messages have figures of their own, only they are worth an object
        if not one.ranges or small or not readers:
            return self.put(nbytes) * readers
        return Work(one.put_s + readers * nbytes / one.bandwidth_Bps, one.put_usd, 1, readers)

    def get(self, nbytes: int, folded: int = 0) -> Work:
        """One Recv, and combining or joining of `folded` bytes."""
        one = self._of(nbytes)
        seconds = one.get_s + nbytes / one.bandwidth_Bps + (nbytes + folded) / FRESH_BPS
        return Work(seconds, one.get_usd * self._bills(one, nbytes))

    @staticmethod
    def _bills(one: Figures, nbytes: int) -> int:
        return 1 if not one.billed_bytes else max(1, -(-nbytes // one.billed_bytes))

    def step(self, nbytes: int, path: Work, times: int = 1) -> None:
        """`times` rounds, in each of which the rank on the critical path does that and a message of `nbytes` travels."""
        self.rounds += times
        self._path += times * (self._of(nbytes).latency_s + path.seconds)
        self._busy += times * path.seconds

    def all(self, work: Work) -> None:
        """What ranks do together."""
        self._total = self._total + work

    def cost(self) -> Cost:
        """The sum."""
        lanes = self._figures.lanes
        elsewhere = max(0.0, self._total.seconds - self._busy) / lanes if lanes else 0.0
        return Cost(
            self._path + elsewhere,
            self._total.usd,
            self.rounds,
            self._total.puts,
            self._total.messages,
        )


def _log(size: int) -> int:
    """ceil(log2 size)."""
    return (size - 1).bit_length()


def _barrier_fan(t: _Tally) -> None:
    others = t.size - 1
    t.step(0, t.put(0) + t.get(0) * others)
    t.step(0, t.put(0, 1, others) + t.get(0))
    t.all((t.put(0) + t.get(0) * 2) * others + t.put(0, 1, others))


def _barrier_dissemination(t: _Tally) -> None:
    one = t.put(0) + t.get(0)
    t.step(0, one, _log(t.size))
    t.all(one * (t.size * _log(t.size)))


def _bcast_fan_out(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n, 1, others) + t.get(t.n))
    t.all(t.put(t.n, 1, others) + t.get(t.n) * others)


def _bcast_binomial(t: _Tally) -> None:
    t.step(t.n, t.put(t.n) + t.get(t.n), _log(t.size))
    t.all(t.put(t.n, t.size // 2, t.size - 1) + t.get(t.n) * (t.size - 1))


def _bcast_tree(arity: int) -> Formula:
    def formula(t: _Tally) -> None:
        reached, level, rounds = 1, 1, 0
        while reached < t.size:
            level, rounds = level * arity, rounds + 1
            reached += level
        t.step(t.n, t.put(t.n, 1, min(arity, t.size - 1)) + t.get(t.n), rounds)
        t.all(t.put(t.n, -(-(t.size - 1) // arity), t.size - 1) + t.get(t.n) * (t.size - 1))

    return formula


def _gather_flat(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) + t.get(t.n) * others)
    t.all((t.put(t.n) + t.get(t.n)) * others)


def _binomial_packs(t: _Tally) -> None:
    for level in range(_log(t.size)):
        span = 1 << level
        full, last = divmod(
            t.size - 1 - span, 2 * span
        )  # who sends at this level: ranks span, 3 span, 5 span, ...
        for count, blobs in ((full, span), (1, min(span, last + 1))):
            nbytes = blobs * (t.n + PACK_BYTES)
            t.all((t.put(nbytes) + t.get(nbytes)) * count)
        nbytes = min(span, t.size - span) * (t.n + PACK_BYTES)
        t.step(nbytes, t.put(nbytes) + t.get(nbytes))


def _scatter_flat(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) * others + t.get(t.n))
    t.all((t.put(t.n) + t.get(t.n)) * others)


def _scatter_packed(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.deal(t.n, others) + t.get(t.n))
    t.all(t.deal(t.n, others) + t.get(t.n) * others)


def _allgather_fan_out(t: _Tally) -> None:
    others = t.size - 1
    one = t.put(t.n, 1, others) + t.get(t.n) * others
    t.step(t.n, one)
    t.all(one * t.size)


def _allgather_ring(t: _Tally) -> None:
    one = t.put(t.n) + t.get(t.n)
    t.step(t.n, one, t.size - 1)
    t.all(one * (t.size * (t.size - 1)))


def _allgather_bruck(t: _Tally) -> None:
    for level in range(_log(t.size)):
        nbytes = min(1 << level, t.size - (1 << level)) * (t.n + PACK_BYTES)
        one = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, one)
        t.all(one * t.size)


def _alltoall_pairwise(t: _Tally) -> None:
    one = (t.put(t.n) + t.get(t.n)) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


def _alltoall_packed(t: _Tally) -> None:
    one = t.deal(t.n, t.size - 1) + t.get(t.n) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


def _alltoall_bruck(t: _Tally) -> None:
    for level in range(_log(t.size)):
        span = 1 << level
        moved = t.size // (2 * span) * span + max(
            0, t.size % (2 * span) - span
        )  # numbers below P with this bit
        nbytes = moved * (t.n + PACK_BYTES)
        one = t.put(nbytes) + t.get(nbytes)
        t.step(nbytes, one)
        t.all(one * t.size)


def _reduce_flat(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n) + t.get(t.n, t.n) * others)
    t.all((t.put(t.n) + t.get(t.n, t.n)) * others)


def _reduce_binomial(t: _Tally) -> None:
    one = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, one, _log(t.size))
    t.all(one * (t.size - 1))


def _reduce_scatter_packed(t: _Tally, share: int | None = None) -> None:
    share = t.n if share is None else share
    one = t.deal(share, t.size - 1) + t.get(share, share) * (t.size - 1)
    t.step(share, one)
    t.all(one * t.size)


def _reduce_scatter(t: _Tally) -> None:
    one = (t.put(t.n) + t.get(t.n, t.n)) * (t.size - 1)
    t.step(t.n, one)
    t.all(one * t.size)


def _reduce_shares(t: _Tally) -> None:
    share, others = -(-t.n // t.size), t.size - 1
    _reduce_scatter_packed(t, share)
    t.step(share, t.put(share) + t.get(share, share) * others)
    t.all((t.put(share) + t.get(share, share)) * others)


def _allreduce_shares(t: _Tally) -> None:
    share, others = -(-t.n // t.size), t.size - 1
    _reduce_scatter_packed(t, share)
    one = t.put(share, 1, others) + t.get(share, share) * others
    t.step(share, one)
    t.all(one * t.size)


def _allreduce_fan(t: _Tally) -> None:
    _reduce_flat(t)
    _bcast_fan_out(t)


def _paired(t: _Tally, power: int) -> None:
    extra = t.size - power
    if extra:
        t.step(t.n, t.put(t.n) + t.get(t.n, t.n))
        t.step(t.n, t.put(t.n) + t.get(t.n))
        t.all((t.put(t.n) * 2 + t.get(t.n, t.n) + t.get(t.n)) * extra)


def _allreduce_doubling(t: _Tally) -> None:
    rounds = t.size.bit_length() - 1
    _paired(t, 1 << rounds)
    one = t.put(t.n) + t.get(t.n, t.n)
    t.step(t.n, one, rounds)
    t.all(one * (rounds << rounds))


def _allreduce_rabenseifner(t: _Tally) -> None:
    rounds = t.size.bit_length() - 1
    _paired(t, 1 << rounds)
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


def _scan_doubling(t: _Tally) -> None:
    for level in range(_log(t.size)):
        one = t.put(t.n) + t.get(t.n, 2 * t.n)
        t.step(t.n, one)
        t.all(one * (t.size - (1 << level)))


def _scan_fan_out(t: _Tally) -> None:
    others = t.size - 1
    t.step(t.n, t.put(t.n, 1, others) + t.get(t.n, t.n) * others)
    t.all(t.put(t.n, others, t.size * others // 2) + t.get(t.n, t.n) * (t.size * others // 2))


bcast_tree4 = partial(bcast.tree, arity=4)

FORMULAS: dict[Callable[..., Any], Formula] = {
    barrier.fan: _barrier_fan,
    barrier.dissemination: _barrier_dissemination,
    bcast.fan_out: _bcast_fan_out,
    bcast.binomial: _bcast_binomial,
    bcast_tree4: _bcast_tree(4),
    gather.gather_flat: _gather_flat,
    gather.gather_binomial: _binomial_packs,
    gather.scatter_flat: _scatter_flat,
    gather.scatter_packed: _scatter_packed,
    gather.scatter_binomial: _binomial_packs,
    allgather.fan_out: _allgather_fan_out,
    allgather.ring: _allgather_ring,
    allgather.bruck: _allgather_bruck,
    alltoall.pairwise: _alltoall_pairwise,
    alltoall.packed: _alltoall_packed,
    alltoall.bruck: _alltoall_bruck,
    reduce.reduce_flat: _reduce_flat,
    reduce.reduce_binomial: _reduce_binomial,
    reduce.reduce_shares: _reduce_shares,
    reduce.reduce_scatter: _reduce_scatter,
    reduce.reduce_scatter_packed: _reduce_scatter_packed,
    reduce.allreduce_fan: _allreduce_fan,
    reduce.allreduce_doubling: _allreduce_doubling,
    reduce.allreduce_rabenseifner: _allreduce_rabenseifner,
    reduce.allreduce_shares: _allreduce_shares,
    scan.scan: _scan_doubling,
    scan.exscan: _scan_doubling,
    scan.scan_fan_out: _scan_fan_out,
    scan.exscan_fan_out: _scan_fan_out,
}


def cost(algorithm: Callable[..., Any], facts: Facts) -> Cost:
    """What a call with that algorithm costs; only for those in FORMULAS."""
    tally = _Tally(facts)
    FORMULAS[algorithm](tally)
    return tally.cost()
