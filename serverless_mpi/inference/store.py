"""The store: a partitioned model in files, of which each worker reads and verifies its own part.

A store is a folder or s3://bucket/prefix (`backends`) with these files, in the format of
`container`:

    index.smpi             facts of the model; owners of its first and last neurons
    part-00003.smpi        all layers as part 3 holds them
    input-NAME-00003.smpi  rows of images that part 3 owns

The index is written last, so a store without an index is incomplete. Every file has the
fingerprints of its model and partition, and files with different fingerprints are not used
together. A partition can also have a file of its own, for `smpi-infer store --partition`.

If you rename a field of `Part`, keep its section in `_SECTIONS`: section names are the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.errors import StoreError, UsageError
from serverless_mpi.inference import partition as partitions
from serverless_mpi.inference.backends import Backend, Folder
from serverless_mpi.inference.container import DIGEST_BYTES, Array, pack, unpack
from serverless_mpi.inference.engine import Exchange, Part
from serverless_mpi.inference.networks import Layers, endings_of
from serverless_mpi.inference.partition import Partition
from serverless_mpi.sparse import CAP, Activation, Ending

Floats = NDArray[np.float32]
INDEX = "index.smpi"
# Parts are made in groups of at most this size; the network is read once per group.
GROUP_BYTES = 1 << 30
_LENGTH = ".length"
# Field of `Part` -> its section in the file.
_SECTIONS = {
    "indptr": "indptr",
    "indices": "indices",
    "values": "values",
    "columns": "columns",
    "row_of_neuron": "expand",
    "exchange": "how",
    "send_rows": "give",
    "send_offsets": "give_to",
    "recv_index": "take",
    "recv_offsets": "take_from",
    "recv_counts": "come",
}


@dataclass(frozen=True)
class Index:
    """What a store holds.

    Attributes
    ----------
    name, neurons, layers, bias
        As in `networks.Network`.
    cap
        Largest activation.
    parts, method
        Number of parts, and name of the partition method.
    nonzeros, stored
        Number of weights of the network, and of the parts, which hold duplicate rows once.
    nbytes
        Bytes of all files of parts.
    rows
        Number of activation rows that are sent, in all layers and by all parts.
    model, layout
        Fingerprints of network and partition.
    first, last
        uint16: owner of each neuron before the first and after the last layer.
    general
        Whether the parts have endings of their own, so that `bias` and `cap` are not used.
    """

    name: str
    neurons: int
    layers: int
    parts: int
    method: str
    bias: float
    cap: float
    nonzeros: int
    stored: int
    nbytes: int
    rows: int
    model: str
    layout: str
    first: NDArray[np.uint16]
    last: NDArray[np.uint16]
    general: bool = False


_INDEX_FACTS: dict[str, type] = {
    **dict.fromkeys(("name", "method", "model", "layout"), str),
    **dict.fromkeys(("neurons", "layers", "parts", "nonzeros", "stored", "nbytes", "rows"), int),
    **dict.fromkeys(("bias", "cap"), float),
}


def fingerprint(network: Layers) -> str:
    """Return a digest of all weights of a network, in 32 hexadecimal digits.

    Parameters
    ----------
    network
        The network; read once.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    for ending in endings_of(network) or ():
        digest.update(f"{ending.describe()} {ending.limit} {ending.slope}".encode())
        digest.update(ending.bias.view(np.uint8).data)
    for matrix in network:
        digest.update(f"{matrix.n_rows} {matrix.n_cols} {matrix.constant}".encode())
        for array in (matrix.indptr, matrix.indices, matrix.values):
            if array is not None:
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def layout(partition: Partition) -> str:
    """Return a digest of a partition, in 32 hexadecimal digits.

    Parameters
    ----------
    partition
        The partition; its method does not matter.
    """
    digest = blake2b(f"{partition.neurons} {partition.parts}".encode(), digest_size=DIGEST_BYTES)
    if len(set(partition.sizes)) > 1:
        digest.update(repr(partition.sizes).encode())
    for owners in partition.owners:
        digest.update(np.ascontiguousarray(owners, np.uint16).view(np.uint8).data)
    return digest.hexdigest()


# --- partitions -----------------------------------------------------------------------------------


