"""Row-partitioned inference over a communicator: mpi4py's or the shim's, the same code.

Each rank has a block of every layer's rows (neurons).  Before a layer it sends each other rank exactly the activation
rows that rank's weights touch, one message a peer and layer, puts the rows it got and its own together in ascending
order of neuron, and makes one fused kernel call.  The order of every sum is thus that of the serial kernel, and so
are the bits of the answer.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import CAP, SparseRows, layer

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_CONSTANT, _VALUES = 0, 1
_DEFLATE_LEVEL = 1  # a higher level takes longer than the bytes it saves


def block_bounds(neurons: int, ranks: int) -> list[int]:
    """First row of each rank's block, and `neurons`: blocks that differ by at most one row.

    Raises
    ------
    ValueError
        There are more ranks than neurons.
    """
    if ranks > neurons:
        raise ValueError(f"{neurons} neurons cannot be dealt out to {ranks} ranks; start at most {neurons}")
    return [neurons * rank // ranks for rank in range(ranks + 1)]


@dataclass
class Part:
    """A rank's rows of one layer, over the columns in use, and which activation rows come and go.

    wanted[q]: places in `weights`' columns of rows that rank q sends; give[q]: rows of this rank's block that
    rank q wants.
    """

    weights: SparseRows
    wanted: list[Indices]
    give: list[Indices]


@dataclass
class Statistics:
    """What a rank's inference took: seconds computing and exchanging, messages and bytes given to others."""

    compute_s: float = 0.0
    exchange_s: float = 0.0
    messages: int = 0
    nbytes: int = 0
    rows: int = 0
    living: list[int] = field(default_factory=list)  # samples alive before each layer


def partition(network: Sequence[SparseRows], rank: int, ranks: int) -> list[Part]:
    """A rank's part of every layer, in blocks of rows; the maps of who needs what are made here, once."""
    bounds = block_bounds(network[0].n_cols, ranks)
    parts = []
    for matrix in network:
        if matrix.n_rows != matrix.n_cols:
            raise ValueError(f"a layer of {matrix.n_rows} rows and {matrix.n_cols} columns; layers must be square")
        used = [np.unique(matrix.rows(bounds[q], bounds[q + 1]).indices).astype(np.int64) for q in range(ranks)]
        weights, mine = matrix.rows(bounds[rank], bounds[rank + 1]).compacted()
        cuts = np.searchsorted(mine, bounds)
        wanted = [np.arange(cuts[q], cuts[q + 1]) for q in range(ranks)]
        give = [
            needed[(needed >= bounds[rank]) & (needed < bounds[rank + 1])] - bounds[rank] for needed in used
        ]
        parts.append(Part(weights, wanted, give))
    return parts


def encode(rows: Floats) -> bytes:
    """Activation rows as bytes, exactly: a bitmap of the nonzeros, then their values, or one value if all are equal."""
    nonzero = rows != 0
    bitmap = np.packbits(nonzero).tobytes()
    values = rows[nonzero]
    if len(values) and (values == values[0]).all():
        kind, body = _CONSTANT, values[:1].tobytes()
    else:
        kind, body = _VALUES, values.tobytes()
    return bytes([kind]) + zlib.compress(bitmap + body, _DEFLATE_LEVEL)


def decode(data: bytes, shape: tuple[int, int]) -> Floats:
    """The rows of that shape.

    Raises
    ------
    ValueError
        The bytes are not rows of that shape: the ranks' networks differ.
    """
    plain = zlib.decompress(memoryview(data)[1:])
    count = shape[0] * shape[1]
    width = -(-count // 8)
    bits = np.unpackbits(np.frombuffer(plain[:width], np.uint8), count=count)
    nonzeros = int(bits.sum())
    if len(plain) != width + 4 * (min(1, nonzeros) if data[0] == _CONSTANT else nonzeros):
        raise ValueError(f"{len(data)} bytes are no activation rows of shape {shape}; all ranks must hold the same network")
    nonzero = bits.astype(bool).reshape(shape)
    values = np.frombuffer(plain, np.float32, offset=width)
    rows = np.zeros(shape, np.float32)
    rows[nonzero] = values
    return rows


def infer(
    comm: Any, parts: Sequence[Part], x: Floats, bias: float, cap: float = CAP
) -> tuple[Floats, Indices, Statistics]:
    """Run a batch through the network; every rank of `comm` calls it.

    x: this rank's block of input rows, (rows, samples).

    Returns
    -------
    y: this rank's block of output rows, over the samples that live at the end; those samples' numbers,
    ascending; and what it took.
    """
    ranks = comm.size
    samples: Indices = np.arange(x.shape[1])
    own_alive = (x != 0).any(axis=0)
    taken = Statistics()
    y = x
    for part in parts:
        started = time.perf_counter()
        y, samples, gathered = _exchange(comm, part, y, own_alive, samples, taken)
        exchanged = time.perf_counter()
        taken.living.append(len(samples))
        y, own_alive = layer(part.weights, gathered, bias, cap)
        taken.compute_s += time.perf_counter() - exchanged
        taken.exchange_s += exchanged - started
    flags = comm.allgather(np.packbits(own_alive).tobytes())
    alive = _union(flags, len(samples))
    assert len(flags) == ranks
    return np.ascontiguousarray(y[:, alive]), samples[alive], taken


def _exchange(
    comm: Any, part: Part, y: Floats, own_alive: NDArray[np.bool_], samples: Indices, taken: Statistics
) -> tuple[Floats, Indices, Floats]:
    """(own rows, living samples, the rows of x that this rank's weights touch), of living samples alone.

    A message is the sender's flags of samples that live in its rows, then the rows, of those samples alone.
    """
    rank, ranks = comm.rank, comm.size
    flags = np.packbits(own_alive).tobytes()
    living = y[:, own_alive]
    messages: list[bytes] = []
    for peer in range(ranks):
        give = part.give[peer]
        messages.append(b"" if peer == rank else flags + encode(living[give]))
        if peer != rank:
            taken.messages += 1
            taken.nbytes += len(messages[-1])
            taken.rows += len(give)
    received = comm.alltoall(messages)
    received[rank] = flags
    theirs = [_flags(message, len(samples)) for message in received]
    alive = np.logical_or.reduce(theirs)
    gathered = np.zeros((part.weights.n_cols, int(alive.sum())), np.float32)
    for peer in range(ranks):
        places = part.wanted[peer]
        here = theirs[peer][alive]
        if peer == rank:
            gathered[places] = y[part.give[rank]][:, alive]
        elif len(places):
            rows = decode(received[peer][len(flags) :], (len(places), int(here.sum())))
            gathered[np.ix_(places, np.flatnonzero(here))] = rows
    return y, samples[alive], gathered


def _flags(message: bytes, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(message, np.uint8, -(-count // 8)), count=count).astype(bool)


def _union(flags: Sequence[bytes], count: int) -> NDArray[np.bool_]:
    return np.logical_or.reduce([_flags(one, count) for one in flags])
