"""Distributed inference with a sparse network, checked against the serial kernel.

smpirun -n 4 examples/sparse_dnn.py          mpirun -n 4 python examples/sparse_dnn.py

The default is RadiX-Net of 1024 neurons and 120 layers on the bundled handwritten digits.
`smpi-infer` does more.
"""

import argparse
import hashlib
import sys
import time

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.inference import dataset, engine, networks, partition
from serverless_mpi.sparse import serial_forward

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--net", choices=("radix", "random"), default="radix")
parser.add_argument("--neurons", type=int, default=1024)
parser.add_argument("--layers", type=int, default=120)
parser.add_argument("--seed", type=int, default=0, help="seed of the network")
parser.add_argument(
    "--partition",
    choices=tuple(partition.METHODS),
    default="greedy",
    help="how neurons are assigned to ranks",
)
parser.add_argument("--images", help="Graph Challenge TSV, npz or MatrixMarket")
parser.add_argument("--samples", type=int, help="number of images; default: all")
parser.add_argument("--categories", help="file of the expected answer, one image number per line")
options = parser.parse_args()
comm = MPI.COMM_WORLD

try:
    make = networks.radix if options.net == "radix" else networks.random
    network = make(options.neurons, options.layers, options.seed)
    if options.images:
        images = dataset.read_images(options.images, options.neurons, options.samples)
    else:
        images = np.ascontiguousarray(dataset.digits(options.neurons)[:, : options.samples])
    owners = partition.make(network, comm.size, options.partition)
except (ValueError, OSError) as error:
    # Every rank has the same error, so every rank exits; the barrier lets rank 0 print first.
    if comm.rank == 0:
        print(f"sparse_dnn: {error}", file=sys.stderr, flush=True)
    comm.Barrier()
    sys.exit(2)

# This rank's rows of each layer, and what it sends and receives.
parts = partition.build(network, owners, comm.rank)
comm.Barrier()
started = time.perf_counter()
y, samples, taken = engine.infer(comm, parts, images[owners.rows(0, comm.rank)], network.bias)
seconds = comm.reduce(time.perf_counter() - started, MPI.MAX)

blocks = comm.gather((owners.rows(owners.layers, comm.rank), y))
sent = comm.reduce(taken.total().nbytes)
if comm.rank == 0:
    answer = np.empty((options.neurons, len(samples)), np.float32)
    for rows, block in blocks:
        answer[rows] = block
    whole = serial_forward(list(network), images, network.bias)
    right = np.flatnonzero((whole != 0).any(axis=0))
    same = np.array_equal(samples, right) and np.array_equal(answer, whole[:, right])
    digest = hashlib.sha256(answer.tobytes()).hexdigest()[:16]
    print(
        f"{options.net} net of {options.neurons} neurons, {options.layers} layers; "
        f"{images.shape[1]} images"
    )
    print(
        f"{len(samples)} images have an active output; first {(samples[:5] + 1).tolist()}; "
        f"checksum {digest}"
    )
    print(f"serial kernel: {'the same to the last bit' if same else 'DIFFERENT'}")
    if options.categories:
        wanted = dataset.read_categories(options.categories)
        same = same and np.array_equal(samples + 1, wanted)
        print(f"official categories: {'the same' if same else 'DIFFERENT'} ({len(wanted)})")
    print(
        f"{seconds:.2f} s on {comm.size} ranks; {sent:,} bytes of activations sent", file=sys.stderr
    )
    if not same:
        comm.Abort(1)
