"""Two-level collectives: within each node, across the nodes' leaders, and within each node again.

A node is a set of ranks that reach each other at a lower price than others (`-ppn`).  Each
phase is a collective of its own, for which `select` chooses among the one-level algorithms by the
cost parameters of its medium: `CostParameters.near` within a node, the channel's own across.

Invariants

- The leader of the root's node is the root, that of any other node is its lowest rank.  Nodes are
  ordered by their lowest ranks.
- Reductions combine operands in the order of ranks.  They therefore serve only calls in which each
  node is a range of ranks: for any other, even a commutative operation would round differently.
- The phases of a call use different slots (`_SLOTS` apart).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serverless_mpi.collectives.choose import algorithm, select
from serverless_mpi.collectives.cost import PACK_BYTES, Facts, Formula, Tally
from serverless_mpi.collectives.operations import keep_first
from serverless_mpi.collectives.steps import (
    NOTHING,
    Blob,
    Combine,
    Elementwise,
    Steps,
    pack,
    unpack,
    whole,
    within,
)

_SLOTS = 1 << 22  # between the slots of two phases


def two_levels(facts: Facts) -> bool:
    """Condition: there are several nodes, one of which has several ranks.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    return 1 < len(set(facts.nodes)) < len(facts.nodes)


def nodes_in_order(facts: Facts) -> bool:
    """Condition: `two_levels`, and the ranks of each node are a range.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    changes = sum(a != b for a, b in zip(facts.nodes, facts.nodes[1:]))
    return two_levels(facts) and changes == len(set(facts.nodes)) - 1


def _groups(nodes: Sequence[int]) -> list[list[int]]:
    """Return the ranks of each node, ordered by their lowest ranks."""
    groups: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        groups.setdefault(node, []).append(rank)
    return list(groups.values())


@dataclass(frozen=True)
class _Levels:
    """The place of a rank: its node's ranks, all nodes, and their leaders."""

    rank: int
    groups: list[list[int]]
    leaders: list[int]
    group: list[int]
    facts: Facts

    @classmethod
    def of(cls, rank: int, facts: Facts, root: int | None = None) -> _Levels:
        groups = _groups(facts.nodes)
        leaders = [root if root is not None and root in group else group[0] for group in groups]
        return cls(rank, groups, leaders, next(g for g in groups if rank in g), facts)

    @property
    def leader(self) -> int:
        """The leader of this rank's node."""
        return self.leaders[self.groups.index(self.group)]

    @property
    def leads(self) -> bool:
        return self.rank == self.leader

    def near(self, phase: int, operation: str, nbytes: int | None, *arguments: object) -> Steps:
        """Run an operation within the node."""
        facts = _near(self.facts, len(self.group), nbytes)
        return self._run(phase, self.group, operation, facts, arguments)

    def far(self, phase: int, operation: str, nbytes: int | None, *arguments: object) -> Steps:
        """Run an operation among the leaders."""
        facts = _far(self.facts, len(self.leaders), nbytes)
        return self._run(phase, self.leaders, operation, facts, arguments)

    def _run(
        self,
        phase: int,
        members: list[int],
        operation: str,
        facts: Facts,
        arguments: tuple[object, ...],
    ) -> Steps:
        make = select(operation, facts).generator
        steps = make(members.index(self.rank), len(members), *arguments)
        return within(members, steps, phase * _SLOTS)


def _near(facts: Facts, size: int, nbytes: int | None) -> Facts:
    return Facts(size, nbytes, facts.figures.near or facts.figures)


def _far(facts: Facts, size: int, nbytes: int | None) -> Facts:
    return Facts(size, nbytes, facts.figures)


def _packed(facts: Facts, blobs: int) -> int | None:
    """Return the bytes of so many packed blobs, as far as all ranks know them."""
    return None if facts.nbytes is None else blobs * (facts.nbytes + PACK_BYTES)


def _largest(facts: Facts) -> int:
    return max(map(len, _groups(facts.nodes)))


@dataclass(frozen=True)
class _Phase:
    """A phase of a call: where it runs, its operation, and how many blobs each of its blobs packs.

    packs: "" is one blob as it is, "none" no bytes; "node", "all" and "square" are packs of the
    blobs of the largest node, of all ranks, and of each pair of ranks of two nodes.
    """

    is_near: bool
    operation: str
    packs: str = ""

    def nbytes(self, facts: Facts) -> int | None:
        """Return the bytes of one blob of the phase; None where ranks may differ."""
        largest = _largest(facts)
        if self.packs == "none":
            return 0
        if not self.packs:
            return facts.nbytes
        return _packed(
            facts, {"node": largest, "all": facts.size, "square": largest * largest}[self.packs]
        )


