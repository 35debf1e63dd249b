"""Partitions: the owner of each neuron at each layer boundary, and the parts that follow.

Boundary 0 is the input of layer 0; boundary l is the output of layer l-1 and the input of layer l.
The owner of a neuron at boundary l computes its row in layer l-1, and sends it to every rank that
has a row of layer l which reads it.

METHODS are the methods to choose owners; a new one is a function and a row there. What a rank holds
and sends follows from the owners alone (`stream`), so every rank computes it without a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import partitioners
from serverless_mpi.inference.engine import Exchange, Part
from serverless_mpi.inference.networks import Layers, endings_of
from serverless_mpi.inference.partitioners import duplicate_rows, spread, starts
from serverless_mpi.sparse import Ending, SparseRows

Owners = NDArray[np.uint16]
Indices = NDArray[np.int64]

MOST_PARTS = 1 << 16
# With ALLGATHER a receiver also pays for rows that it does not need; with ALLTOALL the sender pays
# for every copy. At 0.5 $ (SNS) and 0.4 $ (SQS) per million chunks, ALLGATHER is cheaper if ranks
# need more than this share of the rows that are sent.
SHARE_ABOVE = 0.45
# S3 bills a PUT like 12 GETs. ALLTOALL takes a PUT per rank and a GET per pair of ranks, PAIRWISE
# both per pair that has rows.
GETS_PER_PUT = 12


@dataclass(frozen=True)
class Partition:
    """Owners of the neurons at every boundary of a network.

    Attributes
    ----------
    neurons
        Neurons of boundary 0.
    parts
        Number of ranks.
    method
        Name in METHODS of the method that chose the owners.
    owners
        For each boundary the rank of each of its neurons: uint16, read-only. Boundaries may share
        an array.
    """

    neurons: int
    parts: int
    method: str
    owners: tuple[Owners, ...]

    @property
    def layers(self) -> int:
        """Number of layers of its network."""
        return len(self.owners) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each boundary."""
        return tuple(len(owners) for owners in self.owners)

    def rows(self, boundary: int, part: int) -> Indices:
        """Return the neurons that a part owns at a boundary.

        Parameters
        ----------
        boundary
            Number of the boundary, 0 to `layers`.
        part
            Number of the part.

        Returns
        -------
        ndarray
            Their numbers, ascending; int64.
        """
        return np.flatnonzero(self.owners[boundary] == part)

    def check(self, network: Layers) -> None:
        """Check that the partition is for as many layers as a network has.

        Parameters
        ----------
        network
            The network.

        Raises
        ------
        ValueError
            It has another number of layers.
        """
        if len(network) != self.layers:
            raise ValueError(
                f"the partition is for {self.layers} layers; the network has {len(network)}"
            )

    def check_layer(self, layer: int, matrix: SparseRows) -> None:
        """Check that a layer has as many inputs and outputs as the partition has owners.

        Parameters
        ----------
        layer, matrix
            Number of the layer, counted from 0, and the layer.

        Raises
        ------
        ValueError
            It has not.
        """
        inputs, outputs = len(self.owners[layer]), len(self.owners[layer + 1])
        if (matrix.n_cols, matrix.n_rows) != (inputs, outputs):
            raise ValueError(
                f"layer {layer + 1} has {matrix.n_cols} inputs and {matrix.n_rows} outputs; "
                f"the partition is for {inputs} and {outputs}"
            )

    def report(self, network: Layers) -> Report:
        """Compute load and communication of every layer.

        Parameters
        ----------
        network
            The network that was partitioned; read once.

        Raises
        ------
        ValueError
            It has another number of layers.
        """
        self.check(network)
        rows, pairs, load, nnz = [], [], [], []
        for layer, matrix in enumerate(network):
            self.check_layer(layer, matrix)
            inputs = np.arange(matrix.n_cols)
            needs = _needs(matrix, self.owners[layer], self.owners[layer + 1], inputs, self.parts)
            # A rank does not send to itself.
            needs[self.owners[layer], inputs] = False
            rows.append(int(needs.sum()))
            pairs.append(_pairs(needs, self.owners[layer]))
            work = np.bincount(self.owners[layer + 1], np.diff(matrix.indptr), self.parts)
            load.append(float(work.max() * self.parts / max(1, work.sum())))
            nnz.append(matrix.nnz)
        return Report(tuple(rows), tuple(pairs), tuple(load), tuple(nnz))


