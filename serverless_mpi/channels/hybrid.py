"""hybrid, the default: a small frame is a message, a large one an object and a reference to it.

The rule is the price: `threshold` is the longest frame that is cheaper on the
queue, `together` decides whether scattered frames become one object.  The
reference of such an object is published once and carries the table of ranges.

Invariants:

- A reference carries a tag made with the job's key; the frame that it refers to
  carries its own.
- Anyone who may write to a queue can replay a reference of this job, also to
  another rank.  So a rank follows only references to objects for itself or for
  several ranks (`locate_frame`), and deletes only its own.

If you change what becomes of a batch, also change `simulation/media.py` (Hybrid).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from serverless_mpi.aws.limits import Figures
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
)  # so that a receiver assembles a long message while the rest is in flight
_MAGIC = b"sR"  # of a reference; a frame begins with b"sM"
_SCATTERED_MAGIC = b"sD"  # of a reference that begins with a table of ranges
_KEY = re.compile(rb"(m|r/([0-9]{6,9}))/[0-9a-f]{16}/[0-9a-f./]{1,100}")


def threshold(prices: Prices, store: str = "s3") -> int:
    """Return the length in bytes of the longest frame that is a message.

    A frame of c chunks of 64 KB costs c sends and c receives as a message, and as an object a PUT,
    a GET, its bytes, and a send and a receive of its reference.  It must also fit a message.

    Parameters
    ----------
    prices
        Price table.
    store
        Where the objects are: "s3" or "s3express".
    """
    put, get = f"{store}.PUT", f"{store}.GET"
    usd_per_byte = prices.per_byte(put) + prices.per_byte(get)
    usd_per_chunk = 2 * prices.of("sqs") - usd_per_byte * BILLED_CHUNK_BYTES
    if usd_per_chunk <= 0.0:  # a message is cheaper, however long it is
        return QUEUE_FRAME_BYTES
    usd_per_object = prices.of(put) + prices.of(get) + 2 * prices.of("sqs")
    return min(QUEUE_FRAME_BYTES, int(usd_per_object / usd_per_chunk) * BILLED_CHUNK_BYTES)


def together(frame: OutgoingFrame, prices: Prices, store: str = "s3") -> bool:
    """Return whether a scattered frame is cheaper as one object than as one per reader.

    Parameters
    ----------
    frame
        A frame with `bodies`, one for each reader.
    prices
        Price table.
    store
        Where the objects are: "s3" or "s3express".
    """
    usd_per_put = prices.of(f"{store}.PUT")
    usd_per_reader = prices.of(f"{store}.GET") + prices.of("sqs")
    usd_per_byte = prices.per_byte(f"{store}.PUT") + prices.per_byte(f"{store}.GET")
    usd_together = usd_per_put + prices.of("sns") + len(frame.dests) * usd_per_reader
    usd_apart = 0.0
    for parts in frame.bodies:
        nbytes = sum(part.nbytes for part in parts)
        usd_together += nbytes * usd_per_byte
        usd_apart += min(
            -(-nbytes // BILLED_CHUNK_BYTES) * 2 * prices.of("sqs"),
            usd_per_put + prices.of("sqs") + usd_per_reader + nbytes * usd_per_byte,
        )
    return usd_together < usd_apart


def object_key(frame: OutgoingFrame) -> str:
    """Return the key of a frame's object, without the job's prefix.

    Parameters
    ----------
    frame
        The frame.  A scattered one that travels apart, without `bodies`, has one key per reader.
    """
    apart = frame.name.dest == SCATTERED and not frame.bodies
    return f"{frame.name.key()}.{frame.dests[0]:06d}" if apart else frame.name.key()


def reference(frame: OutgoingFrame) -> tuple[bytes, bytes]:
    """Return the content of the message that refers to a frame's object.

    Parameters
    ----------
    frame
        The frame; its name, its readers and the lengths of its `bodies` are used.

    Returns
    -------
    tuple[bytes, bytes]
        (magic, text).  The text is the object's key, after the table of ranges if the frame has
        `bodies`.
    """
    key = object_key(frame).encode()
    return (_SCATTERED_MAGIC, table(frame) + key) if frame.bodies else (_MAGIC, key)


class Place(NamedTuple):
    """Where a frame is, by its reference: a whole object (`nbytes` is None), or a range of one."""

    key: str
    start: int
    nbytes: int | None
    object_bytes: int  # of the whole object; 0 if the reference does not state it


def locate_frame(magic: bytes, text: memoryview, rank: int) -> Place | None:
    """Return where a reference puts the frame of a rank.

    Parameters
    ----------
    magic, text
        The reference, as `opened` returned it; its tag has been verified.
    rank
        The rank that received the reference.

    Returns
    -------
    Place or None
        None if the reference is damaged, or refers to an object for another rank only.
    """
    start, nbytes, end, key = 0, None, 0, bytes(text)
    if magic == _SCATTERED_MAGIC:
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
    """Return a frame's reference as it is sent: magic, tag, text.

    Parameters
    ----------
    frame
        The frame whose object the reference names.
    key
        The job's key, which makes the tag.
    """
    magic, text = reference(frame)
    return magic + make(key, Purpose.REFERENCE, magic + text) + text


def opened(data: memoryview, key: bytes) -> tuple[bytes, memoryview] | None:
    """Return the content of a reference after verifying its tag.

    Parameters
    ----------
    data
        A message that was received; borrowed.
    key
        The job's key.

    Returns
    -------
    tuple[bytes, memoryview] or None
        (magic, text); the text is a view of `data`.  None if the message is not a reference, or
        its tag was not made with the job's key.
    """
    magic, tag, text = bytes(data[:2]), data[2 : 2 + TAG_BYTES], data[2 + TAG_BYTES :]
    if magic not in (_MAGIC, _SCATTERED_MAGIC):
        return None
    if not same(tag, make(key, Purpose.REFERENCE, magic + bytes(text))):
        return None
    return magic, text


def _joined(small: CostParameters, large: CostParameters, limit: int) -> CostParameters:
    """Return the parameters of messages; above `limit` bytes those of object and reference."""
    both = replace(
        large,
        latency_s=small.latency_s + large.latency_s,
        put_s=small.put_s + large.put_s,
        get_s=small.get_s + large.get_s,
        put_usd=small.put_usd + large.put_usd,
        get_usd=small.get_usd + large.get_usd,
    )
    return replace(small, ranges=True, large=(limit, both))


class HybridChannel(Channel):
    """Messages for small frames, objects for large ones.

    Parameters
    ----------
    spec, meter
        As for every channel.
    queue
        Channel of the messages, owned; None for the usual one.
    """

    services = QueueChannel.services | ObjectChannel.services
    contained = True
    model = "serverless_mpi.simulation.media:Hybrid"
    limits = Limits(MAX_FRAME_BYTES, async_put=True)

    def __init__(self, spec: JobSpec, meter: Meter, queue: QueueChannel | None = None) -> None:
        super().__init__(spec, meter)
        self.limits = replace(self.limits, serial=spec.endpoint is not None)
        self._queue = QueueChannel(spec, meter) if queue is None else queue
        self._store = Store(spec, meter, MAX_FRAME_BYTES)
        self._prices = Prices.load()
        store = self._store.service
        self._threshold = threshold(self._prices, store)
        self.figures = self.cost_of_job(spec, self._prices, store=store)
        self._closed = False

    @classmethod
    def cost(cls, *, aws: bool, prices: Prices, store: str = "s3") -> CostParameters:
        return _joined(
            QueueChannel.cost(aws=aws, prices=prices),
            ObjectChannel.cost(aws=aws, prices=prices, store=store),
            threshold(prices, store),
        )

    @classmethod
    def cost_by(cls, figures: Figures, prices: Prices, *, store: str = "s3") -> CostParameters:
        return _joined(
            QueueChannel.cost_by(figures, prices),
            ObjectChannel.cost_by(figures, prices, store=store),
            threshold(prices, store),
        )

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
            one_object = given.bodies and together(given, self._prices, self._store.service)
            for frame in [given] if one_object else given.split_per_reader():
                (large if one_object or frame.nbytes > self._threshold else small).append(frame)
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
        resolved = self._store.each(self._resolve, deliveries)
        return [delivery for delivery in resolved if isinstance(delivery, Delivery)]

    def _resolve(self, delivery: object) -> Delivery:
        """Return the frame of a reference; anything else as it is, for the core to verify."""
        assert isinstance(delivery, Delivery)
        data = delivery.data
        parsed = opened(data, self.spec.key)
        if parsed is None:
            return Delivery(data, (delivery.receipt, None))
        magic, text = parsed
        # A reference for another rank, or a duplicate of one whose object was read and deleted: the
        # core counts a frame of 0 bytes as dropped, and its message is deleted.
        nothing = Delivery(NOTHING, (delivery.receipt, None))
        place = locate_frame(magic, text, self.spec.rank)
        if place is None:
            return nothing
        if place.nbytes is None:
            stored = self._store.get(place.key)
            if stored is None:
                return nothing
            return stored._replace(receipt=(delivery.receipt, stored.receipt))
        part = self._store.get_range(place.key, place.start, place.nbytes)
        if part is None:
            return nothing
        return Delivery(part, (delivery.receipt, ReadObject(place.key, place.object_bytes)))

    def ack(self, receipts: Sequence[object]) -> None:
        pairs = [receipt for receipt in receipts if isinstance(receipt, tuple)]
        self._queue.ack([handle for handle, _ in pairs])
        self._store.read([read for _, read in pairs if read is not None])

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.close()
            self._store.close()
