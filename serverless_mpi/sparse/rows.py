"""A block of rows of a sparse matrix, checked once.

The kernel's loops check no index, so the arrays must not change after the constructor has checked
them: they are copied unless no writable view of them can exist (`frozen`), and attributes cannot be
set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serverless_mpi._spdnn import ffi, lib

Floats = NDArray[np.float32]


class _Own(np.ndarray[Any, Any]):
    """Marks memory of which only `frozen` has had a writable view."""


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that cannot be changed.

    Parameters
    ----------
    array
        Any array.

    Returns
    -------
    ndarray
        `array` itself if it is C-contiguous and no writable view of its memory can exist; else a
        read-only copy that cannot be made writable again.
    """
    if array.flags.c_contiguous and _is_frozen(array):
        return array
    own: Any = np.array(array, order="C").view(_Own)
    return np.asarray(memoryview(own).toreadonly())


def _is_frozen(array: object) -> bool:
    """Return whether no writable view of an array's memory can exist."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    owner = array.obj if isinstance(array, memoryview) and array.readonly else array
    return isinstance(owner, (bytes, _Own))


class SparseRows:
    """A block of rows of a sparse matrix, in CSR; immutable.

    Attributes
    ----------
    n_rows, n_cols, nnz
        Shape, and number of entries.
    degree
        Number of entries of each row if it is the same for all, else None. With a degree the kernel
        does not read indptr (the ELL layout).
    indptr
        (n_rows + 1,) int64, read-only.
    indices
        (nnz,) columns: uint16 if n_cols allows it, else uint32; read-only.
    values
        (nnz,) float32, read-only; None if all are equal to `constant`.
    constant
        The value of all entries, or None.
    """

    n_rows: int
    n_cols: int
    nnz: int
    degree: int | None
    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    values: Floats | None
    constant: float | None
    c: Any
    _held: tuple[Any, ...]

    def __init__(
        self, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, n_cols: int
    ) -> None:
        """Check and keep the arrays, which are copied unless they are `frozen` and of that type.

        Parameters
        ----------
        indptr
            n_rows + 1 integers that begin with 0 and never decrease.
        indices
            nnz integers below n_cols.
        values
            nnz numbers, or one for all entries.
        n_cols
            Number of columns, below 2^32.

        Raises
        ------
        ValueError
            An argument has a wrong shape or an index out of range, NaN or infinity; the message
            names it.
        """
        self._make(indptr, indices, values, n_cols, one_by_one=False)

    def _make(
        self,
        indptr: ArrayLike,
        indices: ArrayLike,
        values: ArrayLike,
        n_cols: int,
        *,
        one_by_one: bool,
    ) -> None:
        pointers, columns = np.asarray(indptr), np.asarray(indices)
        with np.errstate(over="ignore"):  # numbers beyond float32 are refused below
            weights = np.asarray(values, np.float32)
        if not 0 <= n_cols < 1 << 32 or n_cols != int(n_cols):
            raise ValueError(f"n_cols is {n_cols}; it must be a whole number in 0..2^32 - 1")
        n_cols = int(n_cols)
        if pointers.ndim != 1 or not len(pointers) or pointers.dtype.kind not in "iu":
            raise ValueError("indptr must be one-dimensional, of at least one integer")
        pointers = frozen(pointers.astype(np.int64, copy=False))
        degrees = np.diff(pointers)
        if pointers[0] != 0 or (degrees < 0).any():
            raise ValueError("indptr must begin with 0 and never decrease")
        if columns.ndim != 1 or len(columns) != pointers[-1]:
            raise ValueError(f"indices has shape {columns.shape}; indptr ends with {pointers[-1]}")
        if len(columns) and (
            columns.dtype.kind not in "iu" or columns.min() < 0 or columns.max() >= n_cols
        ):
            raise ValueError(f"indices must be integers in 0..{n_cols - 1}")
        columns = frozen(columns.astype(np.uint16 if n_cols <= 1 << 16 else np.uint32, copy=False))
        # Again, on the copy: another thread may have written after the first check.
        if columns.max(initial=0) >= max(n_cols, 1):
            raise ValueError(f"indices must be integers in 0..{n_cols - 1}")
        if weights.ndim and weights.shape != columns.shape:
            raise ValueError(f"values has shape {weights.shape}, indices {columns.shape}")
        weights = frozen(weights)
        if not np.isfinite(weights).all():
            raise ValueError("values has NaN or infinity, or a number beyond float32")
        first = float(weights.flat[0]) if weights.size else 0.0
        constant = first if weights.ndim == 0 or (weights == first).all() else None
        if one_by_one and constant is not None:
            weights, constant = frozen(np.full(len(columns), constant, np.float32)), None
        rows = len(pointers) - 1
        self.__dict__.update(
            n_rows=rows,
            n_cols=n_cols,
            nnz=len(columns),
            degree=int(degrees[0]) if rows and (degrees == degrees[0]).all() else None,
            indptr=pointers,
            indices=columns,
            constant=constant,
            values=None if constant is not None else weights,
        )
        self._make_view()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a SparseRows cannot be set: make a new one")

    @classmethod
    def stored(
        cls, indptr: ArrayLike, indices: ArrayLike, values: ArrayLike, n_cols: int
    ) -> SparseRows:
        """Make a matrix that stores every value, even if all are equal.

        Parameters
        ----------
        indptr, indices, values, n_cols
            As for the class.

        Returns
        -------
        SparseRows
            With `values`, and without `constant`.
        """
        matrix = cls.__new__(cls)
        matrix._make(indptr, indices, values, n_cols, one_by_one=True)
        return matrix

    def _make_view(self) -> None:
        """Make the kernel's struct `c`, which points into the arrays; `_held` keeps them alive."""
        wide = self.indices.dtype == np.uint32
        columns = ffi.from_buffer("uint32_t[]" if wide else "uint16_t[]", self.indices)
        pointers = ffi.from_buffer("int64_t[]", self.indptr)
        values = ffi.NULL if self.values is None else ffi.from_buffer("float[]", self.values)
        c = ffi.new(
            "spdnn_matrix *",
            {
                "rows": self.n_rows,
                "cols": self.n_cols,
                "degree": self.degree or 0,
                "indptr": pointers if self.degree is None else ffi.NULL,
                "col16": ffi.NULL if wide else columns,
                "col32": columns if wide else ffi.NULL,
                "values": values,
                "constant": self.constant or 0.0,
            },
        )
        shared = np.empty(self.n_rows // lib.SPDNN_GROUP, np.uint8)
        flags = ffi.from_buffer("uint8_t[]", shared)
        if lib.spdnn_find_shared(c, flags):
            c.shared = flags
        self.__dict__.update(c=c, _held=(columns, pointers, values, flags))

    def all_values(self) -> Floats:
        """Return the value of every entry: (nnz,) float32."""
        return np.full(self.nnz, self.constant, np.float32) if self.values is None else self.values

    def rows(self, start: int, stop: int) -> SparseRows:
        """Return a range of rows.

        Parameters
        ----------
        start, stop
            First row, and the one after the last.
        """
        return self.chosen(np.arange(start, stop))

    def chosen(self, rows: NDArray[np.int64]) -> SparseRows:
        """Return some of the rows; each keeps the order of its entries.

        Parameters
        ----------
        rows
            Numbers of rows, in the order in which the result has them.
        """
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
        """Return all rows with other column numbers.

        Parameters
        ----------
        names
            (n_cols,) int64: column c becomes column `names[c]`.
        n_cols
            Number of columns of the result.
        """
        return self._with(self.indptr, names[self.indices], self.values, n_cols)

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
        """Bytes of the arrays."""
        return (
            self.indptr.nbytes
            + self.indices.nbytes
            + (0 if self.values is None else self.values.nbytes)
        )
