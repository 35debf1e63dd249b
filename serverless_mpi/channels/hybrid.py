"""hybrid, the default: small frames on the queue; a large one as an object, and its reference on the queue.

A reference is authenticated with the job's key, and the frame it brings has a tag of its own.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import replace

from serverless_mpi.channels.base import Channel, Delivery, Limits, Parcel, Wanted
from serverless_mpi.channels.object import ObjectChannel, Store
from serverless_mpi.channels.queue import MAX_FRAME_BYTES as QUEUE_FRAME_BYTES
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import BILLED_CHUNK_BYTES, Meter, Prices

MAX_FRAME_BYTES = 64 << 20  # so that a receiver can put a long message together while the rest is on its way
_MAGIC = b"sR"  # a frame begins with b"sM"
_TAG_BYTES = 16


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


class HybridChannel(Channel):
    """The queue and the object channel together."""

    limits = Limits(max_frame_bytes=MAX_FRAME_BYTES, background=True)

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self._queue = QueueChannel(spec, meter)
        self.figures = self._queue.figures
        self._store = Store(spec, meter)
        self._threshold = threshold(Prices.load())
        self._closed = False

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        return {**QueueChannel.provision(spec), **ObjectChannel.provision(spec)}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        QueueChannel.destroy(spec)
        ObjectChannel.destroy(spec)

    def put(self, parcels: Sequence[Parcel]) -> None:
        large = [parcel for parcel in parcels if parcel.nbytes > self._threshold]
        self._store.each(lambda parcel: self._store.put(parcel.name.key(), parcel.parts), large)  # type: ignore[attr-defined]
        self._queue.put(
            [
                parcel if parcel.nbytes <= self._threshold else replace(parcel, parts=(self._reference(parcel),))
                for parcel in parcels
            ]
        )

    def _reference(self, parcel: Parcel) -> memoryview:
        key = parcel.name.key().encode()
        return memoryview(_MAGIC + self._tag(key) + key)

    def _tag(self, key: bytes) -> bytes:
        return hashlib.blake2b(_MAGIC + key, key=self.spec.key, digest_size=_TAG_BYTES).digest()

    def get(self, max_wait_s: float, wanted: Callable[[], list[Wanted]]) -> list[Delivery]:
        deliveries = self._queue.get(max_wait_s, wanted)
        return [one for one in self._store.each(self._resolve, deliveries) if isinstance(one, Delivery)]

    def _resolve(self, delivery: object) -> Delivery:
        """The frame of a reference; anything else as it is, for the core to judge."""
        assert isinstance(delivery, Delivery)
        data = delivery.data
        if data[:2] != _MAGIC:
            return Delivery(data, (delivery.receipt, None))
        key = bytes(data[2 + _TAG_BYTES :])
        if not hmac.compare_digest(self._tag(key), bytes(data[2 : 2 + _TAG_BYTES])):
            return Delivery(data, (delivery.receipt, None))
        name = key.decode()
        body = self._store.get(name)
        if body is None:
            # a second delivery of a reference whose object has been read and deleted: the core counts the empty frame
            return Delivery(memoryview(b""), (delivery.receipt, None))
        return Delivery(body, (delivery.receipt, name if name.startswith("r/") else None))

    def ack(self, receipts: Sequence[object]) -> None:
        pairs = [receipt for receipt in receipts if isinstance(receipt, tuple)]
        self._queue.ack([handle for handle, _ in pairs])
        self._store.delete([key for _, key in pairs if key is not None])

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.close()
            self._store.close()
