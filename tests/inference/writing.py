"""Writers of the files that `serverless_mpi.inference.dataset` reads, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference.formats import Entries
from serverless_mpi.inference.networks import Layers
from serverless_mpi.sparse import Floats, SparseRows

BANNER = "%%MatrixMarket matrix coordinate"
BLOCK_LINES = 1 << 18  # written at a time


def write_entries(path: str | Path, entries: Entries) -> None:
    """Write a matrix in the format that the suffix of the file names."""
    suffix = Path(path).suffix
    with Path(path).open("wb") as file:
        if suffix == ".npz":
            assert entries.shape is not None
            order = np.lexsort((entries.columns, entries.rows))
            indptr = np.concatenate(
                [[0], np.cumsum(np.bincount(entries.rows, minlength=entries.shape[0]))]
            )
            np.savez_compressed(  # the fields of scipy.sparse.save_npz
                file,
                indices=entries.columns[order].astype(np.int32),
                indptr=indptr.astype(np.int32),
                format=np.array(b"csr"),
                shape=np.array(entries.shape),
                data=entries.values[order],
            )
            return
        separator = "\t"
        if suffix == ".mtx":
            assert entries.shape is not None
            separator = " "
            high, wide = entries.shape
            file.write(f"{BANNER} real general\n{high} {wide} {len(entries.rows)}\n".encode())
        for start in range(0, len(entries.rows), BLOCK_LINES):
            some = slice(start, start + BLOCK_LINES)
            columns = (entries.rows[some] + 1, entries.columns[some] + 1, entries.values[some])
            file.write(
                "".join(
                    f"{row}{separator}{column}{separator}{value}\n"
                    for row, column, value in zip(*(one.tolist() for one in columns))
                ).encode()
            )


def write_images(path: str | Path, images: Floats) -> None:
    """Write images of shape (neurons, samples) in the format of the suffix; npz as a sparse
    matrix.
    """
    columns, rows = np.nonzero(images)
    order = np.lexsort((columns, rows))
    shape = images.shape[1], images.shape[0]
    write_entries(
        path, Entries(rows[order], columns[order], images[columns[order], rows[order]], shape)
    )


def write_layer(path: str | Path, matrix: SparseRows) -> None:
    """Write a layer as the challenge does: one entry (input, output, weight) per line."""
    outputs = np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr))
    inputs = matrix.indices.astype(np.int64)
    order = np.lexsort((outputs, inputs))
    write_entries(
        path,
        Entries(
            inputs[order],
            outputs[order],
            matrix.all_values()[order],
            (matrix.n_cols, matrix.n_rows),
        ),
    )


def write_network(folder: str | Path, network: Layers, suffix: str = ".tsv") -> None:
    """Write a network to a folder, one file per layer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, matrix in enumerate(network, 1):
        write_layer(folder / f"n{matrix.n_cols}-l{number}{suffix}", matrix)


def write_categories(path: str | Path, categories: NDArray[np.int64]) -> None:
    """Write image numbers, counted from 1, one per line."""
    Path(path).write_text("".join(f"{number}\n" for number in categories.tolist()))
