"""Ranks exchange arrays of growing lengths; prints a check.

    exchange.py ROUNDS LONGEST [LINKS]

Links are made in the background while messages already flow, so the ranks begin with messages of
8 B until each has LINKS links (0 by default).
"""

import sys

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.runtime import get_runtime

comm = MPI.COMM_WORLD
rounds, longest = int(sys.argv[1]), int(sys.argv[2])
links = int(sys.argv[3]) if len(sys.argv) > 3 else 0
total = 0


def missing() -> int:
    """Return how many links this rank still waits for."""
    made = get_runtime().meter.snapshot().get("link.made", {"requests": 0})
    return max(0, links - made["requests"])


while comm.allreduce(missing()):
    for peer in set(range(comm.size)) - {comm.rank}:
        comm.sendrecv(comm.rank, peer, source=peer)
for step in range(rounds):
    count = 1 + (longest * step) // rounds
    for shift in range(1, comm.size):
        dest, source = (comm.rank + shift) % comm.size, (comm.rank - shift) % comm.size
        sent = np.arange(count, dtype="i8") * (comm.rank + 1) + step
        received = np.empty(count, "i8")
        comm.Sendrecv(sent, dest, recvbuf=received, source=source)
        assert np.array_equal(received, np.arange(count) * (source + 1) + step), (step, source)
        total += int(received[-1])
print(
    f"rank {comm.rank}: {rounds * (comm.size - 1)} exchanges, {comm.allreduce(total)}", flush=True
)
