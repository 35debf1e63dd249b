"""The ranks of a call on a model of a medium, the earliest first.

A simulated rank runs until it waits; what it has sent goes to the medium as one batch, as the runtime puts it, and the
medium says when each reader has it.  What is counted is what ranks would do: a test compares it with the emulator.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.channels.base import SCATTERED, SHARED, FrameName, OutgoingFrame
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, select
from serverless_mpi.collectives.operations import Layout, example_calls
from serverless_mpi.collectives.steps import Recv, Scatter, Send, Steps, whole
from serverless_mpi.core.wire import HEADER_BYTES, Kind
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.simulation.figures import Latency
from serverless_mpi.simulation.media import Blank, Item, Medium, medium


@dataclass
class Forecast:
    """A call: what was chosen, and what it costs.

    rounds: longest chain of messages; messages: reads of all ranks; nbytes: put by all ranks, a Send to many counted
    once; seconds: until the last rank is done; requests: "service.operation" -> counts, as a Meter has them; usd.
    """

    operation: str
    nbytes: int
    size: int
    algorithm: str
    rounds: int = 0
    messages: int = 0
    sent: int = 0
    seconds: float = 0.0
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    usd: float = 0.0


def forecast(
    operation: str,
    nbytes: int,
    size: int,
    channel: str,
    latency: Latency,
    prices: Prices,
    algorithm: Algorithm | None = None,
    layout: Layout | None = None,
) -> Forecast:
    """Run a call's generators on the model of a channel.

    nbytes: of a blob; algorithm: instead of the one that would be chosen; layout: see `collectives.operations`.

    Raises
    ------
    UsageError
        No such operation, or a channel that has no model.
    """
    meter = Meter()
    model, figures, longest = medium(channel, latency, meter, prices)
    if operation not in ALGORITHMS:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(ALGORITHMS)}")
    chosen = algorithm or select(operation, Facts(size, nbytes, figures))
    ranks = example_calls(
        operation, chosen.generator, size, memoryview(bytes(nbytes)), layout=layout
    )
    made = Forecast(operation, nbytes, size, chosen.name)
    _run(ranks, model, longest, made)
    model.close()
    made.requests = meter.snapshot()
    made.usd = prices.requests_usd(made.requests)
    return made


def _run(ranks: Sequence[Steps], model: Medium, longest: int, made: Forecast) -> None:
    """Every rank to its end, the earliest first."""
    mail: dict[
        tuple[int, int, int], tuple[memoryview, int, list[Item]]
    ] = {}  # (source, slot, dest) -> data, round, frames
    waiting: dict[
        int, tuple[list[Any], float, bool]
    ] = {}  # rank -> its step, since when, whether it is a list
    missing: dict[int, int] = {}  # rank -> how many messages it lacks
    lacked_by: dict[tuple[int, int, int], int] = {}
    rounds = [0] * len(ranks)
    able: list[tuple[float, int, Any]] = [(0.0, rank, None) for rank in range(len(ranks))]

    def put(rank: int, now: float, steps: list[Send | Scatter]) -> None:
        parcels, contents = [], {}
        for step in steps:
            blobs = (
                [(dest, step.data) for dest in step.dests]
                if isinstance(step, Send)
                else list(step.blobs)
            )
            if not blobs:
                continue
            made.messages += len(blobs)
            made.sent += sum(
                sum(part.nbytes for part in data)
                for _, data in (blobs if isinstance(step, Scatter) else blobs[:1])
            )
            shared = whole(step.data) if isinstance(step, Send) else None
            for dest, data in blobs:
                contents[step.slot, dest] = shared if shared is not None else whole(data)
            parcels += _parcels(rank, step, longest)
        frames: dict[tuple[int, int], list[Item]] = defaultdict(list)
        for dest, item in model.put(rank, now, parcels) if parcels else ():
            frames[item.slot, dest].append(item)
        for (slot, dest), items in frames.items():
            name = (rank, slot, dest)
            mail[name] = (contents[slot, dest], rounds[rank] + 1, items)
            made.rounds = max(made.rounds, rounds[rank] + 1)
            reader = lacked_by.pop(name, None)
            if reader is not None:
                missing[reader] -= 1
                if not missing[reader]:
                    resume(reader)

    def resume(rank: int) -> None:
        steps, since, several = waiting.pop(rank)
        values: list[Any] = []
        coming: list[Item] = []
        for step in steps:
            if isinstance(step, Recv):
                data, number, items = mail.pop((step.source, step.slot, rank))
                rounds[rank] = max(rounds[rank], number)
                coming += items
                values.append(data)
            else:
                values.append(None)
        now = model.take(rank, since, coming) if coming else since
        heapq.heappush(able, (now, rank, values if several else values[0]))

    while able:
        now, rank, value = heapq.heappop(able)
        sends: list[Send | Scatter] = []
        while True:  # until it waits for something: what it sends until then goes out as one batch
            try:
                step = ranks[rank].send(value)
            except StopIteration:
                put(rank, now, sends)
                made.seconds = max(made.seconds, now)
                break
            several = isinstance(step, (list, tuple))
            steps = list(step) if several else [step]
            sends += [one for one in steps if not isinstance(one, Recv)]
            lacking = [(one.source, one.slot, rank) for one in steps if isinstance(one, Recv)]
            if lacking:
                waiting[rank] = (steps, now, several)
                missing[rank] = 0
                for name in lacking:
                    if name not in mail:
                        lacked_by[name] = rank
                        missing[rank] += 1
                put(rank, now, sends)
                if rank in waiting and not missing[rank]:
                    resume(rank)
                break
            value = [None] * len(steps) if several else None
    if waiting:
        raise JobError(f"deadlock: {sorted(lacked_by)}")


def _parcels(rank: int, step: Send | Scatter, longest: int) -> list[OutgoingFrame]:
    """The frames of a step, as the endpoint cuts them, without bytes."""
    most = longest - HEADER_BYTES

    def name(dest: int, chunk: int) -> FrameName:
        return FrameName(Kind.STEP, 1, rank, dest, 0, step.slot, chunk)

    def lengths(data: Sequence[memoryview]) -> list[int]:
        total = sum(part.nbytes for part in data)
        return [HEADER_BYTES + min(most, total - start) for start in range(0, max(1, total), most)]

    if isinstance(step, Send):
        return [
            OutgoingFrame(step.dests, name(SHARED, chunk), (Blank(nbytes),))  # type: ignore[arg-type]
            for chunk, nbytes in enumerate(lengths(step.data))
        ]
    cut = [(dest, lengths(data)) for dest, data in step.blobs]
    parcels = []
    for chunk in range(max(len(frames) for _, frames in cut)):
        own = [(dest, frames[chunk]) for dest, frames in cut if chunk < len(frames)]
        dests = tuple(dest for dest, _ in own)
        bodies: Any = tuple((Blank(nbytes),) for _, nbytes in own)
        parcels.append(OutgoingFrame(dests, name(SCATTERED, chunk), (), bodies))
    return parcels
