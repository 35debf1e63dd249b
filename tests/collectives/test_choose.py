"""The registry refuses what is incomplete, and `select` takes the cheapest of the fastest
algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serverless_mpi.channels.base import CostParameters
from serverless_mpi.collectives.choose import ALGORITHMS, Facts, algorithm, find, select
from serverless_mpi.collectives.cost import Tally
from serverless_mpi.collectives.operations import OPERATIONS
from serverless_mpi.collectives.steps import Steps
from serverless_mpi.errors import UsageError

PUBLISHED = CostParameters(0.1, 1e8, 4e-7, 8e-7, True, 10, ranges=True)
DIRECT = CostParameters(3e-5, 2e9, 0.0, 0.0, False, 64, put_s=1e-5, get_s=1e-5)


@pytest.fixture
def registry() -> Iterator[None]:
    """Undo what a test registers."""
    before = {operation: list(rows) for operation, rows in ALGORITHMS.items()}
    yield
    ALGORITHMS.update(before)
    select.cache_clear()


def nothing(rank: int, size: int, root: int, data: object) -> Steps:
    yield from ()


def free(tally: Tally) -> None:
    pass


def test_an_algorithm_without_a_cost_is_refused_when_it_is_registered(registry: None) -> None:
    with pytest.raises(UsageError, match="bcast algorithm 'nothing' states no cost: pass cost="):
        algorithm("bcast")(nothing)
    assert all(row.name != "nothing" for row in ALGORITHMS["bcast"])


def test_an_unknown_operation_and_a_taken_name_are_refused(registry: None) -> None:
    with pytest.raises(UsageError, match="no collective 'brodcast'; known: barrier, bcast"):
        algorithm("brodcast", cost=free)
    with pytest.raises(UsageError, match="bcast has an algorithm 'binomial' already"):
        algorithm("bcast", cost=free, name="binomial")(nothing)
    with pytest.raises(UsageError, match="bcast has no algorithm 'chain'; known: fan_out"):
        find("bcast", "chain")


def test_a_registered_algorithm_is_chosen_where_it_is_the_best(registry: None) -> None:
    facts = Facts(32, 1 << 16, DIRECT)
    assert select("bcast", facts).name == "binomial"
    algorithm("bcast", cost=free)(nothing)
    assert select("bcast", facts).generator is nothing


def test_a_published_blob_is_dearer_for_every_reader_on_a_channel_without_fan_out() -> None:
    once = find("bcast", "fan_out").cost(Facts(9, 100, PUBLISHED))
    assert once.usd == pytest.approx(4e-7 + 8 * 8e-7)
    looped = CostParameters(0.1, 1e8, 4e-7, 8e-7, False, 10)
    assert find("bcast", "fan_out").cost(Facts(9, 100, looped)).usd == pytest.approx(8 * 12e-7)


def test_messages_beyond_a_length_have_other_figures() -> None:
    large = CostParameters(1.0, 1e8, 5e-6, 4e-7, True, 1)
    both = CostParameters(
        0.1, 1e8, 4e-7, 8e-7, True, 10, billed_bytes=65536, large=(200_000, large)
    )
    assert find("bcast", "fan_out").cost(Facts(2, 100_000, both)).usd == pytest.approx(2 * 12e-7)
    assert find("bcast", "fan_out").cost(Facts(2, 300_000, both)).usd == pytest.approx(5.4e-6)


@pytest.mark.parametrize(
    "operation, size, nbytes, figures, expected",
    [
        ("bcast", 16, 8, PUBLISHED, "fan_out"),
        ("bcast", 32, 1 << 16, DIRECT, "binomial"),
        ("bcast", 64, 8, DIRECT, "tree_4"),
        ("allgather", 16, 8, PUBLISHED, "fan_out"),
        ("allgather", 64, 8, DIRECT, "bruck"),
        ("allreduce", 16, 8, PUBLISHED, "allreduce_fan"),
        ("allreduce", 16, 8 << 20, PUBLISHED, "allreduce_shares"),
        ("allreduce", 16, 8, DIRECT, "allreduce_doubling"),
        ("allreduce", 64, 1 << 20, DIRECT, "allreduce_rabenseifner"),
        ("allreduce", 16, None, DIRECT, "allreduce_doubling"),
    ],
)
def test_what_is_chosen(
    operation: str, size: int, nbytes: int | None, figures: CostParameters, expected: str
) -> None:
    assert select(operation, Facts(size, nbytes, figures)).name == expected


@pytest.mark.parametrize("figures", [PUBLISHED, DIRECT])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 17, 1000])
@pytest.mark.parametrize("nbytes", [None, 0, 8, 65536, 1 << 23])
def test_the_choice_is_the_cheapest_of_the_fastest(
    figures: CostParameters, size: int, nbytes: int | None
) -> None:
    facts = Facts(size, nbytes, figures)
    for operation, rows in ALGORITHMS.items():
        if not OPERATIONS[operation].modelled:
            continue
        own = select(operation, facts).cost(facts)
        costs = [row.cost(facts) for row in rows if row.condition(facts)]
        best = min(one.seconds for one in costs)
        assert own.seconds <= 1.1 * best + 1e-12
        assert own.usd <= min(one.usd for one in costs if one.seconds <= own.seconds) + 1e-15
