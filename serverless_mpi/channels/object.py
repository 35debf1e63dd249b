"""object: a frame is an object of S3, and a receiver that knows the sender can compute its key.

The rule: a receiver GETs the keys that it waits for.  It LISTs first for a receive from
any source, and if it waits for so many keys of one prefix that a LIST costs less than
a GET of each (`listed_above`): most of those GETs would be in vain, and billed.  A frame
for several ranks is PUT once.  Scattered frames are one object that begins with a table
of their ranges; a reader GETs the table and its own range, in one request if the range
is near the beginning.

Invariants:

- An object for one rank is under that rank's prefix, and the rank deletes it.  An
  object for several is deleted by the rank that put it (`cleanup.py`).
- Anyone who may write to the bucket can put anything there.  An object of a wrong
  length, or with a table that contradicts it, becomes a frame of 0 bytes, which the
  core counts as dropped; nothing here raises for it.
- `get` returns an object again until `ack`: a signal handler's exception may have kept
  it from the caller.

If you change which requests are made, also change `simulation/media.py` (Objects).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

from serverless_mpi.aws import limits, s3express
from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.limits import Figures
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
from serverless_mpi.channels.buffers import uninitialized
from serverless_mpi.channels.cleanup import (
    MAX_REPORT_BYTES,
    Deletions,
    ReadReports,
    SharedObjects,
    decode_report,
    encode_report,
    report_remaining,
    reports_for,
)
from serverless_mpi.core.endpoint import GAP_TIMEOUT_S
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.core.frames import cut
from serverless_mpi.core.wire import HEADER_BYTES, LEAF_BYTES, digests
from serverless_mpi.errors import ChannelError, ServerlessMPIError
from serverless_mpi.job import FRAMES_BUCKET, JobSpec, frames_prefix
from serverless_mpi.metering import BYTES_PER_GB, Meter, Prices

MAX_FRAME_BYTES = 1 << 30  # S3 accepts 5 GiB per PUT; a frame is in memory twice for a moment
MULTIPART_BYTES = 65 << 20  # a larger frame is put in parts at the same time
# first range of a scattered object: 1 ms at 90 MB/s, where a request takes 100 ms
GUESS_BYTES = 64 << 10
assert PART_BYTES % LEAF_BYTES == 0  # so that each range of a body consists of whole leaves
_COUNT = struct.Struct("<I")
_SLICE = struct.Struct("<IQ")  # world rank, bytes of its frame

# How the times of requests become cost parameters, by assumption: a quarter of the two requests
# overlaps, since a reader that waits asks while the object is put; and a rank has 8 in flight.
NOT_OVERLAPPED = 0.75
SHARE_IN_FLIGHT = 0.12


def parameters(figures: Figures, store: str = "s3") -> CostParameters:
    """Return the cost parameters that follow from figures of a store and a function's network.

    Parameters
    ----------
    figures
        Times and rates of AWS, perhaps measured.
    store
        Where the objects are: "s3" or "s3express".
    """
    figures = figures.of_store(store)
    put_s, get_s = figures.s3_put_s.value, figures.s3_get_s.value
    express = store == s3express.SERVICE
    return CostParameters(
        latency_s=NOT_OVERLAPPED * (put_s + get_s),
        bandwidth_Bps=figures.connection_Bps,
        put_usd=1.13e-6 if express else 5e-6,
        get_usd=3e-8 if express else 4e-7,
        put_usd_per_byte=0.0032 / BYTES_PER_GB if express else 0.0,
        get_usd_per_byte=0.0006 / BYTES_PER_GB if express else 0.0,
        fanout=True,
        batch=1,
        ranges=True,
        put_s=SHARE_IN_FLIGHT * put_s,
        get_s=SHARE_IN_FLIGHT * get_s,
    )


AWS_FIGURES = parameters(limits.AWS)
# The best fit to the times of all collectives on two cores (docs/benchmarks-collectives.md).
EMULATOR_FIGURES = replace(
    AWS_FIGURES, latency_s=0.005, bandwidth_Bps=6.5e8, put_s=0.0001, get_s=0.0006, parallelism=2
)


class Pauses(NamedTuple):
    """Seconds between two looks for an object that does not exist yet.

    Attributes
    ----------
    first
        The first pause; each further one is twice as long, up to a limit.
    limit
        The limit in the first seconds.  Later it is an eighth of the time waited.
    longest
        What the limit grows to.
    """

    first: float
    limit: float
    longest: float

    def after(self, pause: float, waited_s: float) -> float:
        """Return the pause that follows another one, in seconds.

        A look costs requests, a pause that is too long costs the rank's time.  So a wait is
        overshot by an eighth at most, or by `limit`.

        Parameters
        ----------
        pause
            The pause that has ended, in seconds.
        waited_s
            Seconds since the wait began.
        """
        return min(2 * pause, max(self.limit, min(self.longest, waited_s / 8)))


AWS_PAUSES_S = Pauses(0.01, 0.2, 1.0)
# a look costs a thirteenth of one at S3, and an answer comes in 5 ms
EXPRESS_PAUSES_S = Pauses(0.005, 0.04, 0.25)
EMULATOR_PAUSES_S = Pauses(0.001, 0.02, 0.02)
REQUESTS_AT_ONCE = 8
MOST_READS = 5  # of a shared object that is not a frame: a read may have been damaged in transit

NOTHING = memoryview(b"")
OWN_PREFIX = "r/"  # of frames for one rank: `FrameName.key`
POLL_BUDGET_S = 0.0  # a poll is not retried: the next poll does the same

# Objects that were read are deleted, and reported to the rank that put them, after so many bytes.
# On AWS a gigabyte costs 3e-5 dollars per hour, and a report 6e-6 dollars; an emulator holds the
# objects of all ranks in the memory of this machine.
AWS_KEPT_BYTES = 1 << 30
EMULATOR_KEPT_BYTES = 48 << 20  # by all ranks together
# by one rank: a report takes less time than the frames that it reports
EMULATOR_LEAST_BYTES = 6 << 20


def frames_bucket(spec: JobSpec) -> str:
    """Return the bucket of a job's frames: a directory bucket where rank 0 chose one.

    Parameters
    ----------
    spec
        The job; its settings name the buckets.
    """
    return spec.settings.get(FRAMES_BUCKET) or spec.settings["bucket"]


def store_service(spec: JobSpec) -> str:
    """Return "s3", or "s3express" if the job's frames are in a directory bucket.

    Parameters
    ----------
    spec
        The job; its settings name the buckets.
    """
    return s3express.SERVICE if s3express.zone_of(frames_bucket(spec)) else "s3"


def listed_above(prices: Prices, service: str) -> int:
    """Return the most awaited keys for which a GET of each costs no more than one LIST.

    Parameters
    ----------
    prices
        Price table.
    service
        Where the objects are: "s3" or "s3express".

    Returns
    -------
    int
        The number of keys; 0 if a GET is free.
    """
    usd_per_get = prices.of(f"{service}.GET")
    return int(prices.of(f"{service}.LIST") / usd_per_get) if usd_per_get else 0


def kept_bytes(spec: JobSpec) -> int:
    """Return how many bytes of read objects may exist per reader and rank that put them.

    Parameters
    ----------
    spec
        The job.  On an emulator, which has an `endpoint`, the ranks share the limit.
    """
    if spec.endpoint is None:
        return AWS_KEPT_BYTES
    return max(EMULATOR_LEAST_BYTES, EMULATOR_KEPT_BYTES // spec.size)


class ReadObject(NamedTuple):
    """Receipt of a frame that was an object; `nbytes` is the length of the whole object."""

    key: str
    nbytes: int


def side_by_side(frame: OutgoingFrame) -> tuple[memoryview, ...]:
    """Return the parts of a frame's object; if it is scattered, the table and all bodies.

    Parameters
    ----------
    frame
        The frame.  The result has views of its memory.
    """
    if not frame.bodies:
        return frame.parts
    return (memoryview(table(frame)), *(part for parts in frame.bodies for part in parts))


def table(frame: OutgoingFrame) -> bytes:
    """Return the table of a scattered frame: the number of readers, rank and length of each.

    Parameters
    ----------
    frame
        A frame with `bodies`, one for each reader.
    """
    lengths = [sum(part.nbytes for part in parts) for parts in frame.bodies]
    slices = [_SLICE.pack(dest, nbytes) for dest, nbytes in zip(frame.dests, lengths, strict=True)]
    return _COUNT.pack(len(slices)) + b"".join(slices)


def table_bytes(head: memoryview) -> int:
    """Return the length in bytes that the table at the beginning of an object states.

    Parameters
    ----------
    head
        The object's first bytes.  If there are fewer than 4, the table is taken as empty.
    """
    count = _COUNT.unpack_from(head)[0] if head.nbytes >= _COUNT.size else 0
    return int(_COUNT.size + count * _SLICE.size)


def locate(head: memoryview, rank: int) -> tuple[int, int, int] | None:
    """Return the range of a rank's frame in a scattered object.

    Parameters
    ----------
    head
        The object's first bytes.
    rank
        The reader.

    Returns
    -------
    (start, length, length of the object) by the table; the length is 0 if the table does not name
    the rank.  None if `head` does not hold the whole table.
    """
    table_end = table_bytes(head)
    if head.nbytes < table_end:
        return None
    start, own = table_end, (table_end, 0)
    for reader, nbytes in _SLICE.iter_unpack(head[_COUNT.size : table_end]):
        if reader == rank:
            own = (start, nbytes)
        start += nbytes
    return (*own, start)


def table_limit(size: int) -> int:
    """Return the length in bytes of the longest table in a job.

    Parameters
    ----------
    size
        Number of ranks.
    """
    return _COUNT.size + size * _SLICE.size


class TreeHash:
    """Digests of a part of a body, leaf by leaf while it arrives."""

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._leaves: list[bytes] = []

    def update(self, filled: int) -> None:
        """Digest the leaves of the part that are complete and not digested yet.

        Parameters
        ----------
        filled
            Number of bytes that have arrived, from the beginning of the part.  0 restarts, for
            another attempt.
        """
        if filled == 0:
            self._leaves.clear()
        while filled >= (len(self._leaves) + 1) * LEAF_BYTES:
            start = len(self._leaves) * LEAF_BYTES
            self._leaves += digests((self._part[start : start + LEAF_BYTES],))

    def digests(self) -> list[bytes]:
        """Return the digests of the whole part, all of which has arrived."""
        return self._leaves + digests((self._part[len(self._leaves) * LEAF_BYTES :],))


class Store:
    """A job's objects: put in parts and read in ranges, several requests at a time.

    Parameters
    ----------
    spec, meter
        As a channel's.
    max_frame_bytes
        A longer object is not a frame.
    """

    def __init__(self, spec: JobSpec, meter: Meter, max_frame_bytes: int) -> None:
        self._spec = spec
        self._meter = meter
        self._max_frame_bytes = max_frame_bytes
        credentials = Credentials(spec.endpoint, fixed=emulator_keys(spec.key))
        where = (spec.region, spec.endpoint, credentials, meter)
        bucket = frames_bucket(spec)
        self.service = store_service(spec)
        if self.service == s3express.SERVICE:
            self._client = s3express.bucket_client(bucket, *where)
            self._s3: S3 = s3express.DirectoryBucket(self._client, bucket)
        else:
            self._client = Client("s3", *where)
            self._s3 = S3(self._client, bucket)
        self._pool = Workers(REQUESTS_AT_ONCE)  # whole objects
        # parts of objects, in a pool of their own: a task of the pool above waits for these
        self._ranges = Workers(REQUESTS_AT_ONCE)
        self.gone: Callable[[Sequence[str]], None] = lambda keys: None  # called with deleted keys
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
        """Return the retry time of polls: as long as the core waits for a missing message."""
        return self._client.patience(GAP_TIMEOUT_S)

    def each(self, call: Callable[..., object], items: Sequence[object]) -> list[object]:
        """Return [call(item) for item in items], several calls at a time.

        Parameters
        ----------
        call
            Runs in threads of the store, or in this one if there is a single item.  The first error
            that it raises, in the order of the items, is raised here.
        items
            Arguments of the calls.
        """
        if len(items) < 2:
            return [call(item) for item in items]
        return self._pool.each(call, items)

    def put(self, key: str, frame: OutgoingFrame) -> None:
        """Create the object of a frame, in parts at the same time if it is large.

        Parameters
        ----------
        key
            Key of the object, without the job's prefix.
        frame
            The frame; its memory is borrowed until the return.  The object of a frame for several
            ranks is deleted once all of them have reported it.

        Raises
        ------
        ChannelError
            The store refused the object, or was busy for the whole retry time.
        """
        parts = side_by_side(frame)
        nbytes = sum(part.nbytes for part in parts)
        if nbytes <= MULTIPART_BYTES:
            self._s3.put(self.prefix + key, parts)
        else:
            self._s3.put_multipart(self.prefix + key, cut(parts, PART_BYTES), self._ranges.each)
        if frame.name.dest < 0 and self._shared.put(key, frame.dests, nbytes):
            self._pool.submit(self._look_for_reports)

    def get(self, key: str, budget_s: float = BUDGET_S) -> Delivery | None:
        """Read a whole object as a frame.

        Parameters
        ----------
        key
            Without the job's prefix.
        budget_s
            Retry time of the first range; 0 for a poll.

        Returns
        -------
        The frame, in memory of its own, with a `ReadObject` as receipt; a frame of 0 bytes without
        receipt if the object is damaged; None if it does not exist.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds.

        Notes
        -----
        One GET per 16 MiB.  The answer to the first states the size; the other ranges are
        requested while its body still arrives, and each is digested as it arrives.
        """
        reading = _Reading(self, key)
        first = self._s3.get(
            self.prefix + key, 0, reading.first_bytes, reading.allocate, budget_s=budget_s
        )
        return None if first is None else reading.finish(*first)

    def _fetch(
        self, key: str, start: int, into: memoryview, come: Callable[[int], None] | None = None
    ) -> bool:
        """Fill `into` from an object; return False if the object has fewer bytes there."""
        part = self._s3.get(self.prefix + key, start, into.nbytes, into, come)
        if part is None or part[0].nbytes != into.nbytes:
            return False
        if part[0].obj is not into.obj:
            into[:] = part[0]
        return True

    def get_range(
        self, key: str, start: int, nbytes: int, begun: memoryview = NOTHING
    ) -> memoryview | None:
        """Read a range of an object, in memory of its own.

        Parameters
        ----------
        key
            Key of the object, without the job's prefix.
        start, nbytes
            The range, in bytes.
        begun
            The first bytes of the range, if some have been read already; copied.

        Returns
        -------
        memoryview or None
            The bytes of the range, writable.  None if the object does not exist or is shorter.

        Raises
        ------
        ChannelError
            The store refused a request, or was busy for the whole retry time.
        """
        memory = uninitialized(nbytes)
        memory[: begun.nbytes] = begun

        def fetch(offset: int) -> bool:
            return self._fetch(key, start + offset, memory[offset : offset + PART_BYTES])

        offsets = range(begun.nbytes, nbytes, PART_BYTES)
        if len(offsets) == 1:
            filled = fetch(offsets[0])
        else:
            filled = all(self._ranges.each(fetch, offsets))
        return memory if filled else None

    def get_scattered(self, key: str, rank: int) -> Delivery | None:
        """Return the frame of a rank in a scattered object.

        Parameters
        ----------
        key
            Key of the object, without the job's prefix.
        rank
            The reader.

        Returns
        -------
        Delivery or None
            As from `get`.

        Raises
        ------
        Busy
            The service was busy; the first GET is not retried.

        Notes
        -----
        One GET if the rank's range ends within the first GUESS_BYTES bytes of the object; otherwise
        further ones read the rest of the range, and of a table that is longer.
        """
        first = self._s3.get(self.prefix + key, 0, GUESS_BYTES, budget_s=POLL_BUDGET_S)
        if first is None:
            return None
        head, size = first
        length = table_bytes(head)
        if head.nbytes < length <= min(size, table_limit(self._spec.size)):
            head = self.get_range(key, 0, length, head) or NOTHING
        own_range = locate(head, rank)
        if own_range is None or own_range[2] != size or own_range[1] > self._max_frame_bytes:
            return Delivery(NOTHING, None)  # damaged: the core counts it as dropped
        start, nbytes, _ = own_range
        begun = head[start : start + nbytes]
        frame = (
            memoryview(bytearray(begun))
            if begun.nbytes == nbytes
            else self.get_range(key, start, nbytes, begun)
        )
        return Delivery(NOTHING, None) if frame is None else Delivery(frame, ReadObject(key, size))

    def list(self, prefix: str, budget_s: float = BUDGET_S) -> Sequence[str]:
        """Return every key that begins with a prefix.

        Parameters
        ----------
        prefix
            Beginning of the keys.  It does not include the job's prefix, nor do the returned keys.
        budget_s
            Retry time in seconds of each request; 0 for a poll.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds.
        """
        keys = self._s3.list_all(self.prefix + prefix, budget_s)
        return [key.removeprefix(self.prefix) for key in keys]

    def read(self, objects: Sequence[ReadObject]) -> None:
        """Note that objects were read: own ones are deleted later, shared ones reported.

        Parameters
        ----------
        objects
            Receipts of the frames that were read.
        """
        for key, nbytes in objects:
            if key.startswith(self._own):
                self._deletions.add((key,), nbytes)
            elif (report := self._reports.read(key, nbytes)) is not None:
                self._pool.submit(self._report, *report)

    def _report(self, name: str, keys: Sequence[str]) -> None:
        """Put a report; if that fails its keys go into the next one."""
        text = memoryview(encode_report(name, keys, self._spec.key))
        try:
            self._s3.put(self.prefix + name, (text,))
        except ServerlessMPIError:
            self._reports.not_reported(name, keys)

    def _look_for_reports(self) -> None:
        """Delete the objects that all their readers have reported, and the reports."""

        def finished(name: str) -> Sequence[str]:
            stored = self._s3.get(self.prefix + name, 0, MAX_REPORT_BYTES)
            report = None if stored is None else decode_report(name, stored[0], self._spec.key)
            return [name, *([] if report is None else self._shared.reported(*report))]

        try:
            names = self.list(reports_for(self._spec.rank))
            for keys in self._ranges.each(finished, names):
                self._deletions.add(keys)
        except ServerlessMPIError:
            self._shared.look_again()
        else:
            self._deletions.add((), flush=True)

    def _delete(self, keys: Sequence[str]) -> Sequence[str]:
        failed = self._s3.delete([self.prefix + key for key in keys])
        return [key.removeprefix(self.prefix) for key in failed]

    def close(self) -> None:
        """Delete the objects that were read, and release threads and connections."""
        remaining = self._deletions.close()
        self._pool.close()
        self._ranges.close()
        self._client.close()
        report_remaining(
            remaining,
            "objects that were read",
            self._deletions.trouble,
            self._spec.rank,
            self.service,
            self._meter,
        )


class _Reading:
    """One object that is being read in ranges, into one piece of memory."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self.first_bytes = HEADER_BYTES + PART_BYTES  # so that the others are whole leaves
        self._memory = NOTHING
        self._others: list[Future[list[bytes] | None]] = []

    def allocate(self, size: int) -> memoryview:
        """Return the memory of an object of `size` bytes, and request its other ranges."""
        # not empty: another attempt of the first range, whose other ranges are requested
        if not self._memory.nbytes and size <= self._store._max_frame_bytes:
            self._memory = uninitialized(size)
            starts = range(self.first_bytes, size, PART_BYTES)
            self._others += [self._store._ranges.submit(self._digest, start) for start in starts]
        return self._memory

    def _digest(self, start: int) -> list[bytes] | None:
        """Read one of the other ranges and return its digests; None if the object is shorter."""
        part = self._memory[start : start + PART_BYTES]
        tree = TreeHash(part)
        filled = self._store._fetch(self._key, start, part, tree.update)
        return tree.digests() if filled else None

    def finish(self, begun: memoryview, size: int) -> Delivery:
        """Wait for the other ranges; `begun` is what the first brought, `size` is the object's."""
        damaged = Delivery(NOTHING, None)
        if begun.nbytes != min(self.first_bytes, size) or size > self._store._max_frame_bytes:
            return damaged
        receipt = ReadObject(self._key, size)
        if not self._others:
            complete = size <= self.first_bytes
            frame = begun if complete else self._store.get_range(self._key, 0, size, begun)
            return damaged if frame is None else Delivery(frame, receipt)
        leaves = digests((self._memory[HEADER_BYTES : self.first_bytes],))
        # an attempt after the first may have seen an object of another length
        intact = begun.obj is self._memory.obj and self._memory.nbytes == size
        for other in self._others:
            digest = other.result()
            intact = intact and digest is not None
            leaves += digest or ()
        return Delivery(self._memory, receipt, leaves=leaves) if intact else damaged


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
        service = store_service(spec)
        prices = Prices.load()
        self.figures = self.cost_of_job(spec, prices, store=service)
        self._pauses = EMULATOR_PAUSES_S
        if spec.endpoint is None:
            self._pauses = EXPRESS_PAUSES_S if service == s3express.SERVICE else AWS_PAUSES_S
        self._store = Store(spec, meter, MAX_FRAME_BYTES)
        self._patience = self._store.patience()
        self._listed_above = listed_above(prices, service)
        self._acknowledged: set[str] = set()  # keys that are perhaps not deleted yet
        self._store.gone = self._acknowledged.difference_update
        self._reads: dict[str, int] = {}  # shared object -> how often `get` returned it
        self._usual_wait_s = 0.0  # recent mean of what a `get` waited for a frame
        self._woken = threading.Event()
        self._closed = False

    @classmethod
    def cost(cls, *, aws: bool, prices: Prices, store: str = "s3") -> CostParameters:
        return parameters(limits.AWS, store) if aws else EMULATOR_FIGURES

    @classmethod
    def cost_by(cls, figures: Figures, prices: Prices, *, store: str = "s3") -> CostParameters:
        return parameters(figures, store)

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        from serverless_mpi.aws import control

        return control.make_bucket(spec)

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        from serverless_mpi.aws import control

        control.remove_bucket(spec)

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        self._store.each(lambda frame: self._store.put(frame.name.key(), frame), parcels)

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        began = time.monotonic()
        deadline = began + max_wait_s
        pause, limit = self._pauses.first, self._pauses.limit
        # every miss is billed, so the first look is delayed by half of what recent waits have taken
        first = limit if self._refused(wanted) else self._usual_wait_s / 2
        if self._woken.wait(min(first, limit, max_wait_s)):
            self._woken.clear()
            return []
        while True:
            deliveries, busy = self._look(wanted())
            if busy is None:
                self._patience.over()
            elif not deliveries:
                longer = self._patience.pause()
                if longer is None:
                    raise busy
                pause = max(pause, longer)
            left = deadline - time.monotonic()
            if deliveries or left <= 0:
                waited_s = max_wait_s - left if pause > self._pauses.first else 0.0
                self._usual_wait_s = (self._usual_wait_s + waited_s) / 2
                return deliveries
            if self._woken.wait(min(pause, left)):
                self._woken.clear()
                return []
            pause = self._pauses.after(pause, time.monotonic() - began)

    def _refused(self, wanted: Callable[[], list[ExpectedFrame]]) -> bool:
        """Return whether the core still waits for a shared object that it was given.

        The object was not a frame then, so it should not be read again at once.

        Raises
        ------
        ChannelError
            An object was read MOST_READS times, so it will not change.
        """
        if not self._reads:
            return False
        keys = {frame.name().key() for frame in wanted() if frame.source != ANY_SOURCE}
        self._reads = {key: times for key, times in self._reads.items() if key in keys}
        for key, times in self._reads.items():
            if times >= MOST_READS:
                raise ChannelError(
                    f"object {self._store.prefix}{key} was read {times} times and is not a frame"
                    " of this job: it is damaged, or another program wrote it"
                )
        return bool(self._reads)

    def _look(self, wanted: list[ExpectedFrame]) -> tuple[list[Delivery], Busy | None]:
        """Return the wanted frames that exist, and an error if the service was busy for some."""
        keys, busy = self._candidates(wanted)

        def fetch(key: str) -> Delivery | Busy | None:
            try:
                if keys[key] == SCATTERED:
                    return self._store.get_scattered(key, self.spec.rank)
                return self._store.get(key, POLL_BUDGET_S)
            except Busy as error:
                return error

        deliveries = []
        for key, delivery in zip(keys, self._store.each(fetch, tuple(keys)), strict=True):
            if isinstance(delivery, Busy):
                busy = delivery
            elif isinstance(delivery, Delivery):
                if keys[key] not in (SHARED, SCATTERED):
                    if delivery.receipt is None:  # damaged, and no other rank reads it: delete it
                        delivery = delivery._replace(receipt=ReadObject(key, 0))
                else:
                    self._reads[key] = self._reads.get(key, 0) + 1
                deliveries.append(delivery)
        return deliveries, busy

    def _candidates(self, wanted: list[ExpectedFrame]) -> tuple[dict[str, int], Busy | None]:
        """Return the keys to GET, with their destinations (a rank, SHARED or SCATTERED).

        The second value is an error if the service was too busy to list some.
        """
        groups: dict[str, dict[str, int]] = {}  # prefix -> awaited keys and their destinations
        everything: set[str] = set()  # prefixes of which every key is wanted
        for frame in wanted:
            if frame.source == ANY_SOURCE:
                prefix = f"{OWN_PREFIX}{frame.dest:06d}/{frame.context:016x}/"
                everything.add(prefix)
                groups.setdefault(prefix, {})
            else:
                name = frame.name()
                groups.setdefault(name.prefix(), {})[name.key()] = frame.dest
        keys: dict[str, int] = {}
        busy: Busy | None = None
        for prefix, group in groups.items():
            if prefix in everything or len(group) > self._listed_above:
                try:
                    listed = set(self._store.list(prefix, POLL_BUDGET_S))
                except Busy as error:
                    busy = error
                    continue
                if prefix in everything:
                    group = dict.fromkeys(listed, self.spec.rank)
                else:
                    group = {key: dest for key, dest in group.items() if key in listed}
            keys.update(group)
        return {key: dest for key, dest in keys.items() if key not in self._acknowledged}, busy

    def ack(self, receipts: Sequence[object]) -> None:
        objects = [receipt for receipt in receipts if isinstance(receipt, ReadObject)]
        own = [read.key for read in objects if read.key.startswith(OWN_PREFIX)]
        self._acknowledged.update(own)
        self._store.read(objects)

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()
