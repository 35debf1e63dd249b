"""Deleting, while the job runs, what has been received: messages, and objects that were read.

The rule: whoever is the only reader deletes.  An object that several ranks read is
deleted by the rank that put it (`SharedObjects`), once every reader has reported
that it has the bytes.  A reader reports after a number of bytes from one rank
(`ReadReports`), so a short program reports nothing.  A report is an object too:
`a/<rank that put>/<reader>/<number>`, with the keys that were read and a tag made with
the job's key, since a forged report would delete objects that are still to be read.
The rank that put looks for reports after it has put as many bytes again, so a rank
that only sends, and never polls, finds them as well.

Invariant: nothing here ends a job.  What is not deleted costs storage and reappears
as a duplicate, no more.  A delete that fails is tried again later; what remains in
the end is counted and reported once (`Deletions`, `report_remaining`).
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait

from serverless_mpi.aws.http import Busy
from serverless_mpi.aws.retry import Patience
from serverless_mpi.aws.workers import Workers
from serverless_mpi.core.tags import TAG_BYTES, Purpose, make, same
from serverless_mpi.metering import Meter

MAX_FAILED = 100_000  # names kept for another attempt; 10 MB
MAX_REPORTED = 1000  # keys of one report
MAX_REPORT_BYTES = 1 << 18
# `FrameName.key`: context, kind and number of the collective; then the rank that put it
_SHARED_KEY = re.compile(r"m/[0-9a-f]{16}/[0-9]/[0-9a-f]{12,16}/([0-9]{6,9})\.[0-9.]{1,40}")
_REPORT_KEY = re.compile(r"a/[0-9]{6,9}/([0-9]{6,9})/[0-9]{6,18}")


class Deletions:
    """Names to delete, in batches, in the background; thread-safe, and no method raises.

    Parameters
    ----------
    delete
        Deletes up to `batch` names and returns those that failed; may raise.
    batch
        Names per request; a request starts as soon as as many are waiting.
    workers
        Threads that run the requests.
    patience
        Pauses between attempts of names that failed; its budget should be infinite.
    clock
        Returns monotonic seconds.
    most_bytes
        A request also starts once the waiting names stand for as many bytes.
    most_s
        A request also starts at the first `add` after the oldest name has waited as long.
    gone
        Called with deleted names, in a worker.

    Attributes
    ----------
    abandoned
        Number of names that failed and are not tried again.
    trouble
        The last error of `delete`; None if it raised none.
    """

    def __init__(
        self,
        delete: Callable[[Sequence[str]], Sequence[str]],
        batch: int,
        workers: Workers,
        patience: Patience,
        clock: Callable[[], float],
        *,
        most_bytes: float = float("inf"),
        most_s: float = float("inf"),
        gone: Callable[[Sequence[str]], None] = lambda names: None,
    ) -> None:
        self._delete = delete
        self._batch = batch
        self._workers = workers
        self._patience = patience
        self._clock = clock
        self._most_bytes = most_bytes
        self._most_s = most_s
        self._gone = gone
        self._lock = threading.Lock()
        self._pending: list[str] = []
        self._nbytes = 0
        self._since = 0.0
        self._failed: list[str] = []
        self._not_before = 0.0  # when failed names may be tried again
        self._transient = True  # whether the last failure may pass: not if the service refused
        self._running: set[Future[None]] = set()
        self.abandoned = 0
        self.trouble: Exception | None = None

    def add(self, names: Iterable[str], nbytes: int = 0, flush: bool = False) -> None:
        """Queue names for deletion, and start the requests that are due.

        Names that failed are queued again once their pause is over.

        Parameters
        ----------
        names
            Names to delete; copied.
        nbytes
            Bytes that they stand for, counted towards `most_bytes`.
        flush
            Delete all names that wait, also in a request of fewer than `batch` names.
        """
        with self._lock:
            now = self._clock()
            if not self._pending:
                self._since = now
            self._pending += names
            self._nbytes += nbytes
            if self._failed and now >= self._not_before:
                self._pending += self._failed
                self._failed = []
            flush = flush or self._nbytes >= self._most_bytes or now - self._since > self._most_s
            batches = []
            while len(self._pending) >= self._batch or (flush and self._pending):
                batches.append(self._pending[: self._batch])
                del self._pending[: self._batch]
            if not self._pending:
                self._nbytes = 0
        for batch in batches:
            future = self._workers.submit(self._run, batch)
            self._running.add(future)
            future.add_done_callback(self._running.discard)

    def _run(self, names: Sequence[str]) -> None:
        """Do one request, in a worker."""
        try:
            failed = list(self._delete(names))
            trouble: Exception | None = None
        except Exception as error:  # of any kind: `close` reports it
            failed, trouble = list(names), error
        with self._lock:
            if failed:
                self.trouble = trouble or self.trouble
                self._transient = trouble is None or isinstance(trouble, Busy)
                self._failed += failed
                excess = max(0, len(self._failed) - MAX_FAILED)
                del self._failed[:excess]
                self.abandoned += excess
                self._not_before = self._clock() + (self._patience.pause() or 0.0)
            else:
                self._patience.over()
        if len(failed) < len(names):
            self._gone([name for name in names if name not in set(failed)])

    def close(self) -> int:
        """Delete what waits, and return the number of names that could not be deleted."""
        self.add((), flush=True)
        wait(tuple(self._running))
        if self._failed and self._transient:  # once more, without the pause
            self._not_before = 0.0
            self.add((), flush=True)
            wait(tuple(self._running))
        return self.abandoned + len(self._failed)


def report_remaining(
    remaining: int, what: str, trouble: object, rank: int, service: str, meter: Meter
) -> None:
    """Count and report on stderr how many things could not be deleted, if any.

    Parameters
    ----------
    remaining
        Number of things; 0 has no effect.
    what
        What they are, as a plural noun: "objects that were read".
    trouble
        The last error, as the report states it; None if the service gave no reason.
    rank
        The rank that reports.
    service
        Name under which `meter` counts them, with the operation "NotDeleted".
    meter
        Counts them, as messages of no request.
    """
    if not remaining:
        return
    meter.count(service, "NotDeleted", requests=0, messages=remaining, billed=0)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be no stderr
        print(
            f"rank {rank}: {remaining} {what} could not be deleted; the results are not affected,"
            f" and the end of the job removes them: {trouble or 'the service gave no reason'}",
            file=sys.stderr,
            flush=True,
        )


class SharedObjects:
    """Objects that this rank put for several readers, until all have reported.  Thread-safe."""

    def __init__(self, every_bytes: int) -> None:
        self._every_bytes = every_bytes
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[set[int], int]] = {}  # key -> (readers to report, bytes)
        self._put_bytes = 0  # since the last look for reports

    def put(self, key: str, readers: Iterable[int], nbytes: int) -> bool:
        """Note an object; return whether it is time to look for reports.

        Parameters
        ----------
        key
            Key of the object, without the job's prefix.
        readers
            World ranks that will read it; copied.
        nbytes
            Length of the object in bytes.

        Returns
        -------
        bool
            Whether `every_bytes` bytes have been put since this was last true, or the last look
            for reports failed.
        """
        with self._lock:
            self._objects[key] = (set(readers), nbytes)
            self._put_bytes += nbytes
            due = self._put_bytes >= self._every_bytes
            if due:
                self._put_bytes = 0
            return due

    def look_again(self) -> None:
        """Look for reports at the next `put`, since the last look failed."""
        with self._lock:
            self._put_bytes = self._every_bytes

    def reported(self, reader: int, keys: Iterable[str]) -> list[str]:
        """Note that a rank has read objects; return the keys that no rank still has to read.

        Parameters
        ----------
        reader
            World rank that has read them.
        keys
            Keys of the objects, without the job's prefix; unknown ones are ignored.

        Returns
        -------
        list[str]
            Keys of the objects that can be deleted.  They are not noted any longer.
        """
        finished = []
        with self._lock:
            for key in keys:
                readers, _ = self._objects.get(key, (None, 0))
                if readers is not None:
                    readers.discard(reader)
                    if not readers:
                        del self._objects[key]
                        finished.append(key)
        return finished


class ReadReports:
    """Shared objects of other ranks that this rank has read and not reported.  Thread-safe."""

    def __init__(self, rank: int, every_bytes: int) -> None:
        self._rank = rank
        self._every_bytes = every_bytes
        self._lock = threading.Lock()
        self._unreported: dict[int, tuple[list[str], int]] = {}  # rank that put -> (keys, bytes)
        self._numbers: dict[int, int] = {}  # rank that put -> number of reports

    def read(self, key: str, nbytes: int) -> tuple[str, list[str]] | None:
        """Note an object that was read; return a report if one is due.

        Parameters
        ----------
        key
            Key of the object, without the job's prefix.
        nbytes
            Length of the object in bytes.

        Returns
        -------
        tuple[str, list[str]] or None
            (name, keys) of a report to the rank that put the object, once `every_bytes` bytes or
            MAX_REPORTED objects of that rank are not reported.  None if no report is due, or if
            `key` is not the key of a shared object.
        """
        named = _SHARED_KEY.fullmatch(key)
        if named is None:
            return None
        source = int(named.group(1))
        with self._lock:
            keys, total = self._unreported.pop(source, ([], 0))
            keys.append(key)
            total += nbytes
            if total < self._every_bytes and len(keys) < MAX_REPORTED:
                self._unreported[source] = (keys, total)
                return None
            number = self._numbers.get(source, 0)
            self._numbers[source] = number + 1
        return f"{reports_for(source)}{self._rank:06d}/{number:06d}", keys

    def not_reported(self, name: str, keys: Sequence[str]) -> None:
        """Add the keys of a report that could not be put to the next one.

        Parameters
        ----------
        name, keys
            The report, as `read` returned it.  Keys beyond the capacity of one report are dropped,
            and their objects remain until the job ends.
        """
        source = int(name.split("/")[1])
        with self._lock:
            later, total = self._unreported.get(source, ([], 0))
            free = max(0, MAX_REPORTED - 1 - len(later))
            self._unreported[source] = ([*keys[:free], *later], total)


def reports_for(rank: int) -> str:
    """Return the prefix of the names of reports to a rank.

    Parameters
    ----------
    rank
        World rank that put the objects.
    """
    return f"a/{rank:06d}/"


def encode_report(name: str, keys: Iterable[str], job_key: bytes) -> bytes:
    """Return a report: its tag, then the keys, one per line.

    Parameters
    ----------
    name
        Name of the report's object, without the job's prefix; the tag covers it.
    keys
        Keys of the objects that were read.
    job_key
        The job's key, which makes the tag.
    """
    text = "\n".join(keys).encode()
    return _tag(name, text, job_key) + text


def decode_report(name: str, data: memoryview, job_key: bytes) -> tuple[int, list[str]] | None:
    """Return the reader and the keys of a report.

    Parameters
    ----------
    name
        Name of the report's object, without the job's prefix.
    data
        The report, as `encode_report` returned it; copied.
    job_key
        The job's key, which verifies the tag.

    Returns
    -------
    tuple[int, list[str]] or None
        (world rank of the reader, keys of the objects).  None if the tag is wrong, or if `name` is
        not the name of a report: no rank of this job made it.
    """
    named = _REPORT_KEY.fullmatch(name)
    tag, text = bytes(data[:TAG_BYTES]), bytes(data[TAG_BYTES:])
    if named is None or not same(tag, _tag(name, text, job_key)):
        return None
    return int(named.group(1)), text.decode().split("\n")


def _tag(name: str, text: bytes, job_key: bytes) -> bytes:
    """Return the tag over a report's name and text, so neither can be exchanged."""
    return make(job_key, Purpose.READ_REPORT, name.encode() + b"\n" + text)
