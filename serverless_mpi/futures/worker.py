"""A worker: sets itself up for an executor, runs tasks one by one, and returns their outcomes.

The first task of an executor in a worker brings the executor's `Setup`, later ones its number. The
program's main module is imported under the name `WORKER_NAME`, not run as the program, so that the
functions and classes that tasks refer to can be unpickled.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import runpy
import sys
import threading
import traceback
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serverless_mpi.MPI import ANY_TAG, Intracomm, Status, pickle

TASK, STOP = 1, 2  # tags to a worker
RESULT = 3  # tag from a worker: (whether it succeeded, result or exception)
WORKER_NAME = "__worker__"  # of the program's main module in a worker, as in mpi4py.futures

# `this_thread.workers` is the communicator of the workers, in a thread that is a worker.
this_thread = threading.local()


class RemoteTraceback(Exception):
    """The cause of a task's exception: the text of its traceback in the worker."""

    def __str__(self) -> str:
        return str(self.args[0])


class SetupError(Exception):
    """An executor's initializer, or its main module, failed in a worker."""


@dataclass(frozen=True)
class Main:
    """Source of the program's main module.

    Attributes
    ----------
    module
        Its name if the program was run with `-m`.
    path
        Its file, folder or archive. If both are None, nothing is imported.
    """

    module: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Setup:
    """What an executor does once in a worker before its first task there.

    Attributes
    ----------
    number
        Number of the executor in the process that submits.
    main
        Main module to import.
    rest
        Packed: initializer, its arguments, entries of sys.path, environment variables, working
        folder, names of the main module. It is unpacked after the main module is imported, since
        it may refer to it.
    """

    number: int
    main: Main
    rest: Any

    def apply(self, unpack: Callable[[Any], Any]) -> None:
        """Set up the worker.

        Parameters
        ----------
        unpack
            Unpacks `rest`.
        """
        _import_main(self.main)
        initializer, initargs, path, env, wdir, names = unpack(self.rest)
        sys.path[:0] = [entry for entry in path if entry not in sys.path]
        os.environ.update(env)
        if wdir is not None:
            os.chdir(wdir)
        vars(sys.modules["__main__"]).update(names)
        if initializer is not None:
            initializer(*initargs)


_mains: set[Main] = {Main()}


def _import_main(main: Main) -> None:
    """Import the program's main module, without running it as the program, so tasks unpickle."""
    if main in _mains:
        return
    module = types.ModuleType(WORKER_NAME)
    sys.modules[WORKER_NAME] = sys.modules["__main__"] = module
    if main.module is not None:
        spec = importlib.util.find_spec(main.module)
        assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
        code = spec.loader.get_code(main.module)
        module.__spec__, module.__package__, module.__file__ = spec, spec.parent, spec.origin
    elif os.path.isfile(str(main.path)) and not zipfile.is_zipfile(str(main.path)):
        module.__file__ = str(main.path)
        with open(str(main.path), "rb") as file:
            code = compile(file.read(), str(main.path), "exec")
    else:  # a folder or an archive
        vars(module).update(runpy.run_path(str(main.path), run_name=WORKER_NAME))
        code = None
    if code is not None:
        exec(code, vars(module))
    _mains.add(main)


class WorkerState:
    """The executors for which a worker is set up.

    Parameters
    ----------
    unpack
        Unpacks tasks.
    """

    def __init__(self, unpack: Callable[[Any], Any]) -> None:
        self._unpack = unpack
        self._ready: set[int] = set()

    def serve(self, setup: Setup | int, task: object) -> tuple[bool, Any]:
        """Run a task.

        Parameters
        ----------
        setup
            Setup of the executor, or its number if this worker is set up.
        task
            Packed function, arguments and keyword arguments.

        Returns
        -------
        tuple
            Whether the task succeeded, and its result or exception.
        """
        try:
            if isinstance(setup, Setup) and setup.number not in self._ready:
                try:
                    setup.apply(self._unpack)
                except BaseException as error:
                    raise SetupError(f"an executor's setup failed: {error!r}") from error
                self._ready.add(setup.number)
            fn, args, kwargs = self._unpack(task)
            return True, fn(*args, **kwargs)
        except BaseException as error:
            return False, _with_traceback(error)


def _with_traceback(error: BaseException) -> BaseException:
    """Return an exception with the text of its traceback as its cause."""
    error.__cause__ = RemoteTraceback(
        "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    )
    return error


def sendable(outcome: tuple[bool, Any]) -> tuple[bool, Any, str]:
    """Add to an outcome the text of its cause, which a pickle of the exception would lose.

    Parameters
    ----------
    outcome
        What `WorkerState.serve` returned.
    """
    good, value = outcome
    return good, value, "" if good or value.__cause__ is None else str(value.__cause__)


def run(comm: Intracomm, root: int, workers: Intracomm) -> None:
    """Run the tasks that a rank sends, until it sends STOP.

    Parameters
    ----------
    comm
        Communicator of the pool.
    root
        Rank of the pool in it.
    workers
        Communicator of the workers, for `get_comm_workers`.
    """
    this_thread.workers = workers
    state, status = WorkerState(pickle.loads), Status()
    try:
        while True:
            item = comm.recv(source=root, tag=ANY_TAG, status=status)
            if status.tag == STOP:
                return
            outcome = state.serve(*item)
            try:
                blob = pickle.dumps(sendable(outcome))
            except Exception as error:  # the outcome cannot be pickled
                blob = pickle.dumps(sendable((False, _with_traceback(_picklable(error)))))
            comm.send(blob, root, RESULT)
    finally:
        this_thread.workers = None


def _picklable(error: Exception) -> Exception:
    """Return an exception, or one that can be pickled in its place."""
    try:
        pickle.dumps(error)
    except Exception:
        return RuntimeError(f"a task's outcome cannot be pickled: {error!r}")
    return error


def get_comm_workers() -> Intracomm:
    """Return, in a task, the communicator of the workers.

    Raises
    ------
    RuntimeError
        The caller is not a task of a worker.
    """
    workers: Intracomm | None = getattr(this_thread, "workers", None)
    if workers is None:
        raise RuntimeError(
            "communicator is not accessible: this code does not run in a task of a worker"
        )
    return workers
