"""calls: Python calls of common calls, counted, and their times on `direct` beside MPICH's.

A call is one entry of a Python function, of whatever thread of the rank; calls into C do not
count.  Counting ends when the frame is handed to the operating system, to a ring of `direct`, or,
of whole operations, when they return.  Every count is of the tenth call of its kind: imports,
caches and connections are there.  Counts show a regression without a clock.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np

from benchmarks import calls_timed
from benchmarks.stub_server import server
from benchmarks.table import Row
from serverless_mpi import channels
from serverless_mpi.api.intracomm import world_of
from serverless_mpi.job import JobSpec
from serverless_mpi.runtime import Runtime

WARM = 9
ALLREDUCE_CALLS, SEND_CALLS = 60, 45  # targets
# most calls of a whole operation: what it takes now
WHOLE = {"Send": 16, "Recv": 29, "Irecv": 21, "Isend": 21, "Wait of the Irecv": 32}
LEAVES = ("sendmsg", "sendall", "send")  # C methods of a socket


class Counting:
    """Counts Python calls of every thread that it is installed in, until the first byte leaves."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.result = 0
        self.counting = False
        self.left = threading.Lock()  # held until a byte has left; waiting for it is no Python call
        self.left.acquire()
        self.on_left: Callable[[], None] = lambda: None

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take an event of sys.setprofile."""
        if not self.counting:
            return
        if event == "call":
            code = frame.f_code
            self.calls[f"{code.co_filename.rsplit('/', 2)[-1]}:{code.co_qualname}"] += 1
        elif event == "c_call" and argument.__name__ in LEAVES:
            if isinstance(argument.__self__, socket.socket):
                self.counting = False
                self.left.release()
                self.on_left()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install it in this thread and in threads that start meanwhile."""
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def count(self, call: Callable[[], Any], idle: Callable[[], bool] = lambda: True) -> int:
        """Return the Python calls that `call` makes before a byte leaves; between calls wait until
        `idle`.
        """
        for _ in range(WARM):
            call()
            while not idle():
                time.sleep(0.001)
        self.calls.clear()
        self.counting = True
        call()
        assert self.left.acquire(timeout=10.0), "no byte left"
        return self.calls.total() - 1  # without `call` itself


def allreduce_calls() -> Counting:
    """Count `Allreduce` of 8 KB between two ranks on `direct`."""
    spec = JobSpec.new(2, "direct")
    spec = replace(spec, settings=channels.load("direct").provision(spec))
    counting = Counting()
    array, result = np.ones(1024), np.empty(1024)
    go_on = threading.Event()
    counting.on_left = go_on.set

    def other() -> None:
        comm = world_of(Runtime(spec.with_rank(1)))
        for call in range(WARM + 1):
            if call == WARM:  # so that nothing of this rank is there when the other one counts
                go_on.wait(10.0)
            comm.Allreduce(array, np.empty(1024))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    runtime = Runtime(spec.with_rank(0))
    comm = world_of(runtime)
    with counting.installed():
        counting.result = counting.count(lambda: comm.Allreduce(array, result))
    thread.join()
    return counting


def send_calls() -> Counting:
    """Count `send` of a small object on `hybrid`, the sender thread's calls included."""
    answer = b'{"Successful": [{"Id": "0"}]}'
    counting = Counting()
    with server(answer, "application/x-amz-json-1.0") as url, counting.installed():
        queues = f'["{url}/q/0", "{url}/q/1"]'
        settings = {"queues": queues, "topics": f'["{url}/t"]', "bucket": "bucket"}
        runtime = Runtime(JobSpec.new(2, "hybrid", endpoint=url, settings=settings))
        runtime._send_queue.serial = False  # as on AWS, where the sender thread puts
        comm = world_of(runtime)
        outgoing = runtime._send_queue

        def idle() -> bool:
            return not outgoing.queued and not outgoing.putting

        counting.result = counting.count(lambda: comm.send({"a": 1}, 1), idle)
    return counting


def operation_calls() -> dict[str, int]:
    """Count whole calls on `direct`, 8 bytes between two ranks of one thread."""
    spec = JobSpec.new(2, "direct")
    spec = replace(spec, settings=channels.load("direct").provision(spec))
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(2)]
    sender, receiver = (world_of(runtime) for runtime in runtimes)
    array, into = np.ones(1), np.empty(1)
    requests: list[Any] = []
    turn: dict[str, Callable[[], Any]] = {
        "Send": lambda: sender.Send(array, 1),
        "Recv": lambda: receiver.Recv(into, 0),
        "Irecv": lambda: requests.append(receiver.Irecv(into, 0)),
        "Isend": lambda: sender.Isend(array, 1),
        "Wait of the Irecv": lambda: requests.pop().Wait(),
    }
    counts = {}
    for _ in range(WARM + 1):
        for name, call in turn.items():
            calls = 0

            def profile(frame: FrameType, event: str, argument: Any) -> None:
                nonlocal calls
                calls += event == "call"

            sys.setprofile(profile)
            call()
            sys.setprofile(None)
            counts[name] = calls - 1  # without `call` itself
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Runtime.finalize, runtimes))
    return counts


def run() -> list[Row]:
    """Count and compare with the targets; then time the calls."""
    counts = operation_calls()
    return [
        _row("Allreduce of 8 KB on direct", allreduce_calls().result, ALLREDUCE_CALLS),
        _row("send of a small object on hybrid, both threads", send_calls().result, SEND_CALLS),
        *(_row(f"{name} of 8 B on direct", counts[name], most) for name, most in WHOLE.items()),
        *(row for ranks in (2, 4) for row in calls_timed.rows(ranks)),
    ]


def _row(what: str, calls: int, most: int) -> Row:
    return Row(what, calls, "calls", target=f"{most}", met=calls <= most)


if __name__ == "__main__":
    for counted in (allreduce_calls(), send_calls()):
        print(counted.result)
        for name, times in counted.calls.most_common():
            print(f"{times:4} {name}")
