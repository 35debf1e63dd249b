"""Reports of a run, by layer and by worker, as text; `page` makes files and a page with plots.

`priced` makes a `RunRecord` from what the workers measured; the other functions show a record.
`records` defines how a record is stored and checked.
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

    The bill charges the counted requests, and functions that run as long as the workers did.

    Parameters
    ----------
    model, job, workers
        What ran, and what each worker measured.
    categories
        Number of images with an active output.
    prices
        File of a price table; None for the package's.

    Raises
    ------
    UsageError
        The price table is not valid.
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
    """Read the record of a run.

    Parameters
    ----------
    path
        A file that `run --report FILE.json` wrote.

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
    """Return one measurement of all workers and layers.

    Parameters
    ----------
    record
        The run.
    column
        Name in `records.COLUMNS`.

    Returns
    -------
    ndarray
        (workers, layers) float64.
    """
    return np.array([worker.layers[column] for worker in record.workers], float)


def check_path(path: str) -> None:
    """Check that the suffix of a file name is a format of reports.

    Parameters
    ----------
    path
        The name.

    Raises
    ------
    UsageError
        It is not one of SUFFIXES.
    """
    if not path.endswith(SUFFIXES):
        raise UsageError(f"{path}: a report's name ends with {', '.join(SUFFIXES)}")


def title(record: RunRecord) -> str:
    """Return a line that describes the model and the job.

    Parameters
    ----------
    record
        The run.
    """
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
    """Return the seconds of the slowest worker from the first layer to the answer.

    Parameters
    ----------
    record
        The run.
    """
    return float(max(worker.seconds for worker in record.workers))


def rate(record: RunRecord) -> float:
    """Return nonzeros times samples per second, the rate of the Graph Challenge.

    Parameters
    ----------
    record
        The run.
    """
    return float(record.model.nonzeros * record.job.samples / max(seconds_of(record), 1e-9))


def bill_line(record: RunRecord) -> str:
    """Return a line with the dollars of each service, and what they assume.

    Parameters
    ----------
    record
        The run.
    """
    bill, prices = record.bill, record.prices
    shares = ", ".join(f"{name} {getattr(bill, f'{name}_usd'):.6f}" for name in SERVICES)
    where = f"as functions of {prices.memory_mb:g} MB in {prices.region}, prices of {prices.dated}"
    return f"{bill.total_usd:.6f} dollars ({shares}), {where}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of right-aligned columns.

    Parameters
    ----------
    heads
        Heads of the columns.
    rows
        Cells of each row, as many as heads; formatted by `cell_text`.
    """
    body = [[cell_text(cell) for cell in row] for row in rows]
    widths = [
        max(len(line[column]) for line in [list(heads), *body]) for column in range(len(heads))
    ]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [list(heads), *body]
    )


def cell_text(cell: object) -> str:
    """Return the text of a cell: floats with 3 decimals, integers with separators.

    Parameters
    ----------
    cell
        Any value.
    """
    if isinstance(cell, float):
        return f"{cell:,.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


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
    """Return the cells under WORKER_HEADS: a row per worker, and their sum (of peaks the maximum).

    Parameters
    ----------
    record
        The run.
    """
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
    """Return the cells under LAYER_HEADS: a row per layer with sums over the workers.

    Active samples are the sum over the replicas; of the parts of a replica, which may count
    different ones, the maximum.

    Parameters
    ----------
    record
        The run.
    """
    job = record.job
    seconds = [by_layer(record, name).sum(axis=0) for name in SECONDS]
    counts = [by_layer(record, name).sum(axis=0) for name in COUNTS]
    active = by_layer(record, ACTIVE).reshape(job.replicas, job.parts, -1).max(axis=1).sum(axis=0)
    return [
        [
            layer,
            *(float(column[layer]) for column in seconds),
            *(int(column[layer]) for column in counts),
            int(active[layer]),
        ]
        for layer in range(len(active))
    ]


def summary(record: RunRecord) -> str:
    """Return a table of the workers, and the time and cost of the run.

    Parameters
    ----------
    record
        The run.
    """
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
    """Return the whole report as text.

    Parameters
    ----------
    record
        The run.
    """
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
