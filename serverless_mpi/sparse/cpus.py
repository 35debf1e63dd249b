"""The default number of threads: the processors that this process may use, divided by its ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from serverless_mpi.aws.limits import LAMBDA_VCPU_MB
from serverless_mpi.env import ENV_LOCAL_RANKS, ENV_THREADS

# Variables with the number of ranks on this machine, by launcher: smpirun, Open MPI, MPICH and
# Intel MPI, MVAPICH.
LOCAL_RANKS = (
    ENV_LOCAL_RANKS,
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
LAMBDA_MB_PER_CPU = LAMBDA_VCPU_MB.value  # and of less or more memory in proportion
CGROUP = Path("/sys/fs/cgroup")


@cache
def default_threads() -> int:
    """Return the threads of a call without `threads`; determined once per process.

    SMPI_THREADS if it is set; else the processors of the affinity mask, at most those the cgroup's
    quota or Lambda's memory pays for, divided by the ranks of this job on this machine; at least 1.

    Raises
    ------
    ValueError
        SMPI_THREADS is not a whole number of at least 1.
    """
    return threads_of(os.environ, _affinity(), quota(CGROUP))


def threads_of(environ: Mapping[str, str], processors: int, allowed: float) -> int:
    """Return the default number of threads by the rule of `default_threads`.

    Parameters
    ----------
    environ
        Environment variables.
    processors
        Number of processors in the affinity mask.
    allowed
        Number of processors that the cgroup's quota permits; may be fractional or infinite.

    Raises
    ------
    ValueError
        SMPI_THREADS is not a whole number of at least 1.
    """
    given = environ.get(ENV_THREADS)
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"{ENV_THREADS} is {given!r}; it must be a whole number of at least 1")
        return int(given)
    memory = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory.isdecimal():
        allowed = min(allowed, int(memory) / LAMBDA_MB_PER_CPU)
    ranks = next(
        (int(value) for name in LOCAL_RANKS if (value := environ.get(name, "")).isdecimal()), 1
    )
    return max(1, math.ceil(min(processors, allowed)) // max(1, ranks))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def quota(cgroup: Path) -> float:
    """Return the number of processors that a cgroup's quota permits; infinity without a quota.

    Parameters
    ----------
    cgroup
        Folder of the cgroup, version 2 or 1.
    """
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip()
                for name in ("quota", "period")
            )
        except OSError:
            return math.inf
    return int(limit) / int(period) if limit.isdecimal() and int(period) else math.inf
