"""What is dealt is one PUT, and each reader's one GET, or two where its part lies far behind; nobody LISTs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serverless_mpi import channels
from serverless_mpi.channels.base import SCATTERED, ExpectedFrame, FrameName, OutgoingFrame
from serverless_mpi.channels.hybrid import threshold, together
from serverless_mpi.channels.object import locate, table
from serverless_mpi.channels.queue import MAX_FRAME_BYTES
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter, Prices

READERS = (1, 2, 3)


def scattered(*lengths: int) -> OutgoingFrame:
    own = tuple(
        (memoryview(bytes([rank]) * length),) for rank, length in zip(READERS, lengths, strict=True)
    )
    return OutgoingFrame(READERS, FrameName(2, 7, 0, SCATTERED, 5, 0, 0), (), own)


def test_the_table_names_each_readers_place() -> None:
    frame = scattered(10, 0, 30)
    start = len(table(frame))
    found = [locate(memoryview(table(frame)), rank) for rank in (*READERS, 9)]
    end = start + 40
    assert found == [(start, 10, end), (start + 10, 0, end), (start + 10, 30, end), (start, 0, end)]
    assert locate(memoryview(table(frame))[:-1], 1) is None


@pytest.mark.parametrize(
    "name, lengths, expected",
    [
        ("object", (10, 20_000, 30_000), {"s3.PUT": 1, "s3.GET": 3}),
        ("object", (10, 200_000, 30_000), {"s3.PUT": 1, "s3.GET": 5}),
        ("hybrid", (300_000, 200_000, 900_000), {"s3.PUT": 1, "s3.GET": 3, "sns.Publish": 1}),
        ("hybrid", (300, 200, 400), {"sqs.SendMessageBatch": 3}),
    ],
)
def test_requests(
    name: str, lengths: tuple[int, ...], expected: dict[str, int], ministack_endpoint: str
) -> None:
    kind = channels.load(name)
    spec = JobSpec.new(4, name, endpoint=ministack_endpoint)
    spec = replace(spec, settings=kind.provision(spec))
    meters = [Meter() for _ in range(4)]
    ranks = [kind(spec.with_rank(rank), meters[rank]) for rank in range(4)]
    frame = scattered(*lengths)
    try:
        ranks[0].put([frame] if ranks[0].figures.ranges else frame.split_per_reader())
        for rank, length in zip(READERS, lengths, strict=True):
            (got,) = ranks[rank].get(30.0, lambda: [ExpectedFrame(2, 7, 0, SCATTERED, 5, 0, 0)])
            assert bytes(got.data) == bytes([rank]) * length
        counted = {
            key: row["requests"] for meter in meters for key, row in meter.snapshot().items()
        }
        for meter in meters[1:]:
            assert not {"s3.PUT", "s3.LIST"} & set(meter.snapshot())
        total = {
            key: sum(meter.snapshot().get(key, {}).get("requests", 0) for meter in meters)
            for key in counted
        }
        assert {
            key: count for key, count in total.items() if key != "sqs.ReceiveMessage"
        } == expected
    finally:
        for channel in ranks:
            channel.close()
        kind.destroy(spec)


def test_hybrid_deals_one_object_only_where_that_is_cheaper() -> None:
    prices = Prices.load()
    assert not together(scattered(60_000, 60_000, 60_000), prices)
    assert together(scattered(300_000, 300_000, 300_000), prices)
    frame = scattered(180_000, 180_000, 180_000)  # an object of S3 Express costs a quarter
    assert not together(frame, prices) and together(frame, prices, "s3express")


def test_the_threshold_of_a_store_follows_from_its_prices() -> None:
    prices = Prices.load()
    dear = {**prices.usd_per_request, "sqs": 1e-6}
    assert threshold(replace(prices, usd_per_request=dear)) == MAX_FRAME_BYTES
    assert threshold(replace(prices, usd_per_request=dear), "s3express") == 65536
    cheap = {**prices.usd_per_request, "sqs": 1e-7}  # then bytes cost more there than chunks
    assert threshold(replace(prices, usd_per_request=cheap), "s3express") == MAX_FRAME_BYTES
