"""Communicators of one group, COMM_WORLD and COMM_SELF, and what is made of them: topologies, intercommunicators (MPI 4.1, 7.4)."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from serverless_mpi.api.comm import Comm, internal
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.errhandler import Errhandler
from serverless_mpi.api.group import Group, group_ranks
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.topologies import Cart, Dist, Graph
from serverless_mpi.core.envelope import (
    CONTEXT_SELF,
    CONTEXT_WORLD,
    TAG_UB,
    UNDEFINED,
    derive_context,
)
from serverless_mpi.errors import ERR_COMM, ERR_GROUP, ERR_RANK, ERR_TAG, MPIException, missing
from serverless_mpi.runtime import Runtime, get_runtime, never


class Intracomm(Comm):
    """A communicator of one group."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator of one group"

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        return comm._made is None or comm._made.remote is None

    def Create_group(self, group: Group, tag: int = 0) -> Intracomm:
        """The processes of `group`, who alone call it."""
        self._live()
        ranks = self._check_group(group)
        if not 0 <= tag <= TAG_UB:
            raise MPIException(ERR_TAG, f"tag {tag} is outside 0..{TAG_UB}")
        if self._runtime.rank not in ranks:
            return Intracomm()
        number = self._state.count((tag, *ranks))
        return Intracomm._of(self._child(ranks, "group", tag, number, ranks))

    @classmethod
    def Create_from_group(
        cls,
        group: Group,
        stringtag: str = "org.mpi4py",
        info: Info = INFO_NULL,
        errhandler: Errhandler | None = None,
    ) -> Intracomm:
        """The processes of `group`, who alone call it; no communicator is needed."""
        ranks = group_ranks(group)
        if not ranks:
            return Intracomm()
        runtime = get_runtime()
        if runtime.rank not in ranks:
            raise MPIException(
                ERR_GROUP,
                f"rank {runtime.rank} is not in the group that it makes a communicator of",
            )
        facts = ("group", stringtag, ranks)
        state = State(runtime, derive_context(0, *facts, from_nothing(runtime, facts)), ranks)
        state.session = group._session
        made = Intracomm._of(state)
        if errhandler is not None:
            made.Set_errhandler(errhandler)
        return made

    # --- topologies ----------------------------------------------------------

    def _shaped(self, topology: Any, count: int, what: str) -> State | None:
        """What the first `count` ranks share as a communicator of that shape; None on the others."""
        number = next(self._state.children)
        if self._state.rank >= count:
            return None
        made: State = self._child(self._state.ranks[:count], what, number, topology=topology)
        return made

    def Create_cart(
        self, dims: Sequence[int], periods: Sequence[bool] | None = None, reorder: bool = False
    ) -> Any:
        """A grid of shape `dims`, with `periods` (one, or one a dimension) closed to rings; ranks go row by row."""
        self._live()
        cart = Cart.made(dims, periods, len(self._state.ranks))
        return KINDS[Kind.CART]._of(self._shaped(cart, cart.size, "cart"))

    def Cart_map(self, dims: Sequence[int], periods: Sequence[bool] | None = None) -> int:
        """The rank that this process would have in such a grid, or UNDEFINED."""
        self._live()
        cart = Cart.made(dims, periods, len(self._state.ranks), mapping=True)
        return self._state.rank if self._state.rank < cart.size else UNDEFINED

    def Create_graph(
        self, index: Sequence[int], edges: Sequence[int], reorder: bool = False
    ) -> Any:
        """A graph that every process describes: node i's neighbours are edges[index[i-1]:index[i]]."""
        self._live()
        graph = Graph.made(index, edges, len(self._state.ranks))
        return KINDS[Kind.GRAPH]._of(self._shaped(graph, graph.size, "graph"))

    def Graph_map(self, index: Sequence[int], edges: Sequence[int]) -> int:
        """The rank that this process would have in such a graph, or UNDEFINED."""
        self._live()
        graph = Graph.made(index, edges, len(self._state.ranks))
        return self._state.rank if self._state.rank < graph.size else UNDEFINED

    def Create_dist_graph_adjacent(
        self,
        sources: Sequence[int],
        destinations: Sequence[int],
        sourceweights: Sequence[int] | None = None,
        destweights: Sequence[int] | None = None,
        info: Info = INFO_NULL,
        reorder: bool = False,
    ) -> Any:
        """A graph of which every process gives the edges to and from itself.  Sends nothing."""
        self._live()
        size = len(self._state.ranks)
        return KINDS[Kind.DIST_GRAPH]._of(
            self._shaped(
                Dist.adjacent(sources, destinations, sourceweights, destweights, size),
                size,
                "dist_graph",
            )
        )

    def Create_dist_graph(
        self,
        sources: Sequence[int],
        degrees: Sequence[int],
        destinations: Sequence[int],
        weights: Sequence[int] | None = None,
        info: Info = INFO_NULL,
        reorder: bool = False,
    ) -> Any:
        """A graph of which every process gives any edges: degrees[i] of them from sources[i]."""
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

    def Create_intercomm(
        self, local_leader: int, peer_comm: Intracomm, remote_leader: int, tag: int = 0
    ) -> Any:
        """Join this group with another one, whose members call it too; the two leaders meet in `peer_comm` under `tag`."""
        self._live()
        state = self._state
        if not isinstance(peer_comm, Intracomm):
            raise TypeError(
                f"the leaders meet in an intracommunicator, not {type(peer_comm).__name__}"
            )
        if not 0 <= local_leader < len(state.ranks):
            raise MPIException(
                ERR_RANK, f"local leader {local_leader} is outside 0..{len(state.ranks) - 1}"
            )
        mine = (state.context, next(state.children), state.ranks)
        theirs: Any = None
        if state.rank == local_leader:
            try:
                theirs = peer_comm._swap(mine, remote_leader, tag)
            except MPIException as error:  # the others wait for the leader, and shall hear of it
                theirs = error
        theirs = self.bcast(theirs, local_leader)
        if isinstance(theirs, MPIException):
            raise theirs
        remote = theirs[2]
        if set(remote) & set(state.ranks):
            raise MPIException(
                ERR_COMM, "the two groups of an intercommunicator must have no process in common"
            )
        return self._between(tag, mine, theirs).handle()

    def _between(self, tag: int, mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> State:
        context = derive_context(0, "inter", tag, *sorted((mine, theirs)))
        return State(self._state.runtime, context, mine[2], remote=theirs[2])

    def _swap(self, value: Any, other: int, tag: int) -> Any:
        """What another rank, who calls this too, has."""
        self._check_send(other, tag)
        if not 0 <= other < len(self._peers) or self._peers[other] == self._runtime.rank:
            raise MPIException(ERR_RANK, f"remote leader {other} is this process itself or nobody")
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

    # --- what is missing -----------------------------------------------------

    def Spawn(
        self,
        command: str,
        args: Sequence[str] | None = None,
        maxprocs: int = 1,
        info: Info = INFO_NULL,
        root: int = 0,
        errcodes: list[int] | None = None,
    ) -> NoReturn:
        """Missing."""
        raise missing("Intracomm.Spawn (dynamic processes)")

    def Spawn_multiple(
        self,
        command: Sequence[str],
        args: Sequence[Sequence[str]] | None = None,
        maxprocs: Sequence[int] | None = None,
        info: Info = INFO_NULL,
        root: int = 0,
        errcodes: list[list[int]] | None = None,
    ) -> NoReturn:
        """Missing."""
        raise missing("Intracomm.Spawn_multiple (dynamic processes)")

    def Accept(self, port_name: str, info: Info = INFO_NULL, root: int = 0) -> NoReturn:
        """Missing."""
        raise missing("Intracomm.Accept (dynamic processes)")

    def Connect(self, port_name: str, info: Info = INFO_NULL, root: int = 0) -> NoReturn:
        """Missing."""
        raise missing("Intracomm.Connect (dynamic processes)")


KINDS[Kind.INTRA] = Intracomm

_from_nothing: weakref.WeakKeyDictionary[Runtime, Counter[Any]] = weakref.WeakKeyDictionary()


def from_nothing(runtime: Runtime, facts: tuple[Any, ...]) -> int:
    """How often a communicator has been made of `facts` alone before."""
    counters = _from_nothing.setdefault(runtime, Counter())
    counters[facts] += 1
    return counters[facts] - 1


def _commctx_intra(comm: Intracomm) -> tuple[Intracomm, int]:
    """(a duplicate that no program sees, the next tag to use in it); mpi4py.util asks for it."""
    state, tag = internal(comm)
    return Intracomm._of(state), tag


def _predefined(name: str, context: int, ranks: Callable[[Runtime], Sequence[int]]) -> Intracomm:
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
    """COMM_WORLD of a runtime other than the process's own, for jobs whose ranks are threads."""
    return Intracomm._of(State(runtime, CONTEXT_WORLD, range(runtime.size), "MPI_COMM_WORLD"))


__all__ = ["COMM_SELF", "COMM_WORLD", "Intracomm", "_commctx_intra"]
