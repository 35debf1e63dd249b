"""What smpirun says of collectives: --explain after a job, --simulate instead of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_mpi.errors import UsageError
from serverless_mpi.explain import explain, shown_size, simulate, size_of
from serverless_mpi.metering import Prices
from tests.harness import smpirun

PRICES = Prices.load()


def test_sizes() -> None:
    assert [size_of(*pair) for pair in (("8", ""), ("64", "KB"), ("8", "m"), ("1", "gb"))] == [8, 65536, 8 << 20, 1 << 30]
    assert [shown_size(n) for n in (None, 0, 8, 65536, 8 << 20, 1000)] == ["object", "0B", "8B", "64KB", "8MB", "1000B"]


def test_simulate_says_requests_seconds_and_dollars() -> None:
    lines = list(simulate(["allreduce:1KB", "barrier"], 30, "queue", "aws", "eu-central-1", PRICES))
    assert lines[0].startswith("30 ranks over queue, latency aws, eu-central-1") and "30 functions" in lines[1]
    (allreduce,) = [line.split() for line in lines if line.startswith("allreduce")]
    assert allreduce[1:3] == ["30", "allreduce_fan"] and float(allreduce[-2]) > 0.1 and float(allreduce[-1]) > 0
    assert any("sns.Publish" in line for line in lines)


@pytest.mark.parametrize("call", ["prog.py", "allreduce:much", "barier"])
def test_what_cannot_be_simulated_is_said(call: str) -> None:
    with pytest.raises(UsageError, match="not a collective"):
        list(simulate([call], 4, "queue", "aws", "us-east-1", PRICES))
    with pytest.raises(UsageError, match="known are aws, emulator"):
        list(simulate(["barrier"], 4, "queue", "mars", "us-east-1", PRICES))


def test_explain_counts_a_call_once_whatever_the_ranks() -> None:
    record = {"collectives": [["bcast", 2, 8, "fan_out", 3], ["inter_bcast", 2, None, "bcast_fan", 1]]}
    lines = [line.split() for line in explain([record, record], "hybrid", "us-east-1", PRICES)]
    (bcast,) = [line for line in lines if "bcast:8B" in line]
    assert bcast[:4] == ["3", "bcast:8B", "2", "fan_out"] and bcast[4:6] == ["1", "1"]
    assert any("not" in line and "inter_bcast:object" in line for line in lines)


def test_on_the_command_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from serverless_mpi import MPI\nMPI.COMM_WORLD.barrier()\n")
    done = smpirun("-n", 3, "--channel", "direct", "--explain", program)
    assert done.returncode == 0 and "barrier:0B" in done.stderr
    done = smpirun("--simulate", "-n", 9, "--channel", "object", "bcast:8MB")
    assert done.returncode == 0 and "fan_out" in done.stdout and "s3.PUT" in done.stdout
    done = smpirun("--simulate", "-n", 9, "prog.py")
    assert done.returncode == 2 and "not a collective" in done.stderr
