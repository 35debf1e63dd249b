"""A pool of threads for requests that also works while the interpreter ends.

MPI finalizes at exit, when the standard pools accept no more work; `Workers` then runs
what is submitted at once, in the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from serverless_mpi.aws.connection import file_of, raised_by

T = TypeVar("T")


class Workers:
    """A pool of at most `most` threads."""

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="smpi-worker")

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Start a call in a thread; run it at once in the caller if the interpreter is ending.

        Parameters
        ----------
        call
            Function to call.
        *arguments
            Its arguments.

        Returns
        -------
        Future
            Its result or exception.
        """
        try:
            return self._pool.submit(call, *arguments)
        except RuntimeError as error:  # the interpreter is ending
            if not raised_by(error, _POOL_FILES):  # by a signal handler: `call` may have begun
                raise
            done: Future[T] = Future()
            try:
                done.set_result(call(*arguments))
            except Exception as error:
                done.set_exception(error)
            return done

    def each(self, call: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """Return [call(item) for item in items], several at a time.

        Parameters
        ----------
        call
            Function of one argument, called in several threads.
        items
            Its arguments; all are submitted before the first result is awaited.

        Returns
        -------
        list
            Results in the order of `items`.

        Raises
        ------
        Exception
            What the first call in that order raised.
        """
        return [future.result() for future in [self.submit(call, item) for item in items]]

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        self._pool.shutdown()


# files whose RuntimeErrors are the pool's
_POOL_FILES = tuple(
    file_of(function)
    for function in (Workers.submit, ThreadPoolExecutor.submit, threading.Thread.start)
)