@dataclass(frozen=True)
class Report:
    """What a partition costs, one number per layer.

    Attributes
    ----------
    rows
        Activation rows sent, counted for every rank that receives them.
    pairs
        (sender, receiver) pairs that exchange rows: the messages of PAIRWISE.
    load
        Work of the busiest rank, as a multiple of the mean.
    nnz
        Weights.
    """

    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    load: tuple[float, ...]
    nnz: tuple[int, ...]

    @property
    def messages(self) -> int:
        """Number of messages of all layers."""
        return sum(self.pairs)


def make(network: Layers, parts: int, method: str = "greedy", seed: int = 0) -> Partition:
    """Partition a network; the result depends on the arguments only.

    Parameters
    ----------
    network
        Layers that fit each other; read once, one layer at a time.
    parts
        Number of ranks.
    method
        Name in METHODS.
    seed
        Seed of the method.

    Returns
    -------
    Partition
        Owners at every boundary.

    Raises
    ------
    ValueError
        The method does not exist, there are more parts than inputs, or a layer does not fit the
        one before; for `hypergraph` also if the partitioner is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"no partition method {method!r}; known methods: {', '.join(METHODS)}")
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
    """Yield the layers; raise ValueError for one that cannot be partitioned."""
    outputs = None  # of the layer before
    for number, matrix in enumerate(network, 1):
        if outputs is None and parts > matrix.n_cols:
            raise ValueError(
                f"{matrix.n_cols} neurons cannot be divided among {parts} ranks; "
                f"start at most {matrix.n_cols}"
            )
        if outputs not in (None, matrix.n_cols):
            raise ValueError(
                f"layer {number} takes {matrix.n_cols} inputs, but layer {number - 1} has {outputs}"
                " outputs"
            )
        if not matrix.n_rows or not matrix.n_cols:
            raise ValueError(f"layer {number} has no {'inputs' if matrix.n_rows else 'outputs'}")
        outputs = matrix.n_rows
        yield matrix
    if outputs is None:
        raise ValueError("a network needs at least 1 layer")


Method = Callable[[Iterator[SparseRows], int, int, int], Iterator[Owners]]


def _block(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Give consecutive neurons to each part; the sizes of parts differ by at most one row."""
    owners = np.zeros(0, np.uint16)
    for number, matrix in enumerate(network):
        if not number:
            owners = _blocks(matrix.n_cols, parts)
            yield owners
        # Boundaries of one size share an array.
        owners = owners if len(owners) == matrix.n_rows else _blocks(matrix.n_rows, parts)
        yield owners


def _blocks(neurons: int, parts: int) -> Owners:
    """Return the owners of one boundary in blocks."""
    bounds = np.arange(parts + 1) * neurons // parts
    return np.repeat(np.arange(parts), np.diff(bounds)).astype(np.uint16)


