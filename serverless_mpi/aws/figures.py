"""Figures of AWS as JSON: a file of `--figures`, what `smpi calibrate` stores, a job's setting.

The rule: one text serves all three, and every rank of a job gets the same one (`SETTING` of its
`JobSpec`), because algorithms are chosen by it.  A text may lack figures; those are the package's.

Anyone who may write to the bucket of a stack can write its figures, and a user may write a file by
hand.  So `from_json` accepts numbers that can be times and rates, and nothing else.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from serverless_mpi.aws.limits import AWS, Figures
from serverless_mpi.errors import UsageError

VERSION = 1
SETTING = "figures"  # of a JobSpec: the JSON text of the job's figures
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"  # texts of this form sort by time
_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def to_json(figures: Figures) -> str:
    """Return the figures that differ from the package's, with their origin, as one line of JSON.

    Parameters
    ----------
    figures
        Figures of any origin.  Their sources and dates are not part of the text.

    Returns
    -------
    str
        A text for `from_json`.
    """
    return json.dumps(
        {
            "version": VERSION,
            "stack": figures.stack,
            "region": figures.region,
            "measured": figures.measured,
            "figures": {
                name: [figure.value, figure.low, figure.high]
                for name, figure in figures.items()
                if figure != getattr(AWS, name)
            },
            "starts": {str(memory): list(pair) for memory, pair in figures.starts.items()},
        }
    )


def from_json(text: str | bytes, name: str) -> Figures:
    """Return the figures in what `to_json` wrote.

    Parameters
    ----------
    text
        JSON.
    name
        Of the file or object, for errors.

    Raises
    ------
    UsageError
        The text is not figures of this version; the message names the first field that is wrong.
    """
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{name} is not a file of figures: it is not JSON") from None
    if not isinstance(parsed, dict) or parsed.get("version") != VERSION:
        raise UsageError(
            f"{name} is not a file of figures of version {VERSION}; `smpi calibrate` writes one"
        )
    origin = {each: parsed.get(each, "") for each in ("stack", "region", "measured")}
    for each, value in origin.items():
        if not isinstance(value, str):
            raise _wrong(name, each, "a text")
    if origin["measured"] and not _TIME.fullmatch(origin["measured"]):
        raise _wrong(name, "measured", "a time such as 2026-11-01T12:00:00Z")
    figures = replace(AWS, **origin, starts=_starts(parsed.get("starts", {}), name))
    source = f"measured on stack {figures.stack}" if figures.stack else name
    known = dict(AWS.items())
    changed = {}
    for each, numbers in _table(parsed.get("figures"), name, "figures").items():
        if each not in known:
            raise UsageError(f"{name} has a figure {each!r}; known are {', '.join(known)}")
        value, low, high = _numbers(numbers, 3, name, each)
        if not low <= value <= high:
            raise _wrong(name, each, "[value, low, high] with low <= value <= high")
        changed[each] = replace(
            known[each], value=value, low=low, high=high, source=source, date=figures.measured
        )
    return figures.changed(changed)


def load(path: str) -> Figures:
    """Return the figures in a file.

    Parameters
    ----------
    path
        Name of the file, the value of option `--figures`.

    Raises
    ------
    UsageError
        It cannot be read, or is not a file of figures.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--figures {path}: {error.strerror}") from error
    return from_json(text, f"--figures {path}")


def of_job(settings: Mapping[str, str]) -> Figures | None:
    """Return the figures that a job's launcher passed to its ranks.

    Parameters
    ----------
    settings
        Settings of the job's `JobSpec`, by name.

    Returns
    -------
    Figures or None
        None if the launcher passed none.

    Raises
    ------
    UsageError
        The setting is not a text of `to_json`.
    """
    text = settings.get(SETTING)
    return None if text is None else from_json(text, "the job's setting")


def setting(figures: Figures | None) -> dict[str, str]:
    """Return the setting by which a launcher passes figures to the ranks of a job.

    Parameters
    ----------
    figures
        Figures of the job; None for the package's own.

    Returns
    -------
    dict
        Settings for a `JobSpec`; empty for None.
    """
    return {} if figures is None else {SETTING: to_json(figures)}


def timestamp(seconds: float) -> str:
    """Return a time as figures have it.

    Parameters
    ----------
    seconds
        Seconds since the epoch.

    Returns
    -------
    str
        ISO 8601 in UTC, as "2026-11-01T12:00:00Z"; such texts sort by time.
    """
    return time.strftime(_FORMAT, time.gmtime(seconds))


def origin(figures: Figures) -> str:
    """Return where and when figures were measured, in words.

    Parameters
    ----------
    figures
        Figures of any origin.
    """
    if not figures.measured:
        return "the package's own figures" if figures == AWS else "figures of a file"
    return f"figures measured on stack {figures.stack}, {figures.region}, {figures.measured}"


def trouble(figures: Figures, region: str, stack: str = "", changed: float = 0.0) -> str | None:
    """Return why figures do not hold for a region and a stack; None if they do.

    Parameters
    ----------
    figures
        As measured, or from a file.
    region
        In which they are to be used.
    stack
        Name of the stack that they are to be used for; "" for none.
    changed
        When that stack was last changed, in seconds of the epoch; 0 if that is not known.
    """
    if figures.region and figures.region != region:
        return f"they were measured in {figures.region}, and this is {region}"
    if stack and figures.stack == stack and figures.measured < timestamp(changed):
        return (
            f"they were measured {figures.measured}, before stack {stack} was changed"
            f" ({timestamp(changed)}): run `smpi calibrate --stack {stack}` again"
        )
    return None


def _wrong(name: str, field: str, wanted: str) -> UsageError:
    return UsageError(f"{name} is not a file of figures: {field} is not {wanted}")


def _table(value: object, name: str, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, field, "a JSON object")
    return value


def _numbers(value: object, count: int, name: str, field: str) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(number) in (int, float) and 0 < number < inf for number in value)
    ):
        raise _wrong(name, field, f"a list of {count} numbers above 0")
    return [float(number) for number in value]


def _starts(value: object, name: str) -> dict[int, tuple[float, float]]:
    starts = {}
    for memory, pair in _table(value, name, "starts").items():
        if not memory.isdecimal() or len(memory) > 6:
            raise _wrong(name, "starts", "a table by memory in MB")
        cold, warm = _numbers(pair, 2, name, "starts")
        starts[int(memory)] = (cold, warm)
    return starts
