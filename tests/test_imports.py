"""The cost of imports: the hot path imports no boto3, no SciPy and no emulator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness import ROOT

HEAVY = ("boto3", "botocore", "scipy", "sklearn", "ministack", "moto", "mpi4py")


@pytest.mark.parametrize(
    "program",
    [
        "import serverless_mpi",
        "from serverless_mpi import MPI; MPI.COMM_WORLD.allreduce(1)",
        "import serverless_mpi.channels.hybrid",
        "import serverless_mpi.sparse, serverless_mpi.inference.engine",
    ],
)
def test_the_hot_path_is_light(program: str) -> None:
    message = f"{program}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", message], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


def test_the_launcher_of_a_direct_job_does_not_wait_for_what_only_others_need() -> None:
    modules = (
        "serverless_mpi.launch.cli, serverless_mpi.launch.local, serverless_mpi.channels.direct"
    )
    slow = (
        "numpy",
        "http.client",
        "serverless_mpi.collectives",
        "serverless_mpi.profile",
        "importlib.metadata",
    )
    told = f"import {modules}, sys\nprint([name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


def test_started_plainly_it_is_a_job_of_one() -> None:
    program = "from serverless_mpi import MPI; c = MPI.COMM_WORLD; print(c.rank, c.size, c.allgather('x'))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "0 1 ['x']\n" and done.stderr == ""
