"""Communicators of one group, COMM_WORLD and COMM_SELF (MPI 4.1, sections 7.4, 7.6 and 8.5).

The constructors here make subgroups without a parent's help (`Create_group`, `Create_from_group`),
topologies, and intercommunicators. Handles of subclasses come from `comm_state.KINDS`, since their
modules import this one.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from serverless_mpi.api.comm import Comm, internal
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.errhandler import Errhandler
from serverless_mpi.api.group import Group, check_own, group_ranks
from serverless_mpi.api.handle import handle_of
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.ports import engine
from serverless_mpi.api.topologies import Cart, Dist, Graph
from serverless_mpi.core.envelope import (
    CONTEXT_SELF,
    CONTEXT_WORLD,
    TAG_UB,
    UNDEFINED,
    derive_context,
)
from serverless_mpi.errors import ERR_COMM, ERR_GROUP, ERR_RANK, ERR_TAG, MPIException
from serverless_mpi.runtime import Runtime, get_runtime, never
from serverless_mpi.signals import uninterrupted

if TYPE_CHECKING:
    from serverless_mpi.api.intercomm import Intercomm


class Intracomm(Comm):
    """A communicator of one group."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator of one group"

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        return comm._made is None or comm._made.remote is None

    @uninterrupted
    def Create_group(self, group: Group, tag: int = 0) -> Intracomm:
        """Make a communicator of the processes of a group; only they call it.

        Parameters
        ----------
        group
            A subgroup of the communicator's group.
        tag
            Distinguishes concurrent calls for the same group.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        self._live()
        ranks = self._check_group(group)
        tag = operator.index(tag)  # the context is derived from it, so its type must not matter
        if not 0 <= tag <= TAG_UB:
            raise MPIException(ERR_TAG, f"tag {tag} is outside 0..{TAG_UB}")
        if self._runtime.rank not in ranks:
            return Intracomm()
        number = self._state.count((tag, *ranks))
        return Intracomm._of(self._child(ranks, "group", tag, number, ranks))

    @classmethod
    @uninterrupted
    def Create_from_group(
        cls,
        group: Group,
        stringtag: str = "org.mpi4py",
        info: Info = INFO_NULL,
        errhandler: Errhandler | None = None,
    ) -> Intracomm:
        """Make a communicator of the processes of a group, without a parent communicator.

        Parameters
        ----------
        group
            The processes; only they call it.
        stringtag
            Distinguishes concurrent calls for the same group.
        info
            Not used.
        errhandler
            Error handler of the new communicator.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.4.2.
        """
        runtime = get_runtime()
        ranks = group_ranks(group, runtime)
        if not ranks:
            return Intracomm()
        check_own(ranks)
        if runtime.rank not in ranks:
            raise MPIException(
                ERR_GROUP,
                f"rank {runtime.rank} is not in the group that the communicator is made of",
            )
        facts = ("group", stringtag, ranks)
        state = State(runtime, derive_context(0, *facts, from_nothing(runtime, facts)), ranks)
        state.session = group._session
        comm = Intracomm._of(state)
        if errhandler is not None:
            comm.Set_errhandler(errhandler)
        return comm

    # --- topologies ----------------------------------------------------------

    def _shaped(self, topology: Any, count: int, what: str) -> State | None:
        """The state of a topology of the first `count` ranks; None on other ranks."""
        number = next(self._state.children)
        if self._state.rank >= count:
            return None
        child: State = self._child(self._state.ranks[:count], what, number, topology=topology)
        return child

    @uninterrupted
    def Create_cart(
        self, dims: Sequence[int], periods: Sequence[bool] | None = None, reorder: bool = False
    ) -> Any:
        """Make a communicator with a Cartesian topology.

        Parameters
        ----------
        dims
            Processes in each dimension; their product must not exceed the number of processes.
        periods
            Whether each dimension is periodic: one value for all, or one per dimension.
        reorder
            Not used: ranks stay, in row-major order.

        Returns
        -------
        Cartcomm
            A null communicator on processes beyond the grid.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 8.5.1.
        """
        self._live()
        cart = Cart.made(dims, periods, len(self._state.ranks))
        return KINDS[Kind.CART]._of(self._shaped(cart, cart.size, "cart"))

    def Cart_map(self, dims: Sequence[int], periods: Sequence[bool] | None = None) -> int:
        """Return the rank that this process would have in such a grid, or MPI.UNDEFINED.

        Parameters
        ----------
        dims
            Processes in each dimension.
        periods
            Whether each dimension is periodic: one value for all, or one per dimension.

        References
        ----------
        MPI 4.1, section 8.5.8.
        """
        self._live()
        cart = Cart.made(dims, periods, len(self._state.ranks), mapping=True)
        return self._state.rank if self._state.rank < cart.size else UNDEFINED

    @uninterrupted
    def Create_graph(
        self, index: Sequence[int], edges: Sequence[int], reorder: bool = False
    ) -> Any:
        """Make a communicator with a graph topology, which every process describes in full.

        Parameters
        ----------
        index, edges
            The neighbours of node i are edges[index[i-1]:index[i]].
        reorder
            Not used: ranks stay.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 8.5.3.
        """
        self._live()
        graph = Graph.made(index, edges, len(self._state.ranks))
        return KINDS[Kind.GRAPH]._of(self._shaped(graph, graph.size, "graph"))

    def Graph_map(self, index: Sequence[int], edges: Sequence[int]) -> int:
        """Return the rank that this process would have in such a graph, or MPI.UNDEFINED.

        Parameters
        ----------
        index, edges
            The neighbours of node i are edges[index[i-1]:index[i]].

        References
        ----------
        MPI 4.1, section 8.5.8.
        """
        self._live()
        graph = Graph.made(index, edges, len(self._state.ranks))
        return self._state.rank if self._state.rank < graph.size else UNDEFINED

    @uninterrupted
    def Create_dist_graph_adjacent(
        self,
        sources: Sequence[int],
        destinations: Sequence[int],
        sourceweights: Sequence[int] | None = None,
        destweights: Sequence[int] | None = None,
        info: Info = INFO_NULL,
        reorder: bool = False,
    ) -> Any:
        """Make a communicator with a distributed graph, where every process gives its own edges.

        Parameters
        ----------
        sources, destinations
            Ranks of the edges to and from this process.
        sourceweights, destweights
            Weights of the edges; None for an unweighted graph.
        info, reorder
            Not used.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 8.5.4.
        """
        self._live()
        size = len(self._state.ranks)
        return KINDS[Kind.DIST_GRAPH]._of(
            self._shaped(
                Dist.adjacent(sources, destinations, sourceweights, destweights, size),
                size,
                "dist_graph",
            )
        )

    @uninterrupted
    def Create_dist_graph(
        self,
        sources: Sequence[int],
        degrees: Sequence[int],
        destinations: Sequence[int],
        weights: Sequence[int] | None = None,
        info: Info = INFO_NULL,
        reorder: bool = False,
    ) -> Any:
        """Make a communicator with a distributed graph, where processes give any edges.

        Parameters
        ----------
        sources
            Nodes whose outgoing edges this process gives.
        degrees
            Number of edges of each of `sources`.
        destinations
            Ends of these edges, those of one source after those of another.
        weights
            Weights of the edges; None for an unweighted graph.
        info, reorder
            Not used.

        Notes
        -----
        One allgather of the edges.

        References
        ----------
        MPI 4.1, section 8.5.4.
        """
        self._live()
        size = len(self._state.ranks)
        edges, weighted = Dist.edges_given(sources, degrees, destinations, weights, size)
        given = self._agree((edges, weighted))
        dist = Dist.collected(
            self._state.rank,
            size,
            [edge for some, _ in given for edge in some],
            any(flag for _, flag in given),
        )
        return KINDS[Kind.DIST_GRAPH]._of(self._shaped(dist, size, "dist_graph"))

    # --- two groups ----------------------------------------------------------

    @uninterrupted
    def Create_intercomm(
        self, local_leader: int, peer_comm: Intracomm, remote_leader: int, tag: int = 0
    ) -> Intercomm:
        """Make an intercommunicator of this group and another one; both call it.

        Parameters
        ----------
        local_leader
            Rank in this group that speaks for it.
        peer_comm
            Communicator that has both leaders; significant on the leader.
        remote_leader
            Rank of the other leader in `peer_comm`; significant on the leader.
        tag
            Tag of the leaders' messages, and a part of what the context is derived from.

        Raises
        ------
        MPIException
            ERR_COMM: the groups have a process in common. ERR_RANK: no such leader.

        Notes
        -----
        One message in each direction between the leaders, and a broadcast in each group.

        References
        ----------
        MPI 4.1, section 7.6.2.
        """
        self._live()
        state = self._state
        if not isinstance(peer_comm, Intracomm):
            raise TypeError(
                f"the leaders meet in an intracommunicator, not {type(peer_comm).__name__}"
            )
        tag = operator.index(tag)  # as in Create_group
        if not 0 <= local_leader < len(state.ranks):
            raise MPIException(
                ERR_RANK, f"local leader {local_leader} is outside 0..{len(state.ranks) - 1}"
            )
        local = (state.context, next(state.children), state.ranks)
        remote_facts: Any = None
        if state.rank == local_leader:
            try:
                remote_facts = peer_comm._swap(local, remote_leader, tag)
            except MPIException as error:  # broadcast below: the others wait for the leader
                remote_facts = error
        remote_facts = self.bcast(remote_facts, local_leader)
        if isinstance(remote_facts, MPIException):
            raise remote_facts
        remote = remote_facts[2]
        if set(remote) & set(state.ranks):
            raise MPIException(
                ERR_COMM, "the two groups of an intercommunicator must have no process in common"
            )
        return _intercomm(self._between(tag, local, remote_facts))

    def _between(self, tag: int, local: tuple[Any, ...], remote_facts: tuple[Any, ...]) -> State:
        """The state of the intercommunicator of two groups, each described by its leader."""
        context = derive_context(0, "inter", tag, *sorted((local, remote_facts)))
        return State(self._state.runtime, context, local[2], remote=remote_facts[2])

    def _swap(self, value: Any, other: int, tag: int) -> Any:
        """Exchange a value with another rank, which calls this, too."""
        self._check_send(other, tag)
        if not 0 <= other < len(self._peers) or self._peers[other] == self._runtime.rank:
            raise MPIException(
                ERR_RANK, f"remote leader {other} is not another rank of the peer communicator"
            )
        state = self._state
        context = derive_context(state.context, "leaders")
        if not state.count("leaders"):
            state.runtime.own(state, context)
        receive = self._runtime.irecv(context, self._peers[other], tag)
        send = self._runtime.isend(context, self._peers[other], tag, encode(value))
        self._runtime.wait_until(lambda: receive.done and send.done, interruptible=never)
        for operation in (receive, send):
            if operation.error is not None:
                raise operation.error
        assert receive.data is not None
        return decode(receive.data)

    # --- dynamic processes ---------------------------------------------------

    @uninterrupted
    def Spawn(
        self,
        command: str,
        args: Sequence[str] | None = None,
        maxprocs: int = 1,
        info: Info = INFO_NULL,
        root: int = 0,
        errcodes: list[int] | None = None,
    ) -> Intercomm:
        """Start a job of `maxprocs` ranks, and return the intercommunicator to them.

        Parameters
        ----------
        command
            Program, as `smpirun` takes it: a `.py` file, or an executable.
        args
            Its arguments.
        maxprocs
            Number of ranks; either all are started or none.
        info
            `wdir` is the working folder of the ranks, `path` has folders in which the program is
            looked for first; other keys have no effect.
        root
            Rank on which the arguments before it are significant, and that starts the job.
        errcodes
            A list, which is filled with an error code for each rank of the job.

        Raises
        ------
        MPIException
            ERR_SPAWN: the job cannot be started. ERR_ARG: `maxprocs` is not positive. ERR_ROOT:
            no such root.

        Notes
        -----
        Two allgathers, and the start of a launcher. The ranks have `Comm.Get_parent`.

        References
        ----------
        MPI 4.1, section 11.3.2.
        """
        self._live()
        dynamic = engine()
        try:
            children, codes = dynamic.spawn(
                self, root, lambda: [dynamic.command_of(command, args, maxprocs, info)]
            )
        except dynamic.SpawnError as error:
            if errcodes is not None:
                errcodes[:] = error.errcodes[0]
            raise
        if errcodes is not None:
            errcodes[:] = codes[0]
        return _intercomm(children)

    @uninterrupted
    def Spawn_multiple(
        self,
        command: Sequence[str],
        args: Sequence[Sequence[str]] | None = None,
        maxprocs: Sequence[int] | None = None,
        info: Info | Sequence[Info] = INFO_NULL,
        root: int = 0,
        errcodes: list[list[int]] | None = None,
    ) -> Intercomm:
        """Start a job whose ranks run several programs; otherwise as `Spawn`.

        Parameters
        ----------
        command, args, maxprocs, info
            Of each program; one number or one info is that of every program.
        root
            As for `Spawn`.
        errcodes
            A list, which is filled with a list for each program.

        Raises
        ------
        ValueError
            The sequences have different lengths.

        Notes
        -----
        The attribute MPI.APPNUM is the number of a rank's program.

        References
        ----------
        MPI 4.1, section 11.3.3.
        """
        self._live()
        dynamic = engine()
        try:
            children, codes = dynamic.spawn(
                self, root, lambda: dynamic.commands_of(command, args, maxprocs, info)
            )
        except dynamic.SpawnError as error:
            if errcodes is not None:
                errcodes[:] = error.errcodes
            raise
        if errcodes is not None:
            errcodes[:] = codes
        return _intercomm(children)

    def Accept(self, port_name: str, info: Info = INFO_NULL, root: int = 0) -> Intercomm:
        """Wait for another group at a port, and return the intercommunicator to it.

        Parameters
        ----------
        port_name
            Name of a port that the root has opened; significant on the root.
        info
            Not used.
        root
            Rank that waits at the port.

        Raises
        ------
        MPIException
            ERR_PORT: the root has no such open port. ERR_ROOT: no such root.

        Notes
        -----
        Two allgathers.

        References
        ----------
        MPI 4.1, section 11.4.2.
        """
        self._live()
        return _intercomm(engine().accept(self, port_name, root))

    def Connect(self, port_name: str, info: Info = INFO_NULL, root: int = 0) -> Intercomm:
        """Connect to the group that accepts at a port, and return the intercommunicator to it.

        Parameters
        ----------
        port_name
            Name of a port that a process of this user has opened on this machine, in this job or
            in another one; significant on the root.
        info
            Not used.
        root
            Rank that connects to the port.

        Raises
        ------
        MPIException
            ERR_PORT: the port is not open. ERR_ROOT: no such root.

        Notes
        -----
        Two allgathers.

        References
        ----------
        MPI 4.1, section 11.4.3.
        """
        self._live()
        return _intercomm(engine().connect(self, port_name, root))


def _intercomm(state: State) -> Intercomm:
    """The handle of the communicator of two groups."""
    made: Intercomm = handle_of(KINDS[Kind.INTER], state)
    return made


KINDS[Kind.INTRA] = Intracomm

_from_nothing: weakref.WeakKeyDictionary[Runtime, Counter[Any]] = weakref.WeakKeyDictionary()


def from_nothing(runtime: Runtime, facts: tuple[Any, ...]) -> int:
    """Return how often a communicator was made from `facts` without a parent before.

    Parameters
    ----------
    runtime
        Runtime of the calling rank; each has its own counts.
    facts
        What the communicator is made from; hashable.
    """
    counters = _from_nothing.setdefault(runtime, Counter())
    counters[facts] += 1
    return counters[facts] - 1


def _commctx_intra(comm: Intracomm) -> tuple[Intracomm, int]:
    """Return a duplicate that programs do not see, and its next tag; mpi4py.util calls it."""
    state, tag = internal(comm)
    return Intracomm._of(state), tag


def _predefined(name: str, context: int, ranks: Callable[[Runtime], Sequence[int]]) -> Intracomm:
    """Make a handle whose state is made at first use."""
    comm = Intracomm()

    @functools.cache
    def maker() -> State:
        runtime = get_runtime()
        state = State(runtime, context, ranks(runtime), f"MPI_{name}")
        state.constant = comm
        return state

    comm._maker, comm._label = maker, name
    return comm


COMM_WORLD = _predefined("COMM_WORLD", CONTEXT_WORLD, lambda runtime: range(runtime.size))
COMM_SELF = _predefined("COMM_SELF", CONTEXT_SELF, lambda runtime: (runtime.rank,))


def world_of(runtime: Runtime) -> Intracomm:
    """Return COMM_WORLD of a runtime that is not the process's own: for ranks that are threads.

    Parameters
    ----------
    runtime
        Runtime of the rank.
    """
    return Intracomm._of(State(runtime, CONTEXT_WORLD, range(runtime.size), "MPI_COMM_WORLD"))


__all__ = ["COMM_SELF", "COMM_WORLD", "Intracomm", "_commctx_intra"]
