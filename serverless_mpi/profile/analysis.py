"""Merges what the profilers of the ranks left into one `Profile`.

The sums of ranks are added.  Who was late is decided from the times of messages:

- *late sender*: a call waited for a message that had not been sent.  The time from the moment at
  which it began to wait for the message to the moment at which the sender sent it.
- *late receiver*: a call that sends took long, because no receive had matched its last message. The
  time from the send to the match, or to the end of the call.  Only where the receiver can hold the
  sender up: by a synchronous send, or on a channel on which the caller itself puts.

The rest of a call's time is its own work and the transfer of messages.

Times of two ranks are compared.  Ranks whose clocks agree within `SAME_CLOCK_NS` share one, as on
one machine.  Otherwise the times of day of two machines are compared, and what is shown is wrong
by as much as these differ; it is never longer than the wait itself.

Files are read as streams: only waits of `SHORTEST_NS` are kept, and the times of the messages that
they waited for.  Every file comes from a rank of the job itself; one without sums is named
and not counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serverless_mpi.core.wire import Kind
from serverless_mpi.metering import Prices

VERSION = 1
SAME_CLOCK_NS = 1_000_000
SHORTEST_NS = 10_000  # of a wait that is looked at
SYNCHRONOUS = ("ssend", "issend")

Name = tuple[int, ...]  # of a message: context, source, dest, number, slot (-1: point-to-point)


@dataclass
class SiteSums:
    """One call at one line of the program, in all ranks together.

    Attributes
    ----------
    call
        Name of the method, as "Allreduce"; "(start and end)" for what happens outside of calls.
    file, line, function
        Where the program calls it.
    ranks, count
        Ranks that called it, and calls.
    seconds, longest_s
        Time of all calls, and of the longest one.
    by_rank
        Rank -> seconds.
    late_sender_s, late_receiver_s
        Parts of `seconds` in which another rank was waited for.
    sent, sent_bytes, taken, taken_bytes
        Messages sent (one per destination), and point-to-point messages received.
    requests, billed
        Requests to services, and units on the bill.
    usd
        Price of the requests.
    """

    call: str
    file: str
    line: int
    function: str
    ranks: int = 0
    count: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    by_rank: dict[int, float] = field(default_factory=dict)
    late_sender_s: float = 0.0
    late_receiver_s: float = 0.0
    sent: int = 0
    sent_bytes: int = 0
    taken: int = 0
    taken_bytes: int = 0
    requests: int = 0
    billed: int = 0
    usd: float = 0.0

    @property
    def place(self) -> str:
        """File and line, as "heat2d.py:40"; "" for what no line called."""
        return f"{Path(self.file).name}:{self.line}" if self.file else ""

    @property
    def rest_s(self) -> float:
        """Time in which no other rank was waited for."""
        return max(0.0, self.seconds - self.late_sender_s - self.late_receiver_s)


@dataclass
class RankSums:
    """One rank: from the import of MPI to its end, and its time in calls, in seconds."""

    rank: int
    seconds: float
    mpi_s: float = 0.0
    late_sender_s: float = 0.0
    late_receiver_s: float = 0.0

    @property
    def own_s(self) -> float:
        """Time outside of calls: the program's own work."""
        return max(0.0, self.seconds - self.mpi_s)

    @property
    def rest_s(self) -> float:
        """Time in calls in which no other rank was waited for."""
        return max(0.0, self.mpi_s - self.late_sender_s - self.late_receiver_s)


