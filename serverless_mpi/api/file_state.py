"""An open file: its view, its pointers, and how an access becomes bytes at places of the file.

`File` (file.py) has MPI's calls, which `OpenFile` carries out. This module is imported when the
first file is opened. The order of an access: check it, parse the buffer, take the offset from the
argument or a pointer, compute the places from the view, convert the bytes, and let the backend
(`fileio/`) read or write them.

- All collectives of a file, also the nonblocking ones, are carried out one after the other, in the
  order of the calls: on a communicator of the file's own, where ranks match by order. A nonblocking
  collective runs in a thread, and a blocking one that comes after it waits in the same queue.
- Nonblocking accesses of one rank alone run in another thread, since a collective may wait for
  other ranks while these must not.
- The shared pointer is a counter of the backend that begins at 0 in each *generation*. Whatever
  sets the pointer (Set_view, Seek_shared) is collective: all ranks begin the next generation, with
  the new value as its base. So nothing has to be written to set it.

References
----------
MPI 4.1, chapter 14.
"""

from __future__ import annotations

import pickle
import queue
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any, TypeVar

from serverless_mpi import fileio
from serverless_mpi.api.buffers import BufSpec, block
from serverless_mpi.api.datatype import Datatype
from serverless_mpi.api.file_modes import (
    DISPLACEMENT_CURRENT,
    MODE_APPEND,
    MODE_CREATE,
    MODE_DELETE_ON_CLOSE,
    MODE_EXCL,
    MODE_RDONLY,
    MODE_SEQUENTIAL,
    MODE_WRONLY,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
    Way,
)
from serverless_mpi.api.file_representation import Representation, representation
from serverless_mpi.api.group import Group, group_of
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_status
from serverless_mpi.api.types import BYTE
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.errors import (
    ERR_ACCESS,
    ERR_ARG,
    ERR_BAD_FILE,
    ERR_IO,
    ERR_READ_ONLY,
    ERR_UNSUPPORTED_OPERATION,
    MPIException,
    UsageError,
)
from serverless_mpi.fileio.base import Backend, Mode, Where, agree, by_first
from serverless_mpi.fileio.views import View
from serverless_mpi.runtime import Runtime, never
from serverless_mpi.runtime.operation import Operation

_state_of = attrgetter("_state")  # of a communicator
_duplicate = methodcaller("_duplicate")
T = TypeVar("T")
_LENGTH = struct.Struct("<Q")


