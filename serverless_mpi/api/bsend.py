"""Buffered mode: the memory that a program attaches, and the sends that use it.

The runtime copies what is sent anyway, so the memory is only accounted for, not written. A program
that would exceed it under another MPI gets the same error here.

References
----------
MPI 4.1, section 3.6.
"""

from __future__ import annotations

from typing import Any

from serverless_mpi.api.memory import BUFFER_AUTOMATIC, BufferAutomaticType, as_bytes
from serverless_mpi.api.memory import buffer as Buffer
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.errors import ERR_BUFFER, ERR_OTHER, MPIException
from serverless_mpi.runtime import Runtime, get_runtime
from serverless_mpi.runtime.operation import Operation

BSEND_OVERHEAD = 96  # bytes that a message takes in addition to its own


class Attached:
    """The attached buffer of a process, a communicator or a session."""

    def __init__(self) -> None:
        self.object: Any = None  # what was attached
        self._room: int | None = (
            None  # its bytes; None: as many as needed, if something is attached
        )
        self._under_way: list[tuple[Runtime, Operation, int]] = []

    def attach(self, buf: Any) -> None:
        """Attach memory.

        Parameters
        ----------
        buf
            A writable buffer, which is borrowed until it is detached; its length in bytes limits
            the pending sends. BUFFER_AUTOMATIC or None: no limit.

        Raises
        ------
        MPIException
            ERR_OTHER: a buffer is attached already. ERR_BUFFER: it has fewer than BSEND_OVERHEAD
            bytes, so no message fits in it.
        BufferError
            The buffer is not contiguous or not writable.
        TypeError
            The object has no memory.
        """
        if self.object is not None:
            raise MPIException(ERR_OTHER, "a buffer is attached already; detach it first")
        if buf is None or isinstance(buf, BufferAutomaticType):
            self.object, self._room = BUFFER_AUTOMATIC, None
        else:
            view, _ = as_bytes(buf, False)
            if view.nbytes < BSEND_OVERHEAD:
                raise MPIException(
                    ERR_BUFFER,
                    f"a buffer of {view.nbytes} bytes holds no message, which needs"
                    f" {BSEND_OVERHEAD} in addition to its own",
                )
            self.object, self._room = Buffer.frombuffer(buf), view.nbytes

    def detach(self) -> Any:
        """Wait until no send uses the buffer, and return it."""
        if self.object is None:
            return None
        self.flush()
        attached, self.object = self.object, None
        return attached

    def flush(self) -> None:
        """Wait until no send uses the buffer."""
        for runtime, operation, _ in self._under_way:
            runtime.wait((operation,))
        self._under_way.clear()

    def iflush(self) -> Request:
        """Return a request that is done when no send uses the buffer."""
        everything = Operation(1 + len(self._under_way))
        for _, operation, _ in self._under_way:
            operation.add_done_callback(lambda _: everything.release())
        everything.release()
        return request_of(get_runtime(), everything, _finish)

    def reserve(self, nbytes: int) -> None:
        """Check that a message fits.

        Parameters
        ----------
        nbytes
            Length of the message's body; BSEND_OVERHEAD bytes are added.

        Raises
        ------
        MPIException
            ERR_BUFFER: nothing is attached, or what is attached is too full.
        """
        if self.object is None:
            raise MPIException(
                ERR_BUFFER,
                f"a buffered send of {nbytes} bytes without a buffer; call MPI.Attach_buffer first",
            )
        if self._room is None:
            return
        self._under_way = [entry for entry in self._under_way if not entry[1].done]
        taken = sum(taken for _, _, taken in self._under_way)
        if taken + nbytes + BSEND_OVERHEAD > self._room:
            raise MPIException(
                ERR_BUFFER,
                f"a buffered send of {nbytes} + {BSEND_OVERHEAD} bytes;"
                f" {self._room - taken} of {self._room} bytes are free",
            )

    def took(self, runtime: Runtime, operation: Operation, nbytes: int) -> None:
        """Count a message against the buffer until its send is done.

        Parameters
        ----------
        runtime
            The runtime that sends the message; `flush` waits with it.
        operation
            The send.
        nbytes
            Length of the message's body; BSEND_OVERHEAD bytes are added.
        """
        if not operation.done:
            self._under_way.append((runtime, operation, nbytes + BSEND_OVERHEAD))


def _finish(operation: Operation, status: Status) -> None:
    fill_empty_status(status)


OF_PROCESS = Attached()


def Attach_buffer(buf: Any) -> None:
    """Attach memory for the process's buffered sends.

    Parameters
    ----------
    buf
        A writable buffer, which is borrowed until it is detached; its length in bytes limits the
        pending sends. MPI.BUFFER_AUTOMATIC or None: no limit.

    Raises
    ------
    MPIException
        ERR_OTHER: a buffer is attached already. ERR_BUFFER: it has fewer than BSEND_OVERHEAD bytes,
        so no message fits in it.
    BufferError
        The buffer is not contiguous or not writable.
    TypeError
        The object has no memory.

    References
    ----------
    MPI 4.1, section 3.6.
    """
    OF_PROCESS.attach(buf)


def Detach_buffer() -> Any:
    """Wait until all buffered sends have left, and return the buffer; None if there is none."""
    return OF_PROCESS.detach()


def Flush_buffer() -> None:
    """Wait until all buffered sends have left the buffer."""
    OF_PROCESS.flush()


def Iflush_buffer() -> Request:
    """Start `Flush_buffer`."""
    return OF_PROCESS.iflush()


__all__ = ["Attach_buffer", "BSEND_OVERHEAD", "Detach_buffer", "Flush_buffer", "Iflush_buffer"]
