"""checkpoint: what it costs a loop to save 100 MB of state per rank in the job's folder, compared with the
same loop in which no save is due.

The ranks alternate, in one job, between loops that save every eighth step and loops that never do. Two
costs of one save: the time that the program is blocked before a step, and the CPU time of the rank, which
is mostly that of the thread that hashes and writes. Both are divided by the default period of a minute.
CPU time hardly depends on what else the machine does; the time that the program is blocked does.
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
STEP_S = 0.2
TURNS = 3
STEPS = 32  # of a loop
STEPS_PER_SAVE = 8
TARGET = 0.01
TIMEOUT_S = 300.0
PROGRAM = """
import json, sys, time
import numpy as np
from serverless_mpi import MPI, checkpoint
comm = MPI.COMM_WORLD
nbytes, turns, steps, period = map(int, sys.argv[1:5])
step_s = float(sys.argv[5])
state = {"u": np.random.default_rng(comm.rank).random(nbytes // 8)}
figures = []
for turn in range(2 * turns):
    # without a save, then with some; memory for the copy is made in both, before the first save
    loop = checkpoint.steps(comm, steps, state, f"{period} steps" if turn % 2 else "1 h", name=str(turn))
    blocked, saved, cpu = 0.0, set(), time.process_time()
    for _ in range(steps):
        began = time.perf_counter()
        next(loop)
        blocked += time.perf_counter() - began
        saved.add(loop._cadence.saved_at)
        time.sleep(step_s)
        comm.allreduce(1)
    next(loop, None)
    figures.append((blocked, time.process_time() - cpu, len(saved) - 1))
if comm.rank == 0:
    print(json.dumps(figures))
"""


def run() -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "program.py"
        program.write_text(PROGRAM)
        command = [
            *launchers(RANKS)["direct"], "--restarts", "1", str(program), str(STATE_BYTES),
            str(TURNS), str(STEPS), str(STEPS_PER_SAVE), str(STEP_S),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=name, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    figures = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for index, what in enumerate(("the program is blocked", "CPU time of a rank")):
        costs = [
            (saving[index] - plain[index]) / saving[2]
            for plain, saving in zip(figures[::2], figures[1::2], strict=True)
        ]
        cost = statistics.median(costs)
        share = cost / PERIOD_S
        rows.append(
            Row(
                f"a save of {STATE_BYTES // 10**6} MB a rank, {what}; share of {PERIOD_S:g} s",
                1e3 * cost,
                "ms",
                share,
                spread(costs),
                f"at most {TARGET}",
                share <= TARGET,
                "" if share <= TARGET else "see the load of the machine",
            )
        )
    return rows


if __name__ == "__main__":
    print(render(run()))
    sys.exit()
