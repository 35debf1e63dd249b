"""Ranks for tests: threads over the memory channel, or real jobs of smpirun and mpirun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serverless_mpi.api.intracomm import Intracomm, world_of
from serverless_mpi.job import JobSpec
from serverless_mpi.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
GIVE_UP_S = 120.0  # only reached by a failure


def run(size: int, body: Callable[[Intracomm], Any]) -> list[Any]:
    """[body(COMM_WORLD)] of each rank of a job whose ranks are threads; raises what the first failing one raised."""
    spec = JobSpec.new(size, "memory")
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(size)]
    results = on_each(runtimes, body)
    for runtime in runtimes:
        runtime.finalize()
    return results


def on_each(
    runtimes: Sequence[Runtime], body: Callable[[Intracomm], Any], give_up_s: float = GIVE_UP_S
) -> list[Any]:
    """[body(COMM_WORLD)] of each of `runtimes`, each in a thread; raises what the first failing one raised."""
    results: list[Any] = [None] * len(runtimes)
    errors: list[BaseException] = []

    def rank(runtime: Runtime) -> None:
        try:
            results[runtime.rank] = body(world_of(runtime))
        except BaseException as error:  # handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=rank, args=(runtime,), daemon=True) for runtime in runtimes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(give_up_s if not errors else 1.0)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "ranks wait for each other forever"
    return results


def interrupt(ranks: int, *words: object) -> None:
    """Ctrl-C a job of smpirun whose ranks print their process ids: it ends with 130, and no process of it is left."""
    command = [sys.executable, "-m", "serverless_mpi.launch", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as job:
        assert job.stdout is not None
        pids = [int(job.stdout.readline()) for _ in range(ranks)]
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=GIVE_UP_S)
    assert job.returncode == 130 and "SIGINT" in said
    for pid in pids:
        assert_ends(pid)


def assert_ends(pid: int) -> None:
    """Wait until a process that was killed, and whose parent may be gone too, is reaped by whoever has to."""
    deadline = time.monotonic() + GIVE_UP_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.01)
        raise AssertionError(f"process {pid} is left")


def smpirun(
    *words: object, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A job of smpirun, to its end."""
    return _run([sys.executable, "-m", "serverless_mpi.launch", *map(str, words)], stdin, env)


def mpirun() -> Path | None:
    """The mpich wheel's mpiexec, if it is installed."""
    path = Path(sys.executable).parent / "mpiexec"
    return path if path.exists() else None


def _run(
    words: Sequence[str], stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT, env=env
    )


def under_mpirun(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A job of the real MPI."""
    return _run([str(mpirun()), "-n", str(size), sys.executable, *words])
