"""The planner's figures, measured here: how fast the kernel is, how the samples thin out, how well
activations code.
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

SAMPLES = 2048  # of the images; enough for the kernel to be at its speed
LEAST = 256  # living samples of a layer that is timed; fewer do not fill the kernel's panels
BUDGET_S = 5.0  # layers behind this are taken to be like the last one seen
CODED_ROWS = 64  # of each layer whose coded size is looked at


def measured(
    work: Work, network: Layers, images: NDArray[np.float32], bias: float, cap: float = CAP
) -> tuple[Work, float]:
    """(the work with what these images do, living samples x nonzeros a second of one thread).

    images: (neurons, samples); the first SAMPLES of them are run through the first layers, for
    about BUDGET_S.
    """
    y = np.ascontiguousarray(images[:, :SAMPLES])
    total = y.shape[1]
    living: list[float] = []
    nbytes = activations = edges = 0.0
    took = 0.0
    started = time.perf_counter()
    for matrix in network:
        y = np.ascontiguousarray(y[:, (y != 0).any(axis=0)])
        living.append(y.shape[1] / total)
        rows = y[:: max(1, len(y) // CODED_ROWS)]
        nbytes += len(codec.encode(rows)) * len(y) / len(rows)
        activations += y.size
        began = time.perf_counter()
        y, _ = layer(matrix, y, bias, cap)
        if y.shape[1] >= LEAST:
            took += time.perf_counter() - began
            edges += matrix.nnz * y.shape[1]
        if time.perf_counter() - started > BUDGET_S:
            break
    if not took:
        raise UsageError(
            f"fewer than {LEAST} of the first {total} images live: too few to time the kernel; "
            "give more, or --rate"
        )
    return replace(
        work, living=tuple(living), wire_bytes=nbytes / max(1.0, activations)
    ), edges / took
