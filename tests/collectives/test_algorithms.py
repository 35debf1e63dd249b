"""Every algorithm against the naive definition, for any size, root, blob lengths and order of delivery."""

from __future__ import annotations

import operator
import random
from array import array
from collections.abc import Callable
from functools import partial
from functools import reduce as fold_all
from math import ceil, log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.base import Figures
from serverless_mpi.collectives import allgather, alltoall, barrier, bcast, gather, reduce, scan
from serverless_mpi.collectives.choose import TABLE, Facts, select
from serverless_mpi.collectives.simulate import Count, run
from serverless_mpi.collectives.steps import Elementwise, Recv, Send, pack, unpack, whole
from serverless_mpi.errors import JobError

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
SIZES = st.integers(1, 17)
SEEDS = st.integers(0, 2**32)


def blob(chance: random.Random) -> memoryview:
    return memoryview(chance.randbytes(chance.choice((0, 1, 5, 40))))


def concatenate(a: memoryview, b: memoryview) -> memoryview:
    """Associative, not commutative: any wrong order shows."""
    return memoryview(bytes(a) + bytes(b))


def matrices(a: memoryview, b: memoryview) -> memoryview:
    """Products of 2 x 2 matrices modulo 251, 4 bytes each: element by element, associative, not commutative."""
    product = bytearray()
    for at in range(0, len(a), 4):
        (p, q, r, s), (t, u, v, w) = a[at : at + 4], b[at : at + 4]
        product += bytes(
            x % 251 for x in (p * t + q * v, p * u + q * w, r * t + s * v, r * u + s * w)
        )
    return memoryview(product)


def play(seed: int, algorithms: list[Any]) -> list[Any]:
    chance = random.Random(seed)
    return run(algorithms, chance.randrange)[0]


def same(got: Any, expected: Any) -> bool:
    if expected is None or got is None:
        return got is expected
    if isinstance(expected, list):
        return [bytes(whole(one)) for one in got] == [bytes(one) for one in expected]
    return bytes(whole(got)) == bytes(expected)


@pytest.mark.parametrize("algorithm", [barrier.dissemination, barrier.fan])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_barrier_lets_nobody_go_before_all_have_come(
    algorithm: Callable[..., Any], size: int, seed: int
) -> None:
    came: list[int] = []

    def member(rank: int) -> Any:
        came.append(rank)
        yield from algorithm(rank, size)
        return len(came)

    assert play(seed, [member(rank) for rank in range(size)]) == [size] * size