def _cost(*phases: _Phase) -> Formula:
    """Return the formula of phases that follow each other."""

    def formula(t: Tally) -> None:
        for phase in phases:
            t.together(list(_parts(t.facts, phase)))

    return formula


def _parts(facts: Facts, phase: _Phase) -> Iterator[tuple[Formula, Facts]]:
    """Yield the formula and the facts of each group that runs a phase at the same time."""
    groups, nbytes = _groups(facts.nodes), phase.nbytes(facts)
    sizes = [len(group) for group in groups] if phase.is_near else [len(groups)]
    for size in sizes:
        if size > 1:  # a lone rank sends nothing
            part = (_near if phase.is_near else _far)(facts, size, nbytes)
            inner = select(phase.operation, part).formula
            assert inner is not None
            yield inner, part


_BARRIER = (_Phase(True, "reduce", "none"), _Phase(False, "barrier"), _Phase(True, "bcast", "none"))
_BCAST = (_Phase(False, "bcast"), _Phase(True, "bcast"))
_REDUCE = (_Phase(True, "reduce"), _Phase(False, "reduce"))
_ALLREDUCE = (_Phase(True, "reduce"), _Phase(False, "allreduce"), _Phase(True, "bcast"))


@algorithm("barrier", cost=_cost(*_BARRIER), condition=two_levels, placed=True, name="two_level")
def barrier(rank: int, size: int, *, facts: Facts) -> Steps:
    """Report to the node's leader, wait for the other leaders, and release the node.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    facts
        What all ranks of the call share.
    """
    place = _Levels.of(rank, facts)
    first = Elementwise(keep_first, 1)
    yield from place.near(0, "reduce", 0, place.group.index(place.leader), NOTHING, first)
    if place.leads:
        yield from place.far(1, "barrier", facts.nbytes)
    yield from place.near(2, "bcast", 0, place.group.index(place.leader), NOTHING)


@algorithm("bcast", cost=_cost(*_BCAST), condition=two_levels, placed=True, name="two_level")
def bcast(rank: int, size: int, root: int, data: Blob | None, *, facts: Facts) -> Steps:
    """Send the blob to one rank per node, which sends it within the node.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.
    facts
        What all ranks of the call share.

    Returns
    -------
    Blob
        The root's blob.
    """
    place = _Levels.of(rank, facts, root)
    if place.leads:
        data = yield from place.far(0, "bcast", facts.nbytes, place.leaders.index(root), data)
    at = place.group.index(place.leader)
    return (yield from place.near(1, "bcast", facts.nbytes, at, data))


@algorithm("reduce", cost=_cost(*_REDUCE), condition=nodes_in_order, placed=True, name="two_level")
def reduce(rank: int, size: int, root: int, data: Blob, combine: Combine, *, facts: Facts) -> Steps:
    """Fold the operands of each node, then those of the nodes at the root.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.
    facts
        What all ranks of the call share.

    Returns
    -------
    memoryview or None
        On the root all operands, combined in the order of ranks.
    """
    place = _Levels.of(rank, facts, root)
    at = place.group.index(place.leader)
    total = yield from place.near(0, "reduce", facts.nbytes, at, data, combine)
    if not place.leads:
        return None
    at = place.leaders.index(root)
    return (yield from place.far(1, "reduce", facts.nbytes, at, total, combine))


@algorithm(
    "allreduce", cost=_cost(*_ALLREDUCE), condition=nodes_in_order, placed=True, name="two_level"
)
def allreduce(rank: int, size: int, data: Blob, combine: Combine, *, facts: Facts) -> Steps:
    """Fold the operands of each node, then those of the nodes, and send the result to the node.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Operand of this rank. Borrowed until the call ends.
    combine
        Combines the operands of lower and of higher ranks.
    facts
        What all ranks of the call share.

    Returns
    -------
    memoryview
        All operands, combined in the order of ranks; the same bits on every rank.
    """
    place = _Levels.of(rank, facts)
    total = yield from place.near(0, "reduce", facts.nbytes, 0, data, combine)
    if place.leads:
        total = yield from place.far(1, "allreduce", facts.nbytes, total, combine)
    return whole((yield from place.near(2, "bcast", facts.nbytes, 0, total)))


_GATHER = (_Phase(True, "gather"), _Phase(False, "gather", "node"))
_SCATTER = (_Phase(False, "scatter", "node"), _Phase(True, "scatter"))
_ALLGATHER = (
    _Phase(True, "gather"),
    _Phase(False, "allgather", "node"),
    _Phase(True, "bcast", "all"),
)
_ALLTOALL = (
    _Phase(True, "gather", "all"),
    _Phase(False, "alltoall", "square"),
    _Phase(True, "scatter", "all"),
)


