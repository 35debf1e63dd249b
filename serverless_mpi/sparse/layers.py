"""The calls: one layer, a product, a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serverless_mpi._spdnn import ffi, lib
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
    """(y, alive): y = min(max(z, 0), cap), z = w x (+ out, if it accumulates), plus bias where that
    is not 0.

    x: (n_cols, samples), a C-contiguous float32 array or Panels; NaN in it counts as 0 in y. out:
    takes y, (n_rows, samples), of the same kind as x; new if not given. accumulate: its sums are
    continued: this is the last of several calls for a row's entries, the others being `multiply`,
    and finishes them. counts: uint32 (n_rows), takes how many nonzeros each row of y has. threads:
    `default_threads` if not given. alive: per sample, whether one of its numbers in y is not 0.

    Raises
    ------
    ValueError
        An argument of the wrong type, shape or layout, NaN, cap below 0, threads below 1, out that
        overlaps x.
    MemoryError
        No memory for a panel.
    """
    if bias != bias or not cap >= 0:
        raise ValueError(f"bias must be a number and cap at least 0, not {bias} and {cap}")
    step = ffi.new("spdnn_step *", (int(accumulate), 1, bias, cap))
    return _step(w, x, step, accumulate, out, counts, threads, True)


def multiply(
    w: SparseRows,
    x: Activations,
    out: Activations | None = None,
    accumulate: bool = False,
    threads: int | None = None,
) -> Activations:
    """y = w x, or y += w x: arguments and errors as in `layer`, which finishes what this begins."""
    return _step(
        w,
        x,
        ffi.new("spdnn_step *", (int(accumulate), 0, 0.0, 0.0)),
        accumulate,
        out,
        None,
        threads,
        False,
    )[0]


def _step(
    w: SparseRows,
    x: Activations,
    step: Any,
    accumulate: bool,
    out: Activations | None,
    counts: NDArray[np.uint32] | None,
    threads: int | None,
    finish: bool,
) -> tuple[Activations, NDArray[np.bool_]]:
    if accumulate and out is None:
        raise ValueError("out is needed to accumulate in")
    y: Any = out
    if isinstance(x, Panels):
        if x.rows != w.n_cols:
            raise ValueError(f"x has {x.rows} rows; w has {w.n_cols} columns")
        samples = x.samples
        if y is None:
            y = Panels(w.n_rows, samples)
        elif not isinstance(y, Panels) or y.shape != (w.n_rows, samples):
            raise ValueError(
                f"out must be Panels of shape {(w.n_rows, samples)}, as x is Panels, not {_told(y)}"
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
    alive = np.empty(samples if finish else 0, np.bool_)
    if counts is not None and (
        counts.dtype != np.uint32 or counts.shape != (w.n_rows,) or not counts.flags.c_contiguous
    ):
        raise ValueError(
            f"counts must be C-contiguous uint32 of shape ({w.n_rows},), not {counts.dtype} "
            f"{counts.shape}"
        )
    flags = ffi.from_buffer("uint8_t[]", alive) if finish else ffi.NULL
    numbers = ffi.NULL if counts is None else _writable("counts", counts, "uint32_t[]")
    _check_memory(run(w.c, from_x, samples, to_y, step, flags, numbers, _threads(threads)))
    return y, alive


def forward(
    layers: Sequence[SparseRows],
    x: Floats,
    bias: float,
    cap: float = CAP,
    threads: int | None = None,
) -> tuple[Floats, NDArray[np.int64]]:
    """(y, living): a batch through all layers in one call; y has the columns of samples that live
    at the end alone.

    x: (layers[0].n_cols, samples); y: (layers[-1].n_rows, len(living)); living: those samples'
    numbers, ascending. Samples are independent, so a panel of them goes through all layers while it
    is in cache, and those that live on move together as others die.

    Raises
    ------
    ValueError, MemoryError
        As in `layer`; layers that do not fit each other.
    """
    if not layers:
        raise ValueError("layers is empty")
    for number, (before, after) in enumerate(zip(layers, layers[1:]), 1):
        if before.n_rows != after.n_cols:
            raise ValueError(
                f"layers[{number}] has {after.n_cols} columns; the layer before has "
                f"{before.n_rows} rows"
            )
    if bias != bias or not cap >= 0:
        raise ValueError(f"bias must be a number and cap at least 0, not {bias} and {cap}")
    check("x", x, (layers[0].n_cols, None))
    rows, samples = layers[-1].n_rows, x.shape[1]
    y = Panels(rows, samples)
    ids = np.empty(samples, np.int64)
    matrices = ffi.new("spdnn_matrix[]", [one.c[0] for one in layers])
    living = lib.spdnn_forward(
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
    _check_memory(living)
    order = np.argsort(ids[:living])
    taken = np.empty((rows, living), np.float32)
    lib.spdnn_gather(
        y.c, rows, ffi.from_buffer("int64_t[]", order), living, ffi.from_buffer("float[]", taken)
    )
    return taken, ids[:living][order]


def serial_forward(
    layers: Sequence[SparseRows],
    x: Floats,
    bias: float,
    cap: float = CAP,
    out: Floats | None = None,
    threads: int | None = None,
) -> Floats:
    """As `forward`, but y has all samples, (layers[-1].n_rows, samples), in `out` if given; of the
    dead it is 0.
    """
    last, living = forward(layers, x, bias, cap, threads)
    shape = (layers[-1].n_rows, x.shape[1])
    if out is None:
        out = np.zeros(shape, np.float32)
    else:
        check("out", out, shape)
        out[:] = 0
    out[:, living] = last
    return out


def path() -> str:
    """The instruction set in use: avx512, avx2, neon or plain.

    Raises
    ------
    ValueError
        SMPI_KERNEL names one that this machine lacks.
    """
    name = lib.spdnn_path()
    if name == ffi.NULL:
        raise ValueError(
            "SMPI_KERNEL names a path that this machine has not; unset it, or use plain"
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


def _told(y: Any) -> str:
    return f"Panels of shape {y.shape}" if isinstance(y, Panels) else type(y).__name__


def _check_memory(code: int) -> None:
    if code < 0:
        path()
        raise MemoryError(f"the kernel found no memory for a panel of {WIDTH} samples")
