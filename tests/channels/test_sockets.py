"""A waker wakes until it is closed, and never writes to a number that is another file's."""

from __future__ import annotations

import os
import select

from serverless_mpi.channels.sockets import Waker


def ready(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_it_is_readable_from_wake_until_clear() -> None:
    waker = Waker()
    assert not ready(waker.fileno())
    waker.wake()
    waker.wake()
    assert ready(waker.fileno())
    waker.clear()
    assert not ready(waker.fileno())
    waker.clear()  # nothing to clear
    waker.close()


def test_after_close_nothing_is_written_to_the_number() -> None:
    waker = Waker()
    number = waker.fileno()
    waker.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    os.dup2(other, number)  # the number is another file's now
    try:
        waker.wake()
        assert not ready(number)
    finally:
        os.close(other)
        if number != other:
            os.close(number)
