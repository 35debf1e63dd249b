"""Equal samples: samples whose activations are equal in all rows stay equal, so one is computed.

Hashes find candidates, and a comparison of all bits confirms them: no result depends on a hash.
`Schedule` decides from the numbers that earlier searches found when the next one pays, so ranks
that see the same numbers search at the same layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serverless_mpi._spdnn import ffi, lib
from serverless_mpi.sparse.layers import CAP, forward
from serverless_mpi.sparse.panels import WIDTH, Panels
from serverless_mpi.sparse.rows import Floats, SparseRows

Indices = NDArray[np.int64]
# The probe of `forward_distinct`: one sample in PROBE_STEP, at least a panel of them, in the first
# PROBE_LAYERS layers, at most a PROBE_SHARE-th of all.
PROBE_STEP, PROBE_LAYERS, PROBE_SHARE = 64, 16, 5


def originals(panels: Panels) -> Indices:
    """Return for each sample the first sample that equals it in all rows, perhaps itself.

    Parameters
    ----------
    panels
        The activations.

    Returns
    -------
    ndarray
        (samples,) int64. A sample whose hash collides with that of a different sample is its own
        original: equal samples may be missed, but none is invented.
    """
    samples = panels.samples
    hashes = np.empty(samples, np.uint64)
    lib.spdnn_hash(panels.c, panels.rows, samples, ffi.from_buffer("uint64_t[]", hashes))
    own = np.arange(samples)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    if len(first) == samples:
        return own
    original = np.ascontiguousarray(first[which], np.int64)
    same = np.empty(samples, np.bool_)
    lib.spdnn_same(
        panels.c,
        panels.rows,
        samples,
        ffi.from_buffer("int64_t[]", original),
        ffi.from_buffer("uint8_t[]", same),
    )
    return np.where(same, original, own)


class Schedule:
    """When to search for equal samples, from the gain of earlier searches.

    A search takes about as long as a few entries of each row. The first one is the probe; after one
    without gain the distance to the next grows, so a network without equal samples pays for a few
    searches in all its layers.

    Parameters
    ----------
    exchanged
        Whether a search takes a collective call: then the distances are larger.
    """

    GAIN = 0.03  # share of the samples that must be merged for the next search to follow at once
    FEW = WIDTH  # samples that take as long as one

    def __init__(self, *, exchanged: bool = False) -> None:
        # Layers before the first search, for inputs are rarely equal; then between two searches.
        self._next, self._near = (4, 2) if exchanged else (8, 4)
        self._growth = 8
        self._distance = self._near
        self._exchanged = exchanged
        self.complete = False  # whether further searches cannot gain anything

    def due(self, layers: int) -> bool:
        """Return whether to search now.

        Parameters
        ----------
        layers
            Number of layers that the samples have passed.
        """
        return not self.complete and layers >= self._next

    def next_search(self, layers: int) -> int:
        """Return the layer after which the next search is due, or `layers` if none is before.

        Parameters
        ----------
        layers
            Number of layers of the network.
        """
        return layers if self.complete else min(self._next, layers)

    def searched(self, layers: int, samples: int, distinct: int) -> None:
        """Take note of a search.

        Parameters
        ----------
        layers
            As in `due`.
        samples, distinct
            Number of samples, and of those that differ.
        """
        gained = samples - distinct >= max(1.0, self.GAIN * samples)
        if gained:
            self._growth = 2  # a network in which samples become equal
        self._distance = self._near if gained else self._distance * self._growth
        self._next = layers + self._distance
        self.complete = distinct <= (1 if self._exchanged else self.FEW)


def forward_distinct(
    layers: Sequence[SparseRows],
    x: Floats,
    bias: float,
    cap: float = CAP,
    threads: int | None = None,
) -> tuple[Floats, Indices]:
    """Run a batch through all layers as `layers.forward` does, equal samples once.

    Parameters
    ----------
    layers, x, bias, cap, threads
        As in `layers.forward`.

    Returns
    -------
    y, samples
        As in `layers.forward`, with the same bits.

    Raises
    ------
    ValueError, MemoryError
        As in `layers.forward`.
    """
    if not _pays(layers, x, bias, cap, threads):
        return forward(layers, x, bias, cap, threads)
    numbers = np.arange(x.shape[1])  # of the samples in x
    of = numbers.copy()  # the sample that stands for each one
    schedule, done = Schedule(), 0
    while True:
        # Several layers per call: a panel stays in the cache over them.
        stop = len(layers) if x.shape[1] <= WIDTH else schedule.next_search(len(layers))
        x, active = forward(layers[done:stop], x, bias, cap, threads)
        numbers = numbers[active]
        if stop == len(layers):
            return _expanded(x, numbers, of)
        done = stop
        original = originals(Panels.of(x))
        kept = original == np.arange(x.shape[1])
        schedule.searched(done, x.shape[1], int(np.count_nonzero(kept)))
        if not kept.all():
            of[numbers] = numbers[original]
            x, numbers = np.ascontiguousarray(x[:, kept]), numbers[kept]


def _pays(
    layers: Sequence[SparseRows], x: Floats, bias: float, cap: float, threads: int | None
) -> bool:
    """Return whether some of a few samples become equal in the first layers."""
    depth = min(PROBE_LAYERS, len(layers) // PROBE_SHARE)
    few = np.ascontiguousarray(x[:, :: max(1, min(x.shape[1] // WIDTH, PROBE_STEP))])
    if not depth or x.shape[1] <= WIDTH:
        return False
    y, _ = forward(layers[:depth], few, bias, cap, threads)
    return bool((originals(Panels.of(y)) != np.arange(y.shape[1])).any())


def _expanded(y: Floats, numbers: Indices, of: Indices) -> tuple[Floats, Indices]:
    """Return the columns of all samples for which one of `numbers` stands."""
    of = resolved(of)
    place = np.full(len(of), -1)
    place[numbers] = np.arange(len(numbers))
    samples = np.flatnonzero(place[of] >= 0)
    return np.ascontiguousarray(y[:, place[of[samples]]]), samples


def resolved(of: Indices) -> Indices:
    """Return for each sample the one that stands for it at the end.

    Parameters
    ----------
    of
        (samples,) the sample into which each was merged, itself for none; chains are possible.
    """
    while (of[of] != of).any():
        of = of[of]
    return of
