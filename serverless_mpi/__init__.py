"""MPI without servers: `from serverless_mpi import MPI` replaces `from mpi4py import MPI`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serverless_mpi.calls import CallError, Cluster, Result, run

__version__ = "0.1.0"
__all__ = ["CallError", "Cluster", "Result", "run"]


def __getattr__(name: str) -> object:
    """Import what calls functions when it is first used: a rank does not need it."""
    if name in __all__:
        return getattr(import_module("serverless_mpi.calls"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
