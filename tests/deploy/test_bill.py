"""The bill of a job: every priced thing is in it once, and it is said to be an estimate."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from serverless_mpi.metering import Meter, Prices
from serverless_mpi.stack import bill

PRICES = Prices.load()
KB, GB = 1 << 10, 1 << 30


def rank(**more: Any) -> dict[str, Any]:
    row = {"requests": 2, "billed": 2, "nbytes": GB, "messages": 2}
    facts = {"seconds": 10.0, "cold": True, "init_s": 0.5, "peak_mb": 100, "platform": {}}
    return {**facts, "mpi": {"meter": {"s3.PUT": row}, "dropped": 1, "duplicates": 2}, **more}


def test_every_priced_thing_is_in_the_sum() -> None:
    launcher = {
        "sqs.ReceiveMessage": {"requests": 3, "billed": 4, "nbytes": GB // 2, "messages": 9}
    }
    ranks = [rank(restored=True, cold=True), rank(restored=False), {}]
    found = bill.summary(ranks, launcher, 2048, "x86_64", PRICES)
    assert found["lambda_usd"] == pytest.approx(2 * 10 * 2 * 1.66667e-5)
    assert found["requests_usd"] == pytest.approx(4 * 5e-6 + 4 * 4e-7)
    assert found["snapstart_usd"] == pytest.approx(2 * 1.397998e-4)  # one restore of 2 GB
    assert found["storage_usd"] == pytest.approx(2 * 0.023 * 10 / (30 * 86400))
    assert found["transfer_usd"] == pytest.approx(0.5 * 0.09)
    parts = [
        found[f"{part}_usd"] for part in ("lambda", "requests", "snapstart", "storage", "transfer")
    ]
    assert found["usd"] == pytest.approx(sum(parts))
    assert (found["ranks"], found["heard"], found["cold"], found["restored"]) == (3, 2, 2, 1)
    assert (found["dropped"], found["duplicates"]) == (2, 4)
    text = bill.render(found)
    for words in (
        "an estimate by the prices of",
        "for restored snapshots",
        "for transfer",
        "snapshot",
    ):
        assert words in text
    assert "1 ranks did not report how long they ran" in text
    json.dumps(found)


def test_nothing_is_nothing() -> None:
    found = bill.summary([{}], {}, 1769, "arm64", PRICES)
    assert found["usd"] == 0 and "0.000000 for requests, 0.000000 in all" in bill.render(found)


@pytest.mark.parametrize(
    "size, requests",
    [(0, 1), (256 * KB, 1), (256 * KB + 1, 2), (320 * KB, 2), (321 * KB, 3), (1 << 20, 13)],
)
def test_a_large_event_is_billed_in_chunks(size: int, requests: int) -> None:
    meter = Meter()
    meter.count("lambda", "Invoke", nbytes=size, messages=1)
    row = meter.snapshot()["lambda.Invoke"]
    assert (row["requests"], row["billed"]) == (1, requests)


def test_the_query_asks_for_the_day_of_the_job_and_the_stacks_tag() -> None:
    words = shlex.split(bill.cost_explorer_query("smpi", 1_700_000_000.0))  # 2023-11-14 UTC
    assert words[:3] == ["aws", "ce", "get-cost-and-usage"]
    assert "Start=2023-11-14,End=2023-11-15" in words
    tagged = json.loads(words[words.index("--filter") + 1])
    assert tagged == {"Tags": {"Key": "serverless-mpi", "Values": ["smpi"]}}
