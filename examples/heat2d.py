"""Heat on a square plate: each rank has a block of rows and exchanges a halo row with neighbours.

smpirun -n 4 examples/heat2d.py --size 64 --steps 50
"""

import argparse

import numpy as np

from serverless_mpi import MPI

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--size", type=int, default=64, help="rows and columns of the plate")
parser.add_argument("--steps", type=int, default=50)
options = parser.parse_args()

comm = MPI.COMM_WORLD
edges = np.linspace(0, options.size, comm.size + 1).astype(int)
rows = edges[comm.rank + 1] - edges[comm.rank]
if options.size < comm.size:
    raise SystemExit(
        f"a plate of {options.size} rows has too few for {comm.size} ranks; "
        f"use --size {comm.size} or more"
    )

plate = np.zeros((rows + 2, options.size))  # with a halo row above and below
if comm.rank == 0:
    plate[1] = 100.0  # the hot edge
up = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
down = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL

for _ in range(options.steps):
    comm.Sendrecv(plate[1], dest=up, recvbuf=plate[-1], source=down)
    comm.Sendrecv(plate[-2], dest=down, recvbuf=plate[0], source=up)
    new = plate.copy()
    new[1:-1, 1:-1] = (plate[:-2, 1:-1] + plate[2:, 1:-1] + plate[1:-1, :-2] + plate[1:-1, 2:]) / 4
    if comm.rank == 0:
        new[1] = plate[1]
    if comm.rank == comm.size - 1:
        new[-2] = plate[-2]
    plate = new

counts = np.diff(edges) * options.size
whole = np.empty((options.size, options.size)) if comm.rank == 0 else None
comm.Gatherv(plate[1:-1], [whole, counts] if comm.rank == 0 else None, root=0)
if whole is not None:
    print(
        f"after {options.steps} steps: total heat {whole.sum():.6f}, middle of row 4 "
        f"{whole[4, options.size // 2]:.6f}"
    )
