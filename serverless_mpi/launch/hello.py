"""Ranks greet each other: what `smpi hello` runs on the platform."""

import platform

import numpy as np

from serverless_mpi import MPI


def main() -> None:
    """Receive a number from the neighbour and sum up all numbers, on every rank."""
    comm = MPI.COMM_WORLD
    before = comm.sendrecv(
        comm.rank, dest=(comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size
    )
    total = np.zeros(1)
    comm.Allreduce(np.array([float(comm.rank)]), total)
    if total[0] != comm.size * (comm.size - 1) / 2 or before != (comm.rank - 1) % comm.size:
        raise SystemExit(
            f"rank {comm.rank}: the sum is {total[0]:.0f} and the neighbour sent {before};"
            " both must be the numbers of the ranks"
        )
    print(
        f"rank {comm.rank} of {comm.size} greets, after rank {before}:"
        f" Python {platform.python_version()} on {platform.machine()}"
    )


if __name__ == "__main__":
    main()
