"""A comparison as text: a table, and one line that says whether Lambda is worth it."""

from __future__ import annotations

from collections.abc import Iterator

from serverless_mpi.compare.measure import LAMBDA, MPI, Comparison, Result

BUSY_SHARE = 0.7  # of its time for which the only rank of a quiet machine has a processor
HEADS = ("ranks", "system", "seconds", "spread", "speed-up", "CPU s", "peak MB", "requests", "USD")


def title(system: str) -> str:
    """Return the name of a system as it is shown.

    Parameters
    ----------
    system
        One of `measure.SYSTEMS`.
    """
    return {MPI: "real MPI", LAMBDA: "Lambda (forecast)"}.get(system, system)


def rows(comparison: Comparison) -> Iterator[list[str]]:
    """Yield the cells of each result, the last one about its output.

    Parameters
    ----------
    comparison
        All results.
    """
    for result in comparison.results:
        cells = [str(result.ranks), title(result.system)]
        if result.error:
            yield [*cells, *[""] * (len(HEADS) - 2), result.error]
            continue
        forecast = result.system == LAMBDA
        yield [
            *cells,
            f"{result.median_s:.3f}",
            "" if forecast else _spread(result),
            f"{comparison.speedup(result):.3g}",
            f"{result.cpu_s:.2f}",
            f"{result.peak_bytes / 1e6:.0f}" if result.peak_bytes else "",
            f"{result.requests:,}" if result.requests else "",
            f"{result.usd:.8f}" if result.usd else "",
            result.output,
        ]


def _spread(result: Result) -> str:
    """Return by how much the fastest and the slowest run differ from the median."""
    if len(result.seconds) < 2 or not result.median_s:
        return ""
    low, high = min(result.seconds), max(result.seconds)
    return f"{100 * (low / result.median_s - 1):+.0f} {100 * (high / result.median_s - 1):+.0f} %"


def verdict(comparison: Comparison) -> str:
    """Return one line: is it worth running this program serverless?

    Parameters
    ----------
    comparison
        All results.
    """
    good = [one for one in comparison.results if not one.error and one.seconds]
    here = [one for one in good if one.system != LAMBDA]
    there = [one for one in good if one.system == LAMBDA]
    if not there or not here:
        return "no verdict: there is no forecast for Lambda, or no run here to compare it with"
    fastest = min(here, key=lambda one: one.median_s)
    best = min(there, key=lambda one: one.wall_s)
    start_s = best.wall_s - best.median_s
    facts = (
        f"Lambda takes {best.wall_s:.3g} s with {_ranks(best)} ({start_s:.3g} s of it the"
        f" start) for {best.usd:.3g} USD; {title(fastest.system)} here takes"
        f" {fastest.median_s:.3g} s with {_ranks(fastest)}"
    )
    if best.wall_s < fastest.median_s:
        return (
            f"worth it: {facts}, {fastest.median_s / best.wall_s:.2g} times as long{_busy(fastest)}"
        )
    if fastest.median_s < start_s:
        return f"not for speed: {facts}, less than the start of a function"
    if best.median_s > 2 * best.cpu_s / best.ranks:
        return f"not for speed: {facts}; on Lambda most of the time is spent on messages"
    return (
        f"not for speed: {facts}; with more ranks than {best.ranks} it may be, or where there is no"
        " machine like this one"
    )


def _busy(result: Result) -> str:
    """Return a warning if the ranks did not have the processors for most of the time."""
    share = result.cpu_s / (result.ranks * result.median_s)
    if result.ranks > 1 or share > BUSY_SHARE:
        return ""
    return (
        f"; but the rank here had a processor for {share:.0%} of that time only: if this machine is"
        " busy, repeat it on a quiet one"
    )


def _ranks(result: Result) -> str:
    return f"{result.ranks} rank{'s' * (result.ranks > 1)}"


def lines(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of the table, and the verdict.

    Parameters
    ----------
    comparison
        All results.
    """
    yield (
        f"{comparison.program} on {comparison.processors} processors; the forecast has functions of"
        f" {comparison.memory_mb} MB"
    )
    widths = (5, 18, 10, 12, 9, 9, 8, 10, 13)
    heads = [*HEADS, "output"]
    for cells in [heads, *rows(comparison)]:
        fixed = [
            f"{cell:<{width}}" if column == 1 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        yield f"{' '.join(fixed)}  {cells[-1]}".rstrip()
    yield verdict(comparison)


def markdown(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and the verdict.

    Parameters
    ----------
    comparison
        All results.
    """
    yield f"| {' | '.join([*HEADS, 'output'])} |"
    yield "|" + "---|" * (len(HEADS) + 1)
    for cells in rows(comparison):
        yield f"| {' | '.join(cells)} |"
    yield ""
    text = verdict(comparison)
    yield f"{text[0].upper()}{text[1:]}."
