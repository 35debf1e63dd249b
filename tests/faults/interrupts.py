"""Signal handlers that raise at random times inside MPI: no message is lost or repeated.

    python -m tests.faults.interrupts --channel queue --interrupts 10000 --seed 1

runs a job of two ranks.  Both send each other numbered messages of all sizes and receive them by all the calls there are,
while a timer interrupts them after random microseconds with an exception, which the program catches before it goes on.  What a
rank has sent is read from its endpoint, since a send that is interrupted may or may not have begun.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
CHANNELS = ("direct", "queue", "object", "hybrid")
LONGEST_S = {"direct": 0.001}  # between two interrupts; elsewhere a request takes longer
OTHERS_LONGEST_S = 0.01
NOTHING = (1 << 64) - 1  # in the buffer, where no message has been received into it
AHEAD = 20  # messages that a rank may have sent and not been answered
BODIES = (0, 10, 3_000, 70_000, 400_000)
GIVE_UP_S = 300.0


class Interrupt(Exception):
    """What the handler raises."""


class Peer:
    """One rank's half of the exchange."""

    def __init__(self, comm: Any, chance: random.Random, longest_s: float) -> None:
        self.comm, self.other, self.chance = comm, 1 - comm.rank, chance
        self.sent, self.received, self.interrupts = 0, 0, 0
        self._longest_s = longest_s
        self._buffer = np.zeros(max(BODIES) + 8, np.uint8)
        self._request: Any = None
        self._message: Any = None
        self._armed = False
        signal.signal(signal.SIGALRM, self._raise)

    def _raise(self, number: int, frame: Any) -> None:
        if (
            self._armed
        ):  # else the step has just ended, and the program is not in its `try` any more
            self.interrupts += 1
            raise Interrupt

    def _interrupted(self, step: Callable[[], None]) -> None:
        """Do a step with an interrupt on its way."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, self.chance.uniform(1e-6, self._longest_s))
            step()
            self._armed = False
        except Interrupt:
            self._armed = False

    # --- what can be interrupted: afterwards it has happened, or it has not

    def send(self) -> None:
        """The next message, by one of the ways to send."""
        number = self.sent
        data = np.zeros(8 + BODIES[number % len(BODIES)], np.uint8)
        data[:8].view("<u8")[0] = number
        way = (self.comm.Send, lambda *words: self.comm.Isend(*words).Wait())[number % 2]
        self._interrupted(lambda: way(data, self.other))

    def receive(self) -> None:
        """The next message, by one of the ways to receive; it is in the buffer, or nothing was taken."""
        head = self._buffer[:8].view("<u8")
        if self._request is None and self._message is None:
            head[0] = NOTHING
        ways = (self._recv, self._irecv, self._mprobe, self._iprobe)
        way = ways[self.received % len(ways)]
        self._interrupted(way)
        if self._request or self._message:
            return
        self._request = self._message = None
        if head[0] != NOTHING:
            assert head[0] == self.received, f"message {head[0]} came for {self.received}"
            self.received += 1

    def _recv(self) -> None:
        self.comm.Recv(self._buffer, self.other)

    def _iprobe(self) -> None:
        if self.comm.Iprobe(self.other):
            self.comm.Recv(self._buffer, self.other)

    def _irecv(self) -> None:
        if self._request is None:
            self._request = self.comm.Irecv(self._buffer, self.other)
        self._request.Wait()

    def _mprobe(self) -> None:
        if self._message is None:
            self._message = self.comm.Mprobe(self.other)
        self._message.Recv(self._buffer)


def rank(interrupts: int, seed: int) -> None:
    """What each rank does."""
    from serverless_mpi import MPI
    from serverless_mpi.runtime import get_runtime

    comm, control = MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()
    runtime = get_runtime()
    chance = random.Random(f"{seed}/{comm.rank}")
    peer = Peer(comm, chance, LONGEST_S.get(runtime.spec.channel, OTHERS_LONGEST_S))
    context = comm._context
    last = [False, False]  # whether this rank, and the other, has had its interrupts
    rounds = 0
    while not all(last):
        rounds += 1
        goal = peer.sent + chance.randrange(1, AHEAD)
        while peer.sent < goal:
            peer.send()
            state = runtime._endpoint._contexts.get(context)
            peer.sent = 0 if state is None else state.sent.get(peer.other, 0)
        # without interrupts: how many there are, and whether more are wanted
        last[0] = peer.interrupts >= interrupts
        theirs, last[1] = control.sendrecv((peer.sent, last[0]), peer.other, source=peer.other)
        while peer.received < theirs:
            peer.receive()
    signal.setitimer(signal.ITIMER_REAL, 0)  # at the interpreter's end nobody handles it
    print(
        f"rank {comm.rank}: {peer.interrupts} interrupts, {peer.received} messages, {rounds} rounds"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the exchange on some channels; returns an exit code."""
    parser = argparse.ArgumentParser(prog="tests.faults.interrupts", description=__doc__)
    parser.add_argument("--channel", choices=CHANNELS, action="append")
    parser.add_argument("--interrupts", type=int, default=10_000, help="of each rank")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    code = 0
    for channel in options.channel or CHANNELS:
        began = time.monotonic()
        done = job(channel, options.interrupts, options.seed)
        print(f"{channel}, {time.monotonic() - began:.0f} s:\n{done.stdout}{done.stderr}", end="")
        code = code or done.returncode
    return code


def job(channel: str, interrupts: int, seed: int) -> subprocess.CompletedProcess[str]:
    """The exchange on one channel."""
    words = ["-n", "2", "--channel", channel, "--stats", "none", "--deadlock", "0"]
    limit = ["--timeout", str(GIVE_UP_S + interrupts / 5)]
    program = ["-m", "tests.faults.interrupts", "rank", str(interrupts), str(seed)]
    return subprocess.run(
        [sys.executable, "-m", "serverless_mpi.launch", *words, *limit, *program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
