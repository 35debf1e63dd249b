"""Launchers: how the ranks of a job come to life.

The table: a platform's name and where its launcher is, imported on first use.
"""

from __future__ import annotations

import importlib

from serverless_mpi.errors import UsageError
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
    if name not in LAUNCHERS:
        raise UsageError(f"unknown platform {name!r}; known: {', '.join(LAUNCHERS)}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    launcher: type[Launcher] = getattr(importlib.import_module(module), attribute)
    return launcher
