"""Communicators: handles, facts, comparison and lifetime (MPI 4.1, chapter 7).

`Comm` is put together from the modules that hold its calls: comm_constructors.py (new
communicators), p2p.py, collective.py, persistent.py and partitioned.py. Subclasses are in
intracomm.py (one group), intercomm.py (two groups) and topocomm.py (topologies).

A handle refers to a `State` (comm_state.py). COMM_WORLD and COMM_SELF make theirs at first use,
which starts the runtime, so importing MPI connects to nothing.

Pitfall: `_state` is cached in the instance, because every call reads it several times. Whatever
changes what a handle refers to must go through `_ob`, which clears the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from serverless_mpi.api.bsend import OF_PROCESS, Attached
from serverless_mpi.api.comm_constructors import CommConstructors
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.environ import PREDEFINED_ATTRIBUTES
from serverless_mpi.api.errhandler import Guarded
from serverless_mpi.api.faults import FaultTolerance
from serverless_mpi.api.group import CONGRUENT, IDENT, SIMILAR, UNEQUAL, Group, group_of
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.api.info import Info
from serverless_mpi.api.partitioned import Partitioned
from serverless_mpi.api.persistent import Persistent
from serverless_mpi.api.ports import engine
from serverless_mpi.api.request import Request
from serverless_mpi.core.envelope import TAG_UB, UNDEFINED
from serverless_mpi.errors import ERR_COMM, MPIException
from serverless_mpi.job import parent_spec
from serverless_mpi.runtime import Runtime, get_runtime
from serverless_mpi.runtime.process import bridges, release

if TYPE_CHECKING:
    from serverless_mpi.api.intercomm import Intercomm

# results of Get_topology, as well as UNDEFINED
GRAPH = 1
CART = 2
DIST_GRAPH = 3

_TOPOLOGIES = {Kind.GRAPH: GRAPH, Kind.CART: CART, Kind.DIST_GRAPH: DIST_GRAPH}

MAX_NAME = 128

C = TypeVar("C", bound="Comm")


class Comm(CommConstructors, FaultTolerance, Persistent, Partitioned, Handle, Guarded):
    """A communicator: an ordered set of processes with a context of their own.

    `rank` and `size` are this process's rank and the number of processes of its group.
    """

    __module__ = "serverless_mpi.MPI"
    # COMM_WORLD and COMM_SELF: makes the state at first use, which starts the runtime
    _maker: Callable[[], State] | None = None
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
        """Whether a handle of this class may refer to what `comm` refers to."""
        return True

    @classmethod
    def _of(cls: type[C], state: State | None) -> C:
        """Make a handle of this class; a null handle for None."""
        self = object.__new__(cls)
        self._made = state
        if state is not None:
            self._state = state  # what the cached property would find
        return self

    @classmethod
    def _of_state(cls, state: State | None) -> Any:
        """Make a handle of the class that the communicator is of."""
        return cls._of(None) if state is None else state.handle()

    @property
    def _ob(self) -> State | None:
        """State of the communicator; None for a null handle."""
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
        """State of the communicator; ERR_COMM for a null handle. Cached in the instance."""
        state = self._ob
        if state is None:
            raise MPIException(ERR_COMM, "the communicator is null")
        return state

    def _live(self) -> None:
        """Raise ERR_COMM if the handle is null or the communicator has been freed."""
        if self._state.freed:
            raise MPIException(ERR_COMM, "the communicator has been freed")

    _check_live = _live

    def _attribute_table(self) -> dict[int, Any]:
        self._live()
        return self._state.attributes

    # Read in every call: attrgetter is C, a method would be one more Python call each.
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
        """Return the number of processes in this process's group."""
        self._live()
        return len(self._state.ranks)

    def Get_rank(self) -> int:
        """Return this process's rank in its group."""
        self._live()
        return self._state.rank

    def Get_group(self) -> Group:
        """Return this process's group."""
        self._live()
        return group_of(self._runtime, self._state.ranks, self._state.session)

    def Get_name(self) -> str:
        """Return the name of the communicator."""
        if self._made is None and self._maker is None:
            return "MPI_COMM_NULL"
        self._live()
        return self._state.name

    def Set_name(self, name: str) -> None:
        """Name the communicator.

        Parameters
        ----------
        name
            The name, which is cut to 127 characters. It is local to this process.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed.

        References
        ----------
        MPI 4.1, section 7.8.
        """
        self._live()
        self._state.name = name[: MAX_NAME - 1]

    def Is_inter(self) -> bool:
        """Return whether the communicator joins two groups."""
        self._live()
        return self._state.remote is not None

    def Is_intra(self) -> bool:
        """Return whether the communicator has one group."""
        return not self.Is_inter()

    def Get_topology(self) -> int:
        """Return MPI.CART, MPI.GRAPH, MPI.DIST_GRAPH, or MPI.UNDEFINED without a topology."""
        self._live()
        return _TOPOLOGIES.get(self._state.kind, UNDEFINED)

    def Get_attr(self, keyval: int) -> Any:
        """Return the value cached under a key, or None.

        Parameters
        ----------
        keyval
            A key of `Create_keyval`, or a predefined one: MPI.TAG_UB, MPI.UNIVERSE_SIZE, ...

        References
        ----------
        MPI 4.1, sections 7.7 and 9.1.2.
        """
        self._live()
        if keyval in PREDEFINED_ATTRIBUTES:
            return PREDEFINED_ATTRIBUTES[keyval](self._runtime.size)
        return super().Get_attr(keyval)

    def Set_info(self, info: Info) -> None:
        """Set hints; unknown ones are kept and have no effect.

        Parameters
        ----------
        info
            Hints, which are copied and added to those that are set.

        Raises
        ------
        MPIException
            ERR_COMM: the communicator is null or has been freed. ERR_ARG: `info` is null or has
            been freed.

        References
        ----------
        MPI 4.1, section 7.4.4.
        """
        self._live()
        self._state.info.update(info._table())

    def Get_info(self) -> Info:
        """Return a copy of the hints."""
        self._live()
        return Info.Create(self._state.info)

    info = property(Get_info, Set_info, doc="Hints, as an Info object.")
    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="Rank of this process.")
    group = property(Get_group, doc="Group of this process.")
    name = property(Get_name, Set_name, doc="Name of the communicator.")
    is_inter = property(Is_inter, doc="Whether it joins two groups.")
    is_intra = property(Is_intra, doc="Whether it has one group.")
    topology = property(Get_topology, doc="CART, GRAPH, DIST_GRAPH, or UNDEFINED.")
    is_topo = property(
        lambda self: self.Get_topology() != UNDEFINED, doc="Whether it has a topology."
    )

    def Compare(self, comm: Comm) -> int:
        """Compare two communicators.

        Parameters
        ----------
        comm
            The other communicator.

        Returns
        -------
        int
            MPI.IDENT: the same communicator. MPI.CONGRUENT: the same ranks. MPI.SIMILAR: the same
            processes in another order. MPI.UNEQUAL: otherwise.

        Raises
        ------
        MPIException
            ERR_COMM: one of them is null or has been freed.

        References
        ----------
        MPI 4.1, section 7.4.1.
        """
        self._live()
        comm._live()
        a, b = self._state, comm._state
        if a is b:
            return IDENT
        if (a.remote is None) != (b.remote is None):
            return UNEQUAL
        results = [
            Group.Compare(group_of(a.runtime, x), group_of(b.runtime, y))
            for x, y in ((a.ranks, b.ranks), (a.peers, b.peers))
        ]
        for result in (UNEQUAL, SIMILAR):
            if result in results:
                return result
        return CONGRUENT

    # --- life ----------------------------------------------------------------

    def Free(self) -> None:
        """Free the communicator; this handle becomes null.

        Raises
        ------
        MPIException
            ERR_COMM: it is COMM_WORLD or COMM_SELF, null, or freed already.

        References
        ----------
        MPI 4.1, section 7.4.3.
        """
        self._live()
        state = self._state
        if self._maker is not None:
            raise MPIException(ERR_COMM, f"{state.name} cannot be freed")
        if state.attributes:
            self._delete_attributes()
        state.freed = state.unusable = True
        for hidden in (state.internal, state.local):
            if hidden is not None:
                hidden.freed = True
        forget(state)
        self._ob = None

    def Disconnect(self) -> None:
        """Free the communicator; all its processes call it, and return when all have called it.

        A bridge to another job (Spawn, Accept) ends when all communicators that use it have been
        disconnected. Pending communication must be complete.

        References
        ----------
        MPI 4.1, section 11.5.3.
        """
        self._live()
        runtime = self._runtime
        try:
            if runtime in bridges and not self._state.unusable:
                self._agree(None)
        finally:
            self.Free()
            release(runtime)

    # --- buffered sends ------------------------------------------------------

    def _attached(self) -> Attached:
        """The buffer for buffered sends: the communicator's, its session's, or the process's."""
        state = self._state
        return next(
            (
                buffer
                for buffer in (state.attached, state.session)
                if buffer is not None and buffer.object is not None
            ),
            OF_PROCESS,
        )

    def Attach_buffer(self, buf: Any) -> None:
        """Attach memory for buffered sends on this communicator.

        Parameters
        ----------
        buf
            A writable buffer, whose length limits pending sends; MPI.BUFFER_AUTOMATIC or None for
            no limit.

        References
        ----------
        MPI 4.1, section 3.6.
        """
        self._live()
        self._state.attached.attach(buf)

    def Detach_buffer(self) -> Any:
        """Wait until all buffered sends have left, and return the buffer; None if there is none."""
        self._live()
        return self._state.attached.detach()

    def Flush_buffer(self) -> None:
        """Wait until all buffered sends have left the attached buffer."""
        self._live()
        self._state.attached.flush()

    def Iflush_buffer(self) -> Request:
        """Start `Flush_buffer`."""
        self._live()
        return self._state.attached.iflush()

    def Abort(self, errorcode: int = 0) -> NoReturn:
        """End every process of the job.

        Parameters
        ----------
        errorcode
            Exit code of this process; 0 becomes 1.
        """
        runtime: Runtime = self._runtime
        if runtime in bridges:  # this process's job ends, not only the bridge
            runtime = get_runtime()
        runtime.abort(errorcode or 1, f"rank {runtime.rank} called MPI.Comm.Abort({errorcode})")

    # --- dynamic processes ---------------------------------------------------

    @classmethod
    def Get_parent(cls) -> Intercomm:
        """Return the intercommunicator to the ranks that spawned this one.

        Returns
        -------
        Intercomm
            A null handle if this rank was not spawned, or has disconnected from them.

        References
        ----------
        MPI 4.1, section 11.3.2.
        """
        state = engine().parent() if parent_spec() is not None else None
        parent: Intercomm = handle_of(KINDS[Kind.INTER], state)
        return parent

    @classmethod
    def Join(cls, fd: int) -> Intercomm:
        """Return the intercommunicator to the process at the other end of a socket.

        Parameters
        ----------
        fd
            Descriptor of a connected stream socket, on which nothing is under way; borrowed. The
            other process calls this, too.

        Returns
        -------
        Intercomm
            A null handle if the other process is not one of this user on this machine.

        Raises
        ------
        MPIException
            ERR_ARG: something else than Join is at the other end.

        References
        ----------
        MPI 4.1, section 11.5.4.
        """
        joined: Intercomm = handle_of(KINDS[Kind.INTER], engine().join(fd))
        return joined


