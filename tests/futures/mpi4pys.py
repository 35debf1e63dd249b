"""mpi4py's own tests of its futures (demo/futures/test_futures.py) on this package's MPI.

The file's text runs as this program's, so that workers import it as they would
a program.  What it asks of mpi4py's insides is given by `_core`, as far as this
package has the like; a case that needs more is excused by name.  The file is
named by the environment, for workers have no arguments.
"""

from __future__ import annotations

import os
import sys
import unittest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from serverless_mpi import MPI, alias, futures
from serverless_mpi.futures import pool, worker

_INSIDE = "looks at the threads, queues and events of mpi4py's pool"
EXCUSED = {
    "ProcessPoolShutdownTest.test_shutdown": _INSIDE,
    "ProcessPoolShutdownTest.test_shutdown_cancel": _INSIDE,
    "ProcessPoolShutdownTest.test_init_bootup_shutdown": _INSIDE,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _INSIDE,
    "ProcessPoolShutdownTest.test_del_shutdown": _INSIDE,
    "ProcessPoolSubmitTest.test_mpi_serialized_support": "looks at the lock that mpi4py takes where MPI knows no threads",
    "ThenTest": "tests mpi4py.futures.aplus, which mpi4py does not document and this package does not have",
}
if pool.shared is None:  # with workers that Spawn starts; the cases of one job take 2 to 3 minutes
    EXCUSED["ProcessPoolInitTest.test_use_pkl5_environ"] = (
        "wants to be warned of a word for how pickles travel, which has no effect here"
    )


def _split(comm: MPI.Intracomm, root: int) -> tuple[Any, Any]:
    """(root and the others as two groups, this process's group)."""
    group = comm.Split(int(comm.rank == root), comm.rank)
    assert isinstance(group, MPI.Intracomm)
    leader = root if comm.rank != root else int(root == 0)
    return group.Create_intercomm(0, comm, leader), group


def _main() -> None:
    for name in EXCUSED:
        where, _, case = name.partition(".")
        if case:
            if hasattr(globals().get(where), case):
                setattr(globals()[where], case, None)
        else:
            globals().pop(where, None)
    _unittest_main(argv=sys.argv)


alias.own_futures()
aplus: Any = ModuleType("mpi4py.futures.aplus")
aplus.ThenableFuture = futures.Future
sys.modules["mpi4py.futures.aplus"] = aplus
_core = SimpleNamespace(
    SharedPool=pool.shared,
    MAIN_RUN_NAME=worker.WORKER_NAME,
    RemoteTraceback=worker.RemoteTraceback,
    comm_split=_split,
)
futures._core = _core  # type: ignore[attr-defined]
_file = Path(os.environ["SMPI_TEST_FUTURES"])
sys.path.insert(0, str(_file.parent.parent.parent / "test"))
_unittest_main, unittest.main = unittest.main, _main  # type: ignore[assignment,misc]
exec(compile(_file.read_text(), str(_file), "exec"), globals())
