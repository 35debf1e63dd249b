"""A job that heals again and again: in each round a rank dies, survivors and a new rank go on.

    healing.py ROUNDS SEED

Who dies is drawn from the seed; in later rounds it may be a rank that was spawned. Rank 0 of the last communicator prints "held".
"""

from __future__ import annotations

import os
import random
import signal
import sys

from serverless_mpi import MPI

LOST = (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED)
rounds, seed = map(int, sys.argv[1:3])
parent = MPI.Comm.Get_parent()
if parent:
    comm = parent.Merge(high=True)
    first = comm.bcast(None, 0)
else:
    comm, first = MPI.COMM_WORLD.Dup(), 0
size = comm.size
for number in range(first, rounds):
    comm.Agree(1)  # a rank that dies before would fail calls that others have not completed
    victim = random.Random(f"{seed} {number}").randrange(size)
    if comm.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:  # until the death is known here
            comm.allreduce(1)
    except MPI.Exception as error:
        assert error.Get_error_class() in LOST, error
    comm.Revoke()
    survivors = comm.Shrink()
    assert survivors.size == size - 1, survivors.size
    children = survivors.Spawn(sys.executable, [__file__, *sys.argv[1:]])
    comm = children.Merge(high=False)
    comm.bcast(number + 1, 0)
    assert comm.size == size
assert comm.allreduce(1) == size
if comm.rank == 0:
    print("held")
