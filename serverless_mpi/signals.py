"""When Python's signal handlers run: never in the middle of an MPI call.

A handler may raise, and the interpreter calls it between any two bytecodes of the main thread.
Inside the runtime that would tear a frame, keep a lock, or drop a message that has already been
received. Blocking the signals would not help: a signal to the process then goes to another thread,
and its Python handler runs in the main thread all the same.  So the handlers themselves are
wrapped, by replacing `_signal.signal`, which `signal.signal` calls.

The rule: a handler that is due while the main thread is inside a call (`depth` > 0) is deferred. It
runs

- where the call waits and its state is consistent (`run`, called by the runtime);
- when the next call begins, before that call has done anything; or
- shortly after the call has returned.  A small thread then sends the signal to the main thread
  again (`_kick`), so that a sleep of the program is cut short as the first signal would have done.

A call that has taken a message therefore always returns it, and the exception is raised by the next
statement.  What each kind of call guarantees is in `runtime/runtime.py`.

Pitfalls:

- `leave` must end with the decrement.  CPython looks for signals after calls of C functions, at the
  start of a Python function and at backward jumps, not when a Python function returns, so no
  handler can run between the decrement and the return of the call.
- CPython 3.11 also looks for signals after a call with * or ** arguments.  A public call must not
  return what such a call returns, unless the shield is around it (`tests/test_signals.py`).
- CPython 3.10 looks for signals after every call, so there an exception can be raised after an MPI
  call has returned and before the program has assigned its result.
- `_lock` is never taken by a wrapped handler, and the main thread holds it only with `depth` > 0.
- A signal is sent again under `_lock` and only while its handler is a wrapped one; otherwise
  SIG_DFL could end the process.
- Signals coalesce, as POSIX permits: two deferred signals of one number are one.
- `Entry` in `runtime/progress.py` has `enter` and `leave` partly written out.  Change both
  together.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # CPython's own; typeshed has no stub
import contextlib
import functools
import inspect
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from typing import ParamSpec, Protocol, TypeGuard, TypeVar

Handler = Callable[[int, FrameType | None], object] | int | None  # as `signal.signal` takes it
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

KICK_S = 0.001  # how soon after a call a deferred handler runs; the pause doubles at every try
KICK_LONGEST_S = 0.02


class Interruptible(Protocol):
    """What a waiting call of the main thread can be woken through; a runtime is one."""

    def interrupt(self) -> None:
        """Wake the wait; called by another thread."""


class Shield:
    """The calls of the main thread, and the handlers that are deferred until they permit it.

    Attributes
    ----------
    depth : int
        Nested calls of the main thread that are in progress.
    deferred : dict
        Signal number -> an exception of its handler that is still to be raised, or None if the
        handler has not run yet.
    main : int or None
        Identifier of the main thread; 0 in a forked child.
    raising : int or None
        The signal whose handler `run` called last.
    installed : bool
        Whether the program's handlers are wrapped; the first call does it.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.deferred: dict[int, BaseException | None] = {}
        self.main = threading.main_thread().ident
        self.raising: int | None = None
        self.installed = False
        self._kicked: int | None = None  # a signal that was sent again and has not arrived yet
        self._count = 0  # handlers deferred so far
        # Handlers that the program has set.
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._lock = threading.Lock()
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # `put` may interrupt `put`
        self._wakers: weakref.WeakSet[Interruptible] = weakref.WeakSet()
        self._set, self._get = _signal.signal, _signal.getsignal
        self._wrapped = self._handle

    def guard(self, runtime: Interruptible) -> None:
        """Interrupt a runtime whenever a handler is due inside a call.

        Parameters
        ----------
        runtime
            Held weakly; its `interrupt` is called by another thread.
        """
        self._wakers.add(runtime)

    # --- around a call ----------------------------------------------------------------------------

    def enter(self) -> None:
        """Begin a call; deferred handlers run first, and may raise."""
        if get_ident() != self.main:
            return
        self.depth += 1
        if not self.installed or (self.deferred and self.depth == 1):
            try:
                if not self.installed:
                    self._install()
                self.run()
            except BaseException:
                self.depth -= 1
                raise

    def leave(self) -> None:
        """End a call."""
        if get_ident() == self.main:
            self.depth -= 1

    def due(self) -> bool:
        """Return whether the calling thread should call `run`."""
        return bool(self.deferred) and get_ident() == self.main

    def run(self) -> None:
        """Run the deferred handlers, inside a call and in the main thread.

        A handler may raise, and may call MPI, so the caller must hold no lock.
        """
        while self.deferred:
            with self._lock:
                if self._kicked is not None or not self.deferred:
                    return  # the signal that was sent again arrives now, and is deferred again
                number = next(iter(self.deferred))
                error = self.deferred.pop(number)
            handler = self._handlers.get(number)
            self.raising = number
            depth, self.depth = self.depth, 0
            try:
                if error is not None:
                    raise error
                if handler is not None:
                    handler(number, inspect.currentframe())
            finally:
                self.depth = depth

    def postpone(self, error: BaseException) -> bool:
        """Raise an exception of a handler after this call instead of in it.

        Parameters
        ----------
        error
            An exception that was caught from `run`.

        Returns
        -------
        bool
            False, and nothing is done, if the exception is not that of a handler.
        """
        if get_ident() != self.main or self.raising is None:
            return False
        self.deferred[self.raising] = error
        self._count += 1
        self._news.put(None)
        return True

    # --- handlers ---------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> object:
        """Called by the interpreter in place of the program's handler."""
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
        """Wrap the handlers that are set, and replace `signal.signal` for those set later.

        Called in the main thread, inside a call.  A handler that is not wrapped yet may raise here;
        the next call then starts over.
        """
        for number in signal.valid_signals():
            handler = self._get(number)
            if _may_raise(handler) and handler != self._wrapped:
                self._handlers[number] = handler
                self._set(number, self._wrapped)
        self.installed = True
        _signal.signal = self._signal
        _signal.getsignal = self._getsignal
        threading.Thread(target=self._watch, name="smpi-signals", daemon=True).start()

    def _signal(self, number: int, handler: Handler, /) -> Handler:
        """Replacement of `_signal.signal`."""
        if get_ident() != self.main:
            old: Handler = self._set(number, handler)
            return old
        self.depth += 1
        try:
            with self._lock:
                time.sleep(0)  # a system call: a signal that was sent again arrives before it
                deferrable = handler if _may_raise(handler) else None
                old = self._set(number, handler if deferrable is None else self._wrapped)
                if old == self._wrapped:
                    old = self._handlers.pop(number)
                if deferrable is not None:
                    self._handlers[number] = deferrable
                else:
                    self.deferred.pop(number, None)
                return old
        finally:
            self.depth -= 1

    def _getsignal(self, number: int, /) -> Handler:
        """Replacement of `_signal.getsignal`."""
        handler: Handler = self._get(number)
        return self._handlers.get(number) if handler == self._wrapped else handler

    def _watch(self) -> None:
        """The thread that wakes a waiting call, or sends a signal again after the call."""
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
        """Send a deferred signal to the main thread again, unless a call is in progress."""
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
        """Stop deferring in a forked child, which cannot communicate."""
        self.main = 0 if self.installed else get_ident()
        self.depth = 0
        self.deferred.clear()
        self._kicked = None
        self._lock = threading.Lock()


def _may_raise(handler: object) -> TypeGuard[Callable[[int, FrameType | None], object]]:
    """Return whether a handler is a Python function that may raise.

    asyncio's handler does nothing, and the signal sent again would wake its loop twice.
    """
    return callable(handler) and getattr(handler, "__module__", None) != "asyncio.unix_events"


shield = Shield()
os.register_at_fork(after_in_child=shield.forked)


def uninterrupted(call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a call so that no signal handler can discard its result.

    Parameters
    ----------
    call
        A function of the public API.

    Returns
    -------
    Callable
        Its replacement, which defers signal handlers while the call is in progress.
    """

    @functools.wraps(call)
    def guarded(*arguments: Arguments.args, **more: Arguments.kwargs) -> Result:
        shield.enter()
        try:
            return call(*arguments, **more)
        finally:
            shield.leave()

    return guarded
