"""The names of mpi4py.MPI: this package's own, or under mpirun the real module.

smpirun describes the job in SMPI_JOB, which takes precedence. Otherwise a process manager of MPI is
recognized by its variables, and this name becomes the real `mpi4py.MPI`. Otherwise the process is a
job of size 1.

Every module of api/ lists in `__all__` what it adds here; tests/api/test_signatures.py compares the
names, parameters and defaults with mpi4py's.
"""

from __future__ import annotations

import os
import sys

from serverless_mpi.env import ENV_PROFILE as _ENV_PROFILE
from serverless_mpi.env import ENV_TRACE as _ENV_TRACE
from serverless_mpi.job import current_spec as _current_spec
from serverless_mpi.job import is_rank as _is_rank
from serverless_mpi.job import take_spec as _take_spec


def under_mpirun() -> bool:
    """Whether a real MPI's launcher, and not smpirun, started this process."""
    return _current_spec(os.environ) is None and _is_rank(os.environ)


if under_mpirun():
    try:
        from mpi4py import MPI as _real
    except ImportError as error:
        raise ImportError(
            "this process was started by mpirun, which needs the real mpi4py:"
            " pip install 'serverless-mpi[mpi]', or start it with smpirun instead"
        ) from error
    sys.modules[__name__] = _real
else:
    _take_spec(os.environ)
    from serverless_mpi.api.arrays import *
    from serverless_mpi.api.attributes import *
    from serverless_mpi.api.bsend import *
    from serverless_mpi.api.comm import *
    from serverless_mpi.api.comm_constructors import *
    from serverless_mpi.api.datatype import *
    from serverless_mpi.api.datatype_state import *
    from serverless_mpi.api.environ import *
    from serverless_mpi.api.environ import at_exit as _at_exit
    from serverless_mpi.api.errhandler import *
    from serverless_mpi.api.file import *
    from serverless_mpi.api.file_modes import *
    from serverless_mpi.api.grequest import *
    from serverless_mpi.api.group import *
    from serverless_mpi.api.handle import *
    from serverless_mpi.api.info import *
    from serverless_mpi.api.intercomm import *
    from serverless_mpi.api.intracomm import *
    from serverless_mpi.api.matched import *
    from serverless_mpi.api.memory import *
    from serverless_mpi.api.op import *
    from serverless_mpi.api.persistent import *
    from serverless_mpi.api.pickling import *
    from serverless_mpi.api.ports import *
    from serverless_mpi.api.request import *
    from serverless_mpi.api.session import *
    from serverless_mpi.api.status import *
    from serverless_mpi.api.topocomm import *
    from serverless_mpi.api.types import *
    from serverless_mpi.api.win import *
    from serverless_mpi.api.win_sync import *
    from serverless_mpi.core.envelope import ANY_SOURCE as ANY_SOURCE
    from serverless_mpi.core.envelope import ANY_TAG as ANY_TAG
    from serverless_mpi.core.envelope import PROC_NULL, ROOT, UNDEFINED
    from serverless_mpi.errors import *
    from serverless_mpi.errors import MPIException as Exception

    def _observe_calls() -> None:
        """Report every call; launch/sandbox.py calls it if MPI was imported before the fork."""
        from serverless_mpi.observers import wrap

        communicating = (Comm, File, Message, Request, Win)
        classes = [cls for cls in list(globals().values()) if isinstance(cls, type)]
        wrap(cls for cls in classes if issubclass(cls, communicating))

    if _ENV_TRACE in os.environ or _ENV_PROFILE in os.environ:
        _observe_calls()
    _at_exit()
    del os, sys, annotations  # no names of MPI
