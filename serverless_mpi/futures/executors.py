"""The executors that programs use: MPIPoolExecutor, MPICommExecutor, and one of threads.

An executor has a `Client`, which holds its setup and its share of the workers, and uses a pool
(`pool.py`): the pool of the job if it was started with `-m serverless_mpi.futures`, that of an
MPICommExecutor, or threads of its own. Only a pool of its own ends with the executor.

References
----------
mpi4py 4.1, "mpi4py.futures", https://mpi4py.readthedocs.io/en/stable/mpi4py.futures.html;
concurrent.futures, Python Library Reference.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures as cf
from concurrent.futures import BrokenExecutor, Executor, as_completed
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from serverless_mpi.env import ENV_MAX_WORKERS
from serverless_mpi.errors import missing
from serverless_mpi.futures import pool as pools
from serverless_mpi.futures import worker
from serverless_mpi.futures.worker import get_comm_workers
from serverless_mpi.MPI import COMM_WORLD, Intercomm, Intracomm

__all__ = [
    "MPICommExecutor",
    "MPIPoolExecutor",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "get_comm_workers",
]


Pairs = Mapping[str, Any] | Iterable[tuple[str, Any]]

_numbers = itertools.count()
_IGNORED_OPTIONS = {"backoff", "use_pkl5"}  # of mpi4py, which have no effect here


class MPIPoolExecutor(Executor):
    """Runs tasks on ranks, as concurrent.futures.ProcessPoolExecutor does in processes.

    In a job started with `-m serverless_mpi.futures` the workers are ranks 1 and up, shared by all
    executors. Otherwise the executor spawns `max_workers` ranks (default: the environment's
    MPI4PY_FUTURES_MAX_WORKERS, or one fewer than the job has, at least 1), which end with it. On
    AWS Lambda, where nothing can be spawned, the workers of a job of one rank are threads.

    Parameters
    ----------
    max_workers
        Most workers that it uses at a time; by default all.
    initializer, initargs
        Function and arguments that each worker calls before this executor's first task there. If
        it raises, the executor is broken.
    path, env, wdir, globals
        What each worker sets before it calls the initializer: entries of sys.path, environment
        variables, the working folder, and names of the main module.
    main
        Whether workers import the program's main module.
    python_exe, python_args, mpi_info
        Interpreter of spawned workers, its options, and hints for `Spawn`.
    backoff, use_pkl5
        Accepted as in mpi4py, without effect: nothing is polled.

    Raises
    ------
    MissingError
        Nothing can be spawned on this platform: start the job with `-m serverless_mpi.futures`.
    """

    Future = cf.Future

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        python_exe: str | None = None,
        python_args: Sequence[str] | None = None,
        mpi_info: Pairs | None = None,
        globals: Pairs | None = None,
        main: bool = True,
        path: Sequence[str] | None = None,
        wdir: str | os.PathLike[str] | None = None,
        env: Pairs | None = None,
        **kwargs: Any,
    ) -> None:
        if "service" in kwargs:
            raise missing("connecting to workers of mpi4py.futures.server")
        if unknown := set(kwargs) - _IGNORED_OPTIONS:
            raise TypeError(f"unknown options {sorted(unknown)}")
        if max_workers is not None and (max_workers := int(max_workers)) <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._own: pools.Pool | None = None  # a pool that ends with this executor
        self._closed = False
        python = [python_exe or sys.executable, *_python_flags(), *(python_args or ())]
        self._spawn = partial(pools.SpawnedPool, python=python, info=dict(mpi_info or {}))
        self._pool = self._find_pool(max_workers)
        has_threads = isinstance(self._pool, pools.ThreadPool)
        rest = (
            initializer,
            tuple(initargs),
            [os.fspath(entry) for entry in path or ()],
            dict(env or {}),
            None if wdir is None else os.fspath(wdir),
            dict(globals or {}),
        )
        imported = _main() if main and not has_threads else worker.Main()
        setup = worker.Setup(next(_numbers), imported, self._pool.pack(rest))
        self._client = pools.Client(
            setup, min(max_workers or self._pool.size, self._pool.size), 0, set()
        )

    def _find_pool(self, max_workers: int | None) -> pools.Pool:
        """Return the pool whose workers run the tasks."""
        if pools.shared is not None:
            return pools.shared
        usual = max(COMM_WORLD.size - 1, 1)
        size = max_workers or int(os.environ.get(ENV_MAX_WORKERS) or usual)
        try:
            self._own = self._spawn(size)
        except NotImplementedError:
            if COMM_WORLD.size == 1:
                return self._threads(size)
            raise missing(
                "spawning of workers for an MPIPoolExecutor here; start the job with"
                " `smpirun -n N -m serverless_mpi.futures prog.py`, or use MPICommExecutor"
            ) from None
        return self._own

    def _threads(self, size: int) -> pools.Pool:
        self._own = pools.ThreadPool(size)
        return self._own

    @property
    def num_workers(self) -> int:
        """Most workers that it uses at a time; 0 after shutdown, or if it is broken."""
        return 0 if self._closed or self._client.broken is not None else self._client.limit

    _max_workers = num_workers  # as concurrent.futures names it

    def bootup(self, wait: bool = True) -> MPIPoolExecutor:
        """Set up the workers now instead of before their first task.

        Parameters
        ----------
        wait
            Whether to return only when they are set up.

        Returns
        -------
        MPIPoolExecutor
            This executor.
        """
        self._check()
        futures = [self.submit(time.sleep, 0) for _ in range(self._client.limit)]
        if wait:
            for future in futures:
                future.exception()
        return self

    def _check(self) -> None:
        """Raise if the executor is broken or shut down."""
        if self._client.broken is not None:
            raise BrokenExecutor(self._client.broken)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> cf.Future[Any]:
        """Schedule a call in a worker.

        Parameters
        ----------
        fn
            The function; it and its arguments must pickle, except in a pool of threads.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        concurrent.futures.Future
            Its result or exception, the latter with the worker's traceback as its cause.

        Raises
        ------
        BrokenExecutor
            The executor is broken.
        RuntimeError
            The executor is shut down.
        """
        self._check()
        future: cf.Future[Any] = self.Future()
        self._pool.submit((self._client, future, fn, args, kwargs))
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[Any]:
        """Yield the results of a function for the items of iterables, as the built-in `map` does.

        Parameters
        ----------
        fn
            The function.
        *iterables
            One per argument of the function; the shortest ends the iteration.
        timeout, chunksize, buffersize, unordered
            As in `starmap`.

        Yields
        ------
        Any
            Results, in the order of the items unless `unordered`.
        """
        return self.starmap(fn, zip(*iterables), timeout, chunksize, buffersize, unordered)

    def starmap(
        self,
        fn: Callable[..., Any],
        iterable: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[Any]:
        """Yield the results of a function for tuples of arguments, as `itertools.starmap` does.

        Parameters
        ----------
        fn
            The function.
        iterable
            Tuples of arguments.
        timeout
            Seconds from now after which waiting for a result raises TimeoutError.
        chunksize
            Number of items in a task.
        buffersize
            Most tasks that are submitted at a time; None for all.
        unordered
            Whether results are yielded in the order in which they are ready.

        Yields
        ------
        Any
            Results, in the order of the items unless `unordered`.

        Raises
        ------
        ValueError, TypeError
            An option has a wrong value.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or >= 1")
            if unordered:
                raise ValueError("buffersize has no meaning for unordered results")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = iter(iterable)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        futures = deque(
            self.submit(_chunk, fn, chunk) for chunk in itertools.islice(chunks, buffersize)
        )
        return self._results(fn, chunks, futures, deadline, unordered)

    def _results(
        self,
        fn: Callable[..., Any],
        chunks: Iterator[list[Any]],
        futures: deque[cf.Future[Any]],
        deadline: float | None,
        unordered: bool,
    ) -> Iterator[Any]:
        try:
            while futures:
                remaining_s = None if deadline is None else deadline - time.monotonic()
                done = next(as_completed(futures, remaining_s)) if unordered else futures[0]
                results = done.result(remaining_s)
                futures.remove(done)
                if not self._closed:
                    futures.extend(
                        self.submit(_chunk, fn, chunk) for chunk in itertools.islice(chunks, 1)
                    )
                yield from results
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks.

        Parameters
        ----------
        wait
            Whether to return only when all tasks are done.
        cancel_futures
            Whether to cancel the tasks that have not begun.
        """
        self._closed = True
        if cancel_futures:
            self._pool.drop(self._client)
        if wait:
            self._pool.join(self._client)
            pool, self._own = self._own, None
            if pool is not None:
                pool.close()
        elif isinstance(self._own, pools.SpawnedPool):
            # its workers end after its tasks; the interpreter waits for the thread
            pool, self._own = self._own, None
            threading.Thread(target=pool.close, name="smpi-futures-close").start()


class ThreadPoolExecutor(MPIPoolExecutor):
    """An MPIPoolExecutor whose workers are `max_workers` threads, by default 1."""

    def _find_pool(self, max_workers: int | None) -> pools.Pool:
        return self._threads(max_workers or 1)


class ProcessPoolExecutor(MPIPoolExecutor):
    """An MPIPoolExecutor that spawns its workers, also in a job that has workers; by default 1.

    Raises
    ------
    MissingError
        Nothing can be spawned on this platform.
    """

    def _find_pool(self, max_workers: int | None) -> pools.Pool:
        self._own = self._spawn(max_workers or int(os.environ.get(ENV_MAX_WORKERS) or 1))
        return self._own


class MPICommExecutor:
    """An executor for a program that all ranks run: rank `root` submits tasks, the others run them.

        with MPICommExecutor(comm, root=0) as executor:
            if executor is not None:
                ...

    On the other ranks `executor` is None, and the block begins when that of the root has ended. In
    a communicator of one rank the worker is a thread.

    Parameters
    ----------
    comm
        An intracommunicator, all of whose ranks enter the block; None for COMM_WORLD.
    root
        The rank that submits tasks.
    **kwargs
        Options of the MPIPoolExecutor.

    Raises
    ------
    ValueError
        `comm` is not an intracommunicator, or has no such root.
    """

    def __init__(self, comm: Intracomm | None = COMM_WORLD, root: int = 0, **kwargs: Any) -> None:
        if comm is None:
            comm = COMM_WORLD
        if isinstance(comm, Intercomm) or not isinstance(comm, Intracomm):
            raise ValueError("expecting an intracommunicator")
        if not 0 <= root < comm.size:
            raise ValueError(f"expecting root in range(0, {comm.size})")
        self._comm, self._root, self._options = comm, root, kwargs
        self._executor: MPIPoolExecutor | None = None
        self._entered = False

    def __enter__(self) -> MPIPoolExecutor | None:
        if self._entered:
            raise RuntimeError("__enter__")
        self._entered = True
        if pools.shared is not None:  # the other ranks are workers already
            self._executor = MPIPoolExecutor(**self._options)
            return self._executor
        comm = self._comm.Dup()
        workers = comm.Split(int(comm.rank == self._root), comm.rank)
        if comm.rank != self._root:
            assert isinstance(workers, Intracomm)
            worker.run(comm, self._root, workers)
            return None
        options = {"main": False, **self._options}  # the workers run the program already
        pool: pools.Pool
        if comm.size > 1:
            pool = pools.RankPool(comm)
        else:
            pool = pools.ThreadPool(options.get("max_workers") or 1)
        self._executor = _of_pool(pool, options)
        return self._executor

    def __exit__(self, *_: object) -> None:
        if not self._entered:
            raise RuntimeError("__exit__")
        self._entered = False
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _of_pool(pool: pools.Pool, options: dict[str, Any]) -> MPIPoolExecutor:
    """Return an executor whose workers are those of a pool, which ends with it."""

    class Bound(MPIPoolExecutor):
        def _find_pool(self, max_workers: int | None) -> pools.Pool:
            self._own = pool
            return pool

    Bound.__name__ = Bound.__qualname__ = "MPIPoolExecutor"
    return Bound(**options)


def _python_flags() -> list[str]:
    """The options of this interpreter that a worker's needs, too."""
    flags: list[str] = attrgetter("_args_from_interpreter_flags")(import_module("subprocess"))()
    return flags


def _chunk(fn: Callable[..., Any], items: list[Any]) -> list[Any]:
    return [fn(*arguments) for arguments in items]


def _main() -> worker.Main:
    """Return the program's main module for workers to import.

    Here it gets the name that it has in workers as well, so that its classes unpickle.
    """
    module = sys.modules["__main__"]
    sys.modules[worker.WORKER_NAME] = module
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name not in (None, "__main__"):
        return worker.Main(module=spec.name)
    path = getattr(module, "__file__", None)
    return worker.Main() if path is None else worker.Main(path=os.path.abspath(path))
