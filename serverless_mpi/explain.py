"""What is said of collectives: after a job what was chosen and what it costs (--explain), or instead of one (--simulate)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from serverless_mpi.collectives.choose import Algorithm, find
from serverless_mpi.collectives.operations import OPERATIONS
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import AWS, LATENCIES, Forecast, forecast, in_region

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_CALL = re.compile(r"([a-z_]+)(?::(\d+) ?([kmg]?b?))?", re.IGNORECASE)
_LARGEST_RUN = 256  # ranks; a larger call that a program made is not played through after it

_HEAD = f"{'collective':<26}{'ranks':>6} {'algorithm':<24}{'rounds':>7}{'messages':>10}{'bytes':>16}{'requests':>10}{'seconds':>10}{'USD':>12}"


def size_of(text: str, unit: str) -> int:
    """Bytes: 8, 64KB, 8MB; a KB is 1024."""
    unit = unit.lower()
    return int(text) * _UNITS[unit if unit.endswith("b") or not unit else unit + "b"]


def shown_size(nbytes: int) -> str:
    """The same as text."""
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


def simulate(
    calls: Sequence[str],
    ranks: int,
    channel: str,
    latency: str,
    region: str,
    prices: Prices,
    algorithms: Mapping[str, Algorithm] = MappingProxyType({}),
) -> Iterable[str]:
    """Lines that say what each of `calls` ("allreduce:8MB") takes.

    Raises
    ------
    UsageError
        A call, a channel or a latency that is not known.
    """
    if latency not in LATENCIES:
        raise UsageError(f"--latency {latency}: known are {', '.join(LATENCIES)}")
    model = in_region(LATENCIES[latency], region)
    if not calls:
        raise UsageError(
            "--simulate takes collectives and the bytes of a blob, as in: smpirun --simulate -n 1000 allreduce:8MB barrier"
        )
    asked = []
    for call in calls:
        found = _CALL.fullmatch(call)
        if (
            found is None
            or found.group(1).lower() not in OPERATIONS
            or not OPERATIONS[found.group(1).lower()].modelled
        ):
            raise UsageError(
                f"--simulate {call}: not a collective and the bytes of a blob, as allreduce:8MB. It plays the communication of"
                " collectives alone: a program would have to compute on every rank"
            )
        asked.append(
            (
                call,
                found.group(1).lower(),
                size_of(found.group(2), found.group(3)) if found.group(2) else 0,
            )
        )
    yield f"{ranks} ranks over {channel}, latency {latency}, {region}; a model, see docs/collectives.md"
    if latency == "aws":
        waves = (ranks - 1) // model.starts_per_10_s
        usd = ranks * prices.usd_per_request["lambda"]
        yield f"start of {ranks} functions: about {10 * waves + model.start_s:.1f} s, {usd:.6f} USD, and their seconds by memory"
    yield _HEAD
    for call, operation, nbytes in asked:
        one = forecast(operation, nbytes, ranks, channel, model, prices, algorithms.get(operation))
        yield _row(one, call)
        for name, row in sorted(one.requests.items()):
            yield f"    {name:<28}{row['requests']:>12,} requests{row['billed']:>12,} billed{row['messages']:>12,} messages"


@dataclass
class _Calls:
    """Calls of one kind, as ranks tell of them: the blobs they gave, and each one's edges where it has neighbours."""

    calls: int = 0
    blobs: int = 0
    nbytes: int = 0
    edges: dict[int, Any] = field(default_factory=dict)

    @property
    def mean(self) -> int:
        """Bytes of a blob."""
        return round(self.nbytes / self.blobs) if self.blobs else 0


def _collected(records: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], _Calls]:
    """(operation, ranks, bytes of a blob where ranks know them, algorithm, layout or the communicator of neighbours) -> its calls."""
    found: dict[tuple[Any, ...], _Calls] = defaultdict(_Calls)
    for record in records:
        for operation, size, nbytes, algorithm, layout, calls, blobs, total in record.get(
            "collectives", ()
        ):
            about: Any = None if layout is None else tuple(layout)
            if OPERATIONS[operation].neighbours:
                about, rank, *edges = layout
                found[operation, size, nbytes, algorithm, about].edges[rank] = edges
            one = found[operation, size, nbytes, algorithm, about]
            one.calls, one.blobs, one.nbytes = (
                one.calls + calls,
                one.blobs + blobs,
                one.nbytes + total,
            )
    return found


def explain(
    records: Iterable[Mapping[str, Any]], channel: str, region: str, prices: Prices
) -> Iterable[str]:
    """Lines that say which algorithm each kind of call of a job took, and what one such call costs on AWS by the model."""
    yield f"collectives over {channel}, each call as the model forecasts it on AWS in {region}; bytes of a blob are a mean where they differ:"
    yield "   calls " + _HEAD
    rows = []
    for (operation, size, nbytes, algorithm, layout), one in _collected(records).items():
        blob = one.mean if nbytes is None else nbytes
        rows.append((operation, size, blob, algorithm, -(-one.calls // size), layout, one))
    for operation, size, blob, algorithm, count, layout, one in sorted(
        rows, key=lambda row: row[:5]
    ):
        label, times = f"{operation}:{shown_size(blob)}", f"{count:>8,} "
        try:
            if size > _LARGEST_RUN:
                raise UsageError("too large to be played through after a job")
            if OPERATIONS[operation].neighbours:
                layout = tuple(one.edges.get(rank, ([], [])) for rank in range(size))
            made = forecast(
                operation,
                blob,
                size,
                channel,
                in_region(AWS, region),
                prices,
                find(operation, algorithm),
                layout,
            )
            yield times + _row(made, label)
        except (
            UsageError,
            JobError,
        ):  # see above; a channel of which there is no model; a rank left no record of its edges
            yield f"{times}{label:<26}{size:>6} {algorithm:<24}{'not forecast':>17}"
