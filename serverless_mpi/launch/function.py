"""The entry module of a deployed function: its two handlers, and what runs at a cold start."""

from serverless_mpi.launch.handler import handler, preload, report
from serverless_mpi.launch.sandbox import seal

__all__ = ["handler", "report"]

preload()
seal()
