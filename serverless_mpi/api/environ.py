"""The environment: start, end, clock, names, versions (MPI 4.1, chapters 9 and 11)."""

from __future__ import annotations

import atexit
import socket
import sys
import threading
import time
from collections.abc import Callable
from os import environ as _environ

from serverless_mpi import __version__
from serverless_mpi.api.errhandler import last_used_code as _last_used_code
from serverless_mpi.api.info import Info as _Info
from serverless_mpi.core.envelope import ANY_SOURCE, PROC_NULL
from serverless_mpi.core.envelope import TAG_UB as _LARGEST_TAG
from serverless_mpi.env import ENV_APPNUM as _ENV_APPNUM
from serverless_mpi.errors import ERR_ARG, ERR_DIMS, ERR_OTHER, MPIException
from serverless_mpi.runtime import end as _end
from serverless_mpi.runtime import process as _process

THREAD_SINGLE = 0
THREAD_FUNNELED = 1
THREAD_SERIALIZED = 2
THREAD_MULTIPLE = 3

VERSION = 4
SUBVERSION = 1
MAX_PROCESSOR_NAME = 256
MAX_ERROR_STRING = 512
MAX_LIBRARY_VERSION_STRING = 256
MAX_OBJECT_NAME = 128

MAX_PORT_NAME = 1024
MAX_DATAREP_STRING = 128

TAG_UB = 1
HOST = 2
IO = 3
WTIME_IS_GLOBAL = 4
UNIVERSE_SIZE = 5
APPNUM = 6
LASTUSEDCODE = 7

# attribute of every communicator -> its value, of the number of ranks in the job
PREDEFINED_ATTRIBUTES: dict[int, Callable[[int], int]] = {
    TAG_UB: lambda _: _LARGEST_TAG,
    HOST: lambda _: PROC_NULL,
    IO: lambda _: ANY_SOURCE,
    WTIME_IS_GLOBAL: lambda _: 0,
    UNIVERSE_SIZE: lambda size: size,
    APPNUM: lambda _: int(_environ.get(_ENV_APPNUM, "0")),
    LASTUSEDCODE: lambda _: _last_used_code(),
}

_started = time.perf_counter()
_finalized = False


def Init() -> None:
    """Do nothing: MPI starts at the first use of a communicator."""
    if _finalized:
        raise MPIException(ERR_OTHER, "MPI has been finalized and cannot be started again")


def Init_thread(required: int = THREAD_MULTIPLE) -> int:
    """Return the provided level of thread support: THREAD_MULTIPLE.

    Parameters
    ----------
    required
        Not used.

    Raises
    ------
    MPIException
        ERR_OTHER: MPI has been finalized.
    """
    Init()
    return THREAD_MULTIPLE


def Finalize() -> None:
    """Flush queued messages and leave the job."""
    global _finalized
    _finalized = True
    _process.finalize()


def Is_initialized() -> bool:
    """Return True: MPI starts by itself."""
    return True


def Is_finalized() -> bool:
    """Return whether MPI has been finalized."""
    return _finalized


def Query_thread() -> int:
    """Return THREAD_MULTIPLE."""
    return THREAD_MULTIPLE


def Is_thread_main() -> bool:
    """Return whether the caller is the main thread."""
    return threading.current_thread() is threading.main_thread()


def Wtime() -> float:
    """Return the seconds since a moment in this process's past."""
    return time.perf_counter() - _started


def Wtick() -> float:
    """Return the resolution of `Wtime`, in seconds."""
    return time.get_clock_info("perf_counter").resolution


def Get_processor_name() -> str:
    """Return the name of the machine, and of the rank's node if `smpirun -ppn` made several."""
    node = _process.get_runtime().spec.node
    return socket.gethostname() + (f"-node{node}" if node is not None else "")


def Get_version() -> tuple[int, int]:
    """Return the version of the MPI standard."""
    return VERSION, SUBVERSION


def Get_library_version() -> str:
    """Return the name and version of this library."""
    return f"serverless_mpi {__version__}"


def get_vendor() -> tuple[str, tuple[int, int, int]]:
    """Return the name of this library and the three numbers of its version."""
    major, minor, patch = map(int, __version__.split("."))
    return "serverless_mpi", (major, minor, patch)


