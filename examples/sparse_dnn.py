"""Distributed inference of a sparse deep neural network on images, checked against the serial kernel.

smpirun -n 4 examples/sparse_dnn.py          mpirun -n 4 python examples/sparse_dnn.py

RadiX-Net of 1024 neurons and 120 layers; by default on scikit-learn's handwritten digits.
"""

import argparse
import hashlib
import sys
import time

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.inference import dataset, engine, networks, partition
from serverless_mpi.sparse import serial_forward


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("radix", "random"), default="radix")
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--bias", type=float, help="default: the Graph Challenge's for RadiX-Net, 0 for a random net")
    parser.add_argument("--seed", type=int, default=0, help="of the network")
    parser.add_argument("--partition", choices=tuple(partition.METHODS), default="block", help="of the neurons over the ranks")
    parser.add_argument("--images", help="Graph Challenge TSV, or npz; default: scikit-learn's digits")
    parser.add_argument("--samples", type=int, help="how many of the images; default: all")
    parser.add_argument("--categories", help="file of the right answer, an image number a line, to be checked against")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    comm = MPI.COMM_WORLD
    problem = ""
    try:
        make = networks.radix if options.net == "radix" else networks.random
        network = make(options.neurons, options.layers, options.seed)
        bias = network.bias if options.bias is None else options.bias
        if options.images:
            images = dataset.read_images(options.images, options.neurons, options.samples)
        else:
            images = np.ascontiguousarray(dataset.digits(options.neurons)[:, : options.samples])
        owners = partition.make(network, comm.size, options.partition)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:  # every rank finds the same, so every rank ends, once rank 0 has told
        if comm.rank == 0:
            print(f"sparse_dnn: {problem}", file=sys.stderr, flush=True)
        comm.Barrier()
        sys.exit(2)

    parts = partition.build(network, owners, comm.rank)
    x = images[owners.rows(0, comm.rank)]
    comm.Barrier()
    started = time.perf_counter()
    y, samples, taken = engine.infer(comm, parts, x, bias)
    comm.Barrier()
    seconds = time.perf_counter() - started

    blocks = comm.gather(y, root=0)
    table = comm.gather(taken.total(), root=0)
    if comm.rank == 0:
        answer = np.empty((options.neurons, len(samples)), np.float32)
        for rank, block in enumerate(blocks):
            answer[owners.rows(owners.layers, rank)] = block
        began = time.perf_counter()
        whole = serial_forward(list(network), images, bias)
        serial_seconds = time.perf_counter() - began
        right = np.flatnonzero((whole != 0).any(axis=0))
        same = np.array_equal(samples, right) and np.array_equal(answer, whole[:, right])
        digest = hashlib.sha256(answer.tobytes()).hexdigest()[:16]
        print(f"{options.net} net of {options.neurons} neurons, {options.layers} layers; {images.shape[1]} images")
        print(f"{len(samples)} images have an active output; first {(samples[:5] + 1).tolist()}; checksum {digest}")
        print(f"serial kernel: {'the same to the last bit' if same else 'DIFFERENT'}")
        if options.categories:
            wanted = dataset.read_categories(options.categories)
            matched = np.array_equal(samples + 1, wanted)
            print(f"official categories: {'the same' if matched else 'DIFFERENT'} ({len(wanted)})")
            same = same and matched
        edges = images.shape[1] * sum(one.nnz for one in network)
        print(f"{'rank':>6}{'compute s':>12}{'send s':>10}{'wait s':>10}{'messages':>12}{'rows':>12}{'bytes':>14}", file=sys.stderr)
        for rank, one in enumerate(table):
            print(
                f"{rank:>6}{one.compute_s:>12.3f}{one.send_s:>10.3f}{one.wait_s:>10.3f}{one.messages:>12,}{one.rows:>12,}{one.nbytes:>14,}",
                file=sys.stderr,
            )
        print(
            f"{seconds:.2f} s on {comm.size} ranks ({edges / seconds / 1e9:.2f} G edges/s); "
            f"serial kernel on one core {serial_seconds:.2f} s",
            file=sys.stderr,
        )
        if not same:
            comm.Abort(1)


if __name__ == "__main__":
    main()
