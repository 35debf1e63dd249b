"""datatypes: making types, exchanging them, making communicators; compared with MPICH.

Both run the same program, in turns, on 2 and 4 ranks. Each figure is the median of batches on rank
0. Python calls and the most memory of an operation are counted as well, in this process on a job
of one rank: counts show a regression without a clock.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from benchmarks.interleave import calm, in_turns, ratio
from benchmarks.table import Row, render

ROUNDS = 5
BATCHES = 9
TIMEOUT_S = 180.0
SIDE, BLOCK = 128, 64  # rows of the exchanged array, and of a block of it
HALO = 1000  # doubles of a column
BLOCKS = 100  # of the indexed type

Operation = Callable[[], Any]

# operation -> (largest ratio to MPICH, operations of a batch)
TARGETS = {
    "subarray type": (8.0, 200),
    "vector type": (8.0, 200),
    "indexed type, 100 blocks": (8.0, 100),
    "struct type": (8.0, 200),
    "Alltoallw of 64 x 64 blocks, kept types": (8.0, 50),
    "Alltoallw of 64 x 64 blocks, fresh types": (10.0, 50),
    "Send and Recv of a halo of 1,000 doubles": (8.0, 50),
    "Split and Free": (6.0, 20),
    "Dup and Free": (6.0, 20),
    "Create_group and Free": (6.0, 20),
}
REASONS = {
    "Send and Recv of a halo of 1,000 doubles": "packing and unpacking take 5 us; the rest is the latency of a"
    " Unix socket, against shared memory",
    "Split and Free": "the latency of one allgather over Unix sockets",
    "Create_group and Free": "Python calls: the hash of the context, its state, and its removal",
}
CREATING = tuple(TARGETS)[:4]
COMMUNICATORS = tuple(TARGETS)[-3:]


def makers(mpi: Any) -> dict[str, Operation]:
    """Return what makes, commits and frees each kind of type."""
    lengths, places = [1 + n % 3 for n in range(BLOCKS)], [5 * n for n in range(BLOCKS)]
    triple = [1, 2, 1], [0, 8, 24], [mpi.INT, mpi.DOUBLE, mpi.CHAR]
    return {
        "subarray type": lambda: (
            mpi.DOUBLE.Create_subarray([SIDE, SIDE], [BLOCK, BLOCK], [8, 8]).Commit().Free()
        ),
        "vector type": lambda: mpi.DOUBLE.Create_vector(HALO, 1, HALO).Commit().Free(),
        "indexed type, 100 blocks": lambda: (
            mpi.DOUBLE.Create_indexed(lengths, places).Commit().Free()
        ),
        "struct type": lambda: mpi.Datatype.Create_struct(*triple).Commit().Free(),
    }


def constructors(mpi: Any, comm: Any) -> dict[str, Operation]:
    """Return what makes and frees each kind of communicator."""
    group = comm.Get_group().Incl(range(0, comm.size, 2))

    def of_group() -> None:
        part = comm.Create_group(group)
        if part != mpi.COMM_NULL:
            part.Free()

    return {
        "Split and Free": lambda: comm.Split(comm.rank % 2, comm.rank).Free(),
        "Dup and Free": lambda: comm.Dup().Free(),
        "Create_group and Free": of_group,
    }


def exchanges(mpi: Any, comm: Any) -> dict[str, Operation]:
    """Return the operations that send blocks of arrays: Alltoallw, and a halo between two ranks."""
    size, rank = comm.size, comm.rank
    sent, received = np.ones((SIDE, SIDE * size)), np.zeros((SIDE, SIDE * size))
    ones, zeros = [1] * size, [0] * size

    def make() -> list[Any]:
        shape, box = [SIDE, SIDE * size], [BLOCK, BLOCK]
        return [
            mpi.DOUBLE.Create_subarray(shape, box, [0, SIDE * peer]).Commit()
            for peer in range(size)
        ]

    kept_out, kept_in = make(), make()

    def exchange(out: list[Any], back: list[Any]) -> None:
        comm.Alltoallw([sent, (ones, zeros), out], [received, (ones, zeros), back])

    def fresh() -> None:
        out, back = make(), make()
        exchange(out, back)
        for datatype in (*out, *back):
            datatype.Free()

    column = mpi.DOUBLE.Create_vector(HALO, 1, 8).Commit()
    field = np.zeros((HALO, 8))

    def halo() -> None:
        if rank % 2:
            comm.Recv([field, 1, column], rank - 1)
            comm.Send([field, 1, column], rank - 1)
        else:
            comm.Send([field, 1, column], rank + 1)
            comm.Recv([field, 1, column], rank + 1)

    return {
        "Alltoallw of 64 x 64 blocks, kept types": lambda: exchange(kept_out, kept_in),
        "Alltoallw of 64 x 64 blocks, fresh types": fresh,
        "Send and Recv of a halo of 1,000 doubles": halo,
    }


def rank() -> None:
    """Do all operations; rank 0 prints the seconds of each, by name."""
    from serverless_mpi import MPI

    calm()
    comm = MPI.COMM_WORLD
    seconds: dict[str, float] = {}
    operations = {**makers(MPI), **exchanges(MPI, comm), **constructors(MPI, comm)}
    for name, operation in operations.items():
        times, repeat = [], TARGETS[name][1]
        for batch in range(BATCHES + 1):
            comm.Barrier()
            began = MPI.Wtime()
            if name not in CREATING or comm.rank == 0:  # making a type concerns one rank
                for _ in range(repeat):
                    operation()
            if batch:  # the first one warms up
                times.append((MPI.Wtime() - began) / repeat)
        seconds[name] = statistics.median(times)
    if comm.rank == 0:
        print(json.dumps(seconds))


def counted(operation: Operation) -> tuple[int, int]:
    """Return the Python calls of an operation, and the most bytes that it allocated at once."""
    for _ in range(3):
        operation()
    calls = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(None)
    gc.collect()
    tracemalloc.start()
    try:
        operation()  # what tracemalloc itself keeps is there afterwards
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        operation()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return calls - 1, peak - before


def _counts() -> list[Row]:
    from serverless_mpi import MPI

    comm = MPI.COMM_SELF
    operations = {**makers(MPI), **constructors(MPI, comm)}
    alltoallw = exchanges(MPI, comm)
    del alltoallw["Send and Recv of a halo of 1,000 doubles"]  # it takes two ranks
    rows = []
    for name, operation in {**operations, **alltoallw}.items():
        calls, peak = counted(operation)
        rows.append(Row(f"{name}: Python calls on one rank", calls, "calls", spread=f"{peak:,} B"))
    return rows


def _times(launcher: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "benchmarks.datatypes", "rank"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
    )
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def launchers(ranks: int) -> dict[str, list[str]]:
    """Return the launcher of `direct`, and of MPICH if it is installed."""
    smpirun = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(ranks)]
    found = {"direct": [*smpirun, "--channel", "direct", "--stats", "none"]}
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if mpiexec.exists() and importlib.util.find_spec("mpi4py"):
        found["mpich"] = [str(mpiexec), "-n", str(ranks)]
    return found


def _compared(ranks: int) -> list[Row]:
    commands = launchers(ranks)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in commands}

    def measure(name: str) -> float:
        times[name].append(_times(commands[name]))
        return 0.0

    in_turns({name: (lambda name=name: measure(name)) for name in commands}, ROUNDS)  # type: ignore[misc]
    rows = []
    for name, (most, _) in TARGETS.items():
        if name in CREATING and ranks > 2:
            continue
        ours = [one[name] for one in times["direct"]]
        value = statistics.median(ours) * 1e6
        label = name if name in CREATING else f"{name}, {ranks} ranks"
        if "mpich" not in times:
            rows.append(Row(label, value, "us"))
            continue
        middle, wide = ratio(ours, [one[name] for one in times["mpich"]])
        met = middle <= most
        reason = "" if met else REASONS.get(name, "")
        rows.append(Row(label, value, "us", middle, wide, f"<= {most:g}x", met, reason))
    return rows


def run() -> list[Row]:
    """Measure on 2 and 4 ranks, and count."""
    return [*_compared(2), *_compared(4), *_counts()]


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