class CommRanks:
    """The ranks of a file (`fileio.base.Ranks`) on a communicator of the file's own."""

    def __init__(self, comm: Intracomm) -> None:
        state = _state_of(comm)
        self._comm = comm
        self._runtime, self._context, self._ranks = state.runtime, state.context, state.ranks
        self.rank, self.size = state.rank, len(state.ranks)

    def allgather(self, value: object) -> list[Any]:
        """Return the value of each rank.

        Parameters
        ----------
        value
            An object that pickles.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = methodcaller("_agree", value)(self._comm)
        return values

    def send(self, value: object, dest: int) -> Callable[[], None]:
        """Start sending a value.

        Parameters
        ----------
        value
            An object that pickles; its large buffers are borrowed until the returned function has
            returned.
        dest
            Rank.
        """
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
        views = [memoryview(stream), *(buffer.raw() for buffer in buffers)]
        head = b"".join(_LENGTH.pack(view.nbytes) for view in views)
        runtime = self._runtime
        parts = [memoryview(_LENGTH.pack(len(views)) + head), *views]
        operation = runtime.isend(self._context, self._ranks[dest], 0, parts)
        return partial(self._finish, operation)

    def recv(self, source: int) -> object:
        """Return the next value that a rank sent.

        Parameters
        ----------
        source
            Rank.
        """
        operation = self._runtime.irecv(self._context, self._ranks[source], 0)
        self._finish(operation)
        data = operation.data
        (count,) = _LENGTH.unpack_from(data)
        at = _LENGTH.size * (count + 1)
        pieces = []
        for index in range(count):
            (length,) = _LENGTH.unpack_from(data, _LENGTH.size * (index + 1))
            pieces.append(data[at : at + length])
            at += length
        return pickle.loads(pieces[0], buffers=pieces[1:])

    def _finish(self, operation: Operation) -> None:
        self._runtime.wait_for(operation, interruptible=never)
        if operation.error is not None:
            raise operation.error

    def exchange_is_free(self) -> bool:
        """Whether messages between ranks cost no requests."""
        figures = self._runtime.figures
        return not (figures.put_usd or figures.get_usd)


class _Worker:
    """A thread that makes calls one after the other; started by the first."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Operation] | None] | None = None
        self._last: Operation | None = None

    @property
    def busy(self) -> bool:
        """Whether a call waits or runs."""
        return self._last is not None and not self._last.done

    def submit(self, call: Callable[[], Any]) -> Operation:
        """Make a call after those before it; its result is that of the operation.

        Parameters
        ----------
        call
            The call.
        """
        operation = self._last = Operation()
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._run, name="smpi-file", daemon=True).start()
        self._calls.put((call, operation))
        return operation

    def _run(self) -> None:
        assert self._calls is not None
        while (item := self._calls.get()) is not None:
            call, operation = item
            try:
                operation.result = call()
                operation.release()
            except BaseException as error:  # raised by the call that waits
                operation.fail(error)
            with suppress(Exception):  # the rank may have ended; then nobody waits
                self._runtime.poke()

    def end(self) -> None:
        """End the thread after the calls that wait."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


@dataclass(slots=True)
class _Access:
    """One read or write; `start` is in etypes, None for an access in rank order.

    `done` counts the bytes of the stream that were read or written.
    """

    spec: Any
    view: View
    representation: Representation
    start: int | None
    nbytes: int
    write: bool
    collective: bool
    done: int = 0


class OpenFile:
    """The state that all handles to an open file share.

    Attributes
    ----------
    amode
        As given to `Open`.
    position
        Individual file pointer, in etypes of the view.
    errhandler
        State of its error handler; None for ERRORS_RETURN.
    closed
        Whether a handle has closed it.
    """

    errhandler: Any = None
    constant: Any = None
    closed = False

    def __init__(self, comm: Intracomm, backend: Backend, ranks: CommRanks, amode: int) -> None:
        self._comm = comm
        self._backend = backend
        self._ranks = ranks
        self._runtime = _state_of(comm).runtime
        self.amode = amode
        self._collectives = _Worker(self._runtime)
        self._alone = _Worker(self._runtime)
        self._split: tuple[str, Request] | None = None
        self._generation = self._base = 0
        self._atomic = False
        self.position = 0
        self._use_view(0, BYTE, BYTE, representation("native"))

    # --- the view ---

    def _use_view(
        self, disp: int, etype: Datatype, filetype: Datatype, rep: Representation
    ) -> None:
        self._representation = rep
        self._types = disp, etype, filetype
        at, extent = rep.places_of(filetype)
        self._view = View(disp, rep.size_of(etype), at, extent)

    def _checked_view(
        self, disp: int, etype: Datatype, filetype: Datatype, datarep: str
    ) -> tuple[int, int, str]:
        """Check the arguments of Set_view; return what must be equal on all ranks."""
        sequential = bool(self.amode & MODE_SEQUENTIAL)
        if sequential != (disp == DISPLACEMENT_CURRENT):
            need = "needs DISPLACEMENT_CURRENT" if sequential else "has no DISPLACEMENT_CURRENT"
            raise MPIException(ERR_ARG, f"{self.name}: a view of this file's mode {need}")
        if disp < 0 and not sequential:
            raise MPIException(ERR_ARG, f"a displacement of {disp} bytes is negative")
        etype.check_committed()
        filetype.check_committed()
        rep = representation(datarep)
        size = rep.size_of(etype)
        at, extent = rep.places_of(filetype)
        if not size or filetype.Get_size() % etype.Get_size():
            raise MPIException(
                ERR_ARG,
                f"a filetype of {filetype.Get_size()} bytes does not consist of etypes of"
                f" {etype.Get_size()}",
            )
        starts, ends = at[:, 0], at[:, 0] + at[:, 1]
        if (starts < 0).any() or (starts[1:] < starts[:-1]).any():
            raise MPIException(ERR_IO, "the displacements of a filetype must rise from 0 on")
        writes = not self.amode & MODE_RDONLY
        if writes and ((starts[1:] < ends[:-1]).any() or (len(at) and extent <= 0)):
            raise MPIException(ERR_IO, "the filetype of a file that is written overlaps itself")
        return size, etype.Get_extent()[1], datarep

    def set_view(self, disp: int, etype: Datatype, filetype: Datatype, datarep: str) -> None:
        """Change the view, and set both pointers to its beginning. Collective.

        Parameters
        ----------
        disp, etype, filetype, datarep
            As for `File.Set_view`.
        """

        def call() -> None:
            agree(
                self._ranks,
                lambda: self._checked_view(disp, etype, filetype, datarep),
                same="the etype and the data representation",
            )
            where = disp
            if disp == DISPLACEMENT_CURRENT:
                view = self._view
                where = by_first(
                    self._ranks, lambda: view.offset_of(self._shared(0) * view.etype_size)
                )
            self._use_view(where, _kept(etype), _kept(filetype), representation(datarep))
            self.position = 0
            self._set_shared(0)

        self._collective(call)

    def get_view(self) -> tuple[int, Datatype, Datatype, str]:
        """Return the displacement, new handles of the types, and the data representation."""
        disp, etype, filetype = self._types
        return disp, _kept(etype), _kept(filetype), self._representation.name

    def type_extent(self, datatype: Datatype) -> int:
        """Return the bytes that an element of a datatype spans in the file.

        Parameters
        ----------
        datatype
            The type; it need not be committed.
        """
        return self._representation.places_of(datatype)[1]

    def byte_offset(self, offset: int) -> int:
        """Return the byte of the file at an offset of the view.

        Parameters
        ----------
        offset
            In etypes.
        """
        self._check_way(Way.OFFSET)
        if offset < 0:
            raise MPIException(ERR_ARG, f"an offset of {offset} etypes is negative")
        return self._view.offset_of(offset * self._view.etype_size)

    # --- facts ---

    @property
    def name(self) -> str:
        """Name of the file."""
        return self._backend.name

    @property
    def hints(self) -> dict[str, str]:
        """Hints in use."""
        return self._backend.hints

    def group(self) -> Group:
        """Return the group of the ranks that opened the file."""
        state = _state_of(self._comm)
        return group_of(self._runtime, state.ranks, state.session)

    def size(self) -> int:
        """Return the size in bytes."""
        return self._backend.size()

    def atomicity(self) -> bool:
        """Return whether accesses are atomic."""
        return self._atomic

    # --- the pointers ---

    def _end(self) -> int:
        """The end of the file, in etypes of the view."""
        view = self._view
        return -(-view.bytes_before(self._backend.size()) // view.etype_size)

    def _moved(self, offset: int, whence: int, position: Callable[[], int]) -> int:
        """Where a pointer at `position()` is after a seek; ERR_ARG if that is before the view."""
        if whence not in (SEEK_SET, SEEK_CUR, SEEK_END):
            raise MPIException(ERR_ARG, f"{whence} is not SEEK_SET, SEEK_CUR or SEEK_END")
        base = 0 if whence == SEEK_SET else position() if whence == SEEK_CUR else self._end()
        if base + offset < 0:
            raise MPIException(ERR_ARG, f"a seek to {base + offset} is before the view")
        return base + offset

    def seek(self, offset: int, whence: int) -> None:
        """Move the individual pointer.

        Parameters
        ----------
        offset, whence
            As for `File.Seek`.
        """
        self._check_way(Way.OWN)
        self.position = self._moved(offset, whence, lambda: self.position)

    def get_position(self) -> int:
        """Return the individual pointer."""
        self._check_way(Way.OWN)
        return self.position

    def _shared(self, number: int) -> int:
        """Add to the shared pointer; return what it was before."""
        return self._base + self._backend.counter(self._generation, number)

    def _set_shared(self, value: int) -> None:
        """Set the shared pointer, on all ranks to the same value. Collective, sends nothing."""
        self._generation += 1
        self._base = value

    def append(self, end: int) -> None:
        """Set both pointers to the end of the file. Collective, sends nothing.

        Parameters
        ----------
        end
            Size in bytes.
        """
        self.position = end
        self._set_shared(end)

    def seek_shared(self, offset: int, whence: int) -> None:
        """Move the shared pointer. Collective.

        Parameters
        ----------
        offset, whence
            As for `File.Seek_shared`.
        """
        self._check_way(Way.OWN, "Seek_shared")

        def call() -> None:
            agree(self._ranks, lambda: (offset, whence), same="offset and whence of Seek_shared")
            self._set_shared(
                by_first(self._ranks, lambda: self._moved(offset, whence, lambda: self._shared(0)))
            )

        self._collective(call)

    def get_position_shared(self) -> int:
        """Return the shared pointer."""
        self._check_way(Way.OWN, "Get_position_shared")
        return self._shared(0)

    # --- accesses ---

    def _check_way(self, way: Way, call: str = "") -> None:
        if self.amode & MODE_SEQUENTIAL and way in (Way.OFFSET, Way.OWN):
            what = call or f"an access by {way.value}"
            raise MPIException(
                ERR_UNSUPPORTED_OPERATION,
                f"{self.name} is open in MODE_SEQUENTIAL, which has no {what};"
                " use the calls with the shared pointer",
            )

    def _prepare(
        self, way: Way, buf: BufSpec, offset: int, *, write: bool, collective: bool
    ) -> _Access:
        """Check an access, and take its place by moving the pointer."""
        if write and self.amode & MODE_RDONLY:
            raise MPIException(ERR_READ_ONLY, f"{self.name} is open for reading only")
        if not write and self.amode & MODE_WRONLY:
            raise MPIException(ERR_ACCESS, f"{self.name} is open for writing only")
        self._check_way(way)
        if way is Way.OFFSET and offset < 0:
            raise MPIException(ERR_ARG, f"an offset of {offset} etypes is negative")
        spec = block(buf, readonly=write)
        rep, view = self._representation, self._view
        nbytes = rep.size_of(spec.datatype) * spec.count
        if nbytes % view.etype_size:
            raise MPIException(
                ERR_IO,
                f"a buffer of {nbytes} bytes is not a number of etypes of {view.etype_size} bytes",
            )
        etypes = nbytes // view.etype_size
        start: int | None = offset
        if way is Way.OWN:
            start = self.position
            self.position += etypes
        elif way is Way.SHARED:
            start = self._shared(etypes)
        elif way is Way.ORDERED:
            start = None
        return _Access(spec, view, rep, start, nbytes, write, collective)

    def _run(self, access: _Access) -> int:
        """Carry out an access; return the bytes of the buffer that were read or written."""
        spec, view, rep, nbytes = access.spec, access.view, access.representation, access.nbytes
        start = access.start
        if start is None:
            start = self.ordered_start(nbytes // view.etype_size)
        at = view.places(start * view.etype_size, nbytes)
        backend = self._backend
        if access.write:
            data = rep.encode(spec.datatype, spec.count, spec.pack())
            (backend.write_all if access.collective else backend.write)(at, data)
            access.done = nbytes
            return int(spec.nbytes)
        landing = None if rep.converts else spec.landing()
        into = memoryview(bytearray(nbytes)) if landing is None else landing
        access.done = (backend.read_all if access.collective else backend.read)(at, into)
        if landing is not None or not access.done:
            return access.done
        whole = access.done - access.done % view.etype_size
        got = rep.decode(spec.datatype, spec.count, into[:whole])
        spec.unpack(got)
        return got.nbytes

    def perform(
        self,
        way: Way,
        buf: BufSpec,
        status: Status | None,
        offset: int = 0,
        *,
        write: bool,
        collective: bool = False,
    ) -> None:
        """Read or write, and return when it is done.

        Parameters
        ----------
        way
            Where the offset comes from.
        buf
            Buffer specification.
        status
            Filled with the bytes that were read or written.
        offset
            In etypes, for an explicit offset.
        write, collective
            Direction, and whether all ranks call it.
        """
        before = self.position
        access = self._prepare(way, buf, offset, write=write, collective=collective)
        run = partial(self._run, access)
        nbytes = self._collective(run) if collective else run()
        if way is Way.OWN and not write:  # after a short read, at the end of the file
            self.position = before + access.done // self._view.etype_size
        if status is not None:
            fill_status(status, ANY_SOURCE, ANY_TAG, nbytes)

    def start(
        self, way: Way, buf: BufSpec, offset: int = 0, *, write: bool, collective: bool = False
    ) -> Request:
        """Begin to read or write.

        Parameters
        ----------
        way, buf, offset, write, collective
            As for `perform`; the buffer is borrowed until the request is done.
        """
        access = self._prepare(way, buf, offset, write=write, collective=collective)
        worker = self._collectives if collective else self._alone
        return request_of(self._runtime, worker.submit(partial(self._run, access)), _fill)

    def begin(self, what: str, way: Way, buf: BufSpec, offset: int = 0, *, write: bool) -> None:
        """Begin a split collective.

        Parameters
        ----------
        what
            Name of the pair of calls without "_begin".
        way, buf, offset, write
            As for `perform`.
        """
        if self._split is not None:
            raise MPIException(
                ERR_IO, f"{self.name}: {self._split[0]}_begin has not been ended; a file can have"
                " one split collective at a time",
            )  # fmt: skip
        self._split = what, self.start(way, buf, offset, write=write, collective=True)

    def end(self, what: str, status: Status | None) -> None:
        """End a split collective.

        Parameters
        ----------
        what
            Name of the pair of calls without "_end".
        status
            As for `perform`.
        """
        if self._split is None or self._split[0] != what:
            raise MPIException(ERR_IO, f"{self.name}: {what}_end without {what}_begin")
        request, self._split = self._split[1], None
        request.Wait(status)

    def ordered_start(self, etypes: int) -> int:
        """Return where this rank's part of an access in rank order begins. Collective.

        Parameters
        ----------
        etypes
            Length of this rank's part.
        """
        counts = self._ranks.allgather(etypes)
        first = by_first(self._ranks, lambda: self._shared(sum(counts)))
        return int(first + sum(counts[: self._ranks.rank]))

    def _collective(self, call: Callable[[], T]) -> T:
        """Make a collective call after all collectives that were begun before."""
        if not self._collectives.busy:
            return call()
        operation = self._collectives.submit(call)
        self._runtime.wait_for(operation, interruptible=never)
        if operation.error is not None:
            raise operation.error
        result: T = operation.result
        return result

    # --- the file as a whole ---

    def _check_writable(self) -> None:
        if self.amode & MODE_RDONLY:
            raise MPIException(ERR_READ_ONLY, f"{self.name} is open for reading only")

    def _sized(self, call: Callable[[int], None], size: int) -> None:
        """Set the size, by a method of the backend."""
        if size < 0:
            raise MPIException(ERR_ARG, f"a size of {size} bytes is negative")
        self._check_writable()
        self._check_way(Way.OFFSET, "Set_size and Preallocate")

        def checked() -> None:
            agree(self._ranks, lambda: size, same="the size")
            call(size)

        self._collective(checked)

    def set_size(self, size: int) -> None:
        """Cut or extend the file. Collective.

        Parameters
        ----------
        size
            In bytes.
        """
        self._sized(self._backend.set_size, size)

    def preallocate(self, size: int) -> None:
        """Allocate space. Collective.

        Parameters
        ----------
        size
            In bytes.
        """
        self._sized(self._backend.preallocate, size)

    def set_hints(self, hints: Mapping[str, str]) -> None:
        """Take new hints. Collective.

        Parameters
        ----------
        hints
            Those that the backend does not use are ignored.
        """
        self._backend.take_hints(hints)

    def set_atomicity(self, flag: bool) -> None:
        """Make accesses atomic, or not. Collective.

        Parameters
        ----------
        flag
            Whether they are to be atomic.
        """
        self._collective(partial(self._backend.set_atomic, bool(flag)))
        self._atomic = bool(flag)

    def sync(self) -> None:
        """Make writes visible. Collective."""
        self._check_writable()
        self._collective(self._backend.sync)

    def close(self) -> None:
        """Close the file. Collective."""
        if self._split is not None:
            self.end(self._split[0], None)
        while self._alone.busy:
            self._runtime.wait_for(self._alone.submit(lambda: None), interruptible=never)
        try:
            self._collective(partial(self._backend.close, bool(self.amode & MODE_DELETE_ON_CLOSE)))
        finally:
            self._collectives.end()
            self._alone.end()
            self._comm.Free()


def _kept(datatype: Datatype) -> Datatype:
    """A handle of the file's own to a type, which the program may free."""
    return Datatype(datatype) if datatype.is_predefined else datatype.Dup()


