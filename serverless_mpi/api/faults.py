"""Fault tolerance of communicators: revoke, failed ranks, agreement and shrinking (MPI 5, ULFM).

The calls here work on revoked communicators and with failed members. The others raise
ERR_PROC_FAILED when they need a failed rank, and ERR_REVOKED after `Revoke`;
runtime/failures.py does that, and states the rules.

Failures are reported in jobs that `smpirun --ft` started. In other jobs a rank that dies ends the
job, and these calls work without failures.

Invariant: all members make the agreements of a communicator (`Agree`, `Iagree`, `Shrink`,
`Ishrink`) in the same order; `State.count` numbers them apart from the other collectives, because
those may have failed on some members only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serverless_mpi.api.buffers import Buffer
from serverless_mpi.api.comm_state import Kind, State, null_handle
from serverless_mpi.api.group import Group, group_of
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.core.agreement import Value
from serverless_mpi.core.envelope import derive_context
from serverless_mpi.errors import ERR_PROC_FAILED, ERR_REVOKED, MPIException
from serverless_mpi.runtime.failures import FaultTolerantRuntime, activate
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.signals import uninterrupted

if TYPE_CHECKING:
    from serverless_mpi.api.comm import Comm

INT_BYTES = 4  # of a C int
INT_BITS = 0xFFFFFFFF  # a flag travels as the bits of a C int


def _signed(bits: int) -> int:
    """The C int that has these bits."""
    return bits - (1 << 32) if bits >> 31 else bits


class FaultTolerance:
    """The fault tolerance of a communicator. `Comm` provides what it is."""

    @property
    def _state(self) -> State:
        raise NotImplementedError

    def _live(self) -> None:
        """Raise ERR_COMM if it is null or has been freed."""
        raise NotImplementedError

    def _usable(self) -> None:
        self._live()
        if self._state.revoked:
            raise MPIException(ERR_REVOKED, "the communicator has been revoked; use Shrink")

    def _tolerant(self) -> FaultTolerantRuntime:
        self._live()
        return activate(self._state.runtime)

    def Revoke(self) -> None:
        """Revoke the communicator on all of its members; not collective.

        Every pending and later call that communicates on it raises ERR_REVOKED, on this rank at
        once and on the others when they receive the revocation. `Agree`, `Shrink` and local calls
        still work. A second call does nothing.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed.

        Notes
        -----
        At most one message from each member to each other one.
        """
        runtime = self._tolerant()
        state = self._state
        for each in (state, state.internal, state.local):
            if each is not None:
                runtime.revoke(each.context, each.everyone)

    def Is_revoked(self) -> bool:
        """Return whether the communicator has been revoked, as far as this rank knows."""
        self._live()
        return self._state.revoked

    def _failed(self) -> list[int]:
        """World ranks of the members that have failed, in the order in which this rank learned."""
        members = set(self._state.everyone)
        return [rank for rank in self._tolerant().failures.failed if rank in members]

    def Get_failed(self) -> Group:
        """Return the group of the members that are known to have failed; local.

        Between two groups it has members of both. Its order is that of the notices, which may
        differ between ranks.
        """
        failed = self._failed()
        return group_of(self._state.runtime, failed, self._state.session)

    def Ack_failed(self, num_to_ack: int | None = None) -> int:
        """Acknowledge failures; receives from MPI.ANY_SOURCE then go on without those ranks.

        Parameters
        ----------
        num_to_ack
            How many, in the order of `Get_failed`; None for all. Acknowledged ones stay so.

        Returns
        -------
        int
            How many failures of this communicator have been acknowledged.
        """
        failed = self._failed()
        state, runtime = self._state, self._tolerant()
        runtime.acknowledge(
            state.context, failed[: len(failed) if num_to_ack is None else num_to_ack]
        )
        return len(runtime.failures.acknowledged[state.context].intersection(failed))

    def _iagree(self, flag: int) -> tuple[int, Operation]:
        """Start an agreement; return its number, and its operation."""
        runtime = self._tolerant()
        state = self._state
        number = state.count("agreement")
        return number, runtime.iagree(state.context, number, state.everyone, flag)

    @uninterrupted
    def _agreed(self, operation: Operation) -> Value:
        runtime = self._state.runtime
        runtime.wait_for(operation)
        value: Value = operation.result
        return value

    def Agree(self, flag: int) -> int:
        """Agree on the bitwise AND of flags; all members that survive return the same.

        Parameters
        ----------
        flag
            A C int.

        Returns
        -------
        int
            AND of the flags of all members that survived, and of some of those that died meanwhile.

        Raises
        ------
        MPIException
            ERR_PROC_FAILED, on all members: a member has failed whose failure not all of them have
            acknowledged (`Ack_failed`).

        Notes
        -----
        Four messages per member: to the lowest rank that lives and back, twice.
        """
        value = self._agreed(self._iagree(int(flag) & INT_BITS)[1])
        _check_acknowledged(value)
        return _signed(value.flag)

    def Iagree(self, flag: Buffer) -> Request:
        """Start an `Agree`.

        Parameters
        ----------
        flag
            A writable buffer of one C int, borrowed; it has the result when the request completes.

        Raises
        ------
        ValueError
            The buffer has another length.
        """
        memory = memoryview(flag).cast("B")  # type: ignore[arg-type]  # TypeError for others
        if memory.nbytes != INT_BYTES:
            raise ValueError(f"message: expecting a buffer of {INT_BYTES} bytes, a C int")
        _, operation = self._iagree(int.from_bytes(memory, "little"))

        def finish(done: Operation, status: Status) -> None:
            fill_empty_status(status)
            memory[:] = done.result.flag.to_bytes(INT_BYTES, "little")
            _check_acknowledged(done.result)

        return request_of(self._state.runtime, operation, finish)

    def _survivors(self, number: int, value: Value) -> State:
        """The state of the communicator of the members that an agreement has not excluded."""
        state = self._state
        ranks = [rank for rank in state.ranks if rank not in value.ended]
        remote = None
        if state.remote is not None:
            remote = [rank for rank in state.remote if rank not in value.ended]
        child = State(
            state.runtime, derive_context(state.context, "shrink", number), ranks, remote=remote
        )
        child.session, child.errhandler = state.session, state.errhandler
        return child

    def Shrink(self) -> Comm:
        """Make a communicator of the members that survive, in their order.

        All survivors get the same one. It works on a revoked communicator, and needs no
        acknowledgement.

        Returns
        -------
        Comm
            With two groups if this one has two. A topology is not kept.

        Notes
        -----
        As expensive as `Agree`.
        """
        number, operation = self._iagree(INT_BITS)
        comm: Comm = self._survivors(number, self._agreed(operation)).handle()
        return comm

    def Ishrink(self) -> tuple[Comm, Request]:
        """Start a `Shrink`.

        Returns
        -------
        tuple
            The communicator, which can be used when the request has completed, and the request.
        """
        number, operation = self._iagree(INT_BITS)
        kind = Kind.INTRA if self._state.remote is None else Kind.INTER
        comm: Comm = null_handle(kind)

        def finish(done: Operation, status: Status) -> None:
            fill_empty_status(status)
            setattr(comm, "_ob", self._survivors(number, done.result))  # noqa: B010

        return comm, request_of(self._state.runtime, operation, finish)


def _check_acknowledged(value: Value) -> None:
    unknown = sorted(value.ended - value.acknowledged)
    if unknown:
        raise MPIException(
            ERR_PROC_FAILED,
            f"rank {unknown[0]} of the job has failed, and not every member has called Ack_failed"
            " since",
        )
