"""memory: ranks that are threads of one process, for tests and for a job of size 1.

The rule: `put` copies a frame into the inbox of each reader, under the inbox's
condition; `get` takes all that the inbox has.  Nothing is acknowledged.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.channels.base import (
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.job import JobSpec

MAX_FRAME_BYTES = 1 << 30  # bounds one copy; the medium itself has no limit


class _Inbox:
    """The frames that one rank has not taken yet."""

    def __init__(self) -> None:
        self.ready = threading.Condition()
        self.frames: deque[bytearray] = deque()
        self.woken = False


class Hub:
    """The medium: an inbox per rank, shared by the channels of one job."""

    _hubs: dict[str, Hub] = {}
    _lock = threading.Lock()

    def __init__(self, size: int) -> None:
        self.inboxes = [_Inbox() for _ in range(size)]

    @classmethod
    def of(cls, spec: JobSpec) -> Hub:
        """Return the hub of a job, which the first rank creates.

        Parameters
        ----------
        spec
            The job; `job_id` names the hub, `size` is its number of inboxes.
        """
        with cls._lock:
            return cls._hubs.setdefault(spec.job_id, cls(spec.size))

    @classmethod
    def forget(cls, spec: JobSpec) -> None:
        """Drop the hub of a job; a job that has none is ignored.

        Parameters
        ----------
        spec
            The job; `job_id` names the hub.
        """
        with cls._lock:
            cls._hubs.pop(spec.job_id, None)


class MemoryChannel(Channel):
    """Frames that are copied from thread to thread."""

    platforms = frozenset({"local"})
    one_process = True
    limits = Limits(max_frame_bytes=MAX_FRAME_BYTES, async_put=False)
    figures = CostParameters(
        latency_s=1e-5, bandwidth_Bps=5e9, put_usd=0.0, get_usd=0.0, fanout=False, batch=1
    )

    def __init__(self, spec: JobSpec, meter: Any) -> None:
        super().__init__(spec, meter)
        self._hub = Hub.of(spec)

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        Hub.forget(spec)

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        for frame in parcels:
            for dest in frame.dests:
                copy = bytearray().join(frame.parts)  # one per reader, which owns it
                self.meter.count("memory", "put", nbytes=len(copy), messages=1)
                inbox = self._hub.inboxes[dest]
                with inbox.ready:
                    inbox.frames.append(copy)
                    inbox.ready.notify()

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        inbox = self._hub.inboxes[self.spec.rank]
        with inbox.ready:
            if max_wait_s > 0:
                inbox.ready.wait_for(lambda: inbox.frames or inbox.woken, max_wait_s)
            inbox.woken = False
            frames = list(inbox.frames)
            inbox.frames.clear()
        return [Delivery(memoryview(frame), None) for frame in frames]

    def wake(self) -> None:
        inbox = self._hub.inboxes[self.spec.rank]
        with inbox.ready:
            inbox.woken = True
            inbox.ready.notify()

    def close(self) -> None:
        pass
