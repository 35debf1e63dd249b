"""Status: source, tag, error and length of a completed operation (MPI 4.1, section 3.2.5).

The fields are an array of 64-bit numbers, so that `tomemory` can give them as memory. Other modules
fill a status with the functions at the end of this file.
"""

from __future__ import annotations

from array import array
from typing import Any

from serverless_mpi.api.datatype import Datatype, type_state
from serverless_mpi.api.types import BYTE
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL
from serverless_mpi.errors import ERR_COUNT, SUCCESS, MPIException

# the fields, and where they stand in the memory that `tomemory` gives
_SOURCE, _TAG, _ERROR, _NBYTES, _CANCELLED = range(5)
F_SOURCE, F_TAG, F_ERROR, F_STATUS_SIZE = _SOURCE, _TAG, _ERROR, 5


_EMPTY = array("q", (ANY_SOURCE, ANY_TAG, SUCCESS, 0, 0))


class Status:
    """The result of a receive or of a completed request.

    Attributes
    ----------
    source
        Rank of the sender in the communicator.
    tag, error
        Tag of the message; error code.
    count
        Bytes of the message.
    cancelled
        Whether the request was cancelled.
    """

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, status: Status | None = None) -> Status:
        self = super().__new__(cls)
        if status is None:
            self._fields = _EMPTY[:]  # a third of the time of an array of a tuple
        elif isinstance(status, Status):
            self._fields = status._fields[:]
        else:
            raise TypeError(f"expecting a Status, not {type(status).__name__}")
        return self

    _fields: array[int]

    def _fill(self, source: int, tag: int, nbytes: int, cancelled: bool = False) -> None:
        """Set all fields after success."""
        fields = self._fields
        fields[0], fields[1], fields[2], fields[3], fields[4] = (
            source,
            tag,
            SUCCESS,
            nbytes,
            cancelled,
        )

    def _fill_null(self) -> None:
        """Set the fields as a receive from PROC_NULL does."""
        self._fill(PROC_NULL, ANY_TAG, 0)

    def _fill_empty(self) -> None:
        """Set the fields of the empty status, as a completed send does."""
        self._fill(ANY_SOURCE, ANY_TAG, 0)

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Status) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self._fields != other._fields if isinstance(other, Status) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        return type(self), (), self.__getstate__()

    def __getstate__(self) -> dict[str, int]:
        return dict(
            zip(("source", "tag", "error", "count", "cancelled"), self._fields, strict=True)
        )

    def __setstate__(self, state: dict[str, int]) -> None:
        self._fields[:] = array("q", state.values())

    def tomemory(self) -> memoryview:
        """Return the fields as writable memory of 64-bit numbers: source, tag and error first."""
        return memoryview(self._fields)

    def py2f(self) -> list[int]:
        """Return the fields as a list of F_STATUS_SIZE integers."""
        return list(self._fields)

    @classmethod
    def f2py(cls, arg: list[int]) -> Status:
        """Make a status of a list of integers.

        Parameters
        ----------
        arg
            The fields, as `py2f` returns them; copied.
        """
        self = cls()
        self._fields[:] = array("q", arg)
        return self

    def Get_source(self) -> int:
        """Return the sender's rank."""
        return self._fields[_SOURCE]

    def Set_source(self, source: int) -> None:
        """Set the sender's rank.

        Parameters
        ----------
        source
            Rank of the sender.
        """
        self._fields[_SOURCE] = source

    def Get_tag(self) -> int:
        """Return the message's tag."""
        return self._fields[_TAG]

    def Set_tag(self, tag: int) -> None:
        """Set the message's tag.

        Parameters
        ----------
        tag
            Tag of the message.
        """
        self._fields[_TAG] = tag

    def Get_error(self) -> int:
        """Return the error code."""
        return self._fields[_ERROR]

    def Set_error(self, error: int) -> None:
        """Set the error code.

        Parameters
        ----------
        error
            Error code.
        """
        self._fields[_ERROR] = error

    def Get_count(self, datatype: Datatype = BYTE) -> int:
        """Return the received elements of a datatype.

        Parameters
        ----------
        datatype
            Datatype whose elements are counted.

        Returns
        -------
        int
            MPI.UNDEFINED if the bytes are not a whole number of elements.
        """
        return type_state(datatype).count_of(self._fields[_NBYTES])

    def Get_elements(self, datatype: Datatype) -> int:
        """Return the received basic elements of a datatype.

        Parameters
        ----------
        datatype
            Datatype whose elements are counted.

        Returns
        -------
        int
            MPI.UNDEFINED if an element is not whole.
        """
        return type_state(datatype).elements_of(self._fields[_NBYTES])

    def Set_elements(self, datatype: Datatype, count: int) -> None:
        """Set the length in basic elements of a datatype.

        Parameters
        ----------
        datatype
            Datatype whose elements are counted.
        count
            Number of basic elements.

        Raises
        ------
        MPIException
            ERR_COUNT: the count is negative.
        """
        if count < 0:
            raise MPIException(ERR_COUNT, f"a count of {count} is negative")
        self._fields[_NBYTES] = type_state(datatype).bytes_of(count)

    def Is_cancelled(self) -> bool:
        """Return whether the request was cancelled."""
        return bool(self._fields[_CANCELLED])

    def Set_cancelled(self, flag: bool) -> None:
        """Set whether the request was cancelled.

        Parameters
        ----------
        flag
            Whether the request was cancelled.
        """
        self._fields[_CANCELLED] = bool(flag)

    source = property(Get_source, Set_source, doc="The sender's rank.")
    tag = property(Get_tag, Set_tag, doc="The message's tag.")
    error = property(Get_error, Set_error, doc="The error code.")
    count = property(
        Get_count, lambda self, count: self.Set_elements(BYTE, count), doc="Bytes received."
    )
    cancelled = property(Is_cancelled, Set_cancelled, doc="Whether the request was cancelled.")


# For the modules that complete requests. Functions, because mpi4py's Status has no such methods.
fill_status = Status._fill
fill_null_status = Status._fill_null
fill_empty_status = Status._fill_empty

__all__ = ["F_ERROR", "F_SOURCE", "F_STATUS_SIZE", "F_TAG", "Status"]
