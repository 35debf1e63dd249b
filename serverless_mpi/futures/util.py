"""Futures that depend on other futures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any


def collect(fs: Collection[Future[Any]]) -> Future[list[Any]]:
    """Return a future of the list of results of futures.

    The first exception or cancellation of any becomes its own and cancels the others; cancelling it
    cancels all.
    """
    futures = list(fs)
    combined: Future[list[Any]] = type(futures[0])() if futures else Future()
    pending, lock = len(futures), threading.Lock()

    def on_done(done: Future[Any]) -> None:
        nonlocal pending
        with lock:
            pending -= 1
            last = pending == 0
        try:
            if combined.cancelled():
                return
            if done.cancelled():
                if combined.cancel():
                    combined.set_running_or_notify_cancel()
            elif done.exception() is not None:
                combined.set_exception(done.exception())
            elif last:
                combined.set_result([future.result() for future in futures])
                return
            else:
                return
        except Exception:  # another callback has set its outcome
            return
        for future in futures:
            future.cancel()

    def cancelled(done: Future[list[Any]]) -> None:
        if done.cancelled():
            for future in futures:
                future.cancel()

    combined.add_done_callback(cancelled)
    if not futures:
        combined.set_result([])
    for future in futures:
        future.add_done_callback(on_done)
    return combined


def compose(
    future: Future[Any],
    resulthook: Callable[[Any], Any] | None = None,
    excepthook: Callable[[BaseException], Any] | None = None,
) -> Future[Any]:
    """Return a future of what a hook makes of another future.

    Parameters
    ----------
    future
        Cancelling it cancels the result, and the other way around.
    resulthook
        Called with the result; by default the result is passed on.
    excepthook
        Called with the exception; an exception that it returns is raised.
    """
    new: Future[Any] = type(future)()

    def done(old: Future[Any]) -> None:
        if new.cancelled():
            return
        if old.cancelled():
            new.cancel()
            new.set_running_or_notify_cancel()
            return
        error = old.exception()
        hook: Callable[[Any], Any] | None = resulthook if error is None else excepthook
        try:
            if hook is None:
                value = old.result() if error is None else error
            else:
                value = hook(old.result() if error is None else error)
        except BaseException as raised:
            new.set_exception(raised)
            return
        if error is not None and isinstance(value, BaseException):
            new.set_exception(value)
        else:
            new.set_result(value)

    def cancelled(done: Future[Any]) -> None:
        if done.cancelled():
            future.cancel()

    new.add_done_callback(cancelled)
    future.add_done_callback(done)
    return new
