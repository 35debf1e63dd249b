"""The trace of a job: every call closed, every arrow with both its ends, every rank a track."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.harness import smpirun

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
MESSAGES = 3 * (2 * 3) + 3  # point-to-point: two to the right a turn and rank, one to oneself


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
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"rank 0", "rank 1", "rank 2"}

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
    for track in spans.values():  # on one track spans nest: none ends within another that began before
        for begin, end in track:
            assert not any(b < begin < e < end - 0.002 for b, e in track)
    for ends in arrows.values():
        for end in ends:
            assert any(b - 0.002 <= end["ts"] <= e + 0.002 for b, e in spans[end["pid"], end["tid"]])

    names = {event["name"] for event in events if event["ph"] == "X"}
    assert {"Allreduce", "alltoall", "Isend", "Recv", "sendrecv", "barrier", "channel.get"} <= names
    assert "Get_rank" not in names
    if channel == "hybrid":
        assert {"sqs.send", "sqs.receive", "s3.put", "s3.get", "channel.put"} <= names


def test_a_trace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    done = smpirun("-n", 1, "--trace", tmp_path / "no" / "folder" / "t.json", "-m", "this")
    assert done.returncode == 0 and "there is no trace" in done.stderr
