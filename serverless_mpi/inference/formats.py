"""Files of sparse matrices as entries (row, column, value): Graph Challenge TSV, SciPy npz, MatrixMarket.

Rows and columns count from 1 in TSV and MatrixMarket, as their authors have it, and from 0 here.  Text is read in blocks; the
line that is no entry is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

BLOCK_LINES = 1 << 18
_BANNER = "%%MatrixMarket matrix coordinate"


@dataclass(frozen=True)
class Entries:
    """A matrix: entries in the file's order, counted from 0; shape, where the file tells it."""

    rows: Indices
    columns: Indices
    values: Floats
    shape: tuple[int, int] | None


def read(path: str | Path, rows: int | None, columns: int | None) -> Entries:
    """The entries of a file, by its suffix: .tsv (and any other), .npz, .mtx.

    rows, columns: how many there may be; None: any number.

    Raises
    ------
    ValueError
        It is no such file, an entry lies outside of that shape, is not a finite number, or is there twice; the text
        names file and line.
    """
    path = Path(path)
    return _READERS.get(path.suffix, _read_tsv)(path, rows, columns)


def write(path: str | Path, entries: Entries) -> None:
    """Write a matrix, by the suffix of the file."""
    path = Path(path)
    if path.suffix == ".npz":
        assert entries.shape is not None
        order = np.lexsort((entries.columns, entries.rows))
        indptr = np.concatenate(
            [[0], np.cumsum(np.bincount(entries.rows, minlength=entries.shape[0]))]
        )
        with path.open("wb") as binary:  # the fields of scipy.sparse.save_npz
            np.savez_compressed(
                binary,
                indices=entries.columns[order].astype(np.int32),
                indptr=indptr.astype(np.int32),
                format=np.array(b"csr"),
                shape=np.array(entries.shape),
                data=entries.values[order],
            )
        return
    with path.open("w") as file:
        separator = "\t"
        if path.suffix == ".mtx":
            assert entries.shape is not None
            separator = " "
            file.write(
                f"{_BANNER} real general\n{entries.shape[0]} {entries.shape[1]} {len(entries.rows)}\n"
            )
        for start in range(0, len(entries.rows), BLOCK_LINES):
            some = slice(start, start + BLOCK_LINES)
            columns = (entries.rows[some] + 1, entries.columns[some] + 1, entries.values[some])
            file.writelines(
                f"{row}{separator}{column}{separator}{value}\n"
                for row, column, value in zip(*(one.tolist() for one in columns))
            )


def _read_tsv(path: Path, rows: int | None, columns: int | None) -> Entries:
    with path.open() as file:
        return _text(path, file, 0, 3, rows, columns, None)


def _read_matrix_market(path: Path, rows: int | None, columns: int | None) -> Entries:
    with path.open() as file:
        banner = file.readline()
        words = banner.lower().split()
        if not banner.startswith(_BANNER) or words[3:] not in (
            ["real", "general"],
            ["integer", "general"],
            ["pattern", "general"],
        ):
            raise ValueError(
                f"{path}, line 1: {banner.strip()!r}; wanted {_BANNER} real|integer|pattern general"
            )
        number, line = 2, file.readline()
        while line.startswith("%"):
            number, line = number + 1, file.readline()
        try:
            high, wide, count = map(int, line.split())
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is not rows, columns, entries"
            ) from None
        _check_shape(path, (high, wide), rows, columns)
        made = _text(
            path, file, number, 2 if words[3] == "pattern" else 3, high, wide, (high, wide)
        )
    if len(made.rows) != count:
        raise ValueError(f"{path} has {len(made.rows)} entries; its line {number} says {count}")
    return made


