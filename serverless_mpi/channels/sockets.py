"""What channels over sockets share: listening, writing without blocking, and waking a poll."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence

IOV_MAX = 512  # pieces per sendmsg; Linux allows 1024


class StreamError(OSError):
    """A connection carried what no honest peer sends; the text continues a sentence about it."""


def write(sock: socket.socket, views: collections.deque[memoryview]) -> bool:
    """Write what a nonblocking socket accepts; return whether nothing is left.

    Parameters
    ----------
    sock
        A connected stream socket.
    views
        What is to be written, borrowed; what was written is removed, and a view that was written
        in part is replaced by its rest.

    Raises
    ------
    OSError
        The connection is broken.
    """
    try:
        while views:
            sent = sock.sendmsg(
                views if len(views) <= IOV_MAX else [views[i] for i in range(IOV_MAX)]
            )
            while sent:
                head = views[0]
                if sent >= head.nbytes:
                    sent -= head.nbytes
                    views.popleft()
                else:
                    views[0] = head[sent:]
                    sent = 0
    except BlockingIOError:
        return False
    return True


def listen_near(ranks: Sequence[int], size: int) -> dict[str, str]:
    """Bind a listening Unix socket for each of some ranks.

    Parameters
    ----------
    ranks
        World ranks, which share this machine with another one.
    size
        Number of ranks of the job.

    Returns
    -------
    dict[str, str]
        The settings `near` and `fds`.  The caller owns the descriptors in `fds`.
    """
    addresses, fds = [""] * size, ["-1"] * size
    for rank in ranks:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind("")  # the kernel picks a free abstract name
        sock.listen(max(128, len(ranks)))
        addresses[rank] = sock.getsockname()[1:].decode()
        fds[rank] = str(sock.detach())
    return {"near": json.dumps(addresses), "fds": " ".join(fds)}


class Waker:
    """A descriptor that is readable from `wake` until `clear`; register it with the poll.

    `wake` may be called by any thread at any time, also after `close`: a number that was
    closed may be another file's by then, so it is not written to.
    """

    __slots__ = ("_fd", "_lock")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._fd

    def wake(self) -> None:
        """Make the descriptor readable."""
        with self._lock:
            if self._fd >= 0:
                with contextlib.suppress(BlockingIOError):  # the reader will wake anyway
                    os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Make the descriptor unreadable again; the thread that polls calls it."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close the descriptor; no thread polls it any more."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close it in a forked child, in which the lock may be another thread's for ever."""
        fd, self._fd = self._fd, -1
        os.close(fd)
