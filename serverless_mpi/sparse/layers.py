"""Calls of the kernel: one layer, a product, a network.

Arguments are checked here, completely: the kernel's loops check nothing. A check that is removed
here is an access outside of memory there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serverless_mpi._spdnn import ffi, lib
from serverless_mpi.env import ENV_KERNEL
from serverless_mpi.sparse.cpus import default_threads
from serverless_mpi.sparse.panels import WIDTH, Panels, check
from serverless_mpi.sparse.rows import Floats, SparseRows

CAP = 32.0  # of the Graph Challenge's networks
Activations = TypeVar("Activations", Floats, Panels)


def layer(
    w: SparseRows,
    x: Activations,
    bias: float,
    cap: float = CAP,
    out: Activations | None = None,
    *,
    accumulate: bool = False,
    counts: NDArray[np.uint32] | None = None,
    threads: int | None = None,
) -> tuple[Activations, NDArray[np.bool_]]:
    """Compute one layer: y = min(max(z, 0), cap), z = w x, plus bias where w x is not 0.

    Parameters
    ----------
    w
        Weights, (n_rows, n_cols).
    x
        (n_cols, samples) activations: C-contiguous float32, or Panels. A NaN becomes 0 in y.
    bias, cap
        Added to nonzero sums; largest activation, at least 0.
    out
        Receives y; (n_rows, samples), of the type of x, without overlap. None for a new one.
    accumulate
        Continue the sums in `out`: this is the last of several calls for a row's entries, the
        earlier ones being `multiply`.
    counts
        Receives the nonzeros of each row of y: (n_rows,) uint32.
    threads
        Number of threads; None for `default_threads`.

    Returns
    -------
    y : ndarray or Panels
        `out`, or a new object of the type of x.
    active : ndarray
        (samples,) bool: whether a sample has a nonzero in y.

    Raises
    ------
    ValueError
        An argument of wrong type, shape or layout, NaN, cap below 0, threads below 1, or an `out`
        that overlaps x.
    MemoryError
        There is no memory for a panel.
    """
    _check_limits(bias, cap)
    step = ffi.new("spdnn_step *", (int(accumulate), 1, bias, cap))
    return _step(w, x, step, accumulate, out, counts, threads, True)


def multiply(
    w: SparseRows,
    x: Activations,
    out: Activations | None = None,
    accumulate: bool = False,
    threads: int | None = None,
) -> Activations:
    """Compute y = w x, or y += w x: the sums that a later call of `layer` completes.

    Parameters
    ----------
    w, x, out, threads
        As in `layer`.
    accumulate
        Add to `out`.

    Returns
    -------
    ndarray or Panels
        (n_rows, samples) of the type of x, without bias and limits.

    Raises
    ------
    ValueError, MemoryError
        As in `layer`.
    """
    return _step(
        w,
        x,
        ffi.new("spdnn_step *", (int(accumulate), 0, 0.0, 0.0)),  # no bias, no limits
        accumulate,
        out,
        None,
        threads,
        False,
    )[0]


def _step(
    w: SparseRows,
    x: Activations,
    step: ffi.CData,
    accumulate: bool,
    out: Activations | None,
    counts: NDArray[np.uint32] | None,
    threads: int | None,
    finish: bool,
) -> tuple[Activations, NDArray[np.bool_]]:
    """Check all arguments and call the kernel; `finish` asks for the flags of active samples."""
    if accumulate and out is None:
        raise ValueError("accumulate needs out, whose sums are continued")
    y: Any = out
    if isinstance(x, Panels):
        if x.rows != w.n_cols:
            raise ValueError(f"x has {x.rows} rows; w has {w.n_cols} columns")
        samples = x.samples
        if y is None:
            y = Panels(w.n_rows, samples)
        elif not isinstance(y, Panels) or y.shape != (w.n_rows, samples):
            raise ValueError(
                f"out must be Panels of shape {(w.n_rows, samples)}, as x is Panels, not "
                f"{_described(y)}"
            )
        run, from_x, to_y, shared = lib.spdnn_panels, x.c, y.c, np.may_share_memory(x.data, y.data)
    else:
        check("x", x, (w.n_cols, None))
        samples = x.shape[1]
        if y is None:
            y = np.empty((w.n_rows, samples), np.float32)
        else:
            check("out", y, (w.n_rows, samples))
        run, from_x, to_y = lib.spdnn_layer, ffi.from_buffer("float[]", x), _writable("out", y)
        shared = np.may_share_memory(x, y)
    if shared and y is not None:
        raise ValueError("out overlaps x")
    active = np.empty(samples if finish else 0, np.bool_)
    if counts is not None and (
        counts.dtype != np.uint32 or counts.shape != (w.n_rows,) or not counts.flags.c_contiguous
    ):
        raise ValueError(
            f"counts must be C-contiguous uint32 of shape ({w.n_rows},), not {counts.dtype} "
            f"{counts.shape}"
        )
    flags = ffi.from_buffer("uint8_t[]", active) if finish else ffi.NULL
    numbers = ffi.NULL if counts is None else _writable("counts", counts, "uint32_t[]")
    _check_memory(run(w.c, from_x, samples, to_y, step, flags, numbers, _threads(threads)))
    return y, active


def forward(
    layers: Sequence[SparseRows],
    x: Floats,
    bias: float,
    cap: float = CAP,
    threads: int | None = None,
) -> tuple[Floats, NDArray[np.int64]]:
    """Run a batch through all layers in one call.

    Samples are independent, so a panel of them passes all layers while it is in the cache. Samples
    whose activations are all zero are pruned, and the active ones compacted, on the way.

    Parameters
    ----------
    layers
        Weights; each layer's columns are the rows of the one before.
    x
        (layers[0].n_cols, samples) float32, C-contiguous.
    bias, cap, threads
        As in `layer`, for every layer.

    Returns
    -------
    y : ndarray
        (layers[-1].n_rows, active samples) float32.
    samples : ndarray
        Numbers of the samples that are active at the end, ascending; int64.

    Raises
    ------
    ValueError, MemoryError
        As in `layer`; layers do not fit each other.
    """
    _check_network(layers)
    _check_limits(bias, cap)
    check("x", x, (layers[0].n_cols, None))
    rows, samples = layers[-1].n_rows, x.shape[1]
    y = Panels(rows, samples)
    ids = np.empty(samples, np.int64)
    matrices = ffi.new("spdnn_matrix[]", [matrix.c[0] for matrix in layers])
    active = lib.spdnn_forward(
        matrices,
        len(layers),
        ffi.from_buffer("float[]", x),
        samples,
        y.c,
        ffi.from_buffer("int64_t[]", ids),
        bias,
        cap,
        _threads(threads),
    )
    _check_memory(active)
    order = np.argsort(ids[:active])
    output = np.empty((rows, active), np.float32)
    lib.spdnn_gather(
        y.c, rows, ffi.from_buffer("int64_t[]", order), active, ffi.from_buffer("float[]", output)
    )
    return output, ids[:active][order]


def _check_network(layers: Sequence[SparseRows]) -> None:
    """Raise ValueError if there is no layer, or a layer does not fit the one before."""
    if not layers:
        raise ValueError("layers is empty")
    for number, (before, after) in enumerate(zip(layers, layers[1:]), 1):
        if before.n_rows != after.n_cols:
            raise ValueError(
                f"layers[{number}] has {after.n_cols} columns; the layer before has "
                f"{before.n_rows} rows"
            )


def _check_limits(bias: float, cap: float) -> None:
    """Raise ValueError if a limit is NaN, or the cap is negative."""
    if bias != bias or not cap >= 0:
        raise ValueError(f"bias must be a number and cap at least 0, not {bias} and {cap}")


def serial_forward(
    layers: Sequence[SparseRows],
    x: Floats,
    bias: float,
    cap: float = CAP,
    out: Floats | None = None,
    threads: int | None = None,
) -> Floats:
    """Run a batch through all layers, with a result for every sample.

    Parameters
    ----------
    layers, x, bias, cap, threads
        As in `forward`.
    out
        Receives the result; None for a new array.

    Returns
    -------
    ndarray
        (layers[-1].n_rows, samples) float32; 0 for pruned samples.

    Raises
    ------
    ValueError, MemoryError
        As in `forward`.
    """
    last, active = forward(layers, x, bias, cap, threads)
    shape = (layers[-1].n_rows, x.shape[1])
    if out is None:
        out = np.zeros(shape, np.float32)
    else:
        check("out", out, shape)
        out[:] = 0
    out[:, active] = last
    return out


def path() -> str:
    """Return the instruction set in use: avx512, avx2, neon or plain.

    Raises
    ------
    ValueError
        SMPI_KERNEL names one that this machine does not support.
    """
    name = lib.spdnn_path()
    if name == ffi.NULL:
        raise ValueError(
            f"{ENV_KERNEL} names a path that this machine does not support; unset it, or use plain"
        )
    return bytes(ffi.string(name)).decode()


def _threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    return int(threads)


def _writable(name: str, array: NDArray[Any], kind: str = "float[]") -> Any:
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return ffi.from_buffer(kind, array)


def _described(y: object) -> str:
    return f"Panels of shape {y.shape}" if isinstance(y, Panels) else type(y).__name__


def _check_memory(code: int) -> None:
    if code < 0:
        path()
        raise MemoryError(f"not enough memory for a panel of {WIDTH} samples")
