"""Replays the trace of a job on the model of a channel: how long would it take on AWS?

A rank's trace becomes a list of what it did: it worked for so long, it sent a message, it took one.
The replay keeps the order of these and the time of the work, and asks the model of the channel when
each message arrives.  So the forecast has the job's own messages and its own imbalance; a program
that decides by time (a work queue) would decide differently on AWS, and the replay does not.

Messages that a rank sends without taking one in between are put together, and those that it takes
without sending in between are taken together, as the runtime does.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serverless_mpi.channels.base import FrameName, OutgoingFrame
from serverless_mpi.core.wire import HEADER_BYTES, Kind
from serverless_mpi.errors import JobError
from serverless_mpi.metering import Meter, Prices, Snapshot
from serverless_mpi.simulation.figures import Latency
from serverless_mpi.simulation.media import Blank, ChannelModel, Item, channel_model


@dataclass(frozen=True)
class Message:
    """A message: numbers of it per destination, the destinations, and its bytes."""

    numbers: tuple[int, ...]
    dests: tuple[int, ...]
    nbytes: int


@dataclass
class Did:
    """What a rank does at once: work, then puts, then takes.

    Attributes
    ----------
    work_s
        Seconds of the program's own work.
    puts
        Messages that it sends then.
    takes
        Numbers of the messages that it waits for then.
    """

    work_s: float = 0.0
    puts: list[Message] = field(default_factory=list)
    takes: list[int] = field(default_factory=list)


@dataclass
class RankTrace:
    """What a rank did, and its seconds in calls of MPI."""

    steps: list[Did]
    mpi_s: float

    def scale(self, work_s: float) -> None:
        """Give the rank another time of work.

        What it worked less is taken from all of its work in proportion; what it worked more was
        before its first call, which a trace does not have.

        Parameters
        ----------
        work_s
            Seconds.
        """
        known = sum(step.work_s for step in self.steps)
        if known > work_s:
            for step in self.steps:
                step.work_s *= work_s / known
        else:
            self.steps[0].work_s += work_s - known


@dataclass
class Replay:
    """A job on the model.

    Attributes
    ----------
    seconds
        Until the last rank is done; functions have started before.
    rank_seconds
        The same for each rank.
    work_s
        The longest work of a rank.
    requests
        As `Meter.snapshot` returns them.
    usd
        Price of the requests.
    """

    seconds: float
    rank_seconds: list[float]
    work_s: float
    requests: Snapshot
    usd: float


def read(path: Path) -> list[RankTrace]:
    """Return what each rank of a trace did.

    Parameters
    ----------
    path
        A file of `smpirun --trace`.
    """
    trace = json.loads(path.read_text())
    ranks = range(int(trace["otherData"]["ranks"]))
    # per rank (time in us, kind, what): kind 0 begins a call, 1 sends, 2 takes, 3 ends a call
    times: dict[int, list[tuple[float, int, Any]]] = {rank: [] for rank in ranks}
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    takers: dict[int, int] = {}
    sends: dict[tuple[int, float], list[tuple[int, int]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        rank, kind = event.get("pid"), event["ph"]
        if kind == "X" and event["tid"] == 0 and event["cat"] == "call":
            spans[rank].append((event["ts"], event["ts"] + event["dur"]))
        elif kind == "s":
            sends[rank, event["ts"]].append((event["id"], event["args"]["bytes"]))
        elif kind == "f":
            takers[event["id"]] = rank
            times[rank].append((event["ts"], 2, event["id"]))
    for (rank, at), messages in sends.items():
        numbers = tuple(number for number, _ in messages)
        dests = tuple(takers[number] for number in numbers)
        times[rank].append((at, 1, Message(numbers, dests, messages[0][1])))
    mpi_s = dict.fromkeys(ranks, 0.0)
    for rank, calls in spans.items():
        end = -1.0
        for begin, finish in sorted(calls, key=lambda call: (call[0], -call[1])):
            if begin >= end:  # else it is inside the call before
                end = finish
                times[rank] += [(begin, 0, None), (finish, 3, None)]
                mpi_s[rank] += finish - begin
    return [
        RankTrace(_steps(sorted(times[rank], key=lambda each: each[:2])), mpi_s[rank] / 1e6)
        for rank in ranks
    ]


def _steps(times: Sequence[tuple[float, int, Any]]) -> list[Did]:
    """Return the steps of a rank from its events in their order."""
    steps = [Did()]
    ended: float | None = None
    for at, kind, what in times:
        if kind == 0 and ended is not None and at > ended:
            steps.append(Did(work_s=(at - ended) / 1e6))
        elif kind == 1:
            if steps[-1].takes:
                steps.append(Did())
            steps[-1].puts.append(what)
        elif kind == 2:
            steps[-1].takes.append(what)
        elif kind == 3:
            ended = at
    return steps


def replay(ranks: Sequence[RankTrace], channel: str, latency: Latency, prices: Prices) -> Replay:
    """Play what the ranks did on the model of a channel.

    Parameters
    ----------
    ranks
        What `read` returned.
    channel
        Name of a channel that has a model.
    latency, prices
        Times and prices of the services.

    Raises
    ------
    UsageError
        The channel has no model.
    JobError
        A message of the trace is never sent.
    """
    meter = Meter()
    model, _, most = channel_model(channel, latency, meter, prices, len(ranks))
    player = _Player([rank.steps for rank in ranks], model, most)
    player.play()
    model.close()
    requests = meter.snapshot()
    work_s = max(sum(step.work_s for step in rank.steps) for rank in ranks)
    ends = player.ends
    return Replay(max(ends), ends, work_s, requests, prices.requests_usd(requests))


class _Player:
    """Runs the steps of all ranks, the earliest first."""

    def __init__(self, ranks: Sequence[Sequence[Did]], model: ChannelModel, most: int) -> None:
        self._ranks, self._model, self._most = ranks, model, most
        self._mail: dict[int, list[Item]] = {}  # number of a message that was put -> its frames
        self._lacking: dict[int, set[int]] = {}  # rank that waits -> numbers that were not put
        self._reader_of: dict[int, int] = {}
        self._since = [0.0] * len(ranks)
        self._place = [0] * len(ranks)
        self.ends = [0.0] * len(ranks)
        self._able = [(steps[0].work_s, rank) for rank, steps in enumerate(ranks)]
        heapq.heapify(self._able)

    def play(self) -> None:
        """Run until every rank has ended.

        Raises
        ------
        JobError
            Ranks wait for messages that no rank sends.
        """
        while self._able:
            now, rank = heapq.heappop(self._able)
            step = self._ranks[rank][self._place[rank]]
            self._since[rank] = now
            missing = {number for number in step.takes if number not in self._mail}
            self._lacking[rank] = missing
            self._reader_of.update(dict.fromkeys(missing, rank))
            ready = [rank] if not missing else []
            for number, items in _put(self._model, rank, now, step.puts, self._most).items():
                self._mail[number] = items
                reader = self._reader_of.pop(number, None)
                if reader is not None:
                    self._lacking[reader].discard(number)
                    if not self._lacking[reader]:
                        ready.append(reader)
            for reader in ready:
                self._take(reader)
        stuck = [rank for rank, place in enumerate(self._place) if place < len(self._ranks[rank])]
        if stuck:
            raise JobError(f"the trace lacks messages that these ranks took: {stuck[:8]}")

    def _take(self, rank: int) -> None:
        """End the step of a rank, whose messages are all on their way."""
        takes = self._ranks[rank][self._place[rank]].takes
        items = [item for number in takes for item in self._mail.pop(number, [])]
        since = self._since[rank]
        self.ends[rank] = done = self._model.take(rank, since, items) if items else since
        self._place[rank] += 1
        if self._place[rank] < len(self._ranks[rank]):
            work_s = self._ranks[rank][self._place[rank]].work_s
            heapq.heappush(self._able, (done + work_s, rank))


def _put(
    model: ChannelModel, rank: int, now: float, puts: Sequence[Message], most: int
) -> Mapping[int, list[Item]]:
    """Put messages as one batch; return the frames of each number on their way."""
    frames: list[OutgoingFrame] = []
    numbers: dict[tuple[int, int], int] = {}  # (slot, reader) -> number of the message
    body = most - HEADER_BYTES
    for slot, message in enumerate(puts):
        numbers.update({(slot, d): n for n, d in zip(message.numbers, message.dests, strict=True)})
        for chunk, start in enumerate(range(0, max(1, message.nbytes), body)):
            name = FrameName(Kind.POINT, 1, rank, message.dests[0], 0, slot, chunk)
            blank: Any = (Blank(HEADER_BYTES + min(body, message.nbytes - start)),)
            frames.append(OutgoingFrame(message.dests, name, blank))
    items: dict[int, list[Item]] = defaultdict(list)
    if frames:
        for dest, item in model.put(rank, now, frames):
            items[numbers[item.slot, dest]].append(item)
    return items
