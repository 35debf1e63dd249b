"""Rows of a benchmark, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured figure.

    what: what was measured; value, unit: the figure itself; ratio: to what it is measured against,
    side by side, named in `what` (None: there is nothing to compare with); spread: largest over
    smallest of the repetitions, or any text that says how sure the figure is; target: as text, as
    the issue has it; met: whether it is (None: it has no target); reason: why it was missed.
    """

    what: str
    value: float
    unit: str
    ratio: float | None = None
    spread: str = ""
    target: str = ""
    met: bool | None = None
    reason: str = ""


def spread(samples: Sequence[float]) -> str:
    """The quartiles around the median, relative to it, as in "-3 % +5 %"."""
    if len(samples) < 2:
        return ""
    middle = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return f"{100 * (low / middle - 1):+.0f} % {100 * (high / middle - 1):+.0f} %" if middle else ""


def render(rows: Sequence[Row]) -> str:
    """The rows as a table for people, each miss with its reason below its row."""
    wide = max([len(row.what) for row in rows], default=0)
    lines = [
        f"{'':<{wide}}  {'value':>12} {'unit':<8} {'ratio':>8}  {'spread':<14} {'target':<22} "
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        lines.append(
            f"{row.what:<{wide}}  {row.value:>12,.4g} {row.unit:<8} {ratio:>8}  {row.spread:<14} {row.target:<22} {verdict}".rstrip()
        )
        if row.reason:
            lines.append(f"    {row.reason}")
    return "\n".join(lines)