def write_partition(path: str | Path, partition: Partition, network: Layers) -> None:
    """Write a partition to a file.

    Parameters
    ----------
    path
        The file; replaced if it exists.
    partition
        The partition.
    network
        Its network, whose fingerprint the file gets.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    # Boundaries may share an array, which is written once.
    numbers: dict[int, int] = {}
    for owners in partition.owners:
        numbers.setdefault(id(owners), len(numbers))
    arrays = {id(owners): owners for owners in partition.owners}
    file = Path(path)
    Folder(file.parent).put(
        file.name,
        pack(
            "a partition",
            {
                "model": fingerprint(network),
                "method": partition.method,
                "neurons": partition.neurons,
                "parts": partition.parts,
            },
            {
                "which": np.array([numbers[id(owners)] for owners in partition.owners], np.int64),
                "sizes": np.array([len(arrays[key]) for key in numbers], np.int64),
                "owners": np.concatenate([arrays[key] for key in numbers]).astype(np.uint16),
            },
        ),
    )


def read_partition(path: str | Path, network: Layers) -> Partition:
    """Read a partition.

    Parameters
    ----------
    path
        A file that `write_partition` wrote.
    network
        The network of the partition.

    Raises
    ------
    StoreError
        The file is missing or damaged, or the partition is of another network.
    """
    file = Path(path)
    facts, arrays = Folder(file.parent).read(file.name, "a partition")
    if facts.get("model") != fingerprint(network):
        raise StoreError(
            f"{path} is a partition of another model; make one for this model with "
            "`smpi-infer partition`"
        )
    checked = _checked_facts(str(path), facts, {"method": str, "neurons": int, "parts": int})
    owners, which = _boundaries(arrays), arrays.get("which")
    if (
        not owners
        or which is None
        or which.dtype.kind not in "iu"
        or which.ndim != 1
        or not len(which)
        or not ((which >= 0) & (which < len(owners))).all()
        or len(owners[which[0]]) != checked["neurons"]
        or not all((array < checked["parts"]).all() for array in owners)
    ):
        raise StoreError(f"{path} is damaged: it does not hold a partition; write it again")
    boundaries = tuple(owners[number] for number in which)
    return Partition(checked["neurons"], checked["parts"], checked["method"], boundaries)


def _boundaries(arrays: dict[str, Array]) -> list[Array]:
    """Return the arrays of owners in a partition's file; [] if it has none that are valid.

    A file of an earlier version has a row per array, and no sizes.
    """
    owners, sizes = arrays.get("owners"), arrays.get("sizes")
    if owners is None or owners.dtype != np.uint16:
        return []
    if sizes is None:
        return list(owners) if owners.ndim == 2 else []
    good = owners.ndim == 1 and sizes.ndim == 1 and sizes.dtype.kind in "iu"
    if not good or not ((sizes >= 0) & (sizes <= len(owners))).all() or sizes.sum() != len(owners):
        return []
    return list(np.split(owners, np.cumsum(sizes)[:-1]))


# --- models ---------------------------------------------------------------------------------------


def part_name(part: int) -> str:
    """Return the file name of a part.

    Parameters
    ----------
    part
        Its number.
    """
    return f"part-{part:05}.smpi"


def write_model(
    backend: Backend,
    network: Layers,
    partition: Partition,
    *,
    bias: float,
    cap: float = CAP,
    name: str = "network",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Index:
    """Write a network in parts; it replaces the model in the store.

    The index is written last, so an interrupted call leaves no model that seems complete.

    Parameters
    ----------
    backend
        The store.
    network, partition
        The layers, and the owners of their neurons.
    bias, cap, name
        Facts of the model.
    progress
        Called after each part with the number of written parts and of all parts.

    Returns
    -------
    Index
        What was written.

    Raises
    ------
    StoreError, ValueError
        The backend refuses a file; the partition is not for such a network.
    """
    partition.check(network)
    facts: dict[str, Any] = {
        "name": name,
        "neurons": partition.neurons,
        "layers": len(partition.owners) - 1,
        "parts": partition.parts,
        "method": partition.method,
        "bias": bias,
        "cap": cap,
        "nonzeros": sum(matrix.nnz for matrix in network),
        **dict.fromkeys(("stored", "nbytes", "rows"), 0),  # summed up below
        "model": fingerprint(network),
        "layout": layout(partition),
        "general": endings_of(network) is not None,
    }
    for number, layers in _parts(network, partition):
        pieces = _packed_part(facts, number, layers)
        backend.put(part_name(number), pieces)
        facts["stored"] += sum(len(layer.indices) for layer in layers)
        facts["nbytes"] += sum(piece.nbytes for piece in pieces)
        facts["rows"] += sum(int(layer.recv_offsets[-1]) for layer in layers)
        progress(number + 1, partition.parts)
    arrays = {"first": partition.owners[0], "last": partition.owners[-1]}
    backend.put(INDEX, pack("a model's index", facts, arrays))
    return Index(**facts, **arrays)  # type: ignore[arg-type]


def _packed_part(facts: dict[str, Any], number: int, layers: list[Part]) -> list[memoryview]:
    """Return the file of a part; `facts` are those of the index."""
    part_facts = {
        "model": facts["model"],
        "layout": facts["layout"],
        "part": number,
        "parts": facts["parts"],
        "layers": len(layers),
    }
    return pack(_kind(facts["general"]), part_facts, _flat(layers))


def _kind(general: bool) -> str:
    """Return what a part's file holds: versions that know no endings must refuse those."""
    return "a part of a general model" if general else "a part of a model"


