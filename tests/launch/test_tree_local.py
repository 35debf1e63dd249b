"""smpirun --branching: ranks start as a tree, and a job ends as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serverless_mpi.launch import tree
from tests.harness import interrupt, smpirun

DIRECT = ("--channel", "direct")
STARTS = """
import json
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])  # when this process was started
found = comm.gather(ticks)
if comm.rank == 0:
    print(json.dumps(found))
"""


@pytest.fixture
def script(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> Path:
        path = tmp_path / "prog.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "size, branching, channel",
    [(7, 2, "direct"), (6, 1, "direct"), (5, 8, "direct"), (6, 2, "queue"), (1, 3, "direct")],
)
def test_children_start_after_their_parents(
    script, size: int, branching: int, channel: str
) -> None:  # type: ignore[no-untyped-def]
    done = smpirun("-n", size, "--channel", channel, "--branching", branching, script(STARTS))
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)
    for rank in range(1, size):
        parent = tree.parent(rank, branching)
        assert parent is not None and started[parent] <= started[rank]
    deepest = size - 1
    assert (
        size == 1 or started[0] < started[deepest]
    )  # an interpreter takes more than a tick to begin


def test_ranks_that_end_at_once_leave_no_child_behind(script) -> None:  # type: ignore[no-untyped-def]
    done = smpirun(
        "-n",
        7,
        *DIRECT,
        "--branching",
        2,
        script("import os\nprint(os.environ['SMPI_RANK'], 'SMPI_BEGUN' in os.environ)\n"),
    )
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == [
        f"{rank} False" for rank in range(7)
    ]


@pytest.mark.parametrize("failing", [0, 2, 6])
def test_the_first_failing_rank_ends_the_job(script, failing: int) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        f"import sys\nfrom serverless_mpi import MPI\nc = MPI.COMM_WORLD\nif c.rank == {failing}: sys.exit(7)\nc.recv(source=c.rank)\n"
    )
    done = smpirun("-n", 7, *DIRECT, "--branching", 2, prog)
    assert done.returncode == 7 and f"rank {failing}" in done.stderr


def test_ctrl_c_stops_everything(script) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        "import os\nfrom serverless_mpi import MPI\nprint(os.getpid(), flush=True)\nMPI.COMM_WORLD.recv(source=MPI.COMM_WORLD.rank)\n"
    )
    interrupt(3, "-n", "3", *DIRECT, "--branching", "1", prog)


def test_an_invalid_branching_is_reported() -> None:
    done = smpirun("-n", 2, *DIRECT, "--branching", 2, "/bin/true")
    assert done.returncode == 2 and "--branching works with Python programs only" in done.stderr
    done = smpirun("-n", 2, *DIRECT, "--branching", 0, "x.py")
    assert (
        done.returncode == 2
        and "--branching: '0' is not a whole number of at least 1" in done.stderr
    )
