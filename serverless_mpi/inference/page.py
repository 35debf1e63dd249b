"""A run's report as one self-contained HTML page, with plots in SVG and tables.

The plots show the time by layer (stacked), the time by worker and layer (a map), bytes by layer,
and dollars by service. Colours follow the reader's light or dark setting.

The rule: a record may be an untrusted file, so every text of it passes through `escape`, and every
number is formatted as a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import report
from serverless_mpi.inference.records import RunRecord, WorkerRecord

Numbers = NDArray[np.float64]
Unit = Callable[[float], str]  # formats a number with its unit
WIDTH, HEIGHT = 920, 240  # inside of a plot, in pixels
LEFT, BOTTOM, TOP = 76, 34, 8
MOST_COLUMNS = 240  # more layers than this are added up in groups, so that a bar stays visible
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

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1a1c20; --soft: #6b7280; --line: #e2e5ea;
  --compute: #2f6fb5; --send: #e0912f; --wait: #b9c0ca; --extra: #4f9d69; --heat: 47, 111, 181; }
@media (prefers-color-scheme: dark) { :root {
  --back: #15171b; --ink: #e6e8eb; --soft: #9aa2ae; --line: #2e333b;
  --compute: #6aa5e3; --send: #f0b05e; --wait: #555e6b; --extra: #7cc795; --heat: 106, 165, 227; } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 1040px; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin-bottom: .2rem } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
p { color: var(--soft); margin: .2rem 0 } svg { width: 100%; height: auto; display: block }
text { fill: var(--soft); font-size: 12px }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 1rem 0 }
.facts b { display: block; font-size: 1.25rem; color: var(--ink) }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px;
  width: 100% }
th, td { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
details summary { cursor: pointer; margin-top: 1.6rem; font-weight: 600 }
"""


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
        _key(parts),
        _bars([times[name].mean(axis=0) for name, _, _ in TIMES], parts, _seconds),
        "<h2>Where the time went, by worker and layer</h2><p>Computing, sending and waiting "
        "together; darker is longer.</p>",
        _map(sum(times.values(), np.zeros_like(times["wait_s"])), record.workers),
        "<h2>Bytes sent, by layer</h2><p>All workers together.</p>",
        _bars([nbytes.sum(axis=0)], [("bytes", "--compute")], _bytes),
        "<h2>Dollars, by service</h2>",
        _split(dollars),
        "<h2>Workers</h2>",
        _table(report.WORKER_HEADS, report.worker_rows(record)),
        "<details><summary>Layers</summary>",
        _table(report.LAYER_HEADS, report.layer_rows(record)),
        "</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title(record))}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _facts(record: RunRecord, nbytes: float) -> str:
    """Return the most important numbers of a run, which sent `nbytes`."""
    rows = [row for worker in record.workers for row in worker.requests.values()]
    facts = [
        (f"{report.seconds_of(record):.3g} s", "first layer to answer"),
        (f"{record.bill.total_usd:.3g} $", "total"),
        (f"{record.bill.communication_usd:.3g} $", "communication"),
        (_bytes(nbytes), "sent"),
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
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for value, name in facts)
    return f'<div class="facts">{cells}</div>'


