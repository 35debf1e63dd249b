"""Between buffers and bytes: what point-to-point calls send, and what they do with received bytes.

Contiguous numbers are sent and received in place (`buffers.contiguous`); any other buffer goes
through its specification, which packs and unpacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from serverless_mpi.api.buffers import BlockSpec, BufSpec, block, contiguous
from serverless_mpi.api.pickling import decode
from serverless_mpi.api.request import Request, operation_of, request_of, request_of_message
from serverless_mpi.api.status import Status, fill_status
from serverless_mpi.core.endpoint import Receive
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation

# what has received a message: a blocking call waits for the receive itself
Received: TypeAlias = Operation | Receive


def completed() -> Operation:
    """Return an operation that is done, as of a call with PROC_NULL."""
    operation = Operation()
    operation.release()
    return operation


def as_object(operation: Received) -> Any:
    """Return the received object.

    Parameters
    ----------
    operation
        A finished receive.
    """
    assert operation.data is not None
    return decode(operation.data)


def into(buf: BufSpec) -> Callable[[Received], Any]:
    """Make what unpacks received bytes into a buffer, unless they are there already.

    Parameters
    ----------
    buf
        Specification of the receive buffer, borrowed until the receive is done.
    """

    def finish(operation: Received) -> None:
        assert operation.data is not None
        if not operation.landed:
            spec = buf if isinstance(buf, BlockSpec) else block(buf, readonly=False)
            spec.unpack(operation.data)

    return finish


def outgoing(buf: BufSpec, rank: int) -> Sequence[memoryview]:
    """Return the bytes of a buffer, borrowed if it is contiguous; nothing for PROC_NULL.

    Parameters
    ----------
    buf
        Buffer specification.
    rank
        Destination; nothing is sent to PROC_NULL.
    """
    if rank == PROC_NULL:
        return ()
    view = contiguous(buf, readonly=True)
    return (BlockSpec(buf, readonly=True).pack() if view is None else view,)


def receive_target(buf: BufSpec, rank: int) -> tuple[Callable[[Received], Any], memoryview | None]:
    """Return what to do with received bytes, and memory that can receive them directly (or None).

    From PROC_NULL nothing comes, whatever the buffer.

    Parameters
    ----------
    buf
        Specification of writable memory; borrowed until the receive is done.
    rank
        Source.
    """
    if rank == PROC_NULL:
        return as_object, None
    view = contiguous(buf, readonly=False)
    if view is not None:
        return into(buf), view
    spec = BlockSpec(buf, readonly=False)
    return into(spec), spec.landing()


def receive_request(
    runtime: Runtime,
    places: Mapping[int, int],
    operation: Operation,
    value: Callable[[Received], Any],
) -> Request:
    """Make the request of a receive.

    Parameters
    ----------
    places
        World rank -> rank in the communicator, which may be freed before the receive is done.
    value
        What makes the result of `operation` into the value of the request.
    """

    def finish(operation: Operation, status: Status | None) -> Any:
        if status is not None:
            envelope = operation.envelope
            assert envelope is not None
            fill_status(status, places[envelope.source], envelope.tag, envelope.nbytes)
        return None if operation.landed else value(operation)

    return request_of_message(runtime, operation, finish)


def both(receive: Request, send: Request) -> Request:
    """Return a request that is done when both are, with the status and value of the receive.

    Parameters
    ----------
    receive, send
        Active requests.
    """
    pending, sent = receive._ob, operation_of(send)
    assert pending is not None and sent is not None
    received, finish = pending.operation, pending.finish
    assert received is not None and finish is not None
    operation = Operation(2)

    def one(done: Operation) -> None:
        if done.error is not None:
            operation.fail(done.error)
        else:
            operation.release()

    received.add_done_callback(one)
    sent.add_done_callback(one)
    return request_of(pending.runtime, operation, lambda _, status: finish(received, status))
