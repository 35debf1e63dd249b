"""Two-level collectives: any nodes, sizes and roots; when they are chosen; what they save."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.direct import FIGURES as DIRECT
from serverless_mpi.channels.hybrid import HybridChannel
from serverless_mpi.channels.routed import LINK_FIGURES, RoutedChannel
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, find, select
from serverless_mpi.collectives.operations import OPERATIONS, example_calls
from serverless_mpi.collectives.steps import Elementwise, whole
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Prices, Snapshot, merge
from serverless_mpi.runtime import Runtime
from serverless_mpi.simulation import AWS, forecast
from serverless_mpi.testing.dry_run import run

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)
PRICES = Prices.load()
FAR = replace(HybridChannel.cost(aws=True, prices=PRICES), near=LINK_FIGURES.near)
PLACED = [row for rows in ALGORITHMS.values() for row in rows if row.placed]
BY_NAME = {row.operation: row for row in PLACED}
MIXED = st.lists(st.integers(0, 4), min_size=3, max_size=14).map(tuple)
RANGES = MIXED.map(lambda nodes: tuple(sorted(nodes)))
CALLS = 8  # of one job, whose end costs routed a request per rank that polls
TWO_NODES = (0, 0, 0, 0, 1, 1, 1, 1)


def bound(operation: str, facts: Facts) -> Any:
    """Return the algorithm's generator, or None if it does not serve the call."""
    row = BY_NAME[operation]
    return row.on(facts).generator if row.condition(facts) else None


def product(a: memoryview, b: memoryview) -> memoryview:
    """Multiply upper triangular 2 x 2 matrices modulo 251: associative, not commutative."""
    out = bytearray()
    for at in range(0, len(a), 3):
        (p, q, r), (s, t, u) = a[at : at + 3], b[at : at + 3]
        out += bytes((p * s % 251, (p * t + q * u) % 251, r * u % 251))
    return memoryview(out)


@given(nodes=st.one_of(MIXED, RANGES), data=st.data(), figures=st.sampled_from([LINK_FIGURES, FAR]))
@SETTINGS
def test_blobs_of_any_length_arrive(nodes: tuple[int, ...], data: Any, figures: Any) -> None:
    size, facts = len(nodes), Facts(len(nodes), None, figures, nodes)
    root = data.draw(st.integers(0, size - 1))
    random = data.draw(st.randoms(use_true_random=False))
    if not BY_NAME["bcast"].condition(facts):
        return
    blobs = [random.randbytes(random.choice((0, 1, 30))) for _ in nodes]
    views = [memoryview(blob) for blob in blobs]

    def results(operation: str, arguments: Any) -> list[Any]:
        make = bound(operation, facts)
        got, _ = run([make(rank, size, *arguments(rank)) for rank in range(size)], random.randrange)
        return got

    def plain(row: Any) -> list[bytes]:
        return [bytes(whole(blob)) for blob in row]

    got = results("bcast", lambda rank: (root, views[root] if rank == root else None))
    assert plain(got) == [blobs[root]] * size
    got = results("gather", lambda rank: (root, views[rank]))
    assert plain(got[root]) == blobs and got.count(None) == size - 1
    got = results("scatter", lambda rank: (root, views if rank == root else None))
    assert plain(got) == blobs
    assert all(plain(row) == blobs for row in results("allgather", lambda rank: (views[rank],)))
    got = results("alltoall", lambda rank: (views[rank:] + views[:rank],))
    for rank, row in enumerate(got):
        assert plain(row) == [blobs[(source + rank) % size] for source in range(size)]


@given(nodes=RANGES, data=st.data(), elements=st.integers(0, 40))
@SETTINGS
def test_operands_are_combined_in_the_order_of_ranks(
    nodes: tuple[int, ...], data: Any, elements: int
) -> None:
    size, nbytes = len(nodes), 3 * elements
    facts = Facts(size, nbytes, data.draw(st.sampled_from([LINK_FIGURES, FAR])), nodes)
    if not BY_NAME["reduce"].condition(facts):
        return
    root = data.draw(st.integers(0, size - 1))
    random = data.draw(st.randoms(use_true_random=False))
    operands = [memoryview(random.randbytes(nbytes)) for _ in nodes]
    *_, total = accumulate(operands, product)
    combine = Elementwise(product, 3)
    make = bound("reduce", facts)
    ranks = [make(rank, size, root, operands[rank], combine) for rank in range(size)]
    got, _ = run(ranks, random.randrange)
    assert bytes(whole(got[root])) == bytes(total)
    make = bound("allreduce", facts)
    got, _ = run([make(rank, size, operands[rank], combine) for rank in range(size)])
    assert {bytes(whole(one)) for one in got} == {bytes(total)}


