"""A communication in progress: what the runtime completes and the calls above it wait for.

An `Operation` counts *holds*: a frame that the channel has not taken yet, a receive that has not
been matched, a collective that has not returned.  It is done when the last hold is released, or at
once when it fails, whichever comes first; it never becomes pending again.

The consumer side (`done`, `error`, the results, `add_done_callback`) is read by the thread that
waits.  The producer side (`hold`, `release`, `complete`, `fail`) is called by the one part of the
package that runs the communication, under the runtime's lock if the runtime knows the operation.
A producer takes a new hold only while it has one, so that the count cannot reach zero in between.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.core.endpoint import Receive
from serverless_mpi.core.envelope import Envelope
from serverless_mpi.errors import ERR_PROC_FAILED_PENDING, MPIException


class Payload(enum.Enum):
    """When the bytes of a message may change; the send queue copies by it."""

    BORROWED = enum.auto()  # the caller does not change them until the operation is done
    TRANSIENT = enum.auto()  # the caller may change them as soon as the sending call returns


class Operation:
    """A communication in progress.

    Parameters
    ----------
    holds
        Number of releases after which the operation is done.

    Attributes
    ----------
    done : bool
        Whether the operation has completed, failed or been cancelled.
    error : BaseException or None
        Why the operation failed.
    envelope : Envelope or None
        Envelope of the received message.
    data : memoryview or None
        Received payload, owned by the operation (or the caller's buffer, see `landed`).
    landed : bool
        Whether the payload is in the buffer that the receive was posted with.
    result : Any
        Return value of a collective.
    cancelled : bool
        Whether a receive was withdrawn before a message matched it.
    receive : Receive or None
        The posted receive, for `Runtime.cancel`.
    holds : int
        Releases still needed.
    """

    __slots__ = (
        "done",
        "error",
        "envelope",
        "data",
        "landed",
        "result",
        "cancelled",
        "receive",
        "holds",
        "_callbacks",
    )

    def __init__(self, holds: int = 1) -> None:
        self.done = False
        self.error: BaseException | None = None
        self.envelope: Envelope | None = None
        self.data: memoryview | None = None
        self.landed = False
        self.result: Any = None
        self.cancelled = False
        self.receive: Receive | None = None
        self.holds = holds
        self._callbacks: list[Callable[[Operation], None]] = []

    def add_done_callback(self, callback: Callable[[Operation], None]) -> None:
        """Call `callback(self)` when the operation is done, at once if it is done already.

        The callback runs under the runtime's lock, so it must not call the runtime.

        Parameters
        ----------
        callback
            Called once, with this operation.
        """
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def hold(self) -> None:
        """Require one more `release` before the operation is done."""
        self.holds += 1

    def release(self) -> None:
        """Give up one hold; the last one completes the operation."""
        self.holds -= 1
        if not self.holds and not self.done:
            self.done = True
            if self._callbacks:
                self._call_back()

    def received(self, receive: Receive) -> None:
        """Take over the message of a receive that is done, and give up one hold.

        Parameters
        ----------
        receive
            Done, with or without an error.
        """
        if self.error is not None:
            self.resume()
        if receive.error is not None:
            self.fail(receive.error)
            return
        self.envelope = receive.envelope
        self.data = receive.data
        self.landed = receive.landed
        self.release()

    def suspend(self, error: BaseException) -> None:
        """Have calls that wait raise `error` until `resume`; the operation goes on meanwhile.

        Parameters
        ----------
        error
            The class of it is ERR_PROC_FAILED_PENDING.
        """
        if not self.done:
            self.error, self.done = error, True

    @property
    def suspended(self) -> bool:
        """Whether `suspend` has an effect: the operation is done, but its holds remain."""
        return (
            self.holds > 0
            and isinstance(self.error, MPIException)
            and self.error.ob_mpi == ERR_PROC_FAILED_PENDING
        )

    def resume(self) -> None:
        """End the effect of `suspend`, if it has one."""
        if self.suspended:
            self.error, self.done = None, False

    def complete(self) -> None:
        """Mark the operation as done, whatever its holds; no effect on one that is done."""
        if not self.done:
            self.done = True
            self._call_back()

    def fail(self, error: BaseException) -> None:
        """Mark the operation as done with an error, which the waiting call raises.

        Only the first outcome counts: an operation that is done stays as it is.

        Parameters
        ----------
        error
            Raised by the call that waits.
        """
        if not self.done:
            self.error = error
            self.complete()

    def _call_back(self) -> None:
        """Run the callbacks once, and drop them, since they may refer to the operation."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


# of every send that was put when the call returned; an operation that is done never changes
SENT = Operation()
SENT.release()


def any_done(operations: Sequence[Operation]) -> bool:
    """Return whether one of `operations` is done; True if there are none.

    Parameters
    ----------
    operations
        Of this rank.
    """
    return not operations or any(operation.done for operation in operations)
