"""Launchers start the ranks of a job, each on one platform.

`LAUNCHERS` maps the name of a platform to its class, which is imported on first
use.  Other distributions add theirs by entry point (`serverless_mpi.plugins`).
"""

from __future__ import annotations

from serverless_mpi import plugins
from serverless_mpi.launch.base import Launcher

LAUNCHERS: dict[str, str] = {
    "local": "serverless_mpi.launch.local:LocalLauncher",
    "lambda": "serverless_mpi.launch.aws_lambda:LambdaLauncher",
}
DEFAULT = "local"


def load(name: str) -> type[Launcher]:
    """Return the launcher class of a platform.

    Parameters
    ----------
    name
        Name of the platform, as `--platform` takes it.

    Raises
    ------
    UsageError
        There is no such platform; the text lists the known ones.
    """
    launcher: type[Launcher] = plugins.load(plugins.LAUNCHERS, LAUNCHERS, name, "platform")
    return launcher
