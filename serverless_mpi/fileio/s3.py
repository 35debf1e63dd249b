"""Files that are objects of S3.

An object cannot be changed in place, so what ranks write is *pending* until `Sync` or `Close`
publishes it: then the object has all of it, or is what it was before. Until then:

- The file is divided into *cells* of equal length, the parts of one multipart upload. A collective
  write uploads the cells that the ranks have written completely, each by the rank that has most of
  it; pieces that other ranks have of it are sent to that rank (two-phase access).
- What is left over stays in the memory of the rank that wrote it. A write of one rank alone always
  does. The rank itself reads it back; other ranks do not see it.
- An uploaded cell cannot be read back from S3. Reading it, or writing a part of it, before it is
  published raises ERR_UNSUPPORTED_OPERATION, which names `Sync`. Writing all of it again is fine.
- Publishing fills the cells that were written partly from the object that is replaced, has S3 copy
  those that nobody touched, and completes the upload. A file of one cell is one PUT instead.

Reads are ranges of the published object, with its tag, so bytes of two versions are never mixed.
Small reads in sequence read ahead. In a collective read, ranks fetch for each other what several
of them want, if that takes fewer requests, messages included.

The shared pointer is an object beside the file, which is replaced on the condition that it has not
changed: 2 requests for each use, more if ranks compete. `close` deletes it.

Pitfall: every rank must know the set of uploaded cells, since it decides what is an error on all
of them. So it changes only in collective methods.

References
----------
"Uploading and copying objects using multipart upload" and "Conditional writes", Amazon S3 User
Guide.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from serverless_mpi.aws import limits
from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import PART_BYTES, S3
from serverless_mpi.aws.workers import Workers
from serverless_mpi.errors import (
    ERR_ACCESS,
    ERR_BAD_FILE,
    ERR_FILE_EXISTS,
    ERR_IO,
    ERR_NO_SPACE,
    ERR_NO_SUCH_FILE,
    ERR_QUOTA,
    ERR_UNSUPPORTED_OPERATION,
    ChannelError,
    MPIException,
    UsageError,
)
from serverless_mpi.fileio import plan
from serverless_mpi.fileio.base import Backend, Mode, Ranks, Where, agree, by_first
from serverless_mpi.fileio.pieces import (
    NONE,
    Bytes,
    Places,
    as_array,
    covered,
    cut,
    gather,
    located,
    move,
    places,
    present,
    scatter,
    total,
    union,
)
from serverless_mpi.fileio.two_phase import send_pieces

CELL_BYTES = 8 << 20  # of a part, unless the hint striping_unit says otherwise
MOST_PARTS = 10_000  # of an upload
MOST_COPIED = 5 << 30  # bytes that one request copies
AHEAD_BYTES = 4 << 20  # read ahead of small reads in sequence
GAP_BYTES = 512 << 10  # read and dropped rather than another request: as long as its latency
AT_ONCE = 8  # requests of a rank
DATA = "data/"  # of the job's bucket, which ranks may write: as in stack/bucket.py
_CODES: dict[str, int] = {
    "NoSuchBucket": ERR_NO_SUCH_FILE,
    "NoSuchKey": ERR_NO_SUCH_FILE,
    "404": ERR_NO_SUCH_FILE,
    "InvalidBucketName": ERR_BAD_FILE,
    "KeyTooLongError": ERR_BAD_FILE,
    "EntityTooLarge": ERR_NO_SPACE,
    "InsufficientStorage": ERR_NO_SPACE,
    "QuotaExceeded": ERR_QUOTA,
    "ServiceQuotaExceededException": ERR_QUOTA,
    **dict.fromkeys(
        (
            "AccessDenied",
            "403",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidToken",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AllAccessDisabled",
        ),
        ERR_ACCESS,
    ),
}
T = TypeVar("T")
_Piece = tuple[int, Places, Bytes]  # turn, places in the file, bytes
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn errors of requests into MPI's; `what` says what failed."""
    try:
        yield
    except ChannelError as error:
        code = _CODES.get(error.code, ERR_IO)
        raise MPIException(code, f"cannot {what}: {error}") from error
    except UsageError as error:  # no credentials
        raise MPIException(ERR_ACCESS, f"cannot {what}: {error}") from error


