"""Failure notices: the launcher reports each rank that has ended to the others (`smpirun --ft`).

Every rank has a named pipe in the job's folder. The launcher writes a record to each when a rank
has ended, and keeps the pipes open, so a rank that starts late finds all records in its pipe. This
way is the same on every channel, and a broken connection is not taken for a death.

A bridge between two jobs (processes/) has no launcher of its own. It is on one machine, where a
socket of the kernel breaks only if its process ends, so there each rank connects to all others, and
a connection that breaks is a notice.

A record has a rank, whether it has failed, and a tag keyed with the job's key; a record with
another tag is skipped.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from serverless_mpi.core import tags

NOTICES = "notices"  # setting of a job: path of the pipes, with a field {rank}
# Instead of a path, in a bridge: a rank whose connection breaks has died.
BY_CONNECTIONS = "connections"
_RECORD = struct.Struct(f"<IB{tags.TAG_BYTES}s")  # shorter than PIPE_BUF, so it is written whole


def _record(rank: int, died: bool, key: bytes) -> bytes:
    fields = f"{rank} {int(died)}".encode()
    return _RECORD.pack(rank, died, tags.make(key, tags.Purpose.NOTICE, fields))


def _abort_mark(folder: Path, rank: int) -> Path:
    return folder / f"aborted-{rank}"


def mark_abort(folder: Path, rank: int) -> None:
    """Note that a rank ends the whole job (`Comm.Abort`), which its exit code does not show.

    Parameters
    ----------
    folder
        The job's folder.
    rank
        The rank.
    """
    with contextlib.suppress(OSError):
        _abort_mark(folder, rank).touch()


def aborted(folder: Path, rank: int) -> bool:
    """Return whether a rank has called `mark_abort`.

    Parameters
    ----------
    folder, rank
        As for `mark_abort`.
    """
    return _abort_mark(folder, rank).exists()


class NoticeWriter:
    """The launcher's ends of the pipes.

    Parameters
    ----------
    folder
        The job's folder, which only this user can read.
    size
        Number of ranks.
    key
        The job's key.
    """

    def __init__(self, folder: Path, size: int, key: bytes) -> None:
        self.path = str(folder / "notices-{rank}")
        self._key = key
        self._pipes: list[int] = []
        for rank in range(size):
            path = self.path.format(rank=rank)
            os.mkfifo(path, 0o600)
            # for reading, too: a pipe without a reader cannot be opened for writing only
            self._pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def tell(self, rank: int, died: bool) -> None:
        """Report to all others that a rank has ended.

        Parameters
        ----------
        rank
            The rank.
        died
            Whether it failed; False if it ended with exit code 0.
        """
        record = _record(rank, died, self._key)
        for pipe in self._pipes:
            with contextlib.suppress(BlockingIOError):  # a full pipe is that of a stopped process
                os.write(pipe, record)

    def close(self) -> None:
        """Close the pipes."""
        while self._pipes:
            os.close(self._pipes.pop())


def read_notices(path: str, key: bytes) -> Iterator[tuple[int, bool]]:
    """Yield (rank, died) of each rank that ends; wait for the next until the launcher ends.

    Parameters
    ----------
    path
        Of the rank's pipe.
    key
        The job's key.

    Raises
    ------
    OSError
        The job's folder does not exist any more.
    """
    with open(path, "rb", buffering=0) as pipe:
        while data := pipe.read(_RECORD.size):
            if len(data) == _RECORD.size:
                rank, died, _ = _RECORD.unpack(data)
                if tags.same(data, _record(rank, bool(died), key)):
                    yield rank, bool(died)
