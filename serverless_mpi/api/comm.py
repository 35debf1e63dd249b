"""Communicators: handles, facts, comparing, and their life (MPI 4.1, chapter 7).

What is made of them is in comm_constructors.py; what they carry in p2p.py, collective.py, persistent.py and partitioned.py;
one group is intracomm.py's, two are intercomm.py's, shapes topocomm.py's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar, NoReturn, TypeVar

from serverless_mpi.api.bsend import OF_PROCESS, Attached
from serverless_mpi.api.comm_constructors import CommConstructors
from serverless_mpi.api.comm_state import Kind, State, null_handle
from serverless_mpi.api.environ import PREDEFINED_ATTRIBUTES
from serverless_mpi.api.errhandler import Guarded
from serverless_mpi.api.group import CONGRUENT, IDENT, SIMILAR, UNEQUAL, Group, group_of
from serverless_mpi.api.handle import Handle, forget, name_constant
from serverless_mpi.api.info import Info
from serverless_mpi.api.partitioned import Partitioned
from serverless_mpi.api.persistent import Persistent
from serverless_mpi.api.request import Request
from serverless_mpi.core.envelope import TAG_UB, UNDEFINED
from serverless_mpi.errors import ERR_COMM, MPIException, missing
from serverless_mpi.runtime import Runtime

# topologies, and none (UNDEFINED)
GRAPH = 1
CART = 2
DIST_GRAPH = 3

_TOPOLOGIES = {Kind.GRAPH: GRAPH, Kind.CART: CART, Kind.DIST_GRAPH: DIST_GRAPH}

MAX_NAME = 128

C = TypeVar("C", bound="Comm")


class Comm(CommConstructors, Persistent, Partitioned, Handle, Guarded):
    """A communicator.  `rank` and `size` are this process's place in it and its number of processes."""

    __module__ = "serverless_mpi.MPI"
    _maker: Callable[[], State] | None = (
        None  # COMM_WORLD and COMM_SELF start the runtime at first use
    )
    _made: State | None
    _what: ClassVar[str] = "a communicator"

    def __new__(cls: type[C], comm: Comm | None = None) -> C:
        self = super().__new__(cls)
        self._made = None
        if comm is not None:
            if not isinstance(comm, Comm):
                raise TypeError(f"expecting a communicator, not {type(comm).__name__}")
            if (comm._made is not None or comm._maker is not None) and not cls._takes(comm):
                raise TypeError(f"expecting {cls._what}")
            self._made, self._maker = comm._made, comm._maker
        return self

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        """Whether a handle of this class may stand for `comm`."""
        return True

    @classmethod
    def _of(cls: type[C], state: State | None) -> C:
        self = Comm.__new__(cls)
        self._made = state
        return self

    @classmethod
    def _of_state(cls, state: State | None) -> Any:
        """A handle of the class that the communicator is of."""
        return cls._of(None) if state is None else state.handle()

    @property
    def _ob(self) -> State | None:
        """What the handle refers to, or None for a null one."""
        if self._made is None and self._maker is not None:
            self._made = self._maker()
        return self._made

    @_ob.setter
    def _ob(self, state: State | None) -> None:
        self._made = state
        self.__dict__.pop("_state", None)
        if state is None:
            self._maker = None

    @cached_property
    def _state(self) -> State:
        """What the handle refers to.  Cached in the instance: the calls below read it several times each."""
        state = self._ob
        if state is None:
            raise MPIException(ERR_COMM, "the communicator is null")
        return state

    def _live(self) -> None:
        if self._state.freed:
            raise MPIException(ERR_COMM, "the communicator has been freed")

    _check_live = _live

    def _attribute_table(self) -> dict[int, Any]:
        self._live()
        return self._state.attributes

    # read in every call: attrgetter is C, a lambda would be one more Python call each
    _runtime = property(attrgetter("_state.runtime"))
    _context = property(attrgetter("_state.context"))
    _ranks = property(attrgetter("_state.everyone"))
    _peers = property(attrgetter("_state.peers"))
    _places = property(attrgetter("_state.places"))
    _rank = property(attrgetter("_state.rank"))
    _calls = property(attrgetter("_state.calls"))
    _requests = property(attrgetter("_state.requests"))
    _pairs = property(attrgetter("_state.count"))

    def __bool__(self) -> bool:
        return (self._maker is not None or self._made is not None) and not self._state.freed

    def __repr__(self) -> str:
        return f"<serverless_mpi.MPI.{type(self).__name__} {self._made.name if self._made else ''}>"

    # --- facts ---------------------------------------------------------------

    def Get_size(self) -> int:
        """Number of processes, of this process's group."""
        self._live()
        return len(self._state.ranks)

    def Get_rank(self) -> int:
        """This process's rank."""
        self._live()
        return self._state.rank

    def Get_group(self) -> Group:
        """Its processes as a group, those of this process's own."""
        self._live()
        return group_of(self._state.ranks, self._runtime.rank, self._state.session)

    def Get_name(self) -> str:
        """Its name."""
        if self._made is None and self._maker is None:
            return "MPI_COMM_NULL"
        self._live()
        return self._state.name

    def Set_name(self, name: str) -> None:
        """Name it."""
        self._live()
        self._state.name = name[: MAX_NAME - 1]

    def Is_inter(self) -> bool:
        """Whether it joins two groups."""
        self._live()
        return self._state.remote is not None

    def Is_intra(self) -> bool:
        """Whether it has one group."""
        return not self.Is_inter()

    def Get_topology(self) -> int:
        """CART, GRAPH, DIST_GRAPH, or UNDEFINED."""
        self._live()
        return _TOPOLOGIES.get(self._state.kind, UNDEFINED)

    def Get_attr(self, keyval: int) -> Any:
        """A value attached to it, or None; TAG_UB, UNIVERSE_SIZE and so on are always there."""
        self._live()
        if keyval in PREDEFINED_ATTRIBUTES:
            return PREDEFINED_ATTRIBUTES[keyval](self._runtime.size)
        return super().Get_attr(keyval)

    def Set_info(self, info: Info) -> None:
        """Give it hints; those that are not known here are kept and change nothing."""
        self._live()
        self._state.info.update(info._table())

    def Get_info(self) -> Info:
        """Its hints."""
        self._live()
        return Info.Create(self._state.info)

    info = property(Get_info, Set_info, doc="Its hints.")
    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="This process's rank.")
    group = property(Get_group, doc="Its processes as a group.")
    name = property(Get_name, Set_name, doc="Its name.")
    is_inter = property(Is_inter, doc="Whether it joins two groups.")
    is_intra = property(Is_intra, doc="Whether it has one group.")
    topology = property(Get_topology, doc="CART, GRAPH, DIST_GRAPH, or UNDEFINED.")
    is_topo = property(
        lambda self: self.Get_topology() != UNDEFINED, doc="Whether it has a topology."
    )

    def Compare(self, comm: Comm) -> int:
        """IDENT (the same), CONGRUENT (same ranks), SIMILAR (other order) or UNEQUAL."""
        self._live()
        comm._live()
        a, b = self._state, comm._state
        if a is b:
            return IDENT
        if (a.remote is None) != (b.remote is None):
            return UNEQUAL
        found = [
            Group.Compare(group_of(x, -1), group_of(y, -1))
            for x, y in ((a.ranks, b.ranks), (a.peers, b.peers))
        ]
        return UNEQUAL if UNEQUAL in found else SIMILAR if SIMILAR in found else CONGRUENT

    # --- life ----------------------------------------------------------------

    def Free(self) -> None:
        """Give it up."""
        self._live()
        if self._maker is not None:
            raise MPIException(ERR_COMM, f"{self._state.name} cannot be freed")
        self._delete_attributes()
        self._state.freed = True
        forget(self._state)
        self._ob = None

    def Disconnect(self) -> None:
        """`Free`, when all that it carries is done."""
        self.Free()

    # --- buffered sends ------------------------------------------------------

    def _attached(self) -> Attached:
        """The buffer for its buffered sends: its own, its session's, or the process's."""
        state = self._state
        return next(
            (
                one
                for one in (state.attached, state.session)
                if one is not None and one.object is not None
            ),
            OF_PROCESS,
        )

    def Attach_buffer(self, buf: Any) -> None:
        """Give memory for its buffered sends; BUFFER_AUTOMATIC or None for as much as they need."""
        self._live()
        self._state.attached.attach(buf)

    def Detach_buffer(self) -> Any:
        """Take it back, once all its buffered sends have left it; None if there is none."""
        self._live()
        return self._state.attached.detach()

    def Flush_buffer(self) -> None:
        """Wait until all its buffered sends have left it."""
        self._live()
        self._state.attached.flush()

    def Iflush_buffer(self) -> Request:
        """Start waiting for that."""
        self._live()
        return self._state.attached.iflush()

    def Abort(self, errorcode: int = 0) -> NoReturn:
        """End every process of the job; this one's exit code is `errorcode`."""
        runtime: Runtime = self._runtime
        runtime.abort(errorcode or 1, f"rank {runtime.rank} called MPI.Comm.Abort({errorcode})")

    # --- what is missing -----------------------------------------------------

    @classmethod
    def Get_parent(cls) -> Any:
        """The processes that spawned this job: none, since nothing can be spawned."""
        return null_handle(Kind.INTER)

    @classmethod
    def Join(cls, fd: int) -> NoReturn:
        """Missing."""
        raise missing("Comm.Join (dynamic processes)")

    def Revoke(self) -> NoReturn:
        """Missing."""
        raise missing("Comm.Revoke (fault tolerance)")

    def Is_revoked(self) -> NoReturn:
        """Missing."""
        raise missing("Comm.Is_revoked (fault tolerance)")

    def Get_failed(self) -> NoReturn:
        """Missing."""
        raise missing("Comm.Get_failed (fault tolerance)")

    def Ack_failed(self, num_to_ack: int | None = None) -> NoReturn:
        """Missing."""
        raise missing("Comm.Ack_failed (fault tolerance)")

    def Agree(self, flag: int) -> NoReturn:
        """Missing."""
        raise missing("Comm.Agree (fault tolerance)")

    def Iagree(self, flag: Any) -> NoReturn:
        """Missing."""
        raise missing("Comm.Iagree (fault tolerance)")

    def Shrink(self) -> NoReturn:
        """Missing."""
        raise missing("Comm.Shrink (fault tolerance)")

    def Ishrink(self) -> NoReturn:
        """Missing."""
        raise missing("Comm.Ishrink (fault tolerance)")


COMM_NULL: Comm = name_constant(Comm(), "COMM_NULL")


def _comm_lock(comm: Comm, key: Any = None) -> threading.Lock:
    """A lock of the communicator under that key; mpi4py.util asks for it."""
    table = _comm_lock_table(comm)
    with comm._state.lock:
        return table.setdefault(key, threading.Lock())


def _comm_lock_table(comm: Comm) -> dict[Any, threading.Lock]:
    """All of them."""
    comm._live()
    return comm._state.locks


def internal(comm: Comm) -> tuple[State, int]:
    """(a duplicate that no program sees, the next tag to use in it), for mpi4py.util; sends nothing."""
    comm._live()
    state = comm._state
    with state.lock:
        if state.internal is None:
            state.internal = comm._child(state.ranks, "internal", remote=state.remote)
        return state.internal, next(state.internal_tags) % TAG_UB


__all__ = ["CART", "COMM_NULL", "Comm", "DIST_GRAPH", "GRAPH", "_comm_lock", "_comm_lock_table"]
