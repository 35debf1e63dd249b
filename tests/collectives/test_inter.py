"""Collectives between two groups against the naive definition, for any sizes, roots, blobs and order of delivery."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import ceil, log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.collectives import inter
from serverless_mpi.collectives.simulate import run
from serverless_mpi.collectives.steps import whole

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))
SEEDS = st.integers(0, 2**32)


def blob(chance: random.Random) -> memoryview:
    return memoryview(chance.randbytes(chance.choice((0, 1, 5, 40))))


def concatenate(a: memoryview, b: memoryview) -> memoryview:
    return memoryview(bytes(a) + bytes(b))


def play(
    seed: int, sizes: tuple[int, int], make: Callable[[int, int, inter.Groups], Any]
) -> tuple[list[Any], list[Any]]:
    """The results of both groups; make(group, rank, groups)."""
    chance = random.Random(seed)
    low, high = range(sizes[0]), range(sizes[0], sum(sizes))
    algorithms = [make(0, rank, (low, high)) for rank in range(sizes[0])]
    algorithms += [make(1, rank, (high, low)) for rank in range(sizes[1])]
    results, _ = run(algorithms, chance.randrange)
    return results[: sizes[0]], results[sizes[0] :]


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [bytes(whole(one)) for one in value]
    return None if value is None else bytes(whole(value))


def data(seed: int, sizes: tuple[int, int]) -> list[list[memoryview]]:
    chance = random.Random(seed)
    return [[blob(chance) for _ in range(size)] for size in sizes]


def place(sizes: tuple[int, int], group: int, rank: int) -> int:
    return rank + (sizes[0] if group else 0)


@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_barrier_lets_nobody_go_before_the_other_group_has_come(
    sizes: tuple[int, int], seed: int
) -> None:
    came = [0, 0]

    def member(group: int, rank: int, groups: inter.Groups) -> Any:
        came[group] += 1
        yield from inter.barrier_leaders(rank, groups)
        return came[1 - group]

    low, high = play(seed, sizes, member)
    assert low == [sizes[1]] * sizes[0] and high == [sizes[0]] * sizes[1]


@pytest.mark.parametrize("algorithm", [inter.bcast_fan, inter.bcast_leader])
@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_bcast(algorithm: Callable[..., Any], sizes: tuple[int, int], seed: int) -> None:
    chance = random.Random(seed)
    side, item = chance.randrange(2), blob(chance)
    root = chance.randrange(sizes[side])

    def make(group: int, rank: int, groups: inter.Groups) -> Any:
        number = place(sizes, side, root) if group != side or rank == root else None
        return algorithm(rank, groups, number, item if group == side and rank == root else None)

    results = play(seed, sizes, make)
    assert [plain(one) for one in results[1 - side]] == [bytes(item)] * sizes[1 - side]


@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_gather_scatter_and_reduce(sizes: tuple[int, int], seed: int) -> None:
    chance = random.Random(seed)
    side = chance.randrange(2)
    root, given_ = chance.randrange(sizes[side]), data(seed, sizes)[1 - side]

    def make(algorithm: Callable[..., Any], *more: Any) -> Callable[[int, int, inter.Groups], Any]:
        def member(group: int, rank: int, groups: inter.Groups) -> Any:
            number = place(sizes, side, root) if group != side or rank == root else None
            return algorithm(rank, groups, number, given_[rank] if group != side else None, *more)

        return member

    gathered = play(seed, sizes, make(inter.gather_flat))[side]
    assert [plain(one) for one in gathered] == [
        plain(given_) if rank == root else None for rank in range(sizes[side])
    ]
    reduced = play(seed, sizes, make(inter.reduce_flat, concatenate))[side]
    assert plain(reduced[root]) == b"".join(given_)

    def scatter(group: int, rank: int, groups: inter.Groups) -> Any:
        number = place(sizes, side, root) if group != side or rank == root else None
        return inter.scatter_packed(
            rank, groups, number, given_ if group == side and rank == root else None
        )

    assert [plain(one) for one in play(seed, sizes, scatter)[1 - side]] == plain(given_)


@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_allgather_and_alltoall(sizes: tuple[int, int], seed: int) -> None:
    items = data(seed, sizes)
    results = play(
        seed,
        sizes,
        lambda group, rank, groups: inter.allgather_fan(rank, groups, items[group][rank]),
    )
    for group in (0, 1):
        assert [plain(one) for one in results[group]] == [plain(items[1 - group])] * sizes[group]
    chance = random.Random(seed)
    table = [
        [[blob(chance) for _ in range(sizes[1 - group])] for _ in range(sizes[group])]
        for group in (0, 1)
    ]
    results = play(
        seed,
        sizes,
        lambda group, rank, groups: inter.alltoall_packed(rank, groups, table[group][rank]),
    )
    for group in (0, 1):
        for rank in range(sizes[group]):
            assert plain(results[group][rank]) == [bytes(row[rank]) for row in table[1 - group]]


@pytest.mark.parametrize("algorithm", [inter.allreduce_fan, inter.allreduce_leaders])
@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_allreduce(algorithm: Callable[..., Any], sizes: tuple[int, int], seed: int) -> None:
    items = data(seed, sizes)
    results = play(
        seed,
        sizes,
        lambda group, rank, groups: algorithm(rank, groups, items[group][rank], concatenate),
    )
    for group in (0, 1):
        assert [plain(one) for one in results[group]] == [b"".join(items[1 - group])] * sizes[group]


def add(a: memoryview, b: memoryview) -> memoryview:
    return memoryview(bytes((x + y) % 256 for x, y in zip(a, b, strict=True)))


@SETTINGS
@given(sizes=SIZES, seed=SEEDS)
def test_reduce_scatter(sizes: tuple[int, int], seed: int) -> None:
    chance = random.Random(seed)
    total = chance.randrange(30)
    vectors = [[chance.randbytes(total) for _ in range(size)] for size in sizes]
    cuts = [
        sorted([0, total, *(chance.randint(0, total) for _ in range(size - 1))]) for size in sizes
    ]

    def make(group: int, rank: int, groups: inter.Groups) -> Any:
        vector, cut = memoryview(vectors[group][rank]), cuts[group]
        return inter.reduce_scatter_leaders(
            rank, groups, [vector[a:b] for a, b in zip(cut, cut[1:])], add
        )

    results = play(seed, sizes, make)
    for group in (0, 1):
        other = bytes(sum(column) % 256 for column in zip(*vectors[1 - group], strict=True))
        assert [plain(one) for one in results[group]] == [
            other[a:b] for a, b in zip(cuts[group], cuts[group][1:])
        ]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (8, 3)])
def test_costs_are_what_the_docstrings_say(sizes: tuple[int, int]) -> None:
    item, (low, high) = memoryview(bytes(10)), (range(sizes[0]), range(sizes[0], sum(sizes)))
    both = sum(sizes)

    def count(make: Callable[[int, inter.Groups], Any]) -> Any:
        members = [make(rank, (low, high)) for rank in low] + [
            make(rank, (high, low)) for rank in range(sizes[1])
        ]
        return run(members)[1]

    barrier = count(inter.barrier_leaders)
    assert barrier.rounds <= 3 and barrier.messages == 2 * (both - 2) + 2
    gathered = count(lambda rank, groups: inter.allgather_fan(rank, groups, item))
    assert (
        gathered.rounds == 1
        and gathered.sends == [1] * both
        and gathered.messages == 2 * sizes[0] * sizes[1]
    )
    reduced = count(
        lambda rank, groups: inter.allreduce_leaders(rank, groups, item, lambda a, b: a)
    )
    assert reduced.messages == 2 * both - 2 and reduced.rounds <= 1 + 2 * ceil(log2(max(sizes)))