def _connect(name: str, where: Where) -> tuple[Client, S3, str]:
    """The client of a file's bucket, and the key; ERR_BAD_FILE for what is not such a name."""
    bucket, _, key = name.partition("/")
    if not bucket:
        bucket, key = where.bucket, DATA + key
        if not bucket:
            raise MPIException(
                ERR_BAD_FILE,
                f"s3://{name}: the channel of this job has no bucket; name one, as s3://bucket/key",
            )
    if not _BUCKET.fullmatch(bucket) or key in ("", DATA):
        raise MPIException(ERR_BAD_FILE, f"s3://{name} is not of the form s3://bucket/key")
    credentials = Credentials(where.endpoint, fixed=emulator_keys(where.key))
    client = Client("s3", where.region, where.endpoint, credentials, where.meter)
    return client, S3(client, bucket), key


@dataclass
class _Written:
    """Bytes that a rank has written and that are not uploaded; `turn` orders them."""

    turn: int
    at: Places
    data: memoryview


class Bucket(Backend):
    """An open file that is an object."""

    def __init__(
        self, name: str, mode: Mode, ranks: Ranks, connection: tuple[Client, S3, str], cell: int
    ) -> None:
        self.name = f"s3://{name}"
        self.hints = {"striping_unit": str(cell)}
        self._mode = mode
        self._ranks = ranks
        self._client, self._s3, self._key = connection
        self._pool = Workers(AT_ONCE)
        self._lock = threading.Lock()
        self._cell = cell
        self._tag = ""  # of the published object; "" if there is none
        self._base = 0  # bytes of the published object that count: not those that were cut off
        self._size = 0
        self._changed = False  # apart from what is written
        self._turn = 0
        self._written: list[_Written] = []
        self._touched = NONE  # the set of places of `_written`
        self._upload: str | None = None
        self._uploaded: frozenset[int] = frozenset()
        self._tags: dict[int, str] = {}  # of the cells that this rank has uploaded
        self._ahead: tuple[int, memoryview] = (0, memoryview(b""))
        self._next = 0  # where a read in sequence would begin
        self._failed: MPIException | None = None
        self._counter_key = ""
        self._counts = False  # whether this rank has used the counter

    @classmethod
    def open(
        cls, name: str, mode: Mode, hints: Mapping[str, str], ranks: Ranks, where: Where
    ) -> Bucket:
        """Open a file.

        Parameters
        ----------
        name
            bucket/key, or /key of the job's bucket, below data/.
        mode, ranks, where
            As for `Backend.open`.
        hints
            `striping_unit`: bytes of a part of an upload, at least 5 MiB.
        """

        def connect() -> tuple[int, tuple[Client, S3, str]]:
            return _cell_of(hints), _connect(name, where)

        cell, connection = agree(ranks, connect, same="striping_unit", fact=lambda both: both[0])
        self = cls(name, mode, ranks, connection, cell)
        try:
            found, token = by_first(ranks, self._look)
        except MPIException:
            self._end()
            raise
        self._counter_key = f"{self._key}.{token}.pointer"
        self._take(found)
        self._changed = found is None
        return self

    def _look(self) -> tuple[tuple[int, str] | None, str]:
        """Size and tag of the object, or None if it is to be made; and a random token."""
        with _named(f"open {self.name}"):
            found = self._s3.head(self._key)
            if found is None:
                if not self._mode.create:
                    raise MPIException(ERR_NO_SUCH_FILE, f"{self.name} does not exist")
                self._s3.list(self._key)  # raises if there is no such bucket
            elif self._mode.exclusive:
                raise MPIException(ERR_FILE_EXISTS, f"{self.name} exists already")
        return found, os.urandom(6).hex()

    def _take(self, found: tuple[int, str] | None) -> None:
        """Read from this version of the object from now on."""
        self._base, self._tag = found or (0, "")
        self._size = self._base
        self._ahead = (0, memoryview(b""))
        self._next = 0

    @classmethod
    def delete(cls, name: str, where: Where) -> None:
        """Delete a file.

        Parameters
        ----------
        name, where
            As for `Backend.delete`.
        """
        client, s3, key = _connect(name, where)
        try:
            with _named(f"delete s3://{name}"):
                if s3.head(key) is None:
                    raise MPIException(ERR_NO_SUCH_FILE, f"s3://{name} does not exist")
                if s3.delete([key]):
                    raise MPIException(ERR_ACCESS, f"S3 did not delete s3://{name}")
        finally:
            client.close()

    def _check(self) -> None:
        """Raise the error that lost what was written, if there was one."""
        if self._failed is not None:
            raise MPIException(
                self._failed.ob_mpi,
                f"{self.name}: an earlier write failed, and nothing since the last Sync is kept:"
                f" {self._failed.message}",
            )

    def _check_uploaded(self, at: Places, what: str, cells: frozenset[int] | None = None) -> None:
        """Raise if places touch cells that are uploaded and not published, or those of `cells`."""
        for number in self._uploaded if cells is None else cells:
            if covered(at, (number - 1) * self._cell, number * self._cell):
                raise MPIException(
                    ERR_UNSUPPORTED_OPERATION,
                    f"{self.name}: cannot {what} what a collective write has sent to S3 before it"
                    " is published: call Sync on all ranks first",
                )

    # --- reading ---

    def read(self, at: Places, into: memoryview) -> int:
        """Read bytes of the published object, and of what this rank has written since.

        Parameters
        ----------
        at, into
            As for `Backend.read`.
        """
        self._check()
        self._check_uploaded(at, "read")
        there = present(at, self._size)
        if not there:
            return 0
        published, within = cut(at, 0, self._base)
        if total(published) < there:
            into[:there] = bytes(there)
        with _named(f"read {self.name}"):
            self._fetch(published, within, into)
        self._overlay(at, into)
        return there

    def _overlay(self, at: Places, into: memoryview) -> None:
        """Put what this rank has written over what it has read."""
        with self._lock:
            written = list(self._written)
        for one in written:
            for index, (start, length) in enumerate(at.tolist()):
                there, source = cut(one.at, start, start + length)
                if len(there):
                    base = int(at[:index, 1].sum())
                    target = there.copy()
                    target[:, 0] += base - start
                    move(one.data, source, into, target)

    def _fetch(self, at: Places, within: Places, into: memoryview) -> None:
        """Read places of the published object to places of `into`."""
        spans = _split(union(at, GAP_BYTES), PART_BYTES)
        if len(spans) == 1 and self._fetch_ahead(*spans[0], at, within, into):
            return

        def get(span: tuple[int, int]) -> None:
            start, end = span
            there, target = cut(at, start, end, within)
            if len(there) == 1 and there[0, 1] == end - start:
                first = int(target[0, 0])
                self._get(start, into[first : first + end - start])
                return
            part = memoryview(bytearray(end - start))
            self._get(start, part)
            source = there.copy()
            source[:, 0] -= start
            move(part, source, into, target)

        if len(spans) == 1:
            get(spans[0])
        else:
            self._pool.each(get, spans)

    def _fetch_ahead(
        self, start: int, end: int, at: Places, within: Places, into: memoryview
    ) -> bool:
        """Serve a small read in sequence from memory, and read ahead; whether it was one."""
        if end - start > AHEAD_BYTES // 2:
            return False
        with self._lock:
            sequence = start == self._next or self._base <= AHEAD_BYTES
            self._next = end
            first, ahead = self._ahead
        if not first <= start <= end <= first + ahead.nbytes:
            if not sequence:
                return False
            first = start if self._base > AHEAD_BYTES else 0
            ahead = memoryview(bytearray(min(AHEAD_BYTES, self._base - first)))
            self._get(first, ahead)
            with self._lock:
                self._ahead = first, ahead
        source = at.copy()
        source[:, 0] -= first
        move(ahead, source, into, within)
        return True

    def _get(self, start: int, into: memoryview) -> None:
        """Read a range of the published object."""
        found = self._s3.get(self._key, start, into.nbytes, into, match=self._tag)
        if found is None or found[0].nbytes != into.nbytes:
            raise MPIException(ERR_IO, f"{self.name} was replaced while it was open")
        if found[0].obj is not into.obj:
            into[:] = found[0]

    def read_all(self, at: Places, into: memoryview) -> int:
        """Read bytes; what several ranks want is fetched once, if that saves requests.

        Parameters
        ----------
        at, into
            As for `Backend.read_all`.
        """
        ranks = self._ranks
        if ranks.size == 1:
            return self.read(at, into)
        published = cut(at, 0, self._base)[0]
        plain = not self._uploaded and not len(self._touched) and self._failed is None
        answers = ranks.allgather((plain, union(published)))
        wanted = [places for _, places in answers]
        domains = plan.domains(wanted, ranks.size)
        alone, shared = plan.shared_reads(wanted, PART_BYTES, GAP_BYTES)
        messages = sum(
            bool(covered(places, domain.start, domain.end))
            for rank, places in enumerate(wanted)
            for domain in domains
            if domain.owner != rank
        )
        cost = 0 if ranks.exchange_is_free() else 2 * messages
        if not all(plain for plain, _ in answers) or shared + cost >= alone:
            return self.read(at, into)
        there = present(at, self._size)
        if total(published) < there:
            into[:there] = bytes(there)
        self._read_shared(wanted, domains, at, into)
        return there

    def _read_shared(
        self, wanted: Sequence[Places], domains: Sequence[plan.Domain], at: Places, into: memoryview
    ) -> None:
        """Read this rank's domain for all ranks, and take what it wants of the others'."""
        failed, waits = self._read_for_all(wanted, domains, at, into)
        failed = self._take_of_others(wanted, domains, at, into) or failed
        for wait in waits:
            wait()
        if failed is not None:
            raise failed

    def _read_for_all(
        self, wanted: Sequence[Places], domains: Sequence[plan.Domain], at: Places, into: memoryview
    ) -> tuple[MPIException | None, list[Callable[[], None]]]:
        """Read this rank's domain and send its parts, or the error that reading it gave."""
        me = self._ranks.rank
        waits: list[Callable[[], None]] = []
        failed: MPIException | None = None
        for domain in domains:
            if domain.owner != me:
                continue
            parts = [cut(places, domain.start, domain.end)[0] for places in wanted]
            everything = union(np.concatenate(parts))
            data = memoryview(bytearray(total(everything)))
            try:
                self.read(everything, data)
            except MPIException as error:
                failed = error
            for rank, part in enumerate(parts):
                if rank == me:
                    own, target = cut(at, domain.start, domain.end)
                    move(data, located(own, everything), into, target)
                elif len(part):
                    message: object = as_array(gather(data, located(part, everything)))
                    if failed is not None:
                        message = (failed.ob_mpi, failed.message)
                    waits.append(self._ranks.send(message, rank))
        return failed, waits

    def _take_of_others(
        self, wanted: Sequence[Places], domains: Sequence[plan.Domain], at: Places, into: memoryview
    ) -> MPIException | None:
        """Receive what this rank wants of the domains of others; the error of one of them."""
        me = self._ranks.rank
        failed: MPIException | None = None
        for domain in domains:
            part = cut(wanted[me], domain.start, domain.end)[0]
            if domain.owner == me or not len(part):
                continue
            got = self._ranks.recv(domain.owner)
            if isinstance(got, tuple):
                failed = failed or MPIException(*got)
                continue
            own, target = cut(at, domain.start, domain.end)
            move(cast(Bytes, got).data, located(own, part), into, target)
        return failed

    # --- writing ---

    def write(self, at: Places, data: memoryview) -> None:
        """Keep bytes in memory until they are published.

        Parameters
        ----------
        at, data
            As for `Backend.write`; copied.
        """
        self._check()
        self._check_uploaded(at, "write a part of")
        self._keep(at, memoryview(bytes(data)))

    def _keep(self, at: Places, data: memoryview) -> None:
        if not len(at):
            return
        end = int((at[:, 0] + at[:, 1]).max())
        if end > self._cell * MOST_PARTS:
            raise MPIException(
                ERR_NO_SPACE,
                f"{self.name}: byte {end} is beyond {MOST_PARTS} parts of {self._cell} bytes;"
                " give a larger hint striping_unit to Open",
            )
        with self._lock:
            self._written.append(_Written(self._turn, at, data))
            self._touched = union(np.concatenate([self._touched, at]))
            self._size = max(self._size, end)

    def write_all(self, at: Places, data: memoryview) -> None:
        """Write bytes, and upload the cells that are complete.

        Parameters
        ----------
        at, data
            As for `Backend.write_all`.
        """
        self._turn += 1
        before = self._size

        def keep() -> None:
            self._check()
            self._keep(at, data)

        try:
            agree(self._ranks, keep)
            answers = self._ranks.allgather((self._touched, self._size))
            touched = [places for places, _ in answers]
            cells = plan.full_cells(touched, self._cell)
            again = self._uploaded - {cell.number for cell in cells}
            self._check_uploaded(np.concatenate(touched), "write a part of", again)
        except MPIException:  # on all ranks: nobody has written anything
            self._drop_last()
            self._size = before
            raise
        self._size = max(size for _, size in answers)
        if cells:
            self._send(cells, touched)
        with self._lock:  # the program may change its buffer when the call returns
            for one in self._written:
                if one.turn == self._turn:
                    one.data = memoryview(bytes(one.data))

    def _drop_last(self) -> None:
        """Forget the write of this turn, which is an error on all ranks."""
        with self._lock:
            self._written = [one for one in self._written if one.turn != self._turn]
            self._touched = union(np.concatenate([*(one.at for one in self._written), NONE]))

    def _send(self, cells: Sequence[plan.Cell], touched: Sequence[Places]) -> None:
        """Upload cells, each by its owner. Collective; an error loses what is not published."""
        if self._upload is None:
            self._upload = self._or_fail(lambda: by_first(self._ranks, self._begin))
        received, waits = send_pieces(self._ranks, touched, cells, self._pieces_of)
        mine = [
            (cell, [(rank, pieces) for rank, which, pieces in received if which == index])
            for index, cell in enumerate(cells)
            if cell.owner == self._ranks.rank
        ]
        upload = self._upload

        def put(item: tuple[plan.Cell, list[tuple[int, list[_Piece]]]]) -> tuple[int, str]:
            cell, pieces = item
            with _named(f"write {self.name}"):
                if cell.copied:
                    tag = self._s3.copy_part(
                        self._key, upload, cell.number, cell.start, cell.end, self._tag
                    )
                else:
                    data = self._assemble(cell, pieces)
                    tag = self._s3.put_part(self._key, upload, cell.number, [data])
            return cell.number, tag

        tags = self._or_fail(lambda: agree(self._ranks, lambda: self._pool.each(put, mine)))
        for wait in waits:
            wait()
        for cell in cells:  # another rank may have uploaded an earlier version
            self._tags.pop(cell.number, None)
        self._tags.update(tags)
        self._uploaded |= {cell.number for cell in cells}
        self._forget([(cell.start, cell.end) for cell in cells])

    def _begin(self) -> str:
        with _named(f"write {self.name}"):
            return self._s3.begin_upload(self._key)

    def _pieces_of(self, cell: plan.Cell) -> list[_Piece]:
        """What this rank has written of a cell, oldest first."""
        found = []
        for one in self._written:
            there, source = cut(one.at, cell.start, cell.end)
            if len(there):
                found.append((one.turn, there, as_array(gather(one.data, source))))
        return found

    def _assemble(self, cell: plan.Cell, pieces: list[tuple[int, list[_Piece]]]) -> memoryview:
        """The bytes of a cell: of the object that is replaced, and over them what was written."""
        own = self._pieces_of(cell)
        every = [(turn, rank, there, data) for rank, some in pieces for turn, there, data in some]
        every += [(turn, self._ranks.rank, there, data) for turn, there, data in own]
        if len(every) == 1 and len(every[0][2]) == 1 and every[0][2][0, 1] == cell.end - cell.start:
            return every[0][3].data
        every.sort(key=lambda one: one[:2])
        whole = memoryview(bytearray(cell.end - cell.start))
        touched = union(np.concatenate([*(there for _, _, there, _ in every), NONE]))
        until = min(cell.end, self._base)
        if until > cell.start and covered(touched, cell.start, until) < until - cell.start:
            self._get(cell.start, whole[: until - cell.start])
        for _, _, there, data in every:
            target = there.copy()
            target[:, 0] -= cell.start
            scatter(data.data, whole, target)
        return whole

    def _forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop what was written of ranges of the file."""
        gone = union(places(*((start, end - start) for start, end in ranges)))
        with self._lock:
            kept: list[_Written] = []
            for one in self._written:
                parts, sources = [], []
                begin = 0
                for start, length in [*gone.tolist(), (1 << 62, 0)]:
                    there, source = cut(one.at, begin, start)
                    parts.append(there)
                    sources.append(source)
                    begin = start + length
                at = np.concatenate(parts)
                if len(at):
                    kept.append(_Written(one.turn, at, gather(one.data, np.concatenate(sources))))
            self._written = kept
            self._touched = union(np.concatenate([*(one.at for one in kept), NONE]))

    def _or_fail(self, call: Callable[[], T]) -> T:
        """Make a collective call; after an error nothing of this upload can be kept."""
        try:
            return call()
        except MPIException as error:
            upload, self._upload = self._upload, None
            self._reset()
            self._failed = error
            if upload is not None and self._ranks.rank == 0:
                with contextlib.suppress(ChannelError):
                    self._s3.abort_upload(self._key, upload)
            raise

    def _reset(self) -> None:
        """Have nothing written."""
        with self._lock:
            self._written, self._touched = [], NONE
        self._upload, self._uploaded, self._tags = None, frozenset(), {}
        self._changed = False

    # --- publishing ---

    def _publish(self) -> bool:
        """Make the object what has been written. Collective; whether anything was."""
        self._check()
        answers = self._ranks.allgather((self._touched, self._size))
        touched = [one for one, _ in answers]
        size = self._size = max(size for _, size in answers)
        if not (self._changed or self._upload or any(len(one) for one in touched)):
            return False
        if self._upload is None and size <= self._cell:
            self._or_fail(lambda: self._put_whole(touched, size))
        else:
            copied = MOST_COPIED if self._tag else 0
            cells = plan.remaining_cells(
                touched, self._uploaded, self._cell, size, self._base, copied
            )
            if cells:
                self._send(cells, touched)
            tags = sorted(
                pair for pairs in self._ranks.allgather(list(self._tags.items())) for pair in pairs
            )
            self._or_fail(lambda: by_first(self._ranks, lambda: self._complete(tags, size)))
        self._reset()
        return True

    def _complete(self, tags: list[tuple[int, str]], size: int) -> None:
        assert self._upload is not None
        with _named(f"publish {self.name}"):
            self._s3.complete_upload(self._key, self._upload, tags, size)

    def _put_whole(self, touched: Sequence[Places], size: int) -> None:
        """Publish a file of one cell by one PUT. Collective."""
        owner = int(np.argmax([total(one) for one in touched]))
        cell = plan.Cell(1, 0, size, owner)
        received, waits = send_pieces(self._ranks, touched, [cell], self._pieces_of)

        def put() -> None:
            if self._ranks.rank == owner:
                with _named(f"publish {self.name}"):
                    pieces = [(rank, some) for rank, _, some in received]
                    self._s3.put(self._key, [self._assemble(cell, pieces)])

        agree(self._ranks, put)
        for wait in waits:
            wait()

    def size(self) -> int:
        """Return the size in bytes, with what this rank knows to be written."""
        return self._size

    def set_size(self, size: int) -> None:
        """Cut or extend the file, when it is published.

        Parameters
        ----------
        size
            As for `Backend.set_size`.
        """
        self._check()
        if self._uploaded and size < max(self._uploaded) * self._cell:
            self._check_uploaded(places((size, 1 << 62)), "cut off")
        self._forget([(size, 1 << 61)])
        self._base = min(self._base, size)
        self._size = size
        self._changed = True

    def sync(self) -> None:
        """Publish what was written, and read what is published from now on."""
        self._publish()

        def look() -> tuple[int, str] | None:
            with _named(f"sync {self.name}"):
                return self._s3.head(self._key)

        self._take(by_first(self._ranks, look))

    def close(self, delete: bool) -> None:
        """Publish what was written, and close.

        Parameters
        ----------
        delete
            As for `Backend.close`.
        """
        try:
            if not delete and self._mode.write:
                self._publish()
        finally:
            counted = any(self._ranks.allgather(self._counts))
            upload = self._upload
            self._reset()
            try:
                by_first(self._ranks, lambda: self._clean(upload, delete=delete, counted=counted))
            finally:
                self._end()

    def _clean(self, upload: str | None, *, delete: bool, counted: bool) -> None:
        """Remove what is not to stay."""
        with _named(f"close {self.name}"):
            if upload is not None:
                self._s3.abort_upload(self._key, upload)
            gone = [self._key] * delete + [self._counter_key] * counted
            if gone and self._s3.delete(gone) and delete:
                raise MPIException(ERR_ACCESS, f"S3 did not delete {self.name}")

    def _end(self) -> None:
        self._pool.close()
        self._client.close()

    # --- the shared pointer ---

    def counter(self, generation: int, number: int) -> int:
        """Add to a counter, and return what it was before.

        Parameters
        ----------
        generation, number
            As for `Backend.counter`.
        """
        self._counts = True
        with _named(f"move the shared pointer of {self.name}"):
            while True:
                tag, of, value = self._counted()
                before = value if of == generation else 0
                if not number:
                    return before
                body = f"{generation} {before + number} {os.urandom(8).hex()}".encode()
                if not tag:
                    done = self._s3.create(self._counter_key, body)
                else:
                    done = self._s3.replace(self._counter_key, body, tag)
                if done:
                    return before

    def _counted(self) -> tuple[str, int, int]:
        """Tag, generation and value of the counter; the tag is "" before its first use."""
        while True:
            found = self._s3.head(self._counter_key)
            if found is None:
                return "", 0, 0
            try:
                there = self._s3.get(self._counter_key, match=found[1])
            except ChannelError as error:
                if error.code != "PreconditionFailed":
                    raise
                there = None
            if there is not None:
                generation, value, _ = bytes(there[0]).decode().split()
                return found[1], int(generation), int(value)


def _split(at: Places, most: int) -> list[tuple[int, int]]:
    """A set as spans of at most so many bytes: (start, end)."""
    return [
        (begin, min(begin + most, start + length))
        for start, length in at.tolist()
        for begin in range(start, start + length, most)
    ]


def _cell_of(hints: Mapping[str, str]) -> int:
    """Bytes of a cell by the hints."""
    text = hints.get("striping_unit", "")
    least = limits.S3_PART_BYTES.value
    return max(int(text), least) if text.isdecimal() and len(text) < 12 else CELL_BYTES
