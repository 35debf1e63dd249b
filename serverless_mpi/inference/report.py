"""What a run took, by layer and by worker: as tables, as JSON, and (in `page`) as a page with plots.

A record is what `worker.run` gathered: model, job, and of each worker its seconds, its requests and, by layer, the members
of `engine.LayerStatistics`.  `priced` adds the bill.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import files
from serverless_mpi.inference.cost import BilledModel, Use
from serverless_mpi.metering import Prices, merge

FORMAT = 1
DEFAULT_MEMORY_MB = 1769  # one vCPU of Lambda: what a run elsewhere is priced as
SECONDS = ("compute_s", "send_s", "wait_s")
COUNTS = ("rows", "nonzeros", "nbytes", "messages", "requests")
SERVICES = ("lambda", "sns", "sqs", "s3")
LEAST, MOST = 1e-12, 1e18  # of numbers but 0
MAX_NAME = 1000  # characters
SUFFIXES = (".json", ".html", ".txt")


def priced(record: Mapping[str, Any], prices: str | None = None) -> dict[str, Any]:
    """The record with its bill: requests as they were counted, and functions that ran as long as the workers did."""
    table = Prices.load(prices)
    job = record["job"]
    memory = job["memory_mb"] or DEFAULT_MEMORY_MB
    seconds = sum(worker["load_s"] + worker["seconds"] for worker in record["workers"])
    use = Use(
        job["ranks"], memory, seconds, merge([worker["requests"] for worker in record["workers"]])
    )
    bill = BilledModel(table).bill(use)
    return {
        **record,
        "bill": {
            f"{name}_usd": getattr(bill, f"{name}_usd")
            for name in (*SERVICES, "communication", "total")
        },
        "prices": {"dated": table.dated, "region": table.region, "memory_mb": memory},
    }


def read(path: str | Path) -> dict[str, Any]:
    """The record in a JSON file.

    Raises
    ------
    UsageError
        There is no such file, or it is no record of a run.
    """
    try:
        with files.opened(path) as source:
            record = json.loads(source.file.read(source.size))
        if record["format"] != FORMAT:
            raise UsageError(f"{path} has another format than {FORMAT}, which this version reads")
        return checked(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        told = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{path} is no report of `smpi-infer run --report FILE.json`: {told}"
        ) from error


_NUMBER = (int, float)
_ALL_LAYERS = (*SECONDS, *COUNTS, "living")
_FIELDS: dict[str, dict[str, Any]] = {
    "model": {"name": str, "neurons": int, "layers": int, "nonzeros": int},
    "job": {
        **dict.fromkeys(("ranks", "replicas", "parts", "batches", "samples"), int),
        **{"method": str, "channel": str, "memory_mb": _NUMBER},
    },
    "bill": {f"{name}_usd": _NUMBER for name in (*SERVICES, "communication", "total")},
    "prices": {"dated": str, "region": str, "memory_mb": _NUMBER},
}
_WORKER = {"rank": int, "load_s": _NUMBER, "seconds": _NUMBER, "peak_mb": _NUMBER}
_REQUESTS = ("requests", "billed", "messages", "nbytes")


def checked(record: Any) -> dict[str, Any]:
    """What of `record` a report shows, each field of its type: what is made of it then needs to look at nothing.

    Raises
    ------
    ValueError, KeyError, TypeError
        A field is missing, or of another type or number.
    """
    made: dict[str, Any] = {"format": FORMAT}
    for group, wanted in _FIELDS.items():
        made[group] = {name: _field(record[group][name], kind) for name, kind in wanted.items()}
    if "categories" in record:
        made["categories"] = _field(record["categories"], int)
    layers, job = made["model"]["layers"], made["job"]
    made["workers"] = [_worker(one, layers) for one in _field(record["workers"], list)]
    if not layers or len(made["workers"]) != job["replicas"] * job["parts"] or not job["parts"]:
        raise ValueError("other numbers of workers or layers than its job had")
    return made


def _worker(given: Any, layers: int) -> dict[str, Any]:
    requests = {
        _field(name, str): {count: _field(row[count], int) for count in _REQUESTS}
        for name, row in _field(given["requests"], dict).items()
    }
    columns = {
        name: [_field(one, _NUMBER) for one in _field(given["layers"][name], list)]
        for name in _ALL_LAYERS
    }
    if any(len(column) != layers for column in columns.values()):
        raise ValueError("other numbers of layers in a worker")
    fields = {name: _field(given[name], kind) for name, kind in _WORKER.items()}
    return {**fields, "requests": requests, "layers": columns}


def _field(value: Any, kind: Any) -> Any:
    """`value`, if it is of that type; a number also has to be one that a page has room for, a name printable."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} in place of another type")
    if isinstance(value, (int, float)) and not (value == 0 or LEAST <= value < MOST):  # nor NaN
        raise ValueError("a number that is out of bounds")
    if isinstance(value, str) and not (value.isprintable() and len(value) <= MAX_NAME):
        raise ValueError("a name that is too long or not printable")
    return value


