"""Futures made of futures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any


def collect(fs: Collection[Future[Any]]) -> Future[list[Any]]:
    """The future of the list of results; the first exception, or cancellation, of any is its own.

    To cancel it cancels all.
    """
    futures = list(fs)
    whole: Future[list[Any]] = type(futures[0])() if futures else Future()
    left, lock = len(futures), threading.Lock()

    def one(done: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        try:
            if whole.cancelled():
                return
            if done.cancelled():
                if whole.cancel():
                    whole.set_running_or_notify_cancel()
            elif done.exception() is not None:
                whole.set_exception(done.exception())
            elif last:
                whole.set_result([future.result() for future in futures])
                return
            else:
                return
        except Exception:  # it has ended by another one's doing
            return
        for future in futures:
            future.cancel()

    def cancelled(done: Future[list[Any]]) -> None:
        if done.cancelled():
            for future in futures:
                future.cancel()

    whole.add_done_callback(cancelled)
    if not futures:
        whole.set_result([])
    for future in futures:
        future.add_done_callback(one)
    return whole


def compose(
    future: Future[Any],
    resulthook: Callable[[Any], Any] | None = None,
    excepthook: Callable[[BaseException], Any] | None = None,
) -> Future[Any]:
    """The future of `resulthook(result)`, or of `excepthook(exception)`, whose value may be an exception to raise.

    To cancel it cancels `future`, and the other way around.
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
