"""Sparse matrices in files, as entries (row, column, value): TSV, SciPy npz, MatrixMarket.

Rows and columns count from 1 in TSV and MatrixMarket, as their authors define it, and from 0 here.
Text is read in blocks, and an invalid line is reported with its number. `files` bounds what an
untrusted file may cost; here every number is checked before it is used as a size, so that memory
grows with the bytes of the file and not with its claims.

If you add a format, write a reader and add its suffix to `_READERS`.
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
    """A sparse matrix.

    Attributes
    ----------
    rows, columns, values
        Its entries in the file's order, counted from 0: (entries,) int64, int64 and float32.
    shape
        Its shape; None if the file does not state one.
    """

    rows: Indices
    columns: Indices
    values: Floats
    shape: tuple[int, int] | None


def read(path: str | Path, rows: int | None, columns: int | None) -> Entries:
    """Read a sparse matrix.

    Parameters
    ----------
    path
        The file: .npz, .mtx, or TSV with any other suffix.
    rows, columns
        Number of rows and columns; None for any.

    Returns
    -------
    Entries
        Its entries.

    Raises
    ------
    ValueError
        The file is not in that format, or an entry is outside of the shape, not finite, or
        repeated; the text names the file and the line.
    """
    with files.opened(path) as source:
        return read_from(source, Path(path).suffix, rows, columns)


def read_from(source: Source, suffix: str, rows: int | None, columns: int | None) -> Entries:
    """Read a sparse matrix from an opened file.

    Parameters
    ----------
    source
        The file.
    suffix
        Suffix of its name.
    rows, columns
        As in `read`.

    Returns
    -------
    Entries
        Its entries.

    Raises
    ------
    ValueError
        As in `read`.
    """
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
        raise ValueError(f"{name}, line 1: not `{_BANNER} real|integer|pattern general`")
    line = text.line()
    while line is not None and line.startswith("%"):
        line = text.line()
    number = text.number
    try:
        high, wide, count = map(int, (line or "").split())
        if min(high, wide, count) < 0:
            raise ValueError
    except ValueError:
        shown = files.shown(line or "")
        raise ValueError(f"{name}, line {number}: {shown} is not rows, columns, entries") from None
    _check_shape(name, (high, wide), rows, columns)
    fields = 2 if words[3] == "pattern" else 3
    entries = _text(name, text, fields, high, wide, (high, wide))
    if len(entries.rows) != count:
        raise ValueError(
            f"{name} has {len(entries.rows)} entries; its line {number} states {count}"
        )
    return entries


def _read_npz(source: Source, rows: int | None, columns: int | None) -> Entries:
    name, archive = source.name, Npz(source)
    kind = archive.array("format", "SU", 0).item() if "format" in archive else b""
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    if kind not in ("csr", "csc", "coo"):
        raise ValueError(f"{name} is not a csr, csc or coo matrix of scipy.sparse.save_npz")
    shape = archive.array("shape", "iu", 1).tolist()
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"{name} is damaged: {shape} is not the shape of a matrix")
    high, wide = shape
    _check_shape(name, (high, wide), rows, columns)
    given = archive.array("data", "buif", 1)
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: NaN, infinity or numbers beyond float32 among the entries")
    if kind == "coo":
        down, across = (_numbers(name, archive, field) for field in ("row", "col"))
    else:
        across = _numbers(name, archive, "indices")
        pointers = _numbers(name, archive, "indptr")
        lengths = np.diff(pointers)
        whole = len(pointers) == (high if kind == "csr" else wide) + 1
        if not whole or pointers[0] or (lengths < 0).any() or pointers[-1] != len(across):
            raise ValueError(f"{name} is damaged: its indptr does not fit its shape and indices")
        down = np.repeat(np.arange(len(lengths)), lengths)
        if kind == "csc":
            down, across = across, down
    if not len(down) == len(across) == len(values):
        raise ValueError(f"{name} is damaged: its arrays have different lengths")
    if len(down) and (
        down.min() < 0 or down.max() >= high or across.min() < 0 or across.max() >= wide
    ):
        raise ValueError(f"{name}: an entry is outside of its shape {(high, wide)}")
    entries = Entries(down, across, values, (high, wide))
    _check_repeated(name, entries)
    return entries


def _numbers(name: str, archive: Npz, field: str) -> Indices:
    """Read row numbers, column numbers or offsets as int64."""
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
            f"{name} is a matrix of shape {shape}, not ({rows or 'any'}, {columns or 'any'})"
        )


def _text(
    name: str,
    text: Text,
    fields: int,
    rows: int | None,
    columns: int | None,
    shape: tuple[int, int] | None,
) -> Entries:
    """Read entries of `fields` numbers from the remaining lines of a text."""
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
            _raise_for_line(name, all_lines, start, fields, rows, columns)
        positions = block[:, :2].astype(np.int64) - 1
        small = np.int32 if positions.max(initial=0) <= np.iinfo(np.int32).max else np.int64
        values = block[:, 2] if fields == 3 else np.ones(len(block))
        blocks.append((positions.astype(small), values.astype(np.float32)))
        count += len(block)
        if rows is not None and columns is not None and count > rows * columns:
            raise ValueError(f"{name}: more entries than the {rows * columns:,} of the matrix")
    whole = np.concatenate([np.zeros((0, 2), np.int32), *(positions for positions, _ in blocks)])
    all_values = np.concatenate([np.zeros(0, np.float32), *(values for _, values in blocks)])
    blocks.clear()  # at once, and `whole` below: two copies of a large file are too many
    entries = Entries(whole[:, 0].astype(np.int64), whole[:, 1].astype(np.int64), all_values, shape)
    del whole
    _check_repeated(name, entries)
    return entries


def _inside(block: NDArray[np.float64], rows: int | None, columns: int | None) -> NDArray[np.bool_]:
    """Return for each entry whether its numbers are finite, and its position is in the matrix."""
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


def _raise_for_line(
    name: str, text: list[str], start: int, fields: int, rows: int | None, columns: int | None
) -> None:
    """Raise ValueError for the first invalid line of a block."""
    expected = ("row, column, value", "row, column")[3 - fields]
    for number, line in enumerate(text, start + 1):
        if not line or line.isspace():
            continue
        words = line.split()
        try:
            if len(words) != fields or "_" in line:  # only Python reads 1_0 as 10
                raise ValueError
            entry = np.array([[float(word) for word in words]])
        except ValueError:
            shown = files.shown(line)
            raise ValueError(f"{name}, line {number}: {shown} is not {expected}") from None
        if not _inside(entry, rows, columns).all():
            bounds = f"1..{rows or 'any'} and 1..{columns or 'any'}, counted from 1"
            raise ValueError(
                f"{name}, line {number}: {files.shown(line)} is outside of {bounds}, or not finite"
            )
    raise ValueError(f"{name}, lines {start + 1} to {start + len(text)}: not entries {expected}")


def _check_repeated(name: str, entries: Entries) -> None:
    """Raise ValueError if two entries have the same position."""
    if len(entries.rows) < 2:
        return
    wide = int(entries.columns.max()) + 1
    if int(entries.rows.max()) < np.iinfo(np.int64).max // wide:
        # One key per entry, sorted in place: a lexsort takes three times the memory.
        keys = entries.rows * wide
        keys += entries.columns
        keys.sort()
        equal = np.flatnonzero(keys[1:] == keys[:-1])[:1]
        repeated = [divmod(int(keys[at]), wide) for at in equal]
    else:
        order = np.lexsort((entries.columns, entries.rows))
        rows, columns = entries.rows[order], entries.columns[order]
        equal = np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))[:1]
        repeated = [(int(rows[at]), int(columns[at])) for at in equal]
    if repeated:
        row, column = repeated[0]
        raise ValueError(f"{name}: entry ({row + 1}, {column + 1}), counted from 1, is repeated")
