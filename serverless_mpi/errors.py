"""Every exception of the package, and the MPI error classes.

This module imports nothing, so every module may import it. The numbers of the error classes are
MPICH's, because programs print and compare them. A new class needs its number, its sentence in
`ERROR_STRINGS`, and a row in tests/api/test_errors.py.

Two families: `MPIException` is what MPI calls raise to programs; `ServerlessMPIError` and its
subclasses are what commands, launchers and channels raise. The text of either names who is at fault
and what would work; commands print it as one line.

References
----------
MPI 4.1, section 9.4 (error codes and classes).
"""

from __future__ import annotations

SUCCESS = 0
ERR_BUFFER = 1
ERR_COUNT = 2
ERR_TYPE = 3
ERR_TAG = 4
ERR_COMM = 5
ERR_RANK = 6
ERR_ROOT = 7
ERR_GROUP = 8
ERR_OP = 9
ERR_TOPOLOGY = 10
ERR_DIMS = 11
ERR_ARG = 12
ERR_UNKNOWN = 13
ERR_TRUNCATE = 14
ERR_OTHER = 15
ERR_INTERN = 16
ERR_IN_STATUS = 17
ERR_PENDING = 18
ERR_REQUEST = 19
ERR_ACCESS = 20
ERR_AMODE = 21
ERR_BAD_FILE = 22
ERR_CONVERSION = 23
ERR_DUP_DATAREP = 24
ERR_FILE_EXISTS = 25
ERR_FILE_IN_USE = 26
ERR_FILE = 27
ERR_INFO = 28
ERR_INFO_KEY = 29
ERR_INFO_VALUE = 30
ERR_INFO_NOKEY = 31
ERR_IO = 32
ERR_NAME = 33
ERR_NO_MEM = 34
ERR_NOT_SAME = 35
ERR_NO_SPACE = 36
ERR_NO_SUCH_FILE = 37
ERR_PORT = 38
ERR_QUOTA = 39
ERR_READ_ONLY = 40
ERR_SERVICE = 41
ERR_SPAWN = 42
ERR_UNSUPPORTED_DATAREP = 43
ERR_UNSUPPORTED_OPERATION = 44
ERR_WIN = 45
ERR_BASE = 46
ERR_LOCKTYPE = 47
ERR_KEYVAL = 48
ERR_RMA_CONFLICT = 49
ERR_RMA_SYNC = 50
ERR_SIZE = 51
ERR_DISP = 52
ERR_ASSERT = 53
ERR_RMA_RANGE = 55
ERR_RMA_ATTACH = 56
ERR_RMA_SHARED = 57
ERR_RMA_FLAVOR = 58
ERR_SESSION = 75
ERR_PROC_ABORTED = 76
ERR_VALUE_TOO_LARGE = 77
ERR_ERRHANDLER = 78
ERR_ABI = 79
ERR_PROC_FAILED = 101
ERR_PROC_FAILED_PENDING = 102
ERR_REVOKED = 103
ERR_LASTCODE = 0x3FFFFFFF

