"""Who owns the bytes of a message: what may change when `isend` returns arrives as it was, on every channel.

The services behind the channels are stubs in this process: frames are put late, as a service would take them.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi import MPI, channels
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.aws.sqs import Received
from serverless_mpi.channels.base import Channel, Delivery
from serverless_mpi.channels.hybrid import HybridChannel
from serverless_mpi.channels.object import ObjectChannel
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.core.frames import FrameName, OutgoingFrame
from serverless_mpi.job import JobSpec
from serverless_mpi.operation import Operation, Payload
from serverless_mpi.outgoing import EAGER_COPY_BYTES
from serverless_mpi.runtime import Runtime
from tests.harness import GIVE_UP_S, on_each

CHANNELS = ("memory", "queue", "object", "hybrid", "direct")
AROUND_THE_THRESHOLD = range(
    65_300, 65_701
)  # payloads; the frame is 84 bytes longer, a pickle's head about 200
MOST = 200_000
SETTINGS = settings(derandomize=True, deadline=None, max_examples=10)


class Cloud:
    """Queues and objects of one job."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[bytes]] = {}
        self.objects: dict[str, bytearray] = {}


class StubSqs:
    """`aws.sqs.Sqs` on a `Cloud`."""

    prompt = False

    def __init__(self, cloud: Cloud) -> None:
        self._queues = cloud.queues

    def send(self, queue: str, frames: Sequence[bytes]) -> None:
        self._queues.setdefault(queue, deque()).extend(bytes(frame) for frame in frames)

    def receive(self, queue: str, wait_s: int) -> list[Received]:
        waiting = self._queues.get(queue, deque())
        return [
            Received(memoryview(bytearray(waiting.popleft())), "handle")
            for _ in range(min(10, len(waiting)))
        ]

    def delete(self, queue: str, handles: Sequence[str]) -> None:
        pass


class StubStore:
    """`channels.object.Store` on a `Cloud`."""

    def __init__(self, cloud: Cloud) -> None:
        self._objects = cloud.objects

    def each(self, call: Callable[..., object], items: Sequence[object]) -> list[object]:
        return [call(item) for item in items]

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        self._objects[key] = bytearray(b"".join(parts))

    def get(self, key: str) -> Delivery | None:
        found = self._objects.get(key)
        return None if found is None else Delivery(memoryview(bytearray(found)), None)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    def close(self) -> None:
        pass


class Job:
    """Two ranks.  What is put in the background waits at `gate`, so that the bytes have changed before."""

    def __init__(self, channel: str) -> None:
        local = channel in ("memory", "direct")
        spec = JobSpec.new(2, channel, endpoint=None if local else "http://[::1]:1")
        made = {"queues": json.dumps(["q0", "q1"]), "topics": json.dumps(["t"]), "bucket": "b"}
        if channel == "direct":
            made = channels.load(channel).provision(spec)
        spec = replace(spec, settings=made)
        cloud = Cloud()
        self.gate = threading.Event()
        self.runtimes = [Runtime(spec.with_rank(rank)) for rank in range(2)]
        for runtime in self.runtimes:
            self._stub(runtime._channel, cloud)
            if runtime._channel.limits.async_put:
                runtime._channel.put = self._gated(runtime._channel.put)  # type: ignore[method-assign]

    def _stub(self, channel: Channel, cloud: Cloud) -> None:
        if isinstance(channel, HybridChannel):
            self._stub(channel._queue, cloud)
        if isinstance(channel, (HybridChannel, ObjectChannel)):
            channel._store.close()
            channel._store = StubStore(cloud)  # type: ignore[assignment]
        if isinstance(channel, QueueChannel):
            channel._sqs = StubSqs(cloud)  # type: ignore[assignment]

    def _gated(
        self, put: Callable[[Sequence[OutgoingFrame]], None]
    ) -> Callable[[Sequence[OutgoingFrame]], None]:
        def wait_and_put(parcels: Sequence[OutgoingFrame]) -> None:
            assert self.gate.wait(GIVE_UP_S)
            put(parcels)

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
        outgoing = made.runtimes[0]._outgoing
        operation = Operation()
        nbytes = EAGER_COPY_BYTES + over
        data = bytes(nbytes) if constant else bytearray(nbytes)
        name = FrameName(0, 7, 0, 1, 0, 0, 0)
        with made.runtimes[0]._lock:
            outgoing.add([OutgoingFrame((1,), name, (memoryview(data),))], operation, payload)
            ((parcel, held),) = outgoing.queued
            outgoing.queued.clear()
        assert (held is operation) == (operation._holds == 2) == bool(over)
        copied = parcel.parts[0].obj is not data
        assert copied == (not over or (payload is Payload.TRANSIENT and not constant))
