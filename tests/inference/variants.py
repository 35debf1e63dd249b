"""A job of 8 ranks: the engine on 1, 2, 3, 5 and 8 of them, or on numbers given as arguments, in
every mode, against the serial kernel.
"""

from __future__ import annotations

import sys

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.inference import engine, networks, partition
from serverless_mpi.sparse import serial_forward

NEURONS, LAYERS, SAMPLES, BIAS = 96, 4, 60, -0.15
METHODS = {1: "block", 2: "random", 3: "greedy", 5: "random", 8: "greedy"}


def main() -> None:
    world = MPI.COMM_WORLD
    network = networks.random(NEURONS, LAYERS, seed=11)
    x = (np.random.default_rng(11).random((NEURONS, SAMPLES)) > 0.9).astype(np.float32)
    x[:, ::9] = 0
    whole = serial_forward(list(network), x, BIAS)
    living = np.flatnonzero((whole != 0).any(axis=0))
    for size in map(int, sys.argv[1:] or METHODS):
        comm = world.Split(0 if world.rank < size else MPI.UNDEFINED, world.rank)
        if world.rank >= size:
            continue
        owners = partition.make(network, size, METHODS[size])
        parts = partition.build(network, owners, comm.rank)
        share = x[owners.rows(0, comm.rank)]
        for batches, accumulate in ((1, False), (3, False), (1, True)):
            y, samples, _ = engine.infer(
                comm, parts, share, BIAS, batches=batches, accumulate=accumulate
            )
            right = whole[owners.rows(LAYERS, comm.rank)][:, living]
            same = np.array_equal(samples, living) and (
                accumulate or y.tobytes() == right.tobytes()
            )
            close = y.shape == right.shape and np.allclose(y, right, rtol=1e-4, atol=1e-4)
            if comm.allreduce(int(not (same and close))) == 0 and comm.rank == 0:
                print(
                    f"{size} ranks, {batches} batches, "
                    f"{'accumulating' if accumulate else 'exact'}: right",
                    flush=True,
                )
        comm.Free()


if __name__ == "__main__":
    main()
