"""A dry run: the real generators of all ranks in one process, without a network, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.collectives.steps import (
    Algorithm,
    Blob,
    Combine,
    Deal,
    Elementwise,
    Recv,
    Send,
    parts,
)
from serverless_mpi.errors import JobError, UsageError

ROOTED = ("bcast", "gather", "scatter", "reduce")  # the root comes first among their arguments
EACH = (
    "scatter",
    "alltoall",
    "reduce_scatter",
    "neighbor_alltoall",
)  # a rank gives not a blob but a list of them
NEIGHBORLY = ("neighbor_allgather", "neighbor_alltoall")
BETWEEN = "inter_"  # before the name of an operation between two groups

# Who speaks to whom.  Between two groups: (size of the group that is numbered first, the root, or a rank of its group).
# Among neighbours: for each rank (edges out, edges in).
Layout = tuple[Any, ...]


@dataclass
class Count:
    """What an algorithm costs.

    rounds: longest chain of messages each of which waits for the one before;
    sends, nbytes: per rank, a Send to many ranks, or a Deal, counted once;
    messages: reads by all ranks.
    """

    rounds: int = 0
    messages: int = 0
    sends: list[int] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)


def run(
    algorithms: Sequence[Algorithm], pick: Callable[[int], int] = lambda ready: 0
) -> tuple[list[Any], Count]:
    """Run one generator per rank to the end.

    pick: which of `n` ranks that can go on goes next, so that a test can try any order.

    Returns the ranks' results and the count.

    Raises
    ------
    JobError
        A deadlock (the text names who waits for whom), a message nobody
        received, or two under one name: the algorithm is wrong.
    """
    size = len(algorithms)
    count = Count(sends=[0] * size, nbytes=[0] * size)
    mail: dict[
        tuple[int, int, int, bool], tuple[memoryview, int]
    ] = {}  # (source, slot, dest, dealt) -> data, round
    used: set[tuple[int, int]] = set()
    clock = [0] * size
    results: list[Any] = [None] * size
    waiting: dict[int, Any] = {rank: None for rank in range(size)}  # rank -> what it yielded last

    def ready(rank: int) -> bool:
        return all(
            (one.source, one.slot, rank, one.dealt) in mail
            for one in _steps(waiting[rank])
            if isinstance(one, Recv)
        )

    while waiting:
        able = [rank for rank in waiting if ready(rank)]
        if not able:
            stuck = {
                rank: [one for one in _steps(step) if isinstance(one, Recv)]
                for rank, step in waiting.items()
            }
            raise JobError(f"deadlock: {stuck}")
        rank = able[pick(len(able))]
        step = waiting.pop(rank)
        values: list[Any] = []
        for one in _steps(step):
            if isinstance(one, Recv):
                data, when = mail.pop((one.source, one.slot, rank, one.dealt))
                clock[rank] = max(clock[rank], when)
                values.append(data)
            else:
                values.append(None)
        value = None if step is None else values if isinstance(step, (list, tuple)) else values[0]
        try:
            following = algorithms[rank].send(value)
        except StopIteration as stop:
            results[rank] = stop.value
            continue
        for one in _steps(following):
            if isinstance(one, Recv):
                continue
            if isinstance(one, Send):
                blob = memoryview(bytearray().join(one.data))
                given = dict.fromkeys(one.dests, blob)
                count.nbytes[rank] += blob.nbytes
            else:
                given = {dest: memoryview(bytearray().join(data)) for dest, data in one.blobs}
                count.nbytes[rank] += sum(blob.nbytes for blob in given.values())
            count.sends[rank] += 1
            if (rank, one.slot) in used or rank in given:
                raise JobError(f"rank {rank} sends twice under slot {one.slot}, or to itself")
            used.add((rank, one.slot))
            for dest, blob in given.items():
                mail[rank, one.slot, dest, isinstance(one, Deal)] = (blob, clock[rank] + 1)
                count.messages += 1
                count.rounds = max(count.rounds, clock[rank] + 1)
        waiting[rank] = following
    if mail:
        raise JobError(f"nobody received {sorted(mail)}")
    return results, count


def arguments(
    operation: str, rank: int, size: int, blob: memoryview, combine: Combine
) -> tuple[Any, ...]:
    """What `rank` gives to an algorithm of `operation`, beside rank and size, in a call where every blob is `blob`; root 0.

    Raises
    ------
    UsageError
        No such operation; the message names the known ones.
    """
    known: dict[str, tuple[Any, ...]] = {
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
    if operation not in known:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(known)}")
    return known[operation]


def members(
    operation: str,
    algorithm: Callable[..., Algorithm],
    size: int,
    blob: memoryview,
    combine: Combine,
    layout: Layout | None = None,
) -> list[Algorithm]:
    """One generator per rank of a call in which every blob is `blob`; the root is rank 0, or where `layout` has it.

    The blobs of a reduce_scatter between two groups are pieces of `blob`.

    Raises
    ------
    UsageError
        No such operation, or no layout for one that needs it.
    """
    if operation not in NEIGHBORLY and not operation.startswith(BETWEEN):
        return [
            algorithm(rank, size, *arguments(operation, rank, size, blob, combine))
            for rank in range(size)
        ]
    if layout is None:
        raise UsageError(f"{operation} has no shape of its own: it needs two groups, or neighbours")
    if operation in NEIGHBORLY:
        each = operation in EACH
        return [
            algorithm(rank, size, out, into, [blob] * len(out) if each else blob)
            for rank, (out, into) in enumerate(layout)
        ]
    first, root = layout
    groups = range(first), range(first, size)
    return [
        algorithm(
            number - mine[0],
            (mine, theirs),
            *_between(operation.removeprefix(BETWEEN), number, root, mine, theirs, blob, combine),
        )
        for mine, theirs in (groups, groups[::-1])
        for number in mine
    ]


def _between(
    operation: str,
    number: int,
    root: int,
    mine: range,
    theirs: range,
    blob: memoryview,
    combine: Combine,
) -> tuple[Any, ...]:
    """What rank `number` of the group `mine` gives."""
    speaks = root in theirs  # with the root; in the root's own group only the root has a part
    place = root if speaks or number == root else None
    known: dict[str, tuple[Any, ...]] = {
        "barrier": (),
        "bcast": (place, blob if number == root else None),
        "gather": (place, blob if speaks else None),
        "scatter": (place, [blob] * len(theirs) if number == root else None),
        "allgather": (blob,),
        "alltoall": ([blob] * len(theirs),),
        "reduce": (place, blob if speaks else None, combine),
        "allreduce": (blob, combine),
        "reduce_scatter": (
            Elementwise(combine, 1).cut(blob, len(mine)),
            combine,
        ),  # a vector, as long in both groups
    }
    return known[operation]


def given(operation: str, arguments: tuple[Any, ...]) -> list[int]:
    """The lengths of the blobs that a rank gives to an algorithm, as `members` gives them."""
    simple = operation.removeprefix(BETWEEN)
    place = 1 if simple in ROOTED else 2 if simple in NEIGHBORLY else 0
    if len(arguments) <= place or arguments[place] is None:
        return []
    several = simple in EACH and operation != "inter_reduce_scatter"
    blobs: Sequence[Blob] = arguments[place] if several else (arguments[place],)
    return [sum(part.nbytes for part in parts(blob)) for blob in blobs]


def keep_first(a: memoryview, b: memoryview) -> memoryview:
    """An operation that costs nothing."""
    return a


def _steps(step: Any) -> Sequence[Send | Deal | Recv]:
    return () if step is None else step if isinstance(step, (list, tuple)) else (step,)
