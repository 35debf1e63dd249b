"""From options to data: the model, its partition and the images, from files, a store or a
generator.

Every rank calls these functions with equal options, so a rank makes its part without a message.
What a file of a user can cause is a UsageError, StoreError or ValueError with a text for that user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serverless_mpi import job
from serverless_mpi.errors import StoreError, UsageError
from serverless_mpi.inference import backends, dataset, files, networks, partition, plan, store
from serverless_mpi.inference.engine import Part
from serverless_mpi.inference.options import RunOptions, SourceOptions
from serverless_mpi.sparse import CAP

Floats = NDArray[np.float32]

DIGITS = 1797  # number of bundled images
GENERATED = ("radix", "random")  # networks that are generated, not read


@dataclass(frozen=True)
class Model:
    """A rank's part of a model, and facts of the whole.

    Attributes
    ----------
    nonzeros, nbytes
        Weights of all layers, and bytes of all parts together.
    first, last
        (neurons,) owner of each neuron before the first and behind the last layer.
    own
        The rank's part of each layer.
    """

    name: str
    neurons: int
    layers: int
    bias: float
    cap: float
    method: str
    nonzeros: int
    nbytes: int
    first: NDArray[np.uint16]
    last: NDArray[np.uint16]
    own: Sequence[Part]


def network(options: SourceOptions) -> networks.Network:
    """Return the network of --net, generated or read from a folder; not that of a store.

    Raises
    ------
    ValueError
        The network does not exist in that size, or the folder does not hold it.
    """
    if options.net not in GENERATED:
        return dataset.read_network(options.net, options.neurons, options.layers, options.bias)
    make = networks.radix if options.net == "radix" else networks.random
    generated = make(options.neurons, options.layers, options.seed)
    return generated if options.bias is None else replace(generated, bias=options.bias)


def opened(options: SourceOptions, url: str) -> backends.Backend:
    """Open the store at `url`.

    Without --endpoint, s3:// is the endpoint of this job; in a Lambda function, AWS.
    """
    endpoint = options.endpoint
    spec = job.current_spec(os.environ)
    if endpoint is None and url.startswith("s3://") and spec is not None:
        endpoint = spec.endpoint
        if endpoint is None and "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            endpoint = backends.AWS
    return backends.open_backend(url, endpoint, options.region)


def describe(options: SourceOptions, samples: int) -> tuple[plan.Work, int | None]:
    """Describe a run for the planner, without loading the model.

    Returns
    -------
    work : plan.Work
        Size of the model and of the run over `samples` samples.
    parts : int or None
        Parts of the store; None if the model is not stored.
    """
    if options.store:
        backend = opened(options, options.store)
        index = store.read_index(backend)
        backend.close()
        make = plan.Work.radix if index.name == "radix" else plan.Work.random
        work = replace(
            make(index.neurons, index.layers, samples),
            nonzeros=index.stored,
            weight_bytes=index.nbytes,
            rows={index.parts: index.rows / index.layers},
        )
        return work, index.parts
    source = network(options)
    make = plan.Work.radix if options.net == "radix" else plan.Work.random
    work = make(options.neurons, options.layers, samples)
    if options.net not in GENERATED:
        sizes = [(matrix.nnz, matrix.nbytes) for matrix in source]
        work = replace(
            work,
            nonzeros=sum(nnz for nnz, _ in sizes),
            weight_bytes=sum(nbytes for _, nbytes in sizes),
        )
    return work, None


def model(options: SourceOptions, parts: int, part: int) -> Model:
    """Return one of `parts` parts of the model, from the store or made here.

    Raises
    ------
    ValueError, ServerlessMPIError
        The model does not exist, or is stored in another number of parts.
    """
    if options.store:
        backend = opened(options, options.store)
        index = store.read_index(backend)
        if index.parts != parts:
            raise UsageError(
                f"{backend.url} is in {index.parts} parts; "
                f"start {index.parts} ranks per replica, not {parts}"
            )
        own = store.load_part(backend, index, part)
        backend.close()
        return Model(
            index.name,
            index.neurons,
            index.layers,
            index.bias,
            index.cap,
            index.method,
            index.nonzeros,
            index.nbytes,
            index.first,
            index.last,
            own,
        )
    whole = network(options)
    cut = cut_of(options, whole, parts)
    own = partition.build(whole, cut, part)
    # An estimate: this part stands for all.
    nbytes = parts * sum(
        layer.indptr.nbytes + layer.indices.nbytes + layer.values.nbytes for layer in own
    )
    nonzeros = sum(matrix.nnz for matrix in whole)
    return Model(
        whole.name,
        whole.neurons,
        whole.layers,
        whole.bias,
        CAP,
        cut.method,
        nonzeros,
        nbytes,
        cut.owners[0],
        cut.owners[-1],
        own,
    )


def cut_of(options: SourceOptions, whole: networks.Network, parts: int) -> partition.Partition:
    """Return the partition of --partition, or a new one by --method.

    Raises
    ------
    UsageError
        The file has another number of parts.
    """
    if not options.partition:
        return partition.make(
            whole,
            parts,
            options.method or ("block" if options.net == "random" else "greedy"),
            options.seed,
        )
    cut = store.read_partition(options.partition, whole)
    if cut.parts != parts:
        raise UsageError(f"{options.partition} has {cut.parts} parts, not {parts}")
    return cut


def images(options: SourceOptions, neurons: int) -> Floats:
    """Return the images of --images, or the bundled digits: (neurons, samples)."""
    if options.images:
        return read_images(options, options.images, neurons, options.samples)
    return np.ascontiguousarray(dataset.digits(neurons)[:, : options.samples], np.float32)


def read_images(
    options: SourceOptions, path: str, neurons: int, count: int | None, limit: int | None = None
) -> Floats:
    """Read images of a file or of an s3:// object.

    Parameters
    ----------
    options
        Endpoint of s3://, and --memory.
    path
        The file or URL; its suffix is the format.
    neurons
        Pixels of an image.
    count
        The first `count` images are read; None for all.
    limit
        Bytes of memory that they may take; None for --memory, or else the machine's.

    Returns
    -------
    ndarray
        (neurons, samples) float32.

    Raises
    ------
    ValueError, StoreError
        The file is missing or not of that format, or has other or fewer images.
    """
    if limit is None and options.memory:
        limit = options.memory * plan.MB
    if not path.startswith("s3://"):
        return dataset.read_images(path, neurons, count, limit)
    folder, _, name = path.rpartition("/")
    backend = opened(options, folder)
    try:
        data = backend.get(name, limit)
    finally:
        backend.close()
    if data is None:
        raise StoreError(f"{folder} has no {name}")
    source = files.Source.of(path, data, limit)
    return dataset.images_from(source, Path(name).suffix, neurons, count)


def samples(options: SourceOptions) -> int:
    """Return the number of images that the options name."""
    if options.input:
        backend = opened(options, _store_of_input(options))
        count = store.count_inputs(backend, store.read_index(backend), options.input)
        backend.close()
    elif options.images:
        count = images(options, _neurons(options)).shape[1]
    else:
        count = DIGITS
    return min(count, options.samples or count)


def _store_of_input(options: SourceOptions) -> str:
    """The store that --input refers to."""
    if not options.store:
        raise UsageError("--input names images in a store: give --store too")
    return options.store


def _neurons(options: SourceOptions) -> int:
    if not options.store:
        return int(options.neurons)
    backend = opened(options, options.store)
    neurons = store.read_index(backend).neurons
    backend.close()
    return neurons


def check_paths(options: RunOptions) -> None:
    """Check that ranks on another machine need no file of this one.

    Raises
    ------
    UsageError
        An option names such a file.
    """
    if options.platform == "local":
        return
    for name in ("store", "images", "partition", "categories", "output"):
        path = getattr(options, name)
        if path and not path.startswith("s3://"):
            raise UsageError(
                f"--{name} {path}: workers on {options.platform} do not see this machine's files; "
                "use s3://bucket/..."
            )
    for path in options.report:
        if not path.startswith("s3://"):
            raise UsageError(
                f"--report {path}: workers on {options.platform} do not see this machine's files; "
                "use s3://bucket/..."
            )


def own_images(options: RunOptions, own: Model, part: int, replica: int) -> tuple[Floats, int]:
    """Return the images of a rank.

    Returns
    -------
    x : ndarray
        (own neurons, samples of the replica) float32.
    total : int
        Samples of all replicas.
    """
    if options.input:
        x = stored_images(options, options.input, part, options.samples)
    else:
        whole = images(options, own.neurons)
        store.check_images(whole, own.neurons)
        x = whole[own.first == part]
    start, stop = share(x.shape[1], options.replicas, replica)
    return np.ascontiguousarray(x[:, start:stop], np.float32), x.shape[1]


def stored_images(options: SourceOptions, name: str, part: int, count: int | None) -> Floats:
    """Return the first `count` images of a stored input: (own neurons, samples).

    Raises
    ------
    UsageError, StoreError
        The input does not exist, or has fewer images.
    """
    backend = opened(options, _store_of_input(options))
    x = store.load_inputs(backend, store.read_index(backend), name, part)
    backend.close()
    if count is not None and count > x.shape[1]:
        raise UsageError(f"input {name} has {x.shape[1]} images, not {count}")
    return x[:, :count]


def share(total: int, shares: int, number: int) -> tuple[int, int]:
    """Return first and last (exclusive) of share `number`; sizes differ by at most one."""
    return total * number // shares, total * (number + 1) // shares
