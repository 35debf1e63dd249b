"""object: S3.  A frame is an object whose key a receiver who knows the sender can compute.

So a receiver GETs the keys it waits for and never LISTs, except for a wildcard.  What many ranks
read is PUT once.  A frame for one rank lies under that rank's prefix, and the rank deletes it.
Dealt frames are one object that begins with a table of them; a reader GETs the table and his own frame, in
one range if the frame lies near the beginning.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace

from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import MAX_DELETED, PART_BYTES, S3
from serverless_mpi.aws.workers import Workers
from serverless_mpi.channels.base import (
    EACH,
    MANY,
    Channel,
    Delivery,
    Figures,
    Limits,
    Parcel,
    Wanted,
)
from serverless_mpi.channels.space import space
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.core.parcel import cut
from serverless_mpi.core.wire import HEADER_BYTES, LEAF_BYTES, digests
from serverless_mpi.job import JobSpec, frames_prefix
from serverless_mpi.metering import Meter

MAX_FRAME_BYTES = 1 << 30  # S3 takes 5 GiB in a PUT; a frame is held in memory twice for a moment
MULTIPART_BYTES = 65 << 20  # a larger frame is put in parts at the same time
GUESS_BYTES = (
    64 << 10
)  # a reader of a dealt object gets this much at first: 1 ms at 90 MB/s, where a request takes 100
assert PART_BYTES % LEAF_BYTES == 0  # so that each range of a body is whole leaves
_COUNT = struct.Struct("<I")
_SLICE = struct.Struct("<IQ")  # world rank, bytes of its frame

# AWS: 100-200 ms a small object, 85-90 MB/s a connection ("Performance design patterns for Amazon S3").
# Emulator: what fits the times of every collective best, measured on two cores (docs/collectives.md).
# A rank has 8 requests on their way at once.
AWS_FIGURES = Figures(
    latency_s=0.15,
    bandwidth_Bps=9e7,
    put_usd=5e-6,
    get_usd=4e-7,
    fanout=True,
    batch=1,
    ranges=True,
    put_s=0.012,
    get_s=0.012,
)
EMULATOR_FIGURES = replace(
    AWS_FIGURES, latency_s=0.005, bandwidth_Bps=6.5e8, put_s=0.0001, get_s=0.0006, lanes=2
)

# between two looks for an object that is not there yet: (first pause, longest pause)
AWS_PAUSES_S = (0.01, 0.2)
EMULATOR_PAUSES_S = (0.001, 0.02)
REQUESTS_AT_ONCE = 8

NOTHING = memoryview(b"")


def side_by_side(parcel: Parcel) -> tuple[memoryview, ...]:
    """The bytes of a parcel's object: its frame; dealt, the table and the frames."""
    if not parcel.own:
        return parcel.parts
    return (memoryview(table(parcel)), *(part for parts in parcel.own for part in parts))


def table(parcel: Parcel) -> bytes:
    """What a dealt parcel's object begins with: how many frames, then rank and length of each."""
    lengths = [sum(part.nbytes for part in parts) for parts in parcel.own]
    slices = [_SLICE.pack(dest, nbytes) for dest, nbytes in zip(parcel.dests, lengths, strict=True)]
    return _COUNT.pack(len(slices)) + b"".join(slices)


def table_bytes(head: memoryview) -> int:
    """Length of the table with which `head` begins."""
    count = _COUNT.unpack_from(head)[0] if head.nbytes >= _COUNT.size else 0
    return int(_COUNT.size + count * _SLICE.size)


def locate(head: memoryview, rank: int) -> tuple[int, int]:
    """(place in the object, length) of a rank's frame by the table `head`; length 0 if it has none."""
    start = table_bytes(head)
    for reader, nbytes in _SLICE.iter_unpack(head[_COUNT.size : start]):
        if reader == rank:
            return start, nbytes
        start += nbytes
    return start, 0


class Leaves:
    """Digests of a part of a body, each taken when its leaf has come, while the rest is on its way."""

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._found: list[bytes] = []

    def come(self, filled: int) -> None:
        """The first `filled` bytes are there."""
        if filled < len(self._found) * LEAF_BYTES:  # another attempt, from the first byte on
            self._found.clear()
        while filled >= (len(self._found) + 1) * LEAF_BYTES:
            start = len(self._found) * LEAF_BYTES
            self._found += digests((self._part[start : start + LEAF_BYTES],))

    def all(self) -> list[bytes]:
        """Of the whole part, which is there."""
        return self._found + digests((self._part[len(self._found) * LEAF_BYTES :],))


