"""object: 64 MB from one rank to seven, compared with the client alone: a PUT and parallel GETs.

Both take turns in the same processes on the same emulator. Bandwidth is the payload over the time
until every rank has it; memory is the growth of a process's peak over the transfer, in payloads.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks.interleave import calm, ratio
from benchmarks.pingpong import job
from benchmarks.table import Row, render

RANKS = 8
NBYTES = 64 << 20
ROUNDS = 5


def _status(field: str) -> int:
    """Bytes, from what the kernel says of this process."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _reset_peak() -> int:
    """Begin a new peak at what is in memory now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def rank() -> None:
    """What each rank does: bytes per second by turn, and memory, printed by rank 0."""
    import numpy as np

    from serverless_mpi import MPI
    from serverless_mpi.aws.credentials import Credentials
    from serverless_mpi.aws.http import Client
    from serverless_mpi.aws.s3 import PART_BYTES, S3
    from serverless_mpi.channels.object import EMULATOR_PAUSES_S
    from serverless_mpi.metering import Meter
    from serverless_mpi.runtime import get_runtime

    calm()
    comm = MPI.COMM_WORLD
    spec = get_runtime().spec
    s3 = S3(
        Client("s3", spec.region, spec.endpoint, Credentials(spec.endpoint), Meter()),
        spec.settings["bucket"],
    )
    payload = np.ones(NBYTES, np.uint8) if comm.rank == 0 else None
    array = np.ones(NBYTES, np.uint8) if payload is None else payload
    pool = ThreadPoolExecutor(8)
    memory: dict[str, list[float]] = {"bcast": [], "Bcast": []}

    def shim(number: int) -> None:
        before = _reset_peak()
        got = comm.bcast(payload, 0)
        memory["bcast"].append((_status("VmHWM") - before) / NBYTES)
        assert got.nbytes == NBYTES

    def in_place(number: int) -> None:
        before = _reset_peak()
        comm.Bcast(array, 0)
        memory["Bcast"].append((_status("VmHWM") - before) / NBYTES)

    def bare(number: int) -> None:
        key = f"bare/{number}"
        if payload is not None:
            s3.put(key, (payload.data.cast("B"),))
            return
        pause, longest = EMULATOR_PAUSES_S.first, EMULATOR_PAUSES_S.limit
        whole = np.empty(NBYTES, np.uint8).data.cast("B")
        while s3.get(key, 0, PART_BYTES, whole[:PART_BYTES]) is None:
            time.sleep(pause)
            pause = min(2 * pause, longest)
        others = range(PART_BYTES, NBYTES, PART_BYTES)
        list(pool.map(lambda at: s3.get(key, at, PART_BYTES, whole[at : at + PART_BYTES]), others))

    def turn(transfer: Callable[[int], None], number: int) -> float:
        comm.Barrier()
        began = time.time()  # one clock for all processes
        transfer(number)
        ended = time.time()
        ends = comm.gather(ended, 0)
        start = comm.bcast(began, 0)
        return NBYTES / (max(ends) - start) if ends else 0.0

    found: dict[str, list[float]] = {"shim": [], "bare": []}
    for number in range(ROUNDS):
        found["shim"].append(turn(shim, number))
        found["bare"].append(turn(bare, number))
        turn(in_place, number)
    peaks = comm.gather({call: statistics.median(taken) for call, taken in memory.items()}, 0)
    if peaks:
        s3.delete([f"bare/{number}" for number in range(ROUNDS)])
        grown = {call: [peaks[0][call], max(peak[call] for peak in peaks[1:])] for call in memory}
        print(json.dumps({**found, "memory": grown}))


def run() -> list[Row]:
    """Bandwidth, its ratio, and memory."""
    found = job("benchmarks.object_fan", RANKS, "object")
    middle, spread = ratio(found["shim"], found["bare"])
    rate = statistics.median(found["shim"]) / 1e6
    reason = "eight ranks and the emulator share the cores on which the ranks digest what they send and receive"
    what = f"object, 64 MB from one rank to {RANKS - 1} / the bare client"
    rows = [
        Row(
            what,
            rate,
            "MB/s",
            middle,
            spread,
            ">= 0.90x",
            middle >= 0.9,
            "" if middle >= 0.9 else reason,
        )
    ]
    for call, grown in found["memory"].items():
        for who, peak in zip(("the sender", "a receiver"), grown, strict=True):
            rows.append(
                Row(
                    f"object, {call}: growth of {who}'s peak memory",
                    peak,
                    "payloads",
                    None,
                    "",
                    "<= 1.2",
                    peak <= 1.2,
                )
            )
    return rows


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
