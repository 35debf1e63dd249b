"""Interleaved measurements: variants take turns within a run, so a change of load affects all."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.table import spread


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each measure's value, `rounds` times, one after the other within a round."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return values


def calm(process: int | str = "self") -> None:
    """Ask for a process's precedence over other sessions of the machine, as far as one may.

    `nice` counts within a session alone, and ranks and emulator have sessions of their own.
    Source: sched(7), "The autogroup feature".
    """
    with contextlib.suppress(OSError), open(f"/proc/{process}/autogroup", "w") as file:
        file.write("-20")


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, str]:
    """Median of over/under of the same turn, and its spread."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(each), spread(each)
