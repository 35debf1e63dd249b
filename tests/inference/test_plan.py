"""The planner: one worker where that is best, memory limits, and bills that match the requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import advice, plan
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.inference.plan import Deployment, Work

LAMBDA = plan.place("lambda")
MODEL = BilledModel()


@pytest.mark.parametrize("neurons", [1024, 4096])
def test_small_networks_want_one_worker(neurons: int) -> None:
    work = Work.radix(neurons, 120, 10_000)
    best = advice.advise(advice.survey(work, LAMBDA, MODEL), work)
    assert best.knee.way.workers == best.cheapest.way.workers == best.fastest.way.workers == 1
    assert "one worker" in best.knee.way.name and "fits one worker" in best.why


def test_more_samples_are_divided_and_a_large_model_is_partitioned() -> None:
    work = Work.random(16384, 120, 10_000)
    best = advice.advise(advice.survey(work, LAMBDA, MODEL), work)
    assert best.fastest.way.replicas > 1 and best.fastest.way.parts == 1
    assert best.cheapest.usd < best.knee.usd < best.fastest.usd
    assert best.cheapest.seconds > best.knee.seconds > best.fastest.seconds
    large = Work.random(65536, 1920, 1000)  # 24 GB of weights
    ways = advice.survey(large, replace(LAMBDA, limit_s=float("inf")), MODEL)
    assert all(one.way.parts >= 3 for one in ways)
    assert "do not fit one worker" in advice.advise(ways, large).why


def test_a_slower_exchange_is_seen() -> None:
    work = Work.random(4096, 120, 10_000)
    fast, slow = (
        plan.predict(
            work,
            replace(
                LAMBDA,
                channels={
                    **LAMBDA.channels,
                    "object": replace(LAMBDA.channels["object"], latency_s=s),
                },
            ),
            Deployment(1, 8, "object", 3538),
            MODEL,
        )
        for s in (0.05, 0.5)
    )
    assert fast is not None and slow is not None
    assert slow.exchange_s - fast.exchange_s > 120 * 0.4 and slow.bill.s3_usd == fast.bill.s3_usd


def test_the_bill_is_that_of_the_requests() -> None:
    work = Work.radix(1024, 120, 10_000)
    found = plan.predict(work, LAMBDA, Deployment(1, 8, "object", 1769), MODEL)
    assert found is not None and found.bill == MODEL.bill(found.use)
    assert found.use.requests["s3.PUT"]["requests"] == 8 * 120  # one object a sender and layer
    twice = plan.predict(work, LAMBDA, Deployment(2, 8, "object", 1769), MODEL)
    assert twice is not None and twice.use.requests["s3.PUT"]["requests"] == 2 * 8 * 120


def test_hybrid_is_not_dearer_than_both() -> None:
    for work in (Work.radix(1024, 120, 10_000), Work.random(4096, 120, 10_000)):
        usd = {}
        for channel in ("queue", "object", "hybrid"):
            found = plan.predict(work, LAMBDA, Deployment(1, 8, channel, 5307), MODEL)
            assert found is not None
            usd[channel] = found.bill.communication_usd
        assert usd["hybrid"] <= 1.2 * min(usd["queue"], usd["object"])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.sampled_from([1024, 16384, 65536]),
    st.integers(1, 2000),
    st.integers(1, 8),
    st.integers(128, 10240),
)
def test_the_parts_that_would_fit_fit(neurons: int, layers: int, parts: int, memory: int) -> None:
    work = Work.random(neurons, layers, 1000)
    try:
        plan.check_memory(work, parts, memory)
    except UsageError as error:
        fitting = plan.least_parts(work, memory)
        if fitting is None:
            assert "no number of parts fits" in str(error)
        else:
            assert fitting > parts and f"{fitting} parts would fit" in str(error)
            plan.check_memory(work, fitting, memory)
    else:
        found = plan.predict(
            work,
            replace(LAMBDA, limit_s=float("inf")),
            Deployment(1, parts, "queue", memory),
            MODEL,
        )
        assert found is not None
        assert plan.worker_mb(work, parts, -(-1000 // found.batches), LAMBDA.base_mb) <= memory + 1


def test_what_cannot_be_is_refused() -> None:
    work = Work.random(65536, 1920, 1000)
    with pytest.raises(UsageError, match="parts would fit"):
        advice.survey(work, LAMBDA, MODEL, memory_limit_mb=512, max_workers=8)
    with pytest.raises(UsageError, match="no channel 'direct' on lambda; known: hybrid"):
        advice.survey(Work.radix(1024, 120, 10), LAMBDA, MODEL, channels=["direct"])
    with pytest.raises(UsageError, match="900 s"):
        advice.survey(
            replace(Work.random(65536, 1920, 2_000_000), weight_bytes=10**6),
            LAMBDA,
            MODEL,
            max_workers=1,
        )
