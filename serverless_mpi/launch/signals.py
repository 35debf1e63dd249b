"""Signals of a launcher: a job is stopped in order, wherever a signal interrupts the launcher."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the launcher to stop; no `except Exception` of a library on the way may keep it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """SIGINT, SIGTERM and SIGHUP: raised while the job is being made, noted while it runs.

    `noted` are the signals that came; a byte on `fd` wakes the loop. A third
    signal is raised in any case: whoever is stuck shall be let go, and the
    guard does the rest.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.raising = True
        self.noted: list[int] = []

    def __enter__(self) -> Signals:
        self.fd, self._write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._come) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self.fd)
        os.close(self._write)

    def _come(self, number: int, _: FrameType | None) -> None:
        self.noted.append(number)
        if self.raising or len(self.noted) > 2:
            self.raising = False
            raise Interrupted(number)
