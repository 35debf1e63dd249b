"""object: S3.  A frame is an object whose key a receiver who knows the sender can compute.

So a receiver GETs the keys it waits for and never LISTs, except for a wildcard.  What many ranks
read is PUT once, and deleted as `cleanup.py` says.  A frame for one rank lies under that rank's prefix, and the rank
deletes it.  Whoever may write to the bucket can put anything there: an object of the wrong length or with a table that
contradicts it is handed on as a frame of 0 bytes, which the core counts as dropped.
Dealt frames are one object that begins with a table of them; a reader GETs the table and his own frame, in
one range if the frame lies near the beginning.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.retry import BUDGET_S, Patience
from serverless_mpi.aws.s3 import MAX_DELETED, PART_BYTES, S3
from serverless_mpi.aws.workers import Workers
from serverless_mpi.channels.base import (
    SCATTERED,
    SHARED,
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.channels.buffers import space
from serverless_mpi.channels.cleanup import (
    MAX_REPORT_BYTES,
    Deletions,
    ReadReports,
    SharedObjects,
    decode_report,
    encode_report,
    reports_for,
    say_left,
)
from serverless_mpi.core.endpoint import GAP_TIMEOUT_S
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.core.frames import cut
from serverless_mpi.core.wire import HEADER_BYTES, LEAF_BYTES, digests
from serverless_mpi.errors import ChannelError, ServerlessMPIError
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
# Emulator: what fits the times of every collective best, measured on two cores (docs/benchmarks-collectives.md).
# A rank has 8 requests on their way at once.
AWS_FIGURES = CostParameters(
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
    AWS_FIGURES, latency_s=0.005, bandwidth_Bps=6.5e8, put_s=0.0001, get_s=0.0006, parallelism=2
)

# between two looks for an object that is not there yet: (first pause, longest pause)
AWS_PAUSES_S = (0.01, 0.2)
EMULATOR_PAUSES_S = (0.001, 0.02)
REQUESTS_AT_ONCE = 8
MOST_READS = 5  # of a shared object that is not a frame: the first may have been damaged on its way

NOTHING = memoryview(b"")
OWN_PREFIX = "r/"  # of frames for one rank: `FrameName.key`
POLL_BUDGET_S = 0.0  # a poll that fails has found nothing yet: who polls asks again

# Objects that were read are deleted, and reported to the rank that put them, after so many bytes.  On AWS a gigabyte costs
# 3e-5 dollars an hour and a report 6e-6; an emulator holds the objects of all ranks in the memory of this machine.
AWS_KEPT_BYTES = 1 << 30
EMULATOR_KEPT_BYTES = 48 << 20  # by all ranks together
EMULATOR_LEAST_BYTES = (
    6 << 20
)  # by one, so that a report or a look for reports takes less time than what it is about


def kept_bytes(spec: JobSpec) -> int:
    """How many bytes of objects that were read may be there for each rank that put them and each reader."""
    if spec.endpoint is None:
        return AWS_KEPT_BYTES
    return max(EMULATOR_LEAST_BYTES, EMULATOR_KEPT_BYTES // spec.size)


class ReadObject(NamedTuple):
    """The receipt of a frame that was an object; nbytes: of the whole object."""

    key: str
    nbytes: int


def side_by_side(parcel: OutgoingFrame) -> tuple[memoryview, ...]:
    """The bytes of a parcel's object: its frame; dealt, the table and the frames."""
    if not parcel.bodies:
        return parcel.parts
    return (memoryview(table(parcel)), *(part for parts in parcel.bodies for part in parts))


def table(parcel: OutgoingFrame) -> bytes:
    """What a dealt parcel's object begins with: how many frames, then rank and length of each."""
    lengths = [sum(part.nbytes for part in parts) for parts in parcel.bodies]
    slices = [_SLICE.pack(dest, nbytes) for dest, nbytes in zip(parcel.dests, lengths, strict=True)]
    return _COUNT.pack(len(slices)) + b"".join(slices)


def table_bytes(head: memoryview) -> int:
    """Length of the table with which `head` begins."""
    count = _COUNT.unpack_from(head)[0] if head.nbytes >= _COUNT.size else 0
    return int(_COUNT.size + count * _SLICE.size)


