"""What a backend of files is, and what it gets from the ranks that opened the file.

A backend moves bytes between memory and places of a file. It knows no datatypes, views or
pointers, except that it keeps the shared pointer, because only the file system is there for all
ranks at all times: a rank that computes answers no messages, and a rank that waits for it would
not make progress.

Rules:

- A method that is marked *collective* is called by all ranks of the file in the same order. It
  raises on all ranks or on none, except where it says otherwise; `agree` does that.
- `set_size` and `preallocate` are called when all ranks have arrived.
- Other methods may be called by several threads at the same time.
- Errors are `MPIException` of the class that MPI has for them, with the name of the file.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from serverless_mpi.errors import (
    ERR_ACCESS,
    ERR_BAD_FILE,
    ERR_FILE_EXISTS,
    ERR_FILE_IN_USE,
    ERR_IO,
    ERR_NO_SPACE,
    ERR_NO_SUCH_FILE,
    ERR_NOT_SAME,
    ERR_QUOTA,
    ERR_READ_ONLY,
    ERR_UNSUPPORTED_OPERATION,
    MPIException,
)
from serverless_mpi.fileio.pieces import Places
from serverless_mpi.metering import Meter

T = TypeVar("T")

CLASS_OF_ERRNO: dict[int, int] = {
    errno.ENOENT: ERR_NO_SUCH_FILE,
    errno.EEXIST: ERR_FILE_EXISTS,
    errno.EACCES: ERR_ACCESS,
    errno.EPERM: ERR_ACCESS,
    errno.EROFS: ERR_READ_ONLY,
    errno.ENAMETOOLONG: ERR_BAD_FILE,
    errno.ENOTDIR: ERR_BAD_FILE,
    errno.EISDIR: ERR_BAD_FILE,
    errno.ELOOP: ERR_BAD_FILE,
    errno.ENOSPC: ERR_NO_SPACE,
    errno.EFBIG: ERR_NO_SPACE,
    errno.EDQUOT: ERR_QUOTA,
    errno.ETXTBSY: ERR_FILE_IN_USE,
    errno.EBUSY: ERR_FILE_IN_USE,
}


def of_os(error: OSError, what: str) -> MPIException:
    """Return the MPI error of an error of the operating system.

    Parameters
    ----------
    error
        The error.
    what
        What failed, with the name of the file: "open /tmp/x".
    """
    code = CLASS_OF_ERRNO.get(error.errno or 0, ERR_IO)
    return MPIException(code, f"cannot {what}: {error.strerror or error}")


class Ranks(Protocol):
    """The ranks that have a file open: a communicator of the file's own, as backends use it."""

    rank: int
    size: int

    def allgather(self, value: object) -> list[Any]:
        """Return the value of each rank. Collective."""

    def send(self, value: object, dest: int) -> Callable[[], None]:
        """Start sending a value, which may be changed once the returned function has returned."""

    def recv(self, source: int) -> object:
        """Return the next value that a rank sent to this one."""

    def exchange_is_free(self) -> bool:
        """Whether messages between ranks cost no requests."""


def agree(
    ranks: Ranks, call: Callable[[], T], same: str = "", fact: Callable[[T], Any] | None = None
) -> T:
    """Run `call` on each rank; if it fails on any of them, raise on all. Collective.

    Parameters
    ----------
    ranks
        The ranks of the file.
    call
        Not collective.
    same
        What must be equal on all ranks, for the text of ERR_NOT_SAME; "" if nothing must be.
    fact
        fact(result) is compared; None for the result itself.

    Raises
    ------
    MPIException
        This rank's error, or the first other rank's.
    """
    result: Any = None
    error: MPIException | None = None
    try:
        result = call()
    except MPIException as own:
        error = own
    mine = None
    if same and error is None:
        mine = result if fact is None else fact(result)
    outcomes = ranks.allgather((mine, None) if error is None else (error.ob_mpi, error.message))
    if error is not None:
        raise error
    for rank, (value, message) in enumerate(outcomes):
        if message is not None:
            raise MPIException(value, f"on rank {rank} of the file: {message}")
    if any(value != outcomes[0][0] for value, _ in outcomes):
        raise MPIException(ERR_NOT_SAME, f"{same} must be equal on all ranks that share a file")
    return result  # type: ignore[no-any-return]


