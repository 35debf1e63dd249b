"""hybrid, the default: small frames on the queue; a large one as an object, and its reference on the queue.

A reference is authenticated with the job's key, and the frame it brings has a tag of its own.  Dealt frames
that would cost more on the queue are one object; its reference, published once, has the table of who reads
which range.  Whoever may write to a queue can send a reference of this job again, also to another rank, so a rank
follows only what names an object for itself or for several ranks (`locate_frame`), and deletes only its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from serverless_mpi.channels.base import (
    SCATTERED,
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.channels.object import (
    NOTHING,
    ObjectChannel,
    ReadObject,
    Store,
    locate,
    table,
    table_bytes,
)
from serverless_mpi.channels.queue import MAX_FRAME_BYTES as QUEUE_FRAME_BYTES
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.core.tags import TAG_BYTES, Purpose, make, same
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import BILLED_CHUNK_BYTES, Meter, Prices

MAX_FRAME_BYTES = (
    65 << 20
)  # so that a receiver can put a long message together while the rest is on its way
_MAGIC = b"sR"  # a frame begins with b"sM"
_DEALT = b"sD"  # a reference that begins with a table
_KEY = re.compile(rb"(m|r/([0-9]{6,9}))/[0-9a-f]{16}/[0-9a-f./]{1,100}")


def threshold(prices: Prices) -> int:
    """The largest frame in bytes that goes on the queue.

    A frame of c chunks of 64 KB costs c sends and c receives there, and as an
    object a PUT, a GET, and a send and a receive of its reference.  The frame must
    also fit the queue.
    """
    a_chunk = 2 * prices.of("sqs")
    an_object = prices.of("s3.PUT") + prices.of("s3.GET") + 2 * prices.of("sqs")
    chunks = int(an_object / a_chunk) if a_chunk else 0
    return min(QUEUE_FRAME_BYTES, chunks * BILLED_CHUNK_BYTES)


def together(frame: OutgoingFrame, prices: Prices) -> bool:
    """Whether a dealt parcel is cheaper as one object than frame by frame on the queue or as objects of their own."""
    a_reader = prices.of("s3.GET") + prices.of("sqs")
    as_one = prices.of("s3.PUT") + prices.of("sns") + len(frame.dests) * a_reader
    alone = 0.0
    for parts in frame.bodies:
        chunks = -(-sum(part.nbytes for part in parts) // BILLED_CHUNK_BYTES)
        alone += min(
            chunks * 2 * prices.of("sqs"), prices.of("s3.PUT") + prices.of("sqs") + a_reader
        )
    return as_one < alone


def object_key(frame: OutgoingFrame) -> str:
    """The key of a parcel's object; frames that were dealt but travel alone get keys of their own."""
    alone = frame.name.dest == SCATTERED and not frame.bodies
    return f"{frame.name.key()}.{frame.dests[0]:06d}" if alone else frame.name.key()


def reference(frame: OutgoingFrame) -> tuple[bytes, bytes]:
    """(magic, text) of what travels on the queue in the place of a parcel that is an object."""
    key = object_key(frame).encode()
    return (_DEALT, table(frame) + key) if frame.bodies else (_MAGIC, key)


class Place(NamedTuple):
    """Where a reference says that a frame lies: the whole object (nbytes None), or a part of it."""

    key: str
    start: int
    nbytes: int | None
    object_bytes: int  # of the whole object, 0 where the reference does not say it


def locate_frame(magic: bytes, text: memoryview, rank: int) -> Place | None:
    """Where the frame of `rank` lies by what `reference` made; None if it is not for this rank, or damaged."""
    start, nbytes, end, key = 0, None, 0, bytes(text)
    if magic == _DEALT:
        place = locate(text, rank)
        if place is None:
            return None
        start, nbytes, end = place
        key = bytes(text[table_bytes(text) :])
        if not 0 < nbytes <= MAX_FRAME_BYTES:
            return None
    named = _KEY.fullmatch(key)
    if named is None or (named.group(2) is not None and int(named.group(2)) != rank):
        return None
    return Place(key.decode(), start, nbytes, end)


def sealed(frame: OutgoingFrame, key: bytes) -> bytes:
    """A parcel's reference as it travels: magic, tag, text."""
    magic, text = reference(frame)
    return magic + make(key, Purpose.REFERENCE, magic + text) + text


