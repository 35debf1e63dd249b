"""Several requests at a time, also while the interpreter ends, when no thread can be started any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from serverless_mpi.aws.connection import file_of, raised_by

T = TypeVar("T")


class Workers:
    """A pool of threads; what is submitted when the interpreter is ending (MPI finalizes at exit) is done at once."""

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="smpi-worker")

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Start call(*arguments)."""
        try:
            return self._pool.submit(call, *arguments)
        except RuntimeError as error:  # the pools of an ending interpreter take nothing any more
            if not raised_by(error, _POOL_FILES):  # a signal handler's: `call` may have begun
                raise
            done: Future[T] = Future()
            try:
                done.set_result(call(*arguments))
            except Exception as error:
                done.set_exception(error)
            return done

    def each(self, call: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """[call(item) for item in items], several at a time."""
        return [future.result() for future in [self.submit(call, item) for item in items]]

    def close(self) -> None:
        """Wait for what runs, and let the threads go."""
        self._pool.shutdown()


# whose RuntimeErrors are the pool's
_POOL_FILES = tuple(
    file_of(function)
    for function in (Workers.submit, ThreadPoolExecutor.submit, threading.Thread.start)
)
