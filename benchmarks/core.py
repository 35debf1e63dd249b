"""core: time of a frame from its send to the end of its receive, without a channel.

With 1 to 10,000 unexpected messages queued, and between 2 to 1,000 peers.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.interleave import in_turns
from benchmarks.table import Row, render, spread
from serverless_mpi.core.endpoint import Endpoint

UNEXPECTED = (1, 100, 10_000)
PEERS = (2, 30, 1_000)
FRAMES = 2000  # of one measurement
ROUNDS = 7
NBYTES = 8
LIMIT = 15e-6
JOB, KEY = bytes(8), bytes(32)


class Bench:
    """A receiver with `unexpected` messages, and senders 1 .. peers - 1."""

    def __init__(self, peers: int, unexpected: int) -> None:
        self.receiver = Endpoint(0, JOB, KEY, 1 << 20, 1 << 40)
        self.senders = [Endpoint(rank, JOB, KEY, 1 << 20, 1 << 40) for rank in range(1, peers)]
        self.data = (memoryview(bytes(NBYTES)),)
        for number in range(unexpected):
            self._deliver(number % len(self.senders), 1 + number % 50)
        for place in range(len(self.senders)):  # every stream has begun
            self.receiver.post(7, place + 1, 0)
            self._deliver(place, 0)

    def _deliver(self, place: int, tag: int) -> None:
        for parcel in self.senders[place].send(7, 0, tag, self.data):
            self.receiver.receive(memoryview(bytearray(b"".join(parcel.parts))), 0.0)

    def frame(self) -> float:
        """Seconds of one frame."""
        count = len(self.senders)
        began = time.perf_counter()
        for number in range(FRAMES):
            place = number % count
            receive = self.receiver.post(7, place + 1, 0)
            self._deliver(place, 0)
            if not receive.done:
                raise AssertionError("a message was not received")
        return (time.perf_counter() - began) / FRAMES


def run() -> list[Row]:
    """Microseconds a frame, and the ratio to the smallest case."""
    benches = {f"{count:,} unexpected messages": Bench(2, count) for count in UNEXPECTED}
    benches |= {f"{count:,} peers": Bench(count, 0) for count in PEERS}
    taken = in_turns({name: bench.frame for name, bench in benches.items()}, ROUNDS)
    rows = []
    for names in (list(benches)[: len(UNEXPECTED)], list(benches)[len(UNEXPECTED) :]):
        least = statistics.median(taken[names[0]])
        for name in names:
            seconds = statistics.median(taken[name])
            what = f"core, a frame of {NBYTES} B beside {name} / beside {names[0]}"
            rows.append(
                Row(
                    what,
                    seconds * 1e6,
                    "us",
                    seconds / least,
                    spread(taken[name]),
                    "<= 15 us",
                    seconds <= LIMIT,
                )
            )
    return rows


if __name__ == "__main__":
    print(render(run()))
