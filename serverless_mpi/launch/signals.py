"""Signals of a launcher: a job is stopped in order, wherever a signal interrupts the launcher."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the launcher to stop.

    A BaseException, so that no `except Exception` of a library on the way swallows it.

    Parameters
    ----------
    number
        The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP; a context manager that restores the previous handlers.

    SIGQUIT and SIGUSR1 ask for the stacks of all ranks and stop nothing.

    A signal raises `Interrupted` while the job is being set up. While the job runs it is only
    noted, and a byte on `fd` wakes the loop. A third signal raises in any case, so that a launcher
    that is stuck ends; the job's guard then removes what is left.

    Attributes
    ----------
    raising
        Whether the next signal raises.
    noted
        Signals that arrived, in order.
    stacks_wanted
        Whether the stacks of all ranks were asked for; whoever prints them resets it.
    fd
        Becomes readable when a signal arrives.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    STACKS = (signal.SIGQUIT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.raising = True
        self.noted: list[int] = []
        self.stacks_wanted = False

    def __enter__(self) -> Signals:
        self.fd, self._write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._on_signal) for number in self.NUMBERS}
        self._old |= {number: signal.signal(number, self._on_question) for number in self.STACKS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self.fd)
        os.close(self._write)

    def raise_now(self) -> None:
        """Let the next signal raise; raise if one has been noted."""
        self.raising = True
        if self.noted:
            raise Interrupted(self.noted[0])

    def _on_question(self, number: int, _: FrameType | None) -> None:
        self.stacks_wanted = True

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.noted.append(number)
        if self.raising or len(self.noted) > 2:
            self.raising = False
            raise Interrupted(number)
