"""Models of channels: the requests that a batch of frames becomes, and when each reader has it.

Requests follow the channels' own rules (`queue.plan`, `hybrid.together`), on frames that have a
length and no bytes. Counts that depend on timing (empty polls, messages per receive) are estimates;
the rest is exact, and tests/test_simulation.py compares it with the emulator.

A channel whose batching changes changes here by itself, if it changes the rule that both call. A
new request of a channel has to be added to its model.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from serverless_mpi import channels, plugins
from serverless_mpi.aws import sns, sqs
from serverless_mpi.aws.s3 import PART_BYTES
from serverless_mpi.channels import hybrid, object, queue
from serverless_mpi.channels.base import CostParameters, OutgoingFrame
from serverless_mpi.core.tags import TAG_BYTES
from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.simulation.figures import Latency

REQUESTS_AT_ONCE = 8  # of one rank: the channels' pools


class Blank:
    """Stands for bytes of which only the number matters."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __len__(self) -> int:
        return self.nbytes


class _Gate:
    """The limit of a service on requests of all ranks: so many per second.

    Time is divided into slices; a full slice passes requests on to the next. So requests may be
    entered in any order of time.
    """

    SLICE_S = 0.02

    def __init__(self, per_s: float) -> None:
        self._most = per_s * self.SLICE_S  # of one slice of time; 0: no limit
        self._used: dict[int, float] = {}
        self._next: dict[int, int] = {}  # a full slice -> one after it that may have capacity

    def enter(self, now: float, count: int = 1) -> float:
        """Return when the last of `count` requests that are ready at `now` is admitted."""
        if not self._most:
            return now
        number, waiting = int(now / self.SLICE_S), float(count)
        while True:
            full = []
            while number in self._next:
                full.append(number)
                number = self._next[number]
            for passed in full:  # the next search takes one step
                self._next[passed] = number
            free = self._most - self._used.get(number, 0.0)
            self._used[number] = self._used.get(number, 0.0) + min(free, waiting)
            if waiting < free:
                return max(now, number * self.SLICE_S)
            waiting -= free
            self._next[number] = number + 1
            if waiting <= 0:
                return max(now, number * self.SLICE_S)


@dataclass(frozen=True, slots=True)
class Item:
    """A frame on its way to one reader.

    Attributes
    ----------
    when
        Second from which it can be received.
    slot
        Slot of its message.
    nbytes
        Bytes of the frame.
    start, whole
        Its offset in an object of several readers, and the bytes of that object; 0 otherwise.
    reference
        Bytes of the queue message that refers to the object; 0 without one.
    near
        It comes from a rank of the reader's node.
    """

    when: float
    slot: int
    nbytes: int
    start: int = 0
    reference: int = 0
    whole: int = 0
    near: bool = False


@dataclass(frozen=True)
class Conditions:
    """What a model is built for.

    Attributes
    ----------
    channel
        Name under which a channel that uses no AWS service is metered.
    latency
        Figures of the services: AWS's or the emulator's.
    prices
        Price table, for channels that choose a way by price.
    figures
        Cost parameters of the channel.
    size
        Ranks of the job.
    nodes
        Node of each rank; empty if all are on one node.
    """

    channel: str
    latency: Latency
    prices: Prices
    figures: CostParameters
    size: int = 1
    nodes: tuple[int, ...] = ()


class ChannelModel:
    """The simulation model of a channel: what a batch of frames becomes, and when it is there.

    A channel names its subclass in `Channel.model`.
    """

    def __init__(self, conditions: Conditions, meter: Meter) -> None:
        self.conditions = conditions
        self.latency = conditions.latency
        self.meter = meter
        self._lanes: dict[int, list[float]] = defaultdict(lambda: [0.0] * REQUESTS_AT_ONCE)
        self.network: dict[int, float] = defaultdict(float)  # rank -> when its network is free

    def put(
        self, rank: int, now: float, parcels: Sequence[OutgoingFrame]
    ) -> list[tuple[int, Item]]:
        """Put a batch of frames.

        Parameters
        ----------
        rank
            Who puts them.
        now
            When, in seconds.
        parcels
            Frames whose bodies are `Blank`.

        Returns
        -------
        (reader, item) of each reader of each frame.
        """
        raise NotImplementedError

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        """Return the second at which a rank has received all of its items.

        Parameters
        ----------
        rank
            World rank that receives.
        since
            Second from which it waits.
        coming
            Items that `put` returned for this rank, in any order.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Count the requests that ranks make at their end."""

    def _request(
        self, rank: int, now: float, seconds: float, nbytes: int = 0, rate_Bps: float = 1.0
    ) -> float:
        """Start a request on the first free connection of a rank; return its end.

        It takes `seconds`, and then its bytes at `rate_Bps`, or later and slower if the bytes of
        the rank's other requests occupy its network.
        """
        lanes = self._lanes[rank]
        answered = max(now, lanes[0]) + seconds
        end = answered + nbytes / rate_Bps
        if self.latency.network_Bps:
            free = max(answered, self.network[rank]) + nbytes / self.latency.network_Bps
            self.network[rank] = free
            end = max(end, free)
        heapq.heapreplace(lanes, end)
        return end


