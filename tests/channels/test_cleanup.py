"""Frames that were read are deleted while the job runs, and a failed delete does not end it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.aws.retry import Patience
from serverless_mpi.aws.workers import Workers
from serverless_mpi.channels import object
from serverless_mpi.channels.base import SHARED, ExpectedFrame, FrameName, OutgoingFrame
from serverless_mpi.channels.cleanup import (
    MAX_REPORTED,
    Deletions,
    ReadReports,
    SharedObjects,
    decode_report,
    encode_report,
)
from serverless_mpi.errors import ChannelError
from serverless_mpi.runtime import Runtime
from tests.channels.fakes import Cloud, busy, cloud, denied, job, ranks
from tests.harness import on_each

__all__ = ["cloud"]
KEY = secrets.token_bytes(32)


class AtOnce(Workers):
    """Does what it is given in the caller's thread."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class Scene:
    """Deletions with a clock that the test moves, and a service that fails as it says."""

    def __init__(self, **more: Any) -> None:
        self.now = 0.0
        self.asked: list[list[str]] = []
        self.fails: set[str] = set()
        self.error: Exception | None = None
        self.gone: list[str] = []
        self.deletions = Deletions(
            self._delete,
            3,
            AtOnce(1),
            Patience(float("inf"), lambda: self.now, lambda least, most: most),
            lambda: self.now,
            gone=self.gone.extend,
            **more,
        )

    def _delete(self, names: Sequence[str]) -> Sequence[str]:
        self.asked.append(list(names))
        if self.error is not None:
            raise self.error
        return [name for name in names if name in self.fails]


def test_deletes_are_gathered_by_number_bytes_and_time() -> None:
    scene = Scene(most_bytes=100, most_s=20.0)
    add = scene.deletions.add
    add("abcd")
    assert scene.asked == [["a", "b", "c"]]
    add("e", 99)
    assert len(scene.asked) == 1
    add("f", 1)
    assert scene.asked[1:] == [["d", "e", "f"]]
    add("g")
    scene.now = 20.0
    add("")
    assert len(scene.asked) == 2
    scene.now = 20.1
    add("")
    assert scene.asked[2:] == [["g"]] and scene.deletions.close() == 0
    assert "".join(scene.gone) == "abcdefg"


def test_what_was_not_deleted_is_tried_again_later_and_with_growing_pauses() -> None:
    scene = Scene()
    scene.fails = {"b"}
    scene.deletions.add("abc")
    assert scene.gone == ["a", "c"]
    scene.deletions.add("de")
    assert len(scene.asked) == 1  # not at once
    scene.now = 0.06
    scene.deletions.add("f")
    assert scene.asked[1:] == [["d", "e", "f"]] and scene.gone == list("acdef")  # and "b" waits
    scene.fails = set()
    scene.deletions.add("gh")
    assert scene.asked[2:] == [["b", "g", "h"]]
    assert scene.deletions.close() == 0


@pytest.mark.parametrize("error", [denied("delete", "x"), ValueError("a bug")])
def test_deletes_that_never_succeed_raise_nothing_and_are_counted(error: Exception) -> None:
    scene = Scene()
    scene.error = error
    for _ in range(5):
        scene.deletions.add("abc")
        scene.now += 100
    asked = len(scene.asked)
    assert scene.deletions.close() == 15 and scene.deletions.trouble is error and not scene.gone
    assert len(scene.asked) <= asked + 5  # each at most once more


@pytest.mark.parametrize(
    "error, times", [(None, 2), (busy("delete", "x"), 2), (denied("d", "x"), 1)]
)
def test_the_last_attempt_is_made_again_where_that_may_help(
    error: Exception | None, times: int
) -> None:
    scene = Scene()
    scene.error, scene.fails = error, {"a"}
    scene.deletions.add("a")
    assert scene.deletions.close() == 1 and len(scene.asked) == times


def test_names_that_fail_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless_mpi.channels.cleanup.MAX_FAILED", 5)
    scene = Scene()
    scene.error = denied("delete", "x")
    for _ in range(4):
        scene.deletions.add("abc")
    assert len(scene.deletions._failed) == 5 and scene.deletions.close() == 12


def shared_key(seq: int, source: int = 2, context: int = 7) -> str:
    return FrameName(2, context, source, SHARED, seq, 5, 0).key()


def test_an_object_is_finished_when_every_reader_has_reported_it() -> None:
    shared = SharedObjects(100)
    assert not shared.put("x", (1, 2), 60) and shared.put("y", (1,), 40)
    assert not shared.put("z", (1,), 99)
    assert shared.reported(1, ["x", "y", "unknown"]) == ["y"]
    assert shared.reported(1, ["x", "y"]) == [] and shared.reported(3, ["x"]) == []
    assert shared.reported(2, ["x"]) == ["x"]
    shared.look_again()
    assert shared.put("v", (1,), 0)


