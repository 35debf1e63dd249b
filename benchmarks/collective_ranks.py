"""One rank of benchmarks/collectives.py: times every algorithm of the table, whatever would be
chosen.

All ranks begin a call at the same moment of the machine's clock; a call has taken as long as its
last rank. Arguments: a JSON object with `operations`, `sizes` (bytes of a rank's whole vector),
`reps`, `budget_s`, `out`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from serverless_mpi import MPI
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm, Facts, select
from serverless_mpi.collectives.operations import example_calls
from serverless_mpi.collectives.steps import Elementwise

DIVIDED = ("gather", "scatter", "allgather", "alltoall")  # a blob is the P-th part of the vector
HOPELESS = (
    5.0  # an algorithm that the formula puts so far behind the best is not tried with large vectors
)
SLOW_S = 0.5  # a call that takes longer is not repeated so often


def blob_bytes(operation: str, size: int, nbytes: int) -> int:
    """Length of one blob, of whole doubles."""
    if operation == "barrier":
        return 0
    return max(8, nbytes // size // 8 * 8) if operation in DIVIDED else nbytes


def add(a: memoryview, b: memoryview) -> memoryview:
    return memoryview(np.add(np.frombuffer(a, np.float64), np.frombuffer(b, np.float64))).cast("B")


def timed(comm: Any, algorithm: Algorithm, blob: memoryview, margin: list[float]) -> float:
    """Seconds from the common beginning until the last rank was done."""
    runtime = comm._runtime
    while True:
        start = comm.bcast(time.monotonic() + margin[0])
        late = time.monotonic() > start
        while (left := start - time.monotonic()) > 0:
            time.sleep(left)
        calls = example_calls(
            algorithm.operation, algorithm.generator, comm.size, blob, Elementwise(add, 8)
        )
        steps = calls[comm.rank]
        running = runtime.icollective(comm._context, next(comm._calls), steps, comm._ranks)
        runtime.wait([running])
        ended = time.monotonic()
        if running.error is not None:
            raise running.error
        facts = comm.allgather((late, ended))
        if not any(late for late, _ in facts):
            return max(ended for _, ended in facts) - start
        margin[0] = min(2.0, 1.5 * margin[0])


def main(wish: dict[str, Any]) -> None:
    comm = MPI.COMM_WORLD
    margin = [0.003 + 0.002 * comm.size]
    rows = []
    for operation in wish["operations"]:
        for nbytes in wish["sizes"]:
            if operation == "barrier" and nbytes != wish["sizes"][0]:
                continue
            blob = memoryview(bytearray(blob_bytes(operation, comm.size, nbytes)))
            facts = Facts(comm.size, blob.nbytes, comm._runtime.figures)
            algorithms = [
                row
                for row in ALGORITHMS[operation]
                if row.formula is not None and row.condition(facts)
            ]
            best = min(algorithm.cost(facts).seconds for algorithm in algorithms)
            taken: dict[Algorithm, list[float]] = {
                algorithm: []
                for algorithm in algorithms
                if nbytes <= 65536 or algorithm.cost(facts).seconds <= HOPELESS * best
            }
            began = time.monotonic()
            for turn in range(wish["reps"]):
                for (
                    algorithm,
                    samples,
                ) in taken.items():  # in turns, so that a busy moment of the machine meets all
                    samples.append(timed(comm, algorithm, blob, margin))
                if comm.bcast(time.monotonic() - began > wish["budget_s"]):
                    break
            for algorithm, samples in taken.items():
                stated = algorithm.cost(facts)
                rows.append(
                    {
                        "operation": operation,
                        "nbytes": nbytes,
                        "ranks": comm.size,
                        "blob": blob.nbytes,
                        "algorithm": algorithm.name,
                        "seconds": samples,
                        "predicted": stated.seconds,
                        "usd": stated.usd,
                        "shape": [stated.rounds, stated.puts, stated.messages],
                        "chosen": select(operation, facts) is algorithm,
                    }
                )
    if comm.rank == 0:
        with open(wish["out"], "w") as file:
            json.dump(rows, file)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
