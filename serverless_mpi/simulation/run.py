"""Plays a collective call of any number of ranks on the model of a channel.

A simulated rank runs its generator until it waits for a message. What it has sent until then goes
to the model as one batch, as the runtime would put it, and the model returns when each reader has
it. The rank that can run earliest runs next (`Player.able` is a heap by time), so the model sees
puts in the order of time.

Invariants: a message is in `Player.mail` from its put to its receipt; a rank is either in `able` or
in `waiting`. A rank that never leaves `waiting` is a deadlock, which is raised.

What is counted is what ranks would do: tests/test_simulation.py compares it with the emulator. If
you change how the runtime gathers frames into batches, change `Player._run_rank`, too.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serverless_mpi.channels.base import SCATTERED, SHARED, FrameName, OutgoingFrame
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, select
from serverless_mpi.collectives.operations import Layout, example_calls
from serverless_mpi.collectives.steps import Recv, Scatter, Send, Steps, whole
from serverless_mpi.core.wire import HEADER_BYTES, Kind
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.simulation.figures import Latency
from serverless_mpi.simulation.media import Blank, ChannelModel, Item, channel_model


@dataclass
class Forecast:
    """One call: the algorithm that was chosen, and what it costs.

    Attributes
    ----------
    operation, algorithm
        Names in `collectives.choose`.
    nbytes
        Bytes of a blob.
    size
        Ranks.
    rounds
        Messages in the longest chain of messages that depend on each other.
    messages
        Reads of all ranks.
    sent
        Bytes put by all ranks; a Send to several ranks counts once.
    seconds
        Until the last rank is done.
    requests
        "service.operation" -> counts, as `Meter.snapshot` returns them.
    usd
        Price of the requests.
    """

    operation: str
    nbytes: int
    size: int
    algorithm: str
    rounds: int = 0
    messages: int = 0
    sent: int = 0
    seconds: float = 0.0
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    usd: float = 0.0


def forecast(
    operation: str,
    nbytes: int,
    size: int,
    channel: str,
    latency: Latency,
    prices: Prices,
    algorithm: Algorithm | None = None,
    layout: Layout | None = None,
    nodes: tuple[int, ...] = (),
) -> Forecast:
    """Play the generators of a call on the model of a channel.

    Parameters
    ----------
    operation
        A key of `collectives.operations.OPERATIONS`.
    nbytes
        Bytes of each blob.
    size
        Ranks; of both groups together between two groups.
    channel
        Name of a channel that has a model.
    latency, prices
        Times and prices of the services.
    algorithm
        Played instead of the one that `select` would choose.
    layout
        See `collectives.operations.Layout`; None within one group.
    nodes
        Node of each rank; empty if all are on one node.

    Returns
    -------
    Forecast

    Raises
    ------
    UsageError
        The operation does not exist, or the channel has no model.
    JobError
        The algorithm deadlocks.
    """
    meter = Meter()
    model, figures, max_frame_bytes = channel_model(channel, latency, meter, prices, size, nodes)
    if operation not in ALGORITHMS:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(ALGORITHMS)}")
    facts = Facts(size, nbytes, figures, nodes)
    chosen = (algorithm or select(operation, facts)).on(facts)
    if chosen.placed and not chosen.condition(facts):
        raise UsageError(f"{operation} by {chosen.name} cannot serve these nodes: see -ppn")
    ranks = example_calls(
        operation, chosen.generator, size, memoryview(bytes(nbytes)), layout=layout
    )
    result = Forecast(operation, nbytes, size, chosen.name)
    Player(ranks, model, max_frame_bytes, result).play()
    model.close()
    result.requests = meter.snapshot()
    result.usd = prices.requests_usd(result.requests)
    return result


class _MessageName(NamedTuple):
    """What names a message of a call, as (sender, slot) and the reader do."""

    source: int
    slot: int
    dest: int


class _Sent(NamedTuple):
    """A message that its reader has not received: `round` is its place in a chain of messages."""

    data: memoryview
    round: int
    frames: list[Item]


@dataclass(slots=True)
class _Waiting:
    """A rank that waits: the steps that it yielded, since when, and how many messages it lacks.

    several: it yielded a list of steps, so it is sent a list.
    """

    steps: list[Any]
    since: float
    several: bool
    lacking: int = 0


class Player:
    """Runs every rank of a call to its end, the earliest first.

    Parameters
    ----------
    ranks
        The generator of each rank; consumed.
    model
        When a reader has what is put.
    max_frame_bytes
        Longest frame of the channel, header included.
    result
        Its `rounds`, `messages`, `sent` and `seconds` are filled.
    """

    def __init__(
        self, ranks: Sequence[Steps], model: ChannelModel, max_frame_bytes: int, result: Forecast
    ) -> None:
        self.ranks, self.model, self.max_frame_bytes = ranks, model, max_frame_bytes
        self.result = result
        self.mail: dict[_MessageName, _Sent] = {}
        self.waiting: dict[int, _Waiting] = {}
        self.reader_of: dict[_MessageName, int] = {}  # messages that a waiting rank lacks
        self.rounds = [0] * len(ranks)
        # (time, rank, what its generator is sent next): a heap, so the earliest rank runs first
        self.able: list[tuple[float, int, Any]] = [(0.0, rank, None) for rank in range(len(ranks))]

    def play(self) -> None:
        """Run until every rank has ended.

        Raises
        ------
        JobError
            Ranks wait for messages that no rank sends.
        """
        while self.able:
            now, rank, value = heapq.heappop(self.able)
            self._run_rank(rank, now, value)
        if self.waiting:
            lacking = ", ".join(
                f"rank {name.dest} from rank {name.source} (slot {name.slot})"
                for name in sorted(self.reader_of)
            )
            raise JobError(f"deadlock: no rank sends what these wait for: {lacking}")

    def _run_rank(self, rank: int, now: float, value: Any) -> None:
        """Run a rank until it waits or ends; its sends until then are one batch."""
        sends: list[Send | Scatter] = []
        while True:
            try:
                step = self.ranks[rank].send(value)
            except StopIteration:
                self._put(rank, now, sends)
                self.result.seconds = max(self.result.seconds, now)
                return
            several = isinstance(step, (list, tuple))
            steps = list(step) if several else [step]
            sends += [part for part in steps if not isinstance(part, Recv)]
            names = [
                _MessageName(part.source, part.slot, rank)
                for part in steps
                if isinstance(part, Recv)
            ]
            if names:
                self._wait(rank, _Waiting(steps, now, several), names)
                self._put(rank, now, sends)
                # the put may have resumed this rank: a message can come back within it
                if rank in self.waiting and not self.waiting[rank].lacking:
                    self._resume(rank)
                return
            value = [None] * len(steps) if several else None

    def _wait(self, rank: int, waiting: _Waiting, names: Sequence[_MessageName]) -> None:
        """Register a rank as waiting for the messages `names`."""
        self.waiting[rank] = waiting
        for name in names:
            if name not in self.mail:
                self.reader_of[name] = rank
                waiting.lacking += 1

    def _put(self, rank: int, now: float, steps: Sequence[Send | Scatter]) -> None:
        """Give a batch to the model and resume the ranks that lacked nothing else."""
        frames: list[OutgoingFrame] = []
        contents: dict[tuple[int, int], memoryview] = {}  # (slot, dest) -> data
        for step in steps:
            if isinstance(step, Send) and step.dests:
                data = whole(step.data)
                contents.update({(step.slot, dest): data for dest in step.dests})
                self._count(len(step.dests), data.nbytes)
            elif isinstance(step, Scatter) and step.blobs:
                for dest, parts in step.blobs:
                    contents[step.slot, dest] = whole(parts)
                    self._count(1, contents[step.slot, dest].nbytes)
            else:  # a step without readers puts nothing
                continue
            frames += _frames(rank, step, self.max_frame_bytes)
        if not frames:
            return
        items: dict[tuple[int, int], list[Item]] = defaultdict(list)
        for dest, item in self.model.put(rank, now, frames):
            items[item.slot, dest].append(item)
        number = self.rounds[rank] + 1
        for (slot, dest), frames_of_message in items.items():
            self.result.rounds = max(self.result.rounds, number)
            name = _MessageName(rank, slot, dest)
            self.mail[name] = _Sent(contents[slot, dest], number, frames_of_message)
            self._deliver(name)

    def _count(self, messages: int, nbytes: int) -> None:
        self.result.messages += messages
        self.result.sent += nbytes

    def _deliver(self, name: _MessageName) -> None:
        """Resume the reader of a message if it was the last one that the reader lacked."""
        reader = self.reader_of.pop(name, None)
        if reader is None:
            return
        self.waiting[reader].lacking -= 1
        if not self.waiting[reader].lacking:
            self._resume(reader)

    def _resume(self, rank: int) -> None:
        """Make a rank able to run at the time at which it has read all its messages."""
        waiting = self.waiting.pop(rank)
        values: list[Any] = []
        incoming: list[Item] = []
        for step in waiting.steps:
            if not isinstance(step, Recv):
                values.append(None)
                continue
            message = self.mail.pop(_MessageName(step.source, step.slot, rank))
            self.rounds[rank] = max(self.rounds[rank], message.round)
            incoming += message.frames
            values.append(message.data)
        now = self.model.take(rank, waiting.since, incoming) if incoming else waiting.since
        heapq.heappush(self.able, (now, rank, values if waiting.several else values[0]))


def _frames(rank: int, step: Send | Scatter, max_frame_bytes: int) -> list[OutgoingFrame]:
    """The frames of a step, cut as the endpoint cuts them, with lengths instead of bytes."""
    most = max_frame_bytes - HEADER_BYTES

    def name(dest: int, chunk: int) -> FrameName:
        return FrameName(Kind.STEP, 1, rank, dest, 0, step.slot, chunk)

    def lengths(data: Sequence[memoryview]) -> list[int]:
        total = sum(part.nbytes for part in data)
        return [HEADER_BYTES + min(most, total - start) for start in range(0, max(1, total), most)]

    if isinstance(step, Send):
        shared: list[Any] = [(Blank(nbytes),) for nbytes in lengths(step.data)]
        return [
            OutgoingFrame(step.dests, name(SHARED, chunk), body)
            for chunk, body in enumerate(shared)
        ]
    lengths_of = [(dest, lengths(data)) for dest, data in step.blobs]
    frames = []
    for chunk in range(max(len(chunks) for _, chunks in lengths_of)):
        readers = [(dest, chunks[chunk]) for dest, chunks in lengths_of if chunk < len(chunks)]
        dests = tuple(dest for dest, _ in readers)
        bodies: Any = tuple((Blank(nbytes),) for _, nbytes in readers)
        frames.append(OutgoingFrame(dests, name(SCATTERED, chunk), (), bodies))
    return frames
