"""The shapes of topologies: neighbours and their order. Nothing here communicates.

Each shape returns a rank's edges to its destinations and from its sources in the form that
`collectives.neighbor` takes: (neighbour, name of the edge), or None beyond a border. Both ends of
an edge must compute the same name.

References
----------
MPI 4.1, chapter 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from serverless_mpi.collectives.neighbor import Edge
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.errors import ERR_ARG, ERR_DIMS, ERR_RANK, ERR_TOPOLOGY, MPIException

# weights of a distributed graph: there are none; there are, for no edges
UNWEIGHTED = -1
WEIGHTS_EMPTY = -2


def _integers(values: Sequence[Any] | None, what: str, count: int | None = None) -> list[int]:
    """Integers or truth values as Python's; ValueError unless there are `count` of them."""
    numbers = []
    for value in () if values is None else values:
        if not hasattr(value, "__index__") and not isinstance(value, np.bool_):
            raise TypeError(f"{what}: expecting integers, not {type(value).__name__}")
        numbers.append(int(value))
    if count is not None and len(numbers) != count:
        raise ValueError(f"{what}: expecting {count} items, got {len(numbers)}")
    return numbers


def _check_ranks(ranks: Sequence[int], size: int, what: str, null: bool = False) -> None:
    """Raise ERR_ARG for a rank outside of 0..size-1; `null`: PROC_NULL is valid too."""
    for rank in ranks:
        if not 0 <= rank < size and not (null and rank == PROC_NULL):
            raise MPIException(ERR_ARG, f"{what}: {rank} is outside 0..{size - 1}")


