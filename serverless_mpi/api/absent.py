"""Parts of MPI that are not implemented: files, dynamic processes.

The names exist, so that programs that only mention them run. A call raises `MissingError`, which is
an `MPI.Exception` and a `NotImplementedError`, with the name of the missing part. Constants have
MPICH's values. Calls of a communicator that are missing are in comm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from serverless_mpi.api.handle import Handle, name_constant
from serverless_mpi.errors import missing

MODE_CREATE, MODE_RDONLY, MODE_WRONLY, MODE_RDWR, MODE_DELETE_ON_CLOSE = 1, 2, 4, 8, 16
MODE_UNIQUE_OPEN, MODE_EXCL, MODE_APPEND, MODE_SEQUENTIAL = 32, 64, 128, 256
SEEK_SET, SEEK_CUR, SEEK_END = 600, 602, 604
DISPLACEMENT_CURRENT = DISP_CUR = -54278278


def _absent(name: str, what: str) -> Callable[..., NoReturn]:
    """A function that raises `MissingError` for the call `name` of the part `what` of MPI."""

    def absent(*arguments: Any, **more: Any) -> NoReturn:
        raise missing(f"{name} ({what})")

    absent.__name__ = absent.__qualname__ = name.split(".")[-1]
    absent.__doc__ = f"Missing: {what}."
    return absent


_FILES = "file input and output"
_PROCESSES = "dynamic processes"


class File(Handle):
    """A file that ranks share: missing."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, file: File | None = None) -> File:
        return cls._copy(file)  # type: ignore[no-any-return]


def _fill(kind: type[Handle], what: str, methods: str, classmethods: str, properties: str) -> None:
    """Give a class its missing members; names are separated by spaces."""
    name = kind.__name__
    for method in methods.split():
        setattr(kind, method, _absent(f"{name}.{method}", what))
    for method in classmethods.split():
        setattr(kind, method, classmethod(_absent(f"{name}.{method}", what)))
    for field in properties.split():
        setattr(kind, field, property(_absent(f"{name}.{field}", what), doc=f"Missing: {what}."))


_fill(
    File,
    _FILES,
    "Call_errhandler Close Get_amode Get_atomicity Get_byte_offset Get_errhandler Get_group "
    "Get_info Get_position Get_position_shared Get_size Get_type_extent Get_view Iread "
    "Iread_all Iread_at Iread_at_all Iread_shared Iwrite Iwrite_all Iwrite_at Iwrite_at_all "
    "Iwrite_shared Preallocate Read Read_all Read_all_begin Read_all_end Read_at Read_at_all "
    "Read_at_all_begin Read_at_all_end Read_ordered Read_ordered_begin Read_ordered_end "
    "Read_shared Seek Seek_shared Set_atomicity Set_errhandler Set_info Set_size Set_view "
    "Sync Write Write_all Write_all_begin Write_all_end Write_at Write_at_all "
    "Write_at_all_begin Write_at_all_end Write_ordered Write_ordered_begin Write_ordered_end "
    "Write_shared",
    "Create_errhandler Delete Open",
    "amode atomicity group group_rank group_size info size",
)

FILE_NULL: File = name_constant(File(), "FILE_NULL")

Open_port = _absent("Open_port", _PROCESSES)
Close_port = _absent("Close_port", _PROCESSES)
Publish_name = _absent("Publish_name", _PROCESSES)
Unpublish_name = _absent("Unpublish_name", _PROCESSES)
Lookup_name = _absent("Lookup_name", _PROCESSES)
Register_datarep = _absent("Register_datarep", _FILES)


__all__ = [
    "Close_port",
    "File",
    "Lookup_name",
    "Open_port",
    "Publish_name",
    "Register_datarep",
    "Unpublish_name",
    *(
        name
        for name, value in list(globals().items())
        if name.isupper() and name[0] != "_" and not callable(value)
    ),
]
