"""The look of every HTML page that this package writes, and its plots in SVG and tables.

A page is one file without scripts and without anything from elsewhere.  Colours follow the reader's
light or dark setting, and a page fits 400 pixels: tables scroll by themselves.

The rule: a page may show texts of an untrusted file, so every text passes through `escape`, and
every number is formatted as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Unit = Callable[[float], str]  # formats a number with its unit
WIDTH, HEIGHT = 920, 240  # inside of a plot, in pixels
LEFT, BOTTOM, TOP = 76, 34, 8
LETTER = 8  # width of a character, in pixels
MOST_COLUMNS = 240  # more columns than this are added up in groups, so that a bar stays visible

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1a1c20; --soft: #6b7280; --line: #e2e5ea;
  --compute: #2f6fb5; --send: #e0912f; --wait: #b9c0ca; --extra: #4f9d69; --rose: #c2477f;
  --teal: #1f8f8f; --violet: #7b57c2; --heat: 47, 111, 181; }
@media (prefers-color-scheme: dark) { :root {
  --back: #15171b; --ink: #e6e8eb; --soft: #9aa2ae; --line: #2e333b;
  --compute: #6aa5e3; --send: #f0b05e; --wait: #555e6b; --extra: #7cc795; --rose: #f08cb4;
  --teal: #5fc9c9; --violet: #b59af0; --heat: 106, 165, 227; } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 1180px; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin-bottom: .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
p { color: var(--soft); margin: .2rem 0 } svg { width: 100%; height: auto; display: block }
text { fill: var(--soft); font-size: 12px }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 1rem 0 }
.facts b { display: block; font-size: 1.25rem; color: var(--ink) }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px }
.wide { overflow-x: auto }
@media (max-width: 640px) { .wide svg { width: 720px } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px;
  width: 100% }
th, td { text-align: right; padding: .15rem .4rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
.text { text-align: left }
details summary { cursor: pointer; margin-top: 1.6rem; font-weight: 600 }
"""


def document(title: str, body: Sequence[str]) -> str:
    """Return a page.

    Parameters
    ----------
    title
        Plain text.
    body
        HTML of its parts.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Return the most important numbers of a page.

    Parameters
    ----------
    entries
        Value and its name, as plain texts.
    """
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for value, name in entries)
    return f'<div class="facts">{cells}</div>'


def columns(values: Numbers) -> tuple[Numbers, int]:
    """Add up neighbours to at most MOST_COLUMNS columns; return these and the width of each.

    Parameters
    ----------
    values
        Columns along the last axis.
    """
    count = values.shape[-1]
    width = -(-count // MOST_COLUMNS)
    return np.add.reduceat(values, np.arange(0, count, width), axis=-1), width


def _column_name(of: str, column: int, width: int, count: int) -> str:
    first, last = column * width, min((column + 1) * width, count) - 1
    return f"{of} {first}" if width == 1 else f"{of}s {first} to {last}"


def step(top: float) -> float:
    """Return a round distance of marks, 3 to 6 of which reach from 0 to `top`.

    Parameters
    ----------
    top
        Above 0.
    """
    power = 10.0 ** np.floor(np.log10(top / 3))
    return float(
        next(each for each in (power, 2 * power, 5 * power, 10 * power) if top / each <= 6)
    )


END = "</svg></div>"  # of a plot


def svg(height: float) -> str:
    """Return the start of a plot, which ends with END.

    Parameters
    ----------
    height
        Of its inside, in pixels.
    """
    box = f"0 0 {LEFT + WIDTH + 4} {TOP + height + BOTTOM}"
    return f'<div class="wide"><svg viewBox="{box}" role="img">'


def label(y: float, text: str) -> str:
    """Return a label to the left of a plot.

    Parameters
    ----------
    y
        Its base line, in pixels.
    text
        HTML.
    """
    return f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{text}</text>'


def marks(top: float, unit: Unit) -> str:
    """Return horizontal lines at round values, with labels.

    Parameters
    ----------
    top
        Value at the top of a plot of height HEIGHT.
    unit
        Formats a value.
    """
    parts = []
    for mark in np.arange(0, top + 1e-12, step(top)):
        y = TOP + HEIGHT - mark * HEIGHT / top
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="var(--line)"/>'
        )
        parts.append(label(y + 4, escape(unit(float(mark)))))
    return "".join(parts)


