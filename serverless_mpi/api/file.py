"""Files: MPI's calls (MPI 4.1, chapter 14).

`File` checks what needs no open file, and hands the rest to the state of the file (file_state.py),
which is imported when a program opens its first file. Where a file lies is a matter of its name: a
path of this machine, or `s3://bucket/key` (`fileio/`).

Errors are returned, not fatal: files have ERRORS_RETURN unless a program sets another handler on
the file, or on FILE_NULL for files that are opened later and for `Open` itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, AnyStr

from serverless_mpi.api.buffers import BufSpec
from serverless_mpi.api.datatype import Datatype
from serverless_mpi.api.environ import MAX_DATAREP_STRING
from serverless_mpi.api.errhandler import Errhandler, Guarded, Handled, call_handler
from serverless_mpi.api.file_modes import (
    MODE_CREATE,
    MODE_EXCL,
    MODE_RDONLY,
    MODE_RDWR,
    MODE_SEQUENTIAL,
    MODE_WRONLY,
    REPRESENTATIONS,
    SEEK_SET,
    Way,
)
from serverless_mpi.api.group import Group
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.api.request import Request
from serverless_mpi.api.status import Status
from serverless_mpi.api.types import BYTE
from serverless_mpi.errors import (
    ERR_AMODE,
    ERR_ARG,
    ERR_BAD_FILE,
    ERR_DUP_DATAREP,
    ERR_FILE,
    MPIException,
)
from serverless_mpi.runtime import get_runtime

if TYPE_CHECKING:
    from os import PathLike

    from serverless_mpi.api.file_state import OpenFile


def _engine() -> ModuleType:
    """The module that opens files: not imported by programs without files."""
    return importlib.import_module("serverless_mpi.api.file_state")


def _name(filename: PathLike[AnyStr] | str | bytes) -> str:
    """A file name as text; ERR_BAD_FILE for an empty one."""
    name = os.fsdecode(filename)
    if not name:
        raise MPIException(ERR_BAD_FILE, "a file needs a name, and this one is empty")
    return name


def _check_amode(amode: int) -> None:
    """Raise ERR_AMODE for a mode that contradicts itself."""
    ways = [bool(amode & mode) for mode in (MODE_RDONLY, MODE_WRONLY, MODE_RDWR)]
    if amode < 0 or sum(ways) != 1:
        raise MPIException(
            ERR_AMODE, f"mode {amode} must have one of MODE_RDONLY, MODE_WRONLY and MODE_RDWR"
        )
    if amode & MODE_RDONLY and amode & (MODE_CREATE | MODE_EXCL):
        raise MPIException(
            ERR_AMODE, "MODE_CREATE and MODE_EXCL need MODE_WRONLY or MODE_RDWR, not MODE_RDONLY"
        )
    if amode & MODE_RDWR and amode & MODE_SEQUENTIAL:
        raise MPIException(
            ERR_AMODE, "MODE_SEQUENTIAL needs MODE_RDONLY or MODE_WRONLY, not MODE_RDWR"
        )


class _Default:
    """State of FILE_NULL as far as error handlers go."""

    errhandler: Any = None


_default = _Default()


class File(Handle, Guarded):
    """A file that the ranks of a communicator share."""

    __module__ = "serverless_mpi.MPI"
    _ob: OpenFile | None

    def __new__(cls, file: File | None = None) -> File:
        return cls._copy(file)  # type: ignore[no-any-return]

    @property
    def _live(self) -> OpenFile:
        """The open file; ERR_FILE for a null handle."""
        if self._ob is None or self._ob.closed:
            raise MPIException(ERR_FILE, "the file is null or has been closed")
        return self._ob

    def _check_live(self) -> None:
        _ = self._live

    @property
    def _guarded(self) -> Handled:
        """What has the error handler: the file, or for FILE_NULL the default of later files."""
        return self._ob if self and self._ob is not None else _default

    def __bool__(self) -> bool:
        return self._ob is not None and not self._ob.closed

    # --- opening and closing ---

    @classmethod
    def Open(
        cls,
        comm: Intracomm,
        filename: PathLike[AnyStr] | str | bytes,
        amode: int = MODE_RDONLY,
        info: Info = INFO_NULL,
    ) -> File:
        """Open a file on all ranks of a communicator. Collective.

        Parameters
        ----------
        comm
            The ranks that share the file.
        filename
            A path of this machine, or s3://bucket/key; equal on all ranks.
        amode
            One of MODE_RDONLY, MODE_WRONLY and MODE_RDWR, and any of MODE_CREATE, MODE_EXCL,
            MODE_APPEND, MODE_SEQUENTIAL, MODE_DELETE_ON_CLOSE and MODE_UNIQUE_OPEN.
        info
            Hints; docs/files.md lists those that are used.

        Returns
        -------
        File
            A handle of this class. The view is bytes from the beginning of the file.

        Raises
        ------
        MPIException
            ERR_AMODE: the mode contradicts itself. ERR_NO_SUCH_FILE, ERR_FILE_EXISTS, ERR_ACCESS,
            ERR_READ_ONLY, ERR_BAD_FILE: the file system refuses it. ERR_NOT_SAME: ranks gave
            different arguments.

        References
        ----------
        MPI 4.1, section 14.2.1.
        """
        if not isinstance(comm, Intracomm):
            raise TypeError(f"expecting an intracommunicator, not {type(comm).__name__}")
        comm.Get_size()  # ERR_COMM for a null one
        try:
            _check_amode(amode)
            hints = dict(info.items()) if info else {}
            state = _engine().open_file(comm, _name(filename), amode, hints)
        except MPIException as error:
            if _default.errhandler is not None:
                call_handler(_default.errhandler, FILE_NULL, error.Get_error_code(), error)
            raise
        self: File = cls._of_state(state)
        if _default.errhandler is not None:
            self.Set_errhandler(handle_of(Errhandler, _default.errhandler))
        return self

    def Close(self) -> None:
        """Write what is left, and close the file; this handle becomes null. Collective.

        Raises
        ------
        MPIException
            ERR_NO_SPACE, ERR_ACCESS, ERR_IO, ...: what was written could not be kept. The handle
            is null nevertheless.

        References
        ----------
        MPI 4.1, section 14.2.2.
        """
        state = self._live
        state.closed = True
        forget(state)
        self._ob = None
        state.close()

    def free(self) -> None:
        """Close the file, unless the handle is null."""
        if self:
            self.Close()

    @classmethod
    def Delete(cls, filename: PathLike[AnyStr] | str | bytes, info: Info = INFO_NULL) -> None:
        """Delete a file.

        Parameters
        ----------
        filename
            As for `Open`.
        info
            Not used.

        Raises
        ------
        MPIException
            ERR_NO_SUCH_FILE: it does not exist. ERR_ACCESS, ERR_BAD_FILE: it cannot be deleted.

        References
        ----------
        MPI 4.1, section 14.2.3.
        """
        _engine().delete_file(_name(filename), get_runtime())

    def Set_size(self, size: int) -> None:
        """Cut the file, or extend it by zeros. Collective.

        Parameters
        ----------
        size
            In bytes, equal on all ranks.

        References
        ----------
        MPI 4.1, section 14.2.4.
        """
        self._live.set_size(size)

    def Preallocate(self, size: int) -> None:
        """Allocate space on the device, and extend a smaller file to it. Collective.

        Parameters
        ----------
        size
            In bytes, equal on all ranks.

        Raises
        ------
        MPIException
            ERR_NO_SPACE: there is not so much. ERR_UNSUPPORTED_OPERATION: the file is on S3.

        References
        ----------
        MPI 4.1, section 14.2.5.
        """
        self._live.preallocate(size)

    def Get_size(self) -> int:
        """Return the size in bytes."""
        return self._live.size()

    def Get_amode(self) -> int:
        """Return the mode that the file was opened in."""
        return self._live.amode

    def Get_group(self) -> Group:
        """Return the group of the ranks that share the file."""
        return self._live.group()

    def Set_info(self, info: Info) -> None:
        """Give further hints. Collective.

        Parameters
        ----------
        info
            Hints; those that have an effect only in `Open`, or are not known, are ignored.
        """
        self._live.set_hints(dict(info.items()) if info else {})

    def Get_info(self) -> Info:
        """Return a new table of the hints in use."""
        return Info.Create(self._live.hints)

    # --- the view ---

    def Set_view(
        self,
        disp: int = 0,
        etype: Datatype = BYTE,
        filetype: Datatype | None = None,
        datarep: str = "native",
        info: Info = INFO_NULL,
    ) -> None:
        """Choose the bytes that this rank sees, and set both pointers to 0. Collective.

        Parameters
        ----------
        disp
            Bytes of the file before the first filetype; DISPLACEMENT_CURRENT in MODE_SEQUENTIAL.
        etype
            Unit of offsets; of the same size on all ranks.
        filetype
            Made of etypes, with rising displacements; None for the etype.
        datarep
            "native", "internal", "external32", or a registered one; equal on all ranks.
        info
            Hints, as for `Set_info`.

        Raises
        ------
        MPIException
            ERR_ARG, ERR_TYPE, ERR_IO: an argument is not valid. ERR_UNSUPPORTED_DATAREP: there is
            no such representation. ERR_NOT_SAME: ranks differ.

        References
        ----------
        MPI 4.1, section 14.3.
        """
        self._live.set_view(disp, etype, etype if filetype is None else filetype, datarep)

    def Get_view(self) -> tuple[int, Datatype, Datatype, str]:
        """Return displacement, etype, filetype and data representation of the view.

        Returns
        -------
        tuple
            The types are new handles, which the caller frees unless they are predefined.
        """
        return self._live.get_view()

    # --- explicit offsets ---

    def Read_at(self, offset: int, buf: BufSpec, status: Status | None = None) -> None:
        """Read at an explicit offset.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.2.
        """
        self._live.perform(Way.OFFSET, buf, status, offset, write=False)

    def Write_at(self, offset: int, buf: BufSpec, status: Status | None = None) -> None:
        """Write at an explicit offset.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.2.
        """
        self._live.perform(Way.OFFSET, buf, status, offset, write=True)

    def Read_at_all(self, offset: int, buf: BufSpec, status: Status | None = None) -> None:
        """Read at an explicit offset. Collective.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.2.
        """
        self._live.perform(Way.OFFSET, buf, status, offset, write=False, collective=True)

    def Write_at_all(self, offset: int, buf: BufSpec, status: Status | None = None) -> None:
        """Write at an explicit offset. Collective.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.2.
        """
        self._live.perform(Way.OFFSET, buf, status, offset, write=True, collective=True)

    def Iread_at(self, offset: int, buf: BufSpec) -> Request:
        """Start `Read_at`; the request completes when it is done.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Memory for the elements; borrowed until the request is done.
        """
        return self._live.start(Way.OFFSET, buf, offset, write=False)

    def Iwrite_at(self, offset: int, buf: BufSpec) -> Request:
        """Start `Write_at`; the request completes when it is done.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Elements to write; borrowed until the request is done.
        """
        return self._live.start(Way.OFFSET, buf, offset, write=True)

    def Iread_at_all(self, offset: int, buf: BufSpec) -> Request:
        """Start `Read_at_all`; the request completes when it is done.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Memory for the elements; borrowed until the request is done.
        """
        return self._live.start(Way.OFFSET, buf, offset, write=False, collective=True)

    def Iwrite_at_all(self, offset: int, buf: BufSpec) -> Request:
        """Start `Write_at_all`; the request completes when it is done.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Elements to write; borrowed until the request is done.
        """
        return self._live.start(Way.OFFSET, buf, offset, write=True, collective=True)

    def Read_at_all_begin(self, offset: int, buf: BufSpec) -> None:
        """Begin `Read_at_all`, which `Read_at_all_end` ends.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Memory for the elements; borrowed until `Read_at_all_end`.
        """
        self._live.begin("Read_at_all", Way.OFFSET, buf, offset, write=False)

    def Read_at_all_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Read_at_all`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were read; fewer at the end of the file.
        """
        self._live.end("Read_at_all", status)

    def Write_at_all_begin(self, offset: int, buf: BufSpec) -> None:
        """Begin `Write_at_all`, which `Write_at_all_end` ends.

        Parameters
        ----------
        offset
            In etypes of the view.
        buf
            Elements to write; borrowed until `Write_at_all_end`.
        """
        self._live.begin("Write_at_all", Way.OFFSET, buf, offset, write=True)

    def Write_at_all_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Write_at_all`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were written.
        """
        self._live.end("Write_at_all", status)

    # --- the individual pointer ---

    def Read(self, buf: BufSpec, status: Status | None = None) -> None:
        """Read at the individual pointer.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.3.
        """
        self._live.perform(Way.OWN, buf, status, write=False)

    def Write(self, buf: BufSpec, status: Status | None = None) -> None:
        """Write at the individual pointer.

        Parameters
        ----------
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.3.
        """
        self._live.perform(Way.OWN, buf, status, write=True)

    def Read_all(self, buf: BufSpec, status: Status | None = None) -> None:
        """Read at the individual pointer. Collective.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.3.
        """
        self._live.perform(Way.OWN, buf, status, write=False, collective=True)

    def Write_all(self, buf: BufSpec, status: Status | None = None) -> None:
        """Write at the individual pointer. Collective.

        Parameters
        ----------
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.3.
        """
        self._live.perform(Way.OWN, buf, status, write=True, collective=True)

    def Iread(self, buf: BufSpec) -> Request:
        """Start `Read`; the request completes when it is done.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed until the request is done.
        """
        return self._live.start(Way.OWN, buf, write=False)

    def Iwrite(self, buf: BufSpec) -> Request:
        """Start `Write`; the request completes when it is done.

        Parameters
        ----------
        buf
            Elements to write; borrowed until the request is done.
        """
        return self._live.start(Way.OWN, buf, write=True)

    def Iread_all(self, buf: BufSpec) -> Request:
        """Start `Read_all`; the request completes when it is done.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed until the request is done.
        """
        return self._live.start(Way.OWN, buf, write=False, collective=True)

    def Iwrite_all(self, buf: BufSpec) -> Request:
        """Start `Write_all`; the request completes when it is done.

        Parameters
        ----------
        buf
            Elements to write; borrowed until the request is done.
        """
        return self._live.start(Way.OWN, buf, write=True, collective=True)

    def Read_all_begin(self, buf: BufSpec) -> None:
        """Begin `Read_all`, which `Read_all_end` ends.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed until `Read_all_end`.
        """
        self._live.begin("Read_all", Way.OWN, buf, write=False)

    def Read_all_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Read_all`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were read; fewer at the end of the file.
        """
        self._live.end("Read_all", status)

    def Write_all_begin(self, buf: BufSpec) -> None:
        """Begin `Write_all`, which `Write_all_end` ends.

        Parameters
        ----------
        buf
            Elements to write; borrowed until `Write_all_end`.
        """
        self._live.begin("Write_all", Way.OWN, buf, write=True)

    def Write_all_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Write_all`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were written.
        """
        self._live.end("Write_all", status)

    def Seek(self, offset: int, whence: int = SEEK_SET) -> None:
        """Move the individual pointer.

        Parameters
        ----------
        offset
            In etypes of the view, added to the place that `whence` names.
        whence
            SEEK_SET: the beginning of the view; SEEK_CUR: the pointer; SEEK_END: the end of the
            file.

        Raises
        ------
        MPIException
            ERR_ARG: that is before the view, or `whence` is another number.
        """
        self._live.seek(offset, whence)

    def Get_position(self) -> int:
        """Return the individual pointer, in etypes of the view."""
        return self._live.get_position()

    def Get_byte_offset(self, offset: int) -> int:
        """Return the byte of the file that an offset of the view names.

        Parameters
        ----------
        offset
            In etypes of the view.
        """
        return self._live.byte_offset(offset)

    # --- the shared pointer ---

    def Read_shared(self, buf: BufSpec, status: Status | None = None) -> None:
        """Read at the shared pointer.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.4.
        """
        self._live.perform(Way.SHARED, buf, status, write=False)

    def Write_shared(self, buf: BufSpec, status: Status | None = None) -> None:
        """Write at the shared pointer.

        Parameters
        ----------
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.4.
        """
        self._live.perform(Way.SHARED, buf, status, write=True)

    def Iread_shared(self, buf: BufSpec) -> Request:
        """Start `Read_shared`; the request completes when it is done.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed until the request is done.
        """
        return self._live.start(Way.SHARED, buf, write=False)

    def Iwrite_shared(self, buf: BufSpec) -> Request:
        """Start `Write_shared`; the request completes when it is done.

        Parameters
        ----------
        buf
            Elements to write; borrowed until the request is done.
        """
        return self._live.start(Way.SHARED, buf, write=True)

    def Read_ordered(self, buf: BufSpec, status: Status | None = None) -> None:
        """Read at the shared pointer, in the order of ranks. Collective.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed for the call.
        status
            Filled with the bytes that were read; fewer at the end of the file.

        Raises
        ------
        MPIException
            ERR_ACCESS: the file is open for writing, or may not be read.

        References
        ----------
        MPI 4.1, section 14.4.4.
        """
        self._live.perform(Way.ORDERED, buf, status, write=False, collective=True)

    def Read_ordered_begin(self, buf: BufSpec) -> None:
        """Begin `Read_ordered`, which `Read_ordered_end` ends.

        Parameters
        ----------
        buf
            Memory for the elements; borrowed until `Read_ordered_end`.
        """
        self._live.begin("Read_ordered", Way.ORDERED, buf, write=False)

    def Read_ordered_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Read_ordered`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were read; fewer at the end of the file.
        """
        self._live.end("Read_ordered", status)

    def Write_ordered(self, buf: BufSpec, status: Status | None = None) -> None:
        """Write at the shared pointer, in the order of ranks. Collective.

        Parameters
        ----------
        buf
            Elements to write; borrowed for the call.
        status
            Filled with the bytes that were written.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ...: the file
            system refuses it.

        References
        ----------
        MPI 4.1, section 14.4.4.
        """
        self._live.perform(Way.ORDERED, buf, status, write=True, collective=True)

    def Write_ordered_begin(self, buf: BufSpec) -> None:
        """Begin `Write_ordered`, which `Write_ordered_end` ends.

        Parameters
        ----------
        buf
            Elements to write; borrowed until `Write_ordered_end`.
        """
        self._live.begin("Write_ordered", Way.ORDERED, buf, write=True)

    def Write_ordered_end(self, buf: BufSpec, status: Status | None = None) -> None:
        """End `Write_ordered`.

        Parameters
        ----------
        buf
            The buffer of the call that began it.
        status
            Filled with the bytes that were written.
        """
        self._live.end("Write_ordered", status)

    def Seek_shared(self, offset: int, whence: int = SEEK_SET) -> None:
        """Move the shared pointer. Collective.

        Parameters
        ----------
        offset, whence
            As for `Seek`; equal on all ranks.
        """
        self._live.seek_shared(offset, whence)

    def Get_position_shared(self) -> int:
        """Return the shared pointer, in etypes of the view."""
        return self._live.get_position_shared()

    # --- types, consistency, errors ---

    def Get_type_extent(self, datatype: Datatype) -> int:
        """Return the bytes that an element of a datatype spans in the file.

        Parameters
        ----------
        datatype
            The type.
        """
        return self._live.type_extent(datatype)

    def Set_atomicity(self, flag: bool) -> None:
        """Make accesses of different ranks atomic, or not. Collective.

        Parameters
        ----------
        flag
            Whether they are to be atomic.

        Raises
        ------
        MPIException
            ERR_UNSUPPORTED_OPERATION: the file is on S3.

        References
        ----------
        MPI 4.1, section 14.6.1.
        """
        self._live.set_atomicity(flag)

    def Get_atomicity(self) -> bool:
        """Return whether accesses of different ranks are atomic."""
        return self._live.atomicity()

    def Sync(self) -> None:
        """Make writes of this rank visible, and see those of others. Collective.

        Raises
        ------
        MPIException
            ERR_READ_ONLY: the file is open for reading. ERR_NO_SPACE, ERR_ACCESS, ERR_IO, ...:
            what was written could not be kept.

        References
        ----------
        MPI 4.1, section 14.6.1.
        """
        self._live.sync()

    size = property(Get_size, doc="Size in bytes.")
    amode = property(Get_amode, doc="The mode that it was opened in.")
    group = property(Get_group, doc="Group of the ranks that share it.")
    group_size = property(
        lambda self: self._live.group().Get_size(), doc="Number of ranks that share it."
    )
    group_rank = property(
        lambda self: self._live.group().Get_rank(), doc="This rank's number among them."
    )
    info = property(Get_info, Set_info, doc="Hints in use.")
    atomicity = property(
        Get_atomicity, Set_atomicity, doc="Whether accesses of different ranks are atomic."
    )


def Register_datarep(
    datarep: str,
    read_fn: Callable[[Any, Datatype, int, Any, int], None] | None,
    write_fn: Callable[[Any, Datatype, int, Any, int], None] | None,
    extent_fn: Callable[[Datatype], int],
) -> None:
    """Define a data representation for `File.Set_view`.

    Parameters
    ----------
    datarep
        Its name, of 1 to 128 characters.
    read_fn, write_fn
        read_fn(userbuf, datatype, count, filebuf, position) converts `count` numbers of a
        predefined datatype from `filebuf` to `userbuf`, write_fn in the other direction; None
        copies. `position` is 0.
    extent_fn
        extent_fn(datatype) returns the bytes of a number of a predefined datatype in the file.

    Raises
    ------
    MPIException
        ERR_DUP_DATAREP: the name is taken. ERR_ARG: the name is empty or too long.

    References
    ----------
    MPI 4.1, section 14.5.3.
    """
    if not 0 < len(datarep) <= MAX_DATAREP_STRING:
        raise MPIException(
            ERR_ARG, f"the name of a representation has 1 to {MAX_DATAREP_STRING} characters"
        )
    if datarep in ("native", "internal", "external32") or datarep in REPRESENTATIONS:
        raise MPIException(ERR_DUP_DATAREP, f"representation {datarep!r} is defined already")
    REPRESENTATIONS[datarep] = (read_fn, write_fn, extent_fn)


FILE_NULL: File = name_constant(File(), "FILE_NULL")

__all__ = ["FILE_NULL", "File", "Register_datarep"]
