"""Cost formulas: the cost of a collective algorithm on a channel, by its LogGP-like parameters.

A formula is a function of a `Tally`.  It states two things: the critical path
(the puts, hops and gets that wait for each other) with `step`, and the work of
all ranks together with `all`.  `choose.select` compares the resulting `Cost`s.

Where ranks share processors or a server, work off the critical path counts
too.  The bound for ranks that share p processors is path + (work - path) / p:
R. L. Graham, "Bounds for Certain Multiprocessing Anomalies", 1966.

Invariant: formulas use only + - * / on numbers that all ranks share, so every
rank computes the same bits and makes the same choice.  The contract suite
holds the messages, puts and rounds of each formula to a run of the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serverless_mpi.channels.base import CostParameters

FRESH_BPS = 1.2e9  # bytes per second written to fresh memory: page faults cost more than the copy
UNKNOWN_BYTES = 1024  # assumed length of a pickled object, which ranks do not share
PACK_BYTES = 8  # length field before each blob that `steps.pack` joins


@dataclass(frozen=True, slots=True)
class Facts:
    """What all ranks of a call share, by which they choose the same algorithm.

    Attributes
    ----------
    size
        Number of ranks.
    nbytes
        Bytes of one blob; None where ranks may differ (pickled objects, v-variants).
    figures
        Cost parameters of the channel.
    nodes
        Node of each rank; empty if all are on one node.
    """

    size: int
    nbytes: int | None
    figures: CostParameters
    nodes: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Bytes of one blob; an assumed length where ranks may differ."""
        return UNKNOWN_BYTES if self.nbytes is None else self.nbytes


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one or several ranks: busy seconds, dollars, puts and messages."""

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
    """Cost of a call.

    Attributes
    ----------
    seconds
        Time until the last rank has its result.
    usd
        Dollars of all ranks.
    rounds
        Length of the longest chain of messages, each of which waits for the one before.
    puts, messages
        Numbers of puts and of messages of all ranks.
    """

    seconds: float
    usd: float
    rounds: int
    puts: int
    messages: int


class Tally:
    """Accumulates the steps and the work of one call.

    Attributes
    ----------
    size
        Number of ranks, P.
    n
        Bytes of one blob.
    facts
        What all ranks of the call share.
    rounds
        Rounds on the critical path so far.
    path, busy
        Seconds of the critical path, and the part of them in which a rank works.
    total
        Work of all ranks.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.size = facts.size
        self.n = facts.length
        self._figures = facts.figures
        self.rounds = 0
        self.path = 0.0
        self.busy = 0.0
        self.total = Work()

    def _of(self, nbytes: int) -> CostParameters:
        """Return the cost parameters for a message of `nbytes`."""
        large = self._figures.large
        return self._figures if large is None or nbytes <= large[0] else large[1]

    def put(self, nbytes: int, sends: int = 1, copies: int = 1) -> Work:
        """Return the work of Sends.

        Parameters
        ----------
        nbytes
            Bytes of each message.
        sends
            Number of Sends.
        copies
            Number of ranks that read them, in all.
        """
        figures = self._of(nbytes)
        count = sends if figures.fanout else copies
        return Work(
            count * (figures.put_s + nbytes / figures.bandwidth_Bps),
            count * self._usd(figures, figures.put_usd, figures.put_usd_per_byte, nbytes),
            sends,
            copies,
        )

    def scatter(self, nbytes: int, readers: int) -> Work:
        """Return the work of one Scatter.

        Parameters
        ----------
        nbytes
            Bytes for each reader.
        readers
            Number of ranks that read it.
        """
        figures = self._of(nbytes)
        # where long messages have figures of their own, a shared object pays off only for those
        sent_alone = figures.large is not None
        if not figures.ranges or sent_alone or not readers:
            return self.put(nbytes) * readers
        whole = readers * nbytes
        usd = figures.put_usd + whole * figures.put_usd_per_byte
        return Work(figures.put_s + whole / figures.bandwidth_Bps, usd, 1, readers)

    def get(self, nbytes: int, folded: int = 0) -> Work:
        """Return the work of one Recv.

        Parameters
        ----------
        nbytes
            Bytes of the message.
        folded
            Bytes that are combined or joined afterwards.
        """
        figures = self._of(nbytes)
        seconds = figures.get_s + nbytes / figures.bandwidth_Bps + (nbytes + folded) / FRESH_BPS
        usd = self._usd(figures, figures.get_usd, figures.get_usd_per_byte, nbytes)
        return Work(seconds, usd)

    @staticmethod
    def _usd(figures: CostParameters, usd: float, usd_per_byte: float, nbytes: int) -> float:
        """Return the dollars of a message, which may be billed as several requests."""
        bills = 1 if not figures.billed_bytes else max(1, -(-nbytes // figures.billed_bytes))
        return usd * bills + usd_per_byte * nbytes

    def step(self, nbytes: int, path: Work, times: int = 1) -> None:
        """Add rounds to the critical path.

        Parameters
        ----------
        nbytes
            Bytes of the message that travels in each round.
        path
            Work that one rank does in each round.
        times
            Number of rounds.
        """
        self.rounds += times
        self.path += times * (self._of(nbytes).latency_s + path.seconds)
        self.busy += times * path.seconds

    def all(self, work: Work) -> None:
        """Add work of all ranks together, including that on the critical path.

        Parameters
        ----------
        work
            The work.
        """
        self.total = self.total + work

    def together(self, parts: Sequence[tuple[Formula, Facts]]) -> None:
        """Add calls that groups of ranks make at the same time; the slowest one delays all.

        Parameters
        ----------
        parts
            Formula and facts of each group's call.
        """
        if not parts:
            return
        tallies = []
        for formula, facts in parts:
            tally = Tally(facts)
            formula(tally)
            tallies.append(tally)
            self.all(tally.total)
        slowest = max(tallies, key=lambda tally: tally.path)
        self.rounds += max(tally.rounds for tally in tallies)
        self.path += slowest.path
        self.busy += slowest.busy

    def cost(self) -> Cost:
        """Return the cost of the call."""
        lanes = self._figures.parallelism
        elsewhere = max(0.0, self.total.seconds - self.busy) / lanes if lanes else 0.0
        return Cost(
            self.path + elsewhere, self.total.usd, self.rounds, self.total.puts, self.total.messages
        )


Formula = Callable[[Tally], None]


def log2_rounds(size: int) -> int:
    """Return ceil(log2 size), the number of rounds of a doubling algorithm.

    Parameters
    ----------
    size
        Number of ranks.
    """
    return (size - 1).bit_length()
