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
from serverless_mpi.inference import dataset, engine, networks
from serverless_mpi.sparse import serial_forward


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("radix", "random"), default="radix")
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--bias", type=float, help="default: the Graph Challenge's for RadiX-Net, 0 for a random net")
    parser.add_argument("--seed", type=int, default=0, help="of the network")
    parser.add_argument("--images", help="Graph Challenge TSV, or npz; default: scikit-learn's digits")
    parser.add_argument("--samples", type=int, help="how many of the images; default: all")
    parser.add_argument("--categories", help="file of the right answer, an image number a line, to be checked against")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    comm = MPI.COMM_WORLD
    problem = ""
    try:
        make = networks.radixnet if options.net == "radix" else networks.randomnet
        network = make(options.neurons, options.layers, options.seed)
        bias = options.bias
        if bias is None:
            bias = networks.BIAS[options.neurons] if options.net == "radix" else 0.0
        if options.images:
            images = dataset.read_images(options.images, options.neurons, options.samples)
        else:
            images = np.ascontiguousarray(dataset.digits(options.neurons)[:, : options.samples])
        bounds = engine.block_bounds(options.neurons, comm.size)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:  # every rank finds the same, so every rank ends, once rank 0 has told
        if comm.rank == 0:
            print(f"sparse_dnn: {problem}", file=sys.stderr, flush=True)
        comm.Barrier()
        sys.exit(2)

    parts = engine.partition(network, comm.rank, comm.size)
    x = np.ascontiguousarray(images[bounds[comm.rank] : bounds[comm.rank + 1]])
    comm.Barrier()
    started = time.perf_counter()
    y, samples, taken = engine.infer(comm, parts, x, bias)
    comm.Barrier()
    seconds = time.perf_counter() - started

    blocks = comm.gather(y, root=0)
    table = comm.gather((taken.compute_s, taken.exchange_s, taken.messages, taken.nbytes, taken.rows), root=0)
    if comm.rank == 0:
        answer = np.concatenate(blocks)
        began = time.perf_counter()
        whole = serial_forward(network, images, bias)
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
        print(f"{'rank':>6}{'compute s':>12}{'exchange s':>12}{'messages':>12}{'rows':>12}{'bytes':>14}", file=sys.stderr)
        rows = [*enumerate(table), ("all", [sum(column) for column in zip(*table)])]
        for name, (compute, exchange, messages, sent, nbytes) in [(n, (c, e, m, r, b)) for n, (c, e, m, b, r) in rows]:
            print(f"{name:>6}{compute:>12.3f}{exchange:>12.3f}{messages:>12,}{sent:>12,}{nbytes:>14,}", file=sys.stderr)
        print(
            f"{seconds:.2f} s on {comm.size} ranks ({edges / seconds / 1e9:.2f} G edges/s); "
            f"serial kernel on one core {serial_seconds:.2f} s",
            file=sys.stderr,
        )
        if not same:
            comm.Abort(1)


if __name__ == "__main__":
    main()
