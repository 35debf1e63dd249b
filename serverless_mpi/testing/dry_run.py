"""The dry run: run the generators of all ranks in one process, without a network, and count.

The run is exact: it delivers the data of each Send and Scatter, in an order that
the caller may pick, and refuses what no channel could serve: a deadlock, a
message that no rank receives, two messages with one name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.collectives.steps import Recv, Scatter, Send, Steps
from serverless_mpi.errors import JobError

__all__ = ["Count", "run"]

_Step = Send | Scatter | Recv


@dataclass
class Count:
    """What a call cost.

    Attributes
    ----------
    rounds
        Length of the longest chain of messages, each of which waits for the one before.
    messages
        Reads by all ranks.
    sends
        Number of Sends and Scatters of each rank; one that several ranks read counts once.
    nbytes
        Bytes of these, counted likewise.
    """

    rounds: int = 0
    messages: int = 0
    sends: list[int] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)


def run(
    ranks: Sequence[Steps], pick: Callable[[int], int] = lambda ready: 0
) -> tuple[list[Any], Count]:
    """Run one generator per rank to its end.

    Parameters
    ----------
    ranks
        The generators, by rank.
    pick
        Takes the number of ranks that can continue, and returns the index of the next one; a test
        passes a random choice to try any order.

    Returns
    -------
    results : list
        What each generator returned.
    count : Count
        What the call cost.

    Raises
    ------
    JobError
        A deadlock (the text names which rank waits for which message), a message that no rank
        received, two messages with one name, or a rank that sends to itself.
    """
    return _DryRun(ranks).run(pick)


class _DryRun:
    """State of one run.

    `_mail` maps (source, slot, reader, scattered) to the data that was sent and not received yet,
    and the round of its sender. `_waiting` maps each unfinished rank to the step that it yielded.
    """

    def __init__(self, ranks: Sequence[Steps]) -> None:
        self._ranks = ranks
        self._mail: dict[tuple[int, int, int, bool], tuple[memoryview, int]] = {}
        self._used: set[tuple[int, int]] = set()
        self._round = [0] * len(ranks)
        self._waiting: dict[int, Any] = dict.fromkeys(range(len(ranks)))
        self._count = Count(sends=[0] * len(ranks), nbytes=[0] * len(ranks))

    def run(self, pick: Callable[[int], int]) -> tuple[list[Any], Count]:
        results: list[Any] = [None] * len(self._ranks)
        while self._waiting:
            able = [rank for rank in self._waiting if self._can_continue(rank)]
            if not able:
                stuck = {
                    rank: [step for step in _group(waiting) if isinstance(step, Recv)]
                    for rank, waiting in self._waiting.items()
                }
                raise JobError(f"deadlock: {stuck}")
            rank = able[pick(len(able))]
            value = self._receive(rank, self._waiting.pop(rank))
            try:
                following = self._ranks[rank].send(value)
            except StopIteration as stop:
                results[rank] = stop.value
                continue
            for step in _group(following):
                if not isinstance(step, Recv):
                    self._send(rank, step)
            self._waiting[rank] = following
        if self._mail:
            raise JobError(
                f"no rank received {sorted(self._mail)} (source, slot, reader, scattered)"
            )
        return results, self._count

    def _can_continue(self, rank: int) -> bool:
        """Return whether everything that a rank's step receives has been sent."""
        return all(
            (step.source, step.slot, rank, step.scattered) in self._mail
            for step in _group(self._waiting[rank])
            if isinstance(step, Recv)
        )

    def _receive(self, rank: int, yielded: _Step | Sequence[_Step] | None) -> object:
        """Return what the generator is sent for the step that it yielded last."""
        values: list[Any] = []
        for step in _group(yielded):
            if isinstance(step, Recv):
                data, sent_in = self._mail.pop((step.source, step.slot, rank, step.scattered))
                self._round[rank] = max(self._round[rank], sent_in)
                values.append(data)
            else:
                values.append(None)
        if yielded is None:
            return None
        return values if isinstance(yielded, (list, tuple)) else values[0]

    def _send(self, rank: int, step: Send | Scatter) -> None:
        if isinstance(step, Send):
            blob = memoryview(bytearray().join(step.data))
            given = dict.fromkeys(step.dests, blob)
            nbytes = blob.nbytes
        else:
            given = {dest: memoryview(bytearray().join(data)) for dest, data in step.blobs}
            nbytes = sum(blob.nbytes for blob in given.values())
        if (rank, step.slot) in self._used or rank in given:
            raise JobError(f"rank {rank} sends twice with slot {step.slot}, or to itself")
        self._used.add((rank, step.slot))
        self._count.nbytes[rank] += nbytes
        self._count.sends[rank] += 1
        for dest, blob in given.items():
            name = rank, step.slot, dest, isinstance(step, Scatter)
            self._mail[name] = blob, self._round[rank] + 1
            self._count.messages += 1
            self._count.rounds = max(self._count.rounds, self._round[rank] + 1)


def _group(step: _Step | Sequence[_Step] | None) -> Sequence[_Step]:
    """Return the steps that a generator yielded together."""
    if step is None:
        return ()
    return step if isinstance(step, (list, tuple)) else (step,)