def locate(head: memoryview, rank: int) -> tuple[int, int, int] | None:
    """(place in the object, length) of a rank's frame by the table `head`, and the object's length.

    The frame's length is 0 if the rank has none; None if `head` does not hold its whole table.
    """
    end = table_bytes(head)
    if head.nbytes < end:
        return None
    place, found = end, (end, 0)
    for reader, nbytes in _SLICE.iter_unpack(head[_COUNT.size : end]):
        if reader == rank:
            found = (place, nbytes)
        place += nbytes
    return (*found, place)


def table_limit(size: int) -> int:
    """Length of the longest table in a job of `size` ranks."""
    return _COUNT.size + size * _SLICE.size


class TreeHash:
    """Digests of a part of a body, each taken when its leaf has come, while the rest is on its way."""

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._found: list[bytes] = []

    def come(self, filled: int) -> None:
        """The first `filled` bytes are there; 0 begins another attempt, whose bytes may be others."""
        if filled == 0:
            self._found.clear()
        while filled >= (len(self._found) + 1) * LEAF_BYTES:
            start = len(self._found) * LEAF_BYTES
            self._found += digests((self._part[start : start + LEAF_BYTES],))

    def all(self) -> list[bytes]:
        """Of the whole part, which is there."""
        return self._found + digests((self._part[len(self._found) * LEAF_BYTES :],))


