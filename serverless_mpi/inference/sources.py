"""From options to data: the model, its partition and the images.

They come from files, a store or a generator. Every rank calls these functions with equal options,
so a rank makes its part without a message. Faults of a user's file or option are a UsageError,
StoreError or ValueError with a text for that user; any other exception is a fault of the program.
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
from serverless_mpi.inference import (
    backends,
    dataset,
    files,
    models,
    networks,
    partition,
    plan,
    store,
)
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
    name, neurons, layers, bias, cap
        As in `store.Index`.
    method
        Name of the partition method.
    nonzeros, nbytes
        Number of weights of all layers, and bytes of all parts together.
    first, last
        Owner of each neuron before the first and after the last layer.
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

    @property
    def outputs(self) -> int:
        """Neurons of the last layer."""
        return len(self.last)


# Options that another option replaces, so that a value of theirs has no effect.
_OF_NETWORK = ("net", "neurons", "layers", "bias", "method", "partition")


def check_effect(options: SourceOptions) -> None:
    """Check that no option of the model is without effect.

    Parameters
    ----------
    options
        The model's options.

    Raises
    ------
    UsageError
        An option has a value other than its default, and another option replaces it.
    """
    defaults = SourceOptions()
    given: tuple[str, ...] = ()
    by = ""
    if options.store:
        given, by = _OF_NETWORK, f"--store {options.store}"
    elif models.is_model(options.net):
        given, by = ("neurons", "layers", "bias"), f"--net {options.net}, which has a model.json"
    if not options.store and options.method and options.partition:
        given, by = ("method",), f"--partition {options.partition}"
    for name in given:
        if getattr(options, name) != getattr(defaults, name):
            raise UsageError(f"--{name} has no effect with {by}: omit one of them")


def network(options: SourceOptions) -> networks.Network:
    """Return the network of --net, generated or read from a folder; not that of a store.

    Parameters
    ----------
    options
        The network's options.

    Returns
    -------
    Network
        Its layers are made when it is iterated.

    Raises
    ------
    ValueError
        The network does not exist in that size, or the folder does not hold it.
    """
    if models.is_model(options.net):
        return models.read_model(options.net)
    if options.net not in GENERATED:
        return dataset.read_network(options.net, options.neurons, options.layers, options.bias)
    make = networks.radix if options.net == "radix" else networks.random
    generated = make(options.neurons, options.layers, options.seed)
    return generated if options.bias is None else replace(generated, bias=options.bias)


def opened(options: SourceOptions, url: str) -> backends.Backend:
    """Open a store.

    Without --endpoint an s3:// URL is at the endpoint of this job; in a Lambda function, on AWS.

    Parameters
    ----------
    options
        Endpoint and region.
    url
        Path of a folder, or s3://bucket/prefix.

    Returns
    -------
    Backend
        The caller closes it.

    Raises
    ------
    UsageError
        As in `open_backend`.
    """
    endpoint = options.endpoint
    spec = job.current_spec(os.environ)
    if endpoint is None and url.startswith("s3://") and spec is not None:
        endpoint = spec.endpoint
        if endpoint is None and "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            endpoint = backends.AWS
    return backends.open_backend(url, endpoint, options.region)


def describe(options: SourceOptions, samples: int) -> tuple[plan.Work, int | None]:
    """Describe a run for the planner, without loading a stored model.

    Parameters
    ----------
    options
        The model.
    samples
        Number of samples of the run.

    Returns
    -------
    work : plan.Work
        Size of the model and of the run.
    parts : int or None
        Parts of the store; None if the model is not stored.

    Raises
    ------
    ValueError, ServerlessMPIError
        The model does not exist.
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
    work = make(source.neurons, source.layers, samples)
    if options.net not in GENERATED:
        sizes = [(matrix.nnz, matrix.nbytes) for matrix in source]
        work = replace(
            work,
            nonzeros=sum(nnz for nnz, _ in sizes),
            weight_bytes=sum(nbytes for _, nbytes in sizes),
        )
    return work, None


