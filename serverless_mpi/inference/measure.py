"""Measures the planner's figures on this machine: kernel speed, active samples, coded size."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import codec
from serverless_mpi.inference.networks import Layers
from serverless_mpi.inference.plan import Work
from serverless_mpi.sparse import CAP, layer

SAMPLES = 2048  # of the images; enough for the kernel to be at its speed
LEAST = 256  # active samples of a layer that is timed; fewer do not fill the kernel's panels
BUDGET_S = 5.0  # after this, layers are assumed to be like the last one
CODED_ROWS = 64  # rows of each layer that are coded to measure their size


def measured(
    work: Work, network: Layers, images: NDArray[np.float32], bias: float, cap: float = CAP
) -> tuple[Work, float]:
    """Measure how these images thin out, and how fast the kernel is.

    Runs the first SAMPLES images through the first layers, for about BUDGET_S.

    Parameters
    ----------
    work
        The size of the run.
    network, bias, cap
        The model.
    images
        (neurons, samples) float32.

    Returns
    -------
    work : Work
        With measured `living` and `wire_bytes`.
    rate : float
        Nonzeros x active samples per second of one thread.

    Raises
    ------
    UsageError
        Too few images stay active.
    """
    y = np.ascontiguousarray(images[:, :SAMPLES])
    total = y.shape[1]
    active: list[float] = []
    nbytes = activations = edges = 0.0
    seconds = 0.0
    started = time.perf_counter()
    for matrix in network:
        y = np.ascontiguousarray(y[:, (y != 0).any(axis=0)])
        active.append(y.shape[1] / total)
        rows = y[:: max(1, len(y) // CODED_ROWS)]
        nbytes += len(codec.encode(rows)) * len(y) / len(rows)
        activations += y.size
        began = time.perf_counter()
        y, _ = layer(matrix, y, bias, cap)
        if y.shape[1] >= LEAST:
            seconds += time.perf_counter() - began
            edges += matrix.nnz * y.shape[1]
        if time.perf_counter() - started > BUDGET_S:
            break
    if not seconds:
        raise UsageError(
            f"fewer than {LEAST} of the first {total} images are active: too few to time the "
            "kernel; "
            "use more images, or give --rate"
        )
    return replace(
        work, living=tuple(active), wire_bytes=nbytes / max(1.0, activations)
    ), edges / seconds
