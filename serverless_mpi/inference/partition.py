"""Who owns which neuron, by layer boundary, and what each rank must hold and send because of it.

Boundary 0 is the input of layer 0, boundary l the output of layer l-1 and the input of layer l.  A neuron's owner at
boundary l computes its row in layer l-1 and gives it to every rank that has a row of layer l with it as an input.
How owners are chosen is a row of METHODS; what follows from them, for a rank, is `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import partitioners
from serverless_mpi.inference.engine import DEALT, NONE, PAIRED, SHARED, Part
from serverless_mpi.inference.networks import Layers
from serverless_mpi.inference.partitioners import spread, starts, twins
from serverless_mpi.sparse import SparseRows

Owners = NDArray[np.uint16]
Indices = NDArray[np.int64]

MOST_PARTS = 1 << 16
# A row read by all who share one costs a receiver what it does not need, and saves a sender the copies it would make: with
# SNS and SQS at 0.5 and 0.4 $ a million chunks, sharing is the cheaper above this share of rows that readers need.
SHARE_ABOVE = 0.45
# S3 asks as much for a PUT as for 12 GETs: dealing is a PUT a rank and a GET a pair, pairing both for each pair that has rows.
GETS_A_PUT = 12


@dataclass(frozen=True)
class Partition:
    """Owners of the neurons at every boundary of a network.

    neurons: of a layer; parts: ranks; method: how it was made; owners: one array a boundary, (neurons,) uint16 each;
    boundaries may share an array.
    """

    neurons: int
    parts: int
    method: str
    owners: tuple[Owners, ...]

    @property
    def layers(self) -> int:
        """Layers of the network it is for."""
        return len(self.owners) - 1

    def rows(self, boundary: int, part: int) -> Indices:
        """Numbers of the neurons that `part` owns there, ascending."""
        return np.flatnonzero(self.owners[boundary] == part)

    def check(self, network: Layers) -> None:
        """Raise ValueError unless it is for a network of that many layers."""
        if len(network) != self.layers:
            raise ValueError(
                f"the partition is for {self.layers} layers; the network has {len(network)}"
            )

    def report(self, network: Layers) -> Report:
        """Load and communication of every layer."""
        self.check(network)
        rows, pairs, load, nnz = [], [], [], []
        for layer, matrix in enumerate(network):
            needs = _needs(
                matrix,
                self.owners[layer],
                self.owners[layer + 1],
                np.arange(self.neurons),
                self.parts,
            )
            needs[self.owners[layer], np.arange(self.neurons)] = False
            rows.append(int(needs.sum()))
            pairs.append(_pairs(needs, self.owners[layer]))
            work = np.bincount(self.owners[layer + 1], np.diff(matrix.indptr), self.parts)
            load.append(float(work.max() * self.parts / max(1, work.sum())))
            nnz.append(matrix.nnz)
        return Report(tuple(rows), tuple(pairs), tuple(load), tuple(nnz))


@dataclass(frozen=True)
class Report:
    """What a partition costs, one number a layer.

    rows: activation rows sent, each counted for every rank it goes to; pairs: (sender, receiver) that exchange some, the
    messages of a pair-wise scheme; load: work of the busiest rank, as a multiple of the average; nnz: weights.
    """

    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    load: tuple[float, ...]
    nnz: tuple[int, ...]

    @property
    def messages(self) -> int:
        """Messages of all layers."""
        return sum(self.pairs)


def make(network: Layers, parts: int, method: str = "greedy", seed: int = 0) -> Partition:
    """A partition of `network` for `parts` ranks, by a method of METHODS; the same one for the same seed.

    Raises
    ------
    ValueError
        No such method, more parts than neurons, layers that are not square; for `hypergraph` also no partitioner installed.
    """
    if method not in METHODS:
        raise ValueError(f"no partition method {method!r}; known: {', '.join(METHODS)}")
    if parts < 1 or parts > MOST_PARTS:
        raise ValueError(f"{parts} parts; a partition has 1 to {MOST_PARTS}")
    neurons = 0
    owners: list[Owners] = []
    for boundary, array in enumerate(
        METHODS[method](_checked(network, parts), len(network), parts, seed)
    ):
        neurons = len(array) if boundary == 0 else neurons
        array.flags.writeable = False
        owners.append(array)
    return Partition(neurons, parts, method, tuple(owners))


def _checked(network: Layers, parts: int) -> Iterator[SparseRows]:
    neurons = None
    for number, matrix in enumerate(network):
        neurons = matrix.n_cols if neurons is None else neurons
        if matrix.n_rows != neurons or matrix.n_cols != neurons:
            raise ValueError(
                f"layer {number} has {matrix.n_rows} rows and {matrix.n_cols} columns, not {neurons} of both"
            )
        if parts > neurons:
            raise ValueError(
                f"{neurons} neurons cannot be dealt out to {parts} ranks; start at most {neurons}"
            )
        yield matrix
    if neurons is None:
        raise ValueError("a network needs at least 1 layer")


Method = Callable[[Iterator[SparseRows], int, int, int], Iterator[Owners]]


def _block(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Neighbouring neurons together; blocks differ by at most one row."""
    neurons = next(network).n_cols
    bounds = np.arange(parts + 1) * neurons // parts
    owners = np.repeat(np.arange(parts), np.diff(bounds)).astype(np.uint16)
    yield from [owners] * (layers + 1)


