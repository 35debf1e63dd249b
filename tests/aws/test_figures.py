"""Files of figures: a round trip, bad input, and figures that hold for something else."""

from __future__ import annotations

import calendar
import json
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_mpi.aws import figures as files
from serverless_mpi.aws.limits import AWS, Figures
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.errors import UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import figures as of_commands
from serverless_mpi.metering import Prices
from serverless_mpi.stack import stored_figures
from tests.harness import smpirun

PROGRAM = (
    "import numpy as np\nfrom mpi4py import MPI\nMPI.COMM_WORLD.Allreduce(np.ones(1), np.ones(1))\n"
)
SLOW = replace(
    AWS.values_at(sqs_deliver_s=0.09),
    stack="smpi",
    region="eu-west-1",
    measured="2026-11-01T12:00:00Z",
    starts={512: (1.5, 0.1)},
)


def test_what_is_written_is_read_again_and_the_rest_is_the_packages() -> None:
    found = files.from_json(files.to_json(SLOW), "x")
    assert found.sqs_deliver_s.value == 0.09 and found.sqs_send_s == AWS.sqs_send_s
    assert found.sqs_deliver_s.source == "measured on stack smpi"
    assert found.starts == SLOW.starts and files.origin(found).endswith("2026-11-01T12:00:00Z")
    assert files.from_json(files.to_json(found), "x") == found
    assert files.from_json(files.to_json(AWS), "x") == AWS


def _with(**changes: object) -> str:
    return json.dumps({**json.loads(files.to_json(SLOW)), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "version 1"),
        (_with(version=2), "version 1"),
        (_with(stack=1), "stack is not a text"),
        (_with(measured="yesterday"), "measured is not a time"),
        (_with(figures=[]), "figures is not a JSON object"),
        (_with(figures={"sqs": [1, 1, 1]}), "has a figure 'sqs'; known are sqs_send_s, "),
        (_with(figures={"sqs_send_s": [1, 1]}), "sqs_send_s is not a list of 3 numbers above 0"),
        (_with(figures={"sqs_send_s": [0, 0, 1]}), "sqs_send_s is not a list of 3 numbers"),
        (_with(figures={"sqs_send_s": [True, 1, 1]}), "sqs_send_s is not a list of 3 numbers"),
        (_with(figures={"sqs_send_s": [float("inf")] * 3}), "sqs_send_s is not a list"),
        (_with(figures={"sqs_send_s": [float("nan")] * 3}), "sqs_send_s is not a list"),
        (_with(figures={"sqs_send_s": [2, 3, 4]}), "low <= value <= high"),
        (_with(starts={"x": [1, 1]}), "starts is not a table by memory"),
        (_with(starts={"512": [1]}), "starts is not a list of 2 numbers"),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        files.load(str(path))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"--figures {path}")


def test_ranks_see_the_figures_of_their_job() -> None:
    spec = JobSpec.new(2, "queue", settings=files.setting(SLOW))
    prices = Prices.load()
    assert spec.settings and files.setting(None) == {}
    costs = [
        QueueChannel.cost_of_job(JobSpec.from_public(spec.public(), rank, spec.key), prices)
        for rank in range(2)
    ]
    assert costs[0] == costs[1] == QueueChannel.cost_by(SLOW, prices)
    assert costs[0] != QueueChannel.cost_of_job(replace(spec, settings={}), prices)


class Bucket:
    """A client of S3 that has one object, or none."""

    class exceptions:  # noqa: N801 - as boto3 has it
        class NoSuchKey(Exception):
            pass

    def __init__(self, body: bytes | None) -> None:
        self._body = body

    def get_object(self, **_: object) -> dict[str, Any]:
        if self._body is None:
            raise self.exceptions.NoSuchKey
        return {"Body": BytesIO(self._body)}


