"""The model counts what the emulator counts, at n = 8, request for request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from serverless_mpi import channels
from serverless_mpi.collectives import allgather, reduce
from serverless_mpi.collectives.choose import TABLE
from serverless_mpi.collectives.cost import FORMULAS
from serverless_mpi.collectives.simulate import arguments, keep_first
from serverless_mpi.collectives.steps import Elementwise
from serverless_mpi.errors import UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Prices, Snapshot, merge
from serverless_mpi.runtime import Runtime
from serverless_mpi.simulation import AWS, EMULATOR, forecast

SIZE = 8
PRICES = Prices.load()
# these send in several rounds to one rank, and so in one batch where what they wait for came at once
JOINED = (reduce.allreduce_rabenseifner, allgather.ring)
CALLS = [(operation, row) for operation, rows in TABLE.items() for _, row in rows if row in FORMULAS]


class Ranks:
    """Eight ranks of a channel that run one collective after another; `count` tells what each took."""

    def __init__(self, channel: str, endpoint: str) -> None:
        self.kind = channels.load(channel)
        self.spec = JobSpec.new(SIZE, channel, endpoint=endpoint)
        self.spec = replace(self.spec, settings=self.kind.provision(self.spec))

    def count(self, operation: str, algorithm: Any, nbytes: int, context: int) -> Snapshot:
        blob, combine = memoryview(bytearray(nbytes)), Elementwise(keep_first, 1)
        runtimes = [Runtime(self.spec.with_rank(rank)) for rank in range(SIZE)]
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            try:
                steps = algorithm(rank, SIZE, *arguments(operation, rank, SIZE, blob, combine))
                running = runtimes[rank].icollective(context, 0, steps, range(SIZE))
                assert runtimes[rank].wait([running], timeout=60.0) and running.error is None
                runtimes[rank].finalize()
            except BaseException as error:  # handed to the test's thread
                errors.append(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(SIZE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return merge([runtime.meter.snapshot() for runtime in runtimes])


@pytest.fixture(params=["queue", "object", "hybrid"])
def ranks(request: pytest.FixtureRequest, ministack_endpoint: str) -> Iterator[Ranks]:
    made = Ranks(request.param, ministack_endpoint)
    yield made
    made.kind.destroy(made.spec)


def exact(counts: Snapshot, channel: str) -> dict[str, int]:
    """What does not depend on the moment of looking: puts of all kinds, and what was received.

    Only `object` asks for objects that are not there yet; of its GETs those count that brought a message.
    """
    found = {}
    for name, row in counts.items():
        if name == "s3.GET":
            found["s3.GET"] = row["messages" if channel == "object" else "requests"]
        elif name == "sqs.ReceiveMessage":
            found.update({f"{name} messages": row["messages"], f"{name} nbytes": row["nbytes"]})
        else:
            found.update({f"{name} {field}": row[field] for field in ("requests", "billed", "messages", "nbytes")})
    return found


@pytest.mark.parametrize("nbytes", [24, 300_000])
def test_the_model_counts_what_the_emulator_counts(ranks: Ranks, nbytes: int) -> None:
    wrong = {}
    for context, (operation, algorithm) in enumerate(CALLS, 10):
        if nbytes > 1000 and (ranks.spec.channel == "queue" or operation not in ("bcast", "alltoall", "allreduce")):
            continue
        if nbytes < 1000 and ranks.spec.channel == "hybrid":  # small frames are the queue's
            continue
        channel = ranks.spec.channel
        measured = exact(ranks.count(operation, algorithm, nbytes, context), channel)
        predicted = exact(forecast(operation, nbytes, SIZE, channel, EMULATOR, PRICES, algorithm).requests, channel)
        if algorithm in JOINED:
            for field in ("requests", "billed"):
                name = f"sqs.SendMessageBatch {field}"
                assert measured.pop(name, 0) <= predicted.pop(name, 0)
        if measured != predicted:
            wrong[operation, getattr(algorithm, "__name__", algorithm)] = (measured, predicted)
    assert not wrong


@pytest.mark.parametrize("channel", ["queue", "object", "hybrid", "direct"])
@pytest.mark.parametrize("operation", ["bcast", "allreduce", "alltoall", "barrier"])
def test_more_ranks_take_longer_and_cost_more(channel: str, operation: str) -> None:
    few, many = (forecast(operation, 64, size, channel, AWS, PRICES) for size in (10, 60))
    assert 0 < few.seconds <= many.seconds and few.messages < many.messages
    assert (few.usd < many.usd) == (channel != "direct")


def test_what_services_allow_is_waited_for() -> None:
    fast = forecast("alltoall", 64, 40, "object", replace(AWS, s3_gets_per_s=0.0), PRICES)
    slow = forecast("alltoall", 64, 40, "object", replace(AWS, s3_gets_per_s=100.0), PRICES)
    assert slow.seconds > fast.seconds + 40 * 39 / 100 / 2
    assert forecast("bcast", 8, 4, "queue", replace(AWS, sns_deliver_s=3.0), PRICES).seconds > 3


def test_unknown_operations_and_channels_are_named() -> None:
    with pytest.raises(UsageError, match="no collective 'alreduce'; known: .*allreduce"):
        forecast("alreduce", 8, 4, "queue", AWS, PRICES)
    with pytest.raises(UsageError, match="'memory' cannot be simulated; known: hybrid"):
        forecast("allreduce", 8, 4, "memory", AWS, PRICES)
