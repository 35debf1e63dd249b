"""Where checkpoints lie: a folder, or a prefix of a bucket (s3.py).

What a place must do: `create` makes a file whole or not at all, and for one caller only; `write`
may be cut off, since a part counts only when a record names it.

A part is unpickled, so whoever can write to a place can run code in the program. A folder must
therefore belong to the user, and nobody else may write to it; each file in it as well. The folder
is opened once, and files in it are opened below that descriptor, so a link or a folder that is put
in its place later has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from serverless_mpi.errors import CheckpointError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_REMEDIES = {
    errno.ENOSPC: "free some space there, or name another place with to=",
    errno.EDQUOT: "free some of your quota, or name another place with to=",
    errno.EACCES: "make it writable for you, or name another place with to=",
    errno.EPERM: "name a place with to= whose file system has hard links",
    errno.EROFS: "name another place with to=",
}
_MOST_AT_ONCE = 1 << 30  # bytes of one write; Linux takes 2 GiB


class Place(ABC):
    """A place of checkpoints. Methods may be called by several threads at the same time.

    Attributes
    ----------
    title
        How the place is named in messages.
    """

    title: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files."""

    @abstractmethod
    def read(self, name: str) -> memoryview | None:
        """Return the bytes of a file, writable; None if there is none.

        Parameters
        ----------
        name
            One of `names`.
        """

    @abstractmethod
    def write(self, name: str, views: Sequence[memoryview]) -> None:
        """Make a file that nobody reads before this call has returned.

        Parameters
        ----------
        name
            A name that nobody else uses.
        views
            Its bytes, one after the other; borrowed until the call returns.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Make a file, whole or not at all, unless there is one; return whether this call did.

        Parameters
        ----------
        name
            The name.
        data
            Bytes that no other caller writes under any name.
        """

    @abstractmethod
    def remove(self, names: Sequence[str]) -> None:
        """Remove files, of which some may be gone already.

        Parameters
        ----------
        names
            The names.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove the place and everything in it."""


class Folder(Place):
    """A folder of this machine, or one that the machines of the job share.

    Parameters
    ----------
    path
        The folder; it is made if it does not exist.
    durable
        Whether files must survive a crash of the machine. Without it, only of the processes.

    Raises
    ------
    CheckpointError
        It cannot be made, or others could write to it.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.title = str(path)
        self._path = path
        self._durable = durable
        with self._explained("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._check(os.fstat(self._fd), "")
        except CheckpointError:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder; the place cannot be used any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()

    def _check(self, status: os.stat_result, name: str) -> None:
        """Raise CheckpointError if another user may have written a file, or could do so."""
        what = os.path.join(self.title, name) if name else self.title
        if status.st_uid != os.geteuid():
            raise CheckpointError(
                f"{what} belongs to another user, who could run code in this program by it; name a"
                " folder of your own with to="
            )
        if status.st_mode & _OTHERS_WRITE:
            raise CheckpointError(
                f"other users can write to {what}, and so run code in this program;"
                f" chmod go-w {what}"
            )

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn errors of the file system into CheckpointError."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "name another place with to=")
            raise CheckpointError(
                f"cannot {verb} {self.title}: {error.strerror or error}; {remedy}"
            ) from error

    def names(self) -> list[str]:
        with self._explained("list"):
            return os.listdir(self._fd)

    def read(self, name: str) -> memoryview | None:
        with self._explained("read"):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
            except FileNotFoundError:
                return None
            with open(fd, "rb", buffering=0) as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise CheckpointError(f"{self.title}/{name} is not a file; remove it")
                self._check(status, name)
                data = memoryview(bytearray(status.st_size))
                done = 0
                while done < data.nbytes and (got := file.readinto(data[done:])):
                    done += got
        return data[:done]

    def write(self, name: str, views: Sequence[memoryview]) -> None:
        with self._explained("write to"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
            try:
                for view in views:
                    rest = view.cast("B")
                    while rest.nbytes:
                        rest = rest[os.write(fd, rest[:_MOST_AT_ONCE]) :]
                if self._durable:
                    os.fsync(fd)
            finally:
                os.close(fd)

    def create(self, name: str, data: bytes) -> bool:
        draft = f"{name.replace('record', 'draft', 1)}-{os.urandom(8).hex()}"
        self.write(draft, [memoryview(data)])
        try:
            with self._explained("write to"):
                os.link(draft, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                if self._durable:
                    os.fsync(self._fd)
        except CheckpointError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        finally:
            self.remove([draft])
        return True

    def remove(self, names: Sequence[str]) -> None:
        with self._explained("remove files of"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._fd)

    def clear(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other loops have theirs in it
            self._path.parent.rmdir()
