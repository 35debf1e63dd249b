"""shared_queue: the ranks of a function have one queue, which the function's process reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.channels.base import FrameName, OutgoingFrame
from serverless_mpi.channels.shared_queue import QueueReader, SharedQueueChannel, addressed, opened
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from tests.channels.fakes import Cloud, busy, cloud

__all__ = ["cloud"]

NODES = (0, 0, 1, 1, 1)
WAIT_S = 60.0  # of what comes within a millisecond on an idle machine


def _spec(rank: int) -> JobSpec:
    settings = {
        "nodes": json.dumps(NODES),
        "queues": json.dumps(["3", "8"]),
        "slots": json.dumps([3, 8]),
        "topics": '["t"]',
    }
    spec = JobSpec.new(len(NODES), "routed", endpoint="http://127.0.0.1:1", settings=settings)
    return replace(spec.with_rank(rank), key=bytes(32), job_id="00112233445566aa")


@contextmanager
def _function(*ranks: int) -> Iterator[list[SharedQueueChannel]]:
    """The channels of a function's ranks, all in this process, and their reader."""
    reader = QueueReader(_spec(ranks[0]), Meter(), ranks)
    channels = []
    for rank in ranks:  # a fork inherits the descriptor; here it is a copy
        fd = os.dup(reader.descriptors[rank])
        spec = _spec(rank)
        channels.append(
            SharedQueueChannel(
                replace(spec, settings={**spec.settings, "reader": str(fd)}), Meter()
            )
        )
    reader.start()
    try:
        yield channels
    finally:
        for channel in channels:
            channel.close()
        reader.close()


def _frame(text: bytes, *dests: int) -> OutgoingFrame:
    return OutgoingFrame(dests, FrameName(2, 7, 0, dests[0], 0, 0, 0), (memoryview(text),))


def _read(channel: SharedQueueChannel, count: int) -> list[bytes]:
    frames: list[bytes] = []
    deadline = time.monotonic() + WAIT_S
    while len(frames) < count and time.monotonic() < deadline:
        frames += [bytes(one.data) for one in channel.get(1.0, list)]
    return frames


def test_each_rank_gets_its_own_frames_and_a_function_one_message_of_each(cloud: Cloud) -> None:
    with _function(0, 1) as (sender, _), _function(2, 3, 4) as (c, d, e):
        sender.put([_frame(b"all", 2, 3, 4)])
        assert [len(messages) for messages in cloud.queues.values()] == [1]
        sender.put([_frame(b"for d", 3)])
        sender.put([_frame(b"x" * 150_000, 4)])
        assert _read(d, 2) == [b"all", b"for d"]
        assert _read(c, 1) == [b"all"] and _read(e, 2) == [b"all", b"x" * 150_000]
        e.put([_frame(b"back", 0, 1, 2)])  # a publish: to two queues
        assert list(cloud.queues) and _read(sender, 1) == [b"back"] == _read(c, 1)
    assert not any(cloud.queues.values())


def test_nobody_waits_and_nothing_is_received(cloud: Cloud) -> None:
    with _function(0, 1) as (sender, _), _function(2, 3) as (c, _):
        asked: list[str] = []
        cloud.trouble = lambda action, name: asked.append(action)
        sender.put([_frame(b"later", 2)])
        assert asked == ["send"]
        received = []
        while not received:  # a look that does not wait has its answer in a later one
            received = c.get(0.0, list)
        assert bytes(received[0].data) == b"later" and "receive" in asked


def test_a_wake_ends_a_wait(cloud: Cloud) -> None:
    with _function(2, 3) as (c, _):
        c.wake()
        assert c.get(WAIT_S, list) == []


@pytest.mark.parametrize("text", [b"", b"s", b"sM" + bytes(100), addressed([0]) + b"for rank 0"])
def test_what_is_not_for_a_rank_of_the_function_goes_to_its_first_one(
    cloud: Cloud, text: bytes
) -> None:
    with _function(2, 3) as (c, d):
        cloud.queues["8"].append(bytearray(text))
        cloud.queues["8"].append(bytearray(addressed([3]) + b"good"))
        assert _read(d, 1) == [b"good"] and len(_read(c, 1)) == 1


def test_a_rank_that_has_ended_does_not_stop_the_others(cloud: Cloud) -> None:
    with _function(0, 1) as (sender, _), _function(2, 3) as (c, d):
        c.close()
        sender.put([_frame(b"both", 2, 3)])
        assert _read(d, 1) == [b"both"]


def test_a_queue_that_cannot_be_read_is_an_error_of_the_ranks_that_wait(cloud: Cloud) -> None:
    with _function(2, 3) as (c, _):
        cloud.trouble = lambda action, name: ChannelError("denied") if action == "receive" else None
        with pytest.raises(ChannelError, match="this function|cannot read its queue: denied"):
            _read(c, 1)


def test_a_busy_queue_is_asked_again(cloud: Cloud) -> None:
    left = [1, 1, 1]
    cloud.trouble = lambda action, name: (
        busy(action, name) if action == "receive" and left and left.pop() else None
    )
    with _function(0, 1) as (sender, _), _function(2, 3) as (c, _):
        sender.put([_frame(b"late", 2)])
        assert _read(c, 1) == [b"late"]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=300), st.binary(min_size=1))
def test_addresses_survive(ranks: list[int], frame: bytes) -> None:
    found = opened(memoryview(addressed(ranks) + frame))
    assert found is not None and found[0] == tuple(ranks) and found[1] == frame


@given(st.binary(max_size=40))
def test_any_message_has_addresses_or_none(message: bytes) -> None:
    found = opened(memoryview(message))
    assert found is None or (found[0] and found[1].nbytes)