def _random(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Assign neurons at random at each boundary; sizes are those of block."""
    rng = np.random.default_rng(seed)
    for block in _block(network, layers, parts, seed):
        yield rng.permutation(block)


def _greedy(network: Iterator[SparseRows], layers: int, parts: int, seed: int) -> Iterator[Owners]:
    """Put rows with common inputs into one part, by `partitioners.greedy`."""
    return partitioners.layers(network, parts, seed, partitioners.greedy)


def _hypergraph(
    network: Iterator[SparseRows], layers: int, parts: int, seed: int
) -> Iterator[Owners]:
    """Put rows with common inputs into one part, by Mt-KaHyPar."""
    return partitioners.layers(network, parts, seed, partitioners.hypergraph)


METHODS: dict[str, Method] = {
    "block": _block,
    "random": _random,
    "greedy": _greedy,
    "hypergraph": _hypergraph,
}


# --- what a rank holds and sends ------------------------------------------------------------------


def build(network: Layers, partition: Partition, rank: int) -> list[Part]:
    """Return one rank's part of every layer.

    Parameters
    ----------
    network, partition
        As in `stream`.
    rank
        The rank.

    Raises
    ------
    ValueError
        As in `stream`.
    """
    return [part for (part,) in stream(network, partition, [rank])]


def stream(network: Layers, partition: Partition, ranks: Sequence[int]) -> Iterator[list[Part]]:
    """Yield the parts of some ranks, layer after layer.

    The network is read once, one layer at a time. A row with the inputs and weights of an earlier
    row of the same rank is a duplicate: both have the same activations, so only the first is
    computed and sent. `_Boundary` numbers these distinct rows.

    Parameters
    ----------
    network
        Layers, as many as `partition` is for, and their endings if it has some.
    partition
        Owners of the neurons.
    ranks
        The ranks.

    Yields
    ------
    list of Part
        Of one layer the part of each of these ranks, in that order.

    Raises
    ------
    ValueError
        The network has another number of layers or neurons than the partition.
    """
    partition.check(network)
    before = _Boundary.of_all(partition.owners[0], partition.parts)
    endings = endings_of(network)
    for layer, matrix in enumerate(network):
        partition.check_layer(layer, matrix)
        ending = endings[layer] if endings is not None else None
        owners = partition.owners[layer + 1]
        needs = _needs(matrix, before.owners, owners, before.rows, partition.parts)
        needs[before.senders, np.arange(before.total)] = False  # no rank sends to itself
        # Rows are compared by distinct inputs, so that duplicates of duplicates are found as well.
        inputs = before.rows[matrix.indices]
        weight_bits = matrix.all_values().view(np.int32).astype(np.int64)
        originals = duplicate_rows(
            matrix.indptr, inputs, weight_bits, kind=_kinds(owners, ending, partition.parts)
        )
        after = _Boundary.of_distinct(owners, originals, partition.parts)
        exchange = _exchange(needs, before.senders)
        step = _Step(matrix, inputs, originals, needs, exchange, before, after, ending)
        yield [step.part(rank) for rank in ranks]
        before = after


@dataclass(frozen=True)
class _Boundary:
    """The distinct rows of a boundary, numbered owner by owner, ascending within an owner.

    `owners` has the rank of each neuron, `positions` its row among its owner's distinct rows,
    `counts` the number of distinct rows of each owner, and `starts` the offsets of the owners.
    """

    owners: Owners
    positions: Indices
    counts: Indices
    starts: Indices

    @classmethod
    def of_all(cls, owners: Owners, parts: int) -> _Boundary:
        """Return the boundary of which every row is distinct."""
        positions, counts = _positions(owners, parts)
        return cls(owners, positions, counts, starts(counts))

    @classmethod
    def of_distinct(cls, owners: Owners, originals: Indices, parts: int) -> _Boundary:
        """Return the boundary in which row i equals row `originals[i]` of the same owner."""
        first = np.flatnonzero(originals == np.arange(len(originals)))
        positions = np.empty(len(originals), np.int64)
        positions[first], counts = _positions(owners[first], parts)
        return cls(owners, positions[originals], counts, starts(counts))

    @property
    def total(self) -> int:
        """Number of distinct rows of all owners."""
        return int(self.starts[-1])

    @cached_property
    def rows(self) -> Indices:
        """(neurons,): number of each neuron's distinct row among those of all owners."""
        return self.starts[self.owners] + self.positions

    @cached_property
    def senders(self) -> Indices:
        """(total,): owner of each distinct row."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of_rank(self, rank: int) -> slice:
        """Numbers of the rank's distinct rows."""
        return slice(int(self.starts[rank]), int(self.starts[rank + 1]))


@dataclass(frozen=True)
class _Step:
    """A layer between two boundaries, from which the part of any rank follows.

    `inputs` has the distinct row that each entry reads, `originals` the first row that equals each
    row, and `needs`, (parts, before.total), whether a rank needs a row of another rank.
    """

    matrix: SparseRows
    inputs: Indices
    originals: Indices
    needs: NDArray[np.bool_]
    exchange: Exchange
    before: _Boundary
    after: _Boundary
    ending: Ending | None

    @cached_property
    def sent(self) -> Indices:
        """Distinct rows that some other rank needs, ascending."""
        return np.flatnonzero(self.needs.any(axis=0))

    def part(self, rank: int) -> Part:
        """Return what a rank holds and sends."""
        before, after = self.before, self.after
        wanted = np.flatnonzero(self.needs[rank])
        # The panel has the own rows first, then the received ones in the order of their senders.
        own = int(before.counts[rank])
        column = np.zeros(before.total, np.int64)
        column[before.of_rank(rank)] = np.arange(own)
        column[wanted] = own + np.arange(len(wanted))
        rows = self._rows(rank)
        weights = self._weights(rows, column, own + len(wanted))
        senders = before.senders[wanted]
        shared = self.exchange == Exchange.ALLGATHER
        send_rows, send_offsets = self._sent_to_all(rank) if shared else self._sent_to_each(rank)
        if shared:
            recv_index, recv_counts = self._received_of_all(wanted, senders)
        else:
            recv_index = np.zeros(0, np.int64)
            recv_counts = np.bincount(senders, minlength=len(before.counts))
        constant = weights.values is None
        return Part(
            indptr=weights.indptr,
            indices=weights.indices,
            values=weights.all_values()[:1].copy() if constant else weights.all_values(),
            columns=own + len(wanted),
            row_of_neuron=after.positions[after.owners == rank].astype(np.uint32),
            exchange=self.exchange,
            send_rows=send_rows.astype(np.uint32),
            send_offsets=send_offsets.astype(np.int64),
            recv_index=recv_index.astype(np.uint32),
            recv_offsets=np.searchsorted(senders, np.arange(len(before.counts) + 1)).astype(
                np.int64
            ),
            recv_counts=recv_counts.astype(np.int64),
            ending=self.ending and self.ending.of_rows(rows),
        )

    def _rows(self, rank: int) -> Indices:
        """Return the rank's distinct rows, ascending."""
        distinct = self.originals == np.arange(len(self.originals))
        return np.flatnonzero((self.after.owners == rank) & distinct)

    def _weights(self, rows: Indices, column: Indices, columns: int) -> SparseRows:
        """Return some rows over a rank's panel.

        Entries keep their order, so sums keep their bits.
        """
        matrix = self.matrix
        lengths = np.diff(matrix.indptr)[rows]
        entries = spread(matrix.indptr[rows], lengths)
        values = matrix.constant if matrix.values is None else matrix.values[entries]
        assert values is not None
        return SparseRows(starts(lengths), column[self.inputs[entries]], values, columns)

    def _sent_to_all(self, rank: int) -> tuple[Indices, Indices]:
        """Return the own rows that some rank needs and their offsets: one message for all peers."""
        sent = np.flatnonzero(self.needs[:, self.before.of_rank(rank)].any(axis=0))
        offsets = np.full(len(self.needs) + 1, len(sent))
        offsets[0] = 0
        return sent, offsets

    def _sent_to_each(self, rank: int) -> tuple[Indices, Indices]:
        """Return the own rows that each peer needs and their offsets: a message for each peer."""
        lists = [np.flatnonzero(row) for row in self.needs[:, self.before.of_rank(rank)]]
        return np.concatenate(lists), starts(np.array([len(rows) for rows in lists]))

    def _received_of_all(self, wanted: Indices, senders: Indices) -> tuple[Indices, Indices]:
        """Return the position of each wanted row in its message, and the rows of each message."""
        sent_starts = np.searchsorted(self.sent, self.before.starts)
        index = np.searchsorted(self.sent, wanted) - sent_starts[senders]
        return index, np.diff(sent_starts)


def _kinds(owners: Owners, ending: Ending | None, parts: int) -> Indices:
    """Return numbers of rows, which may be duplicates only if their numbers are equal.

    They are of one owner, and have the same bias.
    """
    kinds = owners.astype(np.int64)
    if ending is not None and len(ending.bias) > 1:
        kinds = kinds + parts * ending.bias.view(np.int32).astype(np.int64)
    return kinds


def _pairs(needs: NDArray[np.bool_], sender: NDArray[Any]) -> int:
    """Return the number of (reader, sender) pairs; `sender` has the sender of each row."""
    readers, rows = np.nonzero(needs)
    return len(np.unique(readers * len(needs) + sender[rows]))


def _exchange(needs: NDArray[np.bool_], senders: Indices) -> Exchange:
    """Choose the exchange of a layer in which ranks need these rows of these senders.

    Few pairs: a message for each. Otherwise the price decides between one message that all peers
    read in full, and one object of which each reader gets its range.
    """
    parts, pairs = len(needs), _pairs(needs, senders)
    if not pairs:
        return Exchange.NONE
    if pairs * (GETS_PER_PUT + 1) <= parts * GETS_PER_PUT + parts * (parts - 1):
        return Exchange.PAIRWISE
    rows, distinct = int(needs.sum()), int(needs.any(axis=0).sum())
    shared = rows >= SHARE_ABOVE * (parts - 1) * distinct
    return Exchange.ALLGATHER if shared else Exchange.ALLTOALL


def _positions(owners: Owners, parts: int) -> tuple[Indices, Indices]:
    """Return the position of each neuron among its owner's, and the neurons of each owner."""
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=parts)
    position = np.empty(len(owners), np.int64)
    position[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position, counts


def _needs(
    matrix: SparseRows, owners: Owners, out: Owners, distinct: Indices, parts: int
) -> NDArray[np.bool_]:
    """Return (parts, distinct rows) flags: whether a row of the part reads that input."""
    needs = np.zeros((parts, int(distinct.max(initial=-1)) + 1), np.bool_)
    needs[np.repeat(out, np.diff(matrix.indptr)), distinct[matrix.indices]] = True
    return needs