def bars(
    series: Sequence[Numbers],
    names: Sequence[tuple[str, str]],
    unit: Unit,
    of: str,
    labels: Sequence[str] = (),
) -> str:
    """Return bars with the series stacked.

    Parameters
    ----------
    series
        Arrays of equal length.
    names
        Name and colour (as "--compute") of each.
    unit
        Formats a value.
    of
        What a column is, as "layer".
    labels
        Name of each column; their numbers by default.
    """
    count = len(series[0])
    width = 1 if labels else columns(series[0])[1]
    stacked = np.stack([values if labels else columns(values)[0] for values in series])
    top = float(stacked.sum(axis=0).max()) or 1.0
    scale, each = HEIGHT / top, WIDTH / stacked.shape[1]
    parts = [svg(HEIGHT), marks(top, unit)]
    for column in range(stacked.shape[1]):
        y = float(TOP + HEIGHT)
        values = [
            (name, colour, float(value))
            for (name, colour), value in zip(names, stacked[:, column], strict=True)
        ]
        title = ", ".join(f"{name} {unit(value)}" for name, _, value in values)
        shown = labels[column] if labels else _column_name(of, column, width, count)
        parts.append(f"<g><title>{escape(shown)}: {escape(title)}</title>")
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
    return "".join(parts) + axis(count, TOP + HEIGHT, of, labels) + END


def axis(count: int, y: float, of: str, labels: Sequence[str] = ()) -> str:
    """Return the horizontal axis below a plot.

    Parameters
    ----------
    count
        Columns.
    y
        Where the plot ends, in pixels.
    of
        What a column is.
    labels
        Name of each column; their numbers by default.
    """
    longest = LETTER * max(map(len, labels), default=0)  # in pixels
    apart = max(1, int(step(max(count, 2))))
    if labels:
        apart = -int(-count * (longest + LETTER) // WIDTH)
    texts = "".join(
        f'<text x="{LEFT + (column + 0.5) * WIDTH / count:.1f}" y="{y + 15:.0f}"'
        f' text-anchor="middle">{escape(labels[column]) if labels else column}</text>'
        for column in range(0, count, apart)
        if (column + 0.5) * WIDTH / count + longest / 2 <= WIDTH
    )
    return texts + f'<text x="{LEFT + WIDTH / 2}" y="{y + 31:.0f}" text-anchor="middle">{of}</text>'


def heat_map(
    values: Numbers, rows: Sequence[str], of: str, unit: Unit, tallest: float = 26.0
) -> str:
    """Return a map of rows (down) and columns (across), darker where the value is larger.

    Parameters
    ----------
    values
        Rows and columns.
    rows
        Name of each row.
    of
        What a column is.
    unit
        Formats a value.
    tallest
        Height of a row at most, in pixels.
    """
    count = values.shape[1]
    cells, width = columns(values)
    top = float(cells.max()) or 1.0
    high = max(6.0, min(tallest, 420 / len(rows)))
    each = WIDTH / cells.shape[1]
    tall = high * len(rows)
    parts = [svg(tall)]
    apart = max(1, round(14 / high))
    for row, name in enumerate(rows):
        y = TOP + row * high
        if row % apart == 0:
            parts.append(label(y + high / 2 + 4, escape(name)))
        for column, value in enumerate(cells[row]):
            shade = 0.04 + 0.96 * float(value) / top
            shown = f"{name}, {_column_name(of, column, width, count)}: {unit(float(value))}"
            parts.append(
                f'<rect x="{LEFT + column * each:.2f}" y="{y:.1f}" width="{each + 0.1:.2f}"'
                f' height="{high - 1:.1f}" fill="rgba(var(--heat), {shade:.3f})">'
                f"<title>{escape(shown)}</title></rect>"
            )
    return "".join(parts) + axis(count, TOP + tall, of) + END


def split(shares: Sequence[tuple[str, str, float]]) -> str:
    """Return one bar divided into dollars, and its key.

    Parameters
    ----------
    shares
        Name, colour and dollars of each part.
    """
    total = sum(value for _, _, value in shares) or 1.0
    x, parts = 0.0, [f'<svg viewBox="0 0 {WIDTH} 34" role="img">']
    for name, colour, value in shares:
        wide = value / total * WIDTH
        parts.append(
            f'<rect x="{x:.2f}" y="4" width="{wide:.2f}" height="26" fill="var({colour})">'
            f"<title>{escape(name)}: {value:.6f} $</title></rect>"
        )
        x += wide
    entries = [
        (f"{name} {value:.6f} $, {value / total:.0%}", colour) for name, colour, value in shares
    ]
    return "".join(parts) + "</svg>" + key(entries)


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Return the key of a plot.

    Parameters
    ----------
    entries
        Name and colour of each series.
    """
    return (
        '<p class="key">'
        + "".join(
            f'<span><i style="background: var({colour})"></i>{escape(name)}</span>'
            for name, colour in entries
        )
        + "</p>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 0) -> str:
    """Return a table.

    Parameters
    ----------
    heads, rows
        Plain texts.
    texts
        How many of the first columns are text, and begin at the left.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if column < texts else ''}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells("th", heads)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def seconds(value: float) -> str:
    """Return a time with its unit.

    Parameters
    ----------
    value
        Seconds.
    """
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or factor == 1e6:
            return f"{value * factor:.3g} {unit}" if value else "0"
    return "0"


