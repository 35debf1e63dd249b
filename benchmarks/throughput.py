"""Throughput of 8 ranks, all to all, 1 KB messages over the queue, beside a loop by hand with
batches of 10.

Both take turns in the same processes on the same emulator. By hand: a batch of ten for each other
rank, then polling until all have come, deleted ten at a time.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.interleave import calm, ratio
from benchmarks.pingpong import job
from benchmarks.table import Row, render

RANKS = 8
NBYTES = 1 << 10
WINDOW = 10  # messages to each other rank before they are waited for
REPEAT = 3  # windows of one turn
ROUNDS = 5


def rank() -> None:
    """What each rank does: messages per second of the whole job, by turn, printed by rank 0."""
    import numpy as np

    from serverless_mpi import MPI
    from serverless_mpi.aws import control
    from serverless_mpi.aws.credentials import Credentials
    from serverless_mpi.aws.http import Client
    from serverless_mpi.aws.sqs import Sqs
    from serverless_mpi.job import JobSpec
    from serverless_mpi.metering import Meter
    from serverless_mpi.runtime import get_runtime

    calm()
    comm = MPI.COMM_WORLD
    mine = get_runtime().spec
    made = None
    if comm.rank == 0:
        made = JobSpec.new(comm.size, "queue", endpoint=mine.endpoint, region=mine.region)
        made = replace(made, settings=control.make_queues(made))
    spec = comm.bcast(made, 0)
    sqs = Sqs(Client("sqs", spec.region, spec.endpoint, Credentials(spec.endpoint), Meter()))
    queues = json.loads(spec.settings["queues"])
    others = [(comm.rank + step) % comm.size for step in range(1, comm.size)]
    sent = np.zeros(NBYTES, np.uint8)
    into = np.zeros((len(others), WINDOW, NBYTES), np.uint8)
    payload = bytes(NBYTES + 84)

    def shim() -> None:
        requests = [
            comm.Irecv(into[place, k], other)
            for place, other in enumerate(others)
            for k in range(WINDOW)
        ]
        requests += [comm.Isend(sent, other) for other in others for _ in range(WINDOW)]
        MPI.Request.Waitall(requests)

    def by_hand() -> None:
        for other in others:
            sqs.send(queues[other], [payload] * WINDOW)
        left, handles = len(others) * WINDOW, []
        while left:
            received = sqs.receive(queues[comm.rank], 20)
            left -= len(received)
            handles += [one.handle for one in received]
            while len(handles) >= 10:
                sqs.delete(queues[comm.rank], handles[:10])
                del handles[:10]

    def turn(window: Callable[[], None]) -> float:
        comm.Barrier()
        began = time.perf_counter()
        for _ in range(REPEAT):
            window()
        comm.Barrier()
        return REPEAT * WINDOW * comm.size * len(others) / (time.perf_counter() - began)

    found: dict[str, list[float]] = {"shim": [], "by hand": []}
    for _ in range(ROUNDS):
        found["shim"].append(turn(shim))
        found["by hand"].append(turn(by_hand))
    comm.Barrier()
    if comm.rank == 0:
        control.remove_queues(spec)
        print(json.dumps(found))


def run() -> list[Row]:
    """Messages per second, and the ratio."""
    found = job("benchmarks.throughput", RANKS, "queue")
    middle, spread = ratio(found["shim"], found["by hand"])
    what = f"queue, {RANKS} ranks all to all, 1 KB / by hand in batches of 10"
    reason = "the requests are the same; what is left is the ranks' own CPU, on the cores that the emulator needs"
    return [
        Row(
            what,
            statistics.median(found["shim"]),
            "1/s",
            middle,
            spread,
            ">= 0.90x",
            middle >= 0.9,
            "" if middle >= 0.9 else reason,
        )
    ]


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
