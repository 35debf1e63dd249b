"""Tracing: CPU seconds of a rank's calls with tracing on against the same with it off, in turns
within one job.
"""

from __future__ import annotations

from benchmarks.overhead import measure
from benchmarks.table import Row

HEAD = """
import numpy as np
from serverless_mpi import MPI, trace
from serverless_mpi.api.observe import observe
from serverless_mpi.runtime import get_runtime

comm, runtime = MPI.COMM_WORLD, get_runtime()
x, y = np.ones(128), np.ones(128)
short, long = bytearray(8), bytearray(1 << 16)

def ping(data):
    if comm.rank: comm.Recv(data, 0); comm.Send(data, 0)
    else: comm.Send(data, 1); comm.Recv(data, 1)

def mixed():
    comm.Allreduce(x, y)
    comm.alltoall([bytes(1000)] * comm.size)
    comm.sendrecv(comm.rank, (comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size)

observer = trace.RECORDER
def wrap_calls(classes): observe(classes, trace.RECORDER.span)
def observed(): return len(trace.RECORDER.events)
"""

CASES = [
    ("direct, 2 ranks, ping-pong of 8 B", 2, "direct", "ping(short)", 60, 60),
    ("direct, 2 ranks, ping-pong of 64 KB", 2, "direct", "ping(long)", 40, 60),
    ("direct, 4 ranks, allreduce, alltoall and sendrecv", 4, "direct", "mixed()", 15, 40),
    ("hybrid, 4 ranks, allreduce, alltoall and sendrecv", 4, "hybrid", "mixed()", 2, 30),
]


def run() -> list[Row]:
    """CPU seconds of rank 0 with tracing over those without."""
    rows = [
        measure(f"on: {what}", HEAD, call, ranks, channel, turns, blocks, "an event")
        for what, ranks, channel, call, turns, blocks in CASES
    ]
    # off, a call is the function itself: the wrappers are put there when a rank begins with tracing
    # on
    from serverless_mpi import MPI
    from serverless_mpi.runtime import Runtime

    functions = [
        call
        for kind in (MPI.Intracomm, Runtime)
        for base in kind.__mro__
        for call in vars(base).values()
    ]
    wrapped = sum(
        getattr(call, "__code__", run.__code__).co_filename.endswith("api/observe.py")
        for call in functions
    )
    rows.append(
        Row(
            "off: functions that are wrapped",
            wrapped,
            "",
            None,
            "",
            "0: nothing to pay",
            wrapped == 0,
        )
    )
    return rows
