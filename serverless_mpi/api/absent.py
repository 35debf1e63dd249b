"""Parts of MPI that are not implemented: dynamic processes.

The names exist, so that programs that only mention them run. A call raises `MissingError`, which is
an `MPI.Exception` and a `NotImplementedError`, with the name of the missing part. Calls of a
communicator that are missing are in comm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from serverless_mpi.errors import missing


def _absent(name: str, what: str) -> Callable[..., NoReturn]:
    """A function that raises `MissingError` for the call `name` of the part `what` of MPI."""

    def absent(*arguments: Any, **more: Any) -> NoReturn:
        raise missing(f"{name} ({what})")

    absent.__name__ = absent.__qualname__ = name.split(".")[-1]
    absent.__doc__ = f"Missing: {what}."
    return absent


_PROCESSES = "dynamic processes"


Open_port = _absent("Open_port", _PROCESSES)
Close_port = _absent("Close_port", _PROCESSES)
Publish_name = _absent("Publish_name", _PROCESSES)
Unpublish_name = _absent("Unpublish_name", _PROCESSES)
Lookup_name = _absent("Lookup_name", _PROCESSES)


__all__ = ["Close_port", "Lookup_name", "Open_port", "Publish_name", "Unpublish_name"]