def by_first(ranks: Ranks, call: Callable[[], T]) -> T:
    """Run `call` on rank 0 alone, and return its result on all ranks. Collective.

    Parameters
    ----------
    ranks
        The ranks of the file.
    call
        Its result must pickle; its MPIException is raised on all ranks.
    """
    mine: tuple[bool, Any] | None = None
    if ranks.rank == 0:
        try:
            mine = (True, call())
        except MPIException as error:
            mine = (False, (error.ob_mpi, error.message))
    outcome = ranks.allgather(mine)[0]
    assert outcome is not None
    if not outcome[0]:
        raise MPIException(*outcome[1])
    return outcome[1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mode:
    """How a file is opened, as MPI.MODE_* say."""

    read: bool
    write: bool
    create: bool
    exclusive: bool


@dataclass(frozen=True)
class Where:
    """Where the job runs, for backends that are services.

    Attributes
    ----------
    endpoint, region, key
        As in `JobSpec`.
    bucket
        Bucket of the job; "" if its channel has none.
    meter
        Counts the requests of the rank.
    """

    endpoint: str | None
    region: str
    key: bytes
    bucket: str
    meter: Meter


class Backend(ABC):
    """An open file.

    Attributes
    ----------
    name
        As the program gave it, for messages.
    hints
        What `Get_info` returns: hints that the backend uses, with their values.
    """

    name: str
    hints: dict[str, str]

    @classmethod
    @abstractmethod
    def open(
        cls, name: str, mode: Mode, hints: Mapping[str, str], ranks: Ranks, where: Where
    ) -> Backend:
        """Open a file. Collective.

        Parameters
        ----------
        name
            Name of the file without the scheme.
        mode
            What it is opened for.
        hints
            Hints of the program; those that are not known are ignored.
        ranks
            The ranks that open it.
        where
            Where the job runs.
        """

    @classmethod
    @abstractmethod
    def delete(cls, name: str, where: Where) -> None:
        """Delete a file; ERR_NO_SUCH_FILE if there is none.

        Parameters
        ----------
        name
            Name of the file without the scheme.
        where
            Where the job runs.
        """

    @abstractmethod
    def read(self, at: Places, into: memoryview) -> int:
        """Read bytes; return how many of them exist.

        Parameters
        ----------
        at
            Places in the file, in the order of the data.
        into
            Writable memory of as many bytes.
        """

    @abstractmethod
    def write(self, at: Places, data: memoryview) -> None:
        """Write bytes.

        Parameters
        ----------
        at
            Places in the file, in the order of the data, which do not overlap.
        data
            As many bytes; borrowed for the call.
        """

    def read_all(self, at: Places, into: memoryview) -> int:
        """Read as `read`. Collective; raises on the rank whose read failed.

        Parameters
        ----------
        at, into
            As for `read`; each rank has its own.
        """
        return self.read(at, into)

    def write_all(self, at: Places, data: memoryview) -> None:
        """Write as `write`. Collective; raises on the rank whose write failed.

        Parameters
        ----------
        at, data
            As for `write`; each rank has its own.
        """
        self.write(at, data)

    @abstractmethod
    def size(self) -> int:
        """Return the size in bytes, as far as this rank knows of writes of others."""

    @abstractmethod
    def set_size(self, size: int) -> None:
        """Cut the file, or extend it by zeros. Collective.

        Parameters
        ----------
        size
            New size in bytes.
        """

    def preallocate(self, size: int) -> None:
        """Make sure that writes up to a size find space. Collective.

        Parameters
        ----------
        size
            In bytes; a smaller file is extended to it.
        """
        raise MPIException(
            ERR_UNSUPPORTED_OPERATION,
            f"{self.name} is on a file system without preallocation; use Set_size",
        )

    def set_atomic(self, flag: bool) -> None:
        """Make accesses of different ranks atomic, or not. Collective.

        Parameters
        ----------
        flag
            Whether they are to be atomic.
        """
        if flag:
            raise MPIException(
                ERR_UNSUPPORTED_OPERATION,
                f"{self.name} is on a file system without atomic mode; order conflicting accesses"
                " by Sync, Barrier, Sync",
            )

    @abstractmethod
    def sync(self) -> None:
        """Make what was written visible to others, and what they wrote visible here. Collective."""

    @abstractmethod
    def close(self, delete: bool) -> None:
        """Publish what was written, and close. Collective.

        Parameters
        ----------
        delete
            Delete the file instead of publishing it.
        """

    def take_hints(self, hints: Mapping[str, str]) -> None:
        """Use hints that the program gives after opening. Collective.

        Parameters
        ----------
        hints
            Those that are not known are ignored.
        """

    @abstractmethod
    def counter(self, generation: int, number: int) -> int:
        """Add to a counter that all ranks share, and return what it was before.

        It keeps the shared pointer. No other rank has to do anything for it.

        Parameters
        ----------
        generation
            Which counter; each begins at 0. When a rank uses one, no rank uses an earlier one
            any more.
        number
            To add; 0 only reads it.
        """
