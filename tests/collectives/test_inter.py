"""The cost of collectives between two groups; the contract checks their results
(test_algorithms.py).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from typing import Any

import pytest

from serverless_mpi.collectives import inter
from serverless_mpi.testing.dry_run import run


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
