"""A rank that survives the deaths of others: it sums over rounds, and shrinks when one dies.

Started by survive.py as `survivor.py ROUNDS`. It prints "begun PID" when it can be killed, and at the
end "right SIZE" if the sum is right.
"""

from __future__ import annotations

import os
import sys

from mpi4py import MPI

ITEMS = 60

comm = MPI.COMM_WORLD.Dup()
print(f"begun {os.getpid()}", flush=True)
total, number, rounds = 0, 1, int(sys.argv[1])
while number <= rounds:
    complete, result = True, 0
    try:
        rank, size = comm.rank, comm.size
        # each form of communication: a collective, a ring, and a receive from any source
        result = comm.allreduce(sum(range(rank, ITEMS, size)) * number)
        left = comm.sendrecv(rank, (rank + 1) % size, source=(rank - 1) % size)
        assert left == (rank - 1) % size
        if rank == 0:
            assert sorted(comm.recv(source=MPI.ANY_SOURCE) for _ in range(1, size)) == [
                *range(1, size)
            ]
        else:
            comm.ssend(rank, 0)
    except MPI.Exception as error:
        if error.error_class not in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED):
            raise
        comm.Revoke()
        complete = False
    try:
        complete = bool(comm.Agree(int(complete)))
    except MPI.Exception as error:
        if error.error_class != MPI.ERR_PROC_FAILED:
            raise
        complete = False
    if complete:
        total += result
        number += 1
    else:
        comm.Revoke()
        comm = comm.Shrink()
assert total == sum(range(ITEMS)) * sum(range(1, rounds + 1)), total
print(f"right {comm.size}", flush=True)
