"""What follows the sums of a layer: its bias and its activation.

The challenge's layers need none of this: `layers.layer` adds one bias to nonzero sums and caps a
ReLU in the loop that computes them. Any other layer is `multiply`, then `finish`. Both have the
same bits on every machine: exponentials are computed in double precision from additions,
multiplications and divisions, and rounded once (`kernels/finish.c`).

Invariant: -0 becomes 0, so a number that is not stored, sent or computed because it is 0 has the
bits of one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serverless_mpi._spdnn import ffi, lib
from serverless_mpi.sparse.cpus import default_threads
from serverless_mpi.sparse.layers import layer, multiply
from serverless_mpi.sparse.panels import Panels
from serverless_mpi.sparse.rows import Floats, SparseRows, frozen

SOFTMAX_ROWS = 1 << 23  # most rows of a softmax, whose sum is a 63-bit number


class Activation(IntEnum):
    """Activations; the numbers are in files, and the kernel has them in `spdnn.h`.

    Only the last layer of a network may have SOFTMAX.
    """

    NONE = 0
    RELU = 1
    LEAKY_RELU = 2
    SIGMOID = 3
    TANH = 4
    GELU = 5
    SOFTMAX = 6

    @property
    def label(self) -> str:
        """Name in files of models and in messages, as in `leaky-relu`."""
        return self.name.lower().replace("_", "-")


def _no_bias() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Ending:
    """What follows the sums of a layer: y = activation(z + bias).

    Attributes
    ----------
    activation
        The activation; SOFTMAX is NONE until the samples are complete at the end of the network.
    bias
        (0,), (1,) for all rows, or (rows,) float32; copied, read-only.
    limit
        Largest activation of RELU; infinity for none.
    slope
        Factor of negative sums of LEAKY_RELU.
    on_nonzeros
        Add the bias where the sum is not 0, as the Graph Challenge does.
    """

    activation: Activation = Activation.NONE
    bias: Floats = field(default_factory=_no_bias)
    limit: float = inf
    slope: float = 0.01
    on_nonzeros: bool = False

    def __post_init__(self) -> None:
        """Check the fields; ValueError names the one that is wrong."""
        with np.errstate(over="ignore"):
            bias = np.asarray(self.bias, np.float32)
        if bias.ndim > 1 or not np.isfinite(bias).all():
            raise ValueError("the bias must be a number or a vector, without NaN and infinity")
        if not self.limit >= 0:
            raise ValueError(f"the limit of a ReLU must be at least 0, not {self.limit}")
        if not np.isfinite(np.float32(self.slope)):
            raise ValueError(f"the slope of a leaky ReLU must be finite, not {self.slope}")
        object.__setattr__(self, "bias", frozen(bias.reshape(-1)))
        object.__setattr__(self, "activation", Activation(self.activation))

    @property
    def keeps_zero(self) -> bool:
        """Whether sums of 0 become activations of 0: then samples of zeros need no computing."""
        activated = self.activation in (Activation.SIGMOID, Activation.SOFTMAX)
        return not activated and (self.on_nonzeros or not self.bias.any())

    @property
    def step(self) -> tuple[float, float] | None:
        """Bias and cap of `layers.layer`, if that computes the same; else None."""
        if self.activation != Activation.RELU:
            return None
        if not self.bias.any():
            return 0.0, self.limit
        return (float(self.bias[0]), self.limit) if self.on_nonzeros and self.scalar else None

    @property
    def scalar(self) -> bool:
        """Whether all rows have one bias."""
        return len(self.bias) == 1

    def check(self, rows: int) -> None:
        """Check that the bias fits a layer.

        Parameters
        ----------
        rows
            Rows of the layer.

        Raises
        ------
        ValueError
            It has another length, or a softmax has too many rows.
        """
        if len(self.bias) not in (0, 1, rows):
            raise ValueError(f"a bias of {len(self.bias)} numbers for {rows} outputs")
        if self.activation == Activation.SOFTMAX and rows > SOFTMAX_ROWS:
            raise ValueError(
                f"a softmax of {rows:,} outputs; at most {SOFTMAX_ROWS:,} are possible"
            )

    def of_rows(self, rows: ArrayLike) -> Ending:
        """Return the ending of some rows.

        Parameters
        ----------
        rows
            Their numbers.
        """
        if len(self.bias) < 2:
            return self
        return replace(self, bias=self.bias[np.asarray(rows)])

    def describe(self) -> str:
        """Return the ending in words, as in `bias, relu up to 32`."""
        words = ("no bias", "one bias", "bias")[min(len(self.bias), 2)]
        if self.on_nonzeros and len(self.bias):
            words += " on nonzeros"
        detail = ""
        if self.activation == Activation.RELU and self.limit < inf:
            detail = f" up to {self.limit:g}"
        if self.activation == Activation.LEAKY_RELU:
            detail = f" of slope {self.slope:g}"
        return f"{words}, {self.activation.label}{detail}"


def finish(y: Panels, ending: Ending, threads: int | None = None) -> NDArray[np.bool_]:
    """Add the bias to sums and apply the activation, in place; a SOFTMAX is left out.

    Parameters
    ----------
    y
        The sums; changed.
    ending
        Bias and activation.
    threads
        Number of threads; None for `default_threads`.

    Returns
    -------
    ndarray
        (samples,) bool: whether a sample has a number that is not 0; always with a SOFTMAX.

    Raises
    ------
    ValueError
        The bias has another length than y has rows.
    """
    ending.check(y.rows)
    activation = ending.activation
    bias = ffi.from_buffer("float[]", ending.bias) if len(ending.bias) else ffi.NULL
    c = ffi.new(
        "spdnn_ending *",
        {
            "activation": 0 if activation == Activation.SOFTMAX else int(activation),
            "on_nonzeros": int(ending.on_nonzeros),
            "limit": ending.limit,
            "slope": ending.slope,
            "bias": bias,
            "biases": len(ending.bias),
        },
    )
    active = np.empty(y.samples, np.bool_)
    lib.spdnn_finish(
        c,
        y.c,
        y.rows,
        y.samples,
        ffi.from_buffer("uint8_t[]", active),
        default_threads() if threads is None else max(1, threads),
    )
    if activation == Activation.SOFTMAX:
        active[:] = True  # numbers that are all 0 have a softmax
    return active


def ended_layer(
    w: SparseRows,
    x: Panels,
    ending: Ending,
    out: Panels | None = None,
    *,
    accumulate: bool = False,
    threads: int | None = None,
) -> tuple[Panels, NDArray[np.bool_]]:
    """Compute one layer with any ending, as `layers.layer` computes the challenge's.

    Parameters
    ----------
    w, x, out, accumulate, threads
        As in `layers.layer`.
    ending
        Bias and activation.

    Returns
    -------
    y, active
        As in `layers.layer`.

    Raises
    ------
    ValueError, MemoryError
        As in `layers.layer` and `finish`.
    """
    if ending.step is not None:
        bias, cap = ending.step
        return layer(w, x, bias, cap, out, accumulate=accumulate, threads=threads)
    y = multiply(w, x, out, accumulate, threads)
    return y, finish(y, ending, threads)


# --- softmax --------------------------------------------------------------------------------------


def highest_of(z: Floats) -> Floats:
    """Return the largest number of each sample; -infinity without rows.

    Parameters
    ----------
    z
        (rows, samples) float32.

    Returns
    -------
    ndarray
        (samples,) float32.
    """
    return np.asarray(z.max(axis=0, initial=-np.inf), np.float32)


def softmax_sums(z: Floats, highest: Floats) -> NDArray[np.int64]:
    """Return the sums of exponentials of some rows, to be added to those of the other rows.

    Parameters
    ----------
    z
        (rows, samples) float32, C-contiguous.
    highest
        (samples,) float32: the largest number of each sample over all rows.

    Returns
    -------
    ndarray
        (samples,) int64, in units of 2^-40: their sum does not depend on the order.
    """
    sums = np.zeros(z.shape[1], np.int64)
    numbers = ffi.from_buffer("int64_t[]", sums)
    lib.spdnn_softmax_sums(*_matrix(z), *_per_sample(z, highest), numbers)
    return sums


def softmax(z: Floats, highest: Floats, sums: NDArray[np.int64]) -> None:
    """Replace numbers by their softmax over all rows.

    Parameters
    ----------
    z
        (rows, samples) float32, C-contiguous; changed.
    highest, sums
        (samples,) of all rows.
    """
    numbers = ffi.from_buffer("int64_t[]", sums)
    lib.spdnn_softmax(*_matrix(z), *_per_sample(z, highest), numbers)


def _matrix(z: Floats) -> tuple[Any, int, int]:
    if z.dtype != np.float32 or z.ndim != 2 or not z.flags.c_contiguous:
        raise ValueError("a softmax needs a C-contiguous float32 matrix")
    return ffi.from_buffer("float[]", z), z.shape[0], z.shape[1]


def _per_sample(z: Floats, highest: Floats) -> tuple[Any]:
    if highest.dtype != np.float32 or highest.shape != z.shape[1:]:
        raise ValueError("highest must have a float32 number per sample")
    return (ffi.from_buffer("float[]", highest),)


# --- the serial reference -------------------------------------------------------------------------


def serial_run(
    layers: Sequence[SparseRows], endings: Sequence[Ending], x: Floats, threads: int | None = None
) -> Floats:
    """Run a batch through all layers, one after the other: the reference of any number of ranks.

    Parameters
    ----------
    layers
        Weights; each layer's columns are the rows of the one before.
    endings
        Of each layer.
    x
        (layers[0].n_cols, samples) float32, C-contiguous; borrowed.
    threads
        As in `layers.layer`.

    Returns
    -------
    ndarray
        (layers[-1].n_rows, samples) float32.

    Raises
    ------
    ValueError, MemoryError
        As in `layers.layer` and `finish`.
    """
    y = Panels.of(x)
    for w, ending in zip(layers, endings, strict=True):
        y, _ = ended_layer(w, y, ending, threads=threads)
    output = y.take()
    if endings and endings[-1].activation == Activation.SOFTMAX:
        highest = highest_of(output)
        softmax(output, highest, softmax_sums(output, highest))
    return output