def _fill(operation: Operation, status: Status | None) -> None:
    if status is not None:
        fill_status(status, ANY_SOURCE, ANY_TAG, operation.result)


def _mode(amode: int) -> Mode:
    """What the access mode says; the caller has checked it."""
    return Mode(
        read=not amode & MODE_WRONLY,
        write=not amode & MODE_RDONLY,
        create=bool(amode & MODE_CREATE),
        exclusive=bool(amode & MODE_EXCL),
    )


def _where(runtime: Runtime) -> Where:
    spec = runtime.spec
    bucket = spec.settings.get("bucket", "")
    return Where(spec.endpoint, spec.region, spec.key, bucket, runtime.meter)


def _load(filename: str) -> tuple[type[Backend], str]:
    try:
        return fileio.load(filename)
    except UsageError as error:
        raise MPIException(ERR_BAD_FILE, f"{filename}: {error}") from error


def open_file(comm: Intracomm, filename: str, amode: int, hints: Mapping[str, str]) -> OpenFile:
    """Open a file on the ranks of a communicator. Collective.

    Parameters
    ----------
    comm
        An intracommunicator; the file gets one of its own.
    filename, amode
        As for `File.Open`, checked by the caller.
    hints
        Hints of the program.
    """
    own = _duplicate(comm).handle()
    try:
        ranks = CommRanks(own)
        runtime = _state_of(own).runtime
        backend_class, name = agree(
            ranks,
            lambda: _load(filename),
            same="file name and mode",
            fact=lambda _: (filename, amode),
        )
        backend = backend_class.open(name, _mode(amode), hints, ranks, _where(runtime))
        file = OpenFile(own, backend, ranks, amode)
        if amode & MODE_APPEND:
            file.append(by_first(ranks, backend.size))
        return file
    except BaseException:
        own.Free()
        raise


def delete_file(filename: str, runtime: Runtime) -> None:
    """Delete a file.

    Parameters
    ----------
    filename
        As for `File.Delete`.
    runtime
        Of this rank.
    """
    backend, name = _load(filename)
    backend.delete(name, _where(runtime))


__all__ = ["OpenFile", "delete_file", "open_file"]
