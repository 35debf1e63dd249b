"""What a channel removes behind itself while the job runs: messages that were received, objects that were read.

Nothing here may end a job.  What is not deleted costs storage and comes again as a duplicate, no more, so a delete
that fails is tried again later, and what is left in the end is counted and said once (`Deletions`).

An object that one rank reads is deleted by that rank.  An object that several ranks read is deleted by the rank that
put it (`SharedObjects`), once every reader has reported that it has the bytes.  A reader reports after it has read
a certain number of bytes from one rank (`ReadReports`), so a short program reports nothing.  A report is an object too:
`a/<rank that put>/<reader>/<number>`, the keys that were read and a tag made with the job's key, because whoever
could forge a report could have objects deleted that nobody has read yet.  The rank that put looks for reports after it
has put as many bytes again; so a rank that only sends, and never polls, gets them as well.
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

MOST_FAILED = 100_000  # names that are kept to be tried again; 10 MB
MOST_REPORTED = 1000  # keys of one report
MAX_REPORT_BYTES = 1 << 18
_SHARED_KEY = re.compile(r"m/[0-9a-f]{16}/([0-9]{6,9})/[0-9a-f./]{1,80}")
_REPORT_KEY = re.compile(r"a/[0-9]{6,9}/([0-9]{6,9})/[0-9]{6,18}")


class Deletions:
    """Names to delete, in batches, in the background; nothing of it raises.

    Parameters
    ----------
    delete : callable
        Deletes up to `batch` names and returns those that failed; may raise.
    batch : int
        So many names are deleted in one request as soon as they are there.
    workers : Workers
        Where requests run.
    patience : Patience
        Pauses between attempts of what failed; its time should not end.
    clock : callable
        Seconds, monotonic.
    most_bytes : int
        Also deleted as soon as what the names stand for has so many bytes.
    most_s : float
        Also deleted at the first `add` after the oldest name has waited so long.
    gone : callable
        Told the names that are deleted, from a worker.
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
        self._not_before = 0.0  # when what failed may be tried again
        self._worth_another = True  # not if the service cannot be reached, or refuses
        self._running: set[Future[None]] = set()
        self.forgotten = 0  # names that failed and are not tried again
        self.trouble: Exception | None = None  # the last one

    def add(self, names: Iterable[str], nbytes: int = 0, flush: bool = False) -> None:
        """Have `names`, which stand for `nbytes` bytes, deleted some time; with `flush` now."""
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
        try:
            failed = list(self._delete(names))
            trouble: Exception | None = None
        except Exception as error:  # whatever it is, `close` reports it
            failed, trouble = list(names), error
        with self._lock:
            if failed:
                self.trouble = trouble or self.trouble
                self._worth_another = trouble is None or isinstance(trouble, Busy)
                self._failed += failed
                over = max(0, len(self._failed) - MOST_FAILED)
                del self._failed[:over]
                self.forgotten += over
                self._not_before = self._clock() + (self._patience.pause() or 0.0)
            else:
                self._patience.over()
        if len(failed) < len(names):
            self._gone([name for name in names if name not in set(failed)])

    def close(self) -> int:
        """Delete what is left, wait for it, and say how many names could not be deleted."""
        self.add((), flush=True)
        wait(tuple(self._running))
        if self._failed and self._worth_another:  # once more, whatever the pause
            self._not_before = 0.0
            self.add((), flush=True)
            wait(tuple(self._running))
        return self.forgotten + len(self._failed)


def say_left(left: int, what: str, trouble: object, rank: int, service: str, meter: Meter) -> None:
    """Count and report on stderr what of a job's `what` could not be deleted."""
    if not left:
        return
    meter.count(service, "NotDeleted", requests=0, messages=left, billed=0)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be no stderr
        print(
            f"rank {rank}: {left} {what} could not be deleted; the results are not affected, and "
            f"the end of the job removes them: {trouble or 'the service said no more'}",
            file=sys.stderr,
            flush=True,
        )


class SharedObjects:
    """The objects that this rank put for several readers, until all of them have reported.  Safe for threads."""

    def __init__(self, every_bytes: int) -> None:
        self._every_bytes = every_bytes
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[set[int], int]] = {}  # key -> (who has not reported, bytes)
        self._put_bytes = 0  # since the last look for reports

    def put(self, key: str, readers: Iterable[int], nbytes: int) -> bool:
        """Note an object; whether it is time to look for reports."""
        with self._lock:
            self._objects[key] = (set(readers), nbytes)
            self._put_bytes += nbytes
            due = self._put_bytes >= self._every_bytes
            if due:
                self._put_bytes = 0
            return due

    def look_again(self) -> None:
        """The look for reports failed: the next `put` is time for another."""
        with self._lock:
            self._put_bytes = self._every_bytes

    def reported(self, reader: int, keys: Iterable[str]) -> list[str]:
        """Note that `reader` has read `keys`; those that nobody will read any more."""
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
    """What this rank has read of others' shared objects and not reported.  Safe for threads."""

    def __init__(self, rank: int, every_bytes: int) -> None:
        self._rank = rank
        self._every_bytes = every_bytes
        self._lock = threading.Lock()
        self._unreported: dict[int, tuple[list[str], int]] = {}  # who put -> (keys, bytes)
        self._numbers: dict[int, int] = {}  # who put -> reports so far

    def read(self, key: str, nbytes: int) -> tuple[str, list[str]] | None:
        """Note an object of `nbytes` bytes that was read; (name, keys) of a report if one is due."""
        named = _SHARED_KEY.fullmatch(key)
        if named is None:
            return None
        source = int(named.group(1))
        with self._lock:
            keys, total = self._unreported.pop(source, ([], 0))
            keys.append(key)
            total += nbytes
            if total < self._every_bytes and len(keys) < MOST_REPORTED:
                self._unreported[source] = (keys, total)
                return None
            number = self._numbers.get(source, 0)
            self._numbers[source] = number + 1
        return f"{reports_for(source)}{self._rank:06d}/{number:06d}", keys

    def not_reported(self, name: str, keys: Sequence[str]) -> None:
        """The report could not be put: its keys go with the next one."""
        source = int(name.split("/")[1])
        with self._lock:
            later, total = self._unreported.get(source, ([], 0))
            room = max(0, MOST_REPORTED - 1 - len(later))
            self._unreported[source] = ([*keys[:room], *later], total)


def reports_for(rank: int) -> str:
    """What the names of the reports to `rank` begin with."""
    return f"a/{rank:06d}/"


def encode_report(name: str, keys: Iterable[str], job_key: bytes) -> bytes:
    """The bytes of report `name`."""
    text = "\n".join(keys).encode()
    return _tag(name, text, job_key) + text


def decode_report(name: str, data: memoryview, job_key: bytes) -> tuple[int, list[str]] | None:
    """(reader, keys) of report `name`; None if no rank of this job made it."""
    named = _REPORT_KEY.fullmatch(name)
    tag, text = bytes(data[:TAG_BYTES]), bytes(data[TAG_BYTES:])
    if named is None or not same(tag, _tag(name, text, job_key)):
        return None
    return int(named.group(1)), text.decode().split("\n")


def _tag(name: str, text: bytes, job_key: bytes) -> bytes:
    return make(job_key, Purpose.READ_REPORT, name.encode() + b"\n" + text)
