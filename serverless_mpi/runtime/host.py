"""What a rank needs of its process: a call in forked children, warnings, and its end."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from typing import NoReturn, Protocol


class Forkable(Protocol):
    """An object that a fork copies and that must not act in the child."""

    def after_fork(self) -> None:
        """Called in the child."""


_forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch_forks(forkable: Forkable) -> None:
    """Call `forkable.after_fork()` in every child that this process forks, while it lives.

    Parameters
    ----------
    forkable
        Referenced weakly.
    """
    _forkable.add(forkable)


def _after_fork() -> None:
    for forkable in list(_forkable):
        forkable.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def warn(text: str) -> None:
    """Print a line to standard error, if there is one.

    Parameters
    ----------
    text
        Without a line break at its end.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
        print(text, file=sys.stderr, flush=True)


def end(code: int, reason: str = "") -> NoReturn:
    """Print `reason`, if there is one, and end this process at once.

    Closed or missing standard streams do not prevent it.

    Parameters
    ----------
    code
        Exit code of the process, 0 to 255.
    reason
        One line for standard error.
    """
    try:
        if reason:
            warn(reason)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        os._exit(code)
