"""The workers of a process, shared by its executors.

Tasks wait in one queue. There is no polling: `submit` sends a task to an idle worker itself, and
one thread waits for outcomes, each of which frees a worker for the next task.

Invariants: a worker is either in `_idle` or in `_running`; `_changed` guards both and the queue; a
future is completed without that lock, because its callbacks may submit tasks.
"""

from __future__ import annotations

import atexit
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import Any

from serverless_mpi.futures import worker
from serverless_mpi.MPI import ANY_SOURCE, COMM_SELF, Info, Intracomm, Status, pickle


@dataclass(eq=False)
class Client:
    """What a pool holds of an executor.

    Attributes
    ----------
    setup
        What a worker does before the executor's first task there.
    limit
        Most workers that it uses at a time.
    running
        Number of workers that it uses now.
    ready
        Workers that are set up for it.
    broken
        Why it cannot run tasks any more, or None.
    """

    setup: worker.Setup
    limit: int
    running: int
    ready: set[int]
    broken: str | None = None


Task = tuple[Client, "Future[Any]", Any, tuple[Any, ...], dict[str, Any]]


class Pool(ABC):
    """Workers, and the tasks that wait for them. Thread-safe.

    Parameters
    ----------
    workers
        Numbers of the workers, all idle.

    Attributes
    ----------
    size
        Number of workers.
    """

    def __init__(self, workers: list[int]) -> None:
        self.size = len(workers)
        self._idle = deque(workers)
        self._running: dict[int, Task] = {}
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @abstractmethod
    def pack(self, value: object) -> object:
        """Return the form in which a value is sent to a worker, which unpacks it.

        Parameters
        ----------
        value
            Any value; a pool of ranks pickles it.
        """

    @abstractmethod
    def _give(self, to: int, item: tuple[Any, ...]) -> None:
        """Send (setup or its number, packed task) to an idle worker; `_on_outcome` follows."""

    @abstractmethod
    def close(self) -> None:
        """Wait for all tasks and dismiss the workers."""

    def submit(self, task: Task) -> None:
        """Queue a task, and send it at once if a worker is idle.

        Parameters
        ----------
        task
            Its executor, future, function, arguments and keyword arguments.
        """
        with self._changed:
            self._waiting.append(task)
            self._dispatch()

    def _dispatch(self) -> None:
        """Give waiting tasks to idle workers. The caller holds the lock."""
        # Tasks of executors that use all their workers keep their place in the queue.
        skipped: list[Task] = []
        while self._idle and self._waiting:
            task = self._waiting.popleft()
            client, future, fn, args, kwargs = task
            if client.running >= client.limit:
                skipped.append(task)
                continue
            if not future.set_running_or_notify_cancel():
                continue
            # A worker that is set up for the executor saves another setup.
            at = next((idle for idle in self._idle if idle in client.ready), self._idle[0])
            first = at not in client.ready
            try:
                self._give(
                    at,
                    (client.setup if first else client.setup.number, self.pack((fn, args, kwargs))),
                )
            except Exception as error:  # the task cannot be pickled; its worker is still free
                future.set_exception(error)
                continue
            self._idle.remove(at)
            client.ready.add(at)
            client.running += 1
            self._running[at] = task
        self._waiting.extendleft(reversed(skipped))
        self._changed.notify_all()

    def _on_outcome(self, at: int, good: bool, value: Any) -> None:
        """Complete the future of a worker's task, and send the worker the next task."""
        with self._changed:
            client, future, *_ = self._running.pop(at)
            client.running -= 1
            self._idle.append(at)
            # If a setup fails, the executor is broken, and its waiting tasks fail with it.
            lost: list[Future[Any]] = []
            if isinstance(value, worker.SetupError):
                client.ready.discard(at)
                client.broken = str(value)
                lost = [task[1] for task in self._waiting if task[0] is client]
                self._waiting = deque(task for task in self._waiting if task[0] is not client)
                value = BrokenExecutor(client.broken)
                value.__cause__ = None
            self._dispatch()
        if good:
            future.set_result(value)
        else:
            future.set_exception(value)
        for other in lost:
            if other.set_running_or_notify_cancel():
                other.set_exception(BrokenExecutor(client.broken))

    def drop(self, client: Client) -> None:
        """Cancel the waiting tasks of one executor.

        Parameters
        ----------
        client
            The executor.
        """
        with self._changed:
            dropped = [task[1] for task in self._waiting if task[0] is client]
            self._waiting = deque(task for task in self._waiting if task[0] is not client)
        for future in dropped:
            if future.cancel():
                future.set_running_or_notify_cancel()  # wakes threads that wait for it

    def busy(self, client: Client | None) -> bool:
        """Return whether tasks are not done. The caller holds the lock.

        Parameters
        ----------
        client
            An executor; None for all.
        """
        tasks = [*self._waiting, *self._running.values()]
        return bool(tasks) if client is None else any(task[0] is client for task in tasks)

    def join(self, client: Client | None = None) -> None:
        """Wait until tasks are done.

        Parameters
        ----------
        client
            An executor; None for all.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.busy(client))


class RankPool(Pool):
    """A pool whose workers are the other ranks of a communicator, each in `worker.run`.

    Parameters
    ----------
    comm
        Communicator for tasks and outcomes; no other message may use it.
    """

    def __init__(self, comm: Intracomm) -> None:
        super().__init__([rank for rank in range(comm.size) if rank != comm.rank])
        self._comm = comm
        self._thread = threading.Thread(target=self._listen, name="smpi-futures", daemon=True)
        self._thread.start()

    def pack(self, value: object) -> object:
        return pickle.dumps(value)

    def _give(self, to: int, item: tuple[Any, ...]) -> None:
        self._comm.send(item, to, worker.TASK)

    def _listen(self) -> None:
        """Receive outcomes until the pool is closed."""
        status = Status()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running or self._closed)
                if not self._running:
                    return
            try:
                blob = self._comm.recv(source=ANY_SOURCE, tag=worker.RESULT, status=status)
                good, value, text = pickle.loads(blob)
            except Exception as error:  # the outcome cannot be unpickled here
                good, value, text = False, error, ""
            if text:
                value.__cause__ = worker.RemoteTraceback(text)
            self._on_outcome(status.source, good, value)

    def close(self) -> None:
        self.join()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for rank in self._idle:
            self._comm.send(None, rank, worker.STOP)


class SpawnedPool(RankPool):
    """A pool whose workers are ranks that this process spawns.

    Parameters
    ----------
    size
        Number of workers.
    python
        Command line of an interpreter, with its options.
    info
        Hints for Spawn.
    """

    def __init__(self, size: int, python: Sequence[str], info: Mapping[str, str]) -> None:
        executable, *options = python
        words = [*options, "-m", "serverless_mpi.futures.spawned"]
        hints = Info.Create(info)
        self._children = COMM_SELF.Spawn(executable, words, size, hints)
        hints.Free()
        super().__init__(self._children.Merge(high=False))
        _spawned.append(self)

    def close(self) -> None:
        _spawned.remove(self)
        super().close()
        self._comm.Disconnect()
        self._children.Disconnect()


class ThreadPool(Pool):
    """A pool whose workers are threads of this process.

    Parameters
    ----------
    size
        Number of threads.
    """

    def __init__(self, size: int) -> None:
        super().__init__(list(range(size)))
        self._queues: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(size)]
        self._threads = [
            threading.Thread(target=self._work, args=(at,), name=f"smpi-futures-{at}", daemon=True)
            for at in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def pack(self, value: object) -> object:
        return value  # threads share memory, so nothing is pickled

    def _give(self, to: int, item: tuple[Any, ...]) -> None:
        self._queues[to].put(item)

    def _work(self, at: int) -> None:
        """Serve tasks in a thread of the pool."""
        state = worker.WorkerState(lambda value: value)
        worker.this_thread.workers = COMM_SELF
        while (item := self._queues[at].get()) is not None:
            self._on_outcome(at, *state.serve(*item))

    def close(self) -> None:
        self.join()
        for tasks in self._queues:
            tasks.put(None)
        for thread in self._threads:
            thread.join()


_spawned: list[SpawnedPool] = []


@atexit.register  # before MPI ends, since that was imported first
def _close_spawned() -> None:
    """Dismiss the workers of executors that were not shut down."""
    for pool in list(_spawned):
        pool.close()


shared: Pool | None = None  # the pool of a job that was started with `-m serverless_mpi.futures`
