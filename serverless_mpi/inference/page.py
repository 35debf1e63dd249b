"""A run's report as one self-contained HTML page, with plots in SVG and tables.

The plots show the time by layer (stacked), the time by worker and layer (a map), bytes by layer,
and dollars by service. Colours follow the reader's light or dark setting.

The rule: a record may be an untrusted file, so every text of it passes through `escape`, and every
number is formatted as a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np

from serverless_mpi import webpage
from serverless_mpi.inference import report
from serverless_mpi.inference.records import RunRecord, WorkerRecord

TIMES = (
    ("compute_s", "computing", "--compute"),
    ("send_s", "sending", "--send"),
    ("wait_s", "waiting", "--wait"),
)
DOLLARS = (
    ("lambda", "functions", "--compute"),
    ("sns", "SNS", "--send"),
    ("sqs", "SQS", "--wait"),
    ("s3", "S3", "--extra"),
)


def rendered(path: str, record: RunRecord) -> bytes:
    """Return the contents of a report file.

    Parameters
    ----------
    path
        Its name, whose suffix is the format, one of `report.SUFFIXES`.
    record
        The run.
    """
    if path.endswith(".json"):
        return json.dumps(record.to_json()).encode() + b"\n"
    return (html(record) if path.endswith(".html") else report.text(record) + "\n").encode()


def html(record: RunRecord) -> str:
    """Return the page.

    Parameters
    ----------
    record
        The run; its texts may be untrusted.
    """
    times = {name: report.by_layer(record, name) for name, _, _ in TIMES}
    nbytes = report.by_layer(record, "nbytes")
    parts = [(name, colour) for _, name, colour in TIMES]
    dollars = [
        (name, colour, getattr(record.bill, f"{service}_usd")) for service, name, colour in DOLLARS
    ]
    body = [
        f"<h1>{escape(report.title(record))}</h1>",
        f"<p>{escape(report.bill_line(record))}</p>",
        _facts(record, float(nbytes.sum())),
        "<h2>Where the time went, by layer</h2><p>Mean over the workers.</p>",
        webpage.key(parts),
        webpage.bars(
            [times[name].mean(axis=0) for name, _, _ in TIMES], parts, webpage.seconds, "layer"
        ),
        "<h2>Where the time went, by worker and layer</h2><p>Computing, sending and waiting "
        "together; darker is longer.</p>",
        _map(sum(times.values(), np.zeros_like(times["wait_s"])), record.workers),
        "<h2>Bytes sent, by layer</h2><p>All workers together.</p>",
        webpage.bars([nbytes.sum(axis=0)], [("bytes", "--compute")], webpage.nbytes, "layer"),
        "<h2>Dollars, by service</h2>",
        webpage.split(dollars),
        "<h2>Workers</h2>",
        _table(report.WORKER_HEADS, report.worker_rows(record)),
        "<details><summary>Layers</summary>",
        _table(report.LAYER_HEADS, report.layer_rows(record)),
        "</details>",
    ]
    return webpage.document(report.title(record), body)


def _facts(record: RunRecord, nbytes: float) -> str:
    """Return the most important numbers of a run, which sent `nbytes`."""
    rows = [row for worker in record.workers for row in worker.requests.values()]
    facts = [
        (f"{report.seconds_of(record):.3g} s", "first layer to answer"),
        (f"{record.bill.total_usd:.3g} $", "total"),
        (f"{record.bill.communication_usd:.3g} $", "communication"),
        (webpage.nbytes(nbytes), "sent"),
        (f"{int(sum(row['requests'] for row in rows)):,}", "requests"),
        (f"{report.rate(record) / 1e9:,.3g} G", "edges per second"),
        (
            f"{max(worker.peak_mb for worker in record.workers):,.0f} MB",
            "largest memory of a worker",
        ),
    ]
    if record.categories is not None:
        images = f"{record.categories:,} of {record.job.samples:,}"
        facts.insert(0, (images, "images with an active output"))
    return webpage.facts(facts)


def _map(seconds: webpage.Numbers, workers: Sequence[WorkerRecord]) -> str:
    """Return a map of workers (down) and layers (across), darker where the time is longer."""
    names = [f"worker {int(worker.rank)}" for worker in workers]
    return webpage.heat_map(seconds, names, "layer", webpage.seconds)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return webpage.table(heads, [[report.cell_text(cell) for cell in row] for row in rows])