class Store:
    """A job's objects: put in parts and got in ranges, several requests at a time; most_bytes: of one frame."""

    def __init__(self, spec: JobSpec, meter: Meter, most_bytes: int) -> None:
        self._spec = spec
        self._meter = meter
        self._most_bytes = most_bytes
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
        kept = kept_bytes(spec)
        self._deletions = Deletions(
            self._delete,
            MAX_DELETED,
            self._pool,
            self._client.patience(float("inf")),
            time.monotonic,
            most_bytes=kept,
            gone=lambda keys: self.gone(keys),
        )
        self._shared = SharedObjects(kept)
        self._reports = ReadReports(spec.rank, kept)
        self._own = f"{OWN_PREFIX}{spec.rank:06d}/"
        self.prefix = frames_prefix(spec.job_id)

    def patience(self) -> Patience:
        """A time for polls that find the service busy: as long as the core waits for a message that is missing."""
        return self._client.patience(GAP_TIMEOUT_S)

    def each(self, call: Callable[..., object], items: Sequence[object]) -> list[object]:
        """[call(item) for item in items], several at a time."""
        if len(items) < 2:
            return [call(item) for item in items]
        return self._pool.each(call, items)

    def put(self, key: str, parcel: OutgoingFrame) -> None:
        """Make the object of a parcel."""
        parts = side_by_side(parcel)
        nbytes = sum(part.nbytes for part in parts)
        if nbytes <= MULTIPART_BYTES:
            self._s3.put(self.prefix + key, parts)
        else:
            self._s3.put_multipart(self.prefix + key, cut(parts, PART_BYTES), self._ranges.each)
        if parcel.name.dest < 0 and self._shared.put(key, parcel.dests, nbytes):
            self._pool.submit(self._look_for_reports)

    def get(self, key: str, budget_s: float = BUDGET_S) -> Delivery | None:
        """The frame that an object is, in memory of its own, or None if there is none yet; its receipt is a ReadObject.

        The first range tells the size; the others are asked for while it is still coming, and each is digested as it comes.
        budget_s: of the first range; who polls gives 0, and gets Busy.
        """
        first = HEADER_BYTES + PART_BYTES
        whole = NOTHING
        others: list[Future[list[bytes] | None]] = []

        def digested(start: int) -> list[bytes] | None:
            part = whole[start : start + PART_BYTES]
            leaves = TreeHash(part)
            return leaves.all() if self._fetch(key, start, part, leaves.come) else None

        def room(size: int) -> memoryview:
            nonlocal whole
            if not whole.nbytes and size <= self._most_bytes:  # else it is another attempt
                whole = space(size)
                others.extend(
                    self._ranges.submit(digested, start) for start in range(first, size, PART_BYTES)
                )
            return whole

        found = self._s3.get(self.prefix + key, 0, first, room, budget_s=budget_s)
        if found is None:
            return None
        begun, size = found
        if begun.nbytes != min(first, size) or size > self._most_bytes:
            return Delivery(NOTHING, None)
        receipt = ReadObject(key, size)
        if not others:
            frame = begun if size <= first else self.get_range(key, 0, size, begun)
            return Delivery(NOTHING, None) if frame is None else Delivery(frame, receipt)
        leaves = digests((whole[HEADER_BYTES:first],))
        damaged = begun.obj is not whole.obj or whole.nbytes != size
        for other in others:
            digest = other.result()
            damaged = damaged or digest is None
            leaves += digest or ()
        return Delivery(NOTHING, None) if damaged else Delivery(whole, receipt, leaves=leaves)

    def _fetch(
        self, key: str, start: int, into: memoryview, come: Callable[[int], None] | None = None
    ) -> bool:
        """Fill `into` from an object; whether the object has so many bytes there."""
        part = self._s3.get(self.prefix + key, start, into.nbytes, into, come)
        if part is None or part[0].nbytes != into.nbytes:
            return False
        if part[0].obj is not into.obj:
            into[:] = part[0]
        return True

    def get_range(
        self, key: str, start: int, nbytes: int, begun: memoryview = NOTHING
    ) -> memoryview | None:
        """`nbytes` of an object, from `start` on, in memory of their own; `begun` are the first of them.

        None if the object is not there, or is shorter.
        """
        whole = space(nbytes)
        whole[: begun.nbytes] = begun

        def fetch(place: int) -> bool:
            return self._fetch(key, start + place, whole[place : place + PART_BYTES])

        places = range(begun.nbytes, nbytes, PART_BYTES)
        if len(places) == 1:
            filled = fetch(places[0])
        else:
            filled = all(self._ranges.each(fetch, places))
        return whole if filled else None

    def get_dealt(self, key: str, rank: int) -> Delivery | None:
        """The frame of `rank` in a dealt object, or None if there is none yet: 1 GET, or 2 if it lies far behind."""
        found = self._s3.get(self.prefix + key, 0, GUESS_BYTES, budget_s=POLL_BUDGET_S)
        if found is None:
            return None
        head, size = found
        length = table_bytes(head)
        if head.nbytes < length <= min(size, table_limit(self._spec.size)):
            head = self.get_range(key, 0, length, head) or NOTHING
        place = locate(head, rank)
        if place is None or place[2] != size or place[1] > self._most_bytes:
            return Delivery(NOTHING, None)  # damaged; the core counts what is no frame
        start, nbytes, _ = place
        there = head[start : start + nbytes]
        whole = (
            memoryview(bytearray(there))
            if there.nbytes == nbytes
            else self.get_range(key, start, nbytes, there)
        )
        return Delivery(NOTHING, None) if whole is None else Delivery(whole, ReadObject(key, size))

    def list(self, prefix: str, budget_s: float = BUDGET_S) -> Sequence[str]:
        """Every key below `prefix`, without the job's own prefix."""
        keys: list[str] = []
        while True:
            page = self._s3.list(self.prefix + prefix, keys[-1] if keys else "", budget_s)
            keys += page
            if len(page) < 1000:
                return [key.removeprefix(self.prefix) for key in keys]

    def read(self, objects: Sequence[ReadObject]) -> None:
        """This rank has the bytes of `objects`: what is its own is deleted, what is shared is reported, both later."""
        for key, nbytes in objects:
            if key.startswith(self._own):
                self._deletions.add((key,), nbytes)
            elif (report := self._reports.read(key, nbytes)) is not None:
                self._pool.submit(self._report, *report)

    def _report(self, name: str, keys: Sequence[str]) -> None:
        text = memoryview(encode_report(name, keys, self._spec.key))
        try:
            self._s3.put(self.prefix + name, (text,))
        except ServerlessMPIError:
            self._reports.not_reported(name, keys)

    def _look_for_reports(self) -> None:
        """Delete what all its readers have reported."""

        def look(name: str) -> Sequence[str]:
            found = self._s3.get(self.prefix + name, 0, MAX_REPORT_BYTES)
            report = None if found is None else decode_report(name, found[0], self._spec.key)
            return [name, *([] if report is None else self._shared.reported(*report))]

        try:
            names = self.list(reports_for(self._spec.rank))
            for over in self._ranges.each(look, names):
                self._deletions.add(over)
        except ServerlessMPIError:
            self._shared.look_again()
        else:
            self._deletions.add((), flush=True)

    def _delete(self, keys: Sequence[str]) -> Sequence[str]:
        failed = self._s3.delete([self.prefix + key for key in keys])
        return [key.removeprefix(self.prefix) for key in failed]

    def close(self) -> None:
        """Delete what is to be deleted, and let go."""
        left = self._deletions.close()
        self._pool.close()
        self._ranges.close()
        self._client.close()
        say_left(
            left,
            "objects that were read",
            self._deletions.trouble,
            self._spec.rank,
            "s3",
            self._meter,
        )


