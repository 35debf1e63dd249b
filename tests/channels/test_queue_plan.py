"""Which requests a put becomes: sends to few ranks, publishes to several."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.aws import sns, sqs
from serverless_mpi.channels.hybrid import threshold
from serverless_mpi.channels.queue import MAX_FRAME_BYTES, fewest_readers, plan
from serverless_mpi.metering import Meter, Prices, render, report

PRICES = Prices.load()


def test_one_rank_alone_is_sent_straight_to_its_queue() -> None:
    chosen = plan([(b"x" * 100, (3,))] * 12)
    assert [(rank, len(batch)) for rank, batch in chosen.queue] == [
        (3, 10),
        (3, 2),
    ] and not chosen.topic


def test_one_publish_reaches_many() -> None:
    chosen = plan([(b"x", (1, 2, 250))])
    assert not chosen.queue and [(topic, batch[0][1]) for topic, batch in chosen.topic] == [
        (0, [1, 2]),
        (1, [250]),
    ]


def test_frames_for_single_ranks_are_never_published() -> None:
    chosen = plan([(b"x", (rank,)) for rank in range(63)])
    assert len(chosen.queue) == 63 and not chosen.topic


@pytest.mark.parametrize(
    "size, published_per_s, fewest",
    [(220, 0, 2), (220, 30_000, 2), (8, 1_500, 2), (64, 1_500, 5), (64, 300, 17), (220, 300, 55)],
)
def test_a_publish_must_be_worth_the_wait_for_its_quota(
    size: int, published_per_s: int, fewest: int
) -> None:
    assert fewest_readers(size, published_per_s, PRICES) == fewest
    few, several = tuple(range(fewest - 1)), tuple(range(fewest))
    chosen = plan([(b"few", few), (b"several", several)], fewest=fewest)
    assert [rank for rank, _ in chosen.queue] == list(few)
    assert [batch for _, batch in chosen.topic] == [[(b"several", list(several))]]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(0, MAX_FRAME_BYTES), st.sets(st.integers(0, 5), min_size=1)),
        max_size=25,
    )
)
def test_limits_hold_and_every_frame_reaches_its_ranks(sizes: list[tuple[int, set[int]]]) -> None:
    frames = [(bytes([i]) * max(1, n), sorted(dests)) for i, (n, dests) in enumerate(sizes)]
    chosen = plan(frames)
    reached = [(frame, rank) for rank, batch in chosen.queue for frame in batch]
    reached += [
        (frame, rank) for _, batch in chosen.topic for frame, ranks in batch for rank in ranks
    ]
    assert sorted(reached) == sorted((frame, rank) for frame, ranks in frames for rank in ranks)
    for _, batch in chosen.queue:
        assert (
            len(batch) <= 10
            and sum(len(one) + sqs.ENVELOPE_BYTES for one in batch) <= sqs.MAX_BATCH_BYTES
        )
    for _, messages in chosen.topic:
        assert (
            len(messages) <= 10
            and sum(sns.billed_bytes(*one) for one in messages) <= sns.MAX_BATCH_BYTES
        )


def test_the_hybrid_threshold_fits_the_queue() -> None:
    assert 64 * 1024 <= threshold(PRICES) <= MAX_FRAME_BYTES


def test_billed_units() -> None:
    meter = Meter()
    meter.count("sqs", "SendMessageBatch", nbytes=64 * 1024 + 1, messages=2)
    meter.count("s3", "PUT", nbytes=10**9, messages=1)
    meter.count("s3", "DELETE")
    snapshot = meter.snapshot()
    assert snapshot["sqs.SendMessageBatch"]["billed"] == 2 and snapshot["s3.PUT"]["billed"] == 1
    assert abs(PRICES.requests_usd(snapshot) - (2 * 4e-7 + 5e-6)) < 1e-15
    assert abs(PRICES.lambda_usd(10, 2) - (2e-7 + 20 * 1.66667e-5)) < 1e-12
    record = {"rank": 0, "seconds": 1.0, "meter": snapshot, "dropped": 0, "duplicates": 0}
    assert "sqs.SendMessageBatch" in render(report([record, {**record, "rank": 1}], PRICES))