def test_reductions_refuse_nodes_that_are_not_ranges_of_ranks() -> None:
    around = Facts(8, 8, FAR, (0, 1) * 4)
    serving = {row.operation for row in PLACED if row.condition(around)}
    assert {"reduce", "allreduce"}.isdisjoint(serving) and "bcast" in serving
    assert select("allreduce", around).name == select("allreduce", Facts(8, 8, FAR)).name


@pytest.mark.parametrize("nodes", [(), (0,) * 12, tuple(range(12))])
@pytest.mark.parametrize("figures", [DIRECT, LINK_FIGURES, FAR])
@pytest.mark.parametrize("nbytes", [None, 0, 8, 65536, 1 << 23])
def test_flat_jobs_choose_as_without_nodes(nodes: Any, figures: Any, nbytes: int | None) -> None:
    for operation, spec in OPERATIONS.items():
        if spec.modelled:
            chosen = select(operation, Facts(12, nbytes, figures, nodes))
            flat = Facts(12, nbytes, replace(figures, near=None))
            assert not chosen.placed and chosen is select(operation, flat)


def test_a_billed_far_way_makes_small_collectives_two_level() -> None:
    for operation in ("barrier", "bcast", "reduce", "allreduce", "allgather"):
        assert select(operation, Facts(8, 8, FAR, TWO_NODES)).placed


def test_near_ranks_and_links_save_time_by_the_simulation() -> None:
    def seconds(operation: str, nbytes: int, size: int, per_node: int) -> float:
        nodes = tuple(rank // per_node for rank in range(size))
        return forecast(operation, nbytes, size, "routed", AWS, PRICES, nodes=nodes).seconds

    nbytes = 16 << 20
    assert seconds("bcast", nbytes, 192, 1) > 3 * seconds("bcast", nbytes, 192, 48)
    links = seconds("allreduce", 8 << 20, 64, 1)
    hybrid = forecast("allreduce", 8 << 20, 64, "hybrid", AWS, PRICES)
    assert hybrid.seconds > 7 * links and hybrid.usd > 0


def counted(spec: JobSpec, algorithm: Algorithm, context: int) -> int:
    """Run CALLS calls on eight ranks; return their billed sends, and the messages received by queue."""
    blob, errors = memoryview(bytearray(24)), list[BaseException]()
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(8)]

    def rank_main(rank: int) -> None:
        try:
            for number in range(CALLS):
                steps = example_calls(algorithm.operation, algorithm.generator, 8, blob)[rank]
                running = runtimes[rank].icollective(context, number, steps, range(8))
                assert runtimes[rank].wait([running], timeout=60.0) and running.error is None
            runtimes[rank].finalize()
        except BaseException as error:  # handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    rows: Snapshot = merge([runtime.meter.snapshot() for runtime in runtimes])
    sends = sum(
        row["requests"] for name, row in rows.items() if name.startswith(("sqs.Send", "sns.Pub"))
    )
    return sends + rows.get("sqs.ReceiveMessage", {}).get("messages", 0)


def test_requests_on_the_emulator_fall(
    ministack_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of four ranks without links: the same calls, flat and two-level."""
    monkeypatch.setattr("serverless_mpi.channels.routed.CAN_SEAL", False)
    facts = Facts(8, 24, FAR, TWO_NODES)
    flat, two_level = {}, {}
    for context, operation in enumerate(("barrier", "bcast", "allreduce", "allgather"), 10):
        chosen = select(operation, Facts(8, 24, replace(FAR, near=None)))
        flat[operation] = counted_in_a_job(ministack_endpoint, chosen, context)
        chosen = find(operation, "two_level").on(facts)
        two_level[operation] = counted_in_a_job(ministack_endpoint, chosen, context)
    assert sum(flat.values()) >= 3 * sum(two_level.values()) > 0, (flat, two_level)


def counted_in_a_job(endpoint: str, algorithm: Algorithm, context: int) -> int:
    spec = JobSpec.new(8, "routed", endpoint=endpoint, settings={"ppn": "4"})
    spec = replace(spec, settings=RoutedChannel.provision(spec))
    try:
        assert spec.nodes == TWO_NODES
        return counted(spec, algorithm, context)
    finally:
        RoutedChannel.destroy(spec)
