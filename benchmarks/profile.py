"""Profiling: CPU seconds of a rank with `--profile` over those without, in turns within one job.

Programs that compute between their messages come first; then calls that do nothing else, which show
what a call costs.
"""

from __future__ import annotations

from benchmarks.overhead import measure
from benchmarks.table import Row

HEAD = """
import numpy as np
from serverless_mpi import MPI
from serverless_mpi.api.observe import wrap
from serverless_mpi.profile.recorder import PROFILER
from serverless_mpi.runtime import get_runtime

comm, runtime = MPI.COMM_WORLD, get_runtime()
rank, size = comm.rank, comm.size
right, left = (rank + 1) % size, (rank - 1) % size
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

observer = PROFILER
def wrap_calls(classes): wrap(classes, PROFILER.wrapped)
def observed(): return sum(site.count for site in PROFILER.sites)
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
    return [
        measure(what, HEAD, f"{call}()", ranks, channel, turns, blocks, "a call")
        for what, ranks, channel, call, turns, blocks in CASES
    ]
