"""queue: a wait is one receive, and a publish that stays throttled is replaced by sends."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from serverless_mpi.channels import queue
from serverless_mpi.channels.base import FrameName, OutgoingFrame
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from tests.channels.fakes import Cloud, busy, cloud, ranks

__all__ = ["cloud"]


@pytest.mark.parametrize(
    "wait_s, polls", [(20.0, [20]), (3.0, [3]), (0.4, [1]), (0.0, [0]), (45.0, [20, 20, 5])]
)
def test_a_wait_without_messages_takes_no_short_polls(
    wait_s: float, polls: list[int], cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS bills each receive, an empty one, too; and a long poll may return a little early."""
    now = 100.0
    asked: list[int] = []
    (channel,) = ranks("queue", 1)
    channel._sqs.prompt = True

    def receive(name: str, longest_s: int) -> list[object]:
        nonlocal now
        asked.append(longest_s)
        now += longest_s + 0.02 * (-1) ** len(asked)
        return []

    monkeypatch.setattr(channel._sqs, "receive", receive)

    def clock() -> float:
        nonlocal now
        now += 0.0001
        return now

    monkeypatch.setattr(queue, "time", SimpleNamespace(monotonic=clock))
    assert channel.get(wait_s, list) == [] and asked == polls
    channel.close()


def test_a_rank_that_only_waits_deletes_what_it_has_received(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    a, b = ranks("queue", 2)
    monkeypatch.setattr(b._deletions, "_clock", lambda: now)
    a.put([OutgoingFrame((1,), FrameName(2, 7, 0, -1, 0, 0, 0), (memoryview(b"x"),))])
    (delivery,) = b.get(0.0, list)
    b.ack([delivery.receipt])
    for now in (110.0, 114.9):
        assert b.get(0.0, list) == [] and not cloud.deleted
    now = 115.1
    assert b.get(0.0, list) == []
    b._pool.close()  # when its requests are done
    assert cloud.deleted == 1
    for channel in (a, b):
        channel.close()


def test_frames_of_a_publish_that_stays_throttled_are_sent(cloud: Cloud) -> None:
    a, b, c = ranks("queue", 3)
    cloud.trouble = lambda action, name: busy(action, name) if action == "publish" else None
    frames = [
        OutgoingFrame((1, 2), FrameName(2, 7, 0, -1, seq, 0, 0), (memoryview(b"%d" % seq),))
        for seq in range(12)
    ]
    a.put(frames)
    for reader in (b, c):
        got = [bytes(one.data) for _ in range(2) for one in reader.get(0.0, list)]
        assert got == [b"%d" % seq for seq in range(12)]
    for channel in (a, b, c):
        channel.close()


@pytest.mark.parametrize(
    "region, endpoint, fewest",
    [
        ("us-east-1", None, 2),
        ("eu-central-1", None, 5),
        ("eu-south-1", None, 17),
        ("eu-south-1", "http://127.0.0.1:1", 2),  # an emulator has no quota
    ],
)
def test_a_channel_knows_its_region_and_an_emulator(
    region: str, endpoint: str | None, fewest: int
) -> None:
    settings = {"queues": json.dumps(["q"] * 64), "topics": '["t"]'}
    spec = JobSpec.new(64, "queue", region=region, endpoint=endpoint, settings=settings)
    channel = queue.QueueChannel(spec.with_rank(0), Meter())
    assert channel._fewest == fewest
    assert channel._sqs.late_s == (5.0 if endpoint is None else None)
    channel.close()
