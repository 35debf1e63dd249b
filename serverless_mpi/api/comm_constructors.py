"""What is made of a communicator: duplicates, parts by colour, type and group (MPI 4.1, section 7.4).

A context is derived from facts that all members share, so that only what they do not know yet is sent: colours and
keys, and the groups of an intercommunicator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.environ import Get_processor_name
from serverless_mpi.api.group import Group, group_ranks
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import fill_empty_status
from serverless_mpi.collectives.choose import Facts, select
from serverless_mpi.collectives.steps import whole
from serverless_mpi.core.envelope import UNDEFINED, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_GROUP, MPIException
from serverless_mpi.operation import Operation
from serverless_mpi.runtime import Runtime, never

if TYPE_CHECKING:
    from serverless_mpi.api.comm import Comm

COMM_TYPE_SHARED = 1
COMM_TYPE_HW_GUIDED = 2
COMM_TYPE_HW_UNGUIDED = 3
COMM_TYPE_RESOURCE_GUIDED = 4

C = TypeVar("C", bound="CommConstructors")


class CommConstructors(Attributed):
    """The calls of a communicator that make others.  `Comm` gives what it is."""

    _runtime: Runtime

    @property
    def _state(self) -> State:
        raise NotImplementedError

    @classmethod
    def _of(cls: type[C], state: State | None) -> C:
        """A handle of this class; a null one for None."""
        raise NotImplementedError

    def _live(self) -> None:
        """Raise ERR_COMM if it is null or has been freed."""
        raise NotImplementedError

    def _agree(self, value: Any) -> list[Any]:
        state = self._state
        size = len(state.everyone)
        algorithm = select("allgather", Facts(size, None, state.runtime.figures)).generator
        steps = algorithm(state.everyone.index(state.runtime.rank), size, encode(value))
        operation = state.runtime.icollective(
            state.context, next(state.calls), steps, state.everyone
        )
        state.runtime.wait_until(lambda: operation.done, interruptible=never)
        if operation.error is not None:
            raise operation.error
        return [decode(whole(blob)) for blob in operation.result]

    def _child(
        self,
        ranks: Sequence[int],
        *facts: object,
        remote: Sequence[int] | None = None,
        topology: Any = None,
    ) -> Any:
        """What a communicator of world ranks shares, in a context derived from facts that all its members share."""
        state = self._state
        made = State(
            state.runtime,
            derive_context(state.context, *facts),
            ranks,
            remote=remote,
            topology=topology,
        )
        made.session = state.session
        return made

    def _duplicate(self) -> State:
        state = self._state
        facts = ("dup", next(state.children))
        made: State = self._child(state.ranks, *facts, remote=state.remote, topology=state.topology)
        made.info.update(state.info)
        made.errhandler = state.errhandler
        return made

    def Clone(self: C) -> C:
        """The same processes in a context of their own.  Sends nothing."""
        return self.Dup()

    def Dup(self: C, info: Info | None = None) -> C:
        """The same processes, and topology, in a context of their own.  Sends nothing."""
        self._live()
        new = type(self)._of(self._duplicate())
        if info:
            new._state.info.update(info.items())
        self._copy_attributes(new)
        return new

    def Dup_with_info(self: C, info: Info) -> C:
        """The same with other hints."""
        return self.Dup(info)

    def Idup(self: C, info: Info | None = None) -> tuple[C, Request]:
        """`Dup`, and a request that is done."""
        return self.Dup(info), self._completed()

    def Idup_with_info(self: C, info: Info) -> tuple[C, Request]:
        """`Dup_with_info`, and a request that is done."""
        return self.Dup(info), self._completed()

    def _completed(self) -> Request:
        operation = Operation()
        operation._end()
        return request_of(self._runtime, operation, lambda _, status: fill_empty_status(status))

    def _split(self, color: Any, key: int) -> State | None:
        """What the communicator of one colour shares, ordered by key, then rank; None for colour None."""
        state = self._state
        number = next(state.children)
        given = dict(zip(state.everyone, self._agree((color, key)), strict=True))

        def chosen(ranks: Sequence[int]) -> list[int]:
            return sorted(
                (world for world in ranks if given[world][0] == color),
                key=lambda world: given[world][1],
            )

        if color is None:
            return None
        remote = None if state.remote is None else chosen(state.remote)
        if remote is not None and not remote:
            return None  # nobody of that colour in the other group
        made: State = self._child(chosen(state.ranks), "split", number, color, remote=remote)
        return made

    def _like(self, state: State | None) -> Comm:
        """A handle to a communicator of one group, or two, as this one is; a null one of that class for None."""
        kind = Kind.INTRA if self._state.remote is None else Kind.INTER
        handle: Comm = KINDS[kind]._of(state)
        return handle

    def Split(self, color: int = 0, key: int = 0) -> Comm:
        """A communicator for each colour, ordered by key, then rank; a null one for colour UNDEFINED."""
        self._live()
        if color < 0 and color != UNDEFINED:
            raise MPIException(
                ERR_ARG, f"colour {color} is negative; use MPI.UNDEFINED to take no part"
            )
        return self._like(self._split(None if color == UNDEFINED else int(color), key))

    def Split_type(self, split_type: int, key: int = 0, info: Info = INFO_NULL) -> Comm:
        """COMM_TYPE_SHARED: the processes on one machine; the guided types where the info asks for mpi_shared_memory.

        COMM_TYPE_HW_UNGUIDED: those on one machine if the communicator spans several, else a null communicator.
        """
        self._live()
        guide = info.Get("mpi_hw_resource_type") if info else None
        color: str | None = None
        if split_type in (COMM_TYPE_SHARED, COMM_TYPE_HW_UNGUIDED):
            color = Get_processor_name()
        elif split_type in (COMM_TYPE_HW_GUIDED, COMM_TYPE_RESOURCE_GUIDED):
            color = Get_processor_name() if guide == "mpi_shared_memory" else None
        elif split_type != UNDEFINED:
            raise MPIException(
                ERR_ARG, f"split type {split_type} is not known; use MPI.COMM_TYPE_SHARED"
            )
        made = self._split(color, key)
        if split_type == COMM_TYPE_HW_UNGUIDED and made is not None:
            if made.everyone and len(made.ranks) == len(self._state.ranks):
                made = None
            elif info:
                info.Set("mpi_hw_resource_type", "mpi_shared_memory")
        return self._like(made)

    def Create(self, group: Group) -> Comm:
        """The processes of `group`; every process calls it, those outside get a null communicator."""
        self._live()
        ranks = self._check_group(group)
        state = self._state
        number = next(state.children)
        if state.remote is None:
            return self._like(
                self._child(ranks, "create", number, ranks) if state.runtime.rank in ranks else None
            )
        given = dict(zip(state.everyone, self._agree(ranks), strict=True))
        remote = given[state.remote[0]]
        made = state.runtime.rank in ranks and remote
        return self._like(self._child(ranks, "create", number, remote=remote) if made else None)

    def _check_group(self, group: Group) -> tuple[int, ...]:
        ranks = group_ranks(group)
        if not set(ranks) <= set(self._state.ranks):
            raise MPIException(
                ERR_GROUP, "the group has processes that are not in the communicator"
            )
        return ranks


__all__ = [
    "COMM_TYPE_HW_GUIDED",
    "COMM_TYPE_HW_UNGUIDED",
    "COMM_TYPE_RESOURCE_GUIDED",
    "COMM_TYPE_SHARED",
]