# error class -> the sentence that Get_error_string returns
ERROR_STRINGS: dict[int, str] = {
    SUCCESS: "No MPI error",
    ERR_BUFFER: "Invalid buffer pointer",
    ERR_COUNT: "Invalid count",
    ERR_TYPE: "Invalid datatype",
    ERR_TAG: "Invalid tag",
    ERR_COMM: "Invalid communicator",
    ERR_RANK: "Invalid rank",
    ERR_ROOT: "Invalid root",
    ERR_GROUP: "Invalid group",
    ERR_OP: "Invalid reduction operation",
    ERR_TOPOLOGY: "Invalid topology",
    ERR_DIMS: "Invalid dimension argument",
    ERR_ARG: "Invalid argument",
    ERR_UNKNOWN: "Unknown error",
    ERR_TRUNCATE: "Message truncated",
    ERR_OTHER: "Other MPI error",
    ERR_INTERN: "Internal MPI error",
    ERR_IN_STATUS: "See the MPI_ERROR field in MPI_Status for the error code",
    ERR_PENDING: "Pending request",
    ERR_REQUEST: "Invalid request",
    ERR_ACCESS: "Permission denied",
    ERR_AMODE: "Invalid access mode",
    ERR_BAD_FILE: "Invalid file name",
    ERR_CONVERSION: "Data conversion error",
    ERR_DUP_DATAREP: "Data representation already defined",
    ERR_FILE_EXISTS: "File exists",
    ERR_FILE_IN_USE: "File in use",
    ERR_FILE: "Invalid file",
    ERR_INFO: "Invalid info",
    ERR_INFO_KEY: "Invalid info key",
    ERR_INFO_VALUE: "Invalid info value",
    ERR_INFO_NOKEY: "Info key not defined",
    ERR_IO: "Input/output error",
    ERR_NAME: "Service name not published",
    ERR_NO_MEM: "Out of memory",
    ERR_NOT_SAME: "Collective arguments differ between ranks",
    ERR_NO_SPACE: "Not enough space",
    ERR_NO_SUCH_FILE: "File does not exist",
    ERR_PORT: "Invalid port name",
    ERR_QUOTA: "Quota exceeded",
    ERR_READ_ONLY: "Read-only file or file system",
    ERR_SERVICE: "Invalid service name",
    ERR_SPAWN: "Cannot spawn processes",
    ERR_UNSUPPORTED_DATAREP: "Unsupported data representation",
    ERR_UNSUPPORTED_OPERATION: "Unsupported operation",
    ERR_WIN: "Invalid window",
    ERR_BASE: "Invalid base address",
    ERR_LOCKTYPE: "Invalid lock type",
    ERR_KEYVAL: "Invalid attribute key",
    ERR_RMA_CONFLICT: "Conflicting accesses to a window",
    ERR_RMA_SYNC: "Wrong synchronization of one-sided calls",
    ERR_SIZE: "Invalid size argument",
    ERR_DISP: "Invalid displacement argument",
    ERR_ASSERT: "Invalid assert argument",
    ERR_RMA_RANGE: "Target memory is not part of the window",
    ERR_RMA_ATTACH: "Memory cannot be attached",
    ERR_RMA_SHARED: "Memory cannot be shared",
    ERR_RMA_FLAVOR: "Wrong flavor of window",
    ERR_SESSION: "Invalid session",
    ERR_PROC_ABORTED: "Process was aborted",
    ERR_VALUE_TOO_LARGE: "Value is too large to store",
    ERR_ERRHANDLER: "Invalid error handler",
    ERR_ABI: "Binary interfaces do not agree",
    ERR_PROC_FAILED: "Process failed",
    ERR_PROC_FAILED_PENDING: "A wildcard receive is pending and a process failed",
    ERR_REVOKED: "Communicator revoked",
}


