"""Files of sparse matrices as entries (row, column, value): Graph Challenge TSV, SciPy npz,
MatrixMarket.

Rows and columns count from 1 in TSV and MatrixMarket, as their authors have it, and from 0 here.
Text is read in blocks; the line that is no entry is named. What a stranger's file may cost is
bounded in `files`; here every number is looked at before it is used as a size, so that memory grows
with the file's bytes and not with what the file claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import files
from serverless_mpi.inference.files import Npz, Source, Text

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

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
        It is no such file, an entry lies outside of that shape, is not a finite number, or is there
        twice; the text names file and line.
    """
    with files.opened(path) as source:
        return read_from(source, Path(path).suffix, rows, columns)


def read_from(source: Source, suffix: str, rows: int | None, columns: int | None) -> Entries:
    """As `read`, from an opened file."""
    return _READERS.get(suffix, _read_tsv)(source, rows, columns)


def _read_tsv(source: Source, rows: int | None, columns: int | None) -> Entries:
    return _text(source.name, Text(source), 3, rows, columns, None)


def _read_matrix_market(source: Source, rows: int | None, columns: int | None) -> Entries:
    name, text = source.name, Text(source)
    banner = text.line() or ""
    words = banner.lower().split()
    if not banner.startswith(_BANNER) or words[3:] not in (
        ["real", "general"],
        ["integer", "general"],
        ["pattern", "general"],
    ):
        raise ValueError(f"{name}, line 1: wanted {_BANNER} real|integer|pattern general")
    line = text.line()
    while line is not None and line.startswith("%"):
        line = text.line()
    number = text.number
    try:
        high, wide, count = map(int, (line or "").split())
        if min(high, wide, count) < 0:
            raise ValueError
    except ValueError:
        told = files.shown(line or "")
        raise ValueError(f"{name}, line {number}: {told} is not rows, columns, entries") from None
    _check_shape(name, (high, wide), rows, columns)
    fields = 2 if words[3] == "pattern" else 3
    made = _text(name, text, fields, high, wide, (high, wide))
    if len(made.rows) != count:
        raise ValueError(f"{name} has {len(made.rows)} entries; its line {number} says {count}")
    return made


def _read_npz(source: Source, rows: int | None, columns: int | None) -> Entries:
    name, archive = source.name, Npz(source)
    kind = archive.array("format", "SU", 0).item() if "format" in archive else b""
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    if kind not in ("csr", "csc", "coo"):
        raise ValueError(f"{name} is no sparse matrix of scipy.sparse.save_npz in csr, csc or coo")
    shape = archive.array("shape", "iu", 1).tolist()
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"{name} is damaged: no matrix has the shape {shape}")
    high, wide = shape
    _check_shape(name, (high, wide), rows, columns)
    given = archive.array("data", "buif", 1)
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: NaN, infinity or numbers beyond float32 among the entries")
    if kind == "coo":
        down, across = (_places(name, archive, field) for field in ("row", "col"))
    else:
        across = _places(name, archive, "indices")
        pointers = _places(name, archive, "indptr")
        lengths = np.diff(pointers)
        whole = len(pointers) == (high if kind == "csr" else wide) + 1
        if not whole or pointers[0] or (lengths < 0).any() or pointers[-1] != len(across):
            raise ValueError(f"{name} is damaged: its indptr does not fit its shape and indices")
        down = np.repeat(np.arange(len(lengths)), lengths)
        if kind == "csc":
            down, across = across, down
    if not len(down) == len(across) == len(values):
        raise ValueError(f"{name}: entries of different number")
    if len(down) and (
        down.min() < 0 or down.max() >= high or across.min() < 0 or across.max() >= wide
    ):
        raise ValueError(f"{name}: an entry lies outside of its shape {(high, wide)}")
    made = Entries(down, across, values, (high, wide))
    _check_twice(name, made)
    return made


def _places(name: str, archive: Npz, field: str) -> Indices:
    """Row or column numbers, or sums of them."""
    array = archive.array(field, "iu", 1)
    if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} is damaged: {field} has a number above 2^63")
    return array.astype(np.int64)


