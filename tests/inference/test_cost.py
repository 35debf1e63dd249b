"""The paper's model gives the paper's dollars; the billed model counts every billed request."""

from __future__ import annotations

import csv

import pytest

from serverless_mpi.inference.cost import BilledModel, PaperModel, Use, published
from serverless_mpi.metering import Meter, Prices
from tests.harness import DATA


def test_all_published_runs_are_reproduced() -> None:
    if not (DATA / "fsd_published_costs.csv").exists():
        pytest.skip(f"{DATA} has no published runs")
    metrics = {}
    for channel in ("queue", "object"):
        with (DATA / f"fsd_published_{channel}_metrics.csv").open() as file:
            metrics.update({row["CONFIG"]: row for row in csv.DictReader(file)})
    with (DATA / "fsd_published_costs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 32
    for run in runs:
        bill = PaperModel().bill(published(metrics[run["config"]], float(run["lambda_mb"])))
        for name in ("lambda_usd", "sns_usd", "sqs_usd", "s3_usd", "total_usd"):
            assert getattr(bill, name) == pytest.approx(float(run[name] or 0), rel=1e-3), (
                run["config"],
                name,
            )


def test_the_papers_formula_by_hand() -> None:
    meter = Meter()
    meter.count("sns", "PublishBatch", 10, 1_000_000)  # 100,000 bytes each: two units of 64,000
    meter.count("sqs", "ReceiveMessage", 100)
    meter.count("sqs", "DeleteMessageBatch", 50)  # the paper counts none
    for operation, calls in (("PUT", 3), ("GET", 5), ("LIST", 7)):
        meter.count("s3", operation, calls)
    bill = PaperModel().bill(Use(8, 256, 100.0, meter.snapshot(), coordinators=1))
    assert bill.lambda_usd == pytest.approx(9 * 2e-7 + 100 * 2 * 2.1e-6)
    assert bill.sns_usd == pytest.approx(20 * 5e-7 + 1e6 * 9e-11)
    assert bill.sqs_usd == pytest.approx(100 * 4e-7)
    assert bill.s3_usd == pytest.approx(10 * 5.3e-6 + 5 * 4.2e-7)
    assert bill.total_usd == pytest.approx(bill.lambda_usd + bill.communication_usd)


def test_every_billed_request_counts() -> None:
    prices = Prices(
        "2026-01-01",
        "nowhere",
        {"sqs": 1.0, "sns": 2.0, "s3.PUT": 4.0, "s3.DELETE": 0.0, "lambda": 8.0},
        {"arm64": 16.0},
    )
    meter = Meter()
    meter.count("sqs", "ReceiveMessage", 1, 0)  # an empty receive
    meter.count("sqs", "ReceiveMessage", 1, 65537)  # two chunks
    meter.count("sqs", "DeleteMessageBatch", 1, 300)
    meter.count("sns", "PublishBatch", 1, 200_000)  # four chunks
    meter.count("s3", "PUT", 3, 10_000_000)
    meter.count("s3", "DELETE", 3)
    meter.count("direct", "frame", 3, 100)  # no service of AWS
    bill = BilledModel(prices, "arm64").bill(Use(2, 512, 3.0, meter.snapshot()))
    assert (bill.sqs_usd, bill.sns_usd, bill.s3_usd, bill.lambda_usd) == (
        4,
        8,
        12,
        2 * 8 + 3 * 0.5 * 16,
    )


def test_an_invalid_row_of_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="METRIC_S3_NUM_WRITES"):
        published({"METRIC_LAMBDA_RUNTIME": "1"}, 1000)
