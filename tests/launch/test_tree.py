"""The start tree: one parent per rank, minimal depth, and the best branching."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.launch import tree

SIZES = st.integers(1, 5000)
WIDTHS = st.integers(1, 5000)


@given(SIZES, WIDTHS)
def test_every_rank_but_0_is_started_once_by_its_parent(size: int, branching: int) -> None:
    started = [
        (child, rank) for rank in range(size) for child in tree.children(rank, size, branching)
    ]
    assert [child for child, _ in started] == list(range(1, size))  # in order, each once
    assert all(tree.parent(child, branching) == rank for child, rank in started)
    assert all(len(tree.children(rank, size, branching)) <= branching for rank in range(size))
    assert tree.parent(0, branching) is None


@given(SIZES, WIDTHS)
def test_depth_is_the_longest_way_and_no_tree_is_shallower(size: int, branching: int) -> None:
    level = {0: 0}
    for rank in range(1, size):
        above = tree.parent(rank, branching)
        assert above is not None
        level[rank] = level[above] + 1
    levels = tree.depth(size, branching)
    assert levels == max(level.values())
    if levels:  # a tree of one level less has no room for them all
        assert sum(branching**below for below in range(levels)) < size


@given(st.integers(1, 400), st.floats(0, 10), st.floats(0, 1))
def test_the_choice_is_the_best_of_all(size: int, start_s: float, call_s: float) -> None:
    chosen = tree.seconds(size, tree.choose(size, start_s, call_s), start_s, call_s)
    assert all(
        chosen <= tree.seconds(size, branching, start_s, call_s) for branching in range(2, size)
    )


def test_the_choice_follows_from_the_costs() -> None:
    assert [tree.choose(size) for size in (1, 2, 3, 8, 16)] == [
        1,
        1,
        2,
        7,
        15,
    ]  # few ranks: rank 0 starts them all
    assert tree.depth(64, tree.choose(64)) == 2 and tree.depth(1000, tree.choose(1000)) == 3
    assert tree.choose(100, start_s=100.0) == 99  # a level is dear: one
    assert tree.choose(100, start_s=0.0, call_s=1.0) < 5  # calls are dear: narrow
