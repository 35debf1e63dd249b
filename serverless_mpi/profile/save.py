"""Makes the reports of a profile: text on standard error, and a file if one is asked for.

The suffix of the file is its format: .html, .json or .txt (`SUFFIXES` of launch/profiling.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from serverless_mpi.metering import Prices
from serverless_mpi.profile import analysis, text
from serverless_mpi.profile.analysis import Profile


def save(
    folder: Path,
    file: str,
    profile: Profile,
    prices: Prices,
    show: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Merge the files of the ranks, show the text, and write the file.

    Parameters
    ----------
    folder
        With the files that the ranks left.
    file
        Path; "" for no file.
    profile
        With what is known of the job; filled.
    prices
        Prices of the services.
    show
        Called with each line of the text.
    say
        Called with one line for the user: where the file is, or the reason of a failure.
    """
    try:
        analysis.merge(folder, profile, prices)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        say("--profile: a rank's file is damaged; there is no profile")
        return
    report = list(text.lines(profile))
    for line in report:
        show(line)
    if not file:
        return
    try:
        Path(file).write_text(_contents(file, profile, report))
    except OSError as error:
        say(f"--profile={file}: cannot be written: {error.strerror}")
    else:
        say(f"the profile is in {file}")


def _contents(file: str, profile: Profile, report: list[str]) -> str:
    if file.endswith(".json"):
        return json.dumps(profile.to_json()) + "\n"
    if file.endswith(".txt"):
        return "\n".join(report) + "\n"
    from serverless_mpi.profile import page  # it imports NumPy, which the launcher does not need

    return page.html(profile)
