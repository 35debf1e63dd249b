"""A planner for scale: the real generators on a discrete-event model of a medium, which counts requests, seconds and dollars.

A simulated rank runs until it waits; what it has sent goes to the medium as one batch, as the runtime puts it, and the
medium says when each reader has it.  Requests are made by the channels' own rules (`queue.plan`, `hybrid.together`), on
frames that have a length and no bytes, so what the model counts is what a rank would do: a test compares it with the
emulator.  What depends on the moment at which a rank looks (polls that find nothing, how many messages a receive
brings) is a forecast; the rest is exact.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serverless_mpi.aws import sns, sqs
from serverless_mpi.aws.s3 import PART_BYTES
from serverless_mpi.channels import direct, hybrid, object, queue
from serverless_mpi.channels.base import EACH, MANY, Figures, FrameName, Parcel
from serverless_mpi.collectives.choose import TABLE, Facts, name_of, select
from serverless_mpi.collectives.simulate import Layout, keep_first, members
from serverless_mpi.collectives.steps import Algorithm, Deal, Elementwise, Recv, Send, whole
from serverless_mpi.core.wire import HEADER_BYTES, Kind
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.metering import Meter, Prices

REQUESTS_AT_ONCE = 8  # of one rank: the channels' pools


@dataclass(frozen=True)
class Latency:
    """How long things take, and how many a service takes in a second.

    *_s: seconds of one request, without its bytes; *_Bps: bytes per second of one connection; *_per_s: of all ranks
    together (0: no limit); pauses_s: between two looks for an object, first and longest.
    """

    sqs_send_s: float
    sqs_receive_s: float
    sqs_Bps: float
    sns_publish_s: float
    sns_deliver_s: float
    sns_per_s: float
    s3_put_s: float
    s3_get_s: float
    s3_Bps: float
    s3_puts_per_s: float
    s3_gets_per_s: float
    pauses_s: tuple[float, float]
    start_s: float
    starts_per_10_s: int
    topic_entries: int
    aws: bool


# "Tens or low hundreds of milliseconds" a call of SQS (its FAQ); SNS delivers to SQS "typically within 30 ms" (SNS FAQ).
# S3: 100-200 ms to the first byte of a small object, 85-90 MB/s a connection, 3,500 PUT and 5,500 GET a second and
# partitioned prefix ("Performance design patterns for Amazon S3"; a new bucket is one partition).  Lambda: 1,000
# environments every 10 s and function ("Lambda scaling behavior"); a start with this package's imports takes about half a second.
AWS = Latency(
    sqs_send_s=0.015, sqs_receive_s=0.015, sqs_Bps=25e6, sns_publish_s=0.025, sns_deliver_s=0.03, sns_per_s=30_000,
    s3_put_s=0.1, s3_get_s=0.1, s3_Bps=9e7, s3_puts_per_s=3500, s3_gets_per_s=5500, pauses_s=object.AWS_PAUSES_S,
    start_s=0.5, starts_per_10_s=1000, topic_entries=sns.MAX_ENTRIES, aws=True,
)  # fmt: skip
# The embedded emulator: about a millisecond a call, one at a time.
EMULATOR = Latency(
    sqs_send_s=0.001, sqs_receive_s=0.001, sqs_Bps=4e7, sns_publish_s=0.001, sns_deliver_s=0.0, sns_per_s=1000,
    s3_put_s=0.001, s3_get_s=0.001, s3_Bps=1.5e8, s3_puts_per_s=1000, s3_gets_per_s=1000, pauses_s=object.EMULATOR_PAUSES_S,
    start_s=0.3, starts_per_10_s=0, topic_entries=queue.EMULATOR_TOPIC_ENTRIES, aws=False,
)  # fmt: skip
LATENCIES = {"aws": AWS, "emulator": EMULATOR}

# Messages a second that an account may publish ("Amazon SNS endpoints and quotas", AWS General Reference); elsewhere the least.
SNS_QUOTA = {
    "us-east-1": 30_000, "us-west-2": 9_000, "eu-west-1": 9_000, "us-east-2": 3_000, "us-west-1": 3_000, "ap-south-1": 3_000,
    "ap-northeast-1": 3_000, "ap-northeast-2": 3_000, "ap-southeast-1": 3_000, "ap-southeast-2": 3_000, "eu-central-1": 3_000,
}  # fmt: skip
SNS_LEAST = 300


class Blank:
    """Bytes of which only the number matters."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __len__(self) -> int:
        return self.nbytes


