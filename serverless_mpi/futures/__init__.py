"""mpi4py.futures on this package's MPI: executors whose workers are the ranks of a job.

    smpirun -n 5 -m serverless_mpi.futures prog.py

Rank 0 runs prog.py, and ranks 1 to 4 are the workers of its MPIPoolExecutor. In a program that all
ranks run, use `with MPICommExecutor() as executor:`. The code is this package's own, so mpi4py need
not be installed; under mpirun this module is the real mpi4py.futures.
"""

from __future__ import annotations

import sys

from serverless_mpi import MPI

if MPI.__name__ == "mpi4py.MPI":
    from mpi4py import futures as _real

    sys.modules[__name__] = _real
else:
    from concurrent.futures import (
        ALL_COMPLETED,
        FIRST_COMPLETED,
        FIRST_EXCEPTION,
        BrokenExecutor,
        CancelledError,
        Executor,
        Future,
        InvalidStateError,
        TimeoutError,
        as_completed,
        wait,
    )

    from serverless_mpi.futures.executors import (
        MPICommExecutor,
        MPIPoolExecutor,
        ProcessPoolExecutor,
        ThreadPoolExecutor,
        get_comm_workers,
    )
    from serverless_mpi.futures.util import collect, compose

    __all__ = [
        "ALL_COMPLETED",
        "BrokenExecutor",
        "CancelledError",
        "Executor",
        "FIRST_COMPLETED",
        "FIRST_EXCEPTION",
        "Future",
        "InvalidStateError",
        "MPICommExecutor",
        "MPIPoolExecutor",
        "ProcessPoolExecutor",
        "ThreadPoolExecutor",
        "TimeoutError",
        "as_completed",
        "collect",
        "compose",
        "get_comm_workers",
        "wait",
    ]
