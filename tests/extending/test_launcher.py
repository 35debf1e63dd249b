"""A launcher of another distribution: one file and one entry point (toys/bare_launcher.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import smpirun

TOYS = Path(__file__).parent / "toys"
BARE = ("--platform", "bare", "--channel", "direct")
PROGRAM = """\
from serverless_mpi import MPI
print(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1))
"""


@pytest.fixture
def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TOYS)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def contract(*options: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serverless_mpi.testing", "--launchers", *options]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)


def test_smpirun_uses_it(environ: dict[str, str], program: Path) -> None:
    options = ("-n", 3, "--tag-output", "--algorithm", "bcast=chain", program)
    job = smpirun(*BARE, *options, env=environ)
    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.splitlines()) == [f"[{rank}] {rank} 3" for rank in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        ("--no-alias",),
        ("--stats", "json"),
        ("--trace", "trace.json"),
        ("--deadlock", "5"),
        ("--endpoint", "http://127.0.0.1:1"),
    ],
)
def test_what_it_does_not_honor_is_refused(
    environ: dict[str, str], program: Path, options: tuple[str, ...]
) -> None:
    job = smpirun(*BARE, *options, program, env=environ)
    assert job.returncode == 2 and job.stdout == ""
    assert job.stderr == (f"smpirun: {options[0]} has no effect with --platform bare: omit it\n")


def test_it_is_held_by_the_contract_without_being_listed(environ: dict[str, str]) -> None:
    """The suite also sees that no process and no file is left behind."""
    suite = contract("--only", "bare", environ=environ)
    assert suite.stdout == "platform bare: holds\n", suite.stdout + suite.stderr
    assert suite.returncode == 0


def test_what_needs_an_endpoint_is_skipped_with_its_reason(environ: dict[str, str]) -> None:
    suite = contract("--only", "lambda", environ=environ)
    assert suite.returncode == 0
    assert suite.stdout.startswith("platform lambda: skipped: needs --endpoint, ")


@pytest.mark.parametrize(
    "right, wrong, promise",
    [
        ("timeout_s is not None", "False", "--timeout stops the job with exit code 124"),
        (
            "            for rank in ranks:",
            "            for rank in ():",
            "Ctrl-C stops every rank",
        ),
        (" if spec.rank == 0 else subprocess.DEVNULL", "", "no rank but 0 reads standard input"),
        ("writer.feed(number, data)", "os.write(1, data)", "lines of output are whole"),
        (
            "return code if code > 0 else 128 - code",
            "return 1",
            "the exit code is that of the rank",
        ),
        ('{"timeout_s", ', '{"timeout_s", "trace", ', "--trace writes one file with every rank"),
    ],
)
def test_a_wrong_one_is_caught(
    environ: dict[str, str], tmp_path: Path, right: str, wrong: str, promise: str
) -> None:
    text = (TOYS / "bare_launcher.py").read_text()
    assert text.count(right) == 1
    (tmp_path / "bare_launcher.py").write_text(text.replace(right, wrong))
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{TOYS}"
    code = (
        "from pathlib import Path\n"
        "from serverless_mpi.testing.launchers import PROMISES, check_launcher\n"
        f"titles = [title for title in PROMISES if title.startswith({promise!r})]\n"
        f"check_launcher('bare', Path({str(tmp_path)!r}), promises=titles, patience_s=4.0)\n"
    )
    suite = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120
    )
    assert suite.returncode == 1
    assert f"AssertionError: platform bare: {promise}" in suite.stderr


def test_without_the_extension_its_name_is_refused() -> None:
    job = smpirun(*BARE, "program.py")
    assert job.returncode == 2
    assert job.stderr == "smpirun: unknown platform 'bare'; known: local, lambda\n"
