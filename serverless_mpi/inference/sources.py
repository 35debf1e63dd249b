"""What a command line names: a model that is stored or made, its partition, and images."""

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

DIGITS = 1797  # the bundled images
MADE = ("radix", "random")  # networks that need no files


@dataclass(frozen=True)
class Model:
    """A rank's part of a model.  first, last: owner of each neuron before the first and behind the last layer."""

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
    """The network that is made, or read from a folder's files, not stored; ValueError if there is none of that size."""
    if options.net not in MADE:
        return dataset.read_network(options.net, options.neurons, options.layers, options.bias)
    make = networks.radix if options.net == "radix" else networks.random
    made = make(options.neurons, options.layers, options.seed)
    if options.bias is None:
        return made
    return networks.Network(made.neurons, made.layers, options.bias, made.make, made.name)


def opened(options: SourceOptions, url: str) -> backends.Backend:
    """A store at `url`; in a function of AWS that is AWS, unless the job says otherwise."""
    endpoint = options.endpoint
    spec = job.current_spec(os.environ)
    if endpoint is None and url.startswith("s3://") and spec is not None:
        endpoint = spec.endpoint
        if endpoint is None and "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            endpoint = backends.AWS
    return backends.open_backend(url, endpoint, options.region)


def describe(options: SourceOptions, samples: int) -> tuple[plan.Work, int | None]:
    """(what is to be computed, parts it is in or None), without loading it."""
    if options.store:
        place = opened(options, options.store)
        index = store.read_index(place)
        place.close()
        make = plan.Work.radix if index.name == "radix" else plan.Work.random
        work = replace(
            make(index.neurons, index.layers, samples),
            nonzeros=index.stored,
            weight_bytes=index.nbytes,
            rows={index.parts: index.rows / index.layers},
        )
        return work, index.parts
    named = network(options)
    make = plan.Work.radix if options.net == "radix" else plan.Work.random
    work = make(options.neurons, options.layers, samples)
    if options.net not in MADE:
        sizes = [(matrix.nnz, matrix.nbytes) for matrix in named]
        work = replace(
            work, nonzeros=sum(one for one, _ in sizes), weight_bytes=sum(one for _, one in sizes)
        )
    return work, None


def model(options: SourceOptions, parts: int, part: int) -> Model:
    """Part `part` of `parts`, from the store or made here.

    Raises
    ------
    ValueError, ServerlessMPIError
        There is no such model, or it is in another number of parts.
    """
    if options.store:
        place = opened(options, options.store)
        index = store.read_index(place)
        if index.parts != parts:
            raise UsageError(
                f"{place.url} is in {index.parts} parts; start {index.parts} ranks a replica, not {parts}"
            )
        own = store.load_part(place, index, part)
        place.close()
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
    made = network(options)
    cut = cut_of(options, made, parts)
    own = partition.build(made, cut, part)
    nbytes = sum(one.indptr.nbytes + one.indices.nbytes + one.values.nbytes for one in own) * parts
    nonzeros = sum(matrix.nnz for matrix in made)
    return Model(
        made.name,
        made.neurons,
        made.layers,
        made.bias,
        CAP,
        cut.method,
        nonzeros,
        nbytes,
        cut.owners[0],
        cut.owners[-1],
        own,
    )


def cut_of(options: SourceOptions, made: networks.Network, parts: int) -> partition.Partition:
    """The partition the command line names, a file's or a new one."""
    if not options.partition:
        return partition.make(
            made,
            parts,
            options.method or ("block" if options.net == "random" else "greedy"),
            options.seed,
        )
    cut = store.read_partition(options.partition, made)
    if cut.parts != parts:
        raise UsageError(f"{options.partition} has {cut.parts} parts, not {parts}")
    return cut


def images(options: SourceOptions, neurons: int) -> Floats:
    """(neurons, samples): the images of a file, or the bundled digits."""
    if options.images:
        return read_images(options, options.images, neurons, options.samples)
    return np.ascontiguousarray(dataset.digits(neurons)[:, : options.samples], np.float32)


def read_images(
    options: SourceOptions, path: str, neurons: int, count: int | None, limit: int | None = None
) -> Floats:
    """(neurons, samples): the first `count` images of a file or of an object; ValueError or StoreError if it has none such.

    limit: bytes of memory that they may take; --memory, or the machine's, if not given.
    """
    if limit is None and options.memory:
        limit = options.memory * plan.MB
    if not path.startswith("s3://"):
        return dataset.read_images(path, neurons, count, limit)
    folder, _, name = path.rpartition("/")
    place = opened(options, folder)
    try:
        data = place.get(name, limit)
    finally:
        place.close()
    if data is None:
        raise StoreError(f"{folder} has no {name}")
    source = files.Source.of(path, data, limit)
    return dataset.images_from(source, Path(name).suffix, neurons, count)


def samples(options: SourceOptions) -> int:
    """How many images the command line names."""
    if options.input:
        place = opened(options, _store_of_input(options))
        count = store.count_inputs(place, store.read_index(place), options.input)
        place.close()
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
    place = opened(options, options.store)
    neurons = store.read_index(place).neurons
    place.close()
    return neurons


def check_paths(options: RunOptions) -> None:
    """Raise UsageError where a rank on another platform would be asked for a file of this machine."""
    if options.platform == "local":
        return
    for name in ("store", "images", "partition", "categories", "output"):
        path = getattr(options, name)
        if path and not path.startswith("s3://"):
            raise UsageError(
                f"--{name} {path}: workers on {options.platform} do not see this machine's files; use s3://bucket/..."
            )
    for path in options.report:
        if not path.startswith("s3://"):
            raise UsageError(
                f"--report {path}: workers on {options.platform} do not see this machine's files; use s3://bucket/..."
            )


def own_images(options: RunOptions, mine: Model, part: int, replica: int) -> tuple[Floats, int]:
    """(rows that the part owns of its replica's samples, samples of all replicas)."""
    if options.input:
        x = stored_images(options, options.input, part, options.samples)
    else:
        whole = images(options, mine.neurons)
        store.check_images(whole, mine.neurons)
        x = whole[mine.first == part]
    start, stop = share(x.shape[1], options.replicas, replica)
    return np.ascontiguousarray(x[:, start:stop], np.float32), x.shape[1]


def stored_images(options: SourceOptions, name: str, part: int, count: int | None) -> Floats:
    """(rows that the part owns, samples): the first `count` of a stored input."""
    place = opened(options, _store_of_input(options))
    x = store.load_inputs(place, store.read_index(place), name, part)
    place.close()
    if count is not None and count > x.shape[1]:
        raise UsageError(f"input {name} has {x.shape[1]} images, not {count}")
    return x[:, :count]


def share(total: int, shares: int, number: int) -> tuple[int, int]:
    """First and last (exclusive) of share `number`; shares differ by at most one."""
    return total * number // shares, total * (number + 1) // shares
