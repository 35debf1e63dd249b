"""Measures the planner's figures on this machine: kernel speed, active samples, coded size.

The first images run through the first layers with the serial kernel. A layer counts for the speed
only while it has enough active samples to fill the kernel's panels; every layer counts for the
share of active samples and for the size of coded rows.
"""

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

SAMPLES = 2048  # number of images; enough for the kernel to reach its speed
LEAST = 256  # least active samples of a layer that is timed
BUDGET_S = 5.0  # after this time, further layers are assumed to be like the last one
CODED_ROWS = 64  # rows of each layer that are encoded to measure their size


def measured(
    work: Work, network: Layers, images: NDArray[np.float32], bias: float, cap: float = CAP
) -> tuple[Work, float]:
    """Measure how many samples stay active, how well rows compress, and how fast the kernel is.

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