def _parts(network: Layers, partition: Partition) -> Iterator[tuple[int, list[Part]]]:
    """Yield the number and the layers of each part, made in groups of at most GROUP_BYTES."""
    part_bytes = sum(matrix.nbytes for matrix in network) // partition.parts + 1
    group_size = max(1, GROUP_BYTES // part_bytes)
    for start in range(0, partition.parts, group_size):
        group = range(start, min(start + group_size, partition.parts))
        layers_of: list[list[Part]] = [[] for _ in group]
        for layer in partitions.stream(network, partition, list(group)):
            for layers, part in zip(layers_of, layer, strict=True):
                layers.append(part)
        yield from zip(group, layers_of, strict=True)


def read_index(backend: Backend) -> Index:
    """Read what a store holds.

    Parameters
    ----------
    backend
        The store.

    Raises
    ------
    StoreError
        There is no model, or its index is damaged.
    """
    data = backend.get(INDEX)
    if data is None:
        raise StoreError(f"no model in {backend.url}: `smpi-infer store` writes one")
    name = f"{backend.url}/{INDEX}"
    facts, arrays = unpack(name, data, "a model's index")
    checked = _checked_facts(name, facts, _INDEX_FACTS)
    general = facts.get("general", False) is True
    first, last = arrays.get("first"), arrays.get("last")
    for owners in (first, last):
        if (
            owners is None
            or owners.dtype != np.uint16
            or owners.ndim != 1
            or ((owners is first or not general) and len(owners) != checked["neurons"])
            or not (owners < checked["parts"]).all()
        ):
            raise StoreError(f"{name} is damaged: its owners are not those of its neurons")
    return Index(**checked, first=first, last=last, general=general)  # type: ignore[arg-type]


def _checked_facts(name: str, facts: dict[str, Any], wanted: dict[str, type]) -> dict[str, Any]:
    """Return the wanted facts of a header, checked: integers are not negative, floats finite."""
    for fact, kind in wanted.items():
        value: Any = facts.get(fact)
        if kind is float and type(value) is int:  # other writers of JSON may write 5 for 5.0
            value = facts[fact] = float(value) if abs(value) < 1 << 53 else np.inf
        good = type(value) is kind
        if good and kind is int:
            good = 0 <= value < 1 << 63
        elif good and kind is float:
            good = bool(np.isfinite(value))
        if not good:
            raise StoreError(f"{name} is damaged: {fact} is missing or impossible; write it again")
    return {fact: facts[fact] for fact in wanted}


def load_part(backend: Backend, index: Index, part: int) -> list[Part]:
    """Read and verify all layers of a part.

    Parameters
    ----------
    backend, index
        The store, and what it holds.
    part
        Number of the part.

    Returns
    -------
    list of Part
        Its layers; their arrays are read-only views of the file's bytes.

    Raises
    ------
    UsageError
        The store has no such part.
    StoreError
        The file is missing, damaged, or of another model or partition than the index.
    """
    facts, arrays = _read_of_part(backend, index, part_name(part), _kind(index.general), part)
    name = f"{backend.url}/{part_name(part)}"
    count = _checked_facts(name, facts, {"layers": int})["layers"]
    layers = list(_layers(name, arrays, count))
    if index.general:
        layers = _with_endings(name, arrays, layers)
    own = int(np.count_nonzero(index.first == part))
    for number, layer in enumerate(layers):
        try:
            layer.check(index.parts, own)
        except ValueError as error:
            raise StoreError(f"{name} is damaged: layer {number}: {error}") from error
        own = layer.rows
    if count != index.layers or (
        layers and len(layers[-1].row_of_neuron) != np.count_nonzero(index.last == part)
    ):
        raise StoreError(f"{name} is damaged: it is not a part of {INDEX}; write both again")
    return layers


def _read_of_part(
    backend: Backend, index: Index, name: str, kind: str, part: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a file of a part, and check that it belongs to the index."""
    if not 0 <= part < index.parts:
        raise UsageError(
            f"no part {part} in {backend.url}, which has {index.parts}: start that many ranks per "
            "replica"
        )
    facts, arrays = backend.read(name, kind)
    for fact, what in (("model", "model"), ("layout", "partition")):
        if fact in facts and facts[fact] != getattr(index, fact):
            raise StoreError(
                f"{backend.url}/{name} is of another {what} than {INDEX}; write both again"
            )
    held = _checked_facts(f"{backend.url}/{name}", facts, {"part": int})["part"]
    if held != part:
        raise StoreError(f"{backend.url}/{name} is part {held}, under a wrong name")
    return facts, arrays


def _flat(layers: list[Part]) -> dict[str, Array]:
    """Return the sections of a part: each field of all layers, joined, and the lengths."""
    sections: dict[str, Array] = {}
    for field, section in _SECTIONS.items():
        values = [getattr(layer, field) for layer in layers]
        if isinstance(values[0], np.ndarray):
            sections[section + _LENGTH] = np.array([len(array) for array in values], np.int64)
            sections[section] = np.concatenate(values)
        else:
            sections[section] = np.array(values)
    endings = [layer.ending for layer in layers if layer.ending is not None]
    if endings:
        sections["activation"] = np.array([int(ending.activation) for ending in endings], np.uint8)
        sections["on_nonzeros"] = np.array([ending.on_nonzeros for ending in endings], np.uint8)
        for field in ("limit", "slope"):
            numbers = [getattr(ending, field) for ending in endings]
            sections[field] = np.array(numbers, np.float64)
        sections["bias" + _LENGTH] = np.array([len(ending.bias) for ending in endings], np.int64)
        sections["bias"] = np.concatenate([ending.bias for ending in endings])
    return sections


def _with_endings(file: str, sections: dict[str, Array], layers: list[Part]) -> list[Part]:
    """Return the layers with the endings in the sections of a file."""
    names = ("activation", "on_nonzeros", "limit", "slope", "bias", "bias" + _LENGTH)
    damaged = StoreError(f"{file} is damaged: its endings are not those of {len(layers)} layers")
    if any(name not in sections for name in names):
        raise damaged
    *numbers, bias, lengths = (sections[name] for name in names)
    if any(array.shape != (len(layers),) for array in numbers) or not _fits(
        bias, lengths, len(layers)
    ):
        raise damaged
    ends = np.cumsum(lengths)
    try:
        return [
            replace(
                layer,
                ending=Ending(
                    Activation(int(activation)),
                    bias[end - length : end],
                    limit=float(limit),
                    slope=float(slope),
                    on_nonzeros=bool(on_nonzeros),
                ),
            )
            for layer, activation, on_nonzeros, limit, slope, end, length in zip(
                layers, *numbers, ends.tolist(), lengths.tolist(), strict=True
            )
        ]
    except ValueError:
        raise damaged from None


def _layers(file: str, sections: dict[str, Array], count: int) -> Iterator[Part]:
    """Yield the layers in the sections of a file; raise StoreError if their shapes do not fit."""
    missing = [section for section in _SECTIONS.values() if section not in sections]
    if missing:
        raise StoreError(
            f"{file} lacks {', '.join(missing)}: "
            "another version of serverless_mpi wrote it; write it again"
        )
    lengths = {
        section: sections[section + _LENGTH]
        for section in _SECTIONS.values()
        if section + _LENGTH in sections
    }
    for section in _SECTIONS.values():
        if not _fits(sections[section], lengths.get(section), count):
            raise StoreError(f"{file} is damaged: {section} is not that of {count} layers")
    exchanges = sections[_SECTIONS["exchange"]]
    if not np.isin(exchanges, list(Exchange)).all():
        raise StoreError(f"{file} is damaged: an exchange that does not exist")
    ends = {section: np.cumsum(length) for section, length in lengths.items()}
    for layer in range(count):
        values: dict[str, Any] = {}
        for field, section in _SECTIONS.items():
            if section in ends:
                end = int(ends[section][layer])
                values[field] = sections[section][end - int(lengths[section][layer]) : end]
            else:
                values[field] = sections[section][layer].item()
        values["exchange"] = Exchange(values["exchange"])
        yield Part(**values)


def _fits(array: Array, lengths: Array | None, count: int) -> bool:
    """Return whether a section has a value per layer, or arrays of these lengths."""
    if lengths is None:
        return array.shape == (count,) and array.dtype.kind in "iu"
    return bool(
        array.ndim == 1
        and lengths.shape == (count,)
        and lengths.dtype.kind in "iu"
        and ((lengths >= 0) & (lengths <= len(array))).all()
        and int(lengths.sum()) == len(array)
    )


# --- inputs ---------------------------------------------------------------------------------------


def _input_name(name: str, part: int) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]{0,99}", name):
        raise UsageError(
            f"{name!r} is not a valid name of an input: use letters, digits, dots and underscores"
        )
    return f"input-{name}-{part:05}.smpi"


def write_inputs(backend: Backend, index: Index, name: str, x: Floats) -> None:
    """Write images, one file per part; images with one value besides 0 take a bit per pixel.

    Parameters
    ----------
    backend, index
        The store, and what it holds.
    name
        Name of the input.
    x
        (neurons, samples) float32.

    Raises
    ------
    UsageError, StoreError
        The images are not for this model; the backend refuses a file.
    """
    check_images(x, index.neurons)
    for part in range(index.parts):
        rows = x[index.first == part]
        ones = rows[rows != 0]
        constant = float(ones[0]) if len(ones) else 1.0
        facts = {"layout": index.layout, "part": part, "samples": x.shape[1], "constant": None}
        arrays: dict[str, Array] = {"rows": rows}
        if (ones == constant).all():
            facts["constant"] = constant
            arrays = {"rows": np.packbits(rows != 0, axis=1)}
        backend.put(_input_name(name, part), pack("an input", facts, arrays))


def load_inputs(backend: Backend, index: Index, name: str, part: int) -> Floats:
    """Read a part's rows of a stored input.

    Parameters
    ----------
    backend, index
        The store, and what it holds.
    name
        Name of the input.
    part
        Number of the part.

    Returns
    -------
    ndarray
        (own neurons, samples) float32.

    Raises
    ------
    UsageError, StoreError
        As in `load_part`.
    """
    facts, arrays = _input(backend, index, name, part)
    if facts["constant"] is None:
        return arrays["rows"]
    bits = np.unpackbits(arrays["rows"], axis=1, count=facts["samples"])
    return np.asarray(bits * np.float32(facts["constant"]), np.float32)


def count_inputs(backend: Backend, index: Index, name: str) -> int:
    """Return the number of samples of a stored input.

    Parameters
    ----------
    backend, index, name
        As in `load_inputs`.

    Raises
    ------
    UsageError, StoreError
        As in `load_part`.
    """
    return int(_input(backend, index, name, 0)[0]["samples"])


def _input(
    backend: Backend, index: Index, name: str, part: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read and check a part's file of a stored input."""
    file = _input_name(name, part)
    facts, arrays = _read_of_part(backend, index, file, "an input", part)
    where = f"{backend.url}/{file}"
    samples = _checked_facts(where, facts, {"samples": int})["samples"]
    packed = facts.get("constant") is not None
    if packed:
        _checked_facts(where, facts, {"constant": float})
    rows = arrays.get("rows")
    shape = np.count_nonzero(index.first == part), -(-samples // 8) if packed else samples
    kind = np.uint8 if packed else np.float32
    if rows is None or rows.shape != shape or rows.dtype != kind or not np.isfinite(rows).all():
        raise StoreError(f"{where} is damaged: its rows are not those of {samples} images")
    return {"constant": None, **facts}, arrays


def check_images(x: object, neurons: int) -> None:
    """Check that an object is an array of images for a model.

    Parameters
    ----------
    x
        Must be finite float32 of shape (neurons, samples), with at least one sample.
    neurons
        Neurons of a layer.

    Raises
    ------
    UsageError
        It is not.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype != np.float32:
        given = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise UsageError(
            f"images must be a float32 matrix of {neurons} rows, one column per sample, not {given}"
        )
    if x.shape[0] != neurons or not x.shape[1]:
        raise UsageError(
            f"{x.shape[1]} images of {x.shape[0]} pixels were given; the model needs at least one "
            f"image of {neurons} pixels"
        )
    if not np.isfinite(x).all():
        raise UsageError("images have NaN or infinity")
