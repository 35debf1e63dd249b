"""smpirun --restarts: what starts a job again, what does not, and what the next incarnation finds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.harness import smpirun

WALK = """
import os, sys, time
import numpy as np
from serverless_mpi import MPI, checkpoint
comm = MPI.COMM_WORLD
marks, kills = sys.argv[1], int(sys.argv[2])
state = {"u": np.zeros(50), "generator": np.random.default_rng(comm.rank)}
loop = checkpoint.steps(comm, 60, state, "1 step")
for step in loop:
    state["u"] += state["generator"].random(50) + comm.allreduce(state["u"][0]) / 1e3
    # from a checkpoint of this incarnation on, a rank is killed
    if comm.rank == 1 and loop._saver._record.saved not in (None, loop._opened.record.saved):
        if step % 5 == 4 and len(os.listdir(marks)) < kills:
            open(f"{marks}/{len(os.listdir(marks))}", "w").close()
            os.kill(os.getpid(), 9)
    comm.barrier()
if comm.rank == 0:
    print(state["u"].tobytes().hex(), loop.resumed_at is not None)
comm.barrier()
"""
FENCED = "tests/restarts/fenced.py"


def program(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(text)
    return str(path)


def test_a_killed_rank_comes_back_with_its_state(tmp_path: Path) -> None:
    walk = program(tmp_path, WALK)
    outputs = []
    for kills, channel in ((0, "direct"), (2, "direct"), (1, "hybrid")):
        marks = tmp_path / str(kills)
        marks.mkdir()
        done = smpirun(
            "-n", 2, "--channel", channel, "--restarts", 3, "--stats", "json", walk, marks, kills
        )
        assert done.returncode == 0, done.stderr
        line, stats = done.stdout.splitlines()
        outputs.append(line.split())
        assert json.loads(stats)["ranks"] == 2
        lines = [one for one in done.stderr.splitlines() if "the job starts again" in one]
        assert len(lines) == kills, done.stderr
    assert len({bits for bits, _ in outputs}) == 1
    assert [resumed for _, resumed in outputs] == ["False", "True", "True"]


def test_after_the_last_restart_the_job_fails_with_the_last_reason(tmp_path: Path) -> None:
    text = "import os, sys; print('began'); sys.stdout.flush(); os.kill(os.getpid(), 11)"
    done = smpirun("-n", 1, "--channel", "direct", "--restarts", 2, program(tmp_path, text))
    assert done.returncode == 128 + signal.SIGSEGV
    assert done.stdout == "began\n" * 3
    said = done.stderr.splitlines()
    assert [line.partition("the job starts again ")[2] for line in said] == [
        "(2 of 2 restarts left)",
        "(1 of 2 restarts left)",
        "",
    ]
    assert "was killed by SIGSEGV" in said[2]


@pytest.mark.parametrize("channel", ["direct", "hybrid"])
def test_a_killed_rank_that_comes_back_changes_nothing(
    channel: str, ministack_endpoint: str, tmp_path: Path
) -> None:
    """It has the old key; on hybrid it sends to the queues of the next incarnation as well."""
    folder, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    folder.mkdir()
    undisturbed.mkdir()
    words = ["-n", 2, "--restarts", 1, "--stats", "json", "--channel"]
    expected = smpirun(*words, "direct", FENCED, undisturbed)
    words += [channel] if channel == "direct" else [channel, "--endpoint", ministack_endpoint]
    done = smpirun(*words, FENCED, folder)
    assert done.returncode == 0, done.stderr + (folder / "err").read_text()
    (bits, report), stats = map(json.loads, done.stdout.splitlines())
    assert bits == json.loads(expected.stdout.splitlines()[0])[0]
    assert "the job starts again" in done.stderr
    # what it publishes has no effect, which the program checks
    assert "taken over" in report["publish"] or report["publish"] == "published"
    if channel == "direct":
        # either end may be the first to find that the other has another key
        assert report["old way"].startswith("ChannelError")
        assert report["new addresses"].startswith("ChannelError")
    else:
        assert report["new addresses"] == "sent" and stats["dropped"] > 0


@pytest.mark.parametrize(
    "text, code",
    [
        ("raise SystemExit(7)", 7),
        ("raise ValueError('again and again')", 1),
        ("from serverless_mpi import MPI; MPI.COMM_WORLD.Abort(9)", 9),
    ],
)
def test_an_error_of_the_program_is_not_repeated(text: str, code: int, tmp_path: Path) -> None:
    done = smpirun("-n", 2, "--channel", "direct", "--restarts", 5, program(tmp_path, text))
    assert done.returncode == code
    assert "starts again" not in done.stderr


def test_the_emulator_comes_back(tmp_path: Path) -> None:
    text = f"""
import os, signal
from pathlib import Path
from serverless_mpi import MPI
comm, mark = MPI.COMM_WORLD, Path({str(tmp_path / "mark")!r})
first = comm.bcast(not mark.exists())
if first and comm.rank == 0:
    mark.touch()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes()
            parent = int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"server.py" in words and parent == os.getppid():
            os.kill(int(pid), signal.SIGKILL)
if first:
    comm.recv()
print(comm.allreduce(1))
"""
    done = smpirun("-n", 2, "--channel", "hybrid", "--restarts", 1, program(tmp_path, text))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n2\n"
    assert "the emulator" in done.stderr and "starts again (1 of 1 restarts left)" in done.stderr


def test_the_time_limit_is_for_all_incarnations_together(tmp_path: Path) -> None:
    text = "import os, time; time.sleep(0.6); os.kill(os.getpid(), 9)"
    words = ["--timeout", 2, "--restarts", 50]
    done = smpirun("-n", 1, "--channel", "direct", *words, program(tmp_path, text))
    assert done.returncode == 124, done.stderr


def test_a_trace_is_of_the_last_incarnation(tmp_path: Path) -> None:
    text = f"""
import os
from pathlib import Path
from serverless_mpi import MPI
comm, mark = MPI.COMM_WORLD, Path({str(tmp_path / "mark")!r})
if comm.bcast(not mark.exists()):
    comm.barrier()
    if comm.rank == 0:
        mark.touch()
        os.kill(os.getpid(), 9)
    comm.recv()
comm.barrier()
"""
    out = tmp_path / "trace.json"
    words = ["--restarts", 1, "--trace", out]
    done = smpirun("-n", 2, "--channel", "direct", *words, program(tmp_path, text))
    assert done.returncode == 0, done.stderr
    names = {event["name"] for event in json.loads(out.read_text())["traceEvents"]}
    assert "barrier" in names and "recv" not in names


def test_it_excludes_ft_and_an_inherited_place_is_not_used(tmp_path: Path) -> None:
    done = smpirun("--ft", "--restarts", 1, "--channel", "direct", "true")
    assert done.returncode == 2 and "--restarts and --ft exclude each other" in done.stderr
    text = "import os; print(os.environ.get('SMPI_CHECKPOINTS'))"
    environ = {**os.environ, "SMPI_CHECKPOINTS": "/elsewhere"}
    done = smpirun("--channel", "direct", program(tmp_path, text), env=environ)
    assert done.stdout == "None\n"
