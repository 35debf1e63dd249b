"""Reports of a run, by layer and by worker: text, JSON, and (in `page`) a page with plots.

`priced` makes a `RunRecord` of what the workers measured; everything else here shows one. How a
record is stored and checked is in `records`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.aws import limits
from serverless_mpi.errors import UsageError
from serverless_mpi.inference import files
from serverless_mpi.inference.cost import BilledModel, Use
from serverless_mpi.inference.records import (
    ACTIVE,
    COUNTS,
    SECONDS,
    SERVICES,
    JobFacts,
    ModelFacts,
    PriceFacts,
    RunRecord,
    WorkerRecord,
)
from serverless_mpi.metering import Prices, merge

# one vCPU of Lambda: runs elsewhere are priced as functions of this size
DEFAULT_MEMORY_MB = limits.LAMBDA_VCPU_MB.value
SUFFIXES = (".json", ".html", ".txt")


def priced(
    model: ModelFacts,
    job: JobFacts,
    workers: Sequence[WorkerRecord],
    categories: int,
    prices: str | None = None,
) -> RunRecord:
    """Return the record of a run with its bill.

    The bill has the requests that were counted, and functions that ran as long as the workers did.

    Parameters
    ----------
    model, job, workers
        What ran, and what each worker measured.
    categories
        Images with an active output.
    prices
        File of a price table; None for the package's.
    """
    table = Prices.load(prices)
    memory_mb = job.memory_mb or DEFAULT_MEMORY_MB
    seconds = sum(worker.load_s + worker.seconds for worker in workers)
    use = Use(job.ranks, memory_mb, seconds, _requests(workers))
    bill = BilledModel(table).bill(use)
    facts = PriceFacts(table.dated, table.region, memory_mb)
    return RunRecord(model, job, tuple(workers), bill, facts, categories)


def _requests(workers: Sequence[WorkerRecord]) -> dict[str, dict[str, int]]:
    return merge([{name: dict(row) for name, row in worker.requests.items()} for worker in workers])


def read(path: str | Path) -> RunRecord:
    """Return the record in a JSON file.

    Raises
    ------
    UsageError
        The file does not exist, or is not the record of a run in this format.
    """
    try:
        with files.opened(path) as source:
            return RunRecord.from_json(json.loads(source.file.read(source.size)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{path} is not a report of `smpi-infer run --report FILE.json`: {reason}"
        ) from error


def by_layer(record: RunRecord, column: str) -> NDArray[np.float64]:
    """Return one of `records.COLUMNS` as an array of shape (workers, layers)."""
    return np.array([worker.layers[column] for worker in record.workers], float)


def check_path(path: str) -> None:
    """Raise UsageError unless its suffix says what to write."""
    if not path.endswith(SUFFIXES):
        raise UsageError(f"{path}: a report's name ends with {', '.join(SUFFIXES)}")


def rendered(path: str, record: RunRecord) -> bytes:
    """The report as a file of that name has it."""
    if path.endswith(".json"):
        return json.dumps(record.to_json()).encode() + b"\n"
    if path.endswith(".html"):
        from serverless_mpi.inference import page

        return page.html(record).encode()
    return text(record).encode() + b"\n"


def title(record: RunRecord) -> str:
    """One line: what ran, how."""
    net, job = record.model, record.job
    grid = f"{job.parts} part{'s' * (job.parts > 1)}"
    if job.replicas > 1:
        grid = f"{job.replicas} replicas x {grid}"
    cut = f", {job.method} partition" if job.parts > 1 else ""
    return (
        f"{net.name} network of {net.neurons:,} neurons, {net.layers:,} layers; {job.samples:,} "
        "images; "
        f"{grid} over {job.channel}{cut}"
    )


def seconds_of(record: RunRecord) -> float:
    """From the first layer to the answer, of the slowest worker."""
    return float(max(worker.seconds for worker in record.workers))


def rate(record: RunRecord) -> float:
    """Nonzeros times samples in a second, as the Graph Challenge counts."""
    return float(record.model.nonzeros * record.job.samples / max(seconds_of(record), 1e-9))


def bill_line(record: RunRecord) -> str:
    """Dollars by service."""
    bill, prices = record.bill, record.prices
    shares = ", ".join(f"{name} {getattr(bill, f'{name}_usd'):.6f}" for name in SERVICES)
    where = f"as functions of {prices.memory_mb:g} MB in {prices.region}, prices of {prices.dated}"
    return f"{bill.total_usd:.6f} dollars ({shares}), {where}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Right-aligned columns; floats with 3 decimals, integers with separators."""
    body = [
        [
            f"{cell:,.3f}"
            if isinstance(cell, float)
            else f"{cell:,}"
            if isinstance(cell, int)
            else str(cell)
            for cell in row
        ]
        for row in rows
    ]
    widths = [
        max(len(line[column]) for line in [list(heads), *body]) for column in range(len(heads))
    ]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [list(heads), *body]
    )


WORKER_HEADS = (
    "worker",
    "load s",
    "compute s",
    "send s",
    "wait s",
    "rows",
    "nonzeros",
    "bytes",
    "messages",
    "requests",
    "peak MB",
)
LAYER_HEADS = (
    "layer",
    "compute s",
    "send s",
    "wait s",
    "rows",
    "nonzeros",
    "bytes",
    "messages",
    "requests",
    "active",
)


def worker_rows(record: RunRecord) -> list[list[Any]]:
    """Cells under WORKER_HEADS: a row a worker, and their sum (peak: the largest)."""
    rows: list[list[Any]] = []
    for worker in record.workers:
        layers = worker.layers
        rows.append(
            [
                worker.rank,
                float(worker.load_s),
                *(float(sum(layers[name])) for name in SECONDS),
                *(int(sum(layers[name])) for name in COUNTS),
                int(worker.peak_mb),
            ]
        )
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        rows.append(["all", *(sum(column) for column in columns[1:-1]), max(columns[-1])])
    return rows


def layer_rows(record: RunRecord) -> list[list[Any]]:
    """Cells under LAYER_HEADS: sums over the workers; living samples: of all replicas, the most
    that a part knows of.
    """
    job = record.job
    seconds = [by_layer(record, name).sum(axis=0) for name in SECONDS]
    counts = [by_layer(record, name).sum(axis=0) for name in COUNTS]
    active = by_layer(record, ACTIVE).reshape(job.replicas, job.parts, -1).max(axis=1).sum(axis=0)
    return [
        [
            layer,
            *(float(one[layer]) for one in seconds),
            *(int(one[layer]) for one in counts),
            int(active[layer]),
        ]
        for layer in range(len(active))
    ]


def summary(record: RunRecord) -> str:
    """A table of the workers, and what all of it took and would cost."""
    took = seconds_of(record)
    loaded = max(worker.load_s for worker in record.workers)
    return "\n".join(
        [
            table(WORKER_HEADS, worker_rows(record)),
            f"{took:.3f} s, {rate(record) / 1e9:,.2f} G edges/s; model loaded in {loaded:.3f} s",
            bill_line(record),
        ]
    )


def text(record: RunRecord) -> str:
    """Everything, for people."""
    requests = _requests(record.workers)
    parts = [title(record), summary(record)]
    if requests:
        rows = [
            [name, row["requests"], row["billed"], row["messages"], row["nbytes"]]
            for name, row in sorted(requests.items())
        ]
        parts.append(table(("operation", "requests", "billed", "messages", "bytes"), rows))
    parts.append(table(LAYER_HEADS, layer_rows(record)))
    return "\n\n".join(parts)
