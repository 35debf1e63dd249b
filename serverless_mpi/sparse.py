"""NumPy's face of the C kernel: rows of a sparse matrix times a dense matrix of samples, with the layer's finish.

y = min(max(z, 0), cap) where z = W x + bias on the nonzeros of W x; float32 throughout.  A row's sum is taken in the order
of its entries without fused multiply-add, so a block of rows gives the same bits as the whole matrix does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serverless_mpi._spdnn import ffi, lib

Floats = NDArray[np.float32]
CAP = 32.0  # of the Graph Challenge's networks


class SparseRows:
    """A block of rows of a sparse matrix, in CSR.

    n_rows, n_cols: shape; nnz: entries.  Columns are kept as uint16 where that
    is enough, and values not at all where all are equal.
    """

    def __init__(self, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, n_cols: int) -> None:
        """indptr: n_rows + 1 integers; indices: nnz columns below n_cols; values: nnz numbers, or one for all.

        Raises
        ------
        ValueError
            An argument of the wrong shape, a column out of range, NaN or infinity; the text names the argument.
        """
        pointers = np.ascontiguousarray(indptr, np.int64)
        columns = np.asarray(indices)
        weights = np.asarray(values, np.float32, order="C")
        if pointers.ndim != 1 or not len(pointers) or pointers[0] != 0 or (np.diff(pointers) < 0).any():
            raise ValueError("indptr must be one-dimensional, begin with 0 and never fall")
        if columns.ndim != 1 or len(columns) != pointers[-1]:
            raise ValueError(f"indices has shape {columns.shape}; indptr ends with {pointers[-1]}")
        if len(columns) and (columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= n_cols):
            raise ValueError(f"indices must be integers in 0..{n_cols - 1}")
        if weights.ndim and weights.shape != columns.shape:
            raise ValueError(f"values has shape {weights.shape}, indices {columns.shape}")
        if not np.isfinite(weights).all():
            raise ValueError("values has NaN or infinity")
        self.n_rows = len(pointers) - 1
        self.n_cols = int(n_cols)
        self.nnz = len(columns)
        self.indptr = pointers
        self.indices = np.ascontiguousarray(columns, np.uint16 if n_cols <= 1 << 16 else np.uint32)
        first = float(weights.flat[0]) if weights.size else 0.0
        self.constant = first if weights.ndim == 0 or (weights == first).all() else None
        self.values = None if self.constant is not None else weights
        self._c = ffi.new("spdnn_matrix *", self._fields())

    def _fields(self) -> dict[str, Any]:
        wide = self.indices.dtype == np.uint32
        columns = ffi.cast("uint32_t *" if wide else "uint16_t *", self.indices.ctypes.data)
        return {
            "rows": self.n_rows,
            "cols": self.n_cols,
            "indptr": ffi.cast("int64_t *", self.indptr.ctypes.data),
            "col16": ffi.NULL if wide else columns,
            "col32": columns if wide else ffi.NULL,
            "values": ffi.NULL if self.values is None else ffi.cast("float *", self.values.ctypes.data),
            "constant": self.constant or 0.0,
        }

    def all_values(self) -> Floats:
        """The nnz values."""
        return np.full(self.nnz, self.constant, np.float32) if self.values is None else self.values

    def rows(self, start: int, stop: int) -> SparseRows:
        """Rows start..stop-1."""
        begin, end = int(self.indptr[start]), int(self.indptr[stop])
        values: ArrayLike = self.constant if self.values is None else self.values[begin:end]  # type: ignore[assignment]
        return SparseRows(self.indptr[start : stop + 1] - begin, self.indices[begin:end], values, self.n_cols)

    def compacted(self) -> tuple[SparseRows, NDArray[np.int64]]:
        """(the same rows over the columns in use alone, those columns in ascending order).

        The order of a row's entries stays, so sums keep their bits.
        """
        used, places = np.unique(self.indices, return_inverse=True)
        values: ArrayLike = self.constant if self.values is None else self.values  # type: ignore[assignment]
        return SparseRows(self.indptr, places, values, len(used)), used.astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.indptr.nbytes + self.indices.nbytes + (0 if self.values is None else self.values.nbytes)


def layer(
    w: SparseRows, x: Floats, bias: float, cap: float = CAP, out: Floats | None = None
) -> tuple[Floats, NDArray[np.bool_]]:
    """(y, alive): one layer of `w` on x.

    x: (n_cols, samples), float32, C-contiguous; y: (n_rows, samples), in `out` if given; alive: per sample,
    whether one of its numbers is not 0.
    """
    _check("x", x, (w.n_cols, None))
    samples = x.shape[1]
    y = np.empty((w.n_rows, samples), np.float32) if out is None else out
    _check("out", y, (w.n_rows, samples))
    alive = np.zeros(samples, np.uint8)
    _run(lib.spdnn_layer(w._c, _floats(x), samples, _floats(y), 0, 1, bias, cap, ffi.cast("uint8_t *", alive.ctypes.data)))
    return y, alive.view(np.bool_)


def multiply(w: SparseRows, x: Floats, out: Floats | None = None, accumulate: bool = False) -> Floats:
    """y = W x, or y += W x: shapes as in `layer`."""
    _check("x", x, (w.n_cols, None))
    samples = x.shape[1]
    if accumulate and out is None:
        raise ValueError("out is needed to accumulate in")
    y = np.empty((w.n_rows, samples), np.float32) if out is None else out
    _check("out", y, (w.n_rows, samples))
    _run(lib.spdnn_layer(w._c, _floats(x), samples, _floats(y), int(accumulate), 0, 0.0, 0.0, ffi.NULL))
    return y


def serial_forward(layers: Sequence[SparseRows], x: Floats, bias: float, cap: float = CAP) -> Floats:
    """All layers, a panel of samples at a time.  x: (layers[0].n_cols, samples); returns (layers[-1].n_rows, samples)."""
    if not layers:
        raise ValueError("layers is empty")
    for number, (before, after) in enumerate(zip(layers, layers[1:]), 1):
        if before.n_rows != after.n_cols:
            raise ValueError(f"layers[{number}] has {after.n_cols} columns; the layer before has {before.n_rows} rows")
    _check("x", x, (layers[0].n_cols, None))
    y = np.empty((layers[-1].n_rows, x.shape[1]), np.float32)
    matrices = ffi.new("spdnn_matrix[]", [one._fields() for one in layers])
    _run(lib.spdnn_forward(matrices, len(layers), _floats(x), x.shape[1], _floats(y), bias, cap))
    return y


def reference_layer(w: SparseRows, x: NDArray[Any], bias: float, cap: float = CAP) -> NDArray[np.float64]:
    """The same layer in float64 by NumPy, for tests."""
    rows = np.repeat(np.arange(w.n_rows), np.diff(w.indptr))
    z = np.zeros((w.n_rows, x.shape[1]))
    np.add.at(z, rows, w.all_values().astype(np.float64)[:, None] * x[w.indices])
    return np.clip(np.where(z != 0, z + bias, 0), 0, cap)


def path() -> str:
    """The instruction set in use: avx512, avx2, neon or plain."""
    name = lib.spdnn_path()
    if name == ffi.NULL:
        raise ValueError("SMPI_KERNEL names a path that this machine has not; unset it, or use plain")
    return bytes(ffi.string(name)).decode()


def _check(name: str, array: NDArray[Any], shape: tuple[int, int | None]) -> None:
    good = (
        isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and array.ndim == 2
        and array.flags.c_contiguous
        and all(wanted in (None, got) for wanted, got in zip(shape, array.shape, strict=True))
    )
    if not good:
        told = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a C-contiguous float32 array of shape {shape} (None: any), not {told}")


def _floats(array: Floats) -> Any:
    return ffi.cast("float *", array.ctypes.data)


def _run(code: int) -> None:
    if code:
        path()
        raise MemoryError("the kernel found no memory for a panel")
