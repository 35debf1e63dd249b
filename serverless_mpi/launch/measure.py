"""What each rank of `smpi calibrate` runs: time requests to AWS, and print the times.

A rank measures by itself, on its own queue and objects, so no two clocks are compared: a thread of
it waits for the message that another one sends.  The first of several like requests is not
counted, since it connects.  Rank 0 also invokes functions.

What a figure is made of is decided by `deploy/calibrate.py`; here are only seconds, under names
such as "s3.get:1024": operation and bytes.

If you measure more here, also count its requests in `requests`, which states the price beforehand.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf

import numpy as np

from serverless_mpi.aws import sns
from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.functions import Functions
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sns import Sns
from serverless_mpi.aws.sqs import Received, Sqs
from serverless_mpi.errors import ChannelError, JobError
from serverless_mpi.job import JobSpec, current_spec, frames_prefix
from serverless_mpi.metering import BILLED_CHUNK_BYTES, Meter

try:
    from serverless_mpi import sparse
except ImportError:  # a stack may be without the C kernel
    sparse = None  # type: ignore[assignment]

VERSION = 1
SMALL, LARGE_MESSAGE = 1 << 10, 160 << 10  # bytes; the emulator's queues take 256 KiB in base64
OBJECTS = (SMALL, 256 << 10, 8 << 20)  # bytes of the objects that are put and read
LARGE = OBJECTS[-1]
LARGE_ROUNDS = 3
AT_ONCE = 8  # requests, for the bandwidth of a function: as many as a channel has in flight
COLD_AT_ONCE = 3  # invocations, so that some find no environment that is free
INVOCATIONS = 6
RECEIVE_S = 20
PAUSES = 2.0  # times of a request, for which a reader waits before it counts as waiting
NEURONS, DEGREE, SAMPLES = 1024, 32, 2048  # of a layer that does not fit a core's cache
KERNEL_S = 0.5


@dataclass(frozen=True)
class Orders:
    """What the ranks are to measure: the program's argument.

    Attributes
    ----------
    rounds
        Requests of each kind.
    functions
        Memory in MB -> the function whose starts are timed.
    """

    rounds: int
    functions: dict[int, str] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """Return the argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Orders:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text
            Not trusted.

        Raises
        ------
        JobError
            It is something else, or of another version.
        """
        try:
            found = json.loads(text)
            functions = {int(size): str(name) for size, name in found["functions"].items()}
            orders = cls(int(found["rounds"]), functions, found["version"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise JobError("the argument is not one of `smpi calibrate`") from None
        if orders.version != VERSION:
            raise JobError(f"the argument has version {orders.version}, this program {VERSION}")
        return orders


@dataclass(frozen=True)
class Times:
    """What a rank measured: its line of output.

    Attributes
    ----------
    rank
        The rank.
    seconds
        "operation:bytes" -> seconds of each; for "start.cold" and "start.warm" the number is the
        memory in MB, and "kernel" has nonzeros x samples per second of one thread.
    """

    rank: int
    seconds: dict[str, list[float]]
    version: int = VERSION

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Times:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text
            Not trusted.

        Raises
        ------
        JobError
            It is something else, or of another version.
        """
        try:
            found = json.loads(text)
            seconds = {
                str(name): [float(number) for number in numbers]
                for name, numbers in found["seconds"].items()
            }
            times = cls(int(found["rank"]), seconds, found["version"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise JobError("a rank printed something else than times") from None
        if times.version != VERSION or not all(
            0 < number < inf for numbers in seconds.values() for number in numbers
        ):
            raise JobError("a rank printed times of another version, or damaged ones")
        return times


def requests(orders: Orders, ranks: int) -> dict[str, int]:
    """Return how many billed units all ranks need at most: "service.operation" -> number.

    Parameters
    ----------
    orders
        What is measured, and how often.
    ranks
        Number of ranks.
    """
    rounds = orders.rounds + 1
    chunks = -(-LARGE_MESSAGE // BILLED_CHUNK_BYTES)
    large = chunks * (LARGE_ROUNDS + 1)
    per_rank = {
        "sqs.SendMessageBatch": 2 * rounds + large,
        "sqs.ReceiveMessage": 3 * rounds + 2 * large + 2 * LARGE_ROUNDS,
        "sqs.DeleteMessageBatch": 3 * rounds + 2 * LARGE_ROUNDS + 2,
        "sns.Publish": rounds + large,
        "s3.PUT": 2 * rounds + LARGE_ROUNDS + 1,
        "s3.GET": 3 * rounds + LARGE_ROUNDS + 1 + 2 * AT_ONCE,
        "s3.LIST": rounds,
    }
    pings = (COLD_AT_ONCE + INVOCATIONS) * len(orders.functions) + INVOCATIONS + 1
    return {**{name: ranks * count for name, count in per_rank.items()}, "lambda": pings}


class Stopwatch:
    """The times of one rank."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, rounds: int, call: Callable[[int], object]) -> None:
        """Time `call(number)` for each number; number 0 connects and is not counted.

        Parameters
        ----------
        name
            Name of the figure.
        rounds
            Number of calls that count.
        call
            Called with 0, 1, ... `rounds`.
        """
        for number in range(rounds + 1):
            begin = time.perf_counter()
            call(number)
            if number:
                self.seconds[name].append(time.perf_counter() - begin)

    def typical(self, name: str) -> float:
        """The median of the times under a name.

        Parameters
        ----------
        name
            Name of the figure.
        """
        return float(np.median(self.seconds[name]))


class Queues:
    """Times of SQS and SNS, by the rank's own queue."""

    def __init__(self, spec: JobSpec, watch: Stopwatch, to_sqs: Client, to_sns: Client) -> None:
        self._watch = watch
        self._sqs, self._sns = Sqs(to_sqs), Sns(to_sns)
        self._queue = json.loads(spec.settings["queues"])[spec.rank]
        self._slot = json.loads(spec.settings["slots"])[spec.rank]
        self._topic = json.loads(spec.settings["topics"])[self._slot // sns.FILTERS_PER_TOPIC]

    def _send(self, nbytes: int) -> None:
        self._sqs.send(self._queue, [bytes(nbytes)])

    def _publish(self, nbytes: int) -> None:
        self._sns.publish(self._topic, [(bytes(nbytes), [self._slot])])

    def _take(self) -> list[Received]:
        received = self._sqs.receive(self._queue, RECEIVE_S)
        if not received:
            raise ChannelError(
                f"a message did not arrive within {RECEIVE_S} s: after `smpi deploy` a topic's"
                " filters need up to 15 minutes; try again then"
            )
        return received

    def _delete(self, received: list[Received]) -> None:
        self._sqs.delete(self._queue, [message.handle for message in received])

    def measure(self, rounds: int) -> None:
        """Time sends, publishes and receives.

        Parameters
        ----------
        rounds
            Number of repetitions.
        """
        watch = self._watch
        for number in range(rounds + 1):  # of a message that is there
            begin = time.perf_counter()
            self._send(SMALL)
            sent = time.perf_counter()
            received = self._take()
            if number:
                watch.seconds[f"sqs.send:{SMALL}"].append(sent - begin)
                watch.seconds[f"sqs.receive:{SMALL}"].append(time.perf_counter() - sent)
            self._delete(received)
        watch.time(f"sqs.send:{LARGE_MESSAGE}", LARGE_ROUNDS, lambda _: self._send(LARGE_MESSAGE))
        self._empty(LARGE_ROUNDS + 1)
        self._deliver("sqs.deliver", self._send, rounds, watch.typical(f"sqs.send:{SMALL}"))
        self._deliver("sns.deliver", self._publish, rounds, watch.typical(f"sqs.send:{SMALL}"))
        watch.time(
            f"sns.publish:{LARGE_MESSAGE}", LARGE_ROUNDS, lambda _: self._publish(LARGE_MESSAGE)
        )
        self._empty(LARGE_ROUNDS + 1)

    def _empty(self, messages: int) -> None:
        while messages > 0:
            received = self._take()
            self._delete(received)
            messages -= len(received)

    def _deliver(
        self, name: str, put: Callable[[int], None], rounds: int, request_s: float
    ) -> None:
        """Time messages from the begin of their put until a receive that waits has them."""

        def wait() -> tuple[float, list[Received]]:
            received = self._take()
            return time.perf_counter(), received

        with ThreadPoolExecutor(1) as pool:
            for number in range(rounds + 1):
                waiting = pool.submit(wait)
                time.sleep(PAUSES * request_s)  # so that the receive is under way
                begin = time.perf_counter()
                put(SMALL)
                done = time.perf_counter()
                arrived, received = waiting.result()
                if number:
                    self._watch.seconds[f"{name}:{SMALL}"].append(arrived - begin)
                    if name.startswith("sns"):
                        self._watch.seconds[f"sns.publish:{SMALL}"].append(done - begin)
                self._delete(received)


def _put(s3: S3, key: str, content: memoryview, _: int) -> None:
    s3.put(key, (content,))


def _get(s3: S3, key: str, _: int) -> None:
    s3.get(key)


def measure_objects(spec: JobSpec, watch: Stopwatch, client: Client, rounds: int) -> None:
    """Time PUT, GET, ranges and LIST by size, and several large GETs at once.

    Parameters
    ----------
    spec
        The job; its settings name the bucket.
    watch
        Gets the times.
    client
        Of S3.
    rounds
        Number of repetitions.
    """
    s3 = S3(client, spec.settings["bucket"])
    prefix = f"{frames_prefix(spec.job_id)}calibrate/{spec.rank:06d}/"
    keys = {nbytes: f"{prefix}{nbytes}" for nbytes in OBJECTS}
    for nbytes, key in keys.items():
        times = LARGE_ROUNDS if nbytes == LARGE else rounds
        watch.time(f"s3.put:{nbytes}", times, partial(_put, s3, key, memoryview(bytes(nbytes))))
        watch.time(f"s3.get:{nbytes}", times, partial(_get, s3, key))
    watch.time(f"s3.range:{SMALL}", rounds, lambda _: s3.get(keys[LARGE], LARGE // 2, SMALL))
    watch.time("s3.list:0", rounds, lambda _: s3.list(prefix))
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def together(_: int) -> None:
            list(pool.map(lambda _: s3.get(keys[LARGE]), range(AT_ONCE)))

        watch.time(f"s3.together:{AT_ONCE * LARGE}", 1, together)
    s3.delete(list(keys.values()))


def measure_starts(client: Client, watch: Stopwatch, functions: Mapping[int, str]) -> None:
    """Time asynchronous invocations, and cold and warm starts by memory.

    Parameters
    ----------
    client
        Of Lambda.
    watch
        Gets the times.
    functions
        Memory in MB -> name of the function.
    """

    def ping(memory: int, function: str) -> None:
        name, _, alias = function.partition(":")
        begin = time.perf_counter()
        answer = client.request(
            "Invoke",
            "POST",
            f"/2015-03-31/functions/{name}/invocations",
            {"Qualifier": alias} if alias else {},
            headers={"x-amz-invocation-type": "RequestResponse"},
            body=b'{"ping": 1}',
        )
        seconds = time.perf_counter() - begin
        if answer.status != 200:
            raise client.refused(f"invoke {function}", answer)
        kind = "cold" if json.loads(bytes(answer.body)).get("cold") else "warm"
        watch.seconds[f"start.{kind}:{memory}"].append(seconds)

    with ThreadPoolExecutor(COLD_AT_ONCE) as pool:
        for memory, function in functions.items():
            list(pool.map(lambda _: ping(memory, function), range(COLD_AT_ONCE)))  # noqa: B023
            for _ in range(INVOCATIONS):
                ping(memory, function)
    function, start = functions[min(functions)], Functions(client).start
    watch.time("lambda.invoke:0", INVOCATIONS, lambda _: start(function, b'{"ping": 1}'))


def measure_kernel(watch: Stopwatch) -> None:
    """Measure the sparse kernel, where there is one, with one thread for about KERNEL_S.

    Parameters
    ----------
    watch
        Gets the rate.
    """
    if sparse is None:
        return
    chance = np.random.default_rng(0)
    columns = np.argsort(chance.random((NEURONS, NEURONS)), axis=1)[:, :DEGREE]
    weights = sparse.SparseRows(
        np.arange(NEURONS + 1) * DEGREE, np.sort(columns, axis=1).ravel(), 1 / DEGREE, NEURONS
    )
    active = chance.random((NEURONS, SAMPLES), dtype=np.float32)
    deadline = time.perf_counter() + KERNEL_S
    sparse.layer(weights, active, 0.0, threads=1)
    while not watch.seconds["kernel"] or time.perf_counter() < deadline:
        begin = time.perf_counter()
        sparse.layer(weights, active, 0.0, threads=1)
        watch.seconds["kernel"].append(NEURONS * DEGREE * SAMPLES / (time.perf_counter() - begin))


def measure(spec: JobSpec, orders: Orders, meter: Meter) -> Times:
    """Return what a rank measures; `meter` counts its requests.

    Parameters
    ----------
    spec
        The job.
    orders
        What to measure.
    meter
        Counts the requests.
    """
    watch = Stopwatch()
    credentials = Credentials(spec.endpoint, fixed=emulator_keys(spec.key))
    clients = {
        service: Client(service, spec.region, spec.endpoint, credentials, meter)
        for service in ("sqs", "sns", "s3", "lambda")
    }
    try:
        Queues(spec, watch, clients["sqs"], clients["sns"]).measure(orders.rounds)
        measure_objects(spec, watch, clients["s3"], orders.rounds)
        if spec.rank == 0 and orders.functions:
            measure_starts(clients["lambda"], watch, orders.functions)
        measure_kernel(watch)
    finally:
        for client in clients.values():
            client.close()
    return Times(spec.rank, dict(watch.seconds))


def main(argument: str) -> None:
    """Measure what the orders say; print one line.

    Parameters
    ----------
    argument
        The orders as `Orders.to_json` wrote them.
    """
    orders = Orders.from_json(argument)
    spec = current_spec(os.environ)
    if spec is None:
        raise JobError("this program is run by `smpi calibrate`")
    print(measure(spec, orders, Meter()).to_json(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