def test_a_reader_reports_after_so_many_bytes_and_short_programs_never() -> None:
    reports = ReadReports(4, 100)
    first, second, third = (shared_key(seq) for seq in range(3))
    assert reports.read(first, 99) is None and reports.read(shared_key(0, 3), 99) is None
    assert reports.read("r/000004/0000000000000007/000002/0/000000000000.000000", 1000) is None
    report = reports.read(second, 1)
    assert report == ("a/000002/000004/000000", [first, second])
    reports.not_reported(*report)
    assert reports.read(third, 99) is None  # not at once
    assert reports.read(first, 1) == ("a/000002/000004/000001", [first, second, third, first])


def test_the_keys_of_a_report_are_bounded() -> None:
    reports = ReadReports(4, 1 << 40)
    made = [reports.read(shared_key(seq), 1) for seq in range(2 * MAX_REPORTED)]
    due = [report for report in made if report is not None]
    assert [len(keys) for _, keys in due] == [MAX_REPORTED] * 2
    for name, keys in due:  # nor do reports that cannot be put gather without end
        reports.not_reported(name, keys)
    report = reports.read(shared_key(0), 1)
    assert report is not None and len(report[1]) == MAX_REPORTED


def test_reports_are_authenticated() -> None:
    name, keys = "a/000002/000004/000007", [shared_key(0), shared_key(1)]
    data = encode_report(name, keys, KEY)
    assert decode_report(name, memoryview(data), KEY) == (4, keys)
    for other in ("a/000002/000003/000007", "a/000001/000004/000007", "a/000002/000004/000008"):
        assert decode_report(other, memoryview(data), KEY) is None
    assert decode_report(name, memoryview(data), bytes(32)) is None
    assert decode_report("a/2/4/7", memoryview(encode_report("a/2/4/7", keys, KEY)), KEY) is None


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_no_report_raises(data: bytes, place: int, change: int) -> None:
    name = "a/000002/000004/000007"
    assert decode_report(name, memoryview(data), KEY) is None
    good = bytearray(encode_report(name, [shared_key(0)], KEY))
    good[place % len(good)] ^= change
    assert decode_report(name, memoryview(bytes(good)), KEY) is None


# --- whole channels ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["object", "hybrid"])
def test_two_hundred_allreduces_keep_few_bytes(
    name: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object, "EMULATOR_LEAST_BYTES", 4 << 20)
    monkeypatch.setattr(object, "EMULATOR_KEPT_BYTES", 0)
    spec = job(name, 3)
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(3)]

    def body(comm: Any) -> None:
        own_part = np.full(1 << 17, comm.rank + 1.0)  # 1 MiB
        total = np.empty_like(own_part)
        for _ in range(200):
            comm.Allreduce(own_part, total)
            assert total[0] == total[-1] == 6.0

    on_each(runtimes, body)
    for runtime in runtimes:
        runtime.finalize()
    # kept: what readers have not reported, what the rank that put has not looked for, for each of 3 ranks
    assert 3 << 20 < cloud.most_bytes < 40 << 20


