"""A worker that an MPIPoolExecutor has spawned: `python -m serverless_mpi.futures.spawned`.

Its pool is the rank that spawned it (pool.SpawnedPool), and rank 0 of the merged communicator.
"""

from __future__ import annotations

from serverless_mpi import alias
from serverless_mpi.futures import worker
from serverless_mpi.MPI import COMM_WORLD, Comm


def main() -> None:
    """Run tasks until the pool is closed."""
    alias.own_futures()
    parent = Comm.Get_parent()
    comm = parent.Merge(high=True)
    worker.run(comm, 0, COMM_WORLD)
    comm.Disconnect()
    parent.Disconnect()


if __name__ == "__main__":
    main()
