"""Profiling: CPU seconds of a rank with `--profile` over those without, in turns within one job.

Programs that compute between their messages come first; then calls that do nothing else, which show
what a call costs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, spread

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import json, time
import numpy as np
from serverless_mpi import MPI
from serverless_mpi.api.observe import wrap
from serverless_mpi.profile.recorder import PROFILER
from serverless_mpi.runtime import get_runtime

comm, runtime = MPI.COMM_WORLD, get_runtime()
rank, size = comm.rank, comm.size
right, left = (rank + 1) %% size, (rank - 1) %% size
data, x, y = bytearray(8), np.ones(128), np.ones(128)
large = bytearray(1 << 20)
grid, new = np.ones((514, 514)), np.ones((514, 514))

def ping(): exchange(data)
def ping_large(): exchange(large)

def exchange(data):
    if rank: comm.Recv(data, 0); comm.Send(data, 0)
    else: comm.Send(data, 1); comm.Recv(data, 1)

def mixed():
    comm.Allreduce(x, y)
    comm.alltoall([bytes(1000)] * size)
    comm.sendrecv(rank, right, source=left)

def heat():  # a step of examples/heat2d.py on a grid of 512 x 512 cells per rank
    comm.Sendrecv(grid[1], left, recvbuf=grid[-1], source=right)
    comm.Sendrecv(grid[-2], right, recvbuf=grid[0], source=left)
    new[1:-1, 1:-1] = 0.25 * (grid[:-2, 1:-1] + grid[2:, 1:-1] + grid[1:-1, :-2] + grid[1:-1, 2:])
    comm.allreduce(0.0)

def switch(on):
    runtime.record(PROFILER if on else None)
    for place, name, old, new in changed:
        if on: setattr(place, name, new)
        elif old is None: delattr(place, name)
        else: setattr(place, name, old)

# what profiling changes when it begins, so that it can be taken back and done again
places = [MPI.Request, *type(comm).__mro__[:-1]]
before = [dict(vars(place)) for place in places]
wrap((MPI.Intracomm, MPI.Request), PROFILER.wrapped)
changed = [
    (place, name, old.get(name), new)
    for place, old in zip(places, before) for name, new in vars(place).items()
    if old.get(name) is not new
]
seconds = {False: [], True: []}
for block in range(2 * %(blocks)d + 2):
    on = bool((block + block // 2) %% 2)  # off on, on off, off on, ...
    switch(on)
    comm.barrier()
    start = time.process_time()  # not the wall clock: others use this machine too
    for _ in range(%(turns)d): %(call)s()
    if block > 1:
        seconds[on].append(time.process_time() - start)
calls = sum(site.count for site in PROFILER.sites)
if rank == 0: print(json.dumps([seconds[False], seconds[True], calls]))
"""

CASES = [
    ("direct, 2 ranks, heat equation, 512 x 512 cells each", 2, "direct", "heat", 10, 40),
    ("direct, 2 ranks, ping-pong of 1 MB", 2, "direct", "ping_large", 10, 40),
    ("hybrid, 4 ranks, allreduce, alltoall and sendrecv", 4, "hybrid", "mixed", 3, 30),
    ("direct, 4 ranks, allreduce, alltoall and sendrecv", 4, "direct", "mixed", 15, 40),
    ("direct, 2 ranks, ping-pong of 8 B", 2, "direct", "ping", 100, 60),
]


def run() -> list[Row]:
    """CPU seconds of rank 0 with profiling over those without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        for what, ranks, channel, call, turns, blocks in CASES:
            program.write_text(PROGRAM % {"blocks": blocks, "turns": turns, "call": call})
            words = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(ranks)]
            words += ["--channel", channel, str(program)]
            done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
            off, on, calls = json.loads(done.stdout)
            ratios = [with_it / without for with_it, without in zip(on, off, strict=True)]
            ratio = statistics.median(ratios)
            added = 1e9 * (statistics.median(on) - statistics.median(off)) * blocks / calls
            reason = "" if ratio < 1.05 else f"{added:.0f} ns per call, of calls of microseconds"
            rows.append(
                Row(
                    what,
                    1e6 * statistics.median(on) / turns,
                    "us CPU",
                    ratio,
                    spread(ratios),
                    "< 1.05",
                    ratio < 1.05,
                    reason,
                )
            )
    return rows