def opened(data: memoryview, key: bytes) -> tuple[bytes, memoryview] | None:
    """(magic, text) of a reference that was made with the job's key; None for anything else."""
    magic, tag, text = bytes(data[:2]), data[2 : 2 + TAG_BYTES], data[2 + TAG_BYTES :]
    if magic not in (_MAGIC, _DEALT):
        return None
    if not same(tag, make(key, Purpose.REFERENCE, magic + bytes(text))):
        return None
    return magic, text


class HybridChannel(Channel):
    """The queue and the object channel together."""

    services = QueueChannel.services | ObjectChannel.services
    contained = True
    model = "serverless_mpi.simulation.media:Hybrid"
    limits = Limits(MAX_FRAME_BYTES, async_put=True)

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self.limits = replace(self.limits, serial=spec.endpoint is not None)
        self._queue = QueueChannel(spec, meter)
        self._store = Store(spec, meter, MAX_FRAME_BYTES)
        self._prices = Prices.load()
        self._threshold = threshold(self._prices)
        self.figures = self.cost(aws=spec.endpoint is None, prices=self._prices)
        self._closed = False

    @classmethod
    def cost(cls, *, aws: bool, prices: Prices) -> CostParameters:
        """Return the queue's up to the threshold; beyond it, an object's and its reference's together."""
        small = QueueChannel.cost(aws=aws, prices=prices)
        large = ObjectChannel.cost(aws=aws, prices=prices)
        both = replace(
            large,
            latency_s=small.latency_s + large.latency_s,
            put_s=small.put_s + large.put_s,
            get_s=small.get_s + large.get_s,
            put_usd=small.put_usd + large.put_usd,
            get_usd=small.get_usd + large.get_usd,
        )
        return replace(small, ranges=True, large=(threshold(prices), both))

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        return {**QueueChannel.provision(spec), **ObjectChannel.provision(spec)}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        QueueChannel.destroy(spec)
        ObjectChannel.destroy(spec)

    def put(self, frames: Sequence[OutgoingFrame]) -> None:
        if len(frames) == 1 and not frames[0].bodies and frames[0].nbytes <= self._threshold:
            self._queue.put(frames)  # the usual case: 5 Python calls, 1 us, less
            return
        small: list[OutgoingFrame] = []
        large: list[OutgoingFrame] = []
        for given in frames:
            whole = given.bodies and together(given, self._prices)
            for frame in [given] if whole else given.split_per_reader():
                (large if whole or frame.nbytes > self._threshold else small).append(frame)
        self._store.each(lambda frame: self._store.put(object_key(frame), frame), large)
        self._queue.put(
            small
            + [
                OutgoingFrame(frame.dests, frame.name, (memoryview(sealed(frame, self.spec.key)),))
                for frame in large
            ]
        )

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        deliveries = self._queue.get(max_wait_s, wanted)
        return [
            one for one in self._store.each(self._resolve, deliveries) if isinstance(one, Delivery)
        ]

    def _resolve(self, delivery: object) -> Delivery:
        """The frame of a reference; anything else as it is, for the core to judge."""
        assert isinstance(delivery, Delivery)
        data = delivery.data
        parsed = opened(data, self.spec.key)
        if parsed is None:
            return Delivery(data, (delivery.receipt, None))
        magic, text = parsed
        # No frame: a reference that is not for this rank, or a second delivery of one whose object has been read and deleted.
        # The core counts it as dropped.
        nothing = Delivery(NOTHING, (delivery.receipt, None))
        place = locate_frame(magic, text, self.spec.rank)
        if place is None:
            return nothing
        if place.nbytes is None:
            found = self._store.get(place.key)
            return (
                nothing
                if found is None
                else replace(found, receipt=(delivery.receipt, found.receipt))
            )
        part = self._store.get_range(place.key, place.start, place.nbytes)
        if part is None:
            return nothing
        return Delivery(part, (delivery.receipt, ReadObject(place.key, place.object_bytes)))

    def ack(self, receipts: Sequence[object]) -> None:
        pairs = [receipt for receipt in receipts if isinstance(receipt, tuple)]
        self._queue.ack([handle for handle, _ in pairs])
        self._store.read([one for _, one in pairs if one is not None])

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.close()
            self._store.close()