class _Gate:
    """Requests of one kind that all ranks make: at most so many a second, in whatever order they are told of."""

    SLICE_S = 0.02

    def __init__(self, per_s: float) -> None:
        self._most = per_s * self.SLICE_S  # of one slice of time; 0: no limit
        self._used: dict[int, float] = {}
        self._next: dict[int, int] = {}  # a full slice -> one after it that may have room

    def enter(self, now: float, count: int = 1) -> float:
        """When the last of `count` requests that are ready at `now` is let in."""
        if not self._most:
            return now
        place, left = int(now / self.SLICE_S), float(count)
        while True:
            passed = []
            while place in self._next:
                passed.append(place)
                place = self._next[place]
            for full in passed:
                self._next[full] = place
            room = self._most - self._used.get(place, 0.0)
            self._used[place] = self._used.get(place, 0.0) + min(room, left)
            if left < room:
                return max(now, place * self.SLICE_S)
            left -= room
            self._next[place] = place + 1
            if left <= 0:
                return max(now, place * self.SLICE_S)


@dataclass(frozen=True, slots=True)
class Item:
    """A frame on its way to one reader.

    when: it can be had; start: its place in a dealt object (0 otherwise); reference: bytes of what tells of it on the
    queue where it is an object (0: nothing does).
    """

    when: float
    slot: int
    nbytes: int
    start: int = 0
    reference: int = 0


class Medium:
    """What a batch of parcels becomes."""

    def __init__(self, latency: Latency, meter: Meter) -> None:
        self.latency = latency
        self.meter = meter
        self._lanes: dict[int, list[float]] = defaultdict(lambda: [0.0] * REQUESTS_AT_ONCE)

    def put(self, rank: int, now: float, parcels: Sequence[Parcel]) -> list[tuple[int, Item]]:
        """Each reader of everything in `parcels`, and what it reads."""
        raise NotImplementedError

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        """When `rank`, which waits since `since`, has all that is `coming`."""
        raise NotImplementedError

    def close(self) -> None:
        """What ranks do at the end."""

    def _request(self, rank: int, now: float, seconds: float) -> float:
        """A request of a rank takes the first of its connections that is free; returns its end."""
        lanes = self._lanes[rank]
        end = max(now, lanes[0]) + seconds
        heapq.heapreplace(lanes, end)
        return end


class Direct(Medium):
    """One message after the other, from memory to memory."""

    def __init__(self, latency: Latency, meter: Meter, figures: Figures) -> None:
        super().__init__(latency, meter)
        self._figures = figures
        self._free: dict[int, float] = defaultdict(float)

    def put(self, rank: int, now: float, parcels: Sequence[Parcel]) -> list[tuple[int, Item]]:
        figures, found = self._figures, []
        for parcel in (single for parcel in parcels for single in parcel.singly()):
            for dest in parcel.dests:
                self._free[rank] = max(now, self._free[rank]) + figures.put_s + parcel.nbytes / figures.bandwidth_Bps
                self.meter.count("direct", "put", nbytes=parcel.nbytes, messages=1)
                found.append((dest, Item(self._free[rank] + figures.latency_s, parcel.name.tag, parcel.nbytes)))
        return found

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        for item in sorted(coming, key=_when):
            since = max(since, item.when) + self._figures.get_s + item.nbytes / self._figures.bandwidth_Bps
        return since


