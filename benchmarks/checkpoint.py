"""checkpoint: what it costs a loop to save 100 MB of state per rank, in the job's folder, compared with
the same loop without a period that comes.

The ranks alternate, in one job, between loops that save every eighth step and loops that never do. In
the first row a step sleeps, so the thread that writes has a processor; in the second it computes, so the
thread competes with the ranks for the machine. The target is a share of the time with the default period
of a minute; these loops save far more often, and the cost of one save is divided by a minute.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.datatypes import launchers
from benchmarks.table import Row, render, spread

RANKS = 2
STATE_BYTES = 100_000_000
PERIOD_S = 60.0  # the default
STEP_S = 0.25
TURNS = 3
STEPS = 32  # of a loop
STEPS_PER_SAVE = 8
SAVES = STEPS // STEPS_PER_SAVE - 1
TARGET = 0.01
TIMEOUT_S = 600.0
PROGRAM = """
import json, os, sys, time
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
from serverless_mpi import MPI, checkpoint
comm = MPI.COMM_WORLD
nbytes, turns, steps, period = map(int, sys.argv[1:5])
kind, step_s = sys.argv[5], float(sys.argv[6])
state = {"u": np.random.default_rng(comm.rank).random(nbytes // 8)}
work = np.random.default_rng(1).random((300, 300))
def compute(count):
    for _ in range(count):
        work @ work
count = 1
began = time.perf_counter()
while time.perf_counter() - began < 0.2:
    compute(10)
    count += 10
count = comm.bcast(int(count * step_s / 0.2))  # of one rank, while the other does the same
seconds = []
for turn in range(2 * turns):
    saves = turn % 2
    # the place is claimed before the clock starts, and the last save has a period to complete
    every = f"{period} steps" if saves else "1 h"
    loop = checkpoint.steps(comm, steps, state, every, name=str(turn))
    comm.Barrier()
    began = time.perf_counter()
    for step in loop:
        if kind == "sleep":
            time.sleep(step_s)
        else:
            compute(count)
        comm.allreduce(step)
    comm.Barrier()
    seconds.append(time.perf_counter() - began)
if comm.rank == 0:
    print(json.dumps(seconds))
"""


def _row(what: str, kind: str, folder: Path, program: Path) -> Row:
    command = [
        *launchers(RANKS)["direct"], "--restarts", "1", str(program), str(STATE_BYTES), str(TURNS),
        str(STEPS), str(STEPS_PER_SAVE), kind, str(STEP_S),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    numbers = json.loads(done.stdout.splitlines()[-1])
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    costs = [(saving - plain) / SAVES for plain, saving in pairs]
    cost = statistics.median(costs)
    share = cost / PERIOD_S
    return Row(
        f"one save of {STATE_BYTES // 10**6} MB a rank, {RANKS} ranks, {what}; its share of {PERIOD_S:g} s",
        1e3 * cost,
        "ms",
        share,
        spread(costs),
        f"at most {TARGET}",
        share <= TARGET,
        "" if share <= TARGET else "the thread that writes takes processors from the ranks",
    )


def run() -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "program.py"
        program.write_text(PROGRAM)
        rows = []
        for kind, what in (("sleep", "steps that wait"), ("compute", "steps that compute")):
            rows.append(_row(what, kind, Path(name), program))
        return rows


if __name__ == "__main__":
    print(render(run()))
    sys.exit()
