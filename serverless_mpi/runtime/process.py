"""The runtime of this process: made at first use, disowned by a fork, and the end of the
process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, NoReturn

from serverless_mpi.job import JobSpec, take_spec

if TYPE_CHECKING:
    from serverless_mpi.runtime.runtime import Runtime

current: Runtime | None = None  # what `get_runtime` returns, once it has been called
_creation_lock = threading.Lock()
_forkable: weakref.WeakSet[Runtime] = weakref.WeakSet()  # a fork copies them


def get_runtime() -> Runtime:
    """Return the runtime of this process, and make it at the first call.

    Returns
    -------
    Runtime
        The rank that the launcher described in the environment; without a launcher, the only rank
        of a job of size 1 on the `memory` channel.
    """
    global current
    if current is None:
        from serverless_mpi.runtime.runtime import Runtime  # circular: it registers itself here

        with _creation_lock:
            if current is None:
                current = Runtime(take_spec(os.environ) or JobSpec.new(1, "memory"))
    return current


def watch_forks(runtime: Runtime) -> None:
    """Call `runtime.after_fork()` in every child that this process forks."""
    _forkable.add(runtime)


def _after_fork() -> None:
    global _creation_lock
    _creation_lock = threading.Lock()
    for runtime in list(_forkable):
        runtime.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def warn(text: str) -> None:
    """Print a line to standard error, if there is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
        print(text, file=sys.stderr, flush=True)


def end(code: int, reason: str = "") -> NoReturn:
    """Print `reason`, if there is one, and end this process at once.

    Closed or missing standard streams do not prevent it.
    """
    try:
        if reason:
            warn(reason)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)