class Queue(Medium):
    """SNS and SQS."""

    def __init__(self, latency: Latency, meter: Meter, prices: Prices) -> None:
        super().__init__(latency, meter)
        self._prices = prices
        self._sns = _Gate(latency.sns_per_s)
        self._received: dict[int, int] = defaultdict(int)

    def put(self, rank: int, now: float, parcels: Sequence[Parcel]) -> list[tuple[int, Item]]:
        frames: list[Any] = []
        slot: dict[int, int] = {}
        for parcel in (single for parcel in parcels for single in parcel.singly()):
            blank = Blank(parcel.nbytes)
            slot[id(blank)] = parcel.name.tag
            frames.append((blank, parcel.dests))
        chosen, latency = queue.plan(frames, self._prices, self.latency.topic_entries), self.latency
        found = []
        for dest, batch in chosen.queue:
            nbytes = sum(len(frame) + sqs.ENVELOPE_BYTES for frame in batch)
            self.meter.count("sqs", "SendMessageBatch", nbytes=nbytes, messages=len(batch))
            end = self._request(rank, now, latency.sqs_send_s + nbytes / latency.sqs_Bps)
            found += [(dest, Item(end, slot[id(frame)], len(frame))) for frame in batch]
        for _, messages in chosen.topic:
            nbytes = sum(sns.billed_bytes(frame, dests) for frame, dests in messages)
            action = "Publish" if len(messages) == 1 else "PublishBatch"
            self.meter.count("sns", action, nbytes=nbytes, messages=len(messages))
            start = self._sns.enter(now, len(messages))
            end = self._request(rank, start, latency.sns_publish_s + nbytes / latency.sqs_Bps) + latency.sns_deliver_s
            found += [(dest, Item(end, slot[id(frame)], len(frame))) for frame, dests in messages for dest in dests]
        return found

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


