"""The module that a deployed function names: its two entry points.

Importing it is what an environment does before its first invocation.
"""

from serverless_mpi.launch.handler import handler, preload, report
from serverless_mpi.launch.sandbox import seal

__all__ = ["handler", "report"]

preload()
seal()
