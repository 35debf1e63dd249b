"""Partitioners: choose the owners of a layer's neurons, greedily or by a hypergraph partitioner.

Both use the column-net model of HGP-DNN: the output neurons of a layer are vertices, and each input
neuron is a net whose pins are the outputs that read it and its own owner. A net that touches k
parts costs k-1 activation rows. Outputs with the same inputs are one vertex. Layers are partitioned
in order: the owners of a layer's inputs are fixed when those of its outputs are chosen, since
consecutive layers share these activations.

Invariant: the result depends only on the network, the number of parts and the seed, so that every
rank can compute it.

References
----------
Demirci and Ferhatosmanoglu, "Partitioning Sparse Deep Neural Networks for Scalable Training and
Inference", ICS 2021.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import SparseRows

Owners = NDArray[np.uint16]
Indices = NDArray[np.int64]

IMBALANCE = 0.05  # share by which the work of a part may exceed the mean to keep a vertex whole
ROWS_PER_MESSAGE = 8  # a message costs as much as this many rows
_STEPS = 512  # most steps in which a part grows, each by a vertex or a group of vertices


@dataclass(frozen=True)
class Model:
    """The hypergraph of a layer. A list of lists is in CSR: list i is `x[x_of[i]:x_of[i + 1]]`.

    Attributes
    ----------
    member_of, members
        Rows of each vertex.
    net_of, nets
        Inputs of each vertex.
    pin_of, pins
        Vertices of each input.
    weight
        Entries of each vertex's rows, at least one per row.
    owners
        Owner of each input; None if they are not chosen yet.
    inputs
        Number of inputs.
    """

    member_of: Indices
    members: Indices
    net_of: Indices
    nets: Indices
    pin_of: Indices
    pins: Indices
    weight: Indices
    owners: Owners | None
    inputs: int

    @classmethod
    def of(cls, matrix: SparseRows, owners: Owners | None) -> Model:
        """Return the hypergraph of a layer.

        Parameters
        ----------
        matrix
            The layer.
        owners
            Owners of its inputs, or None.
        """
        heads, vertex = np.unique(
            duplicate_rows(matrix.indptr, matrix.indices.astype(np.int64)), return_inverse=True
        )
        members = np.argsort(vertex, kind="stable")
        lengths = np.diff(matrix.indptr)[heads]
        at = spread(matrix.indptr[heads], lengths)
        nets = matrix.indices[at].astype(np.int64)
        pins = np.repeat(np.arange(len(heads)), lengths)[np.argsort(nets, kind="stable")]
        copies = np.bincount(vertex)
        return cls(
            starts(copies),
            members,
            starts(lengths),
            nets,
            starts(np.bincount(nets, minlength=matrix.n_cols)),
            pins,
            np.maximum(lengths, 1) * copies,
            owners,
            matrix.n_cols,
        )

    @property
    def vertices(self) -> int:
        """Number of vertices."""
        return len(self.weight)

    def split(self, target: float) -> Model:
        """Divide heavy vertices into pieces, if there are some that would prevent a balance.

        Parameters
        ----------
        target
            Weight of a part.

        Returns
        -------
        Model
            This model if no vertex is heavy.
        """
        copies = np.diff(self.member_of)
        if self.weight.max() <= target / 8:
            return self
        size = np.maximum(
            1, np.minimum(copies, (target * IMBALANCE * copies / self.weight).astype(np.int64))
        )
        pieces = -(-copies // size)
        of = np.repeat(np.arange(len(copies)), pieces)  # vertex of each piece
        number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        each = copies[of] * (number + 1) // pieces[of] - copies[of] * number // pieces[of]
        lengths = np.diff(self.net_of)[of]
        nets = self.nets[spread(self.net_of[of], lengths)]
        pins = np.repeat(np.arange(len(of)), lengths)[np.argsort(nets, kind="stable")]
        return Model(
            starts(each),
            self.members,
            starts(lengths),
            nets,
            starts(np.bincount(nets, minlength=self.inputs)),
            pins,
            self.weight[of] // copies[of] * each,
            self.owners,
            self.inputs,
        )


Chooser = Callable[[Model, int, int], Owners]


def layers(
    network: Iterator[SparseRows], parts: int, seed: int, choose: Chooser
) -> Iterator[Owners]:
    """Choose the owners at every boundary, layer after layer.

    Parameters
    ----------
    network
        The layers.
    parts
        Number of parts.
    seed
        Seed of the first layer; each later one has the next number.
    choose
        Chooses the owners of a layer's outputs.

    Yields
    ------
    ndarray
        (neurons,) uint16, first of the inputs, which follow from those of the first layer.
    """
    owners: Owners | None = None
    for number, matrix in enumerate(network):
        chosen = choose(Model.of(matrix, owners), parts, seed + number)
        if owners is None:
            yield _readers(matrix, chosen, parts)
        yield chosen
        owners = chosen


def greedy(model: Model, parts: int, seed: int) -> Owners:
    """Grow part after part, each time by the vertex that needs the fewest further input rows.

    A part begins with a vertex whose inputs earlier parts read. A vertex is divided only if it does
    not fit the part.

    Parameters
    ----------
    model
        The layer.
    parts
        Number of parts.
    seed
        Not used: the result is determined by the layer.

    Returns
    -------
    ndarray
        (rows,) uint16: owner of each row.
    """
    owners = np.empty(len(model.members), np.uint16)
    degree = np.diff(model.net_of)
    left = np.diff(model.member_of)  # rows of each vertex that have no owner yet
    row_weight = model.weight / left
    touched = np.zeros(model.inputs, np.bool_)  # inputs that earlier parts read
    scale = int(degree.max(initial=0)) + 1
    group = max(1, model.vertices // (parts * _STEPS))
    for part in range(parts):
        have = np.zeros(model.inputs, np.bool_) if model.owners is None else model.owners == part
        missing = degree - _sums(have[model.nets], model.net_of)
        cut = _sums(touched[model.nets], model.net_of)
        last = part == parts - 1
        target = float((left * row_weight).sum()) / (parts - part)
        load = 0.0
        while left.any() and (last or load < target):
            key = cut * scale - missing if load == 0 else cut - missing * scale
            key[left == 0] = -scale * scale - scale
            best = (
                np.argpartition(-key, group - 1)[:group] if group > 1 else np.array([key.argmax()])
            )
            for vertex in best[left[best] > 0]:
                weight, over = row_weight[vertex], load + left[vertex] * row_weight[vertex] - target
                rows = int(left[vertex])
                if not last and over > target * IMBALANCE and load < target * (1 - IMBALANCE):
                    rows = max(1, int((target - load) / weight))
                elif not last and load and over > target - load:  # closer to the target without it
                    target = load
                    break
                end = model.member_of[vertex + 1]
                owners[model.members[end - left[vertex] : end - left[vertex] + rows]] = part
                left[vertex] -= rows
                load += rows * weight
                inputs = model.nets[model.net_of[vertex] : model.net_of[vertex + 1]]
                new = inputs[~have[inputs]]
                have[new] = True
                lengths = model.pin_of[new + 1] - model.pin_of[new]
                np.subtract.at(missing, model.pins[spread(model.pin_of[new], lengths)], 1)
        touched |= have if model.owners is None else have & (model.owners != part)
    return owners


def hypergraph(model: Model, parts: int, seed: int) -> Owners:
    """Choose owners by Mt-KaHyPar in its deterministic mode.

    Its connectivity metric counts rows and not messages. So its owners are compared with the greedy
    ones and with those of the inputs, and the cheapest are returned.

    Parameters
    ----------
    model
        The layer.
    parts
        Number of parts.
    seed
        Seed of the partitioner.

    Returns
    -------
    ndarray
        (rows,) uint16: owner of each row.

    Raises
    ------
    ValueError
        The partitioner is not installed.
    """
    mtkahypar, library = _library()
    if parts == 1:
        return np.zeros(len(model.members), np.uint16)
    mtkahypar.set_seed(seed)
    context = library.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(parts, IMBALANCE, mtkahypar.Objective.KM1)
    context.logging = False
    whole, model = model, model.split(int(model.weight.sum()) / parts)
    count = model.vertices
    nets, net_weights = _nets(model)
    # Vertices of little weight stand for what the parts own; the library does not accept 0.
    weights = model.weight.tolist() + ([] if model.owners is None else [1] * parts)
    graph = library.create_hypergraph(context, len(weights), len(nets), nets, weights, net_weights)
    if model.owners is not None:
        graph.add_fixed_vertices([-1] * count + list(range(parts)), parts)
    block = np.array(graph.partition(context).get_partition()[:count], np.uint16)
    owners = np.empty(len(model.members), np.uint16)
    owners[model.members] = np.repeat(block, np.diff(model.member_of))
    others = [greedy(whole, parts, seed)]
    if model.owners is not None and model.inputs == len(owners):
        others.append(model.owners)
    return min(owners, *others, key=lambda chosen: _cost(whole, chosen, parts))


def _nets(model: Model) -> tuple[list[list[int]], list[int]]:
    """Return the nets of a layer and their weights: equal nets are merged, single pins omitted.

    If the inputs have owners, vertex `model.vertices + p` is a pin of the inputs that part p owns.
    """
    nets = [model.pins[begin:end].tolist() for begin, end in zip(model.pin_of, model.pin_of[1:])]
    if model.owners is not None:
        for net, owner in zip(nets, model.owners.tolist()):
            net.append(model.vertices + owner)
    merged: dict[tuple[int, ...], int] = {}
    for net in nets:
        if len(net) > 1:
            merged[tuple(net)] = merged.get(tuple(net), 0) + 1
    return [list(net) for net in merged], list(merged.values())


def _cost(model: Model, chosen: Owners, parts: int) -> int:
    """Return the rows that are sent if rows have these owners, plus ROWS_PER_MESSAGE per message.

    `chosen` has the owner of each row.
    """
    vertex = np.repeat(np.arange(model.vertices), np.diff(model.member_of))
    lengths = np.diff(model.net_of)[vertex]
    nets = model.nets[spread(model.net_of[vertex], lengths)]
    part = np.repeat(chosen[model.members], lengths)
    touches = np.zeros((model.inputs, parts), np.bool_)
    touches[nets, part] = True
    pairs = np.zeros((parts, parts), np.bool_)
    if model.owners is not None:
        touches[np.arange(model.inputs), model.owners] = True
        pairs[model.owners[nets], part] = True
        np.fill_diagonal(pairs, False)
    return int(np.maximum(touches.sum(axis=1) - 1, 0).sum()) + ROWS_PER_MESSAGE * int(pairs.sum())


def _library() -> tuple[Any, Any]:
    """Return the module mtkahypar and its library; raise ValueError if it is not installed."""
    try:
        import mtkahypar  # an extra
    except ImportError:
        raise ValueError(
            "method hypergraph needs the partitioner Mt-KaHyPar: pip install "
            "'serverless-mpi[hypergraph]'; or use greedy"
        ) from None
    return mtkahypar, _initialized(mtkahypar)


@functools.cache
def _initialized(mtkahypar: ModuleType) -> Any:
    """Return the library of mtkahypar, which can be initialized once per process."""
    # One thread: a layer is small, and more threads cost more time than they save.
    return mtkahypar.initialize(1, False)


def _readers(matrix: SparseRows, chosen: Owners, parts: int) -> Owners:
    """Choose the owners of the first layer's inputs.

    Each input goes to the part with the fewest inputs among those that read it and are not full;
    to any that is not full, if there is none.
    """
    reads = np.zeros((matrix.n_cols, parts), np.bool_)
    reads[matrix.indices, np.repeat(chosen, np.diff(matrix.indptr))] = True
    load = np.zeros(parts, np.int64)
    most = -(-matrix.n_cols // parts)
    owners = np.empty(matrix.n_cols, np.uint16)
    for neuron, readers in enumerate(reads):
        preference = np.where(readers & (load < most), load, load + matrix.n_cols + 1)
        part = int(np.where(load < most, preference, 4 * matrix.n_cols).argmin())
        owners[neuron] = part
        load[part] += 1
    return owners


# --- arrays of lists ------------------------------------------------------------------------------


def starts(lengths: Indices) -> Indices:
    """Return the offsets of consecutive lists.

    Parameters
    ----------
    lengths
        (lists,) lengths.

    Returns
    -------
    ndarray
        (lists + 1,): where each list begins, and where the last ends.
    """
    return np.concatenate([[0], np.cumsum(lengths)])


def spread(begin: Indices, lengths: Indices) -> Indices:
    """Concatenate ranges of consecutive numbers.

    Parameters
    ----------
    begin, lengths
        (ranges,) first number and length of each range.

    Returns
    -------
    ndarray
        begin[0], begin[0] + 1, ..., begin[1], begin[1] + 1, ...
    """
    return np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _sums(flags: NDArray[np.bool_], begin: Indices) -> Indices:
    """Return the number of set flags in each list; `begin` has the offsets of the lists."""
    total: Indices = np.concatenate([[0], np.cumsum(flags)])
    return total[begin[1:]] - total[begin[:-1]]


def duplicate_rows(
    indptr: Indices, *entries: Indices, kind: NDArray[np.generic] | None = None
) -> Indices:
    """Find the rows of a CSR structure that have equal entries in the same order.

    Parameters
    ----------
    indptr
        (rows + 1,) offsets of the rows.
    *entries
        Arrays of integers, (nnz,), all of which must be equal.
    kind
        (rows,) integers that must be equal as well; None for no such condition.

    Returns
    -------
    ndarray
        (rows,): the first row that is equal to each row, perhaps the row itself.

    Notes
    -----
    Rows are compared by hashes, then verified; a row whose hash collides with that of a different
    row is its own original, so a duplicate may be missed, but none is invented.
    """
    lengths = np.diff(indptr)
    kinds = np.zeros(len(lengths), np.int64) if kind is None else kind
    row = np.repeat(np.arange(len(lengths)), lengths)
    slot = np.arange(len(row)) - np.repeat(indptr[:-1], lengths)
    mixed = _mix(slot)
    for array in entries:
        mixed = _mix(mixed ^ _mix(array))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
    total = sums[indptr[1:]] - sums[indptr[:-1]] + _mix(lengths) + _mix(_mix(kinds))
    _, first, which = np.unique(total, return_index=True, return_inverse=True)
    original = first[which]
    # Rows with equal hashes may differ.
    differs = (lengths != lengths[original]) | (kinds != kinds[original])
    other = np.where(differs[row], 0, indptr[original][row] + slot)
    for array in entries:
        differs |= np.bincount(row[array != array[other]], minlength=len(lengths)) > 0
    return np.where(differs, np.arange(len(lengths)), original)


def _mix(x: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each number (the finaliser of SplitMix64)."""
    y: NDArray[np.uint64] = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    y = y ^ (y >> np.uint64(31))
    return y
