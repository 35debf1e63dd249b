"""When Python's signal handlers run: never in the middle of an MPI call.

A handler may raise, and the interpreter calls it between any two bytecodes of
the main thread.  Inside the runtime that would tear a frame, keep a lock, or
drop a message that was already taken.  Blocking the signals would not help: a
signal to the process then goes to another thread, and its Python handler runs
in the main thread all the same.  So the handlers themselves are wrapped, by
replacing `_signal.signal`, which `signal.signal` calls.

The rule: a handler that is due while the main thread is inside a call
(`depth` > 0) is put off.  It runs

- where the call waits and nothing is half done (`run`, called by the runtime);
- when the next call begins, before that call has done anything; or
- a moment after the call has returned.  A small thread sends the signal to
  the main thread again (`_kick`), so that a sleep of the program is cut short
  as by the first one.

A call that has taken a message therefore always returns it, and the exception
comes out of the next statement.  What a call promises is in `runtime/runtime.py`.

Pitfalls.  `leave` must end with the decrement: CPython looks for signals after
calls of C functions, at the start of a Python function and at backward jumps,
not when a Python function returns, so nothing can come between the decrement
and the return of the call.  `_lock` is never taken by a wrapped handler, and
the main thread holds it only with `depth` > 0.  A signal is sent again under
`_lock` and only while its handler is a wrapped one, else SIG_DFL could end the
process.  Signals coalesce, as POSIX has it: two of a number that are put off
are one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # CPython's own; typeshed has no stub
import contextlib
import functools
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

KICK_S = 0.001  # how soon after a call a handler that was put off runs; then ever more seldom
KICK_LONGEST_S = 0.02


class Shield:
    """The main thread's calls, and the handlers that wait for them to end.

    depth: calls of the main thread that are under way; deferred: signal -> an exception of its handler that is still
    to be raised, or None where the handler has not run; main: the main thread, or 0 in a forked child.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.deferred: dict[int, BaseException | None] = {}
        self.main = threading.main_thread().ident
        self.raising: int | None = None  # the signal whose handler `run` called last
        self._installed = False
        self._kicked: int | None = None  # a signal that was sent again and has not come yet
        self._count = 0  # handlers put off so far
        self._handlers: dict[int, Any] = {}  # what the program has set
        self._lock = threading.Lock()
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # `put` may interrupt `put`
        self._wakers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._set, self._get = _signal.signal, _signal.getsignal
        self._wrapped = self._handle

    def guard(self, runtime: Any) -> None:
        """Have `runtime.interrupt()` called, by another thread, when a handler waits for a call to wait."""
        self._wakers.add(runtime)

    # --- around a call ---------------------------------------------------------

    def enter(self) -> None:
        """A call begins; what was put off runs first, and may raise."""
        if get_ident() != self.main:
            return
        self.depth += 1
        if not self._installed or (self.deferred and self.depth == 1):
            try:
                if not self._installed:
                    self._install()
                self.run()
            except BaseException:
                self.depth -= 1
                raise

    def leave(self) -> None:
        """The call is over."""
        if get_ident() == self.main:
            self.depth -= 1

    def due(self) -> bool:
        """Whether `run` has something to do, for the calling thread."""
        return bool(self.deferred) and get_ident() == self.main

    def run(self) -> None:
        """Inside a call, in the main thread: run what was put off.  A handler may raise, and may call MPI."""
        while self.deferred:
            with self._lock:
                if self._kicked is not None or not self.deferred:
                    return  # the signal that was sent again comes at once, and is put off again
                number = next(iter(self.deferred))
                error = self.deferred.pop(number)
            handler = self._handlers.get(number)
            self.raising = number
            depth, self.depth = self.depth, 0
            try:
                if error is not None:
                    raise error
                if handler is not None:
                    handler(number, sys._getframe())
            finally:
                self.depth = depth

    def postpone(self, error: BaseException) -> bool:
        """Have what a handler raised in `run` raised after this call; False if it was not the main thread's."""
        if get_ident() != self.main or self.raising is None:
            return False
        self.deferred[self.raising] = error
        self._count += 1
        self._news.put(None)
        return True

    # --- handlers ----------------------------------------------------------------

    def _handle(self, number: int, frame: Any) -> Any:
        """What the interpreter calls in place of the program's handler."""
        if self._kicked == number:
            self._kicked = None
        if self.depth:
            self.deferred.setdefault(number, None)
            self._count += 1
            self._news.put(None)
            return None
        error = self.deferred.pop(number, None)
        if error is not None:
            raise error
        handler = self._handlers.get(number)
        return None if handler is None else handler(number, frame)

    def _install(self) -> None:
        """In the main thread, inside a call: wrap the handlers that are set and those that will be.

        Until the last of them is wrapped one may raise here; then the next call begins again.
        """
        for number in signal.valid_signals():
            handler = self._get(number)
            if _may_raise(handler) and handler != self._wrapped:
                self._handlers[number] = handler
                self._set(number, self._wrapped)
        self._installed = True
        _signal.signal = self._signal
        _signal.getsignal = self._getsignal
        threading.Thread(target=self._watch, name="smpi-signals", daemon=True).start()

    def _signal(self, number: int, handler: Any, /) -> Any:
        """`_signal.signal`, for everybody."""
        if get_ident() != self.main:
            return self._set(number, handler)
        self.depth += 1
        try:
            with self._lock:
                time.sleep(0)  # a system call: a signal that was sent again comes before it
                ours = _may_raise(handler)
                old = self._set(number, self._wrapped if ours else handler)
                if old == self._wrapped:
                    old = self._handlers.pop(number)
                if ours:
                    self._handlers[number] = handler
                else:
                    self.deferred.pop(number, None)
                return old
        finally:
            self.depth -= 1

    def _getsignal(self, number: int, /) -> Any:
        """`_signal.getsignal`, for everybody."""
        handler = self._get(number)
        return self._handlers.get(number) if handler == self._wrapped else handler

    def _watch(self) -> None:
        """The thread that wakes a call which waits, and sends again what is due after a call."""
        while True:
            self._news.get()
            pause, woken = KICK_S, -1
            while self.deferred:
                if not self.depth:
                    self._kick()
                elif woken != self._count:
                    woken = self._count
                    for runtime in list(self._wakers):
                        runtime.interrupt()
                time.sleep(pause)
                pause = min(2 * pause, KICK_LONGEST_S)

    def _kick(self) -> None:
        with self._lock:
            number = next(iter(self.deferred), None)
            if number is None or self.depth or self._kicked is not None:
                return
            if self._get(number) == self._wrapped and self.main:
                self._kicked = number
                with contextlib.suppress(OSError):  # the main thread has just ended
                    signal.pthread_kill(self.main, number)
            else:
                self.deferred.pop(number, None)

    def forked(self) -> None:
        """In a child: if its parent used MPI it makes no calls, and there is no thread to send signals again."""
        self.main = 0 if self._installed else get_ident()
        self.depth = 0
        self.deferred.clear()
        self._kicked = None
        self._lock = threading.Lock()


def _may_raise(handler: Any) -> bool:
    """Whether it is a function in Python; asyncio's does nothing, and sent again would wake its loop twice."""
    return callable(handler) and getattr(handler, "__module__", None) != "asyncio.unix_events"


shield = Shield()
os.register_at_fork(after_in_child=shield.forked)


def uninterrupted(call: F) -> F:
    """A call whose result a handler cannot throw away: handlers run where it waits, or after it."""

    @functools.wraps(call)
    def guarded(*arguments: Any, **more: Any) -> Any:
        shield.enter()
        try:
            return call(*arguments, **more)
        finally:
            shield.leave()

    return guarded  # type: ignore[return-value]
