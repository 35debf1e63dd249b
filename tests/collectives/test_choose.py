"""The formulas say what a dry run of the generators counts, and the best row is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serverless_mpi.channels.base import Figures
from serverless_mpi.collectives import allgather, bcast, reduce
from serverless_mpi.collectives.choose import TABLE, Facts, select
from serverless_mpi.collectives.cost import FORMULAS, bcast_tree4, cost
from serverless_mpi.collectives.simulate import arguments, keep_first, run
from serverless_mpi.collectives.steps import Elementwise

ROWS = [(operation, row) for operation, rows in TABLE.items() for _, row in rows if row in FORMULAS]
PUBLISHED = Figures(0.1, 1e8, 4e-7, 8e-7, True, 10, ranges=True)
DIRECT = Figures(3e-5, 2e9, 0.0, 0.0, False, 64, put_s=1e-5, get_s=1e-5)


@pytest.mark.parametrize(
    "operation, algorithm", ROWS, ids=lambda one: str(getattr(one, "__name__", one))
)
def test_formulas_count_as_the_generators_do(operation: str, algorithm: Callable[..., Any]) -> None:
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17):
        blob = memoryview(bytes(48 * size))
        ranks = [
            algorithm(r, size, *arguments(operation, r, size, blob, Elementwise(keep_first, 1)))
            for r in range(size)
        ]
        counted = run(ranks)[1]
        stated = cost(algorithm, Facts(size, 48 * size, PUBLISHED))
        # a formula's rounds are those of the worst case; a lone rank has none at all
        assert counted.rounds <= stated.rounds if size > 1 else counted.messages == 0
        if size > 1:
            assert (stated.messages, stated.puts) == (counted.messages, sum(counted.sends)), size
            assert stated.rounds - counted.rounds <= 1


def test_a_published_blob_is_dearer_for_every_reader_on_a_channel_without_fan_out() -> None:
    once = cost(bcast.fan_out, Facts(9, 100, PUBLISHED))
    assert once.usd == pytest.approx(4e-7 + 8 * 8e-7)
    looped = Figures(0.1, 1e8, 4e-7, 8e-7, False, 10)
    assert cost(bcast.fan_out, Facts(9, 100, looped)).usd == pytest.approx(8 * 12e-7)


def test_messages_beyond_a_length_have_other_figures() -> None:
    large = Figures(1.0, 1e8, 5e-6, 4e-7, True, 1)
    both = Figures(0.1, 1e8, 4e-7, 8e-7, True, 10, billed_bytes=65536, beyond=(200_000, large))
    assert cost(bcast.fan_out, Facts(2, 100_000, both)).usd == pytest.approx(2 * 12e-7)
    assert cost(bcast.fan_out, Facts(2, 300_000, both)).usd == pytest.approx(5.4e-6)


@pytest.mark.parametrize(
    "operation, size, nbytes, figures, expected",
    [
        ("bcast", 16, 8, PUBLISHED, bcast.fan_out),
        ("bcast", 32, 1 << 16, DIRECT, bcast.binomial),
        ("bcast", 64, 8, DIRECT, bcast_tree4),
        ("allgather", 16, 8, PUBLISHED, allgather.fan_out),
        ("allgather", 64, 8, DIRECT, allgather.bruck),
        ("allreduce", 16, 8, PUBLISHED, reduce.allreduce_fan),
        ("allreduce", 16, 8 << 20, PUBLISHED, reduce.allreduce_shares),
        ("allreduce", 16, 8, DIRECT, reduce.allreduce_doubling),
        ("allreduce", 64, 1 << 20, DIRECT, reduce.allreduce_rabenseifner),
        ("allreduce", 16, None, DIRECT, reduce.allreduce_doubling),
    ],
)
def test_what_is_chosen(
    operation: str, size: int, nbytes: int | None, figures: Figures, expected: Any
) -> None:
    assert select(operation, Facts(size, nbytes, figures)) is expected


@pytest.mark.parametrize("figures", [PUBLISHED, DIRECT])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 17, 1000])
@pytest.mark.parametrize("nbytes", [None, 0, 8, 65536, 1 << 23])
def test_the_choice_is_the_cheapest_of_the_fastest(
    figures: Figures, size: int, nbytes: int | None
) -> None:
    facts = Facts(size, nbytes, figures)
    for operation, rows in TABLE.items():
        chosen = select(operation, facts)
        if chosen not in FORMULAS:
            continue
        costs = [cost(row, facts) for condition, row in rows if condition(facts)]
        best = min(one.seconds for one in costs)
        mine = cost(chosen, facts)
        assert mine.seconds <= 1.1 * best + 1e-12
        assert mine.usd <= min(one.usd for one in costs if one.seconds <= mine.seconds) + 1e-15
