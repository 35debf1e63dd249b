"""Polling for a moment before sleeping, where that has paid lately."""

from __future__ import annotations

import os
import select
import time

SPIN_S = 100e-6  # how long a wait polls before it sleeps: the time of three short messages
MAX_SPINS_SKIPPED = 256  # waits that sleep at once after polls that found nothing


class Spinner:
    """Waits for the events of an epoll object.

    A process that slept takes longer to resume than a short message takes to arrive.  But polling
    takes the core from whoever would send it, if there is no other, so each poll that finds nothing
    doubles the number of the following waits that sleep at once.

    Parameters
    ----------
    poll
        What is waited for; borrowed.
    """

    __slots__ = ("_futile", "_poll", "_skip")

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll.poll
        self._skip = 0  # coming waits that sleep at once
        self._futile = 1

    def wait(self, max_wait_s: float) -> list[tuple[int, int]]:
        """Return the next events, or [] if there are none within the time.

        Parameters
        ----------
        max_wait_s
            Longest wait in seconds; 0 returns what is there now.

        Returns
        -------
        list[tuple[int, int]]
            (descriptor, event mask) of each, as `select.epoll.poll` returns them.
        """
        events = self._poll(0)
        if events or max_wait_s <= 0:
            return events
        if self._skip:
            self._skip -= 1
            return self._poll(max_wait_s)
        until = time.monotonic() + min(SPIN_S, max_wait_s)
        while not (events := self._poll(0)):
            os.sched_yield()
            if time.monotonic() >= until:
                self._futile = min(2 * self._futile, MAX_SPINS_SKIPPED)
                self._skip = self._futile
                return self._poll(max_wait_s)
        self._futile = 1
        return events
