"""mpipartition: particles of a square move to the ranks that own their positions."""

import numpy as np
from mpi4py import MPI
from mpipartition import Partition, distribute, overload

comm = MPI.COMM_WORLD
box = 1.0
partition = Partition(2)
rng = np.random.default_rng(comm.rank)
count = 1000
data = {axis: rng.uniform(0, box, count) for axis in "xy"}
data["id"] = np.arange(count) + comm.rank * count
own = distribute(partition, box, data, ("x", "y"))
for place, axis in enumerate("xy"):
    low = partition.origin[place] * box
    assert ((own[axis] >= low) & (own[axis] < low + partition.extent[place] * box)).all()
assert comm.allreduce(len(own["id"])) == count * comm.size
assert sorted(np.concatenate(comm.allgather(own["id"]))) == list(range(count * comm.size))
more = overload(partition, box, own, 0.1, ("x", "y"))
assert len(more["id"]) > len(own["id"])
if comm.rank == 0:
    print("mpipartition: held")
