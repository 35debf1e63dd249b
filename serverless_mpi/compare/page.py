"""A comparison as one self-contained HTML page."""

from __future__ import annotations

from html import escape

from serverless_mpi import webpage
from serverless_mpi.compare.measure import SYSTEMS, Comparison
from serverless_mpi.compare.report import HEADS, rows, title, verdict

COLOURS = ("--ink", "--compute", "--send", "--extra", "--rose", "--teal", "--violet")


def html(comparison: Comparison) -> str:
    """Return the page.

    Parameters
    ----------
    comparison
        All results.
    """
    good = [one for one in comparison.results if not one.error]
    systems = [name for name in SYSTEMS if any(one.system == name for one in good)]
    colours = dict(zip(SYSTEMS, COLOURS, strict=True))
    name = f"Comparison of {comparison.program}"
    key = webpage.key([(title(system), colours[system]) for system in systems])
    times, dollars = [], []
    for system in systems:
        own = [one for one in good if one.system == system]
        line = (title(system), colours[system])
        times.append((*line, [(one.ranks, one.median_s) for one in own]))
        dollars.append((*line, [(one.ranks, one.usd) for one in own if one.usd]))
    body = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{comparison.processors} processors here; functions of {comparison.memory_mb} MB in"
        " the forecast.</p>",
        f"<p><b>{escape(verdict(comparison))}</b></p>",
        "<h2>Seconds by ranks</h2><p>Median; both axes are logarithmic.</p>",
        key,
        webpage.lines(times, webpage.seconds, "ranks"),
        "<h2>Dollars by ranks</h2><p>Requests as AWS bills them; of the forecast also the"
        " functions' time.</p>",
        webpage.lines(dollars, _dollars, "ranks") if any(one[2] for one in dollars) else "",
        "<h2>Results</h2>",
        webpage.table([*HEADS, "output"], list(rows(comparison)), 2),
    ]
    return webpage.document(name, body)


def _dollars(value: float) -> str:
    return f"{value:.3g} $"
