"""Executors on real ranks, on spawned ones, and on threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serverless_mpi.futures import CancelledError, Future, collect, compose
from tests.conformance import suite
from tests.harness import ROOT, smpirun

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.parametrize("channel, size", [("direct", 4), ("direct", 2), ("queue", 3)])
def test_ranks_serve_the_program_of_rank_0(channel: str, size: int) -> None:
    job = smpirun(
        "-n", size, "--channel", channel, "-m", "serverless_mpi.futures", PROGRAM, size - 1, "pool"
    )
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


@pytest.mark.parametrize("size", [1, 3])
def test_a_communicator_of_ranks_that_all_run_the_program(size: int) -> None:
    job = smpirun("-n", size, "--channel", "direct", PROGRAM, size - 1, "comm")
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


def test_an_executor_spawns_its_workers() -> None:
    command = [sys.executable, str(PROGRAM), "2", "spawn"]
    job = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (job.returncode, job.stdout) == (0, "held\n"), job.stderr


def test_workers_end_although_executors_are_not_shut_down(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from serverless_mpi.futures import MPIPoolExecutor, ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    first, second = MPIPoolExecutor(1), ProcessPoolExecutor(1)\n"
        "    print(first.submit(pow, 2, 3).result(), second.submit(pow, 3, 2).result())\n"
        "    first.shutdown(wait=False)\n"
    )
    command = [sys.executable, str(program)]
    job = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (job.returncode, job.stdout) == (0, "8 9\n"), job.stderr


def test_without_spawn_an_executor_names_the_remedy() -> None:
    words = ("-x", "AWS_LAMBDA_FUNCTION_NAME=f", "-n", 2, "--channel", "direct", PROGRAM, 1, "pool")
    job = smpirun(*words)
    assert job.returncode == 1 and "-m serverless_mpi.futures" in job.stderr


def test_the_command_line_of_the_module() -> None:
    assert smpirun("--channel", "direct", "-m", "serverless_mpi.futures").returncode == 2
    assert (
        "usage" in smpirun("--channel", "direct", "-m", "serverless_mpi.futures", "--help").stdout
    )
    job = smpirun(
        "-n",
        2,
        "--channel",
        "direct",
        "-m",
        "serverless_mpi.futures",
        "-c",
        "import sys; print(sys.argv); sys.exit(3)",
        "a",
    )
    assert (job.returncode, job.stdout) == (3, "['-c', 'a']\n")
    assert (
        "there is no program"
        in smpirun("--channel", "direct", "-m", "serverless_mpi.futures", "nowhere.py").stderr
    )


def test_collect_and_compose() -> None:
    futures: list[Future[int]] = [Future() for _ in range(3)]
    whole = collect(futures)
    for place, future in enumerate(futures):
        assert not whole.done()
        future.set_result(place)
    assert whole.result() == [0, 1, 2] and collect([]).result() == []
    failed: list[Future[int]] = [Future() for _ in range(2)]
    whole = collect(failed)
    failed[1].set_exception(KeyError("x"))
    assert isinstance(whole.exception(), KeyError) and failed[0].cancelled()
    cancelled: list[Future[int]] = [Future() for _ in range(2)]
    collect(cancelled).cancel()
    assert all(future.cancelled() for future in cancelled)

    old: Future[int] = Future()
    new = compose(old, lambda value: value + 1, lambda error: -1)
    old.set_result(1)
    assert new.result() == 2
    old = Future()
    new = compose(old, excepthook=lambda error: -1)
    old.set_exception(KeyError())
    assert new.result() == -1
    old = Future()
    new = compose(old)
    old.cancel()
    with pytest.raises(CancelledError):
        new.result()


@pytest.mark.parametrize("words", [(3,), (3, "-m", "serverless_mpi.futures")])
def test_mpi4pys_own_tests_of_its_futures(words: tuple[object, ...]) -> None:
    environ = {
        **os.environ,
        "SMPI_TEST_FUTURES": str(suite.folder().parent / "demo" / "futures" / "test_futures.py"),
    }
    job = smpirun("--channel", "direct", "-n", *words, PROGRAM.with_name("mpi4pys.py"), env=environ)
    assert job.returncode == 0 and "OK" in job.stderr, job.stderr