def model(options: SourceOptions, parts: int, part: int) -> Model:
    """Return a part of the model, from the store or made here.

    Parameters
    ----------
    options
        The model and its partition.
    parts, part
        Number of parts, and the one to return.

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
                f"{backend.url} has {index.parts} parts; "
                f"start {index.parts} ranks per replica, not {parts}"
            )
        own = store.load_part(backend, index, part)
        backend.close()
        return Model(
            name=index.name,
            neurons=index.neurons,
            layers=index.layers,
            bias=index.bias,
            cap=index.cap,
            method=index.method,
            nonzeros=index.nonzeros,
            nbytes=index.nbytes,
            first=index.first,
            last=index.last,
            own=own,
        )
    whole = network(options)
    cut = cut_of(options, whole, parts)
    own = partition.build(whole, cut, part)
    # An estimate from this part: the bytes of the others would need a message.
    part_nbytes = sum(
        layer.indptr.nbytes + layer.indices.nbytes + layer.values.nbytes for layer in own
    )
    return Model(
        name=whole.name,
        neurons=whole.neurons,
        layers=whole.layers,
        bias=whole.bias,
        cap=CAP,
        method=cut.method,
        nonzeros=sum(matrix.nnz for matrix in whole),
        nbytes=parts * part_nbytes,
        first=cut.owners[0],
        last=cut.owners[-1],
        own=own,
    )


def cut_of(options: SourceOptions, whole: networks.Network, parts: int) -> partition.Partition:
    """Return the partition of --partition, or a new one by --method.

    Parameters
    ----------
    options
        The partition's options.
    whole
        The network.
    parts
        Number of parts.

    Raises
    ------
    UsageError
        The file has another number of parts.
    ValueError, StoreError
        As in `partition.make` and `store.read_partition`.
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
    """Return the images of --images, or the bundled digits.

    Parameters
    ----------
    options
        The images' options.
    neurons
        Pixels of an image.

    Returns
    -------
    ndarray
        (neurons, samples) float32, C-contiguous.

    Raises
    ------
    ValueError, StoreError
        As in `read_images`.
    """
    if options.images:
        return read_images(options, options.images, neurons, options.samples)
    if models.is_model(options.net):
        raise UsageError(f"give --images FILE: inputs of {neurons} numbers for {options.net}")
    return np.ascontiguousarray(dataset.digits(neurons)[:, : options.samples], np.float32)


def read_images(
    options: SourceOptions, path: str, neurons: int, count: int | None, limit: int | None = None
) -> Floats:
    """Read images from a file or an s3:// object.

    Parameters
    ----------
    options
        Endpoint of s3:// URLs, and --memory.
    path
        The file or URL; its suffix is the format.
    neurons
        Pixels of an image.
    count
        Number of images to read, the first ones; None for all.
    limit
        Memory that they may take, in bytes; None for --memory, or else the machine's.

    Returns
    -------
    ndarray
        (neurons, samples) float32.

    Raises
    ------
    ValueError, StoreError
        The file is missing or not in that format, or its images are too few or of another size.
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
    """Return the number of images that the options name.

    Parameters
    ----------
    options
        The images' options; the images of a file are read.

    Raises
    ------
    ValueError, ServerlessMPIError
        The images do not exist.
    """
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
    """Return the store that --input refers to; raise UsageError without --store."""
    if not options.store:
        raise UsageError("--input names images in a store: give --store too")
    return options.store


def _neurons(options: SourceOptions) -> int:
    if not options.store:
        general = models.is_model(options.net)
        return network(options).neurons if general else int(options.neurons)
    backend = opened(options, options.store)
    neurons = store.read_index(backend).neurons
    backend.close()
    return neurons


def check_paths(options: RunOptions) -> None:
    """Check that ranks on another machine need no file of this one.

    Parameters
    ----------
    options
        Options of the run.

    Raises
    ------
    UsageError
        An option names a file that is not an s3:// URL, and ranks run on another machine.
    """
    if options.platform == "local":
        return
    for name in ("store", "images", "partition", "categories", "output"):
        path = getattr(options, name)
        if path and not path.startswith("s3://"):
            raise UsageError(
                f"--{name} {path}: workers on {options.platform} cannot access this machine's "
                "files; use s3://bucket/..."
            )
    for path in options.report:
        if not path.startswith("s3://"):
            raise UsageError(
                f"--report {path}: workers on {options.platform} cannot access this machine's "
                "files; use s3://bucket/..."
            )


def own_images(options: RunOptions, own: Model, part: int, replica: int) -> tuple[Floats, int]:
    """Return the images of a rank.

    Parameters
    ----------
    options
        The images' options, and the number of replicas.
    own
        The rank's part of the model.
    part, replica
        Numbers of the rank's part and replica.

    Returns
    -------
    x : ndarray
        (own neurons, samples of the replica) float32, C-contiguous.
    total : int
        Number of samples of all replicas.

    Raises
    ------
    ValueError, ServerlessMPIError
        The images do not exist, or do not fit the model.
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
    """Return images of a stored input.

    Parameters
    ----------
    options
        The store.
    name
        Name of the input.
    part
        Part whose rows are returned.
    count
        Number of images, the first ones; None for all.

    Returns
    -------
    ndarray
        (own neurons, samples) float32.

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
    """Divide a range into shares whose sizes differ by at most one.

    Parameters
    ----------
    total
        Length of the range, which begins with 0.
    shares, number
        Number of shares, and the one to return.

    Returns
    -------
    tuple of int
        First number of the share, and the one after its last.
    """
    return total * number // shares, total * (number + 1) // shares
