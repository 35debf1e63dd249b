"""Row-partitioned inference over a communicator: mpi4py's or the shim's, the same code.

Each rank has some of every layer's rows (neurons).  Before a layer it gives the others the activation rows their
weights touch and lays theirs behind its own, sender after sender.  A row's sum is taken in the order of its entries,
wherever its inputs lie, so the order of every sum is that of the serial kernel, and so are the bits of the answer.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import codec
from serverless_mpi.sparse import CAP, SparseRows, layer

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_HEAD = struct.Struct("<II")  # of a message: bytes of its set of samples, rows

@dataclass
class Part:
    """A layer as one rank holds it.

    The layer's input is a panel of `columns` activation rows: first those the rank computed itself, then those of rank 0,
    rank 1, ... that it needs.  Rows with equal entries (twins) are there once, and computed once.

    indptr, indices, values: the rank's distinct rows, CSR over the panel, entries in the network's order; values has nnz
    numbers, or one for all.
    expand: for each neuron the rank owns behind the layer, ascending, its distinct row.
    shared: one message for all peers, not one each; active: whether any rank sends anything before this layer.
    give: own distinct rows of the boundary before the layer that are sent; those for peer q are
    give[give_to[q]:give_to[q + 1]], or all of `give` if shared (then give_to is 0 and len(give)).
    take: for each row that comes, sender after sender, its place in the sender's message if shared; empty if not,
    as then all of a message is taken.  take_from[q]..take_from[q + 1]: the rows of sender q.
    """

    indptr: Indices
    indices: NDArray[Any]
    values: Floats
    columns: int
    expand: NDArray[np.uint32]
    shared: bool
    active: bool
    give: NDArray[np.uint32]
    give_to: Indices
    take: NDArray[np.uint32]
    take_from: Indices

    @property
    def rows(self) -> int:
        """Distinct rows."""
        return len(self.indptr) - 1

    @property
    def own(self) -> int:
        """Panel rows that are the rank's own."""
        return self.columns - int(self.take_from[-1])

    def weights(self) -> SparseRows:
        """The matrix, over the same memory."""
        values = self.values[0] if len(self.values) == 1 else self.values
        return SparseRows(self.indptr, self.indices, values, self.columns)


@dataclass
class LayerStatistics:
    """What a layer took on one rank: seconds; rows, nonzeros, bytes and messages it sent; samples alive before it."""

    compute_s: float = 0.0
    send_s: float = 0.0
    wait_s: float = 0.0
    rows: int = 0
    nonzeros: int = 0
    nbytes: int = 0
    messages: int = 0
    living: int = 0


@dataclass
class Statistics:
    """What a rank's inference took, by layer; the same fields are sums over the layers."""

    layers: list[LayerStatistics] = field(default_factory=list)

    def total(self) -> LayerStatistics:
        """The sum over the layers."""
        fields = LayerStatistics.__dataclass_fields__
        return LayerStatistics(**{name: sum(getattr(one, name) for one in self.layers) for name in fields})


def infer(
    comm: Any, parts: Sequence[Part], x: Floats, bias: float, cap: float = CAP
) -> tuple[Floats, Indices, Statistics]:
    """Run a batch through the network; every rank of `comm` calls it.

    x: rows of the neurons this rank owns at boundary 0, ascending: (rows, samples).

    Returns
    -------
    y: rows of the neurons this rank owns at the last boundary, over the samples that live there on some rank; those
    samples' numbers, ascending; and what it took.
    """
    taken = Statistics()
    batch = _Batch(comm.rank, comm.size, x)
    for part in parts:
        took = LayerStatistics(living=len(batch.living))
        taken.layers.append(took)
        started = time.perf_counter()
        received: list[bytes] = []
        if part.active:
            messages = batch.messages(part, took)
            took.send_s = time.perf_counter() - started
            received = comm.allgather(messages[0]) if part.shared else comm.alltoall(messages)
        arrived = time.perf_counter()
        took.wait_s = arrived - started - took.send_s
        panel = batch.panel(part, received)
        batch.y, alive = layer(part.weights(), panel, bias, cap)
        batch.keep(alive)
        took.compute_s = time.perf_counter() - arrived
    flags = np.zeros(x.shape[1], np.bool_)
    flags[batch.living] = True
    sets = [codec.decode_set(one, len(flags)) for one in comm.allgather(codec.encode_set(flags))]
    samples = np.flatnonzero(np.logical_or.reduce(sets))
    y = np.zeros((len(parts[-1].expand), len(samples)), np.float32)
    y[:, flags[samples]] = batch.y[parts[-1].expand]
    return y, samples, taken


class _Batch:
    """A rank's state of one batch: its distinct rows at a boundary, and the samples they live in."""

    def __init__(self, rank: int, ranks: int, x: Floats) -> None:
        self.rank, self.ranks = rank, ranks
        self.samples = x.shape[1]
        alive = (x != 0).any(axis=0)
        self.living = np.flatnonzero(alive)
        self.y = np.ascontiguousarray(x[:, alive])

    def keep(self, alive: NDArray[np.bool_]) -> None:
        """Drop the samples that are not alive in any own row."""
        if not alive.all():
            self.living = self.living[alive]
            self.y = np.ascontiguousarray(self.y[:, alive])

    def messages(self, part: Part, took: LayerStatistics) -> list[bytes]:
        """One for all peers if shared, else one each: the samples that live in own rows, and rows of these samples."""
        flags = np.zeros(self.samples, np.bool_)
        flags[self.living] = True
        living = codec.encode_set(flags)
        made = []
        for peer in range(1 if part.shared else self.ranks):
            give = part.give[part.give_to[peer] : part.give_to[peer + 1]]
            if not len(give):
                made.append(b"")
                continue
            rows = self.y[give]
            made.append(_HEAD.pack(len(living), len(give)) + living + codec.encode(rows))
            took.messages += 1
            took.nbytes += len(made[-1])
            took.rows += len(give)
            took.nonzeros += int(np.count_nonzero(rows))
        return made

    def panel(self, part: Part, received: Sequence[bytes]) -> Floats:
        """The layer's input, of the samples that live in one of its rows."""
        bodies: list[tuple[Indices, Floats]] = []
        union = np.zeros(self.samples, np.bool_)
        union[self.living] = True
        for peer, message in enumerate(received):
            want = int(part.take_from[peer + 1] - part.take_from[peer])
            if peer == self.rank or not want:
                bodies.append((self.living[:0], self.y[:0, :0]))
                continue
            length, count = _HEAD.unpack_from(message)
            flags = codec.decode_set(message[_HEAD.size : _HEAD.size + length], self.samples)
            rows = codec.decode(message[_HEAD.size + length :], (count, int(flags.sum())))
            if part.shared:
                rows = rows[part.take[part.take_from[peer] : part.take_from[peer + 1]]]
            bodies.append((np.flatnonzero(flags), rows))
            union |= flags
        living = np.flatnonzero(union)
        panel = np.zeros((part.columns, len(living)), np.float32)
        panel[: part.own, np.searchsorted(living, self.living)] = self.y
        for peer, (samples, rows) in enumerate(bodies):
            at = part.own + part.take_from[peer : peer + 2]
            panel[at[0] : at[1], np.searchsorted(living, samples)] = rows
        self.living = living
        return panel
