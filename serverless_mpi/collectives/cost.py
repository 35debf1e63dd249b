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

from serverless_mpi.channels.base import Figures

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


class Tally:
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


Formula = Callable[[Tally], None]


def log2_rounds(size: int) -> int:
    """Return ceil(log2 size), the rounds of a doubling algorithm."""
    return (size - 1).bit_length()