class MPIException(RuntimeError):
    """The exception of MPI calls, `MPI.Exception`: an error code and a text.

    Parameters
    ----------
    ierr
        An error code; each predefined code is its own class.
    message
        Who is at fault and what would work. Without it the text is the standard's sentence.
    """

    # filled by api/errhandler for codes that programs add (MPI_Add_error_code)
    added_classes: dict[int, int] = {}
    added_strings: dict[int, str] = {}

    def __init__(self, ierr: int = SUCCESS, message: str | None = None) -> None:
        if ierr < SUCCESS:
            ierr = ERR_UNKNOWN
        self.ob_mpi = int(ierr)
        self.message = message
        super().__init__(self.ob_mpi) if message is None else super().__init__(self.ob_mpi, message)

    def Get_error_code(self) -> int:
        """Return the error code."""
        return self.ob_mpi

    def Get_error_class(self) -> int:
        """Return the error class to which the code belongs."""
        return self.added_classes.get(self.ob_mpi, self.ob_mpi)

    def Get_error_string(self) -> str:
        """Return the standard's sentence for the code, followed by the message if there is one."""
        added = self.added_strings.get(self.ob_mpi)
        if added is not None:
            return added
        text = ERROR_STRINGS.get(self.ob_mpi, ERROR_STRINGS[ERR_UNKNOWN])
        name = _CLASS_NAMES.get(self.ob_mpi, "")
        head = f"MPI_{name}: {text}" if name else text
        return head if self.message is None else f"{head}: {self.message}"

    @property
    def error_code(self) -> int:
        """Error code."""
        return self.Get_error_code()

    @property
    def error_class(self) -> int:
        """Error class."""
        return self.Get_error_class()

    @property
    def error_string(self) -> str:
        """Error text."""
        return self.Get_error_string()

    def __int__(self) -> int:
        return self.ob_mpi

    def __bool__(self) -> bool:
        return self.ob_mpi != SUCCESS

    def __hash__(self) -> int:
        return hash(self.ob_mpi)

    def __eq__(self, other: object) -> bool:
        return (
            int(other) == self.ob_mpi if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __ne__(self, other: object) -> bool:
        return (
            int(other) != self.ob_mpi if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __lt__(self, other: object) -> bool:
        return (
            self.ob_mpi < int(other) if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __le__(self, other: object) -> bool:
        return (
            self.ob_mpi <= int(other) if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __gt__(self, other: object) -> bool:
        return (
            self.ob_mpi > int(other) if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __ge__(self, other: object) -> bool:
        return (
            self.ob_mpi >= int(other) if isinstance(other, (int, MPIException)) else NotImplemented
        )

    def __repr__(self) -> str:
        return f"MPI.Exception({self.ob_mpi})"

    def __str__(self) -> str:
        return self.Get_error_string()


class MissingError(MPIException, NotImplementedError):
    """A call of a part of MPI that this package does not have; the text names the part."""


def missing(what: str) -> MissingError:
    """Return the error of a call that this package does not have.

    Parameters
    ----------
    what
        The call and the part of MPI it belongs to, as "Win.Create (one-sided communication)".
    """
    return MissingError(ERR_UNSUPPORTED_OPERATION, f"serverless_mpi has no {what}")


MPIException.__name__ = MPIException.__qualname__ = "Exception"
MPIException.__module__ = "serverless_mpi.MPI"

_CLASS_NAMES: dict[int, str] = {
    value: name
    for name, value in list(globals().items())
    if (name == "SUCCESS" or name.startswith("ERR_"))
    and isinstance(value, int)
    and name != "ERR_LASTCODE"
}


class ServerlessMPIError(RuntimeError):
    """Base of the package's own exceptions, for which MPI has no name."""


class UsageError(ServerlessMPIError):
    """A command line or a setting that cannot work; the text is one line with what would work."""


class StoreError(ServerlessMPIError):
    """A file of the model store that cannot be used; the text names the file.

    It is missing, damaged, of a later format version, or of another model.
    """


class CheckpointError(ServerlessMPIError):
    """A checkpoint cannot be written or used; the text names the place, the rank and a remedy."""


class JobError(ServerlessMPIError):
    """The job as a whole cannot go on: its description is missing, or a rank of it has died."""


class WireError(ServerlessMPIError):
    """Bytes that are not a frame of this job: foreign, damaged or forged.

    The receiver counts and drops them.
    """


class ChannelError(ServerlessMPIError):
    """A channel's service or connection failed.

    Parameters
    ----------
    message
        What failed, and what would work.
    retryable
        Whether the same call may succeed later.
    code
        The service's own name of the error, as "AccessDenied"; "" if it gave none.
    """

    def __init__(self, message: str, retryable: bool = False, code: str = "") -> None:
        super().__init__(message)
        self.retryable = retryable
        self.code = code


__all__ = ["SUCCESS", *sorted(name for name in globals() if name.startswith("ERR_"))]