class Parametric(ChannelModel):
    """The channel as its cost parameters state it: each rank puts one frame after the other.

    It serves every channel whose ranks do not compete for a service.
    """

    def __init__(self, conditions: Conditions, meter: Meter) -> None:
        super().__init__(conditions, meter)
        self._figures = conditions.figures
        self._free: dict[int, float] = defaultdict(float)

    def put(
        self, rank: int, now: float, parcels: Sequence[OutgoingFrame]
    ) -> list[tuple[int, Item]]:
        readers = []
        for parcel in (single for parcel in parcels for single in parcel.split_per_reader()):
            for dest in parcel.dests:
                figures = self._between(rank, dest)
                self._free[rank] = (
                    max(now, self._free[rank])
                    + figures.put_s
                    + parcel.nbytes / figures.bandwidth_Bps
                )
                self.meter.count(self.conditions.channel, "put", nbytes=parcel.nbytes, messages=1)
                item = Item(
                    self._free[rank] + figures.latency_s,
                    parcel.name.tag,
                    parcel.nbytes,
                    near=figures is not self._figures,
                )
                readers.append((dest, item))
        return readers

    def _between(self, rank: int, dest: int) -> CostParameters:
        """Return the figures of messages between two ranks."""
        nodes, near = self.conditions.nodes, self._figures.near
        return near if near and nodes and nodes[rank] == nodes[dest] else self._figures

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        for item in sorted(coming, key=_when):
            figures = (self._figures.near if item.near else None) or self._figures
            since = max(since, item.when) + figures.get_s + item.nbytes / figures.bandwidth_Bps
        return since


