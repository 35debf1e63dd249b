"""Pi by the midpoint rule: ranks share the intervals, and a reduction adds their sums.

smpirun -n 4 examples/pi.py --intervals 1000000
"""

import argparse

import numpy as np

from serverless_mpi import MPI

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--intervals", type=int, default=1_000_000)
intervals = parser.parse_args().intervals

comm = MPI.COMM_WORLD
x = (np.arange(comm.rank, intervals, comm.size) + 0.5) / intervals
part = np.array(np.sum(4 / (1 + x * x)) / intervals)
pi = np.zeros(())
comm.Reduce(part, pi, op=MPI.SUM, root=0)
if comm.rank == 0:
    print(f"pi is about {pi:.9f}, wrong by {abs(pi - np.pi):.1e}")