def _columns(values: Numbers) -> tuple[Numbers, int]:
    """Add up neighbouring layers to at most MOST_COLUMNS columns; return these and their width."""
    layers = values.shape[-1]
    width = -(-layers // MOST_COLUMNS)
    return np.add.reduceat(values, np.arange(0, layers, width), axis=-1), width


def _layer_name(column: int, width: int, layers: int) -> str:
    first, last = column * width, min((column + 1) * width, layers) - 1
    return f"layer {first}" if width == 1 else f"layers {first} to {last}"


def _step(top: float) -> float:
    """Return a round distance of marks, 3 to 6 of which reach from 0 to `top`."""
    power = 10.0 ** np.floor(np.log10(top / 3))
    return float(
        next(step for step in (power, 2 * power, 5 * power, 10 * power) if top / step <= 6)
    )


def _svg(height: float) -> str:
    """Return the start of a plot whose inside has this height."""
    return f'<svg viewBox="0 0 {LEFT + WIDTH + 4} {TOP + height + BOTTOM}" role="img">'


def _label(y: float, text: str) -> str:
    """Return a label to the left of a plot."""
    return f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{text}</text>'


def _bars(series: Sequence[Numbers], names: Sequence[tuple[str, str]], unit: Unit) -> str:
    """Return bars by layer with the series stacked; `names` has their names and colours."""
    layers = len(series[0])
    width = _columns(series[0])[1]
    stacked = np.stack([_columns(values)[0] for values in series])
    top = float(stacked.sum(axis=0).max()) or 1.0
    scale, each = HEIGHT / top, WIDTH / stacked.shape[1]
    parts = [_svg(HEIGHT)]
    for mark in np.arange(0, top + 1e-12, _step(top)):
        y = TOP + HEIGHT - mark * scale
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="var(--line)"/>'
        )
        parts.append(_label(y + 4, unit(float(mark))))
    for column in range(stacked.shape[1]):
        y = float(TOP + HEIGHT)
        values = [
            (name, colour, float(value))
            for (name, colour), value in zip(names, stacked[:, column], strict=True)
        ]
        title = ", ".join(f"{name} {unit(value)}" for name, _, value in values)
        parts.append(f"<g><title>{_layer_name(column, width, layers)}: {title}</title>")
        for _, colour, value in values:
            high = value * scale
            y -= high
            if high > 0:
                parts.append(
                    f'<rect x="{LEFT + column * each:.2f}" y="{y:.2f}"'
                    f' width="{max(each - (each > 3), 0.5):.2f}" height="{high:.2f}"'
                    f' fill="var({colour})"/>'
                )
        parts.append("</g>")
    return "".join(parts) + _layer_axis(layers, TOP + HEIGHT) + "</svg>"


def _layer_axis(layers: int, y: float) -> str:
    """Return the axis of layers below a plot that ends at `y`."""
    step = max(1, int(_step(max(layers, 2))))
    marks = "".join(
        f'<text x="{LEFT + (layer + 0.5) * WIDTH / layers:.1f}" y="{y + 15:.0f}"'
        f' text-anchor="middle">{layer}</text>'
        for layer in range(0, layers, step)
    )
    return (
        marks + f'<text x="{LEFT + WIDTH / 2}" y="{y + 31:.0f}" text-anchor="middle">layer</text>'
    )


def _map(seconds: Numbers, workers: Sequence[WorkerRecord]) -> str:
    """Return a map of workers (down) and layers (across), darker where the time is longer."""
    layers = seconds.shape[1]
    cells, width = _columns(seconds)
    top = float(cells.max()) or 1.0
    high = max(6.0, min(26.0, 420 / len(workers)))
    each = WIDTH / cells.shape[1]
    tall = high * len(workers)
    parts = [_svg(tall)]
    step = max(1, round(14 / high))
    for row, worker in enumerate(workers):
        y, name = TOP + row * high, f"worker {int(worker.rank)}"
        if row % step == 0:
            parts.append(_label(y + high / 2 + 4, name))
        for column, value in enumerate(cells[row]):
            shade = 0.04 + 0.96 * float(value) / top
            parts.append(
                f'<rect x="{LEFT + column * each:.2f}" y="{y:.1f}" width="{each + 0.1:.2f}"'
                f' height="{high - 1:.1f}" fill="rgba(var(--heat), {shade:.3f})"><title>{name}, '
                f"{_layer_name(column, width, layers)}: {_seconds(float(value))}</title></rect>"
            )
    return "".join(parts) + _layer_axis(layers, TOP + tall) + "</svg>"


def _split(shares: Sequence[tuple[str, str, float]]) -> str:
    """Return one bar divided into (name, colour, dollars), and its key."""
    total = sum(value for _, _, value in shares) or 1.0
    x, parts = 0.0, [f'<svg viewBox="0 0 {WIDTH} 34" role="img">']
    for name, colour, value in shares:
        wide = value / total * WIDTH
        parts.append(
            f'<rect x="{x:.2f}" y="4" width="{wide:.2f}" height="26" fill="var({colour})">'
            f"<title>{name}: {value:.6f} $</title></rect>"
        )
        x += wide
    entries = [
        (f"{name} {value:.6f} $, {value / total:.0%}", colour) for name, colour, value in shares
    ]
    return "".join(parts) + "</svg>" + _key(entries)


def _key(entries: Sequence[tuple[str, str]]) -> str:
    return (
        '<p class="key">'
        + "".join(
            f'<span><i style="background: var({colour})"></i>{escape(name)}</span>'
            for name, colour in entries
        )
        + "</p>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(report.cell_text(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _seconds(value: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or factor == 1e6:
            return f"{value * factor:.3g} {unit}" if value else "0"
    return "0"


def _bytes(value: float) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"