class Queue(ChannelModel):
    """SQS, and SNS where a frame has several readers."""

    def __init__(self, conditions: Conditions, meter: Meter) -> None:
        super().__init__(conditions, meter)
        self._prices = conditions.prices
        self._sns = _Gate(self.latency.sns_per_s)
        quota = self.latency.sns_per_s if self.latency.aws else 0
        self._fewest = queue.fewest_readers(conditions.size, quota, conditions.prices)
        self._received: dict[int, int] = defaultdict(int)

    def put(
        self, rank: int, now: float, parcels: Sequence[OutgoingFrame]
    ) -> list[tuple[int, Item]]:
        frames: list[Any] = []
        slot: dict[int, int] = {}
        for parcel in (single for parcel in parcels for single in parcel.split_per_reader()):
            blank = Blank(parcel.nbytes)
            slot[id(blank)] = parcel.name.tag
            frames.append((blank, parcel.dests))
        latency = self.latency
        chosen = queue.plan(frames, latency.topic_entries, self._fewest)
        readers = []
        for dest, batch in chosen.queue:
            nbytes = sum(len(frame) + sqs.ENVELOPE_BYTES for frame in batch)
            self.meter.count("sqs", "SendMessageBatch", nbytes=nbytes, messages=len(batch))
            end = self._request(rank, now, latency.sqs_send_s, nbytes, latency.sqs_Bps)
            # a reader that waits has it `sqs_deliver_s` after the begin, its own receive included
            there = end + (latency.sqs_deliver_s - latency.sqs_receive_s - latency.sqs_send_s)
            readers += [(dest, Item(there, slot[id(frame)], len(frame))) for frame in batch]
        for _, messages in chosen.topic:
            nbytes = sum(sns.billed_bytes(frame, dests) for frame, dests in messages)
            action = "Publish" if len(messages) == 1 else "PublishBatch"
            self.meter.count("sns", action, nbytes=nbytes, messages=len(messages))
            start = self._sns.enter(now, len(messages))
            end = self._request(rank, start, latency.sns_publish_s, nbytes, latency.sqs_Bps)
            there = end + (latency.sns_deliver_s - latency.sqs_receive_s - latency.sns_publish_s)
            readers += [
                (dest, Item(there, slot[id(frame)], len(frame)))
                for frame, dests in messages
                for dest in dests
            ]
        return readers

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        left, now, at = sorted(coming, key=_when), since, 0
        self._received[rank] += len(left)
        while at < len(left):
            empty = int(max(0.0, left[at].when - now) // sqs.MAX_LONG_POLL_S)
            if empty:
                self.meter.count("sqs", "ReceiveMessage", requests=empty)
            now, first = max(now, left[at].when), at
            while at < len(left) and at - first < sqs.MAX_ENTRIES and left[at].when <= now:
                at += 1
            nbytes = sum(item.nbytes + sqs.ENVELOPE_BYTES for item in left[first:at])
            self.meter.count("sqs", "ReceiveMessage", nbytes=nbytes, messages=at - first)
            now += self.latency.sqs_receive_s + nbytes / self.latency.sqs_Bps
        return now

    def close(self) -> None:
        for count in self._received.values():
            self.meter.count("sqs", "DeleteMessageBatch", requests=-(-count // sqs.MAX_ENTRIES))


class Objects(ChannelModel):
    """S3."""

    def __init__(self, conditions: Conditions, meter: Meter) -> None:
        super().__init__(conditions, meter)
        self._puts = _Gate(self.latency.s3_puts_per_s)
        self._gets = _Gate(self.latency.s3_gets_per_s)
        self._listed_above = object.listed_above(conditions.prices, self.latency.store)

    def put(
        self, rank: int, now: float, parcels: Sequence[OutgoingFrame]
    ) -> list[tuple[int, Item]]:
        return [item for parcel in parcels for item in self.put_one(rank, now, parcel)]

    def put_one(self, rank: int, now: float, parcel: OutgoingFrame) -> list[tuple[int, Item]]:
        """Put one object.

        Parameters
        ----------
        rank
            World rank that puts the object.
        now
            Simulated time of the put, in seconds.
        parcel
            Its frame, for one or several ranks.

        Returns
        -------
        list[tuple[int, Item]]
            (reader, item) for each reader; the item can be received from the end of the put on.
        """
        place = len(object.table(parcel)) if parcel.bodies else 0
        nbytes = parcel.nbytes + place
        parts = 1 if nbytes <= object.MULTIPART_BYTES else -(-nbytes // PART_BYTES)
        requests, trips = (1, 1) if parts == 1 else (parts + 2, 3)
        self.meter.count(self.latency.store, "PUT", requests=requests, nbytes=nbytes, messages=1)
        rate_Bps = min(parts, REQUESTS_AT_ONCE) * self.latency.s3_Bps
        begin = self._puts.enter(now, requests)
        end = self._request(rank, begin, trips * self.latency.s3_put_s, nbytes, rate_Bps)
        if not parcel.bodies:
            return [(dest, Item(end, parcel.name.tag, nbytes)) for dest in parcel.dests]
        readers = []
        for dest, parts_of_it in zip(parcel.dests, parcel.bodies, strict=True):
            length = sum(part.nbytes for part in parts_of_it)
            readers.append((dest, Item(end, parcel.name.tag, length, place, whole=nbytes)))
            place += length
        return readers

    def get_one(self, rank: int, now: float, item: Item) -> float:
        """Read an object that exists; return when the reader has it.

        Parameters
        ----------
        rank
            World rank of the reader.
        now
            Simulated time of the request, in seconds.
        item
            The frame to be read, perhaps a range of the object.

        Returns
        -------
        float
            Simulated time, in seconds.
        """
        nbytes, requests = item.nbytes, max(1, -(-item.nbytes // PART_BYTES))
        if (
            item.start and not item.reference
        ):  # first the table and what lies near it, then the rest
            rest = max(0, item.start + nbytes - max(item.start, object.GUESS_BYTES))
            nbytes = min(object.GUESS_BYTES, item.whole) + rest
            requests = 1 + -(-rest // PART_BYTES)
        trips = min(2, requests)
        self.meter.count(self.latency.store, "GET", requests=requests, nbytes=nbytes, messages=1)
        at_once = min(max(1, requests - 1), REQUESTS_AT_ONCE)
        begin = self._gets.enter(now, requests)
        return self._request(
            rank, begin, trips * self.latency.s3_get_s, nbytes, at_once * self.latency.s3_Bps
        )

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        left, now, at = sorted(coming, key=_when), since, 0
        pauses = self.latency.pauses_s
        pause = pauses.first
        while at < len(left):
            begin, missing = at, len(left) - at
            while at < len(left) and left[at].when <= now:
                at += 1
            looked = self._look(now, missing, len(left) - at)
            if at > begin:
                # GETs in vain are sent together with the others, a LIST before them
                start = looked if missing > self._listed_above else now
                ends = [self.get_one(rank, start, item) for item in left[begin:at]]
                now, pause = max(looked, *ends), pauses.first
            else:
                now, pause = looked + pause, pauses.after(pause, looked - since)
        return now

    def _look(self, now: float, awaited: int, in_vain: int) -> float:
        """Look for objects, `in_vain` of which do not exist; return when the rank knows."""
        if awaited > self._listed_above:
            self.meter.count(self.latency.store, "LIST")
            return self._gets.enter(now) + self.latency.s3_get_s
        if not in_vain:
            return now
        self.meter.count(self.latency.store, "GET", requests=in_vain)
        trips = -(-in_vain // REQUESTS_AT_ONCE)
        return self._gets.enter(now, in_vain) + trips * self.latency.s3_get_s


class Hybrid(Queue):
    """Large frames as objects of S3, whose references travel by the queue with the small frames."""

    def __init__(self, conditions: Conditions, meter: Meter) -> None:
        super().__init__(conditions, meter)
        self._objects = Objects(conditions, meter)
        self._objects.network = self.network  # one function carries both
        self._threshold = hybrid.threshold(conditions.prices, self.latency.store)

    def put(
        self, rank: int, now: float, parcels: Sequence[OutgoingFrame]
    ) -> list[tuple[int, Item]]:
        small: list[OutgoingFrame] = []
        references: list[OutgoingFrame] = []
        stored: dict[tuple[int, int], list[Item]] = defaultdict(list)
        ready = now
        for given in parcels:
            together = given.bodies and hybrid.together(given, self._prices, self.latency.store)
            for parcel in [given] if together else given.split_per_reader():
                if not together and parcel.nbytes <= self._threshold:
                    small.append(parcel)
                    continue
                for dest, item in self._objects.put_one(rank, now, parcel):
                    stored[dest, item.slot].append(item)
                    ready = max(ready, item.when)
                nbytes = TAG_BYTES + sum(len(part) for part in hybrid.reference(parcel))
                body: Any = (Blank(nbytes),)
                references.append(OutgoingFrame(parcel.dests, parcel.name, body))
        readers = super().put(rank, ready, small + references)
        for place, (dest, item) in enumerate(readers):
            if objects := stored.get((dest, item.slot)):
                readers[place] = (
                    dest,
                    replace(objects.pop(0), when=item.when, reference=item.nbytes),
                )
        return readers

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        queued = [
            replace(item, nbytes=item.reference, reference=0) if item.reference else item
            for item in coming
        ]
        now = super().take(rank, since, queued)
        return max(
            [now, *(self._objects.get_one(rank, now, item) for item in coming if item.reference)]
        )


def _when(item: Item) -> float:
    return item.when


def channel_model(
    channel: str,
    latency: Latency,
    meter: Meter,
    prices: Prices,
    size: int = 1,
    nodes: tuple[int, ...] = (),
) -> tuple[ChannelModel, CostParameters, int]:
    """Return the simulation model of a channel, its cost parameters, and its largest frame.

    Parameters
    ----------
    channel
        The channel's name.
    latency
        Figures of AWS or of the emulator.
    meter
        Counts the requests that the model makes.
    prices
        Price table, for channels that choose a way by price.
    size
        Ranks of the job.
    nodes
        Node of each rank; empty if all are on one node.

    Returns
    -------
    (model, cost parameters, bytes of the longest frame, header included).

    Raises
    ------
    UsageError
        There is no such channel, it has no simulation model, or the model cannot be imported.
    """
    kind = channels.load(channel)
    if kind.model is None:
        raise UsageError(
            f"channel {channel} has no simulation model, so its collectives cannot be forecast"
        )
    if latency.figures is None:
        figures = kind.cost(aws=False, prices=prices)
    else:
        figures = kind.cost_by(latency.figures, prices, store=latency.store)
    try:
        model: type[ChannelModel] = plugins.resolve(kind.model)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the simulation model of channel {channel} ({kind.model}) cannot be imported: {error}"
        ) from error
    conditions = Conditions(channel, latency, prices, figures, size, nodes)
    return model(conditions, meter), figures, kind.limits.max_frame_bytes
