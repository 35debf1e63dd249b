"""pytest on several ranks: one report per test, failures by rank, hangs, and tests that start ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from serverless_mpi.pytest_plugin import merged, spans
from tests.harness import GIVE_UP_S, ROOT, mpirun

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "serverless_mpi.pytest_plugin")
SMPIRUN = ("-m", "serverless_mpi.launch", "-n", "3", "--channel", "direct")
# The installed package has the plugin already; an editable install of another checkout must not count.
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

HEAD = "import os, pytest\nfrom mpi4py import MPI\ncomm = MPI.COMM_WORLD\n"


def _run(folder: Path, words: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=folder,
        env=ENV,
    )


def _counts(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The numbers in pytest's last line."""
    found = re.findall(r"(\d+) (passed|failed|skipped|xfailed|error)", done.stdout)
    assert found, done.stdout + done.stderr
    return {kind: int(count) for count, kind in found}


EVERYWHERE = """\
def test_sum(): assert comm.allreduce(1) == comm.size == 3
def test_fails_on_1():
    print("printed by", comm.rank)
    assert comm.rank != 1
    assert comm.size
@pytest.mark.skipif(comm.rank == 0, reason="not on 0")
def test_skipped_on_0(): pass
@pytest.mark.skipif(True, reason="nowhere")
def test_skipped(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_parameters(x): comm.barrier()
@pytest.mark.mpi_skip
def test_alone(): assert comm.size == 1
@pytest.mark.mpi_xfail
def test_expected(): assert comm.size == 1
@pytest.mark.mpi(min_size=4)
def test_four(): assert comm.size >= 4
"""


def test_a_test_is_reported_once_with_the_ranks_on_which_it_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HEAD + EVERYWHERE)
    done = _run(tmp_path, [*SMPIRUN, *PYTEST, "test_it.py"])
    assert done.returncode == 1
    assert _counts(done) == {"failed": 1, "passed": 4, "skipped": 3, "xfailed": 1}
    # the line, the summary of ranks, pytest's own summary, which is longer where CI is set
    assert done.stdout.count("assert 1 != 1") in (3, 4)
    assert "---- rank 1 ----" in done.stdout and "---- ranks 0, 2: no failure ----" in done.stdout
    assert "Captured stdout call, rank 1" in done.stdout and "printed by 1" in done.stdout
    assert "printed by 0" not in done.stdout
    assert "FAILED test_it.py::test_fails_on_1 - on rank 1: " in done.stdout


@pytest.mark.skipif(mpirun() is None, reason="the real MPI is not installed")
def test_it_is_the_same_under_mpirun(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HEAD + EVERYWHERE)
    command = [str(mpirun()), "-n", "3", sys.executable, *PYTEST, "test_it.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=tmp_path, env=ENV
    )
    assert _counts(done) == {"failed": 1, "passed": 4, "skipped": 3, "xfailed": 1}
    assert "on rank 1: assert 1 != 1" in done.stdout


STARTS_RANKS = """\
@pytest.mark.mpi(n=2)
def test_two(): assert comm.size == 2
@pytest.mark.mpi(n=2)
def test_bad(tmp_path):
    comm.barrier()
    assert comm.rank == 0, "not good"
@pytest.mark.mpi(n=2)
def test_dies(): comm.rank == 0 or os._exit(5)
@pytest.mark.mpi
def test_any(): assert comm.size == 2
def test_plain(): assert comm.size == 1
"""


def test_a_marked_test_starts_ranks(tmp_path: Path) -> None:
    head = HEAD.replace("mpi4py", "serverless_mpi")
    (tmp_path / "test_it.py").write_text(head + STARTS_RANKS)
    done = _run(tmp_path, [*PYTEST, "--mpi-n", 2, "test_it.py"])
    assert done.returncode == 1 and _counts(done) == {"passed": 3, "failed": 2}
    assert "on rank 1: AssertionError: not good" in done.stdout
    assert "the job of 2 ranks ended with exit code 5" in done.stdout
    done = _run(tmp_path, [*PYTEST, "test_it.py", "-k", "any or plain"])
    assert _counts(done) == {"passed": 1, "failed": 1}  # both on one rank
    done = _run(tmp_path, [*PYTEST, "test_it.py", "--only-mpi", "-k", "plain"])
    assert _counts(done) == {"skipped": 1}


def test_a_test_that_hangs_is_ended_and_so_is_the_session(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        HEAD + "def test_hangs():\n    if comm.rank: comm.recv(source=0)\ndef test_next(): pass\n"
    )
    done = _run(tmp_path, [*SMPIRUN, *PYTEST, "--mpi-timeout", 2, "test_it.py"])
    assert done.returncode != 0 and _counts(done) == {"failed": 1}
    assert "on ranks 1 to 2: serverless_mpi.pytest_plugin.HangError: the test took" in done.stdout
    assert "comm.recv(source=0)" in done.stdout
    assert "the ranks are out of step after test_it.py::test_hangs" in done.stdout


def test_ranks_that_collect_other_tests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        HEAD + "@pytest.mark.parametrize('x', range(1 + (comm.rank == 1)))\ndef test_it(x): pass\n"
    )
    done = _run(tmp_path, [*SMPIRUN, *PYTEST, "test_it.py"])
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "rank 1 collected other tests than rank 0 (1, 2, 1 tests by rank)" in (
        done.stdout + done.stderr
    )


def _report(outcome: str, text: str | None = None) -> pytest.TestReport:
    return pytest.TestReport(
        "test_x.py::test",
        ("test_x.py", 1, "test"),
        {},
        outcome,
        text,
        "call",  # type: ignore[arg-type]
    )


def test_reports_of_ranks_become_one() -> None:
    assert merged([None, None]) is None
    cases = [
        (["passed", "passed"], "passed"),
        (["skipped", "passed"], "passed"),
        (["skipped", "skipped"], "skipped"),
        (["passed", "failed"], "failed"),
        (["failed", "skipped"], "failed"),
    ]
    for outcomes, expected in cases:
        result = merged([_report(outcome, outcome) for outcome in outcomes])
        assert result is not None and result.outcome == expected
    result = merged([_report("failed", "a\nb"), None, _report("failed", "a\nb"), _report("passed")])
    assert result is not None and result.longrepr == (
        "on ranks 0, 2: a\n---- ranks 0, 2 ----\na\nb\n---- ranks 1, 3: no failure ----"
    )


@pytest.mark.parametrize(
    "ranks, text",
    [
        ([3], "rank 3"),
        ([0, 1, 2], "ranks 0 to 2"),
        ([0, 2], "ranks 0, 2"),
        ([0, 1, 4], "ranks 0 to 1, 4"),
    ],
)
def test_ranks_in_words(ranks: list[int], text: str) -> None:
    assert spans(ranks) == text
