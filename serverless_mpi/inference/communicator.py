"""The communicator that inference needs: a protocol that mpi4py's and this package's satisfy.

The engine and the workers run under smpirun, on Lambda and under mpirun, so they get a communicator
as an argument and call nothing else of MPI. If they need another call, add it here: mypy then
checks that this package has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Pending(Protocol):
    """A request that was started."""

    def wait(self) -> object:
        """Wait until it is complete."""


class Communicator(Protocol):
    """An intracommunicator; the methods are those of `mpi4py.MPI.Intracomm`."""

    @property
    def rank(self) -> int:
        """Rank of the caller."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def Dup(self) -> Communicator:
        """Return a copy with messages of its own; collective."""

    def Split(self, color: int, key: int) -> Communicator:
        """Return the communicator of the ranks with this colour, sorted by key; collective.

        Parameters
        ----------
        color
            At least 0; ranks with equal ones get one communicator.
        key
            Ranks are ordered by it, then by their rank here.
        """

    def Free(self) -> None:
        """Release the communicator; collective."""

    def Barrier(self) -> None:
        """Wait until all ranks have entered; collective."""

    def Abort(self, errorcode: int) -> object:
        """End the job with an exit code.

        Parameters
        ----------
        errorcode
            Exit code of the job.
        """

    def bcast(self, obj: object, /) -> Any:
        """Return the object of rank 0; collective.

        Parameters
        ----------
        obj
            Any object that pickles, at rank 0; others pass anything.
        """

    def scatter(self, sendobj: Sequence[object] | None, /) -> Any:
        """Return the object that rank 0 has for this rank; collective.

        Parameters
        ----------
        sendobj
            One object for each rank, at rank 0; None at the others.
        """

    def gather(self, sendobj: object, /) -> list[Any] | None:
        """Return the objects of all ranks at rank 0; collective.

        Parameters
        ----------
        sendobj
            Any object that pickles.
        """

    def allgather(self, sendobj: object, /) -> list[Any]:
        """Return the objects of all ranks; collective.

        Parameters
        ----------
        sendobj
            Any object that pickles.
        """

    def alltoall(self, sendobj: Sequence[object], /) -> list[Any]:
        """Return the object that each rank has for this rank; collective.

        Parameters
        ----------
        sendobj
            One object for each rank.
        """

    def isend(self, obj: object, dest: int) -> Pending:
        """Start to send an object.

        Parameters
        ----------
        obj
            Any object that pickles; it may be changed as soon as the call returns.
        dest
            Rank in this communicator.
        """

    def recv(self, *, source: int) -> Any:
        """Return the next object from a rank.

        Parameters
        ----------
        source
            Rank in this communicator.
        """