def Get_abi_version() -> tuple[int, int]:
    """Return the version of the binary interface: none, there is no C library."""
    return -1, -1


def Get_abi_info() -> _Info:
    """Return facts of the binary interface: none."""
    return _Info.Create()


def Get_abi_fortran_info() -> _Info:
    """Return facts of the Fortran interface: none."""
    return _Info.Create()


def Get_hw_resource_info() -> _Info:
    """Return the hardware that this process is bound to: unknown."""
    return _Info.Create()


def Pcontrol(level: int) -> None:
    """Do nothing: a hint for profilers.

    Parameters
    ----------
    level
        Not used.
    """


def _set_abort_status(status: int) -> None:
    """Do nothing: the launcher takes the interpreter's exit code."""


def Compute_dims(nnodes: int, dims: int | list[int]) -> list[int]:
    """Return a balanced grid of processes.

    Parameters
    ----------
    nnodes
        Number of processes.
    dims
        Number of dimensions, or a list of sizes in which 0 is to be chosen.
    """
    sizes = [0] * dims if isinstance(dims, int) else list(dims)
    if nnodes < 0:
        raise MPIException(ERR_ARG, f"{nnodes} processes cannot be laid out")
    if min(sizes, default=0) < 0:
        raise MPIException(ERR_DIMS, f"the sizes {sizes} are negative")
    if not sizes:
        return []
    fixed = 1
    for size in sizes:
        fixed *= size or 1
    free = [place for place, size in enumerate(sizes) if size == 0]
    left, rest = divmod(nnodes, fixed)
    if rest or not left or (not free and left != 1):
        raise MPIException(ERR_DIMS, f"{nnodes} processes cannot be laid out as {sizes}")
    filled = [1] * len(free)
    for prime in reversed(_primes(left)):
        filled[filled.index(min(filled))] *= prime
    for place, size in zip(free, sorted(filled, reverse=True), strict=True):
        sizes[place] = size
    return sizes


def _primes(number: int) -> list[int]:
    found, prime = [], 2
    while number > 1:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    return found


def at_exit(register: Callable[[Callable[[], None]], object] = atexit.register) -> None:
    """Finalize when the interpreter ends, as mpi4py does.

    Parameters
    ----------
    register
        Registers a function that the interpreter calls when it ends.
    """
    register(_finalize_at_exit)


def _finalize_at_exit() -> None:
    """Finalize; if messages may be lost, report it and exit with 1 instead of 0."""
    try:
        Finalize()
        while _process.ending:
            _process.ending.pop()()
    except Exception as error:
        raised = getattr(sys, "last_value", None)
        while raised is not None and raised is not error:
            raised = raised.__cause__ or raised.__context__
        rank = "" if _process.current is None else f"rank {_process.current.rank}: "
        if raised is error:  # the interpreter has printed its traceback
            reason = ""
        else:
            reason = f"{rank}MPI was not finalized, messages may be lost: {error}"
        _end(1, reason)


__all__ = [
    "APPNUM",
    "Compute_dims",
    "Finalize",
    "Get_abi_fortran_info",
    "Get_abi_info",
    "Get_abi_version",
    "Get_hw_resource_info",
    "Get_library_version",
    "Get_processor_name",
    "Get_version",
    "HOST",
    "IO",
    "Init",
    "Init_thread",
    "Is_finalized",
    "Is_initialized",
    "Is_thread_main",
    "LASTUSEDCODE",
    "MAX_DATAREP_STRING",
    "MAX_ERROR_STRING",
    "MAX_LIBRARY_VERSION_STRING",
    "MAX_OBJECT_NAME",
    "MAX_PORT_NAME",
    "MAX_PROCESSOR_NAME",
    "Pcontrol",
    "Query_thread",
    "SUBVERSION",
    "TAG_UB",
    "THREAD_FUNNELED",
    "THREAD_MULTIPLE",
    "THREAD_SERIALIZED",
    "THREAD_SINGLE",
    "UNIVERSE_SIZE",
    "VERSION",
    "WTIME_IS_GLOBAL",
    "Wtick",
    "Wtime",
    "_set_abort_status",
    "get_vendor",
]
