"""`--profile` as both platforms use it: what is known of a job, and where its report goes."""

from __future__ import annotations

import sys
from pathlib import Path

from serverless_mpi import channels
from serverless_mpi.launch.base import Plan
from serverless_mpi.launch.output import printable_lines, say
from serverless_mpi.metering import Prices
from serverless_mpi.profile import save as reports
from serverless_mpi.profile.analysis import Profile


def check(plan: Plan) -> None:
    """Raise UsageError if the file of the profile cannot be written.

    Parameters
    ----------
    plan
        The job.
    """
    if plan.profile is not None:
        reports.check(plan.profile)


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
    profile = Profile(
        program,
        plan.size,
        plan.channel,
        platform,
        holds_up=not limits.async_put,
        rank_usd_per_s=rank_usd_per_s,
    )

    def show(line: str) -> None:
        sys.stderr.write(printable_lines(line) + "\n")

    reports.save(folder, plan.profile or "", profile, prices, show, say)
