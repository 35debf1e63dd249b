"""files: 1 GB written and read collectively by 4 ranks, compared with MPICH's ROMIO on a local disk,
and with one process that uses the bare S3 client on the emulator.

Each turn opens, writes over what is there, closes, opens again, reads and closes; rank 0 times each direction between
barriers, with opening and closing. The disk is that of the temporary folder; nobody calls fsync, so
it is the system's cache that is measured, for both. The S3 part is smaller, because the emulator is
one thread, which both sides load fully: its ratio says what sharing the upload costs, and not what
the bandwidths of four functions add up to.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.datatypes import launchers
from benchmarks.table import Row, render, spread

RANKS = 4
LOCAL_BYTES = 1 << 30
S3_BYTES = 1 << 28
ROUNDS = 2  # jobs
TURNS = 3  # in a job, after one that warms up: the first write of a file waits for the disk
TIMEOUT_S = 600.0
LOCAL_TARGET, S3_TARGET = 1.5, 1.5
BUCKET = "smpi-benchmark"
ROOT = Path(__file__).resolve().parent.parent
# a program of its own, because MPICH's ranks have mpi4py and not this package
PROGRAM = """
import json, sys
import numpy as np
from mpi4py import MPI
comm = MPI.COMM_WORLD
name, nbytes = sys.argv[1], int(sys.argv[2]) // comm.size
data = np.full(nbytes, comm.rank + 1, np.uint8)
got = np.zeros(nbytes, np.uint8)
seconds = []
for write in (True, False) * int(sys.argv[3]):
    comm.Barrier()
    began = MPI.Wtime()
    mode = MPI.MODE_WRONLY | MPI.MODE_CREATE if write else MPI.MODE_RDONLY
    file = MPI.File.Open(comm, name, mode)
    if write:
        file.Write_at_all(comm.rank * nbytes, data)
    else:
        file.Read_at_all(comm.rank * nbytes, got)
    file.Close()
    comm.Barrier()
    seconds.append(MPI.Wtime() - began)
assert (got == data).all()
if comm.rank == 0:
    MPI.File.Delete(name)
    print(json.dumps(seconds[2:]))
"""


def _seconds(command: list[str], environ: dict[str, str]) -> list[tuple[float, float]]:
    """Seconds of writing and of reading, of each turn but the first."""
    done = subprocess.run(
        [*command, str(TURNS + 1)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env=environ,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    numbers = json.loads(done.stdout.splitlines()[-1])
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _bare(endpoint: str, nbytes: int) -> tuple[float, float]:
    """Seconds of one process that writes and reads the same with the client alone."""
    from serverless_mpi.aws.credentials import Credentials
    from serverless_mpi.aws.http import Client
    from serverless_mpi.aws.s3 import PART_BYTES, S3
    from serverless_mpi.aws.workers import Workers
    from serverless_mpi.metering import Meter

    client = Client("s3", "us-east-1", endpoint, Credentials(endpoint), Meter())
    s3, pool = S3(client, BUCKET), Workers(8)
    data = memoryview(bytearray(nbytes))
    starts = range(0, nbytes, PART_BYTES)
    began = time.perf_counter()
    s3.put_multipart("bare", [[data[start : start + PART_BYTES]] for start in starts], pool.each)
    written = time.perf_counter()
    pool.each(
        lambda start: s3.get("bare", start, PART_BYTES, data[start : start + PART_BYTES]), starts
    )
    read = time.perf_counter()
    s3.delete(["bare"])
    pool.close()
    client.close()
    return written - began, read - written


def _rows(
    what: str, ours: str, other: str, nbytes: int, times: dict[str, list[tuple[float, float]]],
    target: str, most: float, reason: str,
) -> list[Row]:  # fmt: skip
    """A row for each direction: bandwidth here, and our seconds over the other's."""
    rows = []
    for index, direction in enumerate(("write", "read")):
        mine = [pair[index] for pair in times[ours]]
        theirs = [pair[index] for pair in times[other]]
        value = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        met = value <= most
        rows.append(
            Row(
                f"{direction} {nbytes >> 20} MiB, {RANKS} ranks, {what}; time over {other}'s",
                nbytes / statistics.median(mine) / 1e6,
                "MB/s",
                value,
                spread([a / b for a, b in zip(mine, theirs, strict=True)]),
                target,
                met,
                "" if met else reason,
            )
        )
    return rows


def _local(folder: Path, program: str) -> list[Row]:
    commands = launchers(RANKS)
    if "mpich" not in commands:
        return []
    commands["mpich"].append(sys.executable)
    times: dict[str, list[tuple[float, float]]] = {"direct": [], "mpich": []}
    for _ in range(ROUNDS):
        for name in times:
            target = str(folder / f"{name}.bin")
            command = [*commands[name], program, target, str(LOCAL_BYTES)]
            times[name] += _seconds(command, {**os.environ})
    return _rows(
        "local disk", "direct", "mpich", LOCAL_BYTES, times,
        f"at most {LOCAL_TARGET}", LOCAL_TARGET, "see the spread: both wait for the same disk",
    )  # fmt: skip


def _on_s3(folder: Path, program: str) -> list[Row]:
    from serverless_mpi.aws import control
    from serverless_mpi.aws.credentials import DUMMY
    from serverless_mpi.launch.emulator import Emulator

    emulator = Emulator(folder)
    endpoint = emulator.start()
    try:
        control.client("s3", endpoint, "us-east-1").create_bucket(Bucket=BUCKET)
        environ = {
            **os.environ,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": DUMMY.access,
            "AWS_SECRET_ACCESS_KEY": DUMMY.secret,
        }
        passed = [word for name in environ if name.startswith("AWS_") for word in ("-x", name)]
        command = [
            *launchers(RANKS)["direct"],
            *passed,
            program,
            f"s3://{BUCKET}/ranks",
            str(S3_BYTES),
        ]
        times: dict[str, list[tuple[float, float]]] = {"ranks": [], "one process": []}
        for _ in range(ROUNDS):
            times["ranks"] += _seconds(command, environ)
            times["one process"] += [_bare(endpoint, S3_BYTES) for _ in range(TURNS)]
    finally:
        emulator.stop()
    return _rows(
        "S3 of the emulator", "ranks", "one process", S3_BYTES, times,
        f"at most 1/{S3_TARGET}", 1 / S3_TARGET,
        "the emulator is one thread, and the bound of both; S3 serves each rank by itself",
    )  # fmt: skip


def run() -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(PROGRAM)
        return [*_local(Path(folder), str(program)), *_on_s3(Path(folder), str(program))]


if __name__ == "__main__":
    print(render(run()))
