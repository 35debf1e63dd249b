"""What each rank of `benchmarks/calls.py` does: times common calls, and prints microseconds by call.

The same program runs here, under a real MPI, and on another checkout of this package, so it imports
nothing of benchmarks/. Each figure is the smallest of several batches: what else runs on the machine
only adds. Arguments: seconds that each call may take in all, and names of calls (default: all).
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import bench

from serverless_mpi import MPI

BATCHES = 15  # at most; of each call
LEAST = 5
WINDOW = 100  # requests of one Waitall


def ping_pong(comm: Any) -> Callable[[], Any]:
    """Send and Recv of 8 bytes between ranks 0 and 1; two messages."""
    array = np.zeros(1)
    if comm.rank == 0:

        def turn() -> None:
            comm.Send(array, 1)
            comm.Recv(array, 1)

    elif comm.rank == 1:

        def turn() -> None:
            comm.Recv(array, 0)
            comm.Send(array, 0)

    else:

        def turn() -> None:
            return None

    return turn


def window(comm: Any) -> Callable[[], Any]:
    """`WINDOW` Isend and Irecv with one Waitall, of 8 bytes, with a neighbour."""
    out, into = np.zeros(WINDOW), np.empty(WINDOW)
    peer = comm.rank ^ 1

    def turn() -> None:
        requests = [comm.Irecv(into[i : i + 1], peer, i) for i in range(WINDOW)]
        requests += [comm.Isend(out[i : i + 1], peer, i) for i in range(WINDOW)]
        MPI.Request.Waitall(requests)

    return turn


def calls(comm: Any) -> dict[str, tuple[Callable[[], Any], int, int]]:
    """The calls by name: what to call, how often in a batch, and messages in each."""
    one, result, many = np.ones(1), np.empty(1), np.empty(comm.size)
    return {
        "Send and Recv of 8 B": (ping_pong(comm), 300, 2),
        "Isend, Irecv and Waitall of 100, per message": (window(comm), 5, 2 * WINDOW),
        "Barrier": (comm.Barrier, 100, 1),
        "Bcast of 8 B": (lambda: comm.Bcast(one), 100, 1),
        "Allreduce of 8 B": (lambda: comm.Allreduce(one, result), 100, 1),
        "Allgather of 8 B": (lambda: comm.Allgather(one, many), 100, 1),
        "bcast of a small object": (lambda: comm.bcast({"a": 1}), 100, 1),
        "allreduce of a small object": (lambda: comm.allreduce(1), 100, 1),
    }


def ring_test(comm: Any) -> float:
    """Seconds of a message in mpi4py.bench's ringtest."""
    loop = 200
    words = ["--quiet", "--skip", "10", "--loop", str(loop)]
    seconds: float = bench.ringtest(comm, words)
    return seconds / (loop * comm.size)


def bench_ping_pong(comm: Any, *words: str) -> float:
    """Seconds of a message of 8 bytes in mpi4py.bench's pingpong."""
    words = ("--quiet", "-m", "8", "-n", "8", "--skip", "10", "--loop", "300", *words)
    ((_, seconds, _),) = bench.pingpong(comm, list(words))
    return float(seconds)


def benches(comm: Any) -> dict[str, Callable[[], float]]:
    """Functions that give seconds per message of mpi4py's own benchmarks."""
    found: dict[str, Callable[[], float]] = {"mpi4py.bench ringtest": lambda: ring_test(comm)}
    if comm.size == 2:
        found["mpi4py.bench pingpong"] = lambda: bench_ping_pong(comm)
        found["mpi4py.bench pingpong --pickle"] = lambda: bench_ping_pong(comm, "--pickle")
    return found


def timed(comm: Any, turn: Callable[[], Any], repeat: int, budget_s: float) -> float:
    """Smallest seconds of one call, over batches; the slowest rank of a batch counts."""
    best, began = 1e9, MPI.Wtime()
    for batch in range(BATCHES):
        comm.Barrier()
        start = MPI.Wtime()
        for _ in range(repeat):
            turn()
        taken = comm.allreduce(MPI.Wtime() - start, MPI.MAX)
        best = min(best, taken / repeat)
        if batch + 1 >= LEAST and comm.bcast(MPI.Wtime() - began > budget_s):
            break
    return best


def main(budget_s: float, wanted: Sequence[str]) -> None:
    """Time the calls; rank 0 prints a JSON object of microseconds by call."""
    # as benchmarks.interleave.calm does
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write("-20")
    comm = MPI.COMM_WORLD
    found = {}
    for name, (turn, repeat, messages) in calls(comm).items():
        if not wanted or name in wanted:
            found[name] = timed(comm, turn, repeat, budget_s) / messages * 1e6
    for name, run in benches(comm).items():
        if not wanted or name in wanted:
            found[name] = min(run() for _ in range(LEAST)) * 1e6
    if comm.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
