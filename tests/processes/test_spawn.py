"""Spawned jobs, and jobs that meet, as real processes."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import GIVE_UP_S, ROOT, assert_ends, interrupt, smpirun

HERE = Path(__file__).parent
SPAWNING, MEETING = HERE / "spawning.py", HERE / "meeting.py"


def _python(*words: object) -> subprocess.CompletedProcess[str]:
    """A program without a launcher."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT)


@pytest.mark.parametrize("part", ["groups", "progress"])
def test_ranks_spawn_a_job(part: str) -> None:
    job = smpirun("-n", 2, "--channel", "direct", SPAWNING, part)
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


def test_a_program_without_a_launcher_spawns_several_programs() -> None:
    job = _python(SPAWNING, "several")
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


def test_ranks_of_any_channel_spawn() -> None:
    job = smpirun("-n", 2, "--channel", "hybrid", SPAWNING, "groups")
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


FAILING = """
import sys, time
from serverless_mpi import MPI
child = "from serverless_mpi import MPI; MPI.Comm.Get_parent(); raise SystemExit(7 * MPI.COMM_WORLD.rank)"
MPI.COMM_SELF.Spawn(sys.executable, ["-c", child], 2)
time.sleep(600)
"""


def test_a_program_that_raises_does_not_wait_for_what_it_has_spawned() -> None:
    child = "from serverless_mpi import MPI; MPI.Comm.Get_parent().recv()"
    program = (
        f"import sys; from serverless_mpi import MPI;"
        f"MPI.COMM_SELF.Spawn(sys.executable, ['-c', {child!r}]); raise KeyError('mine')"
    )
    job = _python("-c", program)
    assert job.returncode == 1 and "KeyError: 'mine'" in job.stderr


def test_a_spawned_rank_that_fails_ends_all_with_its_exit_code() -> None:
    job = smpirun("-n", 1, "--channel", "direct", sys.executable, "-c", FAILING)
    assert job.returncode == 7
    assert "rank 1" in job.stderr and "exit code 7" in job.stderr


SLEEPING = """
import os, sys, time
from serverless_mpi import MPI
print(os.getpid(), flush=True)
if len(sys.argv) == 1:
    MPI.COMM_SELF.Spawn(sys.executable, [__file__, "child"], 2).recv()
MPI.Comm.Get_parent()
time.sleep(600)
"""


def test_ctrl_c_stops_spawned_ranks_too(tmp_path: Path) -> None:
    program = tmp_path / "sleeping.py"
    program.write_text(SLEEPING)
    interrupt(3, "-n", 1, "--channel", "direct", program)


def test_spawned_ranks_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "sleeping.py"
    program.write_text(SLEEPING)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        parent.kill()
        parent.stdout.read()  # to its end: the launcher and the ranks have ended
    for pid in pids:
        assert_ends(pid)


def test_a_job_heals_although_spawned_ranks_die_too() -> None:
    job = smpirun("--ft", "-n", 3, "--channel", "direct", HERE / "healing.py", 2, 1)
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr
    assert job.stderr.count("the other ranks go on") == 2


def test_two_jobs_meet_at_a_published_port() -> None:
    service = f"test-{secrets.token_hex(8)}"
    words = [sys.executable, "-m", "serverless_mpi.launch", "--channel", "direct"]
    jobs = [
        subprocess.Popen(
            [*words, "-n", size, MEETING, role, service],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for size, role in (("2", "accept"), ("1", "connect"))
    ]
    out = [job.communicate(timeout=GIVE_UP_S) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], out
    assert sorted(out[0][0].splitlines()) == ["accept 0 0 3 0", "accept 1 1 3 0"]
    assert out[1][0] == "connect 0 2 3 1\n"
