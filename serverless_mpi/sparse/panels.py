"""Activations in panels: the memory layout of the kernel.

Invariant: the unused columns of the last panel are 0. The kernel computes them with the others, and
would otherwise count them as active samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serverless_mpi._spdnn import ffi, lib
from serverless_mpi.sparse.rows import Floats

WIDTH = 32  # samples of a panel: SPDNN_PANEL
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class Panels:
    """Activations of shape (rows, samples), with the samples in panels of WIDTH.

    A row of a panel is contiguous, 128 bytes, so that rows are selected fast.

    Attributes
    ----------
    rows, samples
        The shape.
    data
        (panels, rows, WIDTH) float32: sample s of row r is `data[s // WIDTH, r, s % WIDTH]`. Code
        that writes to it keeps the unused columns of the last panel 0.
    """

    rows: int
    samples: int
    data: Floats
    c: Any
    _memory: Floats

    def __init__(self, rows: int, samples: int) -> None:
        """Make panels of zeros.

        Parameters
        ----------
        rows, samples
            The shape; at least 0.

        Raises
        ------
        ValueError
            A number is negative.
        """
        if rows < 0 or samples < 0:
            raise ValueError(f"rows and samples must not be negative: {rows}, {samples}")
        self._own(np.zeros(_floats_of(rows, samples) + ALIGNMENT // 4, np.float32), rows, samples)

    def _own(self, memory: Floats, rows: int, samples: int) -> None:
        start = -memory.ctypes.data % ALIGNMENT // 4
        data = memory[start : start + _floats_of(rows, samples)].reshape(
            -(-samples // WIDTH), rows, WIDTH
        )
        self.__dict__.update(
            _memory=memory,
            rows=rows,
            samples=samples,
            data=data,
            c=ffi.from_buffer("float[]", data),
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of Panels cannot be set: the kernel relies on it")

    @classmethod
    def of(cls, x: Floats) -> Panels:
        """Return an array converted to panels.

        Parameters
        ----------
        x
            (rows, samples) float32, C-contiguous; copied.

        Raises
        ------
        ValueError
            x has another type or layout.
        """
        panels = cls(*x.shape)
        panels.put(x)
        return panels

    @property
    def shape(self) -> tuple[int, int]:
        """Shape as (rows, samples)."""
        return self.rows, self.samples

    def put(self, x: Floats, rows: ArrayLike | None = None) -> None:
        """Copy rows into the panels.

        Parameters
        ----------
        x
            (len(rows), samples) float32, C-contiguous; copied.
        rows
            Row i of x becomes row `rows[i]`; None: x has all rows.

        Raises
        ------
        ValueError
            x has another number of samples, or a row does not exist.
        """
        numbers = self._row_numbers(rows)
        check("x", x, (self.rows if numbers is None else len(numbers), self.samples))
        row_pointer = ffi.NULL if numbers is None else ffi.from_buffer("int64_t[]", numbers)
        lib.spdnn_to_panels(
            ffi.from_buffer("float[]", x), len(x), self.samples, row_pointer, self.c, self.rows
        )

    def take(self, rows: ArrayLike | None = None) -> Floats:
        """Return a copy of rows as an array.

        Parameters
        ----------
        rows
            Numbers of rows, in any order; None for all.

        Returns
        -------
        ndarray
            (len(rows), samples) float32, C-contiguous.

        Raises
        ------
        ValueError
            A row does not exist.
        """
        numbers = self._row_numbers(rows)
        x = np.empty((self.rows if numbers is None else len(numbers), self.samples), np.float32)
        row_pointer = ffi.NULL if numbers is None else ffi.from_buffer("int64_t[]", numbers)
        lib.spdnn_from_panels(
            self.c, self.rows, self.samples, row_pointer, ffi.from_buffer("float[]", x), len(x)
        )
        return x

    def keep(self, samples: ArrayLike) -> None:
        """Remove all other samples, in place.

        Parameters
        ----------
        samples
            Numbers of the samples to keep, ascending; or a flag for each sample.

        Raises
        ------
        ValueError
            The numbers are not ascending, or a sample does not exist.
        """
        wanted = np.asarray(samples)
        if wanted.dtype == np.bool_:
            if wanted.shape != (self.samples,):
                raise ValueError(
                    f"samples has shape {wanted.shape}; there are {self.samples} samples"
                )
            wanted = np.flatnonzero(wanted)
        numbers = _integers("samples", wanted, self.samples)
        if (np.diff(numbers) <= 0).any():
            raise ValueError("samples must rise")
        lib.spdnn_keep(self.c, self.rows, ffi.from_buffer("int64_t[]", numbers), len(numbers))
        self._own(self._memory, self.rows, len(numbers))

    def _row_numbers(self, rows: ArrayLike | None) -> NDArray[np.int64] | None:
        return None if rows is None else _integers("rows", np.asarray(rows), self.rows)


def _floats_of(rows: int, samples: int) -> int:
    return -(-samples // WIDTH) * rows * WIDTH


def _integers(name: str, numbers: NDArray[Any], below: int) -> NDArray[np.int64]:
    whole = numbers.size == 0 or numbers.dtype.kind in "iu"
    if (
        numbers.ndim != 1
        or not whole
        or (numbers.size and (numbers.min() < 0 or numbers.max() >= below))
    ):
        raise ValueError(f"{name} must be one-dimensional, integers in 0..{below - 1}")
    return np.ascontiguousarray(numbers, np.int64)


def check(name: str, array: NDArray[Any], shape: tuple[int, int | None]) -> None:
    """Check the type, shape and layout of an array.

    Parameters
    ----------
    name
        Name of the argument, for the error text.
    array
        Must be two-dimensional, C-contiguous float32.
    shape
        Its shape; None as the second number permits any.

    Raises
    ------
    ValueError
        The array is not of that kind; the text describes both.
    """
    good = (
        isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and array.ndim == 2
        and array.flags.c_contiguous
        and array.shape[0] == shape[0]
        and shape[1] in (None, array.shape[1])
    )
    if not good:
        given = (
            f"{array.dtype} {array.shape}"
            if isinstance(array, np.ndarray)
            else type(array).__name__
        )
        raise ValueError(
            f"{name} must be a C-contiguous float32 array of shape {shape} (None: any), not {given}"
        )