class Store:
    """A job's objects: put in parts and got in ranges, several requests at a time."""

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        credentials = Credentials(spec.endpoint, fixed=emulator_keys(spec.key))
        self._client = Client("s3", spec.region, spec.endpoint, credentials, meter)
        self._s3 = S3(self._client, spec.settings["bucket"])
        self._pool = Workers(REQUESTS_AT_ONCE)  # whole objects
        self._ranges = Workers(
            REQUESTS_AT_ONCE
        )  # their parts: tasks of the pool above wait for these
        self.gone: Callable[[Sequence[str]], None] = lambda keys: (
            None
        )  # told what is deleted for good
        self._deleted: list[str] = []
        self._deleting: list[Future[None]] = []
        self.prefix = frames_prefix(spec.job_id)

    def each(self, call: Callable[..., object], items: Sequence[object]) -> list[object]:
        """[call(item) for item in items], several at a time."""
        if len(items) < 2:
            return [call(item) for item in items]
        return self._pool.each(call, items)

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        """Make an object."""
        if sum(part.nbytes for part in parts) <= MULTIPART_BYTES:
            self._s3.put(self.prefix + key, parts)
            return
        self._s3.put_multipart(self.prefix + key, cut(parts, PART_BYTES), self._ranges.each)

    def get(self, key: str) -> Delivery | None:
        """The frame that an object is, in memory of its own, or None if there is none yet.

        The first range tells the size; the others are asked for while it is still coming, and each is digested as it comes.
        """
        first = HEADER_BYTES + PART_BYTES
        whole = NOTHING
        others: list[Future[list[bytes]]] = []

        def digested(start: int) -> list[bytes]:
            part = whole[start : start + PART_BYTES]
            leaves = Leaves(part)
            self._fetch(key, start, part, leaves.come)
            return leaves.all()

        def room(size: int) -> memoryview:
            nonlocal whole
            if not whole.nbytes:  # else it is another attempt
                whole = space(size)
                others.extend(
                    self._ranges.submit(digested, start) for start in range(first, size, PART_BYTES)
                )
            return whole

        found = self._s3.get(self.prefix + key, 0, first, room)
        if found is None or not others:
            return None if found is None else Delivery(found[0], None)
        leaves = digests((whole[HEADER_BYTES:first],))
        for other in others:
            leaves += other.result()
        return Delivery(whole, None, leaves=leaves)

    def _fetch(
        self, key: str, start: int, into: memoryview, come: Callable[[int], None] | None = None
    ) -> None:
        part = self._s3.get(self.prefix + key, start, into.nbytes, into, come)
        if part is not None and part[0].obj is not into.obj:
            into[:] = part[0]

    def get_range(
        self, key: str, start: int, nbytes: int, begun: memoryview = NOTHING
    ) -> memoryview:
        """`nbytes` of an object that is there, from `start` on, in memory of their own; `begun` are the first of them."""
        whole = space(nbytes)
        whole[: begun.nbytes] = begun

        def fetch(place: int) -> None:
            self._fetch(key, start + place, whole[place : place + PART_BYTES])

        places = range(begun.nbytes, nbytes, PART_BYTES)
        if len(places) == 1:
            fetch(places[0])
        else:
            self._ranges.each(fetch, places)
        return whole

    def get_dealt(self, key: str, rank: int) -> Delivery | None:
        """The frame of `rank` in a dealt object, or None if there is none yet: 1 GET, or 2 if it lies far behind."""
        found = self._s3.get(self.prefix + key, 0, GUESS_BYTES)
        if found is None:
            return None
        head, size = found
        if head.nbytes < (length := table_bytes(head)) <= size:
            head = self.get_range(key, 0, length, head)
        if length > size or sum(locate(head, rank)) > size:
            return Delivery(NOTHING, None)  # damaged; the core counts what is no frame
        start, nbytes = locate(head, rank)
        there = head[start : start + nbytes]
        whole = (
            memoryview(bytearray(there))
            if there.nbytes == nbytes
            else self.get_range(key, start, nbytes, there)
        )
        return Delivery(whole, None)

    def list(self, prefix: str) -> Sequence[str]:
        """Every key below `prefix`, without the job's own prefix."""
        keys: list[str] = []
        while True:
            page = self._s3.list(self.prefix + prefix, keys[-1] if keys else "")
            keys += page
            if len(page) < 1000:
                return [key.removeprefix(self.prefix) for key in keys]

    def delete(self, keys: Sequence[str], flush: bool = False) -> None:
        """Delete objects, later, many at a time (DELETE is free, but a request all the same)."""
        self._deleted += keys
        while len(self._deleted) >= MAX_DELETED or (flush and self._deleted):
            batch, self._deleted = self._deleted[:MAX_DELETED], self._deleted[MAX_DELETED:]
            for over in [future for future in self._deleting if future.done()]:
                self._deleting.remove(over)
                over.result()
            self._deleting.append(self._pool.submit(self._delete, batch))

    def _delete(self, keys: Sequence[str]) -> None:
        self._s3.delete([self.prefix + key for key in keys])
        self.gone(keys)

    def close(self) -> None:
        """Delete what is to be deleted, and let go."""
        self.delete((), flush=True)
        wait(self._deleting)
        self._pool.close()
        self._ranges.close()
        self._client.close()
        for future in self._deleting:
            future.result()


