"""How owners of neurons are chosen, from a layer's matrix and the owners of its inputs: the greedy
way and the hypergraph's.

Both see a layer as HGP-DNN's column-net model: its output neurons are vertices, each input neuron
is a net whose pins are the outputs that read it and its own owner. A net that touches k parts is
k-1 activation rows sent. Layers are taken in order, so that a layer's owners are fixed when the
next one's are chosen: consecutive layers are tied by the activation they share.  Outputs with the
same inputs are one vertex. Source: Demirci and Ferhatosmanoglu, "Partitioning Sparse Deep Neural
Networks for Scalable Training and Inference", ICS 2021.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import SparseRows

Owners = NDArray[np.uint16]
Indices = NDArray[np.int64]

IMBALANCE = 0.05  # work of a part above the average, in which whole vertices are kept together
ROWS_A_MESSAGE = 8  # a message more is worth it if it saves that many rows
_STEPS = 512  # most vertices, or groups of vertices, that a part is grown by


@dataclass(frozen=True)
class Model:
    """The hypergraph of a layer.

    members: rows of each vertex, CSR (member_of, members); nets: inputs of each vertex, CSR
    (net_of, nets); pins: vertices of each input, CSR (pin_of, pins); weight: entries of each
    vertex's rows, at least one a row; owners: of the inputs, or None if they are free.
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
        """The model of `matrix`."""
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
        """How many."""
        return len(self.weight)

    def split(self, target: float) -> Model:
        """The model with heavy vertices in pieces, if there are some that would keep parts of
        weight `target` from balance.
        """
        copies = np.diff(self.member_of)
        if self.weight.max() <= target / 8:
            return self
        size = np.maximum(
            1, np.minimum(copies, (target * IMBALANCE * copies / self.weight).astype(np.int64))
        )
        pieces = -(-copies // size)
        of = np.repeat(np.arange(len(copies)), pieces)  # the vertex of each piece
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
    """Owners at every boundary, each from the one before by `choose`; those of the inputs follow
    from the first layer's.
    """
    owners: Owners | None = None
    for number, matrix in enumerate(network):
        chosen = choose(Model.of(matrix, owners), parts, seed + number)
        if owners is None:
            yield _readers(matrix, chosen, parts)
        yield chosen
        owners = chosen


def greedy(model: Model, parts: int, seed: int) -> Owners:
    """Part after part is grown by the vertex that needs the fewest rows the part has not yet, from
    one whose inputs earlier parts read; a vertex is split only if it does not fit."""
    owners = np.empty(len(model.members), np.uint16)
    degree = np.diff(model.net_of)
    left = np.diff(model.member_of)  # rows of each vertex that are not dealt out
    row_weight = model.weight / left
    touched = np.zeros(model.inputs, np.bool_)  # by earlier parts
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
                elif not last and load and over > target - load:  # nearer to the target without it
                    target = load
                    break
                end = model.member_of[vertex + 1]
                owners[model.members[end - left[vertex] : end - left[vertex] + rows]] = part
                left[vertex] -= rows
                load += rows * weight
                mine = model.nets[model.net_of[vertex] : model.net_of[vertex + 1]]
                new = mine[~have[mine]]
                have[new] = True
                lengths = model.pin_of[new + 1] - model.pin_of[new]
                np.subtract.at(missing, model.pins[spread(model.pin_of[new], lengths)], 1)
        touched |= have if model.owners is None else have & (model.owners != part)
    return owners


def hypergraph(model: Model, parts: int, seed: int) -> Owners:
    """By Mt-KaHyPar, deterministic, for the connectivity metric, which knows rows but not messages:
    so the greedy owners, or those of the inputs, where these cost less."""
    try:
        import mtkahypar
    except ImportError:
        raise ValueError(
            "method hypergraph needs the partitioner Mt-KaHyPar: pip install "
            "'serverless-mpi[hypergraph]'; or use greedy"
        ) from None
    if parts == 1:
        return np.zeros(len(model.members), np.uint16)
    library = _library()
    mtkahypar.set_seed(seed)
    context = library.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(parts, IMBALANCE, mtkahypar.Objective.KM1)
    context.logging = False
    whole, model = model, model.split(int(model.weight.sum()) / parts)
    count = model.vertices
    nets = [model.pins[begin:end].tolist() for begin, end in zip(model.pin_of, model.pin_of[1:])]
    weights = model.weight.tolist()
    if (
        model.owners is not None
    ):  # a vertex of hardly any weight stands for what a part owns already
        for net, owner in zip(nets, model.owners.tolist()):
            net.append(count + owner)
        weights += [1] * parts  # the library takes no 0
    merged: dict[tuple[int, ...], int] = {}
    for net in nets:
        if len(net) > 1:
            merged[tuple(net)] = merged.get(tuple(net), 0) + 1
    graph = library.create_hypergraph(
        context,
        len(weights),
        len(merged),
        [list(net) for net in merged],
        weights,
        list(merged.values()),
    )
    if model.owners is not None:
        graph.add_fixed_vertices([-1] * count + list(range(parts)), parts)
    block = np.array(graph.partition(context).get_partition()[:count], np.uint16)
    owners = np.empty(len(model.members), np.uint16)
    owners[model.members] = np.repeat(block, np.diff(model.member_of))
    others = [greedy(whole, parts, seed)]
    if model.owners is not None and model.inputs == len(owners):
        others.append(model.owners)
    return min(owners, *others, key=lambda some: _cost(whole, some, parts))


def _cost(model: Model, chosen: Owners, parts: int) -> int:
    """Rows sent if rows have these owners, and ROWS_A_MESSAGE for each message."""
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
    return int(np.maximum(touches.sum(axis=1) - 1, 0).sum()) + ROWS_A_MESSAGE * int(pairs.sum())


@functools.cache
def _library() -> Any:
    import mtkahypar

    return mtkahypar.initialize(
        1, False
    )  # a layer is small, and threads that wait for each other cost more than they bring


def _readers(matrix: SparseRows, chosen: Owners, parts: int) -> Owners:
    """Each input to the part that reads it and has the fewest so far; to any if none does, or all
    are full.
    """
    reads = np.zeros((matrix.n_cols, parts), np.bool_)
    reads[matrix.indices, np.repeat(chosen, np.diff(matrix.indptr))] = True
    load = np.zeros(parts, np.int64)
    most = -(-matrix.n_cols // parts)
    owners = np.empty(matrix.n_cols, np.uint16)
    for neuron, its in enumerate(reads):
        wanted = np.where(its & (load < most), load, load + matrix.n_cols + 1)
        part = int(np.where(load < most, wanted, 4 * matrix.n_cols).argmin())
        owners[neuron] = part
        load[part] += 1
    return owners


# --- arrays of lists ------------------------------------------------------------------------------


def starts(lengths: Indices) -> Indices:
    """Where each of consecutive lists begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


def spread(begin: Indices, lengths: Indices) -> Indices:
    """begin[i], begin[i] + 1, ... of length lengths[i], one after the other."""
    return np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def _sums(flags: NDArray[np.bool_], begin: Indices) -> Indices:
    total: Indices = np.concatenate([[0], np.cumsum(flags)])
    return total[begin[1:]] - total[begin[:-1]]


def duplicate_rows(
    indptr: Indices, *entries: Indices, kind: NDArray[np.generic] | None = None
) -> Indices:
    """Of each row of a CSR structure the first row of its kind with the same entries in the same
    order (perhaps itself).

    entries: one or more arrays, (nnz,) of integers, that must all agree; kind: (rows,) of integers.
    """
    lengths = np.diff(indptr)
    kinds = np.zeros(len(lengths), np.int64) if kind is None else kind
    row = np.repeat(np.arange(len(lengths)), lengths)
    slot = np.arange(len(row)) - np.repeat(indptr[:-1], lengths)
    mixed = _mix(slot)
    for one in entries:
        mixed = _mix(mixed ^ _mix(one))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
    total = sums[indptr[1:]] - sums[indptr[:-1]] + _mix(lengths) + _mix(_mix(kinds))
    _, first, which = np.unique(total, return_index=True, return_inverse=True)
    original = first[which]
    lost = (lengths != lengths[original]) | (
        kinds != kinds[original]
    )  # rows of equal sums may differ
    other = np.where(lost[row], 0, indptr[original][row] + slot)
    for one in entries:
        lost |= np.bincount(row[one != one[other]], minlength=len(lengths)) > 0
    return np.where(lost, np.arange(len(lengths)), original)


def _mix(x: NDArray[np.generic]) -> NDArray[np.uint64]:
    """64-bit numbers with every bit spread (the finaliser of SplitMix64)."""
    y: NDArray[np.uint64] = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    y = y ^ (y >> np.uint64(31))
    return y
