"""What is said of collectives: after a job what was chosen and what it costs (--explain), or instead of one (--simulate)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serverless_mpi.collectives.choose import TABLE, name_of
from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import AWS, LATENCIES, SNS_LEAST, SNS_QUOTA, Forecast, Latency, forecast

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_CALL = re.compile(r"([a-z_]+)(?::(\d+) ?([kmg]?b?))?", re.IGNORECASE)
_LARGEST_RUN = 256  # ranks; a larger call that a program made is not played through after it

_HEAD = f"{'collective':<26}{'ranks':>6} {'algorithm':<24}{'rounds':>7}{'messages':>10}{'bytes':>16}{'requests':>10}{'seconds':>10}{'USD':>12}"


def size_of(text: str, unit: str) -> int:
    """Bytes: 8, 64KB, 8MB; a KB is 1024."""
    unit = unit.lower()
    return int(text) * _UNITS[unit if unit.endswith("b") or not unit else unit + "b"]


def shown_size(nbytes: int | None) -> str:
    """The same as text; an object's length is not known."""
    if nbytes is None:
        return "object"
    for unit in ("GB", "MB", "KB"):
        if nbytes and not nbytes % _UNITS[unit.lower()]:
            return f"{nbytes // _UNITS[unit.lower()]}{unit}"
    return f"{nbytes}B"


def _row(one: Forecast, label: str) -> str:
    requests = sum(row["requests"] for row in one.requests.values())
    return (
        f"{label:<26}{one.size:>6} {one.algorithm:<24}{one.rounds:>7,}{one.messages:>10,}{one.sent:>16,}{requests:>10,}"
        f"{one.seconds:>10.3f}{one.usd:>12.8f}"
    )


def _in(region: str, latency: Latency) -> Latency:
    return replace(latency, sns_per_s=SNS_QUOTA.get(region, SNS_LEAST)) if latency.aws else latency


def simulate(calls: Sequence[str], ranks: int, channel: str, latency: str, region: str, prices: Prices) -> Iterable[str]:
    """Lines that say what each of `calls` ("allreduce:8MB") takes.

    Raises
    ------
    UsageError
        A call, a channel or a latency that is not known.
    """
    if latency not in LATENCIES:
        raise UsageError(f"--latency {latency}: known are {', '.join(LATENCIES)}")
    model = _in(region, LATENCIES[latency])
    if not calls:
        raise UsageError("--simulate takes collectives and the bytes of a blob, as in: smpirun --simulate -n 1000 allreduce:8MB barrier")
    asked = []
    for call in calls:
        found = _CALL.fullmatch(call)
        if found is None or found.group(1).lower() not in TABLE:
            raise UsageError(
                f"--simulate {call}: not a collective and the bytes of a blob, as allreduce:8MB. It plays the communication of"
                " collectives alone: a program would have to compute on every rank"
            )
        asked.append((call, found.group(1).lower(), size_of(found.group(2), found.group(3)) if found.group(2) else 0))
    yield f"{ranks} ranks over {channel}, latency {latency}, {region}; a model, see docs/collectives.md"
    if latency == "aws":
        waves = (ranks - 1) // model.starts_per_10_s
        usd = ranks * prices.usd_per_request["lambda"]
        yield f"start of {ranks} functions: about {10 * waves + model.start_s:.1f} s, {usd:.6f} USD, and their seconds by memory"
    yield _HEAD
    for call, operation, nbytes in asked:
        one = forecast(operation, nbytes, ranks, channel, model, prices)
        yield _row(one, call)
        for name, row in sorted(one.requests.items()):
            yield f"    {name:<28}{row['requests']:>12,} requests{row['billed']:>12,} billed{row['messages']:>12,} messages"


def explain(records: Iterable[Mapping[str, Any]], channel: str, region: str, prices: Prices) -> Iterable[str]:
    """Lines that say which algorithm each kind of call of a job took, and what one such call costs on AWS by the model."""
    calls: Counter[tuple[str, int, int | None, str]] = Counter()
    for record in records:
        for operation, size, nbytes, algorithm, count in record.get("collectives", ()):
            calls[operation, size, nbytes, algorithm] += count
    yield f"collectives over {channel}, each call as the model forecasts it on AWS in {region}:"
    yield "   calls " + _HEAD
    for (operation, size, nbytes, algorithm), count in sorted(calls.items(), key=lambda one: (one[0][0], one[0][1], one[0][2] or -1)):
        label = f"{operation}:{shown_size(nbytes)}"
        rows = {name_of(row): row for _, row in TABLE[operation]}
        times = f"{-(-count // size):>8,} "
        try:
            if size > _LARGEST_RUN:
                raise UsageError("too large to be played through after a job")
            yield times + _row(forecast(operation, nbytes, size, channel, _in(region, AWS), prices, rows[algorithm]), label)
        except UsageError:  # a kind of call, or a channel, of which there is no model
            yield f"{times}{label:<26}{size:>6} {algorithm:<24}{'not forecast':>17}"
