"""Ping-pong of two ranks over queue and hybrid, beside the same loop written by hand with the lean
client, and with boto3.

All three take turns in the same two processes, on the same emulator, with the same polling; the
loops by hand delete what they received ten at a time, as the shim does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.interleave import calm, ratio
from benchmarks.table import Row, render
from serverless_mpi.launch.emulator import Emulator

SIZES = {1 << 10: "1 KB", 100_000: "100 KB"}
REPEAT = 20  # round trips of one turn
ROUNDS = 21
TIMEOUT_S = 300.0
ROOT = Path(__file__).resolve().parent.parent


class ByHand:
    """A rank's end of a loop over two queues: send to the other one, poll one's own."""

    def __init__(
        self,
        mine: str,
        theirs: str,
        send: Callable[[str, bytes], Any],
        receive: Callable[[str], list[str]],
        delete: Callable[[str, list[str]], Any],
    ) -> None:
        self._mine, self._theirs = mine, theirs
        self._send, self._receive, self._delete = send, receive, delete
        self._handles: list[str] = []

    def send(self, payload: bytes) -> None:
        """One message."""
        self._send(self._theirs, payload)

    def receive(self) -> None:
        """Poll until one has come."""
        while not (handles := self._receive(self._mine)):
            pass
        self._handles += handles
        if len(self._handles) >= 10:
            self._delete(self._mine, self._handles[:10])
            del self._handles[:10]


def lean(spec: Any, rank: int) -> ByHand:
    """With this package's client."""
    from serverless_mpi.aws.credentials import Credentials
    from serverless_mpi.aws.http import Client
    from serverless_mpi.aws.sqs import Sqs
    from serverless_mpi.metering import Meter

    sqs = Sqs(Client("sqs", spec.region, spec.endpoint, Credentials(spec.endpoint), Meter()))
    queues = json.loads(spec.settings["queues"])
    return ByHand(
        queues[rank],
        queues[1 - rank],
        lambda queue, payload: sqs.send(queue, [payload]),
        lambda queue: [one.handle for one in sqs.receive(queue, 20)],
        sqs.delete,
    )


def boto(spec: Any, rank: int) -> ByHand:
    """With boto3's."""
    from serverless_mpi.aws import control

    sqs = control.client("sqs", spec.endpoint, spec.region)
    queues = json.loads(spec.settings["queues"])

    def send(queue: str, payload: bytes) -> None:
        attribute = {"f": {"DataType": "Binary", "BinaryValue": payload}}
        sqs.send_message_batch(
            QueueUrl=queue,
            Entries=[{"Id": "0", "MessageBody": ".", "MessageAttributes": attribute}],
        )

    def receive(queue: str) -> list[str]:
        answer = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=20, MessageAttributeNames=["f"]
        )
        return [one["ReceiptHandle"] for one in answer.get("Messages") or []]

    def delete(queue: str, handles: list[str]) -> None:
        entries = [
            {"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(handles)
        ]
        sqs.delete_message_batch(QueueUrl=queue, Entries=entries)

    return ByHand(queues[rank], queues[1 - rank], send, receive, delete)


def rank() -> None:
    """What each rank does: seconds a round trip of each loop, by size, printed by rank 0."""
    import numpy as np

    from serverless_mpi import MPI
    from serverless_mpi.aws import control
    from serverless_mpi.job import JobSpec
    from serverless_mpi.runtime import get_runtime

    calm()
    comm = MPI.COMM_WORLD
    mine = get_runtime().spec
    made = None
    if comm.rank == 0:
        made = JobSpec.new(2, "queue", endpoint=mine.endpoint, region=mine.region)
        made = replace(made, settings=control.make_queues(made))
    spec = comm.bcast(made, 0)
    loops = {"lean": lean(spec, comm.rank), "boto3": boto(spec, comm.rank)}
    found: dict[str, dict[int, list[float]]] = {
        name: {n: [] for n in SIZES} for name in ("shim", *loops)
    }

    def turn(send: Callable[[], None], receive: Callable[[], None]) -> float:
        comm.Barrier()
        taken = []
        for _ in range(REPEAT):
            began = time.perf_counter()
            for step in (send, receive) if comm.rank == 0 else (receive, send):
                step()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    for nbytes in SIZES:
        array = np.zeros(nbytes, np.uint8)
        payload = bytes(nbytes + 84)  # the frame's header is a message's, too
        for _ in range(ROUNDS):
            other = 1 - comm.rank
            found["shim"][nbytes].append(
                turn(lambda: comm.Send(array, other), lambda: comm.Recv(array, other))
            )
            for name, loop in loops.items():
                found[name][nbytes].append(turn(lambda: loop.send(payload), loop.receive))
    comm.Barrier()
    if comm.rank == 0:
        control.remove_queues(spec)
        print(json.dumps(found))


def job(module: str, ranks: int, channel: str, *words: str) -> Any:
    """The JSON that rank 0 of a benchmark's job prints last."""
    with tempfile.TemporaryDirectory() as folder, Emulator(folder) as emulator:
        calm(emulator.pid)
        launcher = [
            sys.executable,
            "-m",
            "serverless_mpi.launch",
            "-n",
            str(ranks),
            "--channel",
            channel,
        ]
        done = subprocess.run(
            [
                *launcher,
                "--stats",
                "none",
                "--endpoint",
                emulator.url,
                "-m",
                module,
                "rank",
                *words,
            ],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=ROOT,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run() -> list[Row]:
    """A round trip, and its ratios."""
    rows = []
    for channel in ("queue", "hybrid"):
        found = job("benchmarks.pingpong", 2, channel)
        for nbytes, label in SIZES.items():
            times = {name: by_size[str(nbytes)] for name, by_size in found.items()}
            for peer, most in (("lean", 1.10), ("boto3", 0.5)):
                middle, spread = ratio(times["shim"], times[peer])
                what = f"{channel}, round trip of {label} / by hand with {'the lean client' if peer == 'lean' else 'boto3'}"
                milliseconds = statistics.median(times["shim"]) * 1e3
                reason = ""
                if middle > most and peer == "boto3":
                    floor, _ = ratio(times["lean"], times["boto3"])
                    reason = f"by hand with the lean client it is {floor:.2f}x boto3's: the rest is the emulator's own time"
                elif middle > most:
                    reason = "the shim's own CPU beside a busy emulator's; see the spread"
                rows.append(
                    Row(
                        what,
                        milliseconds,
                        "ms",
                        middle,
                        spread,
                        f"<= {most:.2f}x",
                        middle <= most,
                        reason,
                    )
                )
    return rows


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
