"""Communicators with a topology, and their neighbourhood collectives (MPI 4.1, chapter 8).

Shapes and edges are in topologies.py. Here are the handles, and the calls along the edges, which
are plans like all collectives. Beyond a border of a grid there is no neighbour: nothing is sent,
and the block of the receive buffer does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.buffers import (
    BlockSpec,
    BufSpec,
    BufSpecB,
    BufSpecV,
    BufSpecW,
    GeneralSpec,
    VectorSpec,
    check_length,
)
from serverless_mpi.api.collective import decode_list, encode_each
from serverless_mpi.api.comm import Comm
from serverless_mpi.api.comm_state import KINDS, Kind
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.api.persistent import Prequest
from serverless_mpi.api.pickling import encode
from serverless_mpi.api.plan import Plan
from serverless_mpi.api.request import Request
from serverless_mpi.api.topologies import (
    UNWEIGHTED,
    WEIGHTS_EMPTY,
    Cart,
    Dist,
    Graph,
    Shape,
    shape_of,
)
from serverless_mpi.collectives.operations import OPERATIONS, Layout
from serverless_mpi.errors import ERR_TOPOLOGY, MPIException
from serverless_mpi.signals import uninterrupted


def _block(
    kind: type[Any], buf: Any, readonly: bool, count: int
) -> tuple[Any, Callable[[int], int]]:
    """A specification of a block for each of `count` neighbours, and the bytes of each."""
    if kind is BlockSpec:
        spec = BlockSpec(buf, readonly=readonly, blocks=max(count, 1))
        return spec, lambda _: spec.nbytes
    made = kind(buf, readonly=readonly, size=count)
    return made, made.nbytes


def _filling(recv_spec: Any, nbytes: Callable[[int], int]) -> Callable[[Any], None]:
    """What unpacks the neighbours' blobs."""

    def finish(blobs: Any) -> None:
        for place, blob in enumerate(blobs):
            if blob is not None:  # beyond a border: the block stays as it is
                check_length(blob, nbytes(place), f"neighbour {place}")
                recv_spec.unpack(blob, place)

    return finish


