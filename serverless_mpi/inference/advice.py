"""The survey of all deployments, and the choice: the cheapest, the fastest, the knee between
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    place: plan.Platform,
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
    work, place, model
        As in `plan.predict`.
    channels
        Names of the channels to consider; None for all of the platform.
    memory_sizes
        MiB per worker to consider; None for all of the platform.
    memory_limit_mb
        Largest MiB per worker.
    max_workers
        Largest number of workers.

    Returns
    -------
    list of plan.Forecast
        The cheapest first.

    Raises
    ------
    UsageError
        None fits; the message names the number of parts that would.
    """
    known = list(channels or place.channels)
    for name in known:
        if name not in place.channels:
            raise UsageError(
                f"no channel {name!r} on {place.name}; known: {', '.join(place.channels)}"
            )
    sizes = [size for size in (memory_sizes or place.memory_sizes) if size <= memory_limit_mb]
    if not sizes and memory_limit_mb < inf:
        sizes = [int(memory_limit_mb)]
    found: list[plan.Forecast] = []
    for memory in sizes:
        for parts in (p for p in PARTS if p <= min(work.neurons, max_workers)):
            for replicas in (r for r in REPLICAS if r * parts <= max_workers and r <= work.samples):
                for channel in known if parts > 1 else (None,):
                    forecast = plan.predict(
                        work, place, plan.Deployment(replicas, parts, channel, memory), model
                    )
                    if forecast is not None:
                        found.append(forecast)
    if not found:
        plan.check_memory(
            work, min(work.neurons, max_workers, PARTS[-1]), max(sizes), place.base_mb
        )
        raise UsageError(
            f"every deployment takes longer than the {place.limit_s:g} s that a worker of "
            f"{place.name} may run; divide the samples among several runs"
        )
    return sorted(found, key=lambda one: (one.usd, one.seconds))


@dataclass(frozen=True)
class Advice:
    """The cheapest and the fastest forecast, the knee between them, and why it is the knee."""

    cheapest: plan.Forecast
    fastest: plan.Forecast
    knee: plan.Forecast
    why: str


def advise(forecasts: Sequence[plan.Forecast], work: plan.Work) -> Advice:
    """Return the cheapest, the fastest, and the knee: the least product of seconds and dollars.

    At the knee, saving 1 % of the time costs at least 1 % more, and the other way round.
    """
    cheapest = min(forecasts, key=lambda one: (one.usd, one.seconds))
    fastest = min(forecasts, key=lambda one: (one.seconds, one.usd))
    knee = min(forecasts, key=lambda one: one.usd * one.seconds)
    return Advice(cheapest, fastest, knee, _why(knee, forecasts, work))


def _why(knee: plan.Forecast, forecasts: Sequence[plan.Forecast], work: plan.Work) -> str:
    way = knee.way
    size = f"the model is {work.weight_bytes / plan.MB:,.0f} MB"
    split = [one for one in forecasts if one.way.parts > 1]
    whole = [one for one in forecasts if one.way.parts == 1]
    if way.workers == 1:
        text = f"{size} and fits one worker, which computes {knee.compute_s:.2g} s"
        if split:
            best = min(split, key=lambda one: one.seconds)
            text += (
                f"; in {best.way.parts} parts the exchanges of "
                f"{work.layers} layers alone take {best.exchange_s:.2g} s"
            )
        return text + "."
    if way.parts == 1:
        lone = [one for one in whole if one.way.workers == 1]
        than = (
            f" (one worker: {min(lone, key=lambda one: one.seconds).seconds:.3g} s)" if lone else ""
        )
        return (
            f"{size} and fits one worker, so the samples are divided and nothing is "
            f"exchanged{than}."
        )
    if not whole:
        return (
            f"{size} and its activations do not fit one worker, so its rows are divided; "
            f"{way.channel} costs least."
        )
    best = min(whole, key=lambda one: one.usd * one.seconds)
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


def cells(one: plan.Forecast) -> tuple[Any, ...]:
    """Return the cells of a forecast under HEADS."""
    return (
        one.way.name,
        one.batches,
        f"{one.start_s:.2f}",
        f"{one.load_s:.2f}",
        f"{one.compute_s:.2f}",
        f"{one.exchange_s:.2f}",
        f"{one.seconds:.2f}",
        f"{one.usd:.6f}",
        f"{one.bill.communication_usd:.6f}",
    )


def kind(one: plan.Forecast) -> str:
    """Return the kind of a deployment: serial, data-parallel, rows or grid."""
    way = one.way
    if way.workers == 1:
        return "serial"
    if way.parts == 1:
        return "data-parallel"
    return f"{'rows' if way.replicas == 1 else 'grid'}, {way.channel}"


def best_of_kinds(forecasts: Sequence[plan.Forecast]) -> list[tuple[str, plan.Forecast]]:
    """Return (kind, its forecast with the least product of seconds and dollars), best first."""
    best: dict[str, plan.Forecast] = {}
    for one in sorted(forecasts, key=lambda one: one.usd * one.seconds):
        best.setdefault(kind(one), one)
    return list(best.items())


def as_dict(one: plan.Forecast) -> dict[str, Any]:
    """Return a forecast as JSON's types."""
    way = one.way
    return {
        "replicas": way.replicas,
        "parts": way.parts,
        "channel": way.channel,
        "memory_mb": way.memory_mb,
        "batches": one.batches,
        "start_s": one.start_s,
        "load_s": one.load_s,
        "compute_s": one.compute_s,
        "exchange_s": one.exchange_s,
        "seconds": one.seconds,
        "usd": one.usd,
        "communication_usd": one.bill.communication_usd,
        "requests": {name: row["billed"] for name, row in one.use.requests.items()},
    }