def by_layer(record: Mapping[str, Any], member: str) -> NDArray[np.float64]:
    """(workers, layers): a member of LayerStatistics, or `requests`."""
    return np.array([worker["layers"][member] for worker in record["workers"]], float)


def check_path(path: str) -> None:
    """Raise UsageError unless its suffix says what to write."""
    if not path.endswith(SUFFIXES):
        raise UsageError(f"{path}: a report's name ends with {', '.join(SUFFIXES)}")


def rendered(path: str, record: Mapping[str, Any]) -> bytes:
    """The report as a file of that name has it."""
    if path.endswith(".json"):
        return json.dumps(record).encode() + b"\n"
    if path.endswith(".html"):
        from serverless_mpi.inference import page

        return page.html(record).encode()
    return text(record).encode() + b"\n"


def title(record: Mapping[str, Any]) -> str:
    """One line: what ran, how."""
    net, job = record["model"], record["job"]
    grid = f"{job['parts']} part{'s' * (job['parts'] > 1)}"
    if job["replicas"] > 1:
        grid = f"{job['replicas']} replicas x {grid}"
    cut = f", {job['method']} partition" if job["parts"] > 1 else ""
    return (
        f"{net['name']} network of {net['neurons']:,} neurons, {net['layers']:,} layers; {job['samples']:,} images; "
        f"{grid} over {job['channel']}{cut}"
    )


def seconds_of(record: Mapping[str, Any]) -> float:
    """From the first layer to the answer, of the slowest worker."""
    return float(max(worker["seconds"] for worker in record["workers"]))


def rate(record: Mapping[str, Any]) -> float:
    """Nonzeros times samples in a second, as the Graph Challenge counts."""
    return float(
        record["model"]["nonzeros"] * record["job"]["samples"] / max(seconds_of(record), 1e-9)
    )


def bill_line(record: Mapping[str, Any]) -> str:
    """Dollars by service."""
    bill, prices = record["bill"], record["prices"]
    shares = ", ".join(f"{name} {bill[f'{name}_usd']:.6f}" for name in SERVICES)
    where = f"as functions of {prices['memory_mb']:g} MB in {prices['region']}, prices of {prices['dated']}"
    return f"{bill['total_usd']:.6f} dollars ({shares}), {where}"


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
    "living",
)


def worker_rows(record: Mapping[str, Any]) -> list[list[Any]]:
    """Cells under WORKER_HEADS: a row a worker, and their sum (peak: the largest)."""
    rows: list[list[Any]] = []
    for worker in record["workers"]:
        layers = worker["layers"]
        rows.append(
            [
                worker["rank"],
                float(worker["load_s"]),
                *(float(sum(layers[name])) for name in SECONDS),
                *(int(sum(layers[name])) for name in COUNTS),
                int(worker["peak_mb"]),
            ]
        )
    if len(rows) > 1:
        columns = list(zip(*rows, strict=True))
        rows.append(["all", *(sum(column) for column in columns[1:-1]), max(columns[-1])])
    return rows


def layer_rows(record: Mapping[str, Any]) -> list[list[Any]]:
    """Cells under LAYER_HEADS: sums over the workers; living samples: of all replicas, the most that a part knows of."""
    job = record["job"]
    seconds = [by_layer(record, name).sum(axis=0) for name in SECONDS]
    counts = [by_layer(record, name).sum(axis=0) for name in COUNTS]
    living = (
        by_layer(record, "living")
        .reshape(job["replicas"], job["parts"], -1)
        .max(axis=1)
        .sum(axis=0)
    )
    return [
        [
            layer,
            *(float(one[layer]) for one in seconds),
            *(int(one[layer]) for one in counts),
            int(living[layer]),
        ]
        for layer in range(len(living))
    ]


def summary(record: Mapping[str, Any]) -> str:
    """A table of the workers, and what all of it took and would cost."""
    took = seconds_of(record)
    loaded = max(worker["load_s"] for worker in record["workers"])
    return "\n".join(
        [
            table(WORKER_HEADS, worker_rows(record)),
            f"{took:.3f} s, {rate(record) / 1e9:,.2f} G edges/s; model loaded in {loaded:.3f} s",
            bill_line(record),
        ]
    )


def text(record: Mapping[str, Any]) -> str:
    """Everything, for people."""
    requests = merge([worker["requests"] for worker in record["workers"]])
    parts = [title(record), summary(record)]
    if requests:
        rows = [
            [name, row["requests"], row["billed"], row["messages"], row["nbytes"]]
            for name, row in sorted(requests.items())
        ]
        parts.append(table(("operation", "requests", "billed", "messages", "bytes"), rows))
    parts.append(table(LAYER_HEADS, layer_rows(record)))
    return "\n\n".join(parts)
