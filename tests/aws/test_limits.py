"""The table of AWS facts: complete, sourced, and without a copy elsewhere in the package."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_mpi.aws import limits, sns, sqs
from serverless_mpi.channels import object, queue
from serverless_mpi.inference import plan
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import forecast, latency_of

PRICES = Prices.load()
PACKAGE = Path(limits.__file__).parent.parent
# What deals with AWS; elsewhere the same numbers mean something else.
ROOMS = ("aws", "channels", "deploy", "explain.py", "inference", "launch", "metering.py")
ROOMS += ("simulation", "sparse", "stack")
# (file, number) -> why it is not a copy of the limit
EXCEPTIONS = {
    ("channels/object.py", 6 << 20): "bytes that may lie in the emulator",
    ("deploy/deploying.py", 60): "seconds of a minute",
    ("deploy/doctor.py", 60): "tolerated seconds of a clock",
    ("launch/server.py", 900): "the emulator's process imports nothing of this package",
    ("launch/server.py", 5 << 30): "the emulator's process imports nothing of this package",
}
_OPERATORS = {
    ast.LShift: operator.lshift,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
}


def constant(node: ast.AST) -> float | None:
    """The number that an expression of literals is; None if it is anything else."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = constant(node.left), constant(node.right)
        if left is not None and right is not None and abs(left) < 1e12 and 0 < right < 1e6:
            try:
                return _OPERATORS[type(node.op)](left, right)
            except TypeError:  # a shift of a float
                return None
    return None


def numbers(path: Path) -> Iterator[tuple[int, float]]:
    """(line, value) of every number in a file that is not a part of another one."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        value = constant(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.LShift, ast.RShift)):
            waiting += [] if value is not None else [node.left]  # how far it shifts is no limit
        elif value is None:
            waiting += ast.iter_child_nodes(node)
        if value is not None:
            yield getattr(node, "lineno", 0), value


# Round numbers mean much else; a line with one is a copy if it also says what it is.
ROUND = {10, 20, 60, 128, 200, 300, 500, 900, 1000, 64 << 10, 256 << 10, 1 << 20, 5 << 30}
TELLING = re.compile(
    r"quota|sqs|sns|\bs3\b|lambda|\baws\b|publish|billed|vcpu|in flight|long poll|LIMIT_S"
    r"|MAX_(ENTRIES|BATCH|EVENT|RESOURCES)|FILTERS",
    re.IGNORECASE,
)


def facts() -> dict[float, str]:
    """value -> name of each entry whose value cannot well mean anything else."""
    found: dict[float, str] = {}
    for name, limit in limits.all_limits():
        found[limit.value] = name
    for name, figure in limits.AWS.items():
        found[figure.value] = name
    for region, rate in limits.SNS_PUBLISHES_PER_S_IN.items():
        found[rate] = region
    return {value: name for value, name in found.items() if value >= 10}


def test_no_number_of_the_table_is_written_elsewhere() -> None:
    known, copies = facts(), []
    for room in ROOMS:
        root = PACKAGE / room
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            where = path.relative_to(PACKAGE).as_posix()
            if where == "aws/limits.py":
                continue
            lines = path.read_text().splitlines()
            copies += [
                f"{where}:{line}: {value:g} is {known[value]}: {lines[line - 1].strip()}"
                for line, value in numbers(path)
                if value in known
                and (value not in ROUND or TELLING.search(lines[line - 1]))
                and (where, value) not in EXCEPTIONS
            ]
    assert not copies, "\n".join(copies)


def test_a_copy_would_be_found(tmp_path: Path) -> None:
    copy = tmp_path / "copy.py"
    copy.write_text("MOST_MB = 10_240\nTWICE = 2 * PART\nCHUNK = 256 << 10\nx = y >> 20\n")
    found = dict(numbers(copy))
    assert found == {1: 10_240, 2: 2, 3: 256 << 10}
    assert facts()[found[1]] == "LAMBDA_MOST_MB" and facts()[found[3]] == "SNS_MESSAGE_BYTES"


def test_every_entry_has_a_source_a_date_and_a_range_around_its_value() -> None:
    entries: list[limits.Limit | limits.Figure] = [limit for _, limit in limits.all_limits()]
    entries += [figure for _, figure in limits.AWS.items()]
    assert len(entries) > 40
    for entry in entries:
        assert entry.meaning and entry.unit and re.fullmatch(r"20\d\d-\d\d", entry.date), entry
        assert entry.source.startswith(("https://", "estimate", "measured")), entry
        low = entry.value if entry.low is None else entry.low
        high = entry.value if entry.high is None else entry.high
        assert 0 < low <= entry.value <= high, entry
    for _, figure in limits.AWS.items():
        assert {figure.best, figure.worst} == {figure.low, figure.high}
        assert figure.best <= figure.worst or figure.unit != "s", figure


def test_cost_parameters_follow_from_the_figures() -> None:
    published = queue.AWS_FIGURES
    assert (published.latency_s, published.bandwidth_Bps) == pytest.approx((0.04, 6e6))
    assert (published.put_s, published.get_s, published.batch) == pytest.approx((0.001, 0.002, 10))
    stored = object.AWS_FIGURES
    assert (stored.latency_s, stored.put_s, stored.get_s) == pytest.approx((0.15, 0.012, 0.012))
    slower = limits.AWS.values_at(sqs_deliver_s=0.3, s3_put_s=0.4, s3_get_s=0.4)
    assert queue.parameters(slower).latency_s == pytest.approx(0.2425)
    assert object.parameters(slower).latency_s == pytest.approx(0.6)
    assert queue.parameters(limits.AWS) == published
    assert (sqs.MAX_ENTRIES, sns.MAX_BATCH_BYTES) == (10, 256 * 1024)


def test_no_model_is_faster_than_the_network_of_a_function() -> None:
    most = 625e6 / 8
    for figures in (limits.AWS, limits.AWS.values_at(s3_Bps=1e9, sqs_Bps=1e9, sqs_deliver_s=1e-4)):
        assert object.parameters(figures).bandwidth_Bps <= most
        assert queue.parameters(figures).bandwidth_Bps <= most
        assert plan.place("lambda", figures).load_Bps <= most
        model = latency_of(figures, "us-east-1")
        for channel in ("queue", "object", "hybrid"):
            call = forecast("bcast", 1 << 28, 2, channel, model, PRICES)
            assert call.seconds >= (1 << 28) / most
            scattered = forecast("scatter", 1 << 24, 9, channel, model, PRICES)
            assert scattered.seconds >= 8 * (1 << 24) / most
    faster = latency_of(limits.AWS.values_at(network_Bps=4e8), "us-east-1")
    slow = forecast("bcast", 1 << 28, 2, "object", latency_of(limits.AWS, "us-east-1"), PRICES)
    assert forecast("bcast", 1 << 28, 2, "object", faster, PRICES).seconds < slow.seconds


@pytest.mark.parametrize(
    ("region", "rate"), [("us-east-1", 30_000), ("eu-central-1", 1_500), ("sa-east-1", 300)]
)
def test_the_publish_quota_depends_on_the_region(region: str, rate: int) -> None:
    assert latency_of(limits.AWS, region).sns_per_s == limits.publishes_per_s(region) == rate
