"""Other networks with the same answer, to the last bit: neurons are renamed or merged between
layers.

Each function takes layers and gives layers; inputs of the first and outputs of the last stay as
they are, so nothing has to be undone. An entry keeps its place in its row, so sums keep their
order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse.rows import SparseRows

KEY_COLUMNS = 32  # of a row, its lowest: what rows are compared by


def relabelled(layers: Sequence[SparseRows]) -> list[SparseRows]:
    """The neurons of each layer but the last are sorted by their inputs: rows that read the same
    come together.

    What a row reads is then still in cache from the row before, and the kernel loads the inputs of
    rows with equal columns once for four of them.
    """
    made: list[SparseRows] = []
    names: NDArray[np.int64] | None = None
    for number, matrix in enumerate(layers, 1):
        if names is not None:
            matrix = matrix.renamed(names, matrix.n_cols)
        if number < len(layers):
            order = np.argsort(_keys(matrix), kind="stable")
            matrix = matrix.chosen(order)
            names = np.empty(len(order), np.int64)
            names[order] = np.arange(len(order))
        made.append(matrix)
    return made


def merged(layers: Sequence[SparseRows]) -> list[SparseRows]:
    """Of neurons with the same inputs and weights, in the same order, one is computed, and all that
    read one of them read it.

    The last layer keeps all its rows. Of use where a network has equal rows, as RadiX-Net, 16 of
    each.
    """
    made: list[SparseRows] = []
    names: NDArray[np.int64] | None = None
    for number, matrix in enumerate(layers, 1):
        if names is not None:
            matrix = matrix.renamed(names, int(names.max(initial=-1)) + 1)
        if number < len(layers):
            first, names = _distinct(matrix)
            matrix = matrix.chosen(first)
        made.append(matrix)
    return made


def _keys(matrix: SparseRows) -> NDArray[np.void]:
    """A row's lowest columns, ascending, as bytes that sort as they do; a shorter row comes
    first.
    """
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(matrix.n_rows), lengths)
    ranked = matrix.indices[np.lexsort((matrix.indices, rows))]
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], lengths)
    keys = np.zeros((matrix.n_rows, KEY_COLUMNS), ">u4")
    low = place < KEY_COLUMNS
    keys[rows[low], place[low]] = ranked[low].astype(np.int64) + 1
    return keys.view(f"V{keys.itemsize * KEY_COLUMNS}").reshape(-1)


def _distinct(matrix: SparseRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the first of each kind of row, ascending; which of these each row is)."""
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
