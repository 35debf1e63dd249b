"""A ring of frames in shared memory: the short way of `direct` between two ranks of one machine.

One rank writes and one reads, so the ring needs no lock.  A system call for each message, and the
kernel's copy, take 3 us of a message of 8 bytes through a socket; a ring takes 0.3 us.

The memory is a memfd: it has no name, the writer passes it and the bell over the authenticated
connection, and both end with the two processes, however they end.  The memory begins with three
words, each in a cache line of its own, and then has `RING_BYTES` of records: the length of a frame
(8 bytes), the frame, and padding to 8 bytes.  A record is never cut; where it does not fit before
the end, `WRAP` stands in its place and it begins at the start.

- `written` and `taken` count bytes since the beginning and never wrap.  The writer publishes a
  record by storing `written` after it, and the reader releases one by storing `taken` after it.
- `asleep` is 1 while the reader sleeps, or is about to.  The reader stores it, passes a full
  barrier, and looks for records once more before it sleeps; the writer stores `written`, passes a
  full barrier, and looks at `asleep`.  So one of them sees what the other stored, and no record
  waits for a reader that sleeps.  The writer then wakes it by an eventfd, the bell.  (After a write
  to a socket or a pipe the kernel assumes that the writer is about to sleep, and moves the reader to
  the writer's core, where neither can wait for the other without sleeping.)

Pitfall: the order of two stores by one rank, as seen by another, is that of the program on x86-64
only, and Python has no weaker barrier than a lock.  So other processors have no rings (`usable`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import socket
import sys
import threading

from serverless_mpi.channels.base import Delivery

RING_BYTES = 32 << 10
MOST_BYTES = 4 << 10  # of a frame with its length; longer ones take the socket
WRAP = (1 << 64) - 1  # in place of a length: the next record is at the start
_LINE = 64  # bytes of a cache line
_WRITTEN, _TAKEN, _ASLEEP = (line * _LINE // 8 for line in range(3))  # indices of words
_RECORDS = 3 * _LINE
_MEMORY_BYTES = _RECORDS + RING_BYTES

_lock = threading.Lock()


def usable() -> bool:
    """Return whether this machine can have rings."""
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and hasattr(os, "memfd_create")
        and hasattr(os, "eventfd")
    )


def barrier() -> None:
    """Let no load after this be done before a store that precedes it.

    Taking a lock is an atomic read-modify-write, which is a full barrier on x86-64.
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, section 9.2.2.
    """
    with _lock:
        pass


class _Ring:
    """The memory of a ring in one of its two processes."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _MEMORY_BYTES)
        self._memory = memoryview(self._map)
        self._words = self._memory.cast("Q")

    def close(self) -> None:
        """Release the memory."""
        self._words.release()
        self._memory.release()
        with contextlib.suppress(BufferError):  # another thread holds a view: it ends with that
            self._map.close()


class RingWriter(_Ring):
    """The writing end.

    Raises
    ------
    OSError
        No descriptor or memory is left.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("smpi-ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, _MEMORY_BYTES)
            super().__init__(self._fd)
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            os.close(self._fd)
            raise
        self._written = 0

    def send(self, sock: socket.socket, opening: bytes) -> None:
        """Pass the ring over a new connection, with its first bytes.

        The descriptor of the memory is closed, also after an error: the ring is passed once.

        Parameters
        ----------
        sock
            A connected Unix socket; borrowed.
        opening
            Bytes that the descriptors travel with, few enough for an empty socket buffer.

        Raises
        ------
        OSError
            The connection is broken.
        """
        try:
            socket.send_fds(sock, [opening], [self._fd, self._bell])
        finally:
            os.close(self._fd)  # the map keeps the memory

    def close(self) -> None:
        """Release the memory and the bell."""
        super().close()
        os.close(self._bell)

    def put(self, record: bytes) -> bool:
        """Write a frame with its length before it, and wake a reader that sleeps.

        Parameters
        ----------
        record
            The length in 8 bytes, then the frame; at most MOST_BYTES bytes.  Copied.

        Returns
        -------
        bool
            False: nothing was done, since the ring lacks capacity for the record.
        """
        nbytes = len(record)
        size = (nbytes + 7) & ~7
        written, words = self._written, self._words
        place = written % RING_BYTES
        if place + size > RING_BYTES:
            skipped = RING_BYTES - place
            if written + skipped + size - words[_TAKEN] > RING_BYTES:
                return False
            words[(_RECORDS + place) // 8] = WRAP
            written += skipped
            place = 0
        elif written + size - words[_TAKEN] > RING_BYTES:
            return False
        start = _RECORDS + place
        self._memory[start : start + nbytes] = record
        self._written = words[_WRITTEN] = written + size
        with _lock:  # `barrier`, without the call
            pass
        if words[_ASLEEP]:
            os.eventfd_write(self._bell, 1)
        return True


class RingReader(_Ring):
    """The reading end.

    Parameters
    ----------
    fd, bell
        Of the memory and of the bell, as the writer passed them.  This object closes `bell`.

    Attributes
    ----------
    bell : int
        Readable when the writer has rung it.

    Raises
    ------
    OSError
        `fd` is not the memory of a ring.
    """

    def __init__(self, fd: int, bell: int) -> None:
        if os.fstat(fd).st_size != _MEMORY_BYTES:
            raise OSError("not the memory of a ring")
        super().__init__(fd)
        self.bell = bell
        self._taken = 0

    def close(self) -> None:
        """Release the memory and the bell."""
        super().close()
        os.close(self.bell)

    def waiting(self) -> bool:
        """Return whether there is a frame."""
        return self._words[_WRITTEN] != self._taken

    def take(self, inbox: list[Delivery]) -> bool:
        """Append the frames that are in the ring to a list, and release their records.

        Parameters
        ----------
        inbox
            Receives the frames, each in memory of its own.

        Returns
        -------
        bool
            False if a length is not one that a `RingWriter` writes.  The frames before it are in
            `inbox`, but their records are not released.
        """
        taken, words = self._taken, self._words
        written = words[_WRITTEN]
        while taken != written:
            place = taken % RING_BYTES
            start = _RECORDS + place
            nbytes = words[start // 8]
            if nbytes == WRAP:
                taken += RING_BYTES - place
                continue
            if nbytes > MOST_BYTES or place + 8 + nbytes > RING_BYTES:
                return False
            frame = memoryview(bytearray(self._memory[start + 8 : start + 8 + nbytes]))
            inbox.append(tuple.__new__(Delivery, (frame, None, None, ())))
            taken += (nbytes + 15) & ~7
        self._taken = words[_TAKEN] = taken
        return True

    def sleep(self, asleep: bool) -> None:
        """State whether this rank is about to sleep; pass a full barrier before it does.

        Parameters
        ----------
        asleep
            Whether a writer has to ring the bell for the next frame.
        """
        self._words[_ASLEEP] = asleep
