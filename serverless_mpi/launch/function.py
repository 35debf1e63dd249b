"""The module that a deployed function names: what an environment does before its first invocation, and the two entries."""

from serverless_mpi.launch.handler import handler, preload, report
from serverless_mpi.launch.sandbox import seal

__all__ = ["handler", "report"]

preload()
seal()