@pytest.mark.parametrize(
    "algorithm",
    [
        bcast.fan_out,
        bcast.binomial,
        bcast.tree,
        partial(bcast.tree, arity=2),
        partial(bcast.tree, arity=1),
    ],
)
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_bcast(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    root, data = chance.randrange(size), blob(chance)
    results = play(
        seed,
        [algorithm(rank, size, root, [data] if rank == root else None) for rank in range(size)],
    )
    assert all(same(result, data) for result in results)


@pytest.mark.parametrize("algorithm", [gather.gather_flat, gather.gather_binomial])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_gather(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    root, data = chance.randrange(size), [blob(chance) for _ in range(size)]
    results = play(seed, [algorithm(rank, size, root, data[rank]) for rank in range(size)])
    assert all(same(result, data if rank == root else None) for rank, result in enumerate(results))


@pytest.mark.parametrize(
    "algorithm", [gather.scatter_flat, gather.scatter_packed, gather.scatter_binomial]
)
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_scatter(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    root, data = chance.randrange(size), [blob(chance) for _ in range(size)]
    results = play(
        seed, [algorithm(rank, size, root, data if rank == root else None) for rank in range(size)]
    )
    assert all(same(result, data[rank]) for rank, result in enumerate(results))


@pytest.mark.parametrize("algorithm", [allgather.fan_out, allgather.ring, allgather.bruck])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_allgather(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    data = [blob(chance) for _ in range(size)]
    results = play(seed, [algorithm(rank, size, data[rank]) for rank in range(size)])
    assert all(same(result, data) for result in results)


@pytest.mark.parametrize("algorithm", [alltoall.pairwise, alltoall.packed, alltoall.bruck])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_alltoall(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    data = [[blob(chance) for _ in range(size)] for _ in range(size)]
    results = play(seed, [algorithm(rank, size, data[rank]) for rank in range(size)])
    assert all(
        same(result, [data[other][rank] for other in range(size)])
        for rank, result in enumerate(results)
    )


@pytest.mark.parametrize("algorithm", [reduce.reduce_flat, reduce.reduce_binomial])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_reduce(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    root, data = chance.randrange(size), [blob(chance) for _ in range(size)]
    results = play(
        seed, [algorithm(rank, size, root, data[rank], concatenate) for rank in range(size)]
    )
    total = b"".join(data)
    assert all(same(result, total if rank == root else None) for rank, result in enumerate(results))


@pytest.mark.parametrize("algorithm", [reduce.allreduce_fan, reduce.allreduce_doubling])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_allreduce(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    data = [blob(chance) for _ in range(size)]
    results = play(seed, [algorithm(rank, size, data[rank], concatenate) for rank in range(size)])
    assert all(same(result, b"".join(data)) for result in results)


@pytest.mark.parametrize(
    "algorithm",
    [reduce.reduce_shares, reduce.reduce_flat, reduce.reduce_binomial],
    ids=lambda a: a.__name__,
)
@SETTINGS
@given(size=SIZES, seed=SEEDS, elements=st.integers(0, 40))
def test_reduce_of_vectors(
    algorithm: Callable[..., Any], size: int, seed: int, elements: int
) -> None:
    chance = random.Random(seed)
    root, data = (
        chance.randrange(size),
        [memoryview(chance.randbytes(4 * elements)) for _ in range(size)],
    )
    results = play(
        seed,
        [algorithm(rank, size, root, data[rank], Elementwise(matrices, 4)) for rank in range(size)],
    )
    total = fold_all(matrices, data)
    assert all(same(result, total if rank == root else None) for rank, result in enumerate(results))


@pytest.mark.parametrize("algorithm", [reduce.allreduce_rabenseifner, reduce.allreduce_shares])
@SETTINGS
@given(size=SIZES, seed=SEEDS, elements=st.integers(0, 40), grain=st.sampled_from((4, 8, 0)))
def test_allreduce_of_vectors(
    algorithm: Callable[..., Any], size: int, seed: int, elements: int, grain: int
) -> None:
    chance = random.Random(seed)
    data = [memoryview(chance.randbytes(4 * elements)) for _ in range(size)]
    elements -= elements % 2 if grain == 8 else 0
    data = [one[: 4 * elements] for one in data]
    results = play(
        seed,
        [algorithm(rank, size, data[rank], Elementwise(matrices, grain)) for rank in range(size)],
    )
    assert all(same(result, fold_all(matrices, data)) for result in results)


@pytest.mark.parametrize(
    "algorithm",
    [
        reduce.allreduce_fan,
        reduce.allreduce_doubling,
        reduce.allreduce_rabenseifner,
        reduce.allreduce_shares,
    ],
)
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_every_rank_of_an_allreduce_gets_the_same_bits(
    algorithm: Callable[..., Any], size: int, seed: int
) -> None:
    chance = random.Random(seed)
    data = [
        memoryview(
            array(
                "d", [chance.uniform(-1, 1) * 10.0 ** chance.randrange(20) for _ in range(7)]
            ).tobytes()
        )
        for _ in range(size)
    ]

    def add(a: memoryview, b: memoryview) -> memoryview:
        return memoryview(array("d", map(operator.add, a.cast("d"), b.cast("d"))).tobytes())

    results = play(
        seed, [algorithm(rank, size, data[rank], Elementwise(add, 8)) for rank in range(size)]
    )
    assert len({bytes(result) for result in results}) == 1


@pytest.mark.parametrize("algorithm", [reduce.reduce_scatter, reduce.reduce_scatter_packed])
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_reduce_scatter(algorithm: Callable[..., Any], size: int, seed: int) -> None:
    chance = random.Random(seed)
    data = [[blob(chance) for _ in range(size)] for _ in range(size)]
    results = play(seed, [algorithm(rank, size, data[rank], concatenate) for rank in range(size)])
    assert all(
        same(got, b"".join(data[other][rank] for other in range(size)))
        for rank, got in enumerate(results)
    )


@pytest.mark.parametrize(
    "scan, exscan", [(scan.scan, scan.exscan), (scan.scan_fan_out, scan.exscan_fan_out)]
)
@SETTINGS
@given(size=SIZES, seed=SEEDS)
def test_scan_and_exscan(
    scan: Callable[..., Any], exscan: Callable[..., Any], size: int, seed: int
) -> None:
    chance = random.Random(seed)
    data = [blob(chance) for _ in range(size)]
    up_to = play(seed, [scan(rank, size, data[rank], concatenate) for rank in range(size)])
    below = play(seed, [exscan(rank, size, data[rank], concatenate) for rank in range(size)])
    for rank in range(size):
        assert same(up_to[rank], b"".join(data[: rank + 1]))
        assert same(below[rank], b"".join(data[:rank]) if rank else None)


def cost(size: int, make: Callable[[int], Any]) -> Count:
    return run([make(rank) for rank in range(size)])[1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, 16])
def test_costs_are_what_the_docstrings_say(size: int) -> None:
    n = 10
    data = memoryview(bytes(n))
    log = ceil(log2(size)) if size > 1 else 0
    one = 1 if size > 1 else 0
    others = size - 1

    def c(a: memoryview, b: memoryview) -> memoryview:
        return a

    def check(count: Count, rounds: int, most_sends: int, nbytes: int | None = None) -> None:
        assert count.rounds == rounds and max(count.sends) == most_sends
        assert nbytes is None or sum(count.nbytes) == nbytes

    check(cost(size, lambda r: barrier.dissemination(r, size)), log, log, 0)
    check(cost(size, lambda r: barrier.fan(r, size)), 2 * one, one, 0)
    check(cost(size, lambda r: bcast.fan_out(r, size, 0, data)), one, one, n * one)
    binomial = cost(size, lambda r: bcast.binomial(r, size, 0, data))
    assert binomial.messages == others and binomial.rounds <= log and max(binomial.sends) <= 1
    for arity in (2, 4):
        tree = cost(size, lambda r: bcast.tree(r, size, 0, data, arity=arity))
        assert tree.messages == others and max(tree.sends) <= 1
        assert tree.rounds == min(
            deep for deep in range(9) if sum(arity**level for level in range(deep + 1)) >= size
        )
    check(cost(size, lambda r: gather.gather_flat(r, size, 0, data)), one, one, n * others)
    binomial = cost(size, lambda r: gather.gather_binomial(r, size, 0, data))
    assert binomial.rounds <= log and max(binomial.sends) == one
    check(
        cost(size, lambda r: gather.scatter_flat(r, size, 0, [data] * size)),
        one,
        others,
        n * others,
    )
    assert (
        cost(size, lambda r: gather.scatter_binomial(r, size, 0, [data] * size)).messages == others
    )
    check(cost(size, lambda r: allgather.fan_out(r, size, data)), one, one, n * size * one)
    check(cost(size, lambda r: allgather.ring(r, size, data)), others, others, n * size * others)
    check(cost(size, lambda r: allgather.bruck(r, size, data)), log, log, (n + 8) * size * others)
    check(
        cost(size, lambda r: alltoall.pairwise(r, size, [data] * size)),
        one,
        others,
        n * size * others,
    )
    check(
        cost(size, lambda r: alltoall.packed(r, size, [data] * size)), one, one, n * size * others
    )
    check(
        cost(size, lambda r: gather.scatter_packed(r, size, 0, [data] * size)), one, one, n * others
    )
    check(cost(size, lambda r: alltoall.bruck(r, size, [data] * size)), log, log)
    check(cost(size, lambda r: reduce.reduce_flat(r, size, 0, data, c)), one, one, n * others)
    binomial = cost(size, lambda r: reduce.reduce_binomial(r, size, 0, data, c))
    assert (
        binomial.rounds <= log and max(binomial.sends) == one and sum(binomial.nbytes) == n * others
    )
    check(
        cost(size, lambda r: reduce.allreduce_fan(r, size, data, c)), 2 * one, one, n * size * one
    )
    doubling = cost(size, lambda r: reduce.allreduce_doubling(r, size, data, c))
    assert doubling.rounds <= int(log2(size)) + (0 if size & (size - 1) == 0 else 2)
    check(
        cost(size, lambda r: reduce.reduce_scatter(r, size, [data] * size, c)),
        one,
        others,
        n * size * others,
    )
    double, extra, half = (
        int(log2(size)),
        0 if size & (size - 1) == 0 else 2,
        40 * 2 ** int(log2(size)),
    )
    rabenseifner = cost(
        size,
        lambda r: reduce.allreduce_rabenseifner(
            r, size, memoryview(bytes(half)), Elementwise(c, 4)
        ),
    )
    assert rabenseifner.rounds <= 2 * double + extra and max(rabenseifner.sends) <= 2 * double + (
        extra > 0
    )
    assert max(rabenseifner.nbytes) == 2 * half * (1 - 2**-double) + half * (extra > 0)
    row = memoryview(bytes(4 * size))
    check(
        cost(size, lambda r: reduce.allreduce_shares(r, size, row, Elementwise(c, 4))),
        2 * one,
        2 * one,
        4 * size * size * one,
    )
    check(
        cost(size, lambda r: reduce.reduce_shares(r, size, 0, row, Elementwise(c, 4))),
        2 * one,
        2 * one,
    )
    check(
        cost(size, lambda r: reduce.reduce_scatter_packed(r, size, [data] * size, c)),
        one,
        one,
        n * size * others,
    )
    check(cost(size, lambda r: scan.scan_fan_out(r, size, data, c)), one, one, n * others)
    doubled = cost(size, lambda r: scan.scan(r, size, data, c))
    assert doubled.rounds <= log and max(doubled.sends) == log


def test_a_deadlock_is_named() -> None:
    def waits(other: int) -> Any:
        yield Recv(other)

    with pytest.raises(JobError, match="deadlock.*source=1"):
        run([waits(1), waits(0)])


def test_a_message_nobody_wants_is_named() -> None:
    def sends() -> Any:
        yield Send((1,), (memoryview(b"x"),), 3)

    def nothing() -> Any:
        yield from ()

    with pytest.raises(JobError, match=r"nobody received \[\(0, 3, 1, False\)\]"):
        run([sends(), nothing()])


@given(st.lists(st.binary(max_size=9), max_size=5))
@SETTINGS
def test_pack_and_unpack(blobs: list[bytes]) -> None:
    packed = whole(pack([memoryview(one) for one in blobs]))
    assert [bytes(one) for one in unpack(packed, len(blobs))] == blobs


@pytest.mark.parametrize("put_usd, fanout", [(0.0, False), (4e-7, False), (5e-7, True)])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 8, 100])
@pytest.mark.parametrize("nbytes", [None, 8, 1 << 23])
def test_every_call_finds_an_algorithm(
    put_usd: float, fanout: bool, size: int, nbytes: int | None
) -> None:
    facts = Facts(size, nbytes, Figures(1e-3, 1e8, put_usd, put_usd, fanout, 10))
    for operation in TABLE:
        assert select(operation, facts) is select(operation, facts)
