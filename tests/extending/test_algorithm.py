"""An algorithm of another distribution: one file and one entry point (toys/chain_bcast.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import smpirun

TOYS = Path(__file__).parent / "toys"
PROGRAM = """\
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
print(comm.rank, comm.bcast("from the root" if comm.rank == 1 else None, root=1))
"""


@pytest.fixture
def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TOYS)}


def contract(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serverless_mpi.testing", "--algorithms"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def test_smpirun_uses_and_explains_it(environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    options = ("-n", 4, "--channel", "direct", "--algorithm", "bcast=chain", "--explain")
    job = smpirun(*options, program, env=environ)
    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.splitlines()) == [f"{rank} from the root" for rank in range(4)]
    row = next(line for line in job.stderr.splitlines() if "bcast:" in line)
    assert row.split()[3:6] == ["chain", "3", "3"]  # name, rounds, messages


def test_it_is_simulated(environ: dict[str, str]) -> None:
    job = smpirun("--simulate", "-n", 50, "--algorithm", "bcast=chain", "bcast:8KB", env=environ)
    assert job.returncode == 0, job.stderr
    row = next(line for line in job.stdout.splitlines() if line.startswith("bcast:8KB"))
    assert row.split()[1:5] == ["50", "chain", "49", "49"]


def test_it_is_held_by_the_contract_without_being_listed(environ: dict[str, str]) -> None:
    suite = contract(environ)
    assert suite.returncode == 0, suite.stdout + suite.stderr
    assert "bcast chain: holds" in suite.stdout


def test_one_that_returns_zeros_is_caught(environ: dict[str, str], tmp_path: Path) -> None:
    right = (TOYS / "chain_bcast.py").read_text()
    zeros = right.replace(
        "    return data\n", "    return memoryview(bytes(sum(p.nbytes for p in parts(data))))\n"
    )
    assert zeros != right
    (tmp_path / "chain_bcast.py").write_text(zeros)
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{TOYS}"
    suite = contract(environ)
    assert suite.returncode == 1
    assert "bcast chain: BROKEN" in suite.stdout and "the operation defines" in suite.stdout


def test_without_the_extension_its_name_is_refused() -> None:
    job = smpirun("-n", 2, "--algorithm", "bcast=chain", "program.py")
    assert job.returncode == 2
    assert job.stderr == (
        "smpirun: bcast has no algorithm 'chain'; known: fan_out, binomial, tree_4, two_level\n"
    )
