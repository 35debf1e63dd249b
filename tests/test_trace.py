"""The trace of a job: every call is closed, every arrow has both ends, every rank has a track."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi import trace
from tests.harness import run, smpirun

PROGRAM = """
from serverless_mpi import MPI
import numpy as np
comm = MPI.COMM_WORLD
right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
for turn in range(3):
    comm.sendrecv(turn, right, source=left)
    comm.Allreduce(np.ones(100), np.zeros(100))
    comm.alltoall([bytes(10)] * comm.size)
    request, room = comm.Isend(np.ones(60_000), right, 7), np.zeros(60_000)
    comm.Recv(room, left, 7)
    request.wait()
comm.send("to myself", comm.rank, 3)
comm.recv(source=comm.rank, tag=3)
comm.isend("nobody receives this", right, 99).wait()
comm.barrier()
"""
MESSAGES = 3 * (
    2 * 3
)  # point-to-point: two to the right a turn and rank; the one to oneself has no arrow


def load(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


@pytest.mark.parametrize("channel", ["direct", "hybrid"])
def test_trace(channel: str, tmp_path: Path) -> None:
    program, file = tmp_path / "program.py", tmp_path / "trace.json"
    program.write_text(PROGRAM)
    done = smpirun("-n", 3, "--channel", channel, "--trace", file, program)
    assert done.returncode == 0 and "3 ranks" in done.stderr, done.stderr
    events = load(file)
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        "rank 0",
        "rank 1",
        "rank 2",
    }

    arrows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            arrows[event["id"]].append(event)
    for ends in arrows.values():
        start, finish = sorted(ends, key=lambda end: end["ph"] == "f")
        assert (start["ph"], finish["ph"]) == ("s", "f") and start["ts"] <= finish["ts"]
    assert len(arrows) > MESSAGES

    spans: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            spans[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for (
        track
    ) in spans.values():  # on one track spans nest: none ends within another that began before
        for begin, end in track:
            assert not any(b < begin < e < end - 0.002 for b, e in track)
    for ends in arrows.values():
        for end in ends:
            assert any(
                b - 0.002 <= end["ts"] <= e + 0.002 for b, e in spans[end["pid"], end["tid"]]
            )

    names = {event["name"] for event in events if event["ph"] == "X"}
    assert {"Allreduce", "alltoall", "Isend", "Recv", "sendrecv", "barrier", "channel.get"} <= names
    assert "Get_rank" not in names
    if channel == "hybrid":
        assert {"sqs.send", "sqs.receive", "s3.put", "s3.get", "channel.put"} <= names


def test_a_trace_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    done = smpirun("-n", 1, "--trace", tmp_path / "no" / "folder" / "t.json", "-m", "this")
    assert done.returncode == 0 and "there is no trace" in done.stderr


def leave(folder: Path, rank: int, offset: int, events: list[Any]) -> None:
    recorder = trace.Recorder()
    recorder.offset = offset
    recorder.events.extend(events)
    recorder.write(folder, rank)


def arrow(folder: Path) -> tuple[float, float]:
    """When the one message of a trace left and arrived, in us since its first event."""
    out = io.StringIO()
    trace.merge(folder, out)
    ends = {
        event["ph"]: event["ts"]
        for event in json.loads(out.getvalue())["traceEvents"]
        if event["ph"] in "sf"
    }
    return ends["s"], ends["f"]


@pytest.mark.parametrize(
    ("apart_ns", "takes_us"),
    [
        (400_000, 2.0),  # no more than setting a clock takes: one clock
        (5_000_000, 5_002.0),  # another machine's time of day
        (
            -5_000_000,
            0.0,
        ),  # one that is behind: what seems to come before it left comes at that moment
    ],
)
def test_clocks_of_ranks(apart_ns: int, takes_us: float, tmp_path: Path) -> None:
    leave(tmp_path, 0, 10**18, [(trace.SENT, 0, 7, 3, 0, (1,), 8, 5, 1000)])
    leave(tmp_path, 1, 10**18 + apart_ns, [(trace.TAKEN, (7, 0, 3, 8), 0, 5, 3000)])
    left, arrived = arrow(tmp_path)
    assert arrived - left == pytest.approx(takes_us)


def test_hooks_come_and_go() -> None:
    """Tracing replaces no function, and what is recorded stops with `record(None)`."""

    def body(world: Any) -> list[tuple[int, ...]]:
        runtime, recorder = world._runtime, trace.Recorder()
        channel_attributes = set(vars(runtime._channel))
        runtime.record(recorder)
        world.sendrecv("text", 1 - world.rank, source=1 - world.rank)
        world.barrier()
        runtime.record(None)
        recorded = list(recorder.events)
        world.barrier()
        assert list(recorder.events) == recorded
        assert set(vars(runtime._channel)) == channel_attributes
        assert "icollective" not in vars(runtime)
        kinds = {event[0] for event in recorded}
        assert kinds == {trace.SPAN, trace.SENT, trace.TAKEN, trace.WHOLE}
        return recorded

    for recorded in run(2, body):
        assert sum(event[0] == trace.TAKEN for event in recorded) == 1
