"""Random networks of general layers, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from serverless_mpi.inference.networks import Network
from serverless_mpi.sparse import Activation, Ending, SparseRows


def matrix(rng: Any, rows: int, columns: int, density: float) -> SparseRows:
    """A random matrix; of density 1 a dense one."""
    there = rng.random((rows, columns)) < density
    values = rng.normal(0, 1, there.sum()).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return SparseRows(indptr, np.nonzero(there)[1], values, columns)


def ending(rng: Any, rows: int, activation: Activation) -> Ending:
    """An ending with a bias of any kind."""
    length = (0, 1, rows)[int(rng.integers(3))]
    return Ending(
        activation,
        rng.normal(0, 0.5, length).astype(np.float32),
        limit=float(rng.choice([0.5, 2.0, np.inf])),
        slope=0.125,
        on_nonzeros=bool(rng.integers(2)),
    )


def network(seed: int, sizes: list[int], activations: list[Activation]) -> Network:
    """A network of layers between these numbers of neurons."""
    rng = np.random.default_rng(seed)
    densities = rng.choice([0.1, 0.3, 1.0], len(activations))
    shapes = list(zip(sizes[1:], sizes, densities))
    matrices = [matrix(rng, rows, columns, share) for rows, columns, share in shapes]
    endings = [ending(rng, rows, kind) for (rows, _, _), kind in zip(shapes, activations)]
    return Network(sizes[0], len(matrices), 0.0, lambda: iter(matrices), "general", endings=endings)


def images(seed: int, neurons: int, samples: int) -> Any:
    """Random images of which some are all 0, and some are equal."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((neurons, samples)) < 0.3, rng.normal(0, 1, (neurons, samples)), 0)
    x[:, ::7] = 0
    x[:, 1::5] = x[:, 1:2]
    return np.ascontiguousarray(x, np.float32)