_READERS: dict[str, Callable[[Source, int | None, int | None], Entries]] = {
    ".npz": _read_npz,
    ".mtx": _read_matrix_market,
}


def _check_shape(name: str, shape: tuple[int, int], rows: int | None, columns: int | None) -> None:
    if rows not in (None, shape[0]) or columns not in (None, shape[1]):
        raise ValueError(
            f"{name} is a matrix of shape {shape}; wanted ({rows or 'any'}, {columns or 'any'})"
        )


def _text(
    name: str,
    text: Text,
    fields: int,
    rows: int | None,
    columns: int | None,
    shape: tuple[int, int] | None,
) -> Entries:
    """Entries of `fields` numbers from what is left of a text."""
    blocks: list[tuple[Indices, Floats]] = []
    count = 0
    for start, all_lines in text.blocks():
        lines = [line for line in all_lines if line and not line.isspace()]
        if not lines:
            continue
        try:
            block = np.loadtxt(lines, ndmin=2, comments=None)
            good = block.shape == (len(lines), fields) and _inside(block, rows, columns).all()
        except ValueError:
            good = False
        if not good:
            _blame(name, all_lines, start, fields, rows, columns)
        places = block[:, :2].astype(np.int64) - 1
        small = np.int32 if places.max(initial=0) <= np.iinfo(np.int32).max else np.int64
        values = block[:, 2] if fields == 3 else np.ones(len(block))
        blocks.append((places.astype(small), values.astype(np.float32)))
        count += len(block)
        if rows is not None and columns is not None and count > rows * columns:
            raise ValueError(f"{name}: more entries than the {rows * columns:,} of the matrix")
    whole = np.concatenate([np.zeros((0, 2), np.int32), *(one for one, _ in blocks)])
    all_values = np.concatenate([np.zeros(0, np.float32), *(one for _, one in blocks)])
    blocks.clear()
    made = Entries(whole[:, 0].astype(np.int64), whole[:, 1].astype(np.int64), all_values, shape)
    del whole
    _check_twice(name, made)
    return made


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
    name: str, text: list[str], start: int, fields: int, rows: int | None, columns: int | None
) -> None:
    """Raise for the first line of a block that is not what it should be."""
    wanted = ("row, column, value", "row, column")[3 - fields]
    for number, line in enumerate(text, start + 1):
        if not line or line.isspace():
            continue
        words = line.split()
        try:
            if len(words) != fields or "_" in line:  # Python reads 1_0 as 10; nobody else does
                raise ValueError
            entry = np.array([[float(word) for word in words]])
        except ValueError:
            told = files.shown(line)
            raise ValueError(f"{name}, line {number}: {told} is not {wanted}") from None
        if not _inside(entry, rows, columns).all():
            room = f"1..{rows or 'any'} and 1..{columns or 'any'}, counted from 1"
            raise ValueError(
                f"{name}, line {number}: {files.shown(line)} is outside of {room}, or not finite"
            )
    raise ValueError(f"{name}, lines {start + 1} to {start + len(text)}: not entries {wanted}")


def _check_twice(name: str, entries: Entries) -> None:
    if len(entries.rows) < 2:
        return
    wide = int(entries.columns.max()) + 1
    if int(entries.rows.max()) < np.iinfo(np.int64).max // wide:
        keys = entries.rows * wide
        keys += entries.columns
        keys.sort()
        same = np.flatnonzero(keys[1:] == keys[:-1])[:1]
        twice = [divmod(int(keys[one]), wide) for one in same]
    else:
        order = np.lexsort((entries.columns, entries.rows))
        rows, columns = entries.rows[order], entries.columns[order]
        same = np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))[:1]
        twice = [(int(rows[one]), int(columns[one])) for one in same]
    if twice:
        row, column = twice[0]
        raise ValueError(f"{name}: entry ({row + 1}, {column + 1}), counted from 1, is there twice")
