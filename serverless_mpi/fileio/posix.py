"""Files of the operating system, by positioned reads and writes.

- Rank 0 opens the file first, so that creating it is done once and EXCL means something.
- A single place is read and written in place (`preadv`, `pwrite`). Several places that lie close
  together are read in one go and picked out of what came (data sieving). They are not written that
  way, since what lies between them may belong to another rank.
- Where the places of a collective write are small and interleaved, ranks exchange pieces first, so
  that each writes runs of its own part of the file (`plan.py`).
- The shared pointer is a number in a hidden file beside the file, locked by `flock` for each use.
  It is made at the first use, and removed when the file is closed. So it needs no other rank.
- Atomic mode locks the whole file with `flock`, shared for reads and exclusive for writes.

Pitfall: with O_APPEND, Linux ignores the offset of `pwrite`; MODE_APPEND only sets pointers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from serverless_mpi.errors import ERR_BAD_FILE, MPIException
from serverless_mpi.fileio import plan
from serverless_mpi.fileio.base import Backend, Mode, Ranks, Where, agree, by_first, of_os
from serverless_mpi.fileio.pieces import Places, gather, places, present, total, union
from serverless_mpi.fileio.two_phase import collect

_MOST = 1 << 30  # bytes of one call: Linux takes 2 GiB at most
_COUNTER = struct.Struct("<QQ")  # generation, value
_SIEVE_BYTES = 4 << 20  # read in one go
_SIEVE_GAP = 16 << 10  # bytes that are read though nobody wants them, rather than another call
_SPARSE = 4  # bytes between the ends of what ranks write, per byte that they write
_SMALL = 64 << 10  # a collective write of smaller pieces is aggregated


class Posix(Backend):
    """An open file of the operating system."""

    def __init__(self, name: str, descriptor: int, ranks: Ranks, token: str) -> None:
        self.name = name
        self.hints: dict[str, str] = {}
        self._descriptor = descriptor
        self._ranks = ranks
        path = Path(name)
        self._pointer_path = path.with_name(f".{path.name[:200]}.{token}.pointer")
        self._pointer: int | None = None
        self._lock = threading.Lock()  # flock does not see threads that share a descriptor
        self._atomic = False

    @classmethod
    def open(
        cls, name: str, mode: Mode, hints: Mapping[str, str], ranks: Ranks, where: Where
    ) -> Posix:
        """Open a file, as `Backend.open`.

        Parameters
        ----------
        name, mode, hints, ranks, where
            As for `Backend.open`; `hints` and `where` are not used.
        """
        flags = os.O_CLOEXEC
        flags |= os.O_RDWR if mode.read and mode.write else os.O_WRONLY if mode.write else 0
        making = os.O_CREAT * mode.create | os.O_EXCL * mode.exclusive
        first = by_first(ranks, lambda: (_open(name, flags | making), os.urandom(6).hex()))
        descriptor, token = first
        try:
            descriptor = agree(ranks, lambda: descriptor if ranks.rank == 0 else _open(name, flags))
        except MPIException:
            if ranks.rank == 0:
                os.close(descriptor)
            raise
        return cls(name, descriptor, ranks, token)

    @classmethod
    def delete(cls, name: str, where: Where) -> None:
        """Delete a file.

        Parameters
        ----------
        name, where
            As for `Backend.delete`; `where` is not used.
        """
        try:
            if Path(name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            os.unlink(name)
        except OSError as error:
            raise of_os(error, f"delete {name}") from error
        except ValueError as error:
            raise MPIException(ERR_BAD_FILE, f"{name!r} is not a file name: {error}") from error

    @contextlib.contextmanager
    def _access(self, what: str, write: bool) -> Iterator[None]:
        """Name errors of an access, and make it atomic if the file is in atomic mode."""
        try:
            if not self._atomic:
                yield
                return
            with self._lock:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
                try:
                    yield
                finally:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise of_os(error, f"{what} {self.name}") from error

    def read(self, at: Places, into: memoryview) -> int:
        """Read bytes.

        Parameters
        ----------
        at, into
            As for `Backend.read`.
        """
        with self._access("read", write=False):
            if len(at) == 1:
                return self._read_run(int(at[0, 0]), into)
            if not len(at):
                return 0
            size = os.fstat(self._descriptor).st_size
            there = present(at, size)
            done = 0
            starts = at[:, 0]
            ascending = bool((starts[1:] >= starts[:-1]).all())
            for first, last in plan.groups(at, _SIEVE_BYTES, _SIEVE_GAP if ascending else -1):
                some = at[first:last]
                nbytes = total(some)
                part = into[done : done + nbytes]
                if last - first == 1:
                    self._read_run(int(some[0, 0]), part)
                else:
                    start = int(some[0, 0])
                    span = memoryview(bytearray(int(some[-1].sum()) - start))
                    self._read_run(start, span)
                    moved = some.copy()
                    moved[:, 0] -= start
                    part[:] = gather(span, moved)
                done += nbytes
                if done >= there:
                    break
            return there

    def _read_run(self, offset: int, into: memoryview) -> int:
        """Read one run; return the bytes up to the end of the file."""
        done = 0
        while done < into.nbytes:
            nbytes = os.preadv(self._descriptor, [into[done : done + _MOST]], offset + done)
            if not nbytes:
                break
            done += nbytes
        return done

    def write(self, at: Places, data: memoryview) -> None:
        """Write bytes.

        Parameters
        ----------
        at, data
            As for `Backend.write`.
        """
        with self._access("write", write=True):
            done = 0
            for offset, length in at.tolist():
                end = done + length
                while done < end:
                    written = os.pwrite(
                        self._descriptor, data[done : min(end, done + _MOST)], offset
                    )
                    if not written:
                        raise OSError(errno.EIO, "nothing was written")
                    done += written
                    offset += written

    def write_all(self, at: Places, data: memoryview) -> None:
        """Write bytes; small interleaved pieces are exchanged between ranks first.

        Parameters
        ----------
        at, data
            As for `Backend.write_all`.
        """
        ranks = self._ranks
        if ranks.size == 1 or self._atomic or not ranks.exchange_is_free():
            self.write(at, data)
            return
        small = len(at) > 1 and total(at) < _SMALL * len(at)
        if not any(ranks.allgather(small)):
            self.write(at, data)
            return
        touched = ranks.allgather(union(at))
        domains = plan.domains(touched, ranks.size)
        span = domains[-1].end - domains[0].start if domains else 0
        if span > _SPARSE * sum(map(total, touched)):  # too little of it to hold it in memory
            self.write(at, data)
            return
        for start, run in collect(ranks, touched, domains, at, data):
            self.write(places((start, run.nbytes)), run)

    def size(self) -> int:
        """Return the size in bytes."""
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            if error.errno == errno.ESPIPE:
                return 0
            raise of_os(error, f"get the size of {self.name}") from error

    def set_size(self, size: int) -> None:
        """Cut or extend the file.

        Parameters
        ----------
        size
            As for `Backend.set_size`.
        """
        self._by_first(lambda: os.ftruncate(self._descriptor, size), "set the size of")

    def preallocate(self, size: int) -> None:
        """Allocate space.

        Parameters
        ----------
        size
            As for `Backend.preallocate`.
        """
        if size:
            self._by_first(
                lambda: os.posix_fallocate(self._descriptor, 0, size), "allocate space for"
            )

    def _by_first(self, call: Callable[[], object], what: str) -> None:
        """Have rank 0 do something before all accesses that follow."""

        def named() -> None:
            try:
                call()
            except OSError as error:
                raise of_os(error, f"{what} {self.name}") from error

        by_first(self._ranks, named)

    def set_atomic(self, flag: bool) -> None:
        """Lock the file for each access, or do not.

        Parameters
        ----------
        flag
            As for `Backend.set_atomic`.
        """
        self._ranks.allgather(None)
        self._atomic = flag

    def sync(self) -> None:
        """Write what the system keeps in memory to the device."""

        def call() -> None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EROFS):  # a device, such as /dev/null
                    raise of_os(error, f"sync {self.name}") from error

        agree(self._ranks, call)

    def close(self, delete: bool) -> None:
        """Close the file.

        Parameters
        ----------
        delete
            As for `Backend.close`.
        """

        def call() -> None:
            try:
                os.close(self._descriptor)
                if self._pointer is not None:
                    os.close(self._pointer)
            except OSError as error:  # such as a full disk of a network file system
                raise of_os(error, f"close {self.name}") from error

        try:
            agree(self._ranks, call)
        finally:
            if self._ranks.rank == 0:
                with contextlib.suppress(OSError):
                    self._pointer_path.unlink()
        if delete:
            by_first(self._ranks, self._unlink)

    def _unlink(self) -> None:
        try:
            os.unlink(self.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise of_os(error, f"delete {self.name}") from error

    def counter(self, generation: int, number: int) -> int:
        """Add to a counter, and return what it was before.

        Parameters
        ----------
        generation, number
            As for `Backend.counter`.
        """
        with self._lock:
            try:
                if self._pointer is None:
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self._pointer = os.open(self._pointer_path, flags, 0o600)
                fcntl.flock(self._pointer, fcntl.LOCK_EX)
                try:
                    kept = os.pread(self._pointer, _COUNTER.size, 0)
                    of, before = _COUNTER.unpack(kept) if kept else (generation, 0)
                    if of != generation:
                        before = 0
                    if number:
                        new = _COUNTER.pack(generation, before + number)
                        if os.pwrite(self._pointer, new, 0) != len(new):
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return int(before)
                finally:
                    fcntl.flock(self._pointer, fcntl.LOCK_UN)
            except OSError as error:
                what = f"keep the shared file pointer in {self._pointer_path}, beside the file"
                raise of_os(error, what) from error


def _open(name: str, flags: int) -> int:
    """Open a file; MPIException with the name if that fails."""
    try:
        return os.open(name, flags, 0o666)
    except OSError as error:
        raise of_os(error, f"open {name}") from error
    except ValueError as error:
        raise MPIException(ERR_BAD_FILE, f"{name!r} is not a file name: {error}") from error
