"""The planner's advice: forecast all deployments, then name the cheapest, the fastest, the knee.

The knee is the deployment with the least product of seconds and dollars: a deployment that saves
1 % of the time costs at least 1 % more, and one that saves 1 % of the cost takes at least 1 %
longer. `plan` makes the forecasts; here they are compared and explained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import plan
from serverless_mpi.inference.cost import BilledModel

PARTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 42, 48, 62, 64)
REPLICAS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
MAX_WORKERS = 256


def survey(
    work: plan.Work,
    platform: plan.Platform,
    model: BilledModel,
    *,
    channels: Iterable[str] | None = None,
    memory_sizes: Iterable[int] | None = None,
    memory_limit_mb: float = inf,
    max_workers: int = MAX_WORKERS,
) -> list[plan.Forecast]:
    """Forecast every deployment that fits.

    Parameters
    ----------
    work, platform, model
        As in `plan.predict`.
    channels
        Names of the channels to consider; None for all of the platform that are predictable.
    memory_sizes
        Memory sizes of a worker to consider, in MiB; None for all of the platform.
    memory_limit_mb
        Largest memory of a worker, in MiB.
    max_workers
        Largest number of workers.

    Returns
    -------
    list of plan.Forecast
        The cheapest first.

    Raises
    ------
    UsageError
        No deployment fits; the message names the number of parts that would.
    """
    known = list(channels or filter(plan.predictable, platform.channels))
    for name in known:
        if name not in platform.channels:
            raise UsageError(
                f"no channel {name!r} on {platform.name}; known: {', '.join(platform.channels)}"
            )
    sizes = [size for size in (memory_sizes or platform.memory_sizes) if size <= memory_limit_mb]
    if not sizes and memory_limit_mb < inf:
        sizes = [int(memory_limit_mb)]
    forecasts = [
        forecast
        for deployment in _deployments(work, sizes, known, max_workers)
        if (forecast := plan.predict(work, platform, deployment, model)) is not None
    ]
    if not forecasts:
        plan.check_memory(
            work, min(work.neurons, max_workers, PARTS[-1]), max(sizes), platform.base_mb
        )
        raise UsageError(
            f"every deployment takes longer than the {platform.limit_s:g} s that a worker of "
            f"{platform.name} may run; divide the samples among several runs"
        )
    return sorted(forecasts, key=lambda forecast: (forecast.usd, forecast.seconds))


def _deployments(
    work: plan.Work, memory_sizes: Iterable[int], channels: Sequence[str], max_workers: int
) -> Iterator[plan.Deployment]:
    """Yield all deployments of at most `max_workers` workers; a single part needs no channel."""
    for memory in memory_sizes:
        for parts in (p for p in PARTS if p <= min(work.neurons, max_workers)):
            for replicas in (r for r in REPLICAS if r * parts <= max_workers and r <= work.samples):
                for channel in channels if parts > 1 else (None,):
                    yield plan.Deployment(replicas, parts, channel, memory)


@dataclass(frozen=True)
class Advice:
    """The recommended deployments.

    Attributes
    ----------
    cheapest, fastest, knee
        Their forecasts.
    why
        One sentence for the user that explains the knee.
    """

    cheapest: plan.Forecast
    fastest: plan.Forecast
    knee: plan.Forecast
    why: str


def advise(forecasts: Sequence[plan.Forecast], work: plan.Work) -> Advice:
    """Choose the cheapest, the fastest, and the knee.

    Parameters
    ----------
    forecasts
        At least one.
    work
        The run, for the explanation.
    """
    cheapest = min(forecasts, key=lambda forecast: (forecast.usd, forecast.seconds))
    fastest = min(forecasts, key=lambda forecast: (forecast.seconds, forecast.usd))
    knee = min(forecasts, key=_product)
    return Advice(cheapest, fastest, knee, _why(knee, forecasts, work))


def _product(forecast: plan.Forecast) -> float:
    """Return the product of seconds and dollars, which is least at the knee."""
    return forecast.usd * forecast.seconds


def _why(knee: plan.Forecast, forecasts: Sequence[plan.Forecast], work: plan.Work) -> str:
    """Explain in a sentence why this deployment is the knee."""
    way = knee.way
    size = f"the model is {work.weight_bytes / plan.MB:,.0f} MB"
    split = [forecast for forecast in forecasts if forecast.way.parts > 1]
    whole = [forecast for forecast in forecasts if forecast.way.parts == 1]
    if way.workers == 1:
        text = f"{size} and fits one worker, which computes {knee.compute_s:.2g} s"
        if split:
            best = min(split, key=lambda forecast: forecast.seconds)
            text += (
                f"; in {best.way.parts} parts the exchanges of "
                f"{work.layers} layers alone take {best.exchange_s:.2g} s"
            )
        return text + "."
    if way.parts == 1:
        serial_s = [forecast.seconds for forecast in whole if forecast.way.workers == 1]
        than = f" (one worker: {min(serial_s):.3g} s)" if serial_s else ""
        return (
            f"{size} and fits one worker, so the samples are divided and nothing is "
            f"exchanged{than}."
        )
    if not whole:
        return (
            f"{size} and its activations do not fit one worker, so its rows are divided; "
            f"{way.channel} costs least."
        )
    best = min(whole, key=_product)
    return (
        f"loading all of it ({size}) into every worker would cost more: {best.way.name} takes "
        f"{best.seconds:.3g} s and "
        f"{best.usd:.3g} dollars."
    )


# --- as tables ------------------------------------------------------------------------------------

HEADS = (
    "way",
    "batches",
    "start s",
    "load s",
    "compute s",
    "exchange s",
    "seconds",
    "dollars",
    "of these: requests",
)


def cells(forecast: plan.Forecast) -> tuple[str | int, ...]:
    """Return the cells of a forecast under HEADS.

    Parameters
    ----------
    forecast
        The forecast.
    """
    return (
        forecast.way.name,
        forecast.batches,
        f"{forecast.start_s:.2f}",
        f"{forecast.load_s:.2f}",
        f"{forecast.compute_s:.2f}",
        f"{forecast.exchange_s:.2f}",
        f"{forecast.seconds:.2f}",
        f"{forecast.usd:.6f}",
        f"{forecast.bill.communication_usd:.6f}",
    )


def kind(forecast: plan.Forecast) -> str:
    """Return the kind of a deployment: serial, data-parallel, rows or grid, and its channel.

    Parameters
    ----------
    forecast
        Its forecast.
    """
    way = forecast.way
    if way.workers == 1:
        return "serial"
    if way.parts == 1:
        return "data-parallel"
    return f"{'rows' if way.replicas == 1 else 'grid'}, {way.channel}"


def best_of_kinds(forecasts: Sequence[plan.Forecast]) -> list[tuple[str, plan.Forecast]]:
    """Return the best forecast of each kind: (kind, forecast), the least product first.

    Parameters
    ----------
    forecasts
        In any order.
    """
    best: dict[str, plan.Forecast] = {}
    for forecast in sorted(forecasts, key=_product):
        best.setdefault(kind(forecast), forecast)
    return list(best.items())


def as_dict(forecast: plan.Forecast) -> dict[str, Any]:
    """Return a forecast as JSON values.

    Parameters
    ----------
    forecast
        The forecast.
    """
    way = forecast.way
    return {
        "replicas": way.replicas,
        "parts": way.parts,
        "channel": way.channel,
        "memory_mb": way.memory_mb,
        "batches": forecast.batches,
        "start_s": forecast.start_s,
        "load_s": forecast.load_s,
        "compute_s": forecast.compute_s,
        "exchange_s": forecast.exchange_s,
        "seconds": forecast.seconds,
        "usd": forecast.usd,
        "communication_usd": forecast.bill.communication_usd,
        "requests": {name: row["billed"] for name, row in forecast.use.requests.items()},
    }
