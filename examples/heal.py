"""Survive lost ranks: a sum over work items that is right although ranks die on the way.

Rank r works on the items of `range(items)` that it is given. When a rank dies, the others raise an
error in their next call, revoke the communicator so that nobody waits in it any more, shrink it,
and repeat the round with the work shared among the survivors.

    smpirun --ft -n 4 examples/heal.py            no rank dies
    smpirun --ft -n 4 examples/heal.py --die 2    rank 2 kills itself in round 2
"""

import argparse
import os
import signal

import numpy as np
from mpi4py import MPI

parser = argparse.ArgumentParser()
parser.add_argument("--items", type=int, default=1000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--die", type=int, default=-1, metavar="RANK")
options = parser.parse_args()


def restore(comm):
    """Return a communicator of the survivors. Spawned replacements would join it here."""
    comm.Revoke()
    return comm.Shrink()


def one_round(comm, number):
    """Return the sum of all items in this round, each multiplied by its number."""
    own = np.arange(comm.rank, options.items, comm.size, dtype=np.int64)
    return comm.allreduce(int(own.sum()) * number)


comm = MPI.COMM_WORLD.Dup()
world_rank = comm.rank
total, number = 0, 1
while number <= options.rounds:
    if number == 2 and world_rank == options.die:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        result = one_round(comm, number)
        complete = True
    except MPI.Exception as error:
        if error.error_class not in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED):
            raise
        comm.Revoke()
        complete = False
    # All survivors must agree whether the round counts: some may have its result, some an error.
    try:
        complete = bool(comm.Agree(int(complete)))
    except MPI.Exception as error:
        if error.error_class != MPI.ERR_PROC_FAILED:
            raise
        complete = False  # raised on all survivors alike
    if complete:
        total += result
        number += 1
    else:
        comm = restore(comm)

expected = options.items * (options.items - 1) // 2 * sum(range(1, options.rounds + 1))
assert total == expected, (total, expected)
if comm.rank == 0:
    print(f"sum {total} is right; {comm.size} ranks are left")