def _random(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Any neurons together, anew at each boundary; sizes as in block."""
    (block, *_) = _block(network, 0, parts, seed)
    chance = np.random.default_rng(seed)
    for _ in range(layers + 1):
        yield chance.permutation(block)


def _greedy(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Rows with common inputs together, by growing part after part."""
    return partitioners.layers(network, parts, seed, partitioners.greedy)


def _hypergraph(
    network: Iterator[SparseRows], layers: int, parts: int, seed: int
) -> Iterator[Owners]:
    """Rows with common inputs together, by Mt-KaHyPar."""
    return partitioners.layers(network, parts, seed, partitioners.hypergraph)


METHODS: dict[str, Method] = {
    "block": _block,
    "random": _random,
    "greedy": _greedy,
    "hypergraph": _hypergraph,
}


# --- what a rank holds and sends --------------------------------------------------------------------------------------


def build(network: Layers, partition: Partition, rank: int) -> list[Part]:
    """All layers of one rank."""
    return [part for (part,) in stream(network, partition, [rank])]


def stream(network: Layers, partition: Partition, ranks: Sequence[int]) -> Iterator[list[Part]]:
    """Layer after layer, the parts of `ranks`, reading the network once and one layer at a time.

    A row whose inputs and weights are those of an earlier row of the same rank is that row's twin: both have the same
    activations, so one of them is computed and sent.  Places below count such distinct rows: `place` is a neuron's
    among its owner's, `first` an owner's first among all.
    """
    partition.check(network)
    parts = partition.parts
    owners = partition.owners[0]
    place, counts = _positions(owners, parts)
    for layer, matrix in enumerate(network):
        if matrix.n_rows != partition.neurons or matrix.n_cols != partition.neurons:
            raise ValueError(
                f"layer {layer} has {matrix.n_rows} rows and {matrix.n_cols} columns; the partition is for {partition.neurons} neurons"
            )
        out = partition.owners[layer + 1]
        first = starts(counts)
        distinct = first[owners] + place
        needs = _needs(matrix, owners, out, distinct, parts)
        sender = np.repeat(np.arange(parts), counts)
        needs[sender, np.arange(first[-1])] = False
        some = np.logical_or.reduce(needs)
        how = _how(parts, _pairs(needs, sender), int(needs.sum()), int(some.sum()))
        inputs = distinct[matrix.indices]
        twin = twins(
            matrix.indptr, inputs, matrix.all_values().view(np.int32).astype(np.int64), kind=out
        )
        place, counts_after = _twin_places(twin, out, parts)
        made = []
        for rank in ranks:
            want = np.flatnonzero(needs[rank])
            at = np.zeros(int(first[-1]), np.int64)
            at[first[rank] : first[rank + 1]] = np.arange(counts[rank])
            at[want] = counts[rank] + np.arange(len(want))
            rows = np.flatnonzero((out == rank) & (twin == np.arange(len(twin))))
            lengths = np.diff(matrix.indptr)[rows]
            entries = spread(matrix.indptr[rows], lengths)
            columns = int(counts[rank]) + len(want)
            values: Any = matrix.constant if matrix.values is None else matrix.values[entries]
            weights = SparseRows(starts(lengths), at[inputs[entries]], values, columns)
            mine = np.flatnonzero(out == rank)
            if how == SHARED:
                sent = np.flatnonzero(some)
                give = np.flatnonzero(some[first[rank] : first[rank + 1]])
                give_to = np.full(parts + 1, len(give))
                give_to[0] = 0
                sent_from = np.searchsorted(sent, first)
                take = np.searchsorted(sent, want) - sent_from[sender[want]]
                come = np.diff(sent_from)
            else:
                lists = [
                    np.flatnonzero(needs[peer, first[rank] : first[rank + 1]])
                    for peer in range(parts)
                ]
                give = np.concatenate(lists)
                give_to = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
                take = np.zeros(0, np.int64)
                come = np.bincount(sender[want], minlength=parts)
            take_from = np.searchsorted(sender[want], np.arange(parts + 1))
            made.append(
                Part(
                    weights.indptr,
                    weights.indices,
                    weights.all_values()[:1].copy() if weights.values is None else weights.values,
                    columns,
                    place[mine].astype(np.uint32),
                    how,
                    give.astype(np.uint32),
                    give_to.astype(np.int64),
                    take.astype(np.uint32),
                    take_from.astype(np.int64),
                    come.astype(np.int64),
                )
            )
        yield made
        owners, counts = out, counts_after


def _pairs(needs: NDArray[np.bool_], sender: NDArray[Any]) -> int:
    """How many (reader, sender) there are; needs: (parts, rows), sender: of each row."""
    readers, rows = np.nonzero(needs)
    return len(np.unique(readers * len(needs) + sender[rows]))


def _how(parts: int, pairs: int, rows: int, distinct: int) -> int:
    """The exchange of a layer: of `pairs` that have something for each other, `rows` in all, of `distinct` ones."""
    if not pairs:
        return NONE
    if pairs * (GETS_A_PUT + 1) <= parts * GETS_A_PUT + parts * (parts - 1):
        return PAIRED
    return SHARED if rows >= SHARE_ABOVE * (parts - 1) * distinct else DEALT


def _positions(owners: Owners, parts: int) -> tuple[Indices, Indices]:
    """(each neuron's place among its owner's, ascending; how many each owner has)."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=parts)
    place = np.empty(len(owners), np.int64)
    place[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts


def _needs(
    matrix: SparseRows, owners: Owners, out: Owners, distinct: Indices, parts: int
) -> NDArray[np.bool_]:
    """(parts, distinct rows): whether a part has a row with that input."""
    needs = np.zeros((parts, int(distinct.max(initial=-1)) + 1), np.bool_)
    needs[np.repeat(out, np.diff(matrix.indptr)), distinct[matrix.indices]] = True
    return needs


def _twin_places(twin: Indices, out: Owners, parts: int) -> tuple[Indices, Indices]:
    """(each row's place among its owner's distinct rows; how many each owner has)."""
    heads = np.flatnonzero(twin == np.arange(len(twin)))
    place = np.empty(len(twin), np.int64)
    place[heads], counts = _positions(out[heads], parts)
    return place[twin], counts
