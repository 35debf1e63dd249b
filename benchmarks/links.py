"""Channel routed between two ranks behind NATs, beside a raw TCP socket through the same NATs.

The ranks are in network namespaces (tests/links/laboratory.py), which need root and iptables. All
variants take turns in the same two processes. The raw socket of the bandwidth row encrypts with
the same library, in records of the same length.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.interleave import calm, ratio
from benchmarks.table import Row, render, spread
from serverless_mpi.channels.link import HEADER, RECORD_BYTES

ROUNDS = 15
REPEAT = 200  # round trips of 8 B of one turn
LARGE = 16 << 20
TIMEOUT_S = 300.0
ROOT = Path(__file__).resolve().parent.parent


def connect(own: tuple[str, int], peer: tuple[str, int]) -> socket.socket:
    """Return a socket made by a simultaneous open of both ranks."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", own[1]))
        sock.settimeout(1.0)
        try:
            sock.connect(peer)
        except OSError:
            sock.close()
            continue
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    raise TimeoutError(f"no connection to {peer}")


class Raw:
    """A socket as a hand-written program would use it, encrypted or not."""

    def __init__(self, sock: socket.socket) -> None:
        from serverless_mpi.channels.link import SealedRecords

        self._sock = sock
        self._records = SealedRecords(b"k" * 32, b"k" * 32)
        self._step = RECORD_BYTES
        self._buffer = memoryview(bytearray(LARGE + (1 << 20)))

    def send(self, data: memoryview) -> None:
        self._sock.sendall(data)

    def receive(self, nbytes: int) -> None:
        got = 0
        while got < nbytes:
            got += self._sock.recv_into(self._buffer[got:nbytes])

    def send_sealed(self, data: memoryview) -> None:
        for start in range(0, data.nbytes, self._step):
            piece = data[start : start + self._step]
            self._sock.sendmsg(self._records.write(0, (piece,), piece.nbytes))

    def receive_sealed(self, target: memoryview) -> None:
        start = 0
        while start < target.nbytes:
            self.receive(HEADER.size)
            length, kind = HEADER.unpack_from(self._buffer)
            self.receive(length)
            end = start + length - self._records.overhead
            self._records.read(kind, self._buffer[:length], target[start:end])
            start = end


def rank() -> None:
    """What each rank does: seconds of each variant, printed by rank 0."""
    import numpy as np

    from serverless_mpi import MPI
    from serverless_mpi.channels.linker import ask_echo
    from serverless_mpi.runtime import get_runtime

    calm()
    comm = MPI.COMM_WORLD
    other = 1 - comm.rank
    own = (ask_echo(get_runtime().spec.settings["echo"]), 21_000 + comm.rank)
    raw = Raw(connect(own, comm.sendrecv(own, other, source=other)))
    small, large = np.zeros(8, np.uint8), np.zeros(LARGE, np.uint8)
    sending, receiving = memoryview(large), memoryview(np.empty(LARGE, np.uint8))
    for _ in range(100):  # until the link is made
        comm.Sendrecv(small, other, recvbuf=small.copy(), source=other)

    def ping(send: Callable[[], object], receive: Callable[[], object], repeat: int) -> float:
        comm.Barrier()
        began = time.perf_counter()
        for _ in range(repeat):
            for step in (send, receive) if comm.rank == 0 else (receive, send):
                step()
        return (time.perf_counter() - began) / repeat / 2

    variants: dict[str, Callable[[], float]] = {
        "link 8": lambda: ping(
            lambda: comm.Send(small, other), lambda: comm.Recv(small, other), REPEAT
        ),
        "raw 8": lambda: ping(lambda: raw.send(memoryview(small)), lambda: raw.receive(8), REPEAT),
        "link 16": lambda: ping(
            lambda: comm.Send(large, other), lambda: comm.Recv(large, other), 1
        ),
        "raw 16": lambda: ping(
            lambda: raw.send_sealed(sending), lambda: raw.receive_sealed(receiving), 1
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            seconds[name].append(variant())
    comm.Barrier()
    if comm.rank == 0:
        print(json.dumps(seconds), flush=True)


def run() -> list[Row]:
    """Measure in the laboratory."""
    from tests.links import laboratory

    reason = laboratory.missing()
    if reason:
        return [Row("links", 0.0, "", reason=f"not measured: {reason}")]
    program = ["--", "-c", "from benchmarks.links import rank; rank()"]
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", sys.executable]
    command += ["-m", "tests.links.laboratory", "--nat", "cone", "-n", "2", *program]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    if job.returncode:
        raise RuntimeError(job.stderr)
    seconds: dict[str, list[float]] = json.loads(job.stdout.splitlines()[-1])
    more = [1e6 * (a - b) for a, b in zip(seconds["link 8"], seconds["raw 8"], strict=True)]
    speed, uncertain = ratio(seconds["raw 16"], seconds["link 16"])
    over = statistics.median(more)
    return [
        Row(
            "link of 8 B one way, and the raw socket's",
            statistics.median(seconds["link 8"]) * 1e6,
            "us",
            ratio(seconds["link 8"], seconds["raw 8"])[0],
            spread(seconds["link 8"]),
        ),
        Row(
            "link of 8 B one way, more than the raw socket",
            over,
            "us",
            None,
            spread(more),
            "<= 60 us",
            over <= 60,
        ),
        Row(
            "link of 16 MB, bandwidth to the encrypted raw socket's",
            LARGE / statistics.median(seconds["link 16"]) / 1e6,
            "MB/s",
            speed,
            uncertain,
            ">= 0.6",
            speed >= 0.6,
        ),
    ]


if __name__ == "__main__":
    print(render(run()))