@pytest.mark.parametrize("name", ["object", "hybrid"])
def test_a_rank_that_only_sends_deletes_too(
    name: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object, "Workers", AtOnce)
    monkeypatch.setattr(object, "EMULATOR_LEAST_BYTES", 2 << 20)
    monkeypatch.setattr(object, "EMULATOR_KEPT_BYTES", 0)
    a, b, c = ranks(name, 3)
    body = memoryview(secrets.token_bytes(512 << 10))
    for seq in range(100):
        several = OutgoingFrame((1, 2), FrameName(2, 7, 0, SHARED, seq, 0, 0), (body,))
        own = OutgoingFrame((1,), FrameName(0, 7, 0, 1, seq, 0, 0), (body,))
        a.put([several, own])
        for reader, frames in ((b, [several, own]), (c, [several])):
            got = reader.get(
                30.0, lambda frames=frames: [ExpectedFrame(*one.name) for one in frames]
            )
            assert [one.data.nbytes for one in got] == [body.nbytes] * len(frames)
            reader.ack([one.receipt for one in got if one.receipt is not None])
    assert cloud.most_bytes < 12 << 20 and cloud.deleted > 150
    for channel in (a, b, c):
        channel.close()


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
@pytest.mark.parametrize("trouble", [busy, denied])
def test_deletes_that_fail_do_not_end_a_job(
    name: str, trouble: Any, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(object, "EMULATOR_LEAST_BYTES", 1)
    monkeypatch.setattr(object, "EMULATOR_KEPT_BYTES", 0)
    cloud.trouble = lambda action, name: (
        trouble(action, name) if action == "delete" or "/a/" in name else None
    )
    runtimes = [Runtime(job(name, 2).with_rank(rank)) for rank in range(2)]
    spec = runtimes[0].spec
    runtimes = [runtimes[0], Runtime(spec.with_rank(1))]

    def body(comm: Any) -> None:
        for number in range(30):
            if comm.rank == 0:
                comm.send(bytes(300_000 if number % 3 else 3), 1)
            else:
                assert len(comm.recv()) == (300_000 if number % 3 else 3)
            assert comm.allreduce(number) == 2 * number

    on_each(runtimes, body)
    for runtime in runtimes:
        runtime.finalize()
    counts = [runtime.meter.snapshot() for runtime in runtimes]
    left = sum(
        row["messages"] for rows in counts for key, row in rows.items() if "NotDeleted" in key
    )
    assert left >= 30
    said = capsys.readouterr().err
    assert "could not be deleted; the results are not affected" in said
    assert said.count("\n") <= 2 * (2 if name == "hybrid" else 1)


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_a_poll_that_finds_the_service_busy_has_found_nothing_yet(name: str, cloud: Cloud) -> None:
    a, b = ranks(name, 2)
    poller = b._queue if name == "hybrid" else b
    poller._patience = Patience(60.0, lambda: 0.0, lambda least, most: 0.0)
    frame = OutgoingFrame((1,), FrameName(0, 7, 0, 1, 0, 0, 0), (memoryview(b"frame"),))
    a.put([frame])
    asked = 0

    def trouble(action: str, name: str) -> Exception | None:
        nonlocal asked
        asked += action in ("receive", "get", "list")
        return busy(action, name) if 0 < asked <= 6 else None

    cloud.trouble = trouble
    wanted = [ExpectedFrame(*frame.name)]
    assert b.get(0.0, lambda: wanted) == [] and asked == 1
    (got,) = b.get(30.0, lambda: wanted)
    assert bytes(got.data) == b"frame" and asked == 7
    cloud.trouble = lambda action, name: busy(action, name)
    poller._patience.budget_s = -1.0  # the time is over
    with pytest.raises(ChannelError, match="SlowDown"):
        b.get(30.0, lambda: [ExpectedFrame(0, 7, 0, 1, 1, 0, 0)])
    cloud.trouble = lambda action, name: None
    for channel in (a, b):
        channel.close()


def test_one_busy_object_does_not_hold_back_another(cloud: Cloud) -> None:
    a, b = ranks("object", 2)
    frames = [
        OutgoingFrame((1,), FrameName(0, 7, 0, 1, seq, 0, 0), (memoryview(b"%d" % seq),))
        for seq in range(3)
    ]
    a.put(frames)
    cloud.trouble = lambda action, name: busy(action, name) if name.endswith("1.000000") else None
    got = b.get(30.0, lambda: [ExpectedFrame(*one.name) for one in frames])
    assert [bytes(one.data) for one in got] == [b"0", b"2"]
    for channel in (a, b):
        channel.close()


@pytest.mark.parametrize("name", ["object", "hybrid"])
def test_what_was_got_and_not_acknowledged_can_be_got_again(name: str, cloud: Cloud) -> None:
    """An exception of a signal handler may come between `get` and whoever called it."""
    a, b = ranks(name, 2)
    frame = OutgoingFrame((1,), FrameName(0, 7, 0, 1, 0, 0, 0), (memoryview(bytes(1 << 20)),))
    a.put([frame])
    sent = list(cloud.queues["1"])
    assert len(b.get(30.0, lambda: [ExpectedFrame(*frame.name)])) == 1
    cloud.queues["1"] = sent  # as SQS does after the visibility timeout
    (got,) = b.get(30.0, lambda: [ExpectedFrame(*frame.name)])
    assert got.data.nbytes == 1 << 20
    b.ack([got.receipt])
    assert b.get(0.0, lambda: [ExpectedFrame(*frame.name)]) == []
    for channel in (a, b):
        channel.close()
    assert not cloud.objects


def test_a_poll_that_cannot_be_woken_ends_by_itself(cloud: Cloud) -> None:
    (channel,) = ranks("queue", 1)
    channel._sqs.prompt = True
    cloud.trouble = lambda action, name: busy(action, name) if action == "send" else None
    channel.wake()
    cloud.trouble = lambda action, name: denied(action, name) if action == "send" else None
    with pytest.raises(ChannelError, match="AccessDenied"):
        channel.wake()
    channel.close()
