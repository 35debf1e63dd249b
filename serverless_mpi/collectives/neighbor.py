"""Neighbourhood collectives: blobs along the edges of a topology.

An edge is (neighbour, name), or None where a border has no neighbour. Both ends of an edge use the
same name, which distinguishes it from other edges between the same two ranks. Invariant: the names
under which a rank sends are all different, because (sender, name) identifies a message.

References
----------
MPI 4.1, section 8.6.
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.steps import Blob, Recv, Send, Steps, parts, whole

Edge = tuple[int, int] | None


@algorithm("neighbor_allgather")
def allgather_fan(
    rank: int, size: int, out: Sequence[Edge], into: Sequence[Edge], data: Blob
) -> Steps:
    """Send one blob along all outgoing edges; return a blob for each edge of `into`.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    out, into
        Outgoing and incoming edges of this rank.
    data
        Blob of this rank. Borrowed until the call ends.

    Returns
    -------
    list
        A blob for each edge of `into`, None for a border.

    Notes
    -----
    1 round; 1 message of n bytes per rank, which all its destinations read.
    """
    dests = tuple(dict.fromkeys(edge[0] for edge in out if edge is not None and edge[0] != rank))
    sources = list(dict.fromkeys(edge[0] for edge in into if edge is not None and edge[0] != rank))
    steps: list[Send | Recv] = [Send(dests, parts(data))] if dests else []
    steps += [Recv(source) for source in sources]
    received = (yield steps) if steps else []
    blobs = dict(zip(sources, received[len(received) - len(sources) :], strict=True))
    blobs[rank] = whole(data)
    return [None if edge is None else blobs[edge[0]] for edge in into]


@algorithm("neighbor_alltoall")
def alltoall_direct(
    rank: int, size: int, out: Sequence[Edge], into: Sequence[Edge], blobs: Sequence[Blob]
) -> Steps:
    """Send a blob along each outgoing edge; return a blob for each edge of `into`.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    out, into
        Outgoing and incoming edges of this rank.
    blobs
        A blob for each edge of `out`. Borrowed until the call ends.

    Returns
    -------
    list
        A blob for each edge of `into`, None for a border.

    Notes
    -----
    1 round; 1 message per edge.
    """
    steps: list[Send | Recv] = []
    to_self: dict[int, memoryview] = {}  # by name: edges from this rank to itself
    for edge, blob in zip(out, blobs, strict=True):
        if edge is not None and edge[0] == rank:
            to_self[edge[1]] = whole(blob)
        elif edge is not None:
            steps.append(Send((edge[0],), parts(blob), edge[1]))
    sends = len(steps)
    steps += [Recv(*edge) for edge in into if edge is not None and edge[0] != rank]
    received = iter((yield steps)[sends:] if steps else [])
    return [
        None if edge is None else to_self[edge[1]] if edge[0] == rank else next(received)
        for edge in into
    ]
