"""Models of general layers in files: a folder with model.json and a file per matrix.

model.json is an object with a list `layers`. A layer has

    weights      a file of the folder: .npz or .mtx (sparse), or .npy (dense); a row per output,
                 a column per input, as in PyTorch's Linear and in W @ x
    transposed   true if the file has a row per input, as the Graph Challenge has them
    bias         a number, a list with a number per output, or a .npy file; none if it is absent
    bias_on      "all" (the default), or "nonzeros": only where the sum is not 0
    activation   none (the default), relu, leaky-relu, sigmoid, tanh, gelu; last also softmax
    limit        largest activation of relu
    slope        factor of negative sums of leaky-relu; 0.01 if it is absent

Everything is checked before a layer runs: a key that is not listed is refused, and so is a layer
that does not fit the one before. If you add a key, add it to `_KEYS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from serverless_mpi.inference import files, formats
from serverless_mpi.inference.networks import Network
from serverless_mpi.sparse import Activation, Ending, Floats, SparseRows

MODEL = "model.json"
MAX_BYTES = 64 << 20  # of model.json, which may list biases
MAX_LAYERS = 100_000
SUFFIXES = (".npz", ".mtx", ".npy")
_KEYS: dict[str, tuple[type, ...]] = {
    "weights": (str,),
    "transposed": (bool,),
    "bias": (int, float, list, str),
    "bias_on": (str,),
    "activation": (str,),
    "limit": (int, float),
    "slope": (int, float),
}
_LABELS = {kind.label: kind for kind in Activation}


@dataclass(frozen=True)
class Layer:
    """A layer of model.json.

    Attributes
    ----------
    path, transposed
        File of its matrix, and whether it has a row per input.
    ending
        Bias and activation.
    """

    path: Path
    transposed: bool
    ending: Ending

    def read(self) -> SparseRows:
        """Read the matrix: a row per output, its inputs ascending.

        Raises
        ------
        ValueError
            As in `formats.read`; a dense matrix has NaN or infinity.
        """
        if self.path.suffix == ".npy":
            dense = _dense(self.path, 2)
            return _of_dense(dense.T if self.transposed else dense)
        entries = formats.read(self.path, None, None)
        rows, columns, shape = entries.rows, entries.columns, entries.shape
        assert shape is not None  # as in every format of SUFFIXES
        if self.transposed:
            rows, columns, shape = columns, rows, shape[::-1]
        order = np.lexsort((columns, rows))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        return SparseRows(indptr, columns[order], entries.values[order], shape[1])


def is_model(path: str | Path) -> bool:
    """Return whether a path is a folder with model.json.

    Parameters
    ----------
    path
        Any path.
    """
    return (Path(path) / MODEL).is_file()


def read_model(folder: str | Path) -> Network:
    """Return the network that a folder's model.json describes.

    Parameters
    ----------
    folder
        The folder.

    Returns
    -------
    Network
        Each iteration reads the matrices again, one at a time.

    Raises
    ------
    ValueError
        model.json is not valid, or a file is missing; in an iteration, a matrix is not valid or
        does not fit the layer before. The text names the layer, counted from 1.
    """
    folder = Path(folder)
    layers = read_layers(folder)
    first = layers[0].read()

    def read() -> Iterator[SparseRows]:
        outputs = None
        for number, layer in enumerate(layers, 1):
            matrix = first if number == 1 else layer.read()
            if outputs not in (None, matrix.n_cols):
                raise ValueError(
                    f"{folder / MODEL}: layer {number} ({layer.path.name}) takes {matrix.n_cols} "
                    f"inputs, but layer {number - 1} ({layers[number - 2].path.name}) has "
                    f"{outputs} outputs"
                )
            try:
                layer.ending.check(matrix.n_rows)
            except ValueError as error:
                raise ValueError(f"{folder / MODEL}: layer {number}: {error}") from None
            outputs = matrix.n_rows
            yield matrix

    return Network(
        first.n_cols,
        len(layers),
        0.0,
        read,
        folder.resolve().name,
        endings=[layer.ending for layer in layers],
    )


def read_layers(folder: Path) -> list[Layer]:
    """Read and check model.json; the matrices are not read.

    Parameters
    ----------
    folder
        Its folder.

    Raises
    ------
    ValueError
        As in `read_model`.
    """
    path = folder / MODEL
    with files.opened(path, MAX_BYTES) as source:
        source.refuse(source.size, "the description of a model")
        text = source.file.read()
    try:
        model = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON") from None
    given = model.get("layers") if isinstance(model, dict) else None
    if not isinstance(given, list) or not 0 < len(given) <= MAX_LAYERS or len(model) > 1:
        raise ValueError(f'{path} must be an object with a list "layers", and nothing else')
    layers = []
    for number, row in enumerate(given, 1):
        try:
            layers.append(_layer(folder, row))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: layer {number}: {error}") from None
        if number < len(given) and layers[-1].ending.activation == Activation.SOFTMAX:
            raise ValueError(f"{path}: layer {number}: softmax is only possible in the last layer")
    return layers


def _layer(folder: Path, row: object) -> Layer:
    """Return a layer of model.json; the text of a ValueError does not name the layer."""
    if not isinstance(row, dict):
        raise ValueError("not an object")
    for key, value in row.items():
        if key not in _KEYS:
            raise ValueError(f"unknown key {key[:40]!r}; known keys: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or (isinstance(value, bool) != (key == "transposed")):
            raise ValueError(f"{key} is a {type(value).__name__}")
    label = row.get("activation", "none")
    if label not in _LABELS:
        raise ValueError(f"unknown activation {label[:40]!r}; known: {', '.join(_LABELS)}")
    kind = _LABELS[label]
    for key, only in (("limit", Activation.RELU), ("slope", Activation.LEAKY_RELU)):
        if key in row and kind != only:
            raise ValueError(f"{key} has no effect with activation {label}: omit it")
    if row.get("bias_on", "all") not in ("all", "nonzeros"):
        raise ValueError('bias_on must be "all" or "nonzeros"')
    if "bias_on" in row and "bias" not in row:
        raise ValueError("bias_on has no effect without bias: omit it")
    ending = Ending(
        kind,
        _bias(folder, row.get("bias", [])),
        limit=float(row.get("limit", inf)),
        slope=float(row.get("slope", 0.01)),
        on_nonzeros=row.get("bias_on") == "nonzeros",
    )
    if "weights" not in row:
        raise ValueError("weights are missing")
    return Layer(_inside(folder, row["weights"], SUFFIXES), row.get("transposed", False), ending)


def _bias(folder: Path, given: object) -> Floats:
    """Return the bias of a layer as an array or a number."""
    if isinstance(given, str):
        return _dense(_inside(folder, given, (".npy",)), 1)
    if isinstance(given, list) and not all(type(number) in (int, float) for number in given):
        raise ValueError("bias must be a list of numbers")
    with np.errstate(over="ignore"):  # `Ending` refuses infinity
        return np.asarray(given, np.float32)


def _inside(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a file of the folder."""
    path = folder / name
    if Path(name).name != name or path.suffix not in suffixes:
        raise ValueError(
            f"{name[:80]!r} is not the name of a file of the folder with a suffix of "
            f"{', '.join(suffixes)}"
        )
    if not path.is_file():
        raise ValueError(f"{name} is missing")
    return path


def _dense(path: Path, ndim: int) -> Floats:
    """Read numbers in NumPy's format as float32."""
    with files.opened(path) as source, np.errstate(over="ignore"):
        array = np.asarray(files.npy(source, "buif", ndim), np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: NaN, infinity or numbers beyond float32 among the entries")
    return array


def _of_dense(dense: Floats) -> SparseRows:
    """Return a dense matrix; zeros are left out, which does not change any sum."""
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return SparseRows(indptr, columns, dense[rows, columns], dense.shape[1])
