"""How to call any algorithm of the table: what a rank of a given call gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serverless_mpi.collectives.steps import Elementwise


def first(a: memoryview, b: memoryview) -> memoryview:
    return a


def generators(operation: str, algorithm: Callable[..., Any], size: int, nbytes: int) -> list[Any]:
    """One generator per rank of a call with blobs of `nbytes` zeros, root 0."""
    blob = memoryview(bytes(nbytes))
    combine = Elementwise(first, 1)
    arguments: dict[str, Callable[[int], tuple[Any, ...]]] = {
        "barrier": lambda rank: (),
        "bcast": lambda rank: (0, None if rank else blob),
        "gather": lambda rank: (0, blob),
        "scatter": lambda rank: (0, None if rank else [blob] * size),
        "allgather": lambda rank: (blob,),
        "alltoall": lambda rank: ([blob] * size,),
        "reduce": lambda rank: (0, blob, combine),
        "allreduce": lambda rank: (blob, combine),
        "reduce_scatter": lambda rank: ([blob] * size, combine),
        "scan": lambda rank: (blob, combine),
        "exscan": lambda rank: (blob, combine),
    }
    return [algorithm(rank, size, *arguments[operation](rank)) for rank in range(size)]