@dataclass
class Profile:
    """A job's profile.

    Attributes
    ----------
    program, size, channel, platform
        What ran.
    holds_up
        Whether a receiver can hold up an ordinary send: the channel has the caller put.
    ranks
        Per rank that left a profile.
    sites
        By time, the longest first.
    sizes
        (bits of the length, messages, bytes) of what was sent, by length: a message of n bytes has
        n.bit_length() bits.
    matrix
        Rows (source, destination, messages, bytes).
    events, dropped
        Messages whose times were noted, and those of them that were not kept.
    rank_usd_per_s
        Price of a rank's time; 0 on one machine.
    prices
        "region, date" of the prices.
    missing
        Ranks without a profile.
    """

    program: str
    size: int
    channel: str
    platform: str
    holds_up: bool = False
    ranks: list[RankSums] = field(default_factory=list)
    sites: list[SiteSums] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    matrix: list[tuple[int, int, int, int]] = field(default_factory=list)
    events: int = 0
    dropped: int = 0
    rank_usd_per_s: float = 0.0
    prices: str = ""
    missing: list[int] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """Time of the rank that took longest."""
        return max((rank.seconds for rank in self.ranks), default=0.0)

    @property
    def mpi_share(self) -> float:
        """Time in calls over all time."""
        total = sum(rank.seconds for rank in self.ranks)
        return sum(rank.mpi_s for rank in self.ranks) / total if total else 0.0

    @property
    def imbalance(self) -> float:
        """How much longer the busiest rank worked outside of calls than the mean, as a share."""
        own = [rank.own_s for rank in self.ranks]
        mean = sum(own) / len(own) if own else 0.0
        return max(own) / mean - 1 if mean else 0.0

    @property
    def requests_usd(self) -> float:
        """Price of all requests."""
        return sum(site.usd for site in self.sites)

    def time_usd(self, seconds: float) -> float:
        """Return the price of that time of a rank.

        Parameters
        ----------
        seconds
            Seconds of one rank, or of several together.
        """
        return seconds * self.rank_usd_per_s

    def by_call(self) -> list[SiteSums]:
        """Return the sums of each call over all lines, the longest first."""
        sums: dict[str, SiteSums] = {}
        for site in self.sites:
            into = sums.setdefault(site.call, SiteSums(site.call, "", 0, ""))
            _add(into, site)
        return sorted(sums.values(), key=lambda site: -site.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; file format of `--profile=FILE.json`."""
        return {
            "version": VERSION,
            **asdict(self),
            "wall_s": self.wall_s,
            "mpi_share": self.mpi_share,
            "imbalance": self.imbalance,
            "requests_usd": self.requests_usd,
        }


def _add(into: SiteSums, site: SiteSums) -> None:
    """Add sums of one call to others of it."""
    for name in (
        *("count", "seconds", "late_sender_s", "late_receiver_s", "sent", "sent_bytes"),
        *("taken", "taken_bytes", "requests", "billed", "usd"),
    ):
        setattr(into, name, getattr(into, name) + getattr(site, name))
    into.longest_s = max(into.longest_s, site.longest_s)
    for rank, seconds in site.by_rank.items():
        into.by_rank[rank] = into.by_rank.get(rank, 0.0) + seconds
    into.ranks = len(into.by_rank)


def merge(folder: Path, profile: Profile, prices: Prices) -> Profile:
    """Fill a profile with what the ranks left.

    Parameters
    ----------
    folder
        With files profile-RANK.json.
    profile
        With what is known of the job; filled.
    prices
        Prices of the services.

    Returns
    -------
    Profile
        `profile`.

    Raises
    ------
    OSError, ValueError, TypeError, LookupError
        A file is damaged behind its sums.
    """
    profile.prices = f"{prices.region}, {prices.dated}"
    sites: dict[tuple[str, str, int, str], SiteSums] = {}
    sizes: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    own_sites: dict[int, list[SiteSums]] = {}  # rank -> its sites, by their numbers
    offsets: dict[int, int] = {}
    for number in range(profile.size):
        path = folder / f"profile-{number}.json"
        try:
            facts = next(_lines(path))
            rank = RankSums(number, facts["ns"] / 1e9)
            mine = [_site(row, number, prices) for row in facts["sites"]]
            sent = [list(map(int, row)) for row in facts["sent"]]
            if not all(0 <= row[0] < profile.size for row in sent):
                raise ValueError("a message to a rank that does not exist")
            offsets[number] = int(facts["offset"])
            profile.events += sum(map(int, facts["events"]))
        except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
            profile.missing.append(number)
            continue
        rank.mpi_s = sum(site.seconds for site in mine)
        profile.ranks.append(rank)
        own_sites[number] = []
        for site in mine:
            total = sites.setdefault(
                (site.call, site.file, site.line, site.function),
                SiteSums(site.call, site.file, site.line, site.function),
            )
            _add(total, site)
            own_sites[number].append(total)
        _add_messages(profile, number, sent, sizes)
    profile.sizes = [(bits, row[0], row[1]) for bits, row in sorted(sizes.items())]
    profile.sites = list(sites.values())
    _Waits(folder, profile, own_sites, offsets).charge()
    profile.sites = sorted(
        (site for site in profile.sites if site.count or site.requests),
        key=lambda site: (-site.seconds, -site.usd, site.place),
    )
    return profile


def _add_messages(
    profile: Profile, rank: int, sent: Sequence[Sequence[int]], sizes: dict[int, list[int]]
) -> None:
    """Add the rows (destination, bits of the length, messages, bytes) that a rank sent."""
    pairs: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for dest, bits, messages, nbytes in sent:
        for row in (sizes[bits], pairs[dest]):
            row[0] += messages
            row[1] += nbytes
    profile.matrix += [(rank, dest, row[0], row[1]) for dest, row in sorted(pairs.items())]


def _lines(path: Path) -> Iterator[Any]:
    with open(path) as lines:
        for line in lines:
            yield json.loads(line)


def _site(row: Sequence[Any], rank: int, prices: Prices) -> SiteSums:
    """Return the sums of a rank's site from what `Site.row` returned."""
    call, file, line, function, count, total_ns, longest_ns, *messages, requests = row
    site = SiteSums(str(call), str(file), int(line), str(function), 1, int(count), total_ns / 1e9)
    site.longest_s = longest_ns / 1e9
    if site.count:
        site.by_rank[rank] = site.seconds
    site.sent, site.sent_bytes, site.taken, site.taken_bytes = map(int, messages)
    for name, (attempts, billed, nbytes) in requests.items():
        site.requests += int(attempts)
        site.billed += int(billed)
        site.usd += prices.usd(name, {"billed": int(billed), "nbytes": int(nbytes)})
    return site


@dataclass
class _Wait:
    """A wait for a message: of which rank, at which site, from when to when (ns of the epoch)."""

    rank: int
    site: int
    begin: int
    end: int


class _Waits:
    """Decides who was late."""

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        sites: Mapping[int, Sequence[SiteSums]],
        offsets: Mapping[int, int],
    ) -> None:
        self._profile, self._sites = profile, sites
        self._paths = {number: folder / f"profile-{number}.json" for number in sites}
        values = list(offsets.values())
        together = bool(values) and max(values) - min(values) < SAME_CLOCK_NS
        self._offsets = {
            number: values[0] if together else offset for number, offset in offsets.items()
        }
        self._ranks = {rank.rank: rank for rank in profile.ranks}

    def charge(self) -> None:
        """Add the waits to the sums of sites and ranks."""
        late: dict[Name, list[_Wait]] = defaultdict(list)  # messages that were waited for
        long: dict[Name, list[_Wait]] = defaultdict(list)  # sends that took long
        kept = 0
        for rank, kind, event in self._events("tls"):
            kept += kind != "l"
            if kind == "t":
                context, source, seq, slot, site, begin, end = event
                if end - begin >= SHORTEST_NS:
                    name = (context, source, rank, seq, slot)
                    late[name].append(self._wait(rank, site, begin, end))
            elif kind == "l":
                context, dest, seq, begin, site, end = event
                if self._holds_up(rank, site):
                    name = (context, rank, dest, seq, -1)
                    long[name].append(self._wait(rank, site, begin, end))
        self._profile.dropped = max(0, self._profile.events - kept)
        for rank, kind, event in self._events("st"):
            if kind == "s":
                point_or_step, context, tag, seq, dests, at = event
                slot = tag if point_or_step == Kind.STEP else -1
                for dest in dests:
                    for wait in late.get((context, rank, dest, seq, slot), ()):
                        self._note("late_sender_s", wait, at + self._offsets[rank])
            elif long:
                context, source, seq, slot, _, _, at = event
                for wait in long.pop((context, source, rank, seq, slot), ()):
                    self._note("late_receiver_s", wait, at + self._offsets[rank])

    def _events(self, kinds: str) -> Iterator[tuple[int, str, Any]]:
        """Yield (rank, kind, event) of these kinds."""
        for number, path in self._paths.items():
            lines = _lines(path)
            next(lines)
            for kind, rows in lines:
                if kind in kinds:
                    for row in rows:
                        yield number, kind, row

    def _wait(self, rank: int, site: int, begin: int, end: int) -> _Wait:
        offset = self._offsets[rank]
        return _Wait(rank, site, begin + offset, end + offset)

    def _holds_up(self, rank: int, site: int) -> bool:
        """Whether a receiver can hold up a send of this site."""
        return self._profile.holds_up or self._sites[rank][site].call.lower() in SYNCHRONOUS

    def _note(self, name: str, wait: _Wait, until: int) -> None:
        """Charge the part of a wait that ends at `until`."""
        seconds = (min(until, wait.end) - wait.begin) / 1e9
        if seconds <= 0 or not wait.site:
            return
        for sums in (self._sites[wait.rank][wait.site], self._ranks[wait.rank]):
            setattr(sums, name, getattr(sums, name) + seconds)


def ranks_text(numbers: Iterable[int], most: int = 8) -> str:
    """Return numbers of ranks as text.

    Parameters
    ----------
    numbers
        Ranks.
    most
        How many are named.
    """
    listed = list(numbers)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(str, listed[:most])) + more
