"""The command line of `smpi compare`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from serverless_mpi.aws import figures as files
from serverless_mpi.compare import measure, page, report
from serverless_mpi.errors import UsageError
from serverless_mpi.launch.output import printable_lines
from serverless_mpi.metering import Prices


def run(options: argparse.Namespace) -> int:
    """Compare, print the table, and write the files that were asked for.

    Parameters
    ----------
    options
        Of `smpi compare`.

    Raises
    ------
    UsageError
        An option has a value that it cannot have.
    """
    request = measure.Request(
        tuple(options.program),
        _numbers(options.ranks),
        tuple(options.systems.split(",")) if options.systems else measure.SYSTEMS,
        repeat=_positive("--repeat", options.repeat),
        timeout_s=_positive("--timeout", options.timeout),
        memory_mb=_positive("--memory", options.memory),
    )
    measure.check(request)
    for option, path in (("--json", options.json), ("--html", options.html)):
        if path and path != "-" and not Path(path).absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {Path(path).absolute().parent}")
    prices = Prices.load(options.prices)
    figures = None if options.figures is None else files.load(options.figures)

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"smpi: {line}\n")

    comparison = measure.compare(request, prices, figures, progress)
    if options.json == "-":
        print(json.dumps(comparison.to_json()))
        return 0
    lines = report.markdown if options.markdown else report.lines
    for line in lines(comparison):
        print(printable_lines(line))
    if options.json:
        _write("--json", options.json, json.dumps(comparison.to_json()) + "\n")
    if options.html:
        _write("--html", options.html, page.html(comparison))
    return 0


def _write(option: str, path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _positive(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{option} {text}: not a whole number of at least 1")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"-n {text}: numbers of ranks are separated by commas, as in -n 1,2,4")
    return tuple(sorted({int(word) for word in words}))
