"""Status: what a receive, or a completed request, can tell (MPI 4.1, section 3.2.5)."""

from __future__ import annotations

from serverless_mpi.api.datatype import BYTE, Datatype
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL, UNDEFINED
from serverless_mpi.errors import SUCCESS


class Status:
    """Source, tag, error and length of a message.  source is a rank of the communicator."""

    def __new__(cls, status: Status | None = None) -> Status:
        self = super().__new__(cls)
        self._source = ANY_SOURCE if status is None else status._source
        self._tag = ANY_TAG if status is None else status._tag
        self._error = SUCCESS if status is None else status._error
        self._nbytes = 0 if status is None else status._nbytes
        self._cancelled = False if status is None else status._cancelled
        return self

    def _fill(self, source: int, tag: int, nbytes: int, cancelled: bool = False) -> None:
        self._source, self._tag, self._nbytes, self._cancelled, self._error = source, tag, nbytes, cancelled, SUCCESS

    def _fill_null(self) -> None:
        self._fill(PROC_NULL, ANY_TAG, 0)

    def _fill_empty(self) -> None:
        self._fill(ANY_SOURCE, ANY_TAG, 0)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Status) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def Get_source(self) -> int:
        """The sender's rank."""
        return self._source

    def Set_source(self, source: int) -> None:
        """Set the sender's rank."""
        self._source = source

    def Get_tag(self) -> int:
        """The message's tag."""
        return self._tag

    def Set_tag(self, tag: int) -> None:
        """Set the message's tag."""
        self._tag = tag

    def Get_error(self) -> int:
        """The error code."""
        return self._error

    def Set_error(self, error: int) -> None:
        """Set the error code."""
        self._error = error

    def Get_count(self, datatype: Datatype = BYTE) -> int:
        """Elements received; UNDEFINED if the bytes are no whole number of them."""
        size = datatype.Get_size()
        if size == 0:
            return 0 if self._nbytes == 0 else UNDEFINED
        count, rest = divmod(self._nbytes, size)
        return UNDEFINED if rest else count

    def Get_elements(self, datatype: Datatype) -> int:
        """Basic elements received, of a datatype made of one kind; else whole elements."""
        base = datatype._base
        size = base.itemsize if base is not None else datatype.Get_size()
        return UNDEFINED if not size or self._nbytes % size else self._nbytes // size

    def Set_elements(self, datatype: Datatype, count: int) -> None:
        """Set the length as `count` basic elements."""
        base = datatype._base
        self._nbytes = count * (base.itemsize if base is not None else datatype.Get_size())

    def Is_cancelled(self) -> bool:
        """Whether the request was cancelled."""
        return self._cancelled

    def Set_cancelled(self, flag: bool) -> None:
        """Say whether the request was cancelled."""
        self._cancelled = bool(flag)

    source = property(Get_source, Set_source, doc="The sender's rank.")
    tag = property(Get_tag, Set_tag, doc="The message's tag.")
    error = property(Get_error, Set_error, doc="The error code.")
    count = property(lambda self: self.Get_count(BYTE), doc="Bytes received.")
    cancelled = property(Is_cancelled, Set_cancelled, doc="Whether the request was cancelled.")


__all__ = ["Status"]
