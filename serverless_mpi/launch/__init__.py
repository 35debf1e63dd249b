"""Launchers: how the ranks of a job come to life.

The table: a platform's name and where its launcher is, imported on first use.
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
    """The launcher class of that platform.

    Raises
    ------
    UsageError
        No such platform; the message names the known ones.
    """
    launcher: type[Launcher] = plugins.load(plugins.LAUNCHERS, LAUNCHERS, name, "platform")
    return launcher
