"""A block of rows of a sparse matrix: what is checked once here is not checked in the kernel's loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serverless_mpi._spdnn import ffi, lib

Floats = NDArray[np.float32]


class SparseRows:
    """A block of rows of a sparse matrix, in CSR.

    n_rows, n_cols: shape; nnz: entries; degree: entries of every row if all have as many, else None (the kernel then needs
    no indptr: the ELL layout). indptr: int64, n_rows + 1; indices: uint16 where that is enough, else uint32;
    values: float32, or None where all are equal to `constant`. None of the arrays is copied if it has its type.
    """

    def __init__(
        self, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, n_cols: int
    ) -> None:
        """indptr: n_rows + 1 integers; indices: nnz columns below n_cols; values: nnz numbers, or one for all.

        Raises
        ------
        ValueError
            An argument of the wrong shape, a column out of range, NaN or infinity; the text names the argument.
        """
        pointers, columns = np.asarray(indptr), np.asarray(indices)
        weights = np.asarray(values, np.float32, order="C")
        if n_cols != int(n_cols) or not 0 <= n_cols < 1 << 32:
            raise ValueError(f"n_cols is {n_cols}; it must be a whole number in 0..2^32 - 1")
        if pointers.ndim != 1 or not len(pointers) or pointers.dtype.kind not in "iu":
            raise ValueError("indptr must be one-dimensional, of at least one integer")
        pointers = np.ascontiguousarray(pointers, np.int64)
        degrees = np.diff(pointers)
        if pointers[0] != 0 or (degrees < 0).any():
            raise ValueError("indptr must begin with 0 and never fall")
        if columns.ndim != 1 or len(columns) != pointers[-1]:
            raise ValueError(f"indices has shape {columns.shape}; indptr ends with {pointers[-1]}")
        if len(columns) and (
            columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= n_cols
        ):
            raise ValueError(f"indices must be integers in 0..{n_cols - 1}")
        if weights.ndim and weights.shape != columns.shape:
            raise ValueError(f"values has shape {weights.shape}, indices {columns.shape}")
        if not np.isfinite(weights).all():
            raise ValueError("values has NaN or infinity, or a number beyond float32")
        self.n_rows = len(pointers) - 1
        self.n_cols = int(n_cols)
        self.nnz = len(columns)
        self.degree = int(degrees[0]) if self.n_rows and (degrees == degrees[0]).all() else None
        self.indptr = pointers
        self.indices = np.ascontiguousarray(columns, np.uint16 if n_cols <= 1 << 16 else np.uint32)
        first = float(weights.flat[0]) if weights.size else 0.0
        self.constant = first if weights.ndim == 0 or (weights == first).all() else None
        self.values = None if self.constant is not None else weights
        self._give()

    @classmethod
    def stored(
        cls, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, n_cols: int
    ) -> SparseRows:
        """The same, but values are kept one by one even where all are equal: for measurements."""
        made = cls(indptr, indices, values, n_cols)
        if made.values is None:
            made.values = np.full(made.nnz, made.constant, np.float32)
            made.constant = None
            made._give()
        return made

    def _give(self) -> None:
        """Make the kernel's view; it points into the arrays, which must stay."""
        wide = self.indices.dtype == np.uint32
        columns = ffi.from_buffer("uint32_t[]" if wide else "uint16_t[]", self.indices)
        self._held: tuple[Any, ...] = (columns, ffi.from_buffer("int64_t[]", self.indptr))
        self.c: Any = ffi.new(
            "spdnn_matrix *",
            {
                "rows": self.n_rows,
                "cols": self.n_cols,
                "degree": self.degree or 0,
                "indptr": self._held[1] if self.degree is None else ffi.NULL,
                "col16": ffi.NULL if wide else columns,
                "col32": columns if wide else ffi.NULL,
                "values": ffi.NULL
                if self.values is None
                else ffi.cast("float *", self.values.ctypes.data),
                "constant": self.constant or 0.0,
            },
        )
        shared = np.empty(self.n_rows // lib.SPDNN_GROUP, np.uint8)
        flags = ffi.from_buffer("uint8_t[]", shared)
        if lib.spdnn_find_shared(self.c, flags):
            self._held += (flags,)
            self.c.shared = flags

    def all_values(self) -> Floats:
        """The nnz values."""
        return np.full(self.nnz, self.constant, np.float32) if self.values is None else self.values

    def rows(self, start: int, stop: int) -> SparseRows:
        """Rows start..stop-1."""
        return self.chosen(np.arange(start, stop))

    def chosen(self, rows: NDArray[np.int64]) -> SparseRows:
        """Those rows, in that order; each keeps the order of its entries."""
        lengths = np.diff(self.indptr)[rows]
        pointers = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.repeat(self.indptr[rows] - pointers[:-1], lengths) + np.arange(pointers[-1])
        return self._with(
            pointers,
            self.indices[entries],
            None if self.values is None else self.values[entries],
            self.n_cols,
        )

    def renamed(self, names: NDArray[np.int64], n_cols: int) -> SparseRows:
        """The same rows over other columns: column c is names[c] of n_cols."""
        return self._with(self.indptr, names[self.indices], self.values, n_cols)

    def compacted(self) -> tuple[SparseRows, NDArray[np.int64]]:
        """(the same rows over the columns in use alone, those columns in ascending order).

        The order of a row's entries stays, so sums keep their bits.
        """
        used, places = np.unique(self.indices, return_inverse=True)
        return self._with(self.indptr, places, self.values, len(used)), used.astype(np.int64)

    def _with(
        self, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike | None, n_cols: int
    ) -> SparseRows:
        if self.values is None:
            assert self.constant is not None
            return SparseRows(indptr, indices, self.constant, n_cols)
        assert values is not None
        return SparseRows.stored(indptr, indices, values, n_cols)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return (
            self.indptr.nbytes
            + self.indices.nbytes
            + (0 if self.values is None else self.values.nbytes)
        )