@dataclass(frozen=True)
class Cart:
    """A grid; ranks are in row-major order of an array of shape `dims`."""

    dims: tuple[int, ...]
    periods: tuple[int, ...]

    @classmethod
    def made(cls, dims: Sequence[int], periods: Any, ranks: int, mapping: bool = False) -> Cart:
        """Return the grid that the arguments of `Create_cart` describe.

        Parameters
        ----------
        dims, periods
            As for `Create_cart`.
        ranks
            Number of processes that there are.
        mapping
            Whether the call is `Cart_map`, which has another error class for a grid that is too
            large.
        """
        sizes = _integers(dims, "dims")
        if periods is None or isinstance(periods, (bool, int)):
            rings = [int(bool(periods))] * len(sizes)
        else:
            rings = [int(bool(ring)) for ring in _integers(periods, "periods", len(sizes))]
        if any(size < 0 for size in sizes):
            raise MPIException(ERR_DIMS, f"a grid of shape {sizes} has a negative size")
        if prod(sizes) > ranks:
            raise MPIException(
                ERR_DIMS if mapping else ERR_ARG,
                f"a grid of shape {sizes} needs {prod(sizes)} processes, there are {ranks}",
            )
        return cls(tuple(sizes), tuple(rings))

    @property
    def size(self) -> int:
        """Number of processes."""
        return prod(self.dims)

    def coords(self, rank: int) -> list[int]:
        """Return the coordinates of a rank.

        Parameters
        ----------
        rank
            Rank in the grid.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the grid.
        """
        if not 0 <= rank < self.size:
            raise MPIException(ERR_RANK, f"rank {rank} is not in a grid of shape {list(self.dims)}")
        coords = []
        for dim in reversed(self.dims):
            rank, coordinate = divmod(rank, dim)
            coords.append(coordinate)
        return coords[::-1]

    def rank(self, coords: Sequence[int]) -> int:
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
        rank = 0
        for coordinate, dim, ring in zip(
            _integers(coords, "coords", len(self.dims)), self.dims, self.periods, strict=True
        ):
            if not ring and not 0 <= coordinate < dim:
                raise MPIException(
                    ERR_ARG,
                    f"coordinates {list(coords)} are outside a grid of shape {list(self.dims)}",
                )
            rank = rank * dim + coordinate % dim
        return rank

    def shift(self, rank: int, direction: int, disp: int) -> tuple[int, int]:
        """Return source and destination of a shift.

        Parameters
        ----------
        rank
            Rank that shifts.
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
        if not 0 <= direction < len(self.dims):
            raise MPIException(ERR_ARG, f"direction {direction} is outside 0..{len(self.dims) - 1}")
        return self._moved(rank, direction, -disp), self._moved(rank, direction, disp)

    def _moved(self, rank: int, direction: int, disp: int) -> int:
        """The rank at a distance in one dimension; PROC_NULL beyond a border."""
        coords = self.coords(rank)
        coords[direction] += disp
        if not self.periods[direction] and not 0 <= coords[direction] < self.dims[direction]:
            return PROC_NULL
        return self.rank(coords)

    def sub(self, remain: Sequence[Any], rank: int) -> tuple[Cart, list[int], list[int]]:
        """Return the subgrid of a rank.

        Parameters
        ----------
        remain
            Whether each dimension stays.
        rank
            A rank of this grid.

        Returns
        -------
        tuple
            The subgrid, the ranks of this grid in it, and the rank's coordinates in the dimensions
            that do not stay.
        """
        kept = [bool(flag) for flag in _integers(remain, "remain_dims", len(self.dims))]
        dropped = [place for place, keep in zip(self.coords(rank), kept, strict=True) if not keep]
        members = [
            other
            for other in range(self.size)
            if [place for place, keep in zip(self.coords(other), kept, strict=True) if not keep]
            == dropped
        ]
        dims, periods = (
            [one for one, keep in zip(all_, kept, strict=True) if keep]
            for all_ in (self.dims, self.periods)
        )
        return Cart(tuple(dims), tuple(periods)), members, dropped

    def neighbors(self, rank: int) -> tuple[list[int], list[int]]:
        """Return sources and destinations: in each dimension the rank below, then the one above.

        Parameters
        ----------
        rank
            Rank in the grid.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the grid.
        """
        near = [
            self._moved(rank, direction, disp)
            for direction in range(len(self.dims))
            for disp in (-1, 1)
        ]
        return near, list(near)

    def edges(self, rank: int) -> tuple[list[Edge], list[Edge]]:
        """Return the edges to destinations and from sources.

        A block that is sent downwards in a dimension is received from above, also in a ring of one
        or two processes, where both neighbours are the same rank. So the name of an edge is its
        position among the receiver's edges.

        Parameters
        ----------
        rank
            Rank in the grid.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the grid.
        """
        near, _ = self.neighbors(rank)
        out: list[Edge] = [
            None if other == PROC_NULL else (other, place ^ 1) for place, other in enumerate(near)
        ]
        into: list[Edge] = [
            None if other == PROC_NULL else (other, place) for place, other in enumerate(near)
        ]
        return out, into


def _named(
    rank: int, size: int, sources: Sequence[int], dests: Sequence[int]
) -> tuple[list[Edge], list[Edge]]:
    """Edges with names: the k-th edge between the same two ranks is the k-th at both ends."""
    out: list[Edge] = []
    into: list[Edge] = []
    for edges, others in ((out, dests), (into, sources)):
        seen: Counter[int] = Counter()
        for other in others:
            reader = other if edges is out else rank
            edges.append(None if other == PROC_NULL else (other, seen[other] * size + reader))
            seen[other] += 1
    return out, into


@dataclass(frozen=True)
class Graph:
    """A graph that all processes know; the neighbours of node i are edges[index[i-1]:index[i]]."""

    index: tuple[int, ...]
    links: tuple[int, ...]

    @classmethod
    def made(cls, index: Sequence[int], edges: Sequence[int], ranks: int) -> Graph:
        """Return the graph that the arguments of `Create_graph` describe.

        Parameters
        ----------
        index, edges
            As for `Create_graph`; `index` may begin with a 0.
        ranks
            Number of processes that there are.
        """
        ends, links = _integers(index, "index"), _integers(edges, "edges")
        if ends and ends[0] == 0 and ends[-1] == len(links):
            ends = ends[1:]
        if len(ends) > ranks:
            raise MPIException(
                ERR_ARG, f"a graph of {len(ends)} nodes needs as many processes, there are {ranks}"
            )
        if any(end < start for start, end in zip([0, *ends], ends, strict=False)) or (
            ends and ends[-1] != len(links)
        ):
            raise MPIException(
                ERR_ARG, f"index {ends} does not rise from 0 to the {len(links)} edges"
            )
        _check_ranks(links, len(ends), "a graph's edge")
        return cls(tuple(ends), tuple(links))

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.index)

    def of(self, rank: int) -> list[int]:
        """Return the neighbours of a node.

        Parameters
        ----------
        rank
            Rank in the graph.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the graph.
        """
        if not 0 <= rank < self.size:
            raise MPIException(ERR_RANK, f"rank {rank} is not in a graph of {self.size} nodes")
        return list(self.links[self.index[rank - 1] if rank else 0 : self.index[rank]])

    def neighbors(self, rank: int) -> tuple[list[int], list[int]]:
        """Return sources and destinations, which are the same.

        Parameters
        ----------
        rank
            Rank in the graph.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the graph.
        """
        return self.of(rank), self.of(rank)

    def edges(self, rank: int) -> tuple[list[Edge], list[Edge]]:
        """Return the edges to destinations and from sources.

        Parameters
        ----------
        rank
            Rank in the graph.

        Raises
        ------
        MPIException
            ERR_RANK: the rank is not in the graph.
        """
        return _named(rank, self.size, self.of(rank), self.of(rank))


@dataclass(frozen=True)
class Dist:
    """One rank's part of a distributed graph; weights are None in an unweighted one."""

    size: int
    sources: tuple[int, ...]
    dests: tuple[int, ...]
    weights: tuple[list[int], list[int]] | None

    @classmethod
    def adjacent(
        cls, sources: Any, dests: Any, source_weights: Any, dest_weights: Any, size: int
    ) -> Dist:
        """Return the part of a rank that gives its own edges.

        Parameters
        ----------
        sources, dests, source_weights, dest_weights
            As for `Create_dist_graph_adjacent`.
        size
            Number of processes.
        """
        into, out = _integers(sources, "sources"), _integers(dests, "destinations")
        _check_ranks(into, size, "a source", null=True)
        _check_ranks(out, size, "a destination", null=True)
        heavy_in, heavy_out = _weights(source_weights, len(into)), _weights(dest_weights, len(out))
        weighted = heavy_in is not None or heavy_out is not None
        weights = (heavy_in or [1] * len(into), heavy_out or [1] * len(out)) if weighted else None
        return cls(size, tuple(into), tuple(out), weights)

    @staticmethod
    def edges_given(
        sources: Any, degrees: Any, dests: Any, weights: Any, size: int
    ) -> tuple[list[tuple[int, int, int]], bool]:
        """Return (source, destination, weight) of one rank, and whether they have weights.

        Parameters
        ----------
        sources, degrees, dests, weights
            As for `Create_dist_graph`.
        size
            Number of processes.
        """
        starts, ends = _integers(sources, "sources"), _integers(dests, "destinations")
        counts = _integers(degrees, "degrees", len(starts))
        if sum(counts) != len(ends) or any(count < 0 for count in counts):
            raise ValueError(f"destinations: expecting {sum(counts)} items, got {len(ends)}")
        _check_ranks(starts, size, "a source")
        _check_ranks(ends, size, "a destination")
        heavy = _weights(weights, len(ends))
        origins = [start for start, count in zip(starts, counts, strict=True) for _ in range(count)]
        return list(zip(origins, ends, heavy or [1] * len(ends), strict=True)), heavy is not None

    @classmethod
    def collected(
        cls, rank: int, size: int, edges: Sequence[tuple[int, int, int]], weighted: bool
    ) -> Dist:
        """Return the part of a rank, from the edges that all ranks gave.

        Parameters
        ----------
        rank
            Rank whose part is returned.
        size
            Number of processes.
        edges
            Source, destination and weight of each edge.
        weighted
            Whether the weights are kept.
        """
        into = [(start, weight) for start, end, weight in edges if end == rank]
        out = [(end, weight) for start, end, weight in edges if start == rank]
        weights = (
            ([weight for _, weight in into], [weight for _, weight in out]) if weighted else None
        )
        return cls(
            size, tuple(other for other, _ in into), tuple(other for other, _ in out), weights
        )

    def neighbors(self, rank: int) -> tuple[list[int], list[int]]:
        """Return sources and destinations.

        Parameters
        ----------
        rank
            Not used: this object is the part of one rank.
        """
        return list(self.sources), list(self.dests)

    def edges(self, rank: int) -> tuple[list[Edge], list[Edge]]:
        """Return the edges to destinations and from sources.

        Parameters
        ----------
        rank
            Rank whose part this object is.
        """
        return _named(rank, self.size, self.sources, self.dests)


def _weights(weights: Any, count: int) -> list[int] | None:
    """The weights of `count` edges, or None for an unweighted graph."""
    if weights is None or (isinstance(weights, int) and weights == UNWEIGHTED):
        return None
    if isinstance(weights, int) and weights == WEIGHTS_EMPTY:
        if count:
            raise ValueError(f"weights are empty for {count} edges")
        return []
    return _integers(weights, "weights", count)


Shape = Cart | Graph | Dist


def shape_of(topology: Shape | None) -> Shape:
    """Return the topology of a communicator.

    Parameters
    ----------
    topology
        The topology, or None.

    Raises
    ------
    MPIException
        ERR_TOPOLOGY: the communicator has no topology.
    """
    if topology is None:
        raise MPIException(ERR_TOPOLOGY, "the communicator has no topology")
    return topology
