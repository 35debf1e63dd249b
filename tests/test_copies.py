"""Ownership of bytes: a buffer may change when `isend` returns, and the message arrives unchanged.

The services behind the channels are stubs in this process: frames are put late, as a service would take them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi import MPI, channels
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.core.frames import FrameName, OutgoingFrame
from serverless_mpi.job import JobSpec
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation, Payload
from serverless_mpi.runtime.send_queue import EAGER_COPY_BYTES
from tests.channels import fakes
from tests.harness import GIVE_UP_S, on_each

CHANNELS = ("memory", "queue", "object", "hybrid", "direct")
AROUND_THE_THRESHOLD = range(
    65_300, 65_701
)  # payloads; the frame is 84 bytes longer, a pickle's head about 200
MOST = 200_000
SETTINGS = settings(derandomize=True, deadline=None, max_examples=10)


class Job:
    """Two ranks.  What is put in the background waits at `gate`, so that the bytes have changed before."""

    def __init__(self, channel: str) -> None:
        if channel in ("memory", "direct"):
            spec = JobSpec.new(2, channel)
            spec = replace(spec, settings=channels.load(channel).provision(spec))
        else:
            spec = fakes.job(channel, 2)
        self.gate = threading.Event()
        self.runtimes = [Runtime(spec.with_rank(rank)) for rank in range(2)]
        for runtime in self.runtimes:
            if runtime._channel.limits.async_put:
                runtime._channel.put = self._gated(runtime._channel.put)  # type: ignore[method-assign]

    def _gated(
        self, put: Callable[[Sequence[OutgoingFrame]], None]
    ) -> Callable[[Sequence[OutgoingFrame]], None]:
        def wait_and_put(frames: Sequence[OutgoingFrame]) -> None:
            assert self.gate.wait(GIVE_UP_S)
            put(frames)

        return wait_and_put

    def exchange(self, sizes: Sequence[int]) -> None:
        """Send, change, receive and check each size by each call."""

        def body(world: Intracomm) -> None:
            if world.rank == 0:
                self.gate.clear()
                requests = send_and_change(world, sizes)
                self.gate.set()
                MPI.Request.Waitall(requests)
                world.Detach_buffer()
            else:
                check(world, sizes)

        on_each(self.runtimes, body, GIVE_UP_S / 4)
        assert [runtime._endpoint.dropped for runtime in self.runtimes] == [0, 0]

    def close(self) -> None:
        self.gate.set()
        on_each(self.runtimes, lambda world: world._runtime.finalize())


@contextlib.contextmanager
def job(channel: str) -> Iterator[Job]:
    """Make a job on a channel whose services are fakes."""
    with pytest.MonkeyPatch.context() as patch:
        fakes.installed(patch)
        made = Job(channel)
        yield made
        made.close()


def payload(nbytes: int, number: int) -> np.ndarray[Any, Any]:
    return np.full(nbytes, number % 251, np.uint8)


def send_and_change(world: Intracomm, sizes: Sequence[int]) -> list[MPI.Request]:
    """Each size by each call that lets the caller change what it sends at once, and then the change."""
    world.Attach_buffer(None)
    requests = []
    for number, nbytes in enumerate(sizes):
        for call in (world.isend, world.issend, world.ibsend, world.Ibsend):
            data = payload(nbytes, number)
            requests.append(call(data, 1))
            data[:] = 255
    for call in (world.bsend, world.Bsend):
        for number, nbytes in enumerate(sizes):
            data = payload(nbytes, number)
            call(data, 1)
            data[:] = 255
    return requests


def check(world: Intracomm, sizes: Sequence[int]) -> None:
    def receive(number: int, nbytes: int, objects: bool) -> None:
        expected = payload(nbytes, number)
        got: Any = np.zeros_like(expected)
        if objects:
            got = world.recv(source=0)
        else:
            world.Recv(got, 0)
        assert got.nbytes == nbytes and (got == expected).all()

    for number, nbytes in enumerate(sizes):
        for objects in (True, True, True, False):
            receive(number, nbytes, objects)
    for objects in (True, False):
        for number, nbytes in enumerate(sizes):
            receive(number, nbytes, objects)


@pytest.mark.parametrize("channel", CHANNELS)
def test_bytes_that_change_at_once_arrive_as_they_were(channel: str) -> None:
    near = [edge + step for edge in (0, 3900, 131_000, 192_300) for step in range(0, 300, 30)]
    sizes = [*AROUND_THE_THRESHOLD, *near]
    with job(channel) as made:
        for start in range(0, len(sizes), 60):
            made.exchange(sizes[start : start + 60])


@SETTINGS
@given(st.sampled_from(CHANNELS), st.lists(st.integers(0, MOST), min_size=1, max_size=8))
def test_bytes_of_any_size_that_change_at_once(channel: str, sizes: list[int]) -> None:
    with job(channel) as made:
        made.exchange(sizes)


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("constant", [False, True])
def test_the_rule(payload: Payload, over: int, constant: bool) -> None:
    """A frame of up to EAGER_COPY_BYTES is copied; a longer one holds its operation, and is copied if it may change."""
    with job("queue") as made:
        outgoing = made.runtimes[0]._send_queue
        operation = Operation()
        nbytes = EAGER_COPY_BYTES + over
        data = bytes(nbytes) if constant else bytearray(nbytes)
        name = FrameName(0, 7, 0, 1, 0, 0, 0)
        with made.runtimes[0]._lock:
            outgoing.add([OutgoingFrame((1,), name, (memoryview(data),))], operation, payload)
            ((parcel, held),) = outgoing.queued
            outgoing.queued.clear()
        assert (held is operation) == (operation.holds == 2) == bool(over)
        copied = parcel.parts[0].obj is not data
        assert copied == (not over or (payload is Payload.TRANSIENT and not constant))
