"""Messages that a matched probe has taken: nobody else can receive them (MPI 4.1, section 3.8.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serverless_mpi.api.handle import Handle
from serverless_mpi.api.request import Request
from serverless_mpi.api.status import Status
from serverless_mpi.api.transfer import as_object, completed, room
from serverless_mpi.core.delivery import Incoming
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL
from serverless_mpi.errors import ERR_REQUEST, MPIException
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.signals import uninterrupted

if TYPE_CHECKING:
    from serverless_mpi.api.p2p import PointToPoint


class _Matched:
    """What all handles to one message share: where it was matched, and what it is until it is received; nothing for NO_PROC."""

    def __init__(self, comm: PointToPoint | None, incoming: Incoming | None) -> None:
        self.comm, self.incoming = comm, incoming
        self.constant: Message | None = None


class Message(Handle):
    """A message that a matched probe has taken."""

    __module__ = "serverless_mpi.MPI"
    _ob: _Matched | None

    def __new__(cls, message: Message | None = None) -> Message:
        return cls._copy(message)  # type: ignore[no-any-return]

    @classmethod
    def _of(cls, comm: PointToPoint, incoming: Incoming) -> Message:
        return cls._of_state(_Matched(comm, incoming))  # type: ignore[no-any-return]

    @classmethod
    def probe(
        cls,
        comm: PointToPoint,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Message:
        """`comm.mprobe`."""
        return comm.mprobe(source, tag, status)

    @classmethod
    def iprobe(
        cls,
        comm: PointToPoint,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Message | None:
        """`comm.improbe`."""
        return comm.improbe(source, tag, status)

    Probe = probe
    Iprobe = iprobe

    @uninterrupted
    def _start(self, value: Callable[[Operation], Any], into: memoryview | None = None) -> Request:
        matched = self._ob
        if self is not MESSAGE_NO_PROC:
            self._ob = None
        if matched is MESSAGE_NO_PROC._ob:
            return Request._of(None, completed(), lambda operation, status: status._fill_null())
        if matched is None or matched.comm is None or matched.incoming is None:
            raise MPIException(ERR_REQUEST, "the message is null or has been received")
        comm, incoming = matched.comm, matched.incoming
        matched.comm = matched.incoming = None
        return comm._received(comm._runtime.irecv_matched(incoming, into), value)

    @uninterrupted
    def recv(self, status: Status | None = None) -> Any:
        """Receive it as an object."""
        return self._start(as_object)._complete_own(status)

    def irecv(self) -> Request:
        """Start receiving it as an object."""
        return self._start(as_object)

    @uninterrupted
    def Recv(self, buf: Any, status: Status | None = None) -> None:
        """Receive it into a buffer."""
        self.Irecv(buf)._complete_own(status)

    def Irecv(self, buf: Any) -> Request:
        """Start receiving it into a buffer."""
        return self._start(*room(buf, PROC_NULL if self == MESSAGE_NO_PROC else 0))


MESSAGE_NULL: Message = Message()._name_constant("MESSAGE_NULL")
MESSAGE_NO_PROC: Message = Message._of_state(_Matched(None, None))._name_constant("MESSAGE_NO_PROC")

__all__ = ["MESSAGE_NO_PROC", "MESSAGE_NULL", "Message"]
