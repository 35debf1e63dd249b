"""Sample sort: sort locally, agree on splitters, and send every number to its rank by Alltoallv.

smpirun -n 4 examples/sample_sort.py --count 100000
"""

import argparse

import numpy as np

from serverless_mpi import MPI

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--count", type=int, default=100_000, help="numbers on each rank")
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()

comm = MPI.COMM_WORLD
own = np.sort(np.random.default_rng([options.seed, comm.rank]).random(options.count))
samples = np.sort(np.concatenate(comm.allgather(own[:: max(1, options.count // 32)])))
splitters = samples[[len(samples) * part // comm.size for part in range(1, comm.size)]]

bounds = np.concatenate([[0], np.searchsorted(own, splitters), [len(own)]])
send_counts = np.diff(bounds)
recv_counts = np.empty_like(send_counts)
comm.Alltoall(send_counts, recv_counts)
sorted_part = np.empty(recv_counts.sum())
comm.Alltoallv([own, send_counts], [sorted_part, recv_counts])
sorted_part.sort()

# The parts are sorted, and so are their ends in the order of ranks.
edges = comm.gather((len(sorted_part), sorted_part[:1], sorted_part[-1:]), root=0)
assert (np.diff(sorted_part) >= 0).all()
if edges is not None:
    limits = np.concatenate([edge for _, *pair in edges for edge in pair])
    assert (np.diff(limits) >= 0).all()
    assert sum(count for count, *_ in edges) == comm.size * options.count
    print(f"{comm.size * options.count} numbers sorted on {comm.size} ranks")
