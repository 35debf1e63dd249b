"""Neighbourhood collectives against the naive definition, on any graph and grid."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.api.topologies import Cart, Dist, Graph
from serverless_mpi.collectives import neighbor
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.testing.dry_run import run

SETTINGS = settings(derandomize=True, deadline=None, max_examples=80)
SEEDS = st.integers(0, 2**32)
DIMS = st.lists(st.integers(1, 4), max_size=3)


def exchange(shapes: list[Any], seed: int) -> tuple[list[list[bytes]], list[list[bytes | None]]]:
    """(what each rank gave along each edge, what it got) of an alltoall; the allgather is checked too."""
    chance = random.Random(seed)
    size = len(shapes)
    edges = [shape.edges(rank) for rank, shape in enumerate(shapes)]
    items = [
        [b"%d.%d" % (rank, place) for place in range(len(out))]
        for rank, (out, _) in enumerate(edges)
    ]
    members = [
        neighbor.alltoall_direct(rank, size, out, into, [memoryview(item) for item in items[rank]])
        for rank, (out, into) in enumerate(edges)
    ]
    got = [
        [None if one is None else bytes(one) for one in result]
        for result in run(members, chance.randrange)[0]
    ]
    members = [
        neighbor.allgather_fan(rank, size, out, into, memoryview(b"%d" % rank))
        for rank, (out, into) in enumerate(edges)
    ]
    for (_, into), result in zip(edges, run(members, chance.randrange)[0], strict=True):
        assert [None if one is None else bytes(one) for one in result] == [
            None if edge is None else b"%d" % edge[0] for edge in into
        ]
    return items, got


@SETTINGS
@given(dims=DIMS, rings=st.integers(0, 7), seed=SEEDS)
def test_what_goes_down_comes_in_from_above(dims: list[int], rings: int, seed: int) -> None:
    periods = [bool(rings >> place & 1) for place in range(len(dims))]
    cart = Cart.made(dims, periods, 64)
    items, got = exchange([cart] * cart.size, seed)
    for rank in range(cart.size):
        assert cart.rank(cart.coords(rank)) == rank
        for direction in range(len(dims)):
            below, above = cart.shift(rank, direction, 1)
            # my neighbour below sent upwards (its second block of the dimension) what I get from below
            assert got[rank][2 * direction] == (
                None if below == PROC_NULL else items[below][2 * direction + 1]
            )
            assert got[rank][2 * direction + 1] == (
                None if above == PROC_NULL else items[above][2 * direction]
            )


@SETTINGS
@given(size=st.integers(1, 6), seed=SEEDS)
def test_any_graph_even_with_several_edges_between_two_ranks(size: int, seed: int) -> None:
    chance = random.Random(seed)
    edges = [
        (chance.randrange(size), chance.randrange(size), 1)
        for _ in range(chance.randrange(3 * size))
    ]
    shapes = [Dist.collected(rank, size, edges, False) for rank in range(size)]
    items, got = exchange(shapes, seed)
    for rank, shape in enumerate(shapes):
        seen: Counter[int] = Counter()
        for place, source in enumerate(shape.sources):
            own = [where for where, dest in enumerate(shapes[source].dests) if dest == rank]
            assert got[rank][place] == items[source][own[seen[source]]]
            seen[source] += 1


@SETTINGS
@given(size=st.integers(1, 6), seed=SEEDS)
def test_a_graph_with_global_edges(size: int, seed: int) -> None:
    chance = random.Random(seed)
    pairs = [(a, b) for a in range(size) for b in range(a + 1) if chance.random() < 0.5]
    near = [
        [b for a, b in pairs if a == rank] + [a for a, b in pairs if b == rank and a != b]
        for rank in range(size)
    ]
    index = [
        sum(len(some) for some in near[:rank]) for rank in range(size + 1)
    ]  # mpi4py takes it with its leading 0
    links = [other for some in near for other in some]
    graph = Graph.made(index, links, size)
    assert [graph.of(rank) for rank in range(size)] == near
    items, got = exchange([graph] * graph.size, seed)
    for rank in range(graph.size):
        assert got[rank] == [items[other][graph.of(other).index(rank)] for other in graph.of(rank)]


@SETTINGS
@given(dims=DIMS, kept=st.integers(0, 7))
def test_sub_grids_are_disjoint_and_whole(dims: list[int], kept: int) -> None:
    cart = Cart.made(dims, False, 64)
    remain = [bool(kept >> place & 1) for place in range(len(dims))]
    covered: set[int] = set()
    for rank in range(cart.size):
        sub, members, dropped = cart.sub(remain, rank)
        assert rank in members and len(members) == sub.size
        kept_coords = [place for place, keep in zip(cart.coords(rank), remain, strict=True) if keep]
        assert sub.coords(members.index(rank)) == kept_coords
        covered |= set(members)
    assert covered == set(range(cart.size))
