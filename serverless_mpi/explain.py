"""Reports about collectives: what a job chose and what it costs, or a simulation instead of a job.

`explain` (smpirun --explain) prints which algorithm each kind of call of a job took, with the cost
of such a call on AWS by the model. `simulate` (smpirun --simulate) plays calls of any number of
ranks without starting one. Both play the real generators (simulation/).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from serverless_mpi.aws.figures import origin
from serverless_mpi.aws.limits import Figures
from serverless_mpi.collectives.choose import Algorithm, find
from serverless_mpi.collectives.operations import OPERATIONS
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import AWS, LATENCIES, Forecast, forecast, in_region, latency_of

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_CALL = re.compile(r"([a-z_]+)(?::(\d+) ?([kmg]?b?))?", re.IGNORECASE)
_LARGEST_RUN = 256  # ranks of a call that is still played after a job: it takes seconds beyond

_HEAD = (
    f"{'collective':<26}{'ranks':>6} {'algorithm':<24}{'rounds':>7}{'messages':>10}"
    f"{'bytes':>16}{'requests':>10}{'seconds':>10}{'USD':>12}"
)


def size_of(text: str, unit: str) -> int:
    """Return a size in bytes.

    Parameters
    ----------
    text
        The number, in decimal digits.
    unit
        "", B, KB, MB or GB in any case, with or without the B; a KB is 1024 bytes.
    """
    unit = unit.lower()
    return int(text) * _UNITS[unit if unit.endswith("b") or not unit else unit + "b"]


def shown_size(nbytes: int) -> str:
    """Return a size as a number with the largest unit that divides it, as "8MB".

    Parameters
    ----------
    nbytes
        The size in bytes.
    """
    for unit in ("GB", "MB", "KB"):
        if nbytes and not nbytes % _UNITS[unit.lower()]:
            return f"{nbytes // _UNITS[unit.lower()]}{unit}"
    return f"{nbytes}B"


def _row(cost: Forecast, label: str) -> str:
    """Return a line of the table whose head is `_HEAD`."""
    requests = sum(row["requests"] for row in cost.requests.values())
    return (
        f"{label:<26}{cost.size:>6} {cost.algorithm:<24}{cost.rounds:>7,}{cost.messages:>10,}"
        f"{cost.sent:>16,}{requests:>10,}{cost.seconds:>10.3f}{cost.usd:>12.8f}"
    )


def simulate(
    calls: Sequence[str],
    ranks: int,
    channel: str,
    latency: str,
    region: str,
    prices: Prices,
    algorithms: Mapping[str, Algorithm] = MappingProxyType({}),
    figures: Figures | None = None,
    ppn: int | None = None,
) -> Iterable[str]:
    """Yield what each of `calls` costs on a model.

    Parameters
    ----------
    calls
        Operations with the bytes of a blob, such as "allreduce:8MB"; without bytes, 0.
    ranks
        Ranks of each call.
    channel
        Name of a channel that has a model.
    latency
        Name in `simulation.LATENCIES`.
    region
        AWS region whose quotas the model uses.
    prices
        Prices of the services.
    algorithms
        Operation -> the algorithm to play instead of the one that would be chosen.
    figures
        Figures of AWS to use instead of the package's, with latency "aws".
    ppn
        Ranks of each node; None if all are on one node.

    Yields
    ------
    str
        A line of a table, and a line for each kind of request.

    Raises
    ------
    UsageError
        A call, a channel or a latency that does not exist.
    """
    if latency not in LATENCIES:
        raise UsageError(f"--latency {latency}: known are {', '.join(LATENCIES)}")
    model = in_region(LATENCIES[latency], region)
    if figures is not None:
        if not model.aws:
            raise UsageError(f"--figures are of AWS, and --latency {latency} is not: omit one")
        model = latency_of(figures, region, model.store)
    if not calls:
        raise UsageError(
            "--simulate takes collectives and the bytes of a blob, as in:"
            " smpirun --simulate -n 1000 allreduce:8MB barrier"
        )
    parsed = [_parsed(call) for call in calls]
    yield (
        f"{ranks} ranks over {channel}, latency {latency}, {region};"
        " a model, see docs/collectives.md"
    )
    if figures is not None:
        yield f"by {origin(figures)}"
    if model.aws:
        usd = ranks * prices.usd_per_request["lambda"]
        waves = (ranks - 1) // model.starts_per_10_s  # AWS starts functions at a limited rate
        yield _start_line(ranks, 10 * waves + model.start_s, usd)
    yield _HEAD
    nodes = tuple(rank // ppn for rank in range(ranks)) if ppn and ppn < ranks else ()
    for call, (operation, nbytes) in zip(calls, parsed, strict=True):
        chosen = algorithms.get(operation)
        cost = forecast(operation, nbytes, ranks, channel, model, prices, chosen, nodes=nodes)
        yield _row(cost, call)
        yield from _request_lines(cost)


def _start_line(ranks: int, seconds: float, usd: float) -> str:
    return (
        f"start of {ranks} functions: about {seconds:.1f} s,"
        f" {usd:.6f} USD, and their run time, priced by memory"
    )


def _request_lines(cost: Forecast) -> Iterator[str]:
    """Yield a line for each kind of request of a call."""
    for name, row in sorted(cost.requests.items()):
        yield (
            f"    {name:<28}{row['requests']:>12,} requests{row['billed']:>12,} billed"
            f"{row['messages']:>12,} messages"
        )


def _parsed(call: str) -> tuple[str, int]:
    """Return the operation and the bytes of a blob that a word such as "allreduce:8MB" names."""
    match = _CALL.fullmatch(call)
    operation = match.group(1).lower() if match else ""
    if match is None or operation not in OPERATIONS or not OPERATIONS[operation].modelled:
        raise UsageError(
            f"--simulate {call}: not a collective and the bytes of a blob, as allreduce:8MB. It"
            " plays only the communication of collectives: a program would have to compute on"
            " every rank"
        )
    return operation, size_of(match.group(2), match.group(3)) if match.group(2) else 0


@dataclass
class _Calls:
    """Calls of one kind: their number, the blobs of all ranks, and the edges of each rank."""

    calls: int = 0
    blobs: int = 0
    nbytes: int = 0
    edges: dict[int, Any] = field(default_factory=dict)

    @property
    def mean(self) -> int:
        """Mean bytes of a blob."""
        return round(self.nbytes / self.blobs) if self.blobs else 0


def _collected(records: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], _Calls]:
    """Return calls by operation, ranks, bytes of a blob (None if they differ), algorithm, layout.

    In the key of a call with neighbours, the communicator stands for the layout.
    """
    kinds: dict[tuple[Any, ...], _Calls] = defaultdict(_Calls)
    for record in records:
        for row in record.get("collectives", ()):
            operation, size, nbytes, algorithm, layout, calls, blobs, total = row
            about: Any = None if layout is None else tuple(layout)
            # Each rank reports its own edges, so the calls of a communicator are joined.
            if OPERATIONS[operation].neighbours:
                about, rank, *edges = layout
                kinds[operation, size, nbytes, algorithm, about].edges[rank] = edges
            kind = kinds[operation, size, nbytes, algorithm, about]
            kind.calls += calls
            kind.blobs += blobs
            kind.nbytes += total
    return kinds


def explain(
    records: Iterable[Mapping[str, Any]],
    channel: str,
    region: str,
    prices: Prices,
    figures: Figures | None = None,
) -> Iterable[str]:
    """Yield which algorithm each kind of call of a job took, and what such a call costs on AWS.

    Parameters
    ----------
    records
        What the ranks report at their end: one mapping per rank, of which "collectives" is read.
    channel
        Name of the job's channel; one without a model is listed without costs.
    region
        AWS region whose quotas the model uses.
    prices
        Prices of the services.
    figures
        The job's figures of AWS, if it had its own.

    Yields
    ------
    str
        A line of a table.
    """
    model = in_region(AWS, region) if figures is None else latency_of(figures, region)
    yield (
        f"collectives over {channel}, each call as the model forecasts it on AWS in {region};"
        " bytes of a blob are a mean where they differ:"
    )
    if figures is not None:
        yield f"by {origin(figures)}"
    yield "   calls " + _HEAD
    rows = []
    for (operation, size, nbytes, algorithm, layout), kind in _collected(records).items():
        blob = kind.mean if nbytes is None else nbytes
        rows.append((operation, size, blob, algorithm, -(-kind.calls // size), layout, kind))
    for operation, size, blob, algorithm, count, layout, kind in sorted(
        rows, key=lambda row: row[:5]
    ):
        label, times = f"{operation}:{shown_size(blob)}", f"{count:>8,} "
        if OPERATIONS[operation].neighbours:
            layout = tuple(kind.edges.get(rank, ([], [])) for rank in range(size))
        try:
            if size > _LARGEST_RUN:
                raise UsageError("too large to be played after a job")
            chosen = find(operation, algorithm)
            nodes = tuple(layout) if chosen.placed else ()
            cost = forecast(operation, blob, size, channel, model, prices, chosen, layout, nodes)
        # a channel without a model; or a rank that left no record of its edges, which deadlocks
        except (UsageError, JobError):
            yield f"{times}{label:<26}{size:>6} {algorithm:<24}{'not forecast':>17}"
        else:
            yield times + _row(cost, label)
