"""Messages that a matched probe has taken: only their handle can receive them (MPI 4.1, 3.8.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from serverless_mpi.api.buffers import BufSpec
from serverless_mpi.api.handle import Handle, handle_of, name_constant
from serverless_mpi.api.request import Request, complete_receive, request_of
from serverless_mpi.api.status import Status, fill_null_status
from serverless_mpi.api.transfer import (
    Received,
    as_object,
    completed,
    receive_request,
    receive_target,
)
from serverless_mpi.core.delivery import Incoming
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL
from serverless_mpi.errors import ERR_REQUEST, MPIException
from serverless_mpi.runtime import Runtime
from serverless_mpi.signals import uninterrupted

if TYPE_CHECKING:
    from serverless_mpi.api.p2p import PointToPoint


class _Matched:
    """The state of one message.

    runtime: that took it, None for NO_PROC; places: world rank -> rank in the communicator;
    incoming: the message until it is received.
    """

    def __init__(
        self, runtime: Runtime | None, places: Mapping[int, int], incoming: Incoming | None
    ) -> None:
        self.runtime, self.places, self.incoming = runtime, places, incoming
        self.constant: Message | None = None


class Message(Handle):
    """A message that a matched probe has taken out of matching."""

    __module__ = "serverless_mpi.MPI"
    _ob: _Matched | None

    def __new__(cls, message: Message | None = None) -> Message:
        return cls._copy(message)  # type: ignore[no-any-return]

    @classmethod
    def probe(
        cls,
        comm: PointToPoint,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Message:
        """Wait for a message and take it out of matching, as `comm.mprobe`.

        Parameters
        ----------
        comm
            Communicator to probe.
        source, tag
            Rank and tag to match; ANY_SOURCE and ANY_TAG match every one.
        status
            Filled with the source, tag and size of the message; None if not needed.

        Returns
        -------
        Message
            A handle to the message; MESSAGE_NO_PROC if `source` is PROC_NULL.

        References
        ----------
        MPI 4.1, section 3.8.2.
        """
        return comm.mprobe(source, tag, status)

    @classmethod
    def iprobe(
        cls,
        comm: PointToPoint,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Message | None:
        """Take a message out of matching if there is one, as `comm.improbe`.

        Parameters
        ----------
        comm
            Communicator to probe.
        source, tag
            Rank and tag to match; ANY_SOURCE and ANY_TAG match every one.
        status
            Filled with the source, tag and size of the message, if there is one; None if not
            needed.

        Returns
        -------
        Message or None
            A handle to the message; None if no message matches.

        References
        ----------
        MPI 4.1, section 3.8.2.
        """
        return comm.improbe(source, tag, status)

    Probe = probe
    Iprobe = iprobe

    @uninterrupted
    def _start(self, value: Callable[[Received], Any], into: memoryview | None = None) -> Request:
        """Start the receive; the handle becomes null."""
        matched = self._ob
        if self is not MESSAGE_NO_PROC:
            self._ob = None
        if matched is MESSAGE_NO_PROC._ob:
            return request_of(None, completed(), lambda operation, status: fill_null_status(status))
        if matched is None or matched.runtime is None or matched.incoming is None:
            raise MPIException(ERR_REQUEST, "the message is null or has been received")
        runtime, incoming = matched.runtime, matched.incoming
        matched.incoming = None
        operation = runtime.irecv_matched(incoming, into)
        return receive_request(runtime, matched.places, operation, value)

    @uninterrupted
    def recv(self, status: Status | None = None) -> Any:
        """Receive the message as a Python object; the handle becomes null.

        Parameters
        ----------
        status
            Filled with the source, tag and size of the message; None if not needed.

        Returns
        -------
        object
            The received object.

        Raises
        ------
        MPIException
            ERR_REQUEST: the handle is null, or the message has been received.
        """
        return complete_receive(self._start(as_object), status)

    def irecv(self) -> Request:
        """Start receiving the message as a Python object; the handle becomes null."""
        return self._start(as_object)

    @uninterrupted
    def Recv(self, buf: BufSpec, status: Status | None = None) -> None:
        """Receive the message into a buffer; the handle becomes null.

        Parameters
        ----------
        buf
            Buffer that the message is received into.
        status
            Filled with the source, tag and size of the message; None if not needed.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the message is longer than the buffer. ERR_REQUEST: it has been received.

        References
        ----------
        MPI 4.1, section 3.8.3.
        """
        complete_receive(self.Irecv(buf), status)

    def Irecv(self, buf: BufSpec) -> Request:
        """Start receiving the message into a buffer; the handle becomes null.

        Parameters
        ----------
        buf
            Buffer that the message is received into; borrowed until the request completes.

        Raises
        ------
        MPIException
            ERR_REQUEST: the handle is null, or the message has been received.

        References
        ----------
        MPI 4.1, section 3.8.3.
        """
        value, into = receive_target(buf, PROC_NULL if self == MESSAGE_NO_PROC else 0)
        return self._start(value, into)


def matched_message(runtime: Runtime, places: Mapping[int, int], incoming: Incoming) -> Message:
    """Make a handle to a message that a matched probe has taken.

    Parameters
    ----------
    runtime
        Runtime that receives the message.
    places
        Rank in the communicator of each world rank.
    incoming
        Message that the probe took.
    """
    return handle_of(Message, _Matched(runtime, places, incoming))


MESSAGE_NULL: Message = name_constant(Message(), "MESSAGE_NULL")
MESSAGE_NO_PROC: Message = name_constant(
    handle_of(Message, _Matched(None, {}, None)), "MESSAGE_NO_PROC"
)

__all__ = ["MESSAGE_NO_PROC", "MESSAGE_NULL", "Message"]
