"""Futures that depend on other futures."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any


def collect(fs: Collection[Future[Any]]) -> Future[list[Any]]:
    """Combine futures into a future of the list of their results.

    Parameters
    ----------
    fs
        Futures of one type.

    Returns
    -------
    Future
        The first exception or cancellation of a future becomes its own and cancels the other
        futures. To cancel it cancels all.
    """
    futures = list(fs)
    combined: Future[list[Any]] = type(futures[0])() if futures else Future()
    pending, lock = len(futures), threading.Lock()

    def on_done(done: Future[Any]) -> None:
        nonlocal pending
        with lock:
            pending -= 1
            last = pending == 0
        with contextlib.suppress(Exception):  # another callback completes it, in its own thread
            if combined.cancelled():
                return
            if _fails(combined, done):
                cancel_all()
            elif last:
                combined.set_result([future.result() for future in futures])

    def cancel_all() -> None:
        for future in futures:
            future.cancel()

    def cancelled(done: Future[list[Any]]) -> None:
        if done.cancelled():
            cancel_all()

    combined.add_done_callback(cancelled)
    if not futures:
        combined.set_result([])
    for future in futures:
        future.add_done_callback(on_done)
    return combined


def _fails(combined: Future[list[Any]], done: Future[Any]) -> bool:
    """Give a future the failure of another; return whether there was one."""
    if done.cancelled():
        if combined.cancel():
            combined.set_running_or_notify_cancel()
        return True
    error = done.exception()
    if error is not None:
        combined.set_exception(error)
    return error is not None


def compose(
    future: Future[Any],
    resulthook: Callable[[Any], Any] | None = None,
    excepthook: Callable[[BaseException], Any] | None = None,
) -> Future[Any]:
    """Return a future whose result is computed from the outcome of another.

    Parameters
    ----------
    future
        The other future. To cancel one of the two cancels both.
    resulthook
        Called with the result; its return value is the new result. None passes the result on.
    excepthook
        Called with the exception; an exception that it returns becomes the new one, any other
        value the result. None passes the exception on.

    Returns
    -------
    Future
        Of the type of `future`. An exception of a hook becomes its own.
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
