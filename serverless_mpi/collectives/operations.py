"""The vocabulary of collective operations: the arguments of each rank, and the layout of ranks.

`OPERATIONS` describes every operation once; `api/` checks its calls with it,
`choose.py` registers algorithms under it, and the simulation, `--explain` and
the contract suite make example calls from it.  A new operation is one row
there, and its arguments in `_one_group_arguments`.

There are three kinds of layout.  Within one group every rank may send to every
other.  Between two groups (names that begin with "inter_") the ranks of both
are numbered together.  Along the edges of a topology ("neighbor_") each rank
has its own lists of edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi.collectives.steps import Blob, Combine, Elementwise, Steps, parts
from serverless_mpi.errors import UsageError

BETWEEN = "inter_"  # prefix of the operations between two groups

# Which rank sends to which.  Between two groups: (size of the group that is numbered first, the
# root or a rank of its group).  Along edges: (outgoing edges, incoming edges) of each rank.
Layout = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """What all algorithms of one collective operation share.

    Attributes
    ----------
    name
        Key in `OPERATIONS`.
    rooted
        The root is the first of the arguments.
    blob_list
        A rank gives one blob for each destination, not one for all.
    neighbours
        It runs along the edges of a topology; the edges are the first two arguments.
    between
        It runs between two groups.
    """

    name: str
    rooted: bool = False
    blob_list: bool = False
    neighbours: bool = False
    between: bool = False

    @property
    def modelled(self) -> bool:
        """Whether all ranks know the layout, so that a formula can state the cost."""
        return not (self.neighbours or self.between)

    def blob_lengths(self, arguments: Sequence[Any]) -> list[int]:
        """Return the length of each blob that a rank gives, in bytes.

        Parameters
        ----------
        arguments
            Arguments of the algorithm after rank and size.
        """
        index = 1 if self.rooted else 2 if self.neighbours else 0
        if len(arguments) <= index or arguments[index] is None:
            return []
        blobs: Sequence[Blob] = arguments[index] if self.blob_list else (arguments[index],)
        return [sum(part.nbytes for part in parts(blob)) for blob in blobs]


_ONE_GROUP = (
    Operation("barrier"),
    Operation("bcast", rooted=True),
    Operation("gather", rooted=True),
    Operation("scatter", rooted=True, blob_list=True),
    Operation("allgather"),
    Operation("alltoall", blob_list=True),
    Operation("reduce", rooted=True),
    Operation("allreduce"),
    Operation("reduce_scatter", blob_list=True),
    Operation("scan"),
    Operation("exscan"),
)
_NEIGHBOURS = (
    Operation("neighbor_allgather", neighbours=True),
    Operation("neighbor_alltoall", neighbours=True, blob_list=True),
)
# scan and exscan exist within one group only; between groups a reduce_scatter takes one vector
_TWO_GROUPS = tuple(
    Operation(
        BETWEEN + operation.name,
        rooted=operation.rooted,
        blob_list=operation.blob_list and operation.name != "reduce_scatter",
        between=True,
    )
    for operation in _ONE_GROUP
    if operation.name not in ("scan", "exscan")
)

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*_ONE_GROUP, *_NEIGHBOURS, *_TWO_GROUPS)
}


def keep_first(a: memoryview, b: memoryview) -> memoryview:
    """Return the first operand: a combination without cost, for example calls.

    Parameters
    ----------
    a, b
        The operands.
    """
    return a


def example_calls(
    operation: str,
    generator: Callable[..., Steps],
    size: int,
    blob: memoryview,
    combine: Combine = Elementwise(keep_first, 1),
    layout: Layout | None = None,
) -> list[Steps]:
    """Make the steps of every rank of a call in which every blob is `blob`.

    Parameters
    ----------
    operation
        A key of `OPERATIONS`.
    generator
        An algorithm of it.
    size
        Number of ranks; between two groups that of both together.
    blob
        The blob; borrowed.  A reduce_scatter between two groups cuts it into pieces.
    combine
        The reduction's operator.
    layout
        See `Layout`; within one group the root is rank 0 and no layout is needed.

    Raises
    ------
    UsageError
        No such operation, or no layout for one that needs it.
    """
    if operation not in OPERATIONS:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(OPERATIONS)}")
    spec = OPERATIONS[operation]
    if spec.modelled:
        return [
            generator(rank, size, *_one_group_arguments(operation, rank, size, blob, combine))
            for rank in range(size)
        ]
    if layout is None:
        raise UsageError(
            f"{operation} has no layout of its own: it needs two groups, or neighbours"
        )
    if spec.neighbours:
        return [
            generator(rank, size, out, into, [blob] * len(out) if spec.blob_list else blob)
            for rank, (out, into) in enumerate(layout)
        ]
    first, root = layout
    groups = range(first), range(first, size)
    return [
        generator(
            number - mine[0],
            (mine, theirs),
            *_two_group_arguments(
                operation.removeprefix(BETWEEN), number, root, mine, theirs, blob, combine
            ),
        )
        for mine, theirs in (groups, groups[::-1])
        for number in mine
    ]


def _one_group_arguments(
    operation: str, rank: int, size: int, blob: memoryview, combine: Combine
) -> tuple[Any, ...]:
    """Return what `rank` passes to an algorithm after rank and size; the root is 0."""
    arguments: dict[str, tuple[Any, ...]] = {
        "barrier": (),
        "bcast": (0, None if rank else blob),
        "gather": (0, blob),
        "scatter": (0, None if rank else [blob] * size),
        "allgather": (blob,),
        "alltoall": ([blob] * size,),
        "reduce": (0, blob, combine),
        "allreduce": (blob, combine),
        "reduce_scatter": ([blob] * size, combine),
        "scan": (blob, combine),
        "exscan": (blob, combine),
    }
    return arguments[operation]


def _two_group_arguments(
    operation: str,
    number: int,
    root: int,
    mine: range,
    theirs: range,
    blob: memoryview,
    combine: Combine,
) -> tuple[Any, ...]:
    """Return what rank `number` of the group `mine` passes after its rank and the groups."""
    root_is_remote = root in theirs
    # in the root's own group only the root takes part
    root_argument = root if root_is_remote or number == root else None
    arguments: dict[str, tuple[Any, ...]] = {
        "barrier": (),
        "bcast": (root_argument, blob if number == root else None),
        "gather": (root_argument, blob if root_is_remote else None),
        "scatter": (root_argument, [blob] * len(theirs) if number == root else None),
        "allgather": (blob,),
        "alltoall": ([blob] * len(theirs),),
        "reduce": (root_argument, blob if root_is_remote else None, combine),
        "allreduce": (blob, combine),
        # one vector, as long in both groups
        "reduce_scatter": (Elementwise(combine, 1).cut(blob, len(mine)), combine),
    }
    return arguments[operation]
