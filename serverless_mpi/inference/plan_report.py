"""The answer of `smpi-infer plan`: the best ways to run, their bounds, and why, as text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps

from serverless_mpi.inference import advice, plan, report
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.inference.uncertainty import Uncertainty, uncertainty


@dataclass(frozen=True)
class PlanReport:
    """What `smpi-infer plan` prints.

    Attributes
    ----------
    work, platform, model
        As in `plan.predict`.
    forecasts
        Of every way that fits.
    figures
        Where the platform's figures are from, in words.
    """

    work: plan.Work
    platform: plan.Platform
    model: BilledModel
    forecasts: Sequence[plan.Forecast]
    figures: str

    def _named(self) -> tuple[advice.Advice, dict[str, plan.Forecast], dict[str, Uncertainty]]:
        best = advice.advise(self.forecasts, self.work)
        named = {"cheapest": best.cheapest, "fastest": best.fastest, "knee": best.knee}
        bounds = {
            name: uncertainty(self.work, self.platform, way, self.model)
            for name, way in named.items()
        }
        return best, named, bounds

    def json(self, every: bool) -> str:
        """Return one line of JSON; every: with all ways.

        Parameters
        ----------
        every
            Whether to include all forecasts.
        """
        best, named, bounds = self._named()
        record: dict[str, object] = {
            name: {**advice.as_dict(way), "uncertainty": bounds[name].as_dict()}
            for name, way in named.items()
        }
        record.update(
            figures=self.figures,
            why=best.why,
            edges_s=self.platform.edges_s,
            living=list(self.work.living),
        )
        if every:
            record["all"] = [advice.as_dict(forecast) for forecast in self.forecasts]
        return dumps(record)

    def text(self, every: bool) -> str:
        """Return a table; every: of all ways, not only the best of each kind.

        Parameters
        ----------
        every
            Whether to include all forecasts.
        """
        best, named, bounds = self._named()
        if every:
            others = [(advice.kind(forecast), forecast) for forecast in self.forecasts]
        else:
            others = advice.best_of_kinds(self.forecasts)
        work, platform = self.work, self.platform
        rows = [(name, *advice.cells(forecast)) for name, forecast in [*named.items(), *others]]
        return "\n".join(
            [
                f"{work.neurons:,} neurons, {work.layers:,} layers, {work.samples:,} images; "
                f"{platform.name}, {platform.edges_s / 1e9:.2g} G active edges/s per vCPU",
                report.table(("", *advice.HEADS), rows),
                f"knee: {best.knee.way.name}: {best.why}",
                f"with the ranges of {self.figures}:",
                *(f"{name}: {bound.text()}" for name, bound in bounds.items()),
            ]
        )
