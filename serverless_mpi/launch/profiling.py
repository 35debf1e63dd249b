"""`--profile` as both platforms use it: what is known of a job, and where its report goes.

Only `save` imports the package `profile`: every job would pay for it otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serverless_mpi import channels
from serverless_mpi.errors import UsageError
from serverless_mpi.launch.base import Plan
from serverless_mpi.launch.output import printable_lines, say
from serverless_mpi.metering import Prices
from serverless_mpi.plugins import resolve

SUFFIXES = (".html", ".json", ".txt")  # formats of the file


def check(plan: Plan) -> None:
    """Check the name of the profile's file.

    Parameters
    ----------
    plan
        The job.

    Raises
    ------
    UsageError
        Its suffix is not a format, or there is no such folder.
    """
    file = plan.profile
    if not file:
        return
    if not file.endswith(SUFFIXES):
        raise UsageError(f"--profile={file}: the name ends with {', '.join(SUFFIXES)}")
    if not Path(file).absolute().parent.is_dir():
        raise UsageError(f"--profile={file}: there is no folder {Path(file).absolute().parent}")


def save(
    plan: Plan, platform: str, folder: Path, prices: Prices, rank_usd_per_s: float = 0.0
) -> None:
    """Print the profile of a job that has ended, and write its file.

    Parameters
    ----------
    plan
        The job.
    platform
        Name of its platform.
    folder
        With what the ranks left.
    prices
        Prices of the services.
    rank_usd_per_s
        Price of a rank's time.
    """
    program = " : ".join(Path(program.argv[0]).name for program in plan.programs)
    limits = channels.load(plan.channel).limits
    profile = resolve("serverless_mpi.profile.analysis:Profile")(
        program,
        plan.size,
        plan.channel,
        platform,
        holds_up=not limits.async_put,
        rank_usd_per_s=rank_usd_per_s,
    )

    def show(line: str) -> None:
        sys.stderr.write(printable_lines(line) + "\n")

    write = resolve("serverless_mpi.profile.save:save")
    write(folder, plan.profile or "", profile, prices, show, say)