def stack(figures: Figures | bytes | None, changed: str, region: str = "eu-west-1") -> Any:
    """A deployed stack as far as its figures go."""
    body = files.to_json(figures).encode() if isinstance(figures, Figures) else figures
    at = calendar.timegm(time.strptime(changed, "%Y-%m-%dT%H:%M:%SZ"))
    return SimpleNamespace(
        name="smpi",
        endpoint=None,
        region=region,
        bucket="b",
        changed=at,
        client=lambda _: Bucket(body),
    )


BEFORE, AFTER = "2026-10-01T00:00:00Z", "2026-11-02T00:00:00Z"


def test_a_job_uses_the_figures_of_its_stack_if_they_hold(tmp_path: Path) -> None:
    lines: list[str] = []
    held = stored_figures.of_job(None, stack(SLOW, BEFORE), lines.append)
    assert held is not None and held.sqs_deliver_s.value == 0.09 and not lines
    assert stored_figures.of_job(None, stack(None, BEFORE), lines.append) is None and not lines
    for bad, said in (
        (stack(SLOW, AFTER), "before stack smpi was changed (2026-11-02T00:00:00Z): run `smpi cal"),
        (stack(SLOW, BEFORE, "us-east-1"), "measured in eu-west-1, and this is us-east-1"),
        (stack(b"{}", BEFORE), "not a file of figures of version 1"),
    ):
        assert stored_figures.of_job(None, bad, lines.append) is None
        assert len(lines) == 1 and said in lines.pop()
        with pytest.raises(UsageError, match="figures") as refused:
            stored_figures.of_job("stack", bad, lines.append)
        assert said in str(refused.value) and not lines
    with pytest.raises(UsageError, match="stack smpi has none; run `smpi calibrate` first"):
        stored_figures.of_job("stack", stack(None, BEFORE), lines.append)
    path = tmp_path / "figures.json"
    path.write_text(files.to_json(SLOW))
    assert stored_figures.of_job(str(path), stack(None, BEFORE), lines.append) == held
    with pytest.raises(UsageError, match="before stack smpi was changed"):
        stored_figures.of_job(str(path), stack(None, AFTER), lines.append)
    assert of_commands.chosen(None, "smpi", None, "") is None
    assert of_commands.chosen(str(path), "smpi", None, "") == held
    with pytest.raises(UsageError, match="measured in eu-west-1"):
        of_commands.chosen(str(path), "smpi", None, "us-east-1")


def test_simulate_explain_and_choice_follow_a_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(files.to_json(replace(SLOW, region="")))
    words = ("--simulate", "-n", 2, "--channel", "queue", "bcast:8")
    plain, given = smpirun(*words), smpirun("--figures", path, *words)
    assert "by figures measured on stack smpi" in given.stdout
    assert " 0.030 " in plain.stdout and " 0.090 " in given.stdout
    done = smpirun("--figures", path, "--latency", "emulator", *words)
    assert done.returncode == 2 and "omit one" in done.stderr
    done = smpirun("--figures", tmp_path / "none", *words)
    assert done.returncode == 2 and "No such file" in done.stderr


def test_a_local_job_chooses_by_a_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    names = ("sqs_send_s", "sqs_receive_s", "sqs_deliver_s", "sns_publish_s", "sns_deliver_s")
    path.write_text(files.to_json(AWS.exactly(**dict.fromkeys(names, 0.04))))
    program = tmp_path / "prog.py"
    program.write_text(PROGRAM)
    words = ("-n", 4, "--channel", "queue", "--explain", program)
    assert "allreduce_fan" in smpirun(*words).stderr
    done = smpirun("--figures", path, *words)
    assert done.returncode == 0 and "allreduce_doubling" in done.stderr, done.stderr
    assert "by figures of a file" in done.stderr
    done = smpirun("--figures", path, "--region", "eu-west-1", *words)
    assert done.returncode == 0, done.stderr
    path.write_text(files.to_json(SLOW))
    done = smpirun("--figures", path, "--region", "us-west-2", *words)
    assert done.returncode == 2 and "measured in eu-west-1, and this is us-west-2" in done.stderr
