"""Rings of frames in shared memory: `ring.py` alone, and as the short way of `direct`."""

from __future__ import annotations

import collections
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels import direct
from serverless_mpi.channels.base import Delivery, FrameName, OutgoingFrame
from serverless_mpi.channels.direct import JOINED_BYTES, LENGTH, RING, DirectChannel
from serverless_mpi.channels.ring import MOST_BYTES, RING_BYTES, RingReader, RingWriter, usable
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter

pytestmark = pytest.mark.skipif(not usable(), reason="no rings on this processor")

GIVE_UP_S = 30.0  # only reached by a failure
SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)


def pair() -> tuple[RingWriter, RingReader]:
    """A ring, passed as `direct` passes it."""
    writer = RingWriter()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        writer.send(ours, LENGTH.pack(RING))
        first, (fd, bell), _, _ = socket.recv_fds(theirs, LENGTH.size, 2)
    assert first == LENGTH.pack(RING)
    reader = RingReader(fd, bell)
    os.close(fd)
    return writer, reader


def taken(reader: RingReader) -> list[bytes]:
    inbox: list[Delivery] = []
    assert reader.take(inbox)
    return [bytes(delivery.data) for delivery in inbox]


@SETTINGS
@given(st.lists(st.one_of(st.none(), st.integers(0, MOST_BYTES - LENGTH.size)), max_size=80))
def test_a_ring_is_a_queue_with_an_end(steps: list[int | None]) -> None:
    """None takes what is there; a number puts a frame of that length."""
    writer, reader = pair()
    there: collections.deque[bytes] = collections.deque()
    used = 0
    for number, step in enumerate(steps):
        if step is None:
            assert reader.waiting() == bool(there)
            assert taken(reader) == list(there)
            there.clear()
            used = 0
            continue
        frame = bytes([number]) * step
        size = LENGTH.size + (step + 7 & ~7)
        if writer.put(LENGTH.pack(step) + frame):
            there.append(frame)
            used += size
        else:  # full, but for the gap before the end that no record may cross
            assert used + 2 * size > RING_BYTES
    assert taken(reader) == list(there)
    writer.close()
    reader.close()


@SETTINGS
@given(st.integers(0, 2**32))
def test_any_memory_is_frames_or_a_refusal(seed: int) -> None:
    generator = random.Random(seed)
    writer, reader = pair()
    words = writer._words
    for index in range(24, 24 + RING_BYTES // 8):
        words[index] = generator.choice((generator.randrange(5000), generator.randrange(1 << 64)))
    words[0] = 8 * generator.randrange(RING_BYTES)
    inbox: list[Delivery] = []
    for _ in range(3):
        if not reader.take(inbox):
            break
    assert all(delivery.data.nbytes <= MOST_BYTES for delivery in inbox)
    writer.close()
    reader.close()


def test_only_a_reader_that_sleeps_is_woken() -> None:
    writer, reader = pair()
    writer.put(LENGTH.pack(1) + b"a")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(reader.bell)
    reader.sleep(True)
    writer.put(LENGTH.pack(1) + b"a")
    assert os.eventfd_read(reader.bell) == 1
    reader.sleep(False)
    writer.put(LENGTH.pack(1) + b"a")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(reader.bell)
    writer.close()
    reader.close()


def test_other_memory_is_no_ring() -> None:
    fd = os.memfd_create("small")
    os.ftruncate(fd, 64)
    with pytest.raises(OSError):
        RingReader(fd, -1)
    os.close(fd)


def channels(size: int = 2) -> list[DirectChannel]:
    spec = JobSpec.new(size, "direct")
    spec = replace(spec, settings=DirectChannel.provision(spec))
    return [DirectChannel(spec.with_rank(rank), Meter()) for rank in range(size)]


def frame(body: bytes, seq: int = 0) -> OutgoingFrame:
    return OutgoingFrame((1,), FrameName(0, 7, 0, 1, seq, 0, 0), (memoryview(body),))


def received(channel: DirectChannel, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        deliveries = channel.get(GIVE_UP_S, list)
        assert deliveries, "frames are missing"
        found += [bytes(delivery.data) for delivery in deliveries]
    return found


def end(made: list[DirectChannel]) -> None:
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(DirectChannel.close, made))


def test_what_a_ring_cannot_hold_takes_the_socket() -> None:
    a, b = made = channels()
    generator = random.Random(1)
    sizes = [generator.choice((100, 3000, JOINED_BYTES, JOINED_BYTES + 1)) for _ in range(100)]
    bodies = [number.to_bytes(4, "little") + bytes(size - 4) for number, size in enumerate(sizes)]
    for number, body in enumerate(bodies):  # nobody reads: the ring fills, and then the socket
        a.put([frame(body, number)])
    assert sorted(received(b, len(bodies))) == sorted(bodies)
    assert a.meter.snapshot()["direct.put"]["nbytes"] == sum(sizes)
    end(made)


def test_no_frame_waits_for_a_reader_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that always sleep at once hand a frame to and fro."""
    monkeypatch.setattr(direct, "SPIN_S", 0.0)
    a, b = made = channels()

    def turns(channel: DirectChannel, peer: int, begins: bool) -> None:
        for number in range(1000):
            if begins or number:
                name = FrameName(0, 7, 1 - peer, peer, number, 0, 0)
                channel.put([OutgoingFrame((peer,), name, (memoryview(b"turn"),))])
            assert received(channel, 1) == [b"turn"]
        if not begins:
            name = FrameName(0, 7, 1 - peer, peer, 1000, 0, 0)
            channel.put([OutgoingFrame((peer,), name, (memoryview(b"turn"),))])

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(turns, a, 1, True), pool.submit(turns, b, 0, False)]
        for run in runs:
            run.result(timeout=GIVE_UP_S)
    end(made)


def test_frames_that_were_written_before_the_end_arrive() -> None:
    a, b = made = channels()
    for number in range(20):
        a.put([frame(bytes([number]), number)])
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(a.close)
        assert received(b, 20) == [bytes([number]) for number in range(20)]
        closing.result(timeout=GIVE_UP_S)
    end(made)


def test_rings_leave_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = channels(3)
    for channel in made[1:]:
        name = FrameName(0, 7, channel.spec.rank, 0, 0, 0, 0)
        channel.put([OutgoingFrame((0,), name, (memoryview(b"x"),))])
    received(made[0], 2)
    end(made)
    assert len(os.listdir("/proc/self/fd")) == before
