"""Jobs over channel routed on one machine, as one node and as several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import ROOT, smpirun

EXCHANGE = Path(__file__).parent / "programs" / "exchange.py"


def test_one_node_sends_no_request() -> None:
    job = smpirun("-n", 3, "--channel", "routed", "--stats", "json", EXCHANGE, 20, 3000)
    assert job.returncode == 0, job.stderr
    rows = json.loads(job.stdout.splitlines()[-1])["operations"]
    assert rows["near.put"]["requests"] > 120
    assert "link.put" not in rows and "sqs.SendMessageBatch" not in rows


def test_ranks_of_a_node_and_links_mix() -> None:
    options = ("--channel", "routed", "-ppn", 2, "--stats", "json")
    job = smpirun("-n", 4, *options, EXCHANGE, 40, 3000, 2)
    assert job.returncode == 0, job.stderr
    rows = json.loads(job.stdout.splitlines()[-1])["operations"]
    assert rows["near.put"]["requests"] >= 160
    assert rows["link.made"]["requests"] == 8
    assert rows["link.put"]["requests"] > 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-ppn", 0), "-ppn/--ppn: '0' is not a whole number of at least 1"),
        (("--channel", "hybrid", "-ppn", 2), "-ppn has no effect on channel hybrid"),
        (
            ("--channel", "routed", "-ppn", 1, "--host", "192.0.2.1"),
            "channel routed cannot listen on 192.0.2.1",
        ),
    ],
)
def test_bad_input(options: tuple[object, ...], text: str) -> None:
    job = smpirun("-n", 2, *options, ROOT / "examples" / "ring.py")
    assert job.returncode != 0
    assert text in job.stderr


def test_an_echo_service_that_lies_leaves_all_on_hybrid() -> None:
    options = ("--channel", "routed", "-ppn", 1, "--echo", "http://127.0.0.1:9/", "--stats", "json")
    job = smpirun("-n", 2, *options, EXCHANGE, 5, 100)
    assert job.returncode == 0, job.stderr
    rows = json.loads(job.stdout.splitlines()[-1])["operations"]
    assert "link.put" not in rows and rows["link.no_address"]["requests"] == 2