COMM_NULL: Comm = name_constant(Comm(), "COMM_NULL")


def _comm_lock(comm: Comm, key: Any = None) -> threading.Lock:
    """Return the communicator's lock of that key; mpi4py.util calls it."""
    table = _comm_lock_table(comm)
    with comm._state.lock:
        return table.setdefault(key, threading.Lock())


def _comm_lock_table(comm: Comm) -> dict[Any, threading.Lock]:
    """Return all locks of the communicator, by key."""
    comm._live()
    return comm._state.locks


def internal(comm: Comm) -> tuple[State, int]:
    """Return a duplicate that programs do not see, and the next tag to use in it.

    mpi4py.util calls it through `_commctx_intra`; it sends nothing.

    Parameters
    ----------
    comm
        The communicator that is duplicated, at the first call.

    Returns
    -------
    tuple
        The state of the duplicate, which all calls share, and a tag below TAG_UB.

    Raises
    ------
    MPIException
        ERR_COMM: the communicator is null or has been freed.
    """
    comm._live()
    state = comm._state
    with state.lock:
        if state.internal is None:
            state.internal = comm._child(state.ranks, "internal", remote=state.remote)
        return state.internal, next(state.internal_tags) % TAG_UB


__all__ = ["CART", "COMM_NULL", "Comm", "DIST_GRAPH", "GRAPH", "_comm_lock", "_comm_lock_table"]