def _read_npz(path: Path, rows: int | None, columns: int | None) -> Entries:
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        kind = fields["format"].item()
        high, wide = (int(one) for one in fields["shape"])
        values = fields["data"]
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        if kind == "coo":
            down, across = fields["row"], fields["col"]
        elif kind in ("csr", "csc"):
            lengths = np.diff(fields["indptr"])
            down, across = np.repeat(np.arange(len(lengths)), lengths), fields["indices"]
            if kind == "csc":
                down, across = across, down
        else:
            raise ValueError(f"format {kind}")
    except (OSError, KeyError, ValueError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is no sparse matrix of scipy.sparse.save_npz in csr, csc or coo ({error})"
        ) from error
    _check_shape(path, (high, wide), rows, columns)
    if not len(down) == len(across) == len(values) or not np.isfinite(values).all():
        raise ValueError(f"{path}: entries of different number, or NaN or infinity among them")
    made = Entries(
        down.astype(np.int64), across.astype(np.int64), values.astype(np.float32), (high, wide)
    )
    if len(down) and (
        made.rows.min() < 0
        or made.rows.max() >= high
        or made.columns.min() < 0
        or made.columns.max() >= wide
    ):
        raise ValueError(f"{path}: an entry lies outside of its shape {(high, wide)}")
    _check_twice(path, made)
    return made


_READERS: dict[str, Callable[[Path, int | None, int | None], Entries]] = {
    ".npz": _read_npz,
    ".mtx": _read_matrix_market,
}


def _check_shape(path: Path, shape: tuple[int, int], rows: int | None, columns: int | None) -> None:
    if rows not in (None, shape[0]) or columns not in (None, shape[1]):
        raise ValueError(
            f"{path} is a matrix of shape {shape}; wanted ({rows or 'any'}, {columns or 'any'})"
        )


def _text(
    path: Path,
    file: TextIO,
    lines: int,
    fields: int,
    rows: int | None,
    columns: int | None,
    shape: tuple[int, int] | None,
) -> Entries:
    """Entries of `fields` numbers from a file of which `lines` are read."""
    blocks = []
    for start, text in _blocks(file, lines):
        try:
            block = np.loadtxt(text, ndmin=2, comments=None)
            good = block.shape[1] == fields and _inside(block, rows, columns).all()
        except ValueError:
            good = False
        if not good:
            _blame(path, text, start, fields, rows, columns)
        blocks.append(block if fields == 3 else np.column_stack([block, np.ones(len(block))]))
    whole = np.concatenate(blocks) if blocks else np.zeros((0, 3))
    places = whole[:, :2].astype(np.int64) - 1
    made = Entries(places[:, 0], places[:, 1], whole[:, 2].astype(np.float32), shape)
    _check_twice(path, made)
    return made


def _blocks(file: TextIO, lines: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the line before, lines that are not blank)."""
    while True:
        text = list(islice(file, BLOCK_LINES))
        if not text:
            return
        full = [line for line in text if not line.isspace()]
        if full:
            yield lines, full if len(full) == len(text) else text
        lines += len(text)


def _inside(block: NDArray[np.float64], rows: int | None, columns: int | None) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = np.isfinite(block).all(axis=1) & (
        np.abs(block[:, 2:]) <= np.finfo(np.float32).max
    ).all(axis=1)
    for numbers, most in zip(block[:, :2].T, (rows, columns)):
        good &= (
            (numbers >= 1)
            & (numbers == np.floor(numbers))
            & (numbers <= (most if most is not None else 1 << 53))
        )
    return good


def _blame(
    path: Path, text: list[str], start: int, fields: int, rows: int | None, columns: int | None
) -> None:
    """Raise for the first line of a block that is not what it should be."""
    wanted = ("row, column, value", "row, column")[3 - fields]
    for number, line in enumerate(text, start + 1):
        if line.isspace():
            continue
        try:
            entry = np.array([[float(word) for word in line.split()]])
            if entry.shape[1] != fields:
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not {wanted}") from None
        if not _inside(entry, rows, columns).all():
            room = f"1..{rows or 'any'} and 1..{columns or 'any'}"
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is outside of {room}, or not finite"
            )
    raise ValueError(f"{path}, lines {start + 1} to {start + len(text)}: not entries {wanted}")


def _check_twice(path: Path, entries: Entries) -> None:
    if len(entries.rows) < 2:
        return
    order = np.lexsort((entries.columns, entries.rows))
    rows, columns = entries.rows[order], entries.columns[order]
    same = np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))
    if len(same):
        raise ValueError(
            f"{path}: entry ({rows[same[0]] + 1}, {columns[same[0]] + 1}), counted from 1, is there twice"
        )