def _in_order(groups: list[list[int]], packs: Sequence[memoryview]) -> list[memoryview]:
    """Return the blobs of all ranks in their order, from one pack per node."""
    blobs = {
        rank: blob
        for group, data in zip(groups, packs, strict=True)
        for rank, blob in zip(group, unpack(data, len(group)), strict=True)
    }
    return [blobs[rank] for rank in range(len(blobs))]


@algorithm("gather", cost=_cost(*_GATHER), condition=two_levels, placed=True, name="two_level")
def gather(rank: int, size: int, root: int, data: Blob, *, facts: Facts) -> Steps:
    """Collect the blobs of each node, then one pack per node at the root.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of this rank. Borrowed until the call ends.
    facts
        What all ranks of the call share.

    Returns
    -------
    list of memoryview or None
        On the root the blobs of all ranks, in their order.
    """
    place = _Levels.of(rank, facts, root)
    at, nbytes = place.group.index(place.leader), _packed(facts, _largest(facts))
    blobs = yield from place.near(0, "gather", facts.nbytes, at, data)
    if not place.leads:
        return None
    at = place.leaders.index(root)
    packs = yield from place.far(1, "gather", nbytes, at, pack(blobs))
    return _in_order(place.groups, packs) if rank == root else None


@algorithm("scatter", cost=_cost(*_SCATTER), condition=two_levels, placed=True, name="two_level")
def scatter(
    rank: int, size: int, root: int, blobs: Sequence[Blob] | None, *, facts: Facts
) -> Steps:
    """Send one pack to each node, whose leader sends every rank its blob.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    blobs
        On the root a blob for each rank; None on other ranks. Borrowed until the call ends.
    facts
        What all ranks of the call share.

    Returns
    -------
    Blob
        The blob for this rank.
    """
    place = _Levels.of(rank, facts, root)
    mine: list[memoryview] | None = None
    if place.leads:
        packs = blobs and [pack([blobs[dest] for dest in group]) for group in place.groups]
        nbytes, at = _packed(facts, _largest(facts)), place.leaders.index(root)
        data = yield from place.far(0, "scatter", nbytes, at, packs)
        mine = unpack(whole(data), len(place.group))
    at = place.group.index(place.leader)
    return (yield from place.near(1, "scatter", facts.nbytes, at, mine))


@algorithm(
    "allgather", cost=_cost(*_ALLGATHER), condition=two_levels, placed=True, name="two_level"
)
def allgather(rank: int, size: int, data: Blob, *, facts: Facts) -> Steps:
    """Collect the blobs of each node, exchange packs across nodes, and send all to the node.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    data
        Blob of this rank. Borrowed until the call ends.
    facts
        What all ranks of the call share.

    Returns
    -------
    list of memoryview
        The blobs of all ranks, in their order.
    """
    place, everything = _Levels.of(rank, facts), None
    blobs = yield from place.near(0, "gather", facts.nbytes, 0, data)
    if place.leads:
        nbytes = _packed(facts, _largest(facts))
        packs = yield from place.far(1, "allgather", nbytes, pack(blobs))
        everything = pack(_in_order(place.groups, packs))
    everything = yield from place.near(2, "bcast", _packed(facts, size), 0, everything)
    return unpack(whole(everything), size)


@algorithm("alltoall", cost=_cost(*_ALLTOALL), condition=two_levels, placed=True, name="two_level")
def alltoall(rank: int, size: int, blobs: Sequence[Blob], *, facts: Facts) -> Steps:
    """Collect all blobs of a node, exchange one pack per pair of nodes, and send ranks theirs.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    blobs
        A blob for each rank. Borrowed until the call ends.
    facts
        What all ranks of the call share.

    Returns
    -------
    list of memoryview
        The blob that each rank has sent to this one, in their order.
    """
    place, mine = _Levels.of(rank, facts), None
    length, groups = _packed(facts, size), place.groups
    rows = yield from place.near(0, "gather", length, 0, pack(blobs))
    if place.leads:
        table = [unpack(row, size) for row in rows]
        out = [pack([row[dest] for row in table for dest in group]) for group in groups]
        nbytes = _packed(facts, _largest(facts) ** 2)
        packs = yield from place.far(1, "alltoall", nbytes, out)
        columns: list[list[memoryview]] = [[NOTHING] * size for _ in place.group]
        for group, data in zip(groups, packs, strict=True):
            cells = iter(unpack(whole(data), len(group) * len(place.group)))
            for source in group:
                for column in columns:
                    column[source] = next(cells)
        mine = [pack(column) for column in columns]
    return unpack(whole((yield from place.near(2, "scatter", length, 0, mine))), size)
