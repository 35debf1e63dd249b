"""Communicators: making, comparing, freeing, ending (MPI 4.1, chapter 7).  What they carry is in p2p.py and collective.py."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from serverless_mpi.api.collective import Collective
from serverless_mpi.api.environ import PREDEFINED_ATTRIBUTES, Get_processor_name
from serverless_mpi.api.group import CONGRUENT, IDENT, SIMILAR, UNEQUAL, Group
from serverless_mpi.api.p2p import PointToPoint
from serverless_mpi.core.envelope import CONTEXT_SELF, CONTEXT_WORLD, UNDEFINED, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_COMM, ERR_GROUP, MPIException
from serverless_mpi.runtime import Runtime, get_runtime

COMM_TYPE_SHARED = 1
MAX_NAME = 128


class _State:
    """What all handles to one communicator share."""

    def __init__(self, runtime: Runtime, context: int, ranks: Sequence[int], name: str = "") -> None:
        self.runtime = runtime
        self.context = context
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(runtime.rank)
        self.places = {world: rank for rank, world in enumerate(self.ranks)}
        self.name = name
        self.freed = False
        self.calls = itertools.count()  # numbers the collectives
        self.children = itertools.count()  # numbers the communicators made from it
        self.group_children: dict[tuple[int, ...], int] = {}
        self.lock = threading.Lock()
        self.attributes: dict[int, Any] = {}


class Comm(PointToPoint, Collective):
    """A communicator.  `rank` and `size` are this process's place in it and its number of processes."""

    _maker: Callable[[], _State] | None = None  # COMM_WORLD and COMM_SELF start the runtime at first use

    def __new__(cls, comm: Comm | None = None) -> Comm:
        self = super().__new__(cls)
        self._made: _State | None = None
        if comm is not None:
            self._made, self._maker = comm._made, comm._maker
        return self

    @classmethod
    def _of(cls, state: _State) -> Comm:
        self = cls()
        self._made = state
        return self

    @property
    def _state(self) -> _State:
        if self._made is None:
            if self._maker is None:
                raise MPIException(ERR_COMM, "the communicator is null")
            self._made = self._maker()
        return self._made

    def _live(self) -> None:
        if self._state.freed:
            raise MPIException(ERR_COMM, "the communicator has been freed")

    _runtime = property(lambda self: self._state.runtime)  # type: ignore[assignment]
    _context = property(lambda self: self._state.context)  # type: ignore[assignment]
    _ranks = property(lambda self: self._state.ranks)  # type: ignore[assignment]
    _peers = property(lambda self: self._state.ranks)  # type: ignore[assignment]
    _places = property(lambda self: self._state.places)  # type: ignore[assignment]
    _rank = property(lambda self: self._state.rank)  # type: ignore[assignment]
    _calls = property(lambda self: self._state.calls)  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return (self._maker is not None or self._made is not None) and not self._state.freed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comm):
            return NotImplemented
        if not self or not other:
            return bool(self) == bool(other)
        return self._state is other._state

    def __hash__(self) -> int:
        return hash(self._state.context) if self else 0

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._maker is not None:
            return "COMM_WORLD" if self._state.context == CONTEXT_WORLD else "COMM_SELF"
        raise MPIException(ERR_COMM, "a communicator belongs to its process and cannot be pickled")

    def __repr__(self) -> str:
        return f"<serverless_mpi.MPI.{type(self).__name__} {self._made.name if self._made else ''}>"

    # --- facts ---------------------------------------------------------------

    def Get_size(self) -> int:
        """Number of processes."""
        self._live()
        return len(self._state.ranks)

    def Get_rank(self) -> int:
        """This process's rank."""
        self._live()
        return self._state.rank

    def Get_group(self) -> Group:
        """Its processes as a group."""
        self._live()
        return Group._of(self._state.ranks, self._runtime.rank)

    def Get_name(self) -> str:
        """Its name."""
        return self._state.name

    def Set_name(self, name: str) -> None:
        """Name it."""
        self._live()
        self._state.name = name[: MAX_NAME - 1]

    def Is_inter(self) -> bool:
        """Whether it joins two groups: never, yet."""
        self._live()
        return False

    def Is_intra(self) -> bool:
        """Whether it has one group."""
        self._live()
        return True

    def Get_attr(self, keyval: int) -> Any:
        """A value attached to it, or None; TAG_UB, UNIVERSE_SIZE and so on are always there."""
        self._live()
        if keyval in PREDEFINED_ATTRIBUTES:
            value = PREDEFINED_ATTRIBUTES[keyval]
            return self._runtime.size if value is None else value
        return self._state.attributes.get(keyval)

    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="This process's rank.")
    group = property(Get_group, doc="Its processes as a group.")
    name = property(Get_name, Set_name, doc="Its name.")
    is_inter = property(Is_inter, doc="Whether it joins two groups.")
    is_intra = property(Is_intra, doc="Whether it has one group.")

    @classmethod
    def Compare(cls, comm1: Comm, comm2: Comm) -> int:
        """IDENT (the same), CONGRUENT (same ranks), SIMILAR (other order) or UNEQUAL."""
        comm1._live()
        comm2._live()
        if comm1._state is comm2._state:
            return IDENT
        same = Group.Compare(comm1.Get_group(), comm2.Get_group())
        return {IDENT: CONGRUENT, SIMILAR: SIMILAR, UNEQUAL: UNEQUAL}[same]

    # --- making others -------------------------------------------------------

    def _child(self, ranks: Sequence[int], *facts: object) -> Intracomm:
        """A communicator of world ranks, in a context derived from facts that all its members share."""
        state = self._state
        return Intracomm._of(_State(state.runtime, derive_context(state.context, *facts), ranks))  # type: ignore[return-value]

    def Dup(self, info: Any = None) -> Intracomm:
        """The same processes in a context of their own.  Sends nothing."""
        self._live()
        child = self._child(self._state.ranks, "dup", next(self._state.children))
        child._state.attributes.update(self._state.attributes)
        return child

    Clone = Dup

    def Split(self, color: int = 0, key: int = 0) -> Comm:
        """A communicator for each colour, ordered by key, then rank; COMM_NULL for colour UNDEFINED."""
        self._live()
        if color < 0 and color != UNDEFINED:
            raise MPIException(ERR_ARG, f"colour {color} is negative; use MPI.UNDEFINED to take no part")
        number = next(self._state.children)
        everybody = self.allgather((color, key))
        members = sorted((k, rank) for rank, (c, k) in enumerate(everybody) if c == color)
        if color == UNDEFINED:
            return COMM_NULL
        return self._child([self._state.ranks[rank] for _, rank in members], "split", number, color)

    def Split_type(self, split_type: int, key: int = 0, info: Any = None) -> Comm:
        """COMM_TYPE_SHARED: the processes on one machine."""
        if split_type == UNDEFINED:
            self.allgather(None)
            return self.Split(UNDEFINED, key)
        if split_type != COMM_TYPE_SHARED:
            raise MPIException(ERR_ARG, f"split type {split_type} is not known; use MPI.COMM_TYPE_SHARED")
        hosts = self.allgather(Get_processor_name())
        return self.Split(hosts.index(hosts[self._state.rank]), key)

    def Create(self, group: Group) -> Comm:
        """The processes of `group`; every process calls it, those outside get COMM_NULL."""
        self._live()
        ranks = self._check_group(group)
        number = next(self._state.children)
        return self._child(ranks, "create", number, ranks) if self._runtime.rank in ranks else COMM_NULL

    def Create_group(self, group: Group, tag: int = 0) -> Comm:
        """The processes of `group`, who alone call it."""
        self._live()
        ranks = self._check_group(group)
        if self._runtime.rank not in ranks:
            return COMM_NULL
        with self._state.lock:
            number = self._state.group_children.get((tag, *ranks), 0)
            self._state.group_children[(tag, *ranks)] = number + 1
        return self._child(ranks, "group", tag, number, ranks)

    def _check_group(self, group: Group) -> tuple[int, ...]:
        ranks = group._live()
        if not set(ranks) <= set(self._state.ranks):
            raise MPIException(ERR_GROUP, "the group has processes that are not in the communicator")
        return ranks

    def Free(self) -> None:
        """Give it up."""
        self._live()
        if self._maker is not None:
            raise MPIException(ERR_COMM, f"{self._state.name} cannot be freed")
        self._state.freed = True

    free = Free
    Disconnect = Free

    def Abort(self, errorcode: int = 0) -> NoReturn:
        """End every process of the job; this one's exit code is `errorcode`."""
        print(f"rank {self._runtime.rank} called MPI.Comm.Abort({errorcode})", file=sys.stderr)
        self._runtime.abort(errorcode or 1)


class Intracomm(Comm):
    """A communicator of one group."""


COMM_NULL = Comm()


@functools.cache
def _world() -> _State:
    runtime = get_runtime()
    return _State(runtime, CONTEXT_WORLD, range(runtime.size), "MPI_COMM_WORLD")


@functools.cache
def _self() -> _State:
    runtime = get_runtime()
    return _State(runtime, CONTEXT_SELF, (runtime.rank,), "MPI_COMM_SELF")


def _predefined(maker: Callable[[], _State]) -> Intracomm:
    comm = Intracomm()
    comm._maker = maker
    return comm  # type: ignore[return-value]


COMM_WORLD = _predefined(_world)
COMM_SELF = _predefined(_self)


def world_of(runtime: Runtime) -> Intracomm:
    """COMM_WORLD of a runtime other than the process's own, for jobs whose ranks are threads."""
    state = _State(runtime, CONTEXT_WORLD, range(runtime.size), "MPI_COMM_WORLD")
    return Intracomm._of(state)  # type: ignore[return-value]



__all__ = ["COMM_NULL", "COMM_SELF", "COMM_TYPE_SHARED", "COMM_WORLD", "Comm", "Intracomm"]
