"""The runtimes of this process: that of its rank, made at first use, and one for each bridge.

A bridge is the job that this process's group and another one form (processes/). Once a process has
had a bridge, an agent thread receives in each of its runtimes, because a call that waits in one of
them receives in that one only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace

from serverless_mpi import channels
from serverless_mpi.deaths import BY_CONNECTIONS, NOTICES
from serverless_mpi.job import JobSpec, parent_spec, take_spec
from serverless_mpi.runtime.failures import start
from serverless_mpi.runtime.runtime import Runtime

current: Runtime | None = None  # what `get_runtime` returns, once it has been called
bridges: list[Runtime] = []  # runtimes of bridges that have not been released
_parent: Runtime | None = None
ending: list[Callable[[], None]] = []  # called when the interpreter ends, after `finalize`
_creation_lock = threading.Lock()


def get_runtime() -> Runtime:
    """Return the runtime of this process, and make it at the first call.

    Returns
    -------
    Runtime
        The rank that the launcher described in the environment; without a launcher, the only rank
        of a job of size 1 on the `memory` channel.
    """
    global current, _parent
    if current is None:
        with _creation_lock:
            if current is None:
                current = start(take_spec(os.environ) or JobSpec.new(1, channels.SINGLE_RANK))
                spec = parent_spec()
                if spec is not None:  # at once: the ranks that spawned this one may send already
                    _parent = join_bridge(spec)
    return current


def parent_bridge() -> Runtime | None:
    """Return the runtime of the bridge to the ranks that spawned this one; None without any."""
    if parent_spec() is None:
        return None
    get_runtime()
    with _creation_lock:
        return _parent


def join_bridge(spec: JobSpec) -> Runtime:
    """Return the runtime of a bridge, which this process begins to take part in.

    Parameters
    ----------
    spec
        The bridge, as this process sees it.
    """
    own = get_runtime()
    if NOTICES in own.spec.settings:
        spec = replace(spec, settings={**spec.settings, NOTICES: BY_CONNECTIONS})
    runtime = start(spec)
    runtime.name_processes(
        [rank if job == own.spec.job_id else (job, rank) for job, rank in spec.members]
    )
    own.receive_always()
    runtime.receive_always()
    bridges.append(runtime)
    return runtime


def release(runtime: Runtime) -> None:
    """Leave a bridge whose communicators have all been freed; no effect on other runtimes.

    Parameters
    ----------
    runtime
        Of this process.
    """
    if runtime in bridges and not runtime.in_use():
        bridges.remove(runtime)
        runtime.finalize()


def finalize() -> None:
    """Leave all bridges, and then the job."""
    error: BaseException | None = None
    while bridges:
        try:
            bridges.pop().finalize()
        except Exception as failed:
            error = error or failed
    if current is not None:
        current.finalize()
    if error is not None:
        raise error


def _after_fork() -> None:
    global _creation_lock
    _creation_lock = threading.Lock()  # a thread of the parent may have held it
    bridges.clear()
    ending.clear()


os.register_at_fork(after_in_child=_after_fork)