class ObjectChannel(Channel):
    """Frames as objects."""

    services = frozenset({"s3"})
    contained = True
    model = "serverless_mpi.simulation.media:Objects"
    limits = Limits(MAX_FRAME_BYTES, async_put=True)
    figures = AWS_FIGURES
    emulator_figures = EMULATOR_FIGURES

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self.limits = replace(self.limits, serial=spec.endpoint is not None)
        self.figures = AWS_FIGURES if spec.endpoint is None else EMULATOR_FIGURES
        self._pauses = AWS_PAUSES_S if spec.endpoint is None else EMULATOR_PAUSES_S
        self._store = Store(spec, meter, MAX_FRAME_BYTES)
        self._patience = self._store.patience()
        # Acknowledged, but perhaps not deleted yet.  Not what was only got: a signal handler's exception may have kept it
        # from the caller, and then it has to come again.
        self._fetched: set[str] = set()
        self._store.gone = self._fetched.difference_update
        self._given: dict[str, int] = {}  # shared objects by how often `get` returned them
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

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        self._store.each(lambda parcel: self._store.put(parcel.name.key(), parcel), parcels)

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        deadline = time.monotonic() + max_wait_s
        pause, longest = self._pauses
        # every miss is billed, so the first look is put off by half of what waiting has taken of late
        first = longest if self._refused(wanted) else self._usual_s / 2
        if self._woken.wait(min(first, longest, max_wait_s)):
            self._woken.clear()
            return []
        while True:
            found, busy = self._look(wanted())
            if busy is None:
                self._patience.over()
            elif not found:
                longer = self._patience.pause()
                if longer is None:
                    raise busy
                pause = max(pause, longer)
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

    def _refused(self, wanted: Callable[[], list[ExpectedFrame]]) -> bool:
        """Whether a shared object that was given is still waited for: it is not a frame, and is not asked for at once.

        Raises
        ------
        ChannelError
            One was read MOST_READS times: it does not change any more.
        """
        if not self._given:
            return False
        keys = {one.name().key() for one in wanted() if one.source != ANY_SOURCE}
        self._given = {key: times for key, times in self._given.items() if key in keys}
        for key, times in self._given.items():
            if times >= MOST_READS:
                raise ChannelError(
                    f"object {self._store.prefix}{key} was read {times} times and is not a frame of this job: "
                    "it is damaged, or somebody else has written it"
                )
        return bool(self._given)

    def _look(self, wanted: list[ExpectedFrame]) -> tuple[list[Delivery], Busy | None]:
        """What is there of `wanted`, and that the service was too busy to say of all whether it is."""
        keys: dict[str, int] = {}  # key -> whose it is: a rank's, MANY, EACH
        for one in wanted:
            if one.source != ANY_SOURCE:
                keys[one.name().key()] = one.dest
        prefixes = {
            f"r/{one.dest:06d}/{one.context:016x}/" for one in wanted if one.source == ANY_SOURCE
        }
        busy: Busy | None = None
        for prefix in prefixes:
            try:
                for key in self._store.list(prefix, POLL_BUDGET_S):
                    keys[key] = self.spec.rank
            except Busy as error:
                busy = error
        fresh = [key for key in keys if key not in self._fetched]

        def fetch(key: str) -> Delivery | Busy | None:
            try:
                if keys[key] == SCATTERED:
                    return self._store.get_dealt(key, self.spec.rank)
                return self._store.get(key, POLL_BUDGET_S)
            except Busy as error:
                return error

        found = []
        for key, delivery in zip(fresh, self._store.each(fetch, fresh), strict=True):
            if isinstance(delivery, Busy):
                busy = delivery
            elif isinstance(delivery, Delivery):
                if keys[key] not in (SHARED, SCATTERED):
                    if delivery.receipt is None:  # damaged, and for nobody else
                        delivery = replace(delivery, receipt=ReadObject(key, 0))
                else:
                    self._given[key] = self._given.get(key, 0) + 1
                found.append(delivery)
        return found, busy

    def ack(self, receipts: Sequence[object]) -> None:
        objects = [one for one in receipts if isinstance(one, ReadObject)]
        self._fetched.update(one.key for one in objects if one.key.startswith(OWN_PREFIX))
        self._store.read(objects)

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()
