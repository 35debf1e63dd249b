"""Neighbourhood collectives: blobs along the edges of a topology (MPI 4.1, section 8.6).

An edge is (neighbour, name), or None where a border has no neighbour.  Both
ends of an edge give it the same name, which tells it from others between the
same two ranks; the names a rank sends under are all different.
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
    """1 round; 1 message of n bytes that all one's destinations read.  Returns a blob for each edge of `into`."""
    dests = tuple(dict.fromkeys(edge[0] for edge in out if edge is not None and edge[0] != rank))
    sources = list(dict.fromkeys(edge[0] for edge in into if edge is not None and edge[0] != rank))
    steps: list[Send | Recv] = [Send(dests, parts(data))] if dests else []
    steps += [Recv(source) for source in sources]
    got = (yield steps) if steps else []
    blobs = dict(zip(sources, got[len(got) - len(sources) :], strict=True))
    blobs[rank] = whole(data)
    return [None if edge is None else blobs[edge[0]] for edge in into]


@algorithm("neighbor_alltoall")
def alltoall_direct(
    rank: int, size: int, out: Sequence[Edge], into: Sequence[Edge], blobs: Sequence[Blob]
) -> Steps:
    """1 round; a message along each edge.  Returns a blob for each edge of `into`."""
    steps: list[Send | Recv] = []
    mine: dict[int, memoryview] = {}  # edges to oneself
    for edge, blob in zip(out, blobs, strict=True):
        if edge is not None and edge[0] == rank:
            mine[edge[1]] = whole(blob)
        elif edge is not None:
            steps.append(Send((edge[0],), parts(blob), edge[1]))
    sends = len(steps)
    steps += [Recv(*edge) for edge in into if edge is not None and edge[0] != rank]
    got = iter((yield steps)[sends:] if steps else [])
    return [
        None if edge is None else mine[edge[1]] if edge[0] == rank else next(got) for edge in into
    ]
