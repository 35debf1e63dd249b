"""Jobs over channel routed between namespaces: which NATs allow links, and what becomes of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.links import laboratory

EXCHANGE = str(Path(__file__).parent / "programs" / "exchange.py")
pytestmark = pytest.mark.skipif(bool(laboratory.missing()), reason=laboratory.missing() or "-")


def run(kind: str, ranks: int, *program: object, options: tuple[str, ...] = ()) -> dict[str, int]:
    """Run a job that must end well; return requests by name of the row of --stats."""
    arguments = ["--nat", kind, "-n", str(ranks), *options, *map(str, program)]
    job = laboratory.enter(arguments)
    assert job.returncode == 0, job.stderr
    if program[0] == EXCHANGE:
        rounds = int(str(program[1]))
        pattern = rf"^rank [0-9]+: {rounds * (ranks - 1)} exchanges, ([0-9]+)$"
        sums = re.findall(pattern, job.stdout, re.MULTILINE)
        assert len(sums) == ranks and len(set(sums)) == 1, job.stdout
    rows = re.findall(r"^(\S+\.\S+) +([0-9,]+) ", job.stderr, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


@pytest.mark.parametrize("kind", ["cone", "open"])
def test_ranks_link(kind: str) -> None:
    rows = run(kind, 3, EXCHANGE, 60, 200, 2)
    assert rows["link.made"] == 6
    assert rows["link.put"] > 300  # of 360, and 4 to 6 per collective
    assert "link.failed" not in rows and "link.broken" not in rows


@pytest.mark.parametrize("kind", ["symmetric", "rewriting"])
def test_ports_that_change_leave_all_on_hybrid(kind: str) -> None:
    rows = run(kind, 2, EXCHANGE, 30, 200)
    assert "link.made" not in rows and "link.put" not in rows
    assert rows["sqs.SendMessageBatch"] >= 30


def test_two_ranks_behind_one_address_stay_on_hybrid() -> None:
    rows = run("shared", 3, EXCHANGE, 60, 200, 1)
    assert rows["link.made"] == 4  # 0 and 2, 1 and 2
    assert rows["sqs.SendMessageBatch"] >= 30


def test_lost_packets_are_sent_again() -> None:
    rows = run("lossy", 2, EXCHANGE, 60, 20_000, 1)
    assert rows["link.made"] == 2 and "link.broken" not in rows


def test_a_link_that_is_cut_in_a_message_loses_nothing() -> None:
    rows = run("cut", 2, EXCHANGE, 40, 40_000, 1, options=("--cut-after", "2000000"))
    assert rows["link.broken"] == 2
    assert rows["link.put"] < 80 and rows["sqs.SendMessageBatch"] > 20