class Topocomm(Intracomm):
    """A communicator whose processes have neighbours."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator with a topology"
    _shape: type[Any] | tuple[type[Any], ...] = (Cart, Graph, Dist)

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        return comm._made is not None and isinstance(comm._made.topology, cls._shape)

    @property
    def _topology(self) -> Shape:
        self._live()
        return shape_of(self._state.topology)

    @property
    def inoutedges(self) -> tuple[list[int], list[int]]:
        """Sources and destinations of this process."""
        return self._topology.neighbors(self._state.rank)

    inedges = property(lambda self: self.inoutedges[0], doc="Sources of this process.")
    outedges = property(lambda self: self.inoutedges[1], doc="Destinations of this process.")
    indegree = property(lambda self: len(self.inedges), doc="Number of sources.")
    outdegree = property(lambda self: len(self.outedges), doc="Number of destinations.")
    degrees = property(
        lambda self: (self.indegree, self.outdegree), doc="(number of sources, of destinations)."
    )

    # --- neighbourhood collectives -------------------------------------------

    def _layout(self, operation: str, arguments: tuple[Any, ...]) -> Layout | None:
        if not OPERATIONS[operation].neighbours:
            return super()._layout(operation, arguments)
        out, into, _ = arguments
        return self._context, self._rank, tuple(out), tuple(into)

    def _to_neighbors(self, kind: type[Any], sendbuf: Any, recvbuf: Any) -> Plan:
        """The plan of an allgather along the edges."""
        out, into = self._topology.edges(self._state.rank)
        recv_spec, nbytes = _block(kind, recvbuf, False, len(into))
        send_spec = BlockSpec(sendbuf, readonly=True)
        return Plan(
            "neighbor_allgather",
            None,
            lambda: (out, into, send_spec.pack()),
            _filling(recv_spec, nbytes),
        )

    def _between_neighbors(self, kind: type[Any], sendbuf: Any, recvbuf: Any) -> Plan:
        """The plan of an alltoall along the edges."""
        out, into = self._topology.edges(self._state.rank)
        recv_spec, nbytes = _block(kind, recvbuf, False, len(into))
        send_spec, _ = _block(kind, sendbuf, True, len(out))
        places = range(len(out))
        return Plan(
            "neighbor_alltoall",
            None,
            lambda: (out, into, [send_spec.pack(place) for place in places]),
            _filling(recv_spec, nbytes),
        )

    def neighbor_allgather(self, sendobj: Any) -> list[Any]:
        """Send an object to all destinations; return those of the sources, None beyond a border.

        Parameters
        ----------
        sendobj
            Any object that pickles.
        """
        arguments = (*self._topology.edges(self._state.rank), encode(sendobj))
        result: list[Any] = self._call(
            Plan("neighbor_allgather", None, lambda: arguments, decode_list)
        )
        return result

    def neighbor_alltoall(self, sendobj: list[Any]) -> list[Any]:
        """Send sendobj[j] to destination j; return the sources' objects, None beyond a border.

        Parameters
        ----------
        sendobj
            One object for each destination, in the order of the edges.
        """
        out, into = self._topology.edges(self._state.rank)
        arguments = (out, into, encode_each(sendobj, len(out)))
        result: list[Any] = self._call(
            Plan("neighbor_alltoall", None, lambda: arguments, decode_list)
        )
        return result

    def Neighbor_allgather(self, sendbuf: BufSpec, recvbuf: BufSpecB) -> None:
        """Send a block to all destinations, and receive one from each source.

        Parameters
        ----------
        sendbuf
            Specification of the block.
        recvbuf
            Specification of an equal block for each source, in the order of the edges.

        Notes
        -----
        1 round; 1 message per rank, which all its destinations read.

        References
        ----------
        MPI 4.1, section 8.6.1.
        """
        self._call(self._to_neighbors(BlockSpec, sendbuf, recvbuf))

    def Neighbor_allgatherv(self, sendbuf: BufSpec, recvbuf: BufSpecV) -> None:
        """Send a block to all destinations; receive blocks of any lengths from the sources.

        Parameters
        ----------
        sendbuf
            Specification of the block.
        recvbuf
            Specification of a block for each source, in the order of the edges.
        """
        self._call(self._to_neighbors(VectorSpec, sendbuf, recvbuf))

    def Neighbor_alltoall(self, sendbuf: BufSpecB, recvbuf: BufSpecB) -> None:
        """Send block j to destination j, and receive one from each source.

        Parameters
        ----------
        sendbuf
            Specification of an equal block for each destination.
        recvbuf
            Specification of an equal block for each source.

        Notes
        -----
        1 round; 1 message per edge.

        References
        ----------
        MPI 4.1, section 8.6.2.
        """
        self._call(self._between_neighbors(BlockSpec, sendbuf, recvbuf))

    def Neighbor_alltoallv(self, sendbuf: BufSpecV, recvbuf: BufSpecV) -> None:
        """Exchange blocks of different lengths with the neighbours.

        Parameters
        ----------
        sendbuf
            Specification of a block for each destination, with counts and displacements.
        recvbuf
            Specification of a block for each source.
        """
        self._call(self._between_neighbors(VectorSpec, sendbuf, recvbuf))

    def Neighbor_alltoallw(self, sendbuf: BufSpecW, recvbuf: BufSpecW) -> None:
        """Exchange blocks of different lengths and datatypes with the neighbours.

        Parameters
        ----------
        sendbuf
            Specification of a block for each destination, with a datatype for each.
        recvbuf
            Specification of a block for each source, with a datatype for each.
        """
        self._call(self._between_neighbors(GeneralSpec, sendbuf, recvbuf))

    def Ineighbor_allgather(self, sendbuf: BufSpec, recvbuf: BufSpecB) -> Request:
        """Start `Neighbor_allgather`; the buffers are borrowed until the request completes.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_allgather`.
        """
        return self._start(self._to_neighbors(BlockSpec, sendbuf, recvbuf))

    def Ineighbor_allgatherv(self, sendbuf: BufSpec, recvbuf: BufSpecV) -> Request:
        """Start `Neighbor_allgatherv`; the buffers are borrowed until the request completes.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_allgatherv`.
        """
        return self._start(self._to_neighbors(VectorSpec, sendbuf, recvbuf))

    def Ineighbor_alltoall(self, sendbuf: BufSpecB, recvbuf: BufSpecB) -> Request:
        """Start `Neighbor_alltoall`; the buffers are borrowed until the request completes.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoall`.
        """
        return self._start(self._between_neighbors(BlockSpec, sendbuf, recvbuf))

    def Ineighbor_alltoallv(self, sendbuf: BufSpecV, recvbuf: BufSpecV) -> Request:
        """Start `Neighbor_alltoallv`; the buffers are borrowed until the request completes.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoallv`.
        """
        return self._start(self._between_neighbors(VectorSpec, sendbuf, recvbuf))

    def Ineighbor_alltoallw(self, sendbuf: BufSpecW, recvbuf: BufSpecW) -> Request:
        """Start `Neighbor_alltoallw`; the buffers are borrowed until the request completes.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoallw`.
        """
        return self._start(self._between_neighbors(GeneralSpec, sendbuf, recvbuf))

    def Neighbor_allgather_init(
        self, sendbuf: BufSpec, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Neighbor_allgather`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_allgather`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._to_neighbors(BlockSpec, sendbuf, recvbuf))

    def Neighbor_allgatherv_init(
        self, sendbuf: BufSpec, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Neighbor_allgatherv`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_allgatherv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._to_neighbors(VectorSpec, sendbuf, recvbuf))

    def Neighbor_alltoall_init(
        self, sendbuf: BufSpecB, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Neighbor_alltoall`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoall`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._between_neighbors(BlockSpec, sendbuf, recvbuf))

    def Neighbor_alltoallv_init(
        self, sendbuf: BufSpecV, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Neighbor_alltoallv`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoallv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._between_neighbors(VectorSpec, sendbuf, recvbuf))

    def Neighbor_alltoallw_init(
        self, sendbuf: BufSpecW, recvbuf: BufSpecW, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Neighbor_alltoallw`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Neighbor_alltoallw`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._between_neighbors(GeneralSpec, sendbuf, recvbuf))


class Cartcomm(Topocomm):
    """A communicator with a Cartesian topology."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator with a Cartesian topology"
    _shape = Cart

    @property
    def _cart(self) -> Cart:
        shape = self._topology
        if not isinstance(shape, Cart):
            raise MPIException(ERR_TOPOLOGY, "the communicator has no Cartesian topology")
        return shape

    def Get_dim(self) -> int:
        """Return the number of dimensions."""
        return len(self._cart.dims)

    def Get_topo(self) -> tuple[list[int], list[int], list[int]]:
        """Return the dimensions, whether each is periodic, and this process's coordinates."""
        cart = self._cart
        return list(cart.dims), list(cart.periods), cart.coords(self._state.rank)

    def Get_cart_rank(self, coords: Sequence[int]) -> int:
        """Return the rank at coordinates.

        Parameters
        ----------
        coords
            One integer per dimension; they wrap around in periodic dimensions.

        Raises
        ------
        MPIException
            ERR_ARG: coordinates are outside a dimension that is not periodic.
        """
        return self._cart.rank(coords)

    def Get_coords(self, rank: int) -> list[int]:
        """Return the coordinates of a rank.

        Parameters
        ----------
        rank
            Rank in the communicator.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the grid.
        """
        return self._cart.coords(rank)

    def Shift(self, direction: int, disp: int) -> tuple[int, int]:
        """Return source and destination of a shift.

        Parameters
        ----------
        direction
            Dimension, from 0.
        disp
            Distance; a negative one shifts downwards.

        Returns
        -------
        int, int
            MPI.PROC_NULL for a rank beyond a border.

        Raises
        ------
        MPIException
            ERR_ARG: there is no such dimension.
        """
        return self._cart.shift(self._state.rank, direction, disp)

    @uninterrupted
    def Sub(self, remain_dims: Sequence[bool]) -> Cartcomm:
        """Return the subgrid of this process.

        Parameters
        ----------
        remain_dims
            Whether each dimension stays.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 8.5.7.
        """
        cart, members, dropped = self._cart.sub(remain_dims, self._state.rank)
        ranks = [self._state.ranks[member] for member in members]
        facts = ("sub", next(self._state.children), tuple(dropped))
        return Cartcomm._of(self._child(ranks, *facts, topology=cart))

    dim = property(Get_dim, doc="Number of dimensions.")
    ndim = property(Get_dim, doc="Number of dimensions.")
    topo = property(Get_topo, doc="See Get_topo.")
    dims = property(lambda self: self.Get_topo()[0], doc="Sizes of the dimensions.")
    periods = property(lambda self: self.Get_topo()[1], doc="Whether each dimension is a ring.")
    coords = property(lambda self: self.Get_topo()[2], doc="This process's coordinates.")


class Graphcomm(Topocomm):
    """A communicator with a graph topology."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator with a graph topology"
    _shape = Graph

    @property
    def _graph(self) -> Graph:
        shape = self._topology
        if not isinstance(shape, Graph):
            raise MPIException(ERR_TOPOLOGY, "the communicator has no graph topology")
        return shape

    def Get_dims(self) -> tuple[int, int]:
        """Return the numbers of nodes and of edges."""
        return self._graph.size, len(self._graph.links)

    def Get_topo(self) -> tuple[list[int], list[int]]:
        """Return `index` and `edges` of the graph, as given to `Create_graph`."""
        return list(self._graph.index), list(self._graph.links)

    def Get_neighbors_count(self, rank: int) -> int:
        """Return the number of a rank's neighbours.

        Parameters
        ----------
        rank
            Rank in the communicator.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the graph.
        """
        return len(self._graph.of(rank))

    def Get_neighbors(self, rank: int) -> list[int]:
        """Return a rank's neighbours.

        Parameters
        ----------
        rank
            Rank in the communicator.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the graph.
        """
        return self._graph.of(rank)

    dims = property(Get_dims, doc="See Get_dims.")
    nnodes = property(lambda self: self.Get_dims()[0], doc="Number of nodes.")
    nedges = property(lambda self: self.Get_dims()[1], doc="Number of edges.")
    topo = property(Get_topo, doc="See Get_topo.")
    index = property(lambda self: self.Get_topo()[0], doc="Where each node's edges end.")
    edges = property(lambda self: self.Get_topo()[1], doc="The edges.")
    nneighbors = property(
        lambda self: len(self.neighbors), doc="Number of this process's neighbours."
    )
    neighbors = property(
        lambda self: self.Get_neighbors(self.Get_rank()), doc="This process's neighbours."
    )


class Distgraphcomm(Topocomm):
    """A communicator with a distributed graph topology."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator with a distributed graph topology"
    _shape = Dist

    @property
    def _dist(self) -> Dist:
        shape = self._topology
        if not isinstance(shape, Dist):
            raise MPIException(ERR_TOPOLOGY, "the communicator has no distributed graph topology")
        return shape

    def Get_dist_neighbors_count(self) -> tuple[int, int, bool]:
        """Return the numbers of sources and of destinations, and whether edges have weights."""
        dist = self._dist
        return len(dist.sources), len(dist.dests), dist.weights is not None

    def Get_dist_neighbors(self) -> tuple[list[int], list[int], tuple[list[int], list[int]] | None]:
        """Return sources, destinations, and their weights (None in an unweighted graph)."""
        dist = self._dist
        weights = None if dist.weights is None else (list(dist.weights[0]), list(dist.weights[1]))
        return list(dist.sources), list(dist.dests), weights


KINDS[Kind.CART] = Cartcomm
KINDS[Kind.GRAPH] = Graphcomm
KINDS[Kind.DIST_GRAPH] = Distgraphcomm

__all__ = ["Cartcomm", "Distgraphcomm", "Graphcomm", "Topocomm", "UNWEIGHTED", "WEIGHTS_EMPTY"]
