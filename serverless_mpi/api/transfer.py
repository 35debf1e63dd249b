"""What a point-to-point message is on its way out of a buffer, and what is done with one that has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.buffers import Message as Spec
from serverless_mpi.api.buffers import block
from serverless_mpi.api.memory import plain
from serverless_mpi.api.pickling import decode
from serverless_mpi.api.request import Request
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.runtime.operation import Operation


def completed() -> Operation:
    """An operation that is done: what there is with PROC_NULL."""
    operation = Operation()
    operation.release()
    return operation


def as_object(operation: Operation) -> Any:
    """The object that has come."""
    assert operation.data is not None
    return decode(operation.data)


def into(buf: Any) -> Callable[[Operation], Any]:
    """What puts received bytes into a buffer, unless they were received there."""

    def finish(operation: Operation) -> None:
        assert operation.data is not None
        if not operation.landed:
            spec = buf if isinstance(buf, Spec) else block(buf, readonly=False)
            spec.unpack(operation.data)

    return finish


def outgoing(buf: Any, rank: int) -> Sequence[memoryview]:
    """What is sent of a buffer: nothing to PROC_NULL, whatever the buffer."""
    if rank == PROC_NULL:
        return ()
    view = plain(buf, readonly=True)
    return (Spec(buf, readonly=True).pack() if view is None else view,)


def room(buf: Any, rank: int) -> tuple[Callable[[Operation], Any], memoryview | None]:
    """(what is done with received bytes, memory that they can be received into directly); nothing comes from PROC_NULL."""
    if rank == PROC_NULL:
        return as_object, None
    view = plain(buf, readonly=False)
    if view is not None:
        return into(buf), view
    spec = Spec(buf, readonly=False)
    return into(spec), spec.landing()


def both(receive: Request, send: Request) -> Request:
    """A request that is done when both are, and is the receive's then."""
    pending = receive._ob
    assert (
        pending is not None
        and pending.operation is not None
        and pending.finish is not None
        and send._operation is not None
    )
    received, finish = pending.operation, pending.finish
    operation = Operation(2)

    def one(done: Operation) -> None:
        if done.error is not None:
            operation.fail(done.error)
        else:
            operation.release()

    received.add_done_callback(one)
    send._operation.add_done_callback(one)
    return Request._of(pending.runtime, operation, lambda _, status: finish(received, status))
