"""queue: one SQS queue per rank, and SNS topics that deliver one publish to any subset of ranks.

The rule is `plan`: a frame for few ranks is sent to their queues, a frame for
several is published once.  What is several depends on how many messages an
account may publish per second in the region (`fewest_readers`); SQS has no such
quota, so a publish that stays throttled is replaced by sends.  A topic's
subscriptions have filter policies, so each rank receives only messages that name
it; a topic has 200 of them, so rank r belongs to topic r // 200.

Invariants: a message is deleted only after `ack`.  Deletes are gathered for 15 s at
most; the next `ack` or empty receive starts those that are older, so a message does
not reappear while its rank communicates (the visibility timeout is 30 s).  A message
that does reappear is a duplicate, which the core drops.

If you change what becomes of a batch, also change `simulation/media.py` (Queue),
which counts its requests, and docs/reference/channels.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from serverless_mpi.aws import limits, sns, sqs
from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.limits import Figures
from serverless_mpi.aws.workers import Workers
from serverless_mpi.channels.base import (
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.channels.cleanup import Deletions, report_remaining
from serverless_mpi.core.endpoint import GAP_TIMEOUT_S
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import BILLED_CHUNK_BYTES, Meter, Prices

# Three billed chunks, less the list of a frame's readers (200 per topic, at most 9 bytes each).
# A fourth chunk would fit AWS's 256 KiB, but not the emulator, which counts a binary attribute
# by the length of its base64 form.
MAX_FRAME_BYTES = 3 * BILLED_CHUNK_BYTES - 4096
# ministack 1.5 drops binary attributes from PublishBatch; its Publish keeps them
EMULATOR_TOPIC_ENTRIES = 1

# How the times of requests become cost parameters, by assumption: one frame in four goes by SNS;
# a rank has 8 sends in flight, most with two frames; a receive brings 7.5 of 10 possible frames;
# and a long message moves 180 kB per delivery.
PUBLISHED_SHARE = 0.25
FRAMES_PER_SEND_TIME = 15
FRAMES_PER_RECEIVE = 7.5
BYTES_PER_DELIVERY = 180e3


def parameters(figures: Figures) -> CostParameters:
    """Return the cost parameters that follow from figures of SQS and SNS.

    Parameters
    ----------
    figures
        Times and rates of AWS, perhaps measured.
    """
    sent_s, published_s = figures.sqs_deliver_s.value, figures.sns_deliver_s.value
    return CostParameters(
        latency_s=(1 - PUBLISHED_SHARE) * sent_s + PUBLISHED_SHARE * published_s,
        bandwidth_Bps=min(BYTES_PER_DELIVERY / sent_s, figures.network_Bps.value),
        put_usd=5e-7,
        get_usd=8e-7,
        fanout=True,
        batch=sqs.MAX_ENTRIES,
        put_s=figures.sqs_send_s.value / FRAMES_PER_SEND_TIME,
        get_s=figures.sqs_receive_s.value / FRAMES_PER_RECEIVE,
        billed_bytes=BILLED_CHUNK_BYTES,
    )


AWS_FIGURES = parameters(limits.AWS)
# The best fit to the times of all collectives on two cores (docs/benchmarks-collectives.md).
EMULATOR_FIGURES = replace(
    AWS_FIGURES, latency_s=0.0002, bandwidth_Bps=8e7, put_s=0.001, get_s=0.0003, parallelism=2
)

# an emulator whose long poll looks for messages only every 100 ms gets short polls, with growing
# pauses between them
EMULATOR_PAUSE_S = 0.0005
EMULATOR_MAX_PAUSE_S = 0.01
T = TypeVar("T")

ACK_AFTER_S = 15.0  # longest delay of a delete; a message reappears later than that
# then the frames are sent: others use the account's quota, and a send has none
PUBLISH_BUDGET_S = 2.0
RANK_GB = 1769 / 1024  # memory of a function with one vCPU ("Configure Lambda function memory")
WAKE_BUDGET_S = 2.0  # the poll that a wake message would end takes up to 20 s
REQUESTS_AT_ONCE = 8  # of one rank


@dataclass
class Plan:
    """Requests of one put.

    Attributes
    ----------
    queue
        (rank, frames) of each SendMessageBatch.
    topic
        (topic, [(frame, ranks that read it)]) of each Publish or PublishBatch.
    """

    queue: list[tuple[int, list[bytes]]] = field(default_factory=list)
    topic: list[tuple[int, list[tuple[bytes, Sequence[int]]]]] = field(default_factory=list)


def fewest_readers(size: int, published_per_s: float, prices: Prices) -> int:
    """Return from how many readers on a publish pays, compared with a send to each.

    If every rank publishes a message at the same time, the last is admitted after
    size / published_per_s seconds, which the rank is billed for.

    Parameters
    ----------
    size
        Ranks of the job.
    published_per_s
        Messages that the account may publish per second; 0 for no limit.
    prices
        Price table.

    Returns
    -------
    At least 2: a frame for one rank is always sent, since SNS adds its own latency to that of the
    queue, which costs more than a request.
    """
    if not prices.of("sqs") or not published_per_s:
        return 2
    waiting_usd = size / published_per_s * RANK_GB * prices.usd_per_gb_second["x86_64"]
    return max(2, math.ceil((prices.of("sns") + waiting_usd) / prices.of("sqs")))


def plan(
    frames: Sequence[tuple[bytes, Sequence[int]]],
    topic_entries: int = sns.MAX_ENTRIES,
    fewest: int = 2,
) -> Plan:
    """Return the requests that deliver frames, each filled to its limits.

    Parameters
    ----------
    frames
        (frame, ranks that read it).
    topic_entries
        Most messages of one publish.
    fewest
        A frame for fewer ranks is sent to each.
    """
    by_queue: dict[int, list[bytes]] = {}
    shared: list[tuple[bytes, Sequence[int]]] = []
    for frame, dests in frames:
        if len(dests) < fewest:
            for dest in dests:
                by_queue.setdefault(dest, []).append(frame)
        else:
            shared.append((frame, dests))
    return Plan(_sends(by_queue), _publishes(shared, topic_entries))


def _sends(by_queue: dict[int, list[bytes]]) -> list[tuple[int, list[bytes]]]:
    """Return (rank, frames) of each send."""
    return [
        (dest, batch)
        for dest, frames in by_queue.items()
        for batch in _batches(
            frames,
            lambda frame: len(frame) + sqs.ENVELOPE_BYTES,
            sqs.MAX_BATCH_BYTES,
            sqs.MAX_ENTRIES,
        )
    ]


def _publishes(
    frames: Sequence[tuple[bytes, Sequence[int]]], max_entries: int
) -> list[tuple[int, list[tuple[bytes, Sequence[int]]]]]:
    """Return (topic, messages) of each publish: a frame once per topic of its readers."""
    by_topic: dict[int, list[tuple[bytes, Sequence[int]]]] = {}
    for frame, dests in frames:
        readers: dict[int, list[int]] = {}
        for dest in dests:
            readers.setdefault(dest // sns.FILTERS_PER_TOPIC, []).append(dest)
        for topic, ranks in readers.items():
            by_topic.setdefault(topic, []).append((frame, ranks))
    return [
        (topic, batch)
        for topic, messages in by_topic.items()
        for batch in _batches(
            messages, lambda message: sns.billed_bytes(*message), sns.MAX_BATCH_BYTES, max_entries
        )
    ]


def _batches(
    items: Sequence[T], size: Callable[[T], int], max_bytes: int, max_entries: int
) -> list[list[T]]:
    """Cut `items`, in order, into as few batches as the limits allow."""
    batches: list[list[T]] = []
    free_bytes = 0
    for item in items:
        if not batches or len(batches[-1]) == max_entries or size(item) > free_bytes:
            batches.append([])
            free_bytes = max_bytes
        batches[-1].append(item)
        free_bytes -= size(item)
    return batches


class QueueChannel(Channel):
    """Frames as messages of SQS and SNS.

    Settings: `queues` and `topics`, JSON lists of URLs and ARNs; `slots`, the numbers by which the
    topics of a deployed stack know the queues of ranks.  Without a stack these are the ranks.  If
    there are fewer queues than ranks, each belongs to a node.
    """

    services = frozenset({"sqs", "sns"})
    contained = True
    model = "serverless_mpi.simulation.media:Queue"
    limits = Limits(MAX_FRAME_BYTES, async_put=True)
    figures = AWS_FIGURES
    emulator_figures = EMULATOR_FIGURES

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self.limits = replace(self.limits, serial=spec.endpoint is not None)
        prices = Prices.load()
        self.figures = self.cost_of_job(spec, prices)
        credentials = Credentials(spec.endpoint, fixed=emulator_keys(spec.key))
        self._clients = [
            Client(service, spec.region, spec.endpoint, credentials, meter)
            for service in ("sqs", "sns")
        ]
        self._sqs = sqs.Sqs(self._clients[0])
        self._sqs.prompt = spec.endpoint is None
        self._sqs.late_s = sqs.ANSWER_S if spec.endpoint is None else None
        self._sns = sns.Sns(self._clients[1])
        self._queues: list[str] = json.loads(spec.settings["queues"])
        # a stack's queues exist before the job: its topics know them by their numbers in the stack
        slots: list[int] = json.loads(spec.settings.get("slots", "null")) or list(range(spec.size))
        if len(self._queues) < spec.size:  # one for each node (shared_queue.py)
            nodes = spec.nodes or (0,) * spec.size
            self._queues = [self._queues[node] for node in nodes]
            slots = [slots[node] for node in nodes]
        self._slots = slots
        self._by_slot = dict(zip(slots, self._queues, strict=True))
        self._topics: list[str] = json.loads(spec.settings["topics"])
        self._mine = self._queues[spec.rank]
        quota = 0 if spec.endpoint is not None else limits.publishes_per_s(spec.region)
        self._fewest = fewest_readers(spec.size, quota, prices)
        self._topic_entries = sns.MAX_ENTRIES if spec.endpoint is None else EMULATOR_TOPIC_ENTRIES
        # an emulator serves one request at a time: several threads would only wait for each other
        self._pool = Workers(1 if self.limits.serial else REQUESTS_AT_ONCE)
        self._patience = self._clients[0].patience(GAP_TIMEOUT_S)  # of polls that find SQS busy
        self._deletions = Deletions(
            partial(self._sqs.delete, self._mine),
            sqs.MAX_ENTRIES,
            self._pool,
            self._clients[0].patience(float("inf")),
            time.monotonic,
            most_s=ACK_AFTER_S,
        )
        self._woken = threading.Event()
        self._closed = False

    @classmethod
    def cost_by(cls, figures: Figures, prices: Prices, *, store: str = "s3") -> CostParameters:
        return parameters(figures)

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        from serverless_mpi.aws import control

        return control.make_queues(spec)

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        from serverless_mpi.aws import control

        control.remove_queues(spec)

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        if len(parcels) == 1 and len(parcels[0].dests) == 1:  # nothing to choose
            (frame,) = parcels
            self._sqs.send(self._queues[frame.dests[0]], [b"".join(frame.parts)])
            return
        frames = [
            (b"".join(frame.parts), [self._slots[dest] for dest in frame.dests])
            for frame in parcels
        ]
        chosen = plan(frames, self._topic_entries, self._fewest)
        calls: list[Callable[[], None]] = []
        calls += [
            partial(self._sqs.send, self._by_slot[slot], batch) for slot, batch in chosen.queue
        ]
        calls += [partial(self._publish, topic, batch) for topic, batch in chosen.topic]
        if len(calls) == 1 or self.limits.serial:
            for call in calls:
                call()
        else:
            self._pool.each(lambda call: call(), calls)

    def _publish(self, topic: int, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """Publish messages; send them to each reader if SNS stays busy."""
        try:
            self._sns.publish(self._topics[topic], messages, PUBLISH_BUDGET_S)
        except Busy:  # some may have been published: the core drops duplicates
            by_queue: dict[int, list[bytes]] = {}
            for frame, slots in messages:
                for slot in slots:
                    by_queue.setdefault(slot, []).append(frame)
            for slot, batch in _sends(by_queue):
                self._sqs.send(self._by_slot[slot], batch)

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        deadline = time.monotonic() + max_wait_s
        pause = EMULATOR_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            # rounded up: the rest of a second would be spent in short polls, which are billed, too
            wait_s = min(sqs.MAX_LONG_POLL_S, math.ceil(max(0.0, left))) if self._sqs.prompt else 0
            try:
                received = self._sqs.receive(self._mine, wait_s)
            except Busy:
                longer = self._patience.pause()
                if longer is None:
                    raise
                if left <= 0 or self._woken.wait(min(longer, left)):
                    self._woken.clear()
                    return []
                continue
            self._patience.over()
            deliveries = [
                Delivery(message.frame, message.handle)
                for message in received
                if message.frame is not None
            ]
            if len(deliveries) < len(received):  # the others were sent by `wake`
                self.ack([message.handle for message in received if message.frame is None])
            if not received:  # a rank that only waits adds no deletions, which would start old ones
                self._deletions.add(())
            if deliveries or received or left <= wait_s:
                return deliveries
            if self._woken.wait(0 if wait_s else min(pause, left)):
                self._woken.clear()
                return []
            pause = min(2 * pause, EMULATOR_MAX_PAUSE_S)

    def ack(self, receipts: Sequence[object]) -> None:
        self._deletions.add([str(receipt) for receipt in receipts])

    def wake(self) -> None:
        self._woken.set()  # ends a pause between short polls; a long poll ends by a message
        if self._sqs.prompt:
            with contextlib.suppress(Busy):  # the poll then ends by itself, within 20 s
                self._sqs.send(self._mine, [b""], WAKE_BUDGET_S)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        remaining = self._deletions.close()
        self._pool.close()
        for client in self._clients:
            client.close()
        report_remaining(
            remaining,
            "messages that were received",
            self._deletions.trouble,
            self.spec.rank,
            "sqs",
            self.meter,
        )
