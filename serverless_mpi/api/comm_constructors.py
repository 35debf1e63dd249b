"""Communicator constructors: duplicates, parts by colour, type and group (MPI 4.1, section 7.4).

A context is not agreed upon: every member derives it from facts that all members share (the
parent's context, how many communicators were made before, the colour, the group). So only what the
members do not know is sent: colours and keys of `Split`, and the groups of an intercommunicator.

Rule: a constructor takes its number (`next(state.children)`) on every member, also on those that
get a null communicator; otherwise the members count differently and derive different contexts.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from operator import attrgetter, index
from typing import TYPE_CHECKING, Any, TypeVar

from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.environ import Get_processor_name
from serverless_mpi.api.group import Group, group_ranks, names_in
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import fill_empty_status
from serverless_mpi.collectives.choose import Facts, select
from serverless_mpi.collectives.steps import whole
from serverless_mpi.core.envelope import UNDEFINED, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_GROUP, ERR_REVOKED, MPIException
from serverless_mpi.runtime import Runtime, never
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.signals import uninterrupted

if TYPE_CHECKING:
    from serverless_mpi.api.comm import Comm

COMM_TYPE_SHARED = 1
COMM_TYPE_HW_GUIDED = 2
COMM_TYPE_HW_UNGUIDED = 3
COMM_TYPE_RESOURCE_GUIDED = 4

C = TypeVar("C", bound="CommConstructors")


_agree_key = "agree"  # in `State.choices`; the keys of collective calls are pairs


def _of_colour(color: object, ranks: Sequence[int], values: Sequence[tuple[Any, int]]) -> list[int]:
    """The world ranks of one colour, ordered by key, then as they are.

    `values` has the colour and the key of each of `ranks`.
    """
    chosen = [(key, place) for place, (colour, key) in enumerate(values) if colour == color]
    chosen.sort()
    return [ranks[place] for _, place in chosen]


class CommConstructors(Attributed):
    """The calls of a communicator that make others. `Comm` provides what it is."""

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
        """Gather `value` from every rank, of both groups, in the order of `everyone`."""
        state = self._state
        size = len(state.everyone)
        algorithm = state.choices.get(_agree_key)
        if algorithm is None:
            facts = Facts(size, None, state.runtime.figures, state.nodes)
            algorithm = select("allgather", facts).on(facts).generator
            state.choices[_agree_key] = algorithm
        # not `encode`: facts are small, and a program's own pickler is not asked for them
        blob = memoryview(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        steps = algorithm(state.everyone.index(state.runtime.rank), size, blob)
        operation = state.runtime.icollective(
            state.context, next(state.calls), steps, state.everyone
        )
        state.runtime.wait_until(lambda: operation.done, interruptible=never)
        if operation.error is not None:
            raise operation.error
        return [pickle.loads(whole(blob)) for blob in operation.result]

    def _child(
        self,
        ranks: Sequence[int],
        *facts: object,
        remote: Sequence[int] | None = None,
        topology: Any = None,
    ) -> Any:
        """The state of a communicator of world ranks, in a context derived from `facts`."""
        state = self._state
        if state.revoked:
            raise MPIException(ERR_REVOKED, "no communicator can be made from a revoked one")
        child = State(
            state.runtime,
            derive_context(state.context, *facts),
            ranks,
            remote=remote,
            topology=topology,
        )
        if state.session is not None:
            child.session = state.session
        return child

    def _duplicate(self) -> State:
        """The state of a duplicate, with hints and error handler."""
        state = self._state
        facts = ("dup", next(state.children))
        child: State = self._child(
            state.ranks, *facts, remote=state.remote, topology=state.topology
        )
        if state.info:
            child.info.update(state.info)
        if state.errhandler is not None:
            child.errhandler = state.errhandler
        return child

    @uninterrupted
    def Clone(self: C) -> C:
        """Duplicate the communicator with its topology and attributes; sends nothing."""
        return self.Dup()

    @uninterrupted
    def Dup(self: C, info: Info | None = None) -> C:
        """Duplicate the communicator: the same processes and topology in a new context.

        Parameters
        ----------
        info
            Hints that are added to those of the communicator.

        Returns
        -------
        Comm
            A communicator of the same class, with the cached attributes whose keys copy.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        self._live()
        new = type(self)._of(self._duplicate())
        if info:
            new._state.info.update(info.items())
        if self._state.attributes:
            self._copy_attributes(new)
        return new

    @uninterrupted
    def Dup_with_info(self: C, info: Info) -> C:
        """Duplicate the communicator with additional hints, as `Dup`.

        Parameters
        ----------
        info
            Hints that are added to those of the communicator.

        Returns
        -------
        Comm
            A communicator of the same class, with the cached attributes whose keys copy.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed. If a copy function fails: its code
            if it raised MPI.Exception, else ERR_OTHER.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        return self.Dup(info)

    @uninterrupted
    def Idup(self: C, info: Info | None = None) -> tuple[C, Request]:
        """Duplicate the communicator, and return it with a complete request.

        Parameters
        ----------
        info
            Hints that are added to those of the communicator.

        Returns
        -------
        tuple
            The duplicate, as of `Dup`, and a request that is complete.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed. If a copy function fails: its code
            if it raised MPI.Exception, else ERR_OTHER.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        return self.Dup(info), self._completed()

    @uninterrupted
    def Idup_with_info(self: C, info: Info) -> tuple[C, Request]:
        """Duplicate the communicator with additional hints, and return it with a complete request.

        Parameters
        ----------
        info
            Hints that are added to those of the communicator.

        Returns
        -------
        tuple
            The duplicate, as of `Dup`, and a request that is complete.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed. If a copy function fails: its code
            if it raised MPI.Exception, else ERR_OTHER.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        return self.Dup(info), self._completed()

    def _completed(self) -> Request:
        """A request that is complete."""
        operation = Operation()
        operation.complete()
        return request_of(self._runtime, operation, lambda _, status: fill_empty_status(status))

    def _split(self, color: Any, key: int) -> State | None:
        """The state of the part of one colour, ordered by key and rank; None for colour None."""
        state = self._state
        number = next(state.children)
        values = self._agree((color, key))
        if color is None:
            return None
        if state.remote is None:
            ranks, remote = _of_colour(color, state.ranks, values), None
        else:
            value_of = dict(zip(state.everyone, values, strict=True))
            ranks, remote = (
                _of_colour(color, group, [value_of[world] for world in group])
                for group in (state.ranks, state.remote)
            )
            if not remote:
                return None  # nobody of that colour in the other group
        child: State = self._child(ranks, "split", number, color, remote=remote)
        return child

    def _like(self, state: State | None) -> Comm:
        """A handle of the class for one group, or two, as this communicator has."""
        kind = Kind.INTRA if self._state.remote is None else Kind.INTER
        handle: Comm = KINDS[kind]._of(state)
        return handle

    @uninterrupted
    def Split(self, color: int = 0, key: int = 0) -> Comm:
        """Split the communicator into one for each colour.

        Parameters
        ----------
        color
            Processes of the same colour form a communicator; MPI.UNDEFINED for none.
        key
            Ranks are ordered by key, then by rank.

        Returns
        -------
        Comm
            The part of this process; a null communicator for MPI.UNDEFINED.

        Notes
        -----
        One allgather of colours and keys.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        self._live()
        color, key = index(color), index(key)  # equal on all ranks, and no NumPy type
        if color < 0 and color != UNDEFINED:
            raise MPIException(
                ERR_ARG, f"colour {color} is negative; use MPI.UNDEFINED to take no part"
            )
        return self._like(self._split(None if color == UNDEFINED else color, key))

    @uninterrupted
    def Split_type(self, split_type: int, key: int = 0, info: Info = INFO_NULL) -> Comm:
        """Split the communicator by a property of the processes.

        Parameters
        ----------
        split_type
            COMM_TYPE_SHARED: processes of one machine. COMM_TYPE_HW_UNGUIDED: the same if the
            communicator spans several machines, else a null communicator. COMM_TYPE_HW_GUIDED and
            COMM_TYPE_RESOURCE_GUIDED: processes of one machine if `info` has "mpi_hw_resource_type"
            = "mpi_shared_memory", else a null communicator. MPI.UNDEFINED: take no part.
        key
            Ranks are ordered by key, then by rank.
        info
            Hints; COMM_TYPE_HW_UNGUIDED sets "mpi_hw_resource_type".

        References
        ----------
        MPI 4.1, section 7.4.2.
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
        child = self._split(color, index(key))
        if split_type == COMM_TYPE_HW_UNGUIDED and child is not None:
            if child.everyone and len(child.ranks) == len(self._state.ranks):
                child = None
            elif info:
                info.Set("mpi_hw_resource_type", "mpi_shared_memory")
        return self._like(child)

    @uninterrupted
    def Create(self, group: Group) -> Comm:
        """Make a communicator of the processes of a group; every process must call it.

        Parameters
        ----------
        group
            A subgroup of the communicator's group.

        Returns
        -------
        Comm
            A null communicator on processes outside of `group`.

        Raises
        ------
        MPIException
            ERR_GROUP: `group` has processes that are not in the communicator.

        Notes
        -----
        Sends nothing within one group; between two groups, one allgather.
        """
        self._live()
        ranks = self._check_group(group)
        state = self._state
        number = next(state.children)
        if state.remote is None:
            return self._like(
                self._child(ranks, "create", number, ranks) if state.runtime.rank in ranks else None
            )
        value_of = dict(zip(state.everyone, self._agree(ranks), strict=True))
        remote = value_of[state.remote[0]]
        child = state.runtime.rank in ranks and remote
        return self._like(self._child(ranks, "create", number, remote=remote) if child else None)

    def _check_group(self, group: Group) -> tuple[int, ...]:
        """The ranks of a group; ERR_GROUP if some are not in the communicator."""
        ranks = names_in(group)
        if self._state.runtime.process_names:
            ranks = group_ranks(group, self._state.runtime)
        if not set(ranks) <= set(self._state.ranks):
            raise MPIException(
                ERR_GROUP, "the group has processes that are not in the communicator"
            )
        return ranks


# For the modules that make other objects of a communicator, such as windows.


def agree(comm: CommConstructors, value: object) -> list[Any]:
    """Gather a value of every process of a communicator, in the order of ranks.

    Parameters
    ----------
    comm
        The communicator; every process calls this.
    value
        A small picklable object.
    """
    gathered: list[Any] = attrgetter("_agree")(comm)(value)
    return gathered


def hidden_duplicate(comm: CommConstructors) -> Comm:
    """Return a duplicate without attributes, for the messages of another object; sends nothing.

    Parameters
    ----------
    comm
        The communicator; every process calls this.
    """
    duplicate: State = attrgetter("_duplicate")(comm)()
    handle: Comm = duplicate.handle()
    return handle


__all__ = [
    "COMM_TYPE_HW_GUIDED",
    "COMM_TYPE_HW_UNGUIDED",
    "COMM_TYPE_RESOURCE_GUIDED",
    "COMM_TYPE_SHARED",
]
