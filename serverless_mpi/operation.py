"""A communication under way, as the runtime and the calls above it see it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.core.endpoint import Receive
from serverless_mpi.core.envelope import Envelope


class Payload(enum.Enum):
    """Who may change the bytes of a message, and when; `outgoing.Outgoing.add` copies by it."""

    BORROWED = enum.auto()  # the caller leaves them as they are until the operation is done
    TRANSIENT = enum.auto()  # the caller may change them as soon as the call that sends returns


class Operation:
    """A communication under way.

    done: it is over; error: why it failed; envelope: of the received message;
    data: the received payload; landed: it is in the caller's `into` already;
    result: what a collective returned; cancelled: it was withdrawn.
    """

    __slots__ = (
        "done",
        "error",
        "envelope",
        "data",
        "landed",
        "result",
        "cancelled",
        "_holds",
        "_receive",
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
        self._holds = holds  # what it still waits for: frames to be put, a match, a generator
        self._receive: Receive | None = None
        self._callbacks: list[Callable[[Operation], None]] = []

    def add_done_callback(self, callback: Callable[[Operation], None]) -> None:
        """Call `callback(self)` when done (now, if it is).  It must not call the runtime."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def _release(self, holds: int = 1) -> None:
        self._holds -= holds
        if self._holds == 0:
            self._end()

    def _end(self, error: BaseException | None = None) -> None:
        if self.done:
            return
        self.error = error
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


def any_done(operations: Sequence[Operation]) -> bool:
    """Whether one of `operations` is done; True for none at all."""
    return not operations or any(operation.done for operation in operations)
