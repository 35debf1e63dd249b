"""Preparation of a network: rename or merge neurons so that it runs faster with the same bits.

Invariants: inputs of the first layer and outputs of the last keep their order, so callers need not
undo anything. An entry keeps its position in its row, so sums keep their order and their bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse.rows import SparseRows

KEY_COLUMNS = 32  # rows are sorted by their lowest columns, so many of them


def relabelled(layers: Sequence[SparseRows]) -> list[SparseRows]:
    """Sort the neurons of each layer but the last by their inputs.

    A row then reads inputs that the row before has brought into the cache, and the kernel loads the
    inputs of four rows with equal columns once.

    Parameters
    ----------
    layers
        The network, not changed.

    Returns
    -------
    list of SparseRows
        A network with the same output.
    """
    prepared: list[SparseRows] = []
    names: NDArray[np.int64] | None = None
    for number, matrix in enumerate(layers, 1):
        if names is not None:
            matrix = matrix.renamed(names, matrix.n_cols)
        if number < len(layers):
            order = np.argsort(_keys(matrix), kind="stable")
            matrix = matrix.chosen(order)
            names = np.empty(len(order), np.int64)
            names[order] = np.arange(len(order))
        prepared.append(matrix)
    return prepared


def merged(layers: Sequence[SparseRows]) -> list[SparseRows]:
    """Remove duplicate rows, those with equal inputs and weights in the same order.

    The last layer keeps all rows. RadiX-Net, for example, has 16 copies of each row.

    Parameters
    ----------
    layers
        The network, not changed.

    Returns
    -------
    list of SparseRows
        A network with the same output.
    """
    prepared: list[SparseRows] = []
    names: NDArray[np.int64] | None = None
    for number, matrix in enumerate(layers, 1):
        if names is not None:
            matrix = matrix.renamed(names, int(names.max(initial=-1)) + 1)
        if number < len(layers):
            first, names = _distinct(matrix)
            matrix = matrix.chosen(first)
        prepared.append(matrix)
    return prepared


def _keys(matrix: SparseRows) -> NDArray[np.void]:
    """Return the sort key of each row: its lowest columns, ascending, as big-endian bytes.

    A row with fewer columns sorts before one that continues it.
    """
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.n_rows), lengths)
    ranked = matrix.indices[np.lexsort((matrix.indices, rows))]
    rank = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], lengths)
    keys = np.zeros((matrix.n_rows, KEY_COLUMNS), ">u4")
    low = rank < KEY_COLUMNS
    keys[rows[low], rank[low]] = ranked[low].astype(np.int64) + 1
    return keys.view(f"V{keys.itemsize * KEY_COLUMNS}").reshape(-1)


def _distinct(matrix: SparseRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each kind, ascending, and for each row the number of its kind."""
    columns, values = matrix.indices, matrix.all_values()
    seen: dict[tuple[bytes, bytes], int] = {}
    first: list[int] = []
    which = np.empty(matrix.n_rows, np.int64)
    for row, (start, stop) in enumerate(zip(matrix.indptr[:-1], matrix.indptr[1:])):
        number = seen.setdefault(
            (columns[start:stop].tobytes(), values[start:stop].tobytes()), len(seen)
        )
        if number == len(first):
            first.append(row)
        which[row] = number
    return np.array(first, np.int64), which
