"""A dry run: the real generators of all ranks in one process, without a network, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.collectives.steps import Algorithm, Combine, Deal, Recv, Send
from serverless_mpi.errors import JobError, UsageError


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


def run(algorithms: Sequence[Algorithm], pick: Callable[[int], int] = lambda ready: 0) -> tuple[list[Any], Count]:
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
    mail: dict[tuple[int, int, int, bool], tuple[memoryview, int]] = {}  # (source, slot, dest, dealt) -> data, round
    used: set[tuple[int, int]] = set()
    clock = [0] * size
    results: list[Any] = [None] * size
    waiting: dict[int, Any] = {rank: None for rank in range(size)}  # rank -> what it yielded last

    def ready(rank: int) -> bool:
        return all((one.source, one.slot, rank, one.dealt) in mail for one in _steps(waiting[rank]) if isinstance(one, Recv))

    while waiting:
        able = [rank for rank in waiting if ready(rank)]
        if not able:
            stuck = {rank: [one for one in _steps(step) if isinstance(one, Recv)] for rank, step in waiting.items()}
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


def arguments(operation: str, rank: int, size: int, blob: memoryview, combine: Combine) -> tuple[Any, ...]:
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


def keep_first(a: memoryview, b: memoryview) -> memoryview:
    """An operation that costs nothing."""
    return a


def _steps(step: Any) -> Sequence[Send | Deal | Recv]:
    return () if step is None else step if isinstance(step, (list, tuple)) else (step,)
