"""Survive lost ranks: a sum over work items that is right although ranks die on the way.

Rank r works on the items of `range(items)` that it is given. When a rank dies, the others raise an
error in their next call, revoke the communicator so that nobody waits in it any more, shrink it,
and repeat the round with the work shared among the survivors. With --heal they spawn as many ranks
as have died, and share the work with those.

    smpirun --ft -n 4 examples/heal.py                   no rank dies
    smpirun --ft -n 4 examples/heal.py --die 2           rank 2 kills itself in round 2
    smpirun --ft -n 4 examples/heal.py --die 2 --heal    and a new rank takes its place
"""

import argparse
import os
import signal
import sys

import numpy as np
from mpi4py import MPI

LOST = (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED)

parser = argparse.ArgumentParser()
parser.add_argument("--items", type=int, default=1000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--die", type=int, default=-1, metavar="RANK")
parser.add_argument("--heal", action="store_true")
options = parser.parse_args()


def restore(comm, state):
    """Return a communicator of the survivors, with new ranks if they are wanted, and the state."""
    size = comm.size
    comm.Revoke()
    comm = comm.Shrink()
    if options.heal:
        arguments = [__file__, "--heal", f"--items={options.items}", f"--rounds={options.rounds}"]
        children = comm.Spawn(sys.executable, arguments, size - comm.size)
        comm = children.Merge(high=False)
    return comm, comm.bcast(state, 0)


def one_round(comm, number):
    """Return the sum of all items in this round, each multiplied by its number."""
    own = np.arange(comm.rank, options.items, comm.size, dtype=np.int64)
    return comm.allreduce(int(own.sum()) * number)


parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    comm = MPI.COMM_WORLD.Dup()
    dying = comm.rank == options.die
    total, number = 0, 1
else:  # a new rank, which the others wait for in `restore`
    comm = parent.Merge(high=True)
    dying = False
    total, number = comm.bcast(None, 0)
while number <= options.rounds:
    if number == 2 and dying:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        result = one_round(comm, number)
        complete = True
    except MPI.Exception as error:
        if error.error_class not in LOST:
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
        comm, (total, number) = restore(comm, (total, number))

expected = options.items * (options.items - 1) // 2 * sum(range(1, options.rounds + 1))
assert total == expected, (total, expected)
if comm.rank == 0:
    print(f"sum {total} is right; {comm.size} ranks are left")
