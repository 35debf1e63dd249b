"""Ranks exchange arrays of growing lengths until every pair has talked often; prints a check."""

import sys

import numpy as np

from serverless_mpi import MPI

comm = MPI.COMM_WORLD
rounds, longest = int(sys.argv[1]), int(sys.argv[2])
total = 0
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