class Objects(Medium):
    """S3."""

    def __init__(self, latency: Latency, meter: Meter) -> None:
        super().__init__(latency, meter)
        self._puts, self._gets = _Gate(latency.s3_puts_per_s), _Gate(latency.s3_gets_per_s)

    def put(self, rank: int, now: float, parcels: Sequence[Parcel]) -> list[tuple[int, Item]]:
        return [one for parcel in parcels for one in self.put_one(rank, now, parcel)]

    def put_one(self, rank: int, now: float, parcel: Parcel) -> list[tuple[int, Item]]:
        """An object."""
        place = len(object.table(parcel)) if parcel.own else 0
        nbytes = parcel.nbytes + place
        parts = 1 if nbytes <= object.MULTIPART_BYTES else -(-nbytes // PART_BYTES)
        requests, trips = (1, 1) if parts == 1 else (parts + 2, 3)
        self.meter.count("s3", "PUT", requests=requests, nbytes=nbytes, messages=1)
        seconds = trips * self.latency.s3_put_s + nbytes / min(parts, REQUESTS_AT_ONCE) / self.latency.s3_Bps
        end = self._request(rank, self._puts.enter(now, requests), seconds)
        if not parcel.own:
            return [(dest, Item(end, parcel.name.tag, nbytes)) for dest in parcel.dests]
        found = []
        for dest, parts_of_it in zip(parcel.dests, parcel.own, strict=True):
            length = sum(part.nbytes for part in parts_of_it)
            found.append((dest, Item(end, parcel.name.tag, length, place)))
            place += length
        return found

    def get_one(self, rank: int, now: float, item: Item) -> float:
        """What a reader reads of an object that is there; returns when he has it."""
        nbytes, requests = item.nbytes, max(1, -(-item.nbytes // PART_BYTES))
        if item.start and not item.reference:  # first the table and what lies near it, then the rest
            rest = max(0, item.start + nbytes - max(item.start, object.GUESS_BYTES))
            nbytes, requests = object.GUESS_BYTES + rest, 1 + -(-rest // PART_BYTES)
        trips = min(2, requests)
        self.meter.count("s3", "GET", requests=requests, nbytes=nbytes, messages=1)
        at_once = min(max(1, requests - 1), REQUESTS_AT_ONCE)
        seconds = trips * self.latency.s3_get_s + nbytes / at_once / self.latency.s3_Bps
        return self._request(rank, self._gets.enter(now, requests), seconds)

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        left, now, at = sorted(coming, key=_when), since, 0
        first, longest = self.latency.pauses_s
        pause = first
        while at < len(left):
            begin, looked = at, now
            while at < len(left) and left[at].when <= now:
                at += 1
            if missing := len(left) - at:  # looked for in vain
                self.meter.count("s3", "GET", requests=missing)
                looked = self._gets.enter(now, missing) + -(-missing // REQUESTS_AT_ONCE) * self.latency.s3_get_s
            if at > begin:
                now, pause = max(looked, *(self.get_one(rank, now, item) for item in left[begin:at])), first
            else:
                now, pause = looked + pause, min(2 * pause, longest)
        return now


class Hybrid(Queue):
    """Both: what is large is an object, and its reference travels by the queue."""

    def __init__(self, latency: Latency, meter: Meter, prices: Prices) -> None:
        super().__init__(latency, meter, prices)
        self._objects = Objects(latency, meter)
        self._threshold = hybrid.threshold(prices)

    def put(self, rank: int, now: float, parcels: Sequence[Parcel]) -> list[tuple[int, Item]]:
        small: list[Parcel] = []
        references: list[Parcel] = []
        stored: dict[tuple[int, int], list[Item]] = defaultdict(list)
        ready = now
        for given in parcels:
            together = given.own and hybrid.together(given, self._prices)
            for parcel in [given] if together else given.singly():
                if not together and parcel.nbytes <= self._threshold:
                    small.append(parcel)
                    continue
                for dest, item in self._objects.put_one(rank, now, parcel):
                    stored[dest, item.slot].append(item)
                    ready = max(ready, item.when)
                nbytes = hybrid.TAG_BYTES + sum(len(part) for part in hybrid.reference(parcel))
                references.append(Parcel(parcel.dests, parcel.name, (Blank(nbytes),)))  # type: ignore[arg-type]
        found = super().put(rank, ready, small + references)
        for place, (dest, item) in enumerate(found):
            if objects := stored.get((dest, item.slot)):
                found[place] = (dest, replace(objects.pop(0), when=item.when, reference=item.nbytes))
        return found

    def take(self, rank: int, since: float, coming: list[Item]) -> float:
        queued = [replace(one, nbytes=one.reference, reference=0) if one.reference else one for one in coming]
        now = super().take(rank, since, queued)
        return max([now, *(self._objects.get_one(rank, now, item) for item in coming if item.reference)])


def _when(item: Item) -> float:
    return item.when


def _medium(channel: str, latency: Latency, meter: Meter, prices: Prices) -> tuple[Medium, Figures, int]:
    """(the model of a channel, its figures, its longest frame)."""
    if channel == "queue":
        return Queue(latency, meter, prices), queue.AWS_FIGURES if latency.aws else queue.EMULATOR_FIGURES, queue.MAX_FRAME_BYTES
    if channel == "object":
        return Objects(latency, meter), object.AWS_FIGURES if latency.aws else object.EMULATOR_FIGURES, object.MAX_FRAME_BYTES
    if channel == "hybrid":
        return Hybrid(latency, meter, prices), hybrid.figures(latency.aws, hybrid.threshold(prices)), hybrid.MAX_FRAME_BYTES
    if channel == "direct":
        figures = direct.DirectChannel.figures
        return Direct(latency, meter, figures), figures, direct.MAX_FRAME_BYTES
    raise UsageError(f"channel {channel!r} cannot be simulated; known: hybrid, queue, object, direct")


@dataclass
class Forecast:
    """A call: what was chosen, and what it costs.

    rounds: longest chain of messages; messages: reads of all ranks; nbytes: put by all ranks, a Send to many counted
    once; seconds: until the last rank is done; requests: "service.operation" -> counts, as a Meter has them; usd.
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
    operation: str, nbytes: int, size: int, channel: str, latency: Latency, prices: Prices, algorithm: Any = None,
    layout: Layout | None = None,
) -> Forecast:  # fmt: skip
    """Run a call's generators on the model of a channel.

    nbytes: of a blob; algorithm: instead of the one that would be chosen; layout: see `collectives.simulate`.

    Raises
    ------
    UsageError
        No such operation, or a channel that has no model.
    """
    meter = Meter()
    medium, figures, longest = _medium(channel, latency, meter, prices)
    if operation not in TABLE:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(TABLE)}")
    chosen = algorithm or select(operation, Facts(size, nbytes, figures))
    ranks = members(operation, chosen, size, memoryview(bytes(nbytes)), Elementwise(keep_first, 1), layout)
    made = Forecast(operation, nbytes, size, name_of(chosen))
    _run(ranks, medium, longest, made)
    medium.close()
    made.requests = meter.snapshot()
    made.usd = prices.requests_usd(made.requests)
    return made


def _run(ranks: Sequence[Algorithm], medium: Medium, longest: int, made: Forecast) -> None:
    """Every rank to its end, the earliest first."""
    mail: dict[tuple[int, int, int], tuple[memoryview, int, list[Item]]] = {}  # (source, slot, dest) -> data, round, frames
    waiting: dict[int, tuple[list[Any], float, bool]] = {}  # rank -> its step, since when, whether it is a list
    missing: dict[int, int] = {}  # rank -> how many messages it lacks
    lacked_by: dict[tuple[int, int, int], int] = {}
    rounds = [0] * len(ranks)
    able: list[tuple[float, int, Any]] = [(0.0, rank, None) for rank in range(len(ranks))]

    def put(rank: int, now: float, steps: list[Send | Deal]) -> None:
        parcels, contents = [], {}
        for step in steps:
            blobs = [(dest, step.data) for dest in step.dests] if isinstance(step, Send) else list(step.blobs)
            if not blobs:
                continue
            made.messages += len(blobs)
            made.sent += sum(sum(part.nbytes for part in data) for _, data in (blobs if isinstance(step, Deal) else blobs[:1]))
            shared = whole(step.data) if isinstance(step, Send) else None
            for dest, data in blobs:
                contents[step.slot, dest] = shared if shared is not None else whole(data)
            parcels += _parcels(rank, step, longest)
        frames: dict[tuple[int, int], list[Item]] = defaultdict(list)
        for dest, item in medium.put(rank, now, parcels) if parcels else ():
            frames[item.slot, dest].append(item)
        for (slot, dest), items in frames.items():
            name = (rank, slot, dest)
            mail[name] = (contents[slot, dest], rounds[rank] + 1, items)
            made.rounds = max(made.rounds, rounds[rank] + 1)
            reader = lacked_by.pop(name, None)
            if reader is not None:
                missing[reader] -= 1
                if not missing[reader]:
                    resume(reader)

    def resume(rank: int) -> None:
        steps, since, several = waiting.pop(rank)
        values: list[Any] = []
        coming: list[Item] = []
        for step in steps:
            if isinstance(step, Recv):
                data, number, items = mail.pop((step.source, step.slot, rank))
                rounds[rank] = max(rounds[rank], number)
                coming += items
                values.append(data)
            else:
                values.append(None)
        now = medium.take(rank, since, coming) if coming else since
        heapq.heappush(able, (now, rank, values if several else values[0]))

    while able:
        now, rank, value = heapq.heappop(able)
        sends: list[Send | Deal] = []
        while True:  # until it waits for something: what it sends until then goes out as one batch
            try:
                step = ranks[rank].send(value)
            except StopIteration:
                put(rank, now, sends)
                made.seconds = max(made.seconds, now)
                break
            several = isinstance(step, (list, tuple))
            steps = list(step) if several else [step]
            sends += [one for one in steps if not isinstance(one, Recv)]
            lacking = [(one.source, one.slot, rank) for one in steps if isinstance(one, Recv)]
            if lacking:
                waiting[rank] = (steps, now, several)
                missing[rank] = 0
                for name in lacking:
                    if name not in mail:
                        lacked_by[name] = rank
                        missing[rank] += 1
                put(rank, now, sends)
                if rank in waiting and not missing[rank]:
                    resume(rank)
                break
            value = [None] * len(steps) if several else None
    if waiting:
        raise JobError(f"deadlock: {sorted(lacked_by)}")


def _parcels(rank: int, step: Send | Deal, longest: int) -> list[Parcel]:
    """The frames of a step, as the endpoint cuts them, without bytes."""
    most = longest - HEADER_BYTES

    def name(dest: int, chunk: int) -> FrameName:
        return FrameName(Kind.STEP, 1, rank, dest, 0, step.slot, chunk)

    def lengths(data: Sequence[memoryview]) -> list[int]:
        total = sum(part.nbytes for part in data)
        return [HEADER_BYTES + min(most, total - start) for start in range(0, max(1, total), most)]

    if isinstance(step, Send):
        return [
            Parcel(step.dests, name(MANY, chunk), (Blank(nbytes),))  # type: ignore[arg-type]
            for chunk, nbytes in enumerate(lengths(step.data))
        ]
    cut = [(dest, lengths(data)) for dest, data in step.blobs]
    parcels = []
    for chunk in range(max(len(frames) for _, frames in cut)):
        own = [(dest, frames[chunk]) for dest, frames in cut if chunk < len(frames)]
        dests = tuple(dest for dest, _ in own)
        parcels.append(Parcel(dests, name(EACH, chunk), (), tuple((Blank(nbytes),) for _, nbytes in own)))  # type: ignore[misc]
    return parcels
