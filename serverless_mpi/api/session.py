"""Sessions: a way to groups and communicators without COMM_WORLD (MPI 4.1, section 11.3)."""

from __future__ import annotations

from typing import Any

from serverless_mpi.api import bsend
from serverless_mpi.api.errhandler import ERRORS_RETURN, Errhandler, Guarded
from serverless_mpi.api.group import Group, group_of
from serverless_mpi.api.handle import Handle, forget, name_constant
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.request import Request
from serverless_mpi.errors import ERR_ARG, ERR_SESSION, MPIException
from serverless_mpi.runtime import get_runtime

MAX_PSET_NAME_LEN = 256
MAX_STRINGTAG_LEN = 256
_SETS = ("mpi://WORLD", "mpi://SELF")


class _State:
    def __init__(self, errhandler: Any) -> None:
        self.errhandler = errhandler
        self.attached = bsend.Attached()


class Session(Handle, Guarded):
    """A session: process sets, and groups of them (MPI 4.1, section 11.3)."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, session: Session | None = None) -> Session:
        return cls._copy(session)  # type: ignore[no-any-return]

    def _check_live(self) -> None:
        if self._ob is None:
            raise MPIException(ERR_SESSION, "the session is null or has been finalized")

    @classmethod
    def Init(cls, info: Info = INFO_NULL, errhandler: Errhandler | None = None) -> Session:
        """Start a session.

        Parameters
        ----------
        info
            Not used.
        errhandler
            Error handler of the session; MPI.ERRORS_RETURN by default.
        """
        self = cls._of_state(_State(None))
        self.Set_errhandler(errhandler or ERRORS_RETURN)
        return self  # type: ignore[no-any-return]

    def Finalize(self) -> None:
        """End the session; this handle becomes null."""
        self._check_live()
        forget(self._ob)
        self._ob = None

    Free = Finalize

    def Get_num_psets(self, info: Info = INFO_NULL) -> int:
        """Return the number of process sets.

        Parameters
        ----------
        info
            Not used.

        Raises
        ------
        MPIException
            ERR_SESSION: the session is null or has been finalized.
        """
        self._check_live()
        return len(_SETS)

    def Get_nth_pset(self, n: int, info: Info = INFO_NULL) -> str:
        """Return the name of the n-th process set.

        Parameters
        ----------
        n
            Index of the set, from 0.
        info
            Not used.

        Raises
        ------
        MPIException
            ERR_SESSION: the session is null or has been finalized. ERR_ARG: there is no such set.
        """
        self._check_live()
        if not 0 <= n < len(_SETS):
            raise MPIException(ERR_ARG, f"set number {n} is outside 0..{len(_SETS) - 1}")
        return _SETS[n]

    def Get_info(self) -> Info:
        """Return the hints."""
        self._check_live()
        return Info.Create({"thread_level": "MPI_THREAD_MULTIPLE"})

    def _ranks(self, pset_name: str) -> list[int]:
        self._check_live()
        if pset_name.lower() not in [name.lower() for name in _SETS]:
            raise MPIException(
                ERR_ARG, f"there is no process set {pset_name!r}; there are {', '.join(_SETS)}"
            )
        runtime = get_runtime()
        return [runtime.rank] if pset_name.lower().endswith("self") else list(range(runtime.size))

    def Get_pset_info(self, pset_name: str) -> Info:
        """Return facts of a process set: its size, as `mpi_size`.

        Parameters
        ----------
        pset_name
            Name of a process set; upper and lower case are equal.

        Raises
        ------
        MPIException
            ERR_SESSION: the session is null or has been finalized. ERR_ARG: there is no such
            process set.
        """
        return Info.Create({"mpi_size": str(len(self._ranks(pset_name)))})

    def Create_group(self, pset_name: str) -> Group:
        """Return the group of a process set.

        Parameters
        ----------
        pset_name
            Name of a process set; upper and lower case are equal.

        Raises
        ------
        MPIException
            ERR_SESSION: the session is null or has been finalized. ERR_ARG: there is no such
            process set.
        """
        return group_of(get_runtime(), self._ranks(pset_name), self._ob.attached)

    def Attach_buffer(self, buf: Any) -> None:
        """Attach memory for buffered sends on the session's communicators.

        Parameters
        ----------
        buf
            Memory whose size limits the buffered sends; None: no limit.

        Raises
        ------
        MPIException
            ERR_SESSION: the session is null or has been finalized. ERR_OTHER: a buffer is
            attached already. ERR_BUFFER: no message fits in the buffer.
        """
        self._check_live()
        self._ob.attached.attach(buf)

    def Detach_buffer(self) -> Any:
        """Wait until all buffered sends have left, and return the buffer."""
        self._check_live()
        return self._ob.attached.detach()

    def Flush_buffer(self) -> None:
        """Wait until all buffered sends have left the buffer."""
        self._check_live()
        self._ob.attached.flush()

    def Iflush_buffer(self) -> Request:
        """Start `Flush_buffer`."""
        self._check_live()
        return self._ob.attached.iflush()  # type: ignore[no-any-return]


SESSION_NULL: Session = name_constant(Session(), "SESSION_NULL")

__all__ = ["MAX_PSET_NAME_LEN", "MAX_STRINGTAG_LEN", "SESSION_NULL", "Session"]
