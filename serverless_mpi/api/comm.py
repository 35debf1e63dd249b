"""Communicators: facts, life, comparing, and making others (MPI 4.1, chapter 7).

What they carry is in p2p.py, collective.py, persistent.py and partitioned.py;
one group is intracomm.py's, two are intercomm.py's, shapes topology.py's.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.bsend import OF_PROCESS, Attached
from serverless_mpi.api.environ import PREDEFINED_ATTRIBUTES, Get_processor_name
from serverless_mpi.api.errhandler import Errhandler, Guarded
from serverless_mpi.api.group import CONGRUENT, IDENT, SIMILAR, UNEQUAL, Group
from serverless_mpi.api.handle import Handle, forget
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.partitioned import Partitioned
from serverless_mpi.api.persistent import Persistent
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.request import Request
from serverless_mpi.api.shapes import Cart, Dist, Graph
from serverless_mpi.collectives.choose import Facts, select
from serverless_mpi.collectives.steps import whole
from serverless_mpi.core.envelope import TAG_UB, UNDEFINED, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_COMM, ERR_GROUP, MPIException, missing
from serverless_mpi.runtime import Operation, Runtime

COMM_TYPE_SHARED = 1
COMM_TYPE_HW_GUIDED = 2
COMM_TYPE_HW_UNGUIDED = 3
COMM_TYPE_RESOURCE_GUIDED = 4

# topologies, and none (UNDEFINED)
GRAPH = 1
CART = 2
DIST_GRAPH = 3

MAX_NAME = 128

C = TypeVar("C", bound="Comm")


class State:
    """What all handles to one communicator share.

    ranks: world ranks of this process's group, remote: of the other one, or None;
    everyone: those that its collectives number, both groups in an order that both know.
    """

    def __init__(
        self, runtime: Runtime, context: int, ranks: Sequence[int], name: str = "",
        remote: Sequence[int] | None = None, topology: Cart | Graph | Dist | None = None,
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.context = context
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(runtime.rank)
        self.remote = None if remote is None else tuple(remote)
        self.topology = topology
        self.peers = self.ranks if self.remote is None else self.remote
        self.everyone = self.ranks if self.remote is None else (*min(self.ranks, self.remote), *max(self.ranks, self.remote))
        self.places = {world: rank for rank, world in enumerate(self.peers)}
        self.name = name
        self.freed = False
        self.calls = itertools.count()  # numbers the collectives
        self.children = itertools.count()  # numbers the communicators made from it
        self.requests = itertools.count()  # numbers the persistent collectives
        self.counters: Counter[Any] = Counter()  # how often a thing has been made that only some ranks make
        self.lock = threading.Lock()
        self.internal: State | None = None  # see internal()
        self.internal_tags = itertools.count()
        self.locks: dict[Any, threading.Lock] = {}  # for programs, see _comm_lock
        self.attributes: dict[int, Any] = {}
        self.info: dict[str, str] = {}
        self.attached = Attached()
        self.constant: Comm | None = None  # the handle that is MPI.COMM_WORLD or MPI.COMM_SELF
        self.errhandler: Any = None
        self.local: State | None = None  # this process's group alone, where one of two groups has been asked for it
        runtime.communicators[context] = self

    def count(self, key: Any) -> int:
        """How often this has been asked for `key` before."""
        with self.lock:
            self.counters[key] += 1
            return self.counters[key] - 1


class Comm(Persistent, Partitioned, Handle, Attributed, Guarded):
    """A communicator.  `rank` and `size` are this process's place in it and its number of processes."""

    __module__ = "serverless_mpi.MPI"
    _maker: Callable[[], State] | None = None  # COMM_WORLD and COMM_SELF start the runtime at first use
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
        from serverless_mpi.api import topology
        from serverless_mpi.api.intercomm import Intercomm
        from serverless_mpi.api.intracomm import Intracomm

        if state is None:
            return cls._of(None)
        shapes = {Cart: topology.Cartcomm, Graph: topology.Graphcomm, Dist: topology.Distgraphcomm}
        kind = Intercomm if state.remote is not None else shapes.get(type(state.topology), Intracomm)
        return kind._of(state)

    @property
    def _ob(self) -> State | None:
        """What the handle refers to, or None for a null one."""
        if self._made is None and self._maker is not None:
            self._made = self._maker()
        return self._made

    @_ob.setter
    def _ob(self, state: State | None) -> None:
        self._made = state
        if state is None:
            self._maker = None

    @property
    def _state(self) -> State:
        state = self._made or self._ob
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

    _runtime = property(lambda self: self._state.runtime)
    _context = property(lambda self: self._state.context)
    _ranks = property(lambda self: self._state.everyone)
    _peers = property(lambda self: self._state.peers)
    _places = property(lambda self: self._state.places)
    _rank = property(lambda self: self._state.rank)
    _calls = property(lambda self: self._state.calls)
    _requests = property(lambda self: self._state.requests)
    _pairs = property(lambda self: self._state.count)

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
        return Group._of(self._state.ranks, self._runtime.rank)

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
        topology = self._state.topology
        return {Cart: CART, Graph: GRAPH, Dist: DIST_GRAPH}.get(type(topology), UNDEFINED)

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
    is_topo = property(lambda self: self.Get_topology() != UNDEFINED, doc="Whether it has a topology.")

    def Compare(self, comm: Comm) -> int:
        """IDENT (the same), CONGRUENT (same ranks), SIMILAR (other order) or UNEQUAL."""
        self._live()
        comm._live()
        a, b = self._state, comm._state
        if a is b:
            return IDENT
        if (a.remote is None) != (b.remote is None):
            return UNEQUAL
        found = [Group.Compare(Group._of(x, -1), Group._of(y, -1)) for x, y in ((a.ranks, b.ranks), (a.peers, b.peers))]
        return UNEQUAL if UNEQUAL in found else SIMILAR if SIMILAR in found else CONGRUENT

    # --- making others -------------------------------------------------------

    def _agree(self, value: Any) -> list[Any]:
        state = self._state
        size = len(state.everyone)
        algorithm = select("allgather", Facts(size, None, state.runtime.figures))
        steps = algorithm(state.everyone.index(state.runtime.rank), size, encode(value))
        operation = state.runtime.icollective(state.context, next(state.calls), steps, state.everyone)
        state.runtime.wait((operation,))
        if operation.error is not None:
            raise operation.error
        return [decode(whole(blob)) for blob in operation.result]

    def _child(self, ranks: Sequence[int], *facts: object, remote: Sequence[int] | None = None, topology: Any = None) -> Any:
        """What a communicator of world ranks shares, in a context derived from facts that all its members share."""
        state = self._state
        return State(state.runtime, derive_context(state.context, *facts), ranks, remote=remote, topology=topology)

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
            new.Set_info(info)
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
        return Request._of(self._runtime, operation, lambda _, status: status._fill_empty())

    def _split(self, color: Any, key: int) -> State | None:
        """What the communicator of one colour shares, ordered by key, then rank; None for colour None."""
        state = self._state
        number = next(state.children)
        given = dict(zip(state.everyone, self._agree((color, key)), strict=True))

        def chosen(ranks: Sequence[int]) -> list[int]:
            return sorted((world for world in ranks if given[world][0] == color), key=lambda world: given[world][1])

        if color is None:
            return None
        remote = None if state.remote is None else chosen(state.remote)
        if remote is not None and not remote:
            return None  # nobody of that colour in the other group
        made: State = self._child(chosen(state.ranks), "split", number, color, remote=remote)
        return made

    def _like(self, state: State | None) -> Comm:
        """A handle to a communicator of one group, or two, as this one is; a null one of that class for None."""
        from serverless_mpi.api.intercomm import Intercomm
        from serverless_mpi.api.intracomm import Intracomm

        return (Intracomm if self._state.remote is None else Intercomm)._of(state)

    def Split(self, color: int = 0, key: int = 0) -> Comm:
        """A communicator for each colour, ordered by key, then rank; a null one for colour UNDEFINED."""
        self._live()
        if color < 0 and color != UNDEFINED:
            raise MPIException(ERR_ARG, f"colour {color} is negative; use MPI.UNDEFINED to take no part")
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
            raise MPIException(ERR_ARG, f"split type {split_type} is not known; use MPI.COMM_TYPE_SHARED")
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
            return self._like(self._child(ranks, "create", number, ranks) if state.runtime.rank in ranks else None)
        given = dict(zip(state.everyone, self._agree(ranks), strict=True))
        remote = given[state.remote[0]]
        made = state.runtime.rank in ranks and remote
        return self._like(self._child(ranks, "create", number, remote=remote) if made else None)

    def _check_group(self, group: Group) -> tuple[int, ...]:
        ranks = group._live()
        if not set(ranks) <= set(self._state.ranks):
            raise MPIException(ERR_GROUP, "the group has processes that are not in the communicator")
        return ranks

    # --- life ----------------------------------------------------------------

    def Free(self) -> None:
        """Give it up."""
        self._live()
        if self._maker is not None:
            raise MPIException(ERR_COMM, f"{self._state.name} cannot be freed")
        self._delete_attributes()
        self._state.freed = True
        forget(self._state)
        self._made = None

    def Disconnect(self) -> None:
        """`Free`, when all that it carries is done."""
        self.Free()

    # --- buffered sends ------------------------------------------------------

    def _attached(self) -> Attached:
        """The buffer for its buffered sends: its own, or the process's."""
        own = self._state.attached
        return OF_PROCESS if own.object is None else own

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
        print(f"rank {self._runtime.rank} called MPI.Comm.Abort({errorcode})", file=sys.stderr)
        runtime: Runtime = self._runtime
        runtime.abort(errorcode or 1)

    # --- what is missing -----------------------------------------------------

    @classmethod
    def Get_parent(cls) -> Any:
        """The processes that spawned this job: none, since nothing can be spawned."""
        from serverless_mpi.api.intercomm import Intercomm

        return Intercomm()

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


COMM_NULL: Comm = Comm()._name_constant("COMM_NULL")


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


__all__ = [
    "CART", "COMM_NULL", "COMM_TYPE_HW_GUIDED", "COMM_TYPE_HW_UNGUIDED", "COMM_TYPE_RESOURCE_GUIDED", "COMM_TYPE_SHARED",
    "Comm", "DIST_GRAPH", "GRAPH", "_comm_lock", "_comm_lock_table",
]  # fmt: skip
