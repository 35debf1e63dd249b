"""startup: hello world from the command to its end, compared with mpiexec of MPICH.

Seconds of wall time and of CPU (of all processes of the job), in turns. On a machine with other
load the CPU time is the steadier of the two.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import serverless_mpi
from benchmarks.datatypes import launchers
from benchmarks.interleave import in_turns, ratio
from benchmarks.table import Row, render, spread
from serverless_mpi.env import ENV_FORKS

ROUNDS = 7
TARGETS = {4: 1.5, 64: 2.0}  # ranks -> largest ratio of wall times
TIMEOUT_S = 120.0
PROGRAM = "from mpi4py import MPI\nprint('hello', MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)\n"
# for comparison: the same without forks
SINGLY = "direct, no forks"


def _once(command: list[str], environ: dict[str, str], ranks: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of a job, which must have said hello once per rank."""
    before = os.times()
    began = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environ, check=True
    )
    wall = time.perf_counter() - began
    after = os.times()
    assert done.stdout.count("hello") == ranks, done.stderr
    cpu = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return wall, cpu


def _rows(ranks: int, program: str) -> list[Row]:
    commands = launchers(ranks)
    if "mpich" in commands:
        commands["mpich"].append(sys.executable)
    commands[SINGLY] = commands["direct"]
    cpu: dict[str, list[float]] = {name: [] for name in commands}

    def measure(name: str) -> float:
        environ = {**os.environ, ENV_FORKS: "0" if name == SINGLY else "1"}
        wall, seconds = _once([*commands[name], program], environ, ranks)
        cpu[name].append(seconds)
        return wall

    rounds = ROUNDS if ranks < 64 else 3
    walls = in_turns({name: (lambda name=name: measure(name)) for name in commands}, rounds)  # type: ignore[misc]
    rows = []
    for name in (SINGLY, "direct"):
        for what, times in (("wall", walls), ("CPU", cpu)):
            label = f"hello world, {ranks} ranks, {name}, {what}"
            value = statistics.median(times[name])
            if "mpich" not in times:
                rows.append(Row(label, value, "s", spread=spread(times[name])))
                continue
            middle, wide = ratio(times[name], times["mpich"])
            most = TARGETS[ranks]
            judged = name == "direct" and what == "wall"
            target, met = (f"<= {most:g}x", middle <= most) if judged else ("", None)
            reason = (
                ""
                if met is not False
                else (
                    "the launcher, the imports and the forks follow each other; compare the CPU time"
                )
            )
            rows.append(Row(label, value, "s", middle, wide, target, met, reason))
    return rows


def run() -> list[Row]:
    """Measure with 4 and with 64 ranks."""
    # as pip installs it; an editable install may have no byte code
    compileall.compile_dir(Path(serverless_mpi.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "hello.py"
        program.write_text(PROGRAM)
        return [row for ranks in TARGETS for row in _rows(ranks, str(program))]


if __name__ == "__main__":
    print(render(run()))
