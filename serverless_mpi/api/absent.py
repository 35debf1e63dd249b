"""Parts of MPI that are not implemented: one-sided communication, dynamic processes.

The names exist, so that programs that only mention them run. A call raises `MissingError`, which is
an `MPI.Exception` and a `NotImplementedError`, with the name of the missing part. Constants have
MPICH's values. Calls of a communicator that are missing are in comm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from serverless_mpi.api.handle import Handle, name_constant
from serverless_mpi.errors import missing

WIN_BASE, WIN_SIZE, WIN_DISP_UNIT, WIN_CREATE_FLAVOR, WIN_MODEL = 11, 12, 13, 14, 15
WIN_FLAVOR = WIN_CREATE_FLAVOR
WIN_FLAVOR_CREATE, WIN_FLAVOR_ALLOCATE, WIN_FLAVOR_DYNAMIC, WIN_FLAVOR_SHARED = 1, 2, 3, 4
WIN_SEPARATE, WIN_UNIFIED = 1, 2
MODE_NOCHECK, MODE_NOSTORE, MODE_NOPUT, MODE_NOPRECEDE, MODE_NOSUCCEED = (
    1024,
    2048,
    4096,
    8192,
    16384,
)
LOCK_EXCLUSIVE, LOCK_SHARED = 234, 235


def _absent(name: str, what: str) -> Callable[..., NoReturn]:
    """A function that raises `MissingError` for the call `name` of the part `what` of MPI."""

    def absent(*arguments: Any, **more: Any) -> NoReturn:
        raise missing(f"{name} ({what})")

    absent.__name__ = absent.__qualname__ = name.split(".")[-1]
    absent.__doc__ = f"Missing: {what}."
    return absent


_WINDOWS = "one-sided communication"
_PROCESSES = "dynamic processes"


class Win(Handle):
    """A window of one-sided communication: missing."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, win: Win | None = None) -> Win:
        return cls._copy(win)  # type: ignore[no-any-return]


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
    Win,
    _WINDOWS,
    "Accumulate Attach Call_errhandler Compare_and_swap Complete Delete_attr Detach Fence "
    "Fetch_and_op Flush Flush_all Flush_local Flush_local_all Free Get Get_accumulate "
    "Get_attr Get_errhandler Get_group Get_info Get_name Lock Lock_all Post Put Raccumulate "
    "Rget Rget_accumulate Rput Set_attr Set_errhandler Set_info Set_name Shared_query Start "
    "Sync Test Unlock Unlock_all Wait tomemory",
    "Allocate Allocate_shared Create Create_dynamic Create_errhandler Create_keyval Free_keyval",
    "attrs flavor group group_rank group_size info model name",
)
WIN_NULL: Win = name_constant(Win(), "WIN_NULL")

Open_port = _absent("Open_port", _PROCESSES)
Close_port = _absent("Close_port", _PROCESSES)
Publish_name = _absent("Publish_name", _PROCESSES)
Unpublish_name = _absent("Unpublish_name", _PROCESSES)
Lookup_name = _absent("Lookup_name", _PROCESSES)


__all__ = [
    "Close_port",
    "Lookup_name",
    "Open_port",
    "Publish_name",
    "Unpublish_name",
    "Win",
    *(
        name
        for name, value in list(globals().items())
        if name.isupper() and name[0] != "_" and not callable(value)
    ),
]