def nbytes(value: float) -> str:
    """Return a number of bytes with its unit.

    Parameters
    ----------
    value
        Bytes.
    """
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


Line = tuple[str, str, Sequence[tuple[float, float]]]


def lines(series: Sequence[Line], unit: Unit, of: str) -> str:
    """Return a plot of lines, with logarithmic axes.

    Parameters
    ----------
    series
        Name, colour, and points (x, y) of each; x and y above 0.
    unit
        Formats a y.
    of
        What x is.
    """
    points = [point for _, _, line in series for point in line if point[0] > 0 and point[1] > 0]
    across = sorted({x for x, _ in points}) or [1.0]
    low = 10.0 ** np.floor(np.log10(min((y for _, y in points), default=1.0)))
    high = 10.0 ** np.ceil(np.log10(max((y for _, y in points), default=1.0)))
    high = max(high, 10 * low)
    left, right = np.log(across[0]), np.log(across[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        part = (np.log(x) - left) / (right - left) if right > left else 0.5
        up = np.log(y / low) / np.log(high / low)
        return float(LEFT + 12 + part * (WIDTH - 24)), float(TOP + HEIGHT * (1 - up))

    parts = [svg(HEIGHT)]
    mark = low
    while mark <= high * 1.001:
        _, y = place(across[0], mark)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="var(--line)"/>'
        )
        parts.append(label(min(y + 4, TOP + HEIGHT), escape(unit(mark))))
        mark *= 10
    for name, colour, line in series:
        placed = [(*place(x, y), x, y) for x, y in line if x > 0 and y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in placed)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var({colour})" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var({colour})">'
            f"<title>{escape(f'{name}, {of} {rank:g}: {unit(value)}')}</title></circle>"
            for x, y, rank, value in placed
        ]
    for x in across:
        at, _ = place(x, low)
        parts.append(
            f'<text x="{at:.1f}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{x:g}</text>'
        )
    middle = f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 31}" text-anchor="middle">'
    return "".join(parts) + f"{middle}{escape(of)}</text>" + END
