"""Jobs whose ranks all wait are ended with a report; jobs of which one rank computes are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serverless_mpi.deadlock import detect_deadlock
from tests.harness import ROOT, smpirun

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
def test_a_deadlock_is_reported_rank_by_rank(tmp_path: Path, channel: str) -> None:
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
def test_a_rank_that_computes_is_not_a_deadlock(tmp_path: Path, limit: str) -> None:
    program = tmp_path / "busy.py"
    program.write_text(BUSY)
    job = smpirun("-n", 2, "--channel", "direct", "--deadlock", limit, program)
    assert (job.returncode, job.stderr) == (0, "")


def test_a_deadlock_needs_every_rank_to_confirm_after_the_last_frame(tmp_path: Path) -> None:
    def report(rank: int, at: float, since: float) -> None:
        record = {"at": at, "since": since, "waits": [f"recv {rank}"], "awaited": ["a message"]}
        (tmp_path / f"waits-{rank}.json").write_text(json.dumps(record))

    report(0, at=100.0, since=10.0)
    assert detect_deadlock(tmp_path, [0, 1], 60.0) is None  # rank 1 has not reported: it computes
    report(1, at=100.0, since=50.0)
    assert detect_deadlock(tmp_path, [0, 1], 60.0) is None  # rank 1 received a frame 50 s ago
    report(1, at=110.0, since=50.0)
    assert detect_deadlock(tmp_path, [0, 1], 60.0) is None  # rank 0 may have continued since
    report(0, at=110.0, since=10.0)
    assert detect_deadlock(tmp_path, [0, 1], 60.0) == [
        "rank 0 waits in recv 0, for a message",
        "rank 1 waits in recv 1, for a message",
    ]
    assert detect_deadlock(tmp_path, [], 60.0) is None


MAY_ACT = """
import _thread, select, signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from serverless_mpi.deadlock import _may_act

main = {threading.get_native_id()}

def settle(wanted):
    until = time.monotonic() + 30.0
    while _may_act(main) is not wanted:
        assert time.monotonic() < until, wanted
        time.sleep(0.001)

settle(False)
pool = ThreadPoolExecutor(1)
pool.submit(int).result()
event, gate = threading.Event(), _thread.allocate_lock()
threading.Thread(target=event.wait, daemon=True).start()
_thread.start_new_thread(lambda: gate.acquire() and gate.acquire(), ())
settle(False)  # idle, whoever knows of them

signal.setitimer(signal.ITIMER_REAL, 1000.0)
assert _may_act(main)
signal.setitimer(signal.ITIMER_REAL, 0.0)
assert not _may_act(main)

quit = threading.Event()
for waits in (lambda: quit.wait(1000.0), lambda: select.epoll().poll(), lambda: time.sleep(1000.0)):
    _thread.start_new_thread(waits, ())
    settle(True)
    if waits.__code__.co_names[0] == "quit":
        quit.set()
        settle(False)
"""


def test_only_threads_that_nothing_wakes_are_taken_to_be_stuck() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAY_ACT], capture_output=True, text=True, timeout=60.0, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


IDLE_POOL = """
from concurrent.futures import ThreadPoolExecutor
import numpy
from serverless_mpi import MPI
pool = ThreadPoolExecutor(1)
pool.submit(int).result()
numpy.ones((300, 300)) @ numpy.ones((300, 300))  # the library's threads are idle, too
MPI.COMM_WORLD.recv()
"""

RAW_THREAD = """
import _thread, time
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
if comm.rank == 0:
    def later():
        time.sleep(1.5)
        comm.send("late", 1)
    _thread.start_new_thread(later, ())
    comm.recv(source=1)
else:
    comm.recv(source=0)
    comm.send("answer", 0)
"""


def test_an_idle_pool_does_not_hide_a_deadlock(tmp_path: Path) -> None:
    program = tmp_path / "idle.py"
    program.write_text(IDLE_POOL)
    job = smpirun("-n", 2, "--channel", "direct", "--deadlock", 1, program)
    assert job.returncode == 125, job.stderr


def test_a_thread_outside_of_threading_may_send(tmp_path: Path) -> None:
    program = tmp_path / "raw.py"
    program.write_text(RAW_THREAD)
    job = smpirun("-n", 2, "--channel", "direct", "--stats", "none", "--deadlock", 0.3, program)
    assert (job.returncode, job.stderr) == (0, "")