class ObjectChannel(Channel):
    """Frames as objects."""

    services = frozenset({"s3"})
    contained = True

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self.limits = Limits(MAX_FRAME_BYTES, background=True, alone=spec.endpoint is not None)
        self.figures = AWS_FIGURES if spec.endpoint is None else EMULATOR_FIGURES
        self._pauses = AWS_PAUSES_S if spec.endpoint is None else EMULATOR_PAUSES_S
        self._store = Store(spec, meter)
        self._fetched: set[str] = set()  # got, but perhaps not deleted yet
        self._store.gone = self._fetched.difference_update
        self._usual_s = 0.0  # between asking and getting
        self._woken = threading.Event()
        self._closed = False

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        from serverless_mpi.aws import control

        return control.make_bucket(spec)

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        from serverless_mpi.aws import control

        control.remove_bucket(spec)

    def put(self, parcels: Sequence[Parcel]) -> None:
        self._store.each(
            lambda parcel: self._store.put(parcel.name.key(), side_by_side(parcel)), parcels
        )

    def get(self, max_wait_s: float, wanted: Callable[[], list[Wanted]]) -> list[Delivery]:
        deadline = time.monotonic() + max_wait_s
        pause, longest = self._pauses
        # every miss is billed, so the first look is put off by half of what waiting has taken of late
        if self._woken.wait(min(self._usual_s / 2, longest, max_wait_s)):
            self._woken.clear()
            return []
        while True:
            found = self._look(wanted())
            left = deadline - time.monotonic()
            if found or left <= 0:
                self._usual_s = (
                    (self._usual_s + max_wait_s - left) / 2
                    if pause > self._pauses[0]
                    else self._usual_s / 2
                )
                return found
            if self._woken.wait(min(pause, left)):
                self._woken.clear()
                return []
            pause = min(2 * pause, longest)

    def _look(self, wanted: list[Wanted]) -> list[Delivery]:
        keys: dict[str, int] = {}  # key -> whose it is: a rank's, MANY, EACH
        for one in wanted:
            if one.source != ANY_SOURCE:
                keys[one.name().key()] = one.dest
        prefixes = {
            f"r/{one.dest:06d}/{one.context:016x}/" for one in wanted if one.source == ANY_SOURCE
        }
        for prefix in prefixes:
            for key in self._store.list(prefix):
                keys[key] = self.spec.rank
        fresh = [key for key in keys if key not in self._fetched]

        def fetch(key: str) -> Delivery | None:
            return (
                self._store.get_dealt(key, self.spec.rank)
                if keys[key] == EACH
                else self._store.get(key)
            )

        found = []
        for key, delivery in zip(fresh, self._store.each(fetch, fresh), strict=True):
            if isinstance(delivery, Delivery):
                mine = keys[key] not in (MANY, EACH)
                found.append(replace(delivery, receipt=key) if mine else delivery)
                if mine:
                    self._fetched.add(key)
        return found

    def ack(self, receipts: Sequence[object]) -> None:
        self._store.delete([str(receipt) for receipt in receipts])

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()
