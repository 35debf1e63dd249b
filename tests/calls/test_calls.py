"""`serverless_mpi.run` and `Cluster` over processes of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import serverless_mpi
from serverless_mpi import CallError, Cluster
from serverless_mpi.calls import RankTraceback
from serverless_mpi.errors import UsageError
from tests.harness import GIVE_UP_S, ROOT


def total(value: int) -> tuple[int, int]:
    """Return the rank and the sum of (rank + value) over ranks; print a line."""
    from serverless_mpi import MPI

    comm = MPI.COMM_WORLD
    print(f"rank {comm.rank} has {value}")
    return comm.rank, comm.allreduce(comm.rank + value)


def fails_on_1(text: str) -> None:
    from serverless_mpi import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise LookupError(text)
    MPI.COMM_WORLD.barrier()  # which rank 1 never enters


def remember(value: int) -> list[int]:
    """Return the values of this call and the earlier ones."""
    remember.__dict__.setdefault("values", []).append(value)
    values: list[int] = remember.__dict__["values"]
    return values


def kill_rank_0() -> None:
    from serverless_mpi import MPI

    if MPI.COMM_WORLD.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    MPI.COMM_WORLD.barrier()


def wait_forever(path: str) -> None:
    Path(path).touch()
    threading.Event().wait()


def echo(array: np.ndarray) -> np.ndarray:
    print("no end of line", end="")
    return array


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2, channel="direct", on_output=lambda rank, line: None) as made:
        yield made


def test_each_rank_returns_its_value_and_the_job_is_priced() -> None:
    lines: list[tuple[int, str]] = []
    steps: list[tuple[int, int]] = []
    result = serverless_mpi.run(
        total,
        10,
        n=3,
        on_output=lambda rank, line: lines.append((rank, line)),
        on_progress=lambda done, ranks: steps.append((done, ranks)),
    )
    assert list(result) == [(0, 33), (1, 33), (2, 33)] and result[-1] == (2, 33)
    assert sorted(lines) == [(rank, f"rank {rank} has 10") for rank in range(3)]
    assert steps == [(done, 3) for done in range(4)]
    assert result.stats is not None and result.stats["ranks"] == 3
    assert result.stats["usd"] > 0 and result.seconds > 0  # by hybrid: requests are billed


def test_ranks_stay_between_calls(cluster: Cluster) -> None:
    assert cluster.run(remember, 1).values == ([1], [1])
    assert cluster.run(remember, 2).values == ([1, 2], [1, 2])
    array = np.arange(1_000_000, dtype="f8")
    for value in cluster.run(echo, array):
        np.testing.assert_array_equal(value, array)
    cluster.close()
    assert cluster.stats is not None and cluster.stats["ranks"] == 2
    assert cluster.run(remember, 3).values == ([3], [3])  # new ranks


def test_the_exception_of_the_first_rank_is_raised_with_its_traceback(cluster: Cluster) -> None:
    with pytest.raises(LookupError, match="not here") as caught:
        cluster.run(fails_on_1, "not here")
    assert isinstance(caught.value.__cause__, RankTraceback)
    text = str(caught.value.__cause__)
    assert "rank 1:" in text and "in fails_on_1" in text and "raise LookupError(text)" in text
    assert cluster.run(remember, 4).values == ([4], [4])


def test_a_rank_that_is_killed_is_named(cluster: Cluster) -> None:
    with pytest.raises(CallError, match="rank 0 .* was killed by SIGKILL"):
        cluster.run(kill_rank_0)


def test_a_call_is_cancelled_from_another_task(cluster: Cluster, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    async def main() -> None:
        call = asyncio.create_task(cluster.run_async(wait_forever, str(begun)))
        while not begun.exists():
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await cluster.run_async(remember, 5)).values == ([5], [5])

    asyncio.run(main())


def test_a_call_that_takes_too_long_ends() -> None:
    with pytest.raises(TimeoutError, match="longer than 0.2 s"):
        serverless_mpi.run(wait_forever, os.devnull, n=1, channel="direct", timeout=0.2)


def test_ctrl_c_ends_the_ranks(tmp_path: Path) -> None:
    program = tmp_path / "prog.py"
    program.write_text(
        "import sys, threading\n"
        "import serverless_mpi, work\n"
        "try:\n"
        "    serverless_mpi.run(work.wait, n=2, channel='direct')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    (tmp_path / "work.py").write_text(
        "import os, threading\ndef wait():\n    print(os.getpid())\n    threading.Event().wait()\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as job:
        assert job.stdout is not None
        pids = [int(job.stdout.readline()) for _ in range(2)]
        job.send_signal(signal.SIGINT)
        assert job.wait(GIVE_UP_S) == 7
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_lambdas_and_closures_travel_with_cloudpickle(cluster: Cluster) -> None:
    pytest.importorskip("cloudpickle")
    offset = 40
    assert cluster.run(lambda: offset + 2).values == (42, 42)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"n": 0}, "n is the number of ranks"),
        ({"n": True}, "n is the number of ranks"),
        ({"n": 2, "timeout": 0}, "timeout is a number of seconds"),
        ({"n": 2, "channel": "pigeon"}, "unknown channel 'pigeon'"),
        ({"n": 2, "memory": 512}, "--memory has no effect with --platform local"),
        ({"n": 2, "platform": "moon"}, "moon"),
    ],
)
def test_an_option_that_cannot_work(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        serverless_mpi.run(total, 1, **options)  # type: ignore[arg-type]


def test_a_cluster_serves_one_call_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    errors: list[BaseException] = []

    def call() -> None:
        try:
            cluster.run(wait_forever, str(begun))
        except CallError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not begun.exists():
        thread.join(0.01)
    with pytest.raises(UsageError, match="one call at a time"):
        cluster.run(remember, 1)
    cluster.cancel()
    thread.join()
    assert [str(error) for error in errors] == ["the call was cancelled"]
