"""The thread that writes a rank's part, and on the first rank also records, while ranks compute.

It makes no MPI call. The rank asks whether it is `busy`, and reports that with its vote
(cadence.py); so nobody waits for it except at the end of the loop. After an error it does nothing
more: `error` is raised on all ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from serverless_mpi.checkpoint.log import Record, Saved, clean, perform, publish
from serverless_mpi.checkpoint.part import Staging, encode
from serverless_mpi.checkpoint.places import Place
from serverless_mpi.errors import CheckpointError


class Saver:
    """Saves one rank's state, in a thread that the first save starts.

    Parameters
    ----------
    place
        Where.
    rank
        Of the communicator of the loop.
    key
        32 bytes to authenticate parts and records, or none.
    record
        The run's claim.

    Attributes
    ----------
    error
        Why this rank cannot save; None if it can.
    """

    def __init__(self, place: Place, rank: int, key: bytes, record: Record) -> None:
        self._place = place
        self._rank = rank
        self._key = key
        self._record = record
        self._staging = Staging()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._saved: Saved | None = None  # not published
        self.error: str | None = None

    @property
    def busy(self) -> bool:
        """Whether something that was started is not finished."""
        return not self._idle.is_set()

    @property
    def unpublished(self) -> bool:
        """Whether there is a save that `publish` has not been called for."""
        return self._saved is not None

    def prepare(self, nbytes: int) -> None:
        """Have memory for a snapshot, in the background.

        Parameters
        ----------
        nbytes
            Bytes that it needs.
        """
        if nbytes:
            self._start(lambda: self._staging.reserve(nbytes))

    def save(self, state: Mapping[str, Any], size: int, step: int) -> None:
        """Copy the state, and write this rank's part in the background.

        Parameters
        ----------
        state
            Name -> value; the program may change it when the call returns.
        size
            Number of ranks.
        step
            The first step that is not part of the state.
        """
        saved = Saved(self._record.number + 1, self._record.owner, size, step)
        self._saved, identity = saved, saved.part(self._rank)
        self.wait()  # ranks save only when none is busy, so this is for safety
        try:
            regions = self._staging.take(state)
        except CheckpointError as error:
            self.error = str(error)
            return
        except MemoryError:
            self.error = "there is no memory for a copy of the state; use more ranks"
            return
        self._start(lambda: self._place.write(identity.name, encode(regions, identity, self._key)))

    def publish(self) -> None:
        """Let the checkpoint whose parts are complete be the last one; the first rank does it."""
        saved, before = self._saved, self._record
        assert saved is not None
        self._saved = None
        self._record = Record(saved.number, before.owner, before.program, before.version, saved)
        if self._rank == 0:
            self._start(lambda: self._publish(before, saved))

    def _publish(self, before: Record, saved: Saved) -> None:
        perform(publish(before, saved, self._key), self._place)
        perform(clean(saved), self._place)

    def wait(self) -> None:
        """Wait until nothing is in progress."""
        self._idle.wait()

    def close(self) -> None:
        """End the thread after what it does now."""
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None

    def _start(self, task: Callable[[], None]) -> None:
        self._idle.clear()
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            threading.Thread(
                target=self._run, args=(self._tasks,), name="smpi-checkpoint", daemon=True
            ).start()
        self._tasks.put(task)

    def _run(self, tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (task := tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # raised on all ranks after the next vote
                self.error = (
                    str(error)
                    if isinstance(error, CheckpointError)
                    else f"{type(error).__name__}: {error}"
                )
            self._idle.set()
