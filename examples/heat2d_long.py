"""Heat on a square plate that takes longer than a function, or than a machine stays up.

smpirun -n 4 --restarts 3 examples/heat2d_long.py --size 64 --steps 2000
smpirun -n 4 examples/heat2d_long.py --to runs/plate      # again after an end: it goes on

`heat2d.py` with three lines for checkpoints. A plate of another number of ranks goes on as well,
since the program says how its rows are dealt anew. `--die STEP` kills rank 1 in that step, once.
"""

import argparse
import os
import signal

import numpy as np

from serverless_mpi import MPI, checkpoint

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--size", type=int, default=64, help="rows and columns of the plate")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--every", default="1 s", help="period between checkpoints, as in '60 s'")
parser.add_argument("--to", help="folder or s3://bucket/prefix of the checkpoints")
parser.add_argument("--die", type=int, help="step in which rank 1 is killed if it began at step 0")
options = parser.parse_args()

comm = MPI.COMM_WORLD
if options.size < comm.size:
    raise SystemExit(
        f"a plate of {options.size} rows has too few for {comm.size} ranks; "
        f"use --size {comm.size} or more"
    )
edges = np.linspace(0, options.size, comm.size + 1).astype(int)


def rows_of_this_rank(saved, comm):
    """Deal the rows of a checkpoint of another number of ranks."""
    whole = np.concatenate([state["plate"][1:-1] for state in saved])
    return {"plate": np.pad(whole[edges[comm.rank] : edges[comm.rank + 1]], ((1, 1), (0, 0)))}


plate = np.zeros((edges[comm.rank + 1] - edges[comm.rank] + 2, options.size))  # with halo rows
if comm.rank == 0:
    plate[1] = 100.0  # the hot edge
up = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
down = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL

state = {"plate": plate}
steps = checkpoint.steps(
    comm, options.steps, state, options.every, options.to, redistribute=rows_of_this_rank
)
if comm.rank == 0 and steps.resumed_at is not None:
    print(f"goes on at step {steps.resumed_at}")
for step in steps:
    plate = state["plate"]
    comm.Sendrecv(plate[1], dest=up, recvbuf=plate[-1], source=down)
    comm.Sendrecv(plate[-2], dest=down, recvbuf=plate[0], source=up)
    new = plate.copy()
    new[1:-1, 1:-1] = (plate[:-2, 1:-1] + plate[2:, 1:-1] + plate[1:-1, :-2] + plate[1:-1, 2:]) / 4
    if comm.rank == 0:
        new[1] = plate[1]
    if comm.rank == comm.size - 1:
        new[-2] = plate[-2]
    state["plate"] = new
    if step == options.die and steps.resumed_at is None and comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

counts = np.diff(edges) * options.size
whole = np.empty((options.size, options.size)) if comm.rank == 0 else None
comm.Gatherv(state["plate"][1:-1], [whole, counts] if comm.rank == 0 else None, root=0)
if whole is not None:
    print(
        f"after {options.steps} steps: total heat {whole.sum():.6f}, middle of row 4 "
        f"{whole[4, options.size // 2]:.6f}"
    )
