"""The model counts what the emulator counts, at n = 8, request for request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serverless_mpi import channels
from serverless_mpi.api.topologies import Cart
from serverless_mpi.aws import control
from serverless_mpi.aws.credentials import emulator_keys
from serverless_mpi.collectives import allgather, reduce
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, always, select
from serverless_mpi.collectives.operations import OPERATIONS, Layout, example_calls, keep_first
from serverless_mpi.collectives.steps import Recv, Scatter, Send
from serverless_mpi.errors import UsageError
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.inference.plan import Deployment, Work, place, predict
from serverless_mpi.job import FRAMES_BUCKET, JobSpec
from serverless_mpi.metering import Prices, Snapshot, merge
from serverless_mpi.runtime import Runtime
from serverless_mpi.simulation import AWS, EMULATOR, LATENCIES, forecast
from tests.harness import on_each
from tests.strict.express import Express, directory_bucket, plain

SIZE = 8
BEFORE, AFTER = 1 << 20, 1 << 21  # slots that no algorithm uses
LENGTH = 150_000  # bytes: on hybrid an object, on queue one message
PRICES = Prices.load()
LARGE = (
    "bcast",
    "alltoall",
    "allreduce",
    "inter_bcast",
    "neighbor_alltoall",
)  # what is tried with frames that are objects
# these send in several rounds to one rank, and so in one batch where what they wait for came at once
JOINED = (reduce.allreduce_rabenseifner, allgather.ring)
GRID = Cart.made([4, 2], [True, False], SIZE)


def layout(operation: str) -> Layout | None:
    """Three ranks and five of which the last but one is the root; or a grid that is a ring one way."""
    if OPERATIONS[operation].neighbours:
        return tuple(GRID.edges(rank) for rank in range(SIZE))
    return (3, 6) if OPERATIONS[operation].between else None


def mix(rank: int, size: int, blob: memoryview) -> Any:
    """As a program does it: a message to the right, one that three others read, two to one rank, and one dealt out to some."""
    right, left = (rank + 1) % size, (rank - 1) % size
    yield [Send((right,), (blob,), 1), Recv(left, 1)]
    others = tuple((rank + step) % size for step in (2, 3, 5))
    yield [Send(others, (blob, blob), 2), *(Recv((rank - step) % size, 2) for step in (2, 3, 5))]
    if rank % 2:
        yield [Send((left,), (blob,), 3), Send((left,), (blob[:9],), 4)]
    else:
        yield [Recv(right, 3), Recv(right, 4)]
    if rank == 4:
        yield Scatter(tuple((dest, (blob[:dest],)) for dest in (1, 6, 7)), 5)
    elif rank in (1, 6, 7):
        yield Recv(4, 5, scattered=True)


MIX = Algorithm("allgather", "mix", mix, None, always)
CALLS = [*(row for rows in ALGORITHMS.values() for row in rows if not row.placed), MIX]


class Ranks:
    """Eight ranks of a channel that run one collective after another; `count` tells what each took."""

    def __init__(self, channel: str, endpoint: str) -> None:
        self.kind = channels.load(channel)
        self.spec = JobSpec.new(SIZE, channel, endpoint=endpoint)
        self.spec = replace(self.spec, settings=self.kind.provision(self.spec))

    def count(self, algorithm: Algorithm, nbytes: int, context: int) -> Snapshot:
        blob = memoryview(bytearray(nbytes))
        operation, generator = algorithm.operation, algorithm.generator
        runtimes = [Runtime(self.spec.with_rank(rank)) for rank in range(SIZE)]
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            try:
                calls = example_calls(operation, generator, SIZE, blob, layout=layout(operation))
                steps = calls[rank]
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
            found.update(
                {
                    f"{name} {field}": row[field]
                    for field in ("requests", "billed", "messages", "nbytes")
                }
            )
    return found


@pytest.mark.parametrize("nbytes", [24, 300_000])
def test_the_model_counts_what_the_emulator_counts(ranks: Ranks, nbytes: int) -> None:
    wrong = {}
    for context, algorithm in enumerate(CALLS, 10):
        operation = algorithm.operation
        if nbytes > 1000 and (
            ranks.spec.channel == "queue" or operation not in LARGE and algorithm is not MIX
        ):
            continue
        if (
            nbytes < 1000 and ranks.spec.channel == "hybrid" and algorithm is not MIX
        ):  # small frames are the queue's
            continue
        channel = ranks.spec.channel
        measured = exact(ranks.count(algorithm, nbytes, context), channel)
        predicted = exact(
            forecast(
                operation, nbytes, SIZE, channel, EMULATOR, PRICES, algorithm, layout(operation)
            ).requests,
            channel,
        )
        if algorithm.generator in JOINED:
            for field in ("requests", "billed"):
                name = f"sqs.SendMessageBatch {field}"
                assert measured.pop(name, 0) <= predicted.pop(name, 0)
        if measured != predicted:
            wrong[operation, algorithm.name] = (measured, predicted)
    assert not wrong


def test_point_to_point_is_what_the_model_takes_it_for(ranks: Ranks) -> None:
    """Messages of a program, and a collective between them: each rank sends to two others, small and large."""
    runtimes = [Runtime(ranks.spec.with_rank(rank)) for rank in range(SIZE)]

    def body(comm: Any) -> None:
        small, large = np.zeros(3), np.zeros(LENGTH, dtype=np.uint8)
        far, near = (comm.rank + 3) % SIZE, (comm.rank - 3) % SIZE
        comm.Sendrecv(small, far, 0, small, near, 0)
        comm.Allreduce(np.zeros(3), small)
        comm.Sendrecv(large, near, 1, large, far, 1)

    on_each(runtimes, body)
    for runtime in runtimes:
        runtime.finalize()

    allreduce = select("allreduce", Facts(SIZE, 24, runtimes[0].figures))

    def program(rank: int, size: int, blob: memoryview) -> Any:
        far, near = (rank + 3) % size, (rank - 3) % size
        yield [Send((far,), (blob[:24],), BEFORE), Recv(near, BEFORE)]
        yield from allreduce.generator(rank, size, blob[:24], keep_first)
        yield [Send((near,), (blob,), AFTER), Recv(far, AFTER)]

    played = Algorithm("allgather", "program", program, None, always)
    channel = ranks.spec.channel
    predicted = forecast("allgather", LENGTH, SIZE, channel, EMULATOR, PRICES, played)
    counts = merge([runtime.meter.snapshot() for runtime in runtimes])
    deleted = counts.pop(
        "s3.DELETE", None
    )  # an object that one rank alone reads goes when it has; which is free
    assert exact(counts, channel) == exact(predicted.requests, channel)
    assert (deleted is None) == (channel != "object") and not PRICES.of("s3.DELETE")


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
    with pytest.raises(UsageError, match="channel memory has no simulation model"):
        forecast("allreduce", 8, 4, "memory", AWS, PRICES)


def dollars(counts: dict[str, int], nbytes: dict[str, int]) -> float:
    """What requests cost, by the price table."""
    rows = {
        name: {"requests": n, "billed": n, "messages": 0, "nbytes": nbytes.get(name, 0)}
        for name, n in counts.items()
    }
    return PRICES.requests_usd(rows)


def test_c1_over_object_costs_a_fifth_on_s3_express() -> None:
    """FSD-Inference's c1: 8 workers, 120 layers, 1.3 MB in all (docs/benchmarks.md), counts as the planner's."""
    work = Work.radix(1024, 120, 10_000)
    planned = predict(work, place("lambda"), Deployment(1, 8, "object", 1769), BilledModel())
    assert planned is not None
    puts, gets = (planned.use.of("s3", operation)[0] for operation in ("PUT", "GET"))
    assert (puts, gets) == (960, 6869)
    usual = dollars({"s3.PUT": puts, "s3.GET": gets}, {})
    counts = {"s3express.PUT": puts, "s3express.GET": gets, "s3express.CreateSession": 8}
    moved = {"s3express.PUT": 1_300_000, "s3express.GET": 7 * 1_300_000}
    assert usual == pytest.approx(0.0075, abs=5e-5)
    assert dollars(counts, moved) < 0.0015 and dollars(counts, moved) / usual < 0.18
    # with a look in vain for every object
    layer = {
        name: forecast("alltoall", 193, 8, "object", LATENCIES[name], PRICES)
        for name in ("aws", "express")
    }
    assert 120 * layer["express"].usd < 0.00151 < 0.0101 < 120 * layer["aws"].usd
    assert layer["express"].seconds < layer["aws"].seconds / 10
    assert layer["express"].requests["s3express.PUT"]["requests"] == 8


def test_many_awaited_objects_are_listed_in_the_model_too() -> None:
    taken = forecast("alltoall", 1024, 64, "object", AWS, PRICES)
    assert taken.requests["s3.LIST"]["requests"] <= 3 * 64
    assert taken.requests["s3.GET"]["requests"] < 1.1 * taken.messages
    few = forecast("alltoall", 1024, 12, "object", AWS, PRICES)
    assert "s3.LIST" not in few.requests
    assert (
        "s3express.LIST"
        not in forecast("alltoall", 1024, 37, "object", LATENCIES["express"], PRICES).requests
    )  # there a LIST costs as much as 37 GETs


def test_bytes_to_s3_express_are_billed() -> None:
    """Above a megabyte or so an object costs more there than in a general bucket."""
    for nbytes, cheaper in ((1 << 10, True), (1 << 18, True), (1 << 24, False)):
        usual, express = (
            forecast("bcast", nbytes, 2, "object", LATENCIES[name], PRICES)
            for name in ("aws", "express")
        )
        assert (express.usd < usual.usd) == cheaper


@pytest.mark.parametrize("channel", ["object", "hybrid"])
def test_the_model_counts_what_a_directory_bucket_counts(
    channel: str, ministack_endpoint: str
) -> None:
    s3 = control.client("s3", ministack_endpoint, "us-east-1")
    with Express(ministack_endpoint) as front:
        made = Ranks(channel, front.url)
        keys = emulator_keys(made.spec.key)
        front.users.add((keys.access, keys.secret))
        bucket = directory_bucket("smpi-model")
        s3.create_bucket(Bucket=plain(bucket))
        made.spec = replace(made.spec, settings={**made.spec.settings, FRAMES_BUCKET: bucket})
        try:
            counts = made.count(MIX, 300_000, 10)
        finally:
            made.kind.destroy(made.spec)
            for one in s3.list_objects_v2(Bucket=plain(bucket)).get("Contents", ()):
                s3.delete_object(Bucket=plain(bucket), Key=one["Key"])
            s3.delete_bucket(Bucket=plain(bucket))
    emulator = replace(EMULATOR, store="s3express")
    taken = forecast("allgather", 300_000, SIZE, channel, emulator, PRICES, MIX).requests
    assert counts.pop("s3express.CreateSession")["requests"] == SIZE
    assert not any(name.startswith("s3.") for name in counts)
    for name in ("s3express.PUT", "s3express.GET"):
        fields = ("messages", "nbytes") + (("requests", "billed") if name.endswith("PUT") else ())
        assert {field: counts[name][field] for field in fields} == {
            field: taken[name][field] for field in fields
        }
