"""The runtime of this process, made at first use."""

from __future__ import annotations

import os
import threading

from serverless_mpi import channels
from serverless_mpi.job import JobSpec, take_spec
from serverless_mpi.runtime.failures import start
from serverless_mpi.runtime.runtime import Runtime

current: Runtime | None = None  # what `get_runtime` returns, once it has been called
_creation_lock = threading.Lock()


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
        with _creation_lock:
            if current is None:
                current = start(take_spec(os.environ) or JobSpec.new(1, channels.SINGLE_RANK))
    return current


def _after_fork() -> None:
    global _creation_lock
    _creation_lock = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
