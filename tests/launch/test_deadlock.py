"""Jobs whose ranks all wait are ended with a story; jobs of which one computes are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serverless_mpi.deadlock import verdict
from tests.harness import smpirun

STUCK = """
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
if comm.rank == 0:
    comm.recv(source=1, tag=7)
elif comm.rank == 1:
    comm.barrier()
elif comm.rank == 2:
    second = comm.Dup()
    second.name = "second"
    second.irecv(source=0, tag=3).wait()
"""

BUSY = """
import time
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
if comm.rank == 0:
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        pass
    comm.send("late", dest=1)
elif comm.rank == 1:
    assert comm.recv(source=0) == "late"
"""


@pytest.mark.parametrize("channel", ["direct", "queue"])
def test_a_deadlock_is_told_rank_by_rank(tmp_path: Path, channel: str) -> None:
    program = tmp_path / "stuck.py"
    program.write_text(STUCK)
    job = smpirun("-n", 4, "--channel", channel, "--deadlock", 1, program)
    assert job.returncode == 125, job.stderr
    assert "every rank has waited for 1 s" in job.stderr
    lines = {
        line.strip().split(" waits")[0]: line
        for line in job.stderr.splitlines()
        if " waits in " in line
    }
    assert sorted(lines) == ["rank 0", "rank 1", "rank 2"]
    assert (
        "Intracomm.recv(source=1, tag=7) on MPI_COMM_WORLD at" in lines["rank 0"]
        and "stuck.py:5" in lines["rank 0"]
    )
    assert "a message from rank 1 with tag 7 on MPI_COMM_WORLD" in lines["rank 0"]
    assert (
        "Intracomm.barrier() on MPI_COMM_WORLD at" in lines["rank 1"]
        and "stuck.py:7" in lines["rank 1"]
    )
    assert "the collective call of rank" in lines["rank 1"]
    assert (
        "Request.wait() at" in lines["rank 2"]
        and "a message from rank 0 with tag 3 on second" in lines["rank 2"]
    )
    assert "rank 3 has ended" in job.stderr


@pytest.mark.parametrize("limit", ["0.3", "0"])
def test_a_rank_that_computes_is_no_deadlock(tmp_path: Path, limit: str) -> None:
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    job = smpirun("-n", 2, "--channel", "direct", "--deadlock", limit, program)
    assert (job.returncode, job.stderr) == (0, "")


def test_the_verdict_needs_every_rank_to_confirm_after_the_last_frame(tmp_path: Path) -> None:
    def tell(rank: int, at: float, since: float) -> None:
        record = {"at": at, "since": since, "waits": [f"recv {rank}"], "awaited": ["a message"]}
        (tmp_path / f"waits-{rank}.json").write_text(json.dumps(record))

    tell(0, at=100.0, since=10.0)
    assert verdict(tmp_path, [0, 1], 60.0) is None  # rank 1 says nothing: it computes
    tell(1, at=100.0, since=50.0)
    assert verdict(tmp_path, [0, 1], 60.0) is None  # rank 1 heard something 50 s ago
    tell(1, at=110.0, since=50.0)
    assert verdict(tmp_path, [0, 1], 60.0) is None  # rank 0 may have gone on meanwhile
    tell(0, at=110.0, since=10.0)
    assert verdict(tmp_path, [0, 1], 60.0) == [
        "rank 0 waits in recv 0, for a message",
        "rank 1 waits in recv 1, for a message",
    ]
    assert verdict(tmp_path, [], 60.0) is None
