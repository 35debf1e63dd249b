"""How far a forecast may be off: the ranges of AWS's figures, and the one that matters most.

The rule: a deployment is forecast again with every figure at its favourable end, with every figure
at its unfavourable end, and with one figure at a time at either end (one-at-a-time sensitivity).
So the bounds are those of the figures together, wider than chance would make them, and they hold as
far as the model does: what samples do, and what the planner assumes of its own workers, has no
range here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TypedDict

from serverless_mpi.aws.limits import Figures
from serverless_mpi.inference import plan
from serverless_mpi.inference.cost import BilledModel

Range = tuple[float, float]


class AssumptionRecord(TypedDict):
    """An assumption as JSON's types."""

    figure: str
    unit: str
    range: Sequence[float]
    seconds: Sequence[float]
    usd: Sequence[float]


@dataclass(frozen=True)
class Assumption:
    """One figure, and what its range alone does to a forecast.

    Attributes
    ----------
    figure, unit, range
        Its name in `limits.Figures`, its unit, and the ends of its range.
    seconds, usd
        Least and most of the forecast with the figure at either end.
    effect
        Largest relative change of seconds or dollars.
    """

    figure: str
    unit: str
    range: Range
    seconds: Range
    usd: Range
    effect: float


@dataclass(frozen=True)
class Uncertainty:
    """Bounds of a forecast.

    Attributes
    ----------
    seconds, usd
        Least and most, with all figures at their favourable and unfavourable ends.
    assumptions
        Those whose ranges change the forecast, the one that matters most first.
    """

    seconds: Range
    usd: Range
    assumptions: Sequence[Assumption]

    def text(self) -> str:
        """Return it in words."""
        words = f"{_span(self.seconds)} s, {_span(self.usd)} dollars"
        if not self.assumptions:
            return words
        most = self.assumptions[0]
        return (
            f"{words}; what matters most is {most.figure}, {_span(most.range)} {most.unit}, which"
            f" alone makes it {_span(most.seconds)} s, {_span(most.usd)} dollars"
        )

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON's types."""
        return {
            "seconds": list(self.seconds),
            "usd": list(self.usd),
            "assumptions": [
                AssumptionRecord(
                    figure=each.figure,
                    unit=each.unit,
                    range=list(each.range),
                    seconds=list(each.seconds),
                    usd=list(each.usd),
                )
                for each in self.assumptions
            ],
        }


def uncertainty(
    work: plan.Work, platform: plan.Platform, forecast: plan.Forecast, model: BilledModel
) -> Uncertainty:
    """Return the bounds of a forecast.

    Parameters
    ----------
    work, platform, model
        Those of which `plan.predict` made the forecast; the platform as `plan.place` returned it.
    forecast
        The forecast.
    """
    figures = platform.figures

    def predicted(others: Figures) -> Range:
        # bounds count even where they exceed the time limit
        elsewhere = replace(plan.place(platform.name, others), limit_s=inf)
        found = plan.predict(work, elsewhere, forecast.way, model)
        assert found is not None, "figures do not change what fits a worker's memory"
        return found.seconds, found.usd

    def bounds(of: Sequence[Range]) -> tuple[Range, Range]:
        seconds, usd = zip(*of, (forecast.seconds, forecast.usd), strict=True)
        return (min(seconds), max(seconds)), (min(usd), max(usd))

    best = figures.values_at(**{name: figure.best for name, figure in figures.items()})
    worst = figures.values_at(**{name: figure.worst for name, figure in figures.items()})
    assumptions = []
    for name, figure in figures.items():
        if figure.low == figure.high:
            continue
        ends = [predicted(figures.values_at(**{name: at})) for at in (figure.low, figure.high)]
        seconds, usd = bounds(ends)
        effect = max(
            max(abs(at - forecast.seconds) for at in seconds) / forecast.seconds,
            max(abs(at - forecast.usd) for at in usd) / forecast.usd,
        )
        if effect:
            span = (figure.low, figure.high)
            assumptions.append(Assumption(name, figure.unit, span, seconds, usd, effect))
    assumptions.sort(key=lambda each: -each.effect)
    return Uncertainty(*bounds([predicted(best), predicted(worst)]), assumptions)


def _span(ends: Range) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
