"""Every algorithm against the naive definition, for any size, root, blob lengths and order of delivery."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.base import CostParameters
from serverless_mpi.collectives import allgather, alltoall, barrier, bcast, gather, reduce, scan
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, always, select
from serverless_mpi.collectives.cost import Tally
from serverless_mpi.collectives.steps import (
    Elementwise,
    Recv,
    Send,
    Steps,
    fold,
    pack,
    unpack,
    whole,
)
from serverless_mpi.errors import JobError
from serverless_mpi.testing import check_algorithm
from serverless_mpi.testing.algorithms import registered
from serverless_mpi.testing.dry_run import Count, run

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize(
    "algorithm", list(registered()), ids=lambda one: f"{one.operation}-{one.name}"
)
def test_every_registered_algorithm_holds_the_contract(algorithm: Algorithm) -> None:
    check_algorithm(algorithm, calls=30)


@pytest.mark.parametrize("arity", [1, 2, 3])
def test_a_tree_of_any_arity_holds_the_contract(arity: int) -> None:
    tree = Algorithm("bcast", "tree", partial(bcast.tree, arity=arity), None, always)
    check_algorithm(tree, calls=30)


def zeros(rank: int, size: int, root: int, data: Any) -> Steps:
    result = yield from bcast.binomial(rank, size, root, data)
    return memoryview(bytes(whole(result).nbytes))


def keeps_to_itself(rank: int, size: int, root: int, data: Any) -> Steps:
    yield from ()
    return data


def unread(rank: int, size: int, root: int, data: Any) -> Steps:
    if rank == root and size > 1:
        yield Send(((root + 1) % size,), (memoryview(b"x"),), 77)
    return (yield from bcast.binomial(rank, size, root, data))


def backwards(rank: int, size: int, data: Any, combine: Any) -> Steps:
    return (yield from reduce.allreduce_fan(rank, size, data, lambda a, b: combine(b, a)))


def different_roundings(rank: int, size: int, data: Any, combine: Any) -> Steps:
    blobs = yield from allgather.fan_out(rank, size, data)
    half = rank % (size + 1)
    low, high = blobs[:half], blobs[half:]
    sides = [fold(side, combine) for side in (low, high) if side]
    return fold(sides, combine)


@pytest.mark.parametrize(
    "operation, wrong, error",
    [
        ("bcast", zeros, "the operation defines"),
        ("bcast", keeps_to_itself, "'NoneType' object is not|returned None"),
        ("bcast", unread, "no rank received"),
        ("allreduce", backwards, "the operation defines"),
        ("allreduce", different_roundings, "different roundings"),
    ],
)
def test_a_wrong_algorithm_does_not_pass(operation: str, wrong: Any, error: str) -> None:
    with pytest.raises((AssertionError, JobError), match=error):
        check_algorithm(Algorithm(operation, wrong.__name__, wrong, None, always))


def test_a_cost_that_does_not_count_all_messages_does_not_pass() -> None:
    def understated(tally: Tally) -> None:
        tally.step(tally.n, tally.put(tally.n) + tally.get(tally.n))

    ring = Algorithm("allgather", "ring", allgather.ring, understated, always)
    with pytest.raises(AssertionError, match="states 0 messages; a run takes 2"):
        check_algorithm(ring)


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


def test_a_message_without_a_reader_is_named() -> None:
    def sends() -> Any:
        yield Send((1,), (memoryview(b"x"),), 3)

    def nothing() -> Any:
        yield from ()

    with pytest.raises(JobError, match=r"no rank received \[\(0, 3, 1, False\)\]"):
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
    facts = Facts(size, nbytes, CostParameters(1e-3, 1e8, put_usd, put_usd, fanout, 10))
    for operation in ALGORITHMS:
        assert select(operation, facts) is select(operation, facts)
