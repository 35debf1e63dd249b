"""The four programs that run under faults. Each checks what it receives and counts what is missing.

A program calls `course.step()` between operations: there a fault of the process strikes its victim.  It makes calls
that a signal may interrupt by `course.patiently(call)`, which repeats the call until it ends by itself; only calls
that may be repeated are made so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serverless_mpi import MPI

Call = Callable[[], Any]


@dataclass
class Course:
    """What happens to one rank: where the fault strikes, and what the program found.

    lost, duplicated, wrong: messages by what the program received, not by what it sent.
    """

    seed: int
    rounds: int
    strike: Callable[[], None] = lambda: None
    strike_at: int = -1
    patiently: Callable[[Call], Any] = lambda call: call()
    steps: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    noise: Callable[[int], None] = field(default=lambda step: None)

    def step(self) -> None:
        """Between two operations."""
        if self.steps == self.strike_at:
            self.strike()
        self.noise(self.steps)
        self.steps += 1

    def check(self, right: Any) -> None:
        """Count a received message whose content is not right."""
        self.wrong += not right


def _content(seed: int, source: int, number: int, sizes: tuple[int, ...]) -> bytes:
    chance = random.Random(seed * 1_000_003 + source * 1009 + number)
    return chance.randbytes(chance.choice(sizes))


def ring(comm: Any, course: Course) -> None:
    """Messages to both neighbours, received by wildcards: each once, in order, with the right content."""
    rank, size, sizes = comm.rank, comm.size, (0, 10, 1000, 60_000)
    seen: dict[tuple[int, int], int] = {}
    status = MPI.Status()
    for number in range(course.rounds):
        course.step()
        requests = [
            comm.isend((rank, number, _content(course.seed, rank, number, sizes)), dest, tag)
            for dest, tag in (((rank + 1) % size, 1), ((rank - 1) % size, 2))
        ]
        for _ in range(2):
            course.patiently(lambda: comm.Probe(MPI.ANY_SOURCE, MPI.ANY_TAG, status))
            source, message, body = comm.recv(source=status.source, tag=status.tag)
            stream = (source, status.tag)
            expected = seen.get(stream, 0)
            if message < expected:
                course.duplicated += 1
            else:
                course.lost += message - expected
                seen[stream] = message + 1
            course.check(source == status.source)
            course.check(body == _content(course.seed, source, message, sizes))
        for request in requests:
            request.wait()
    course.lost += 2 * course.rounds - sum(seen.values())


def mix(comm: Any, course: Course) -> None:
    """Blocking and nonblocking collectives on communicators that are made and freed meanwhile."""
    size, rank = comm.size, comm.rank
    for number in range(course.rounds):
        course.step()
        twin = comm.Dup()
        part = comm.Split(rank % 2, -rank)
        total, message = np.zeros(500), np.full(2000, float(rank))
        first = twin.Iallreduce(np.full(500, rank + number, "d"), total)
        second = comm.Ibcast(message, number % size)
        crossed = comm.alltoall([(rank, dest, number) for dest in range(size)])
        course.check(crossed == [(source, rank, number) for source in range(size)])
        course.patiently(first.Wait)
        course.patiently(second.Wait)
        course.check((total == sum(range(size)) + number * size).all())
        course.check((message == number % size).all())
        members = [one for one in reversed(range(size)) if one % 2 == rank % 2]
        course.check(part.allgather(rank) == members)
        third = part.Ibarrier()
        gathered = comm.gather(rank * number, 0)
        course.check(gathered is None or gathered == [one * number for one in range(size)])
        course.patiently(third.Wait)
        part.Free()
        twin.Free()
    comm.Barrier()


def large(comm: Any, course: Course) -> None:
    """Arrays of megabytes: to a neighbour, from one to all, and their sum."""
    size, rank, length = comm.size, comm.rank, 400_000
    for number in range(max(2, course.rounds // 3)):
        course.step()
        own = np.arange(length, dtype="d") + 10 * rank + number
        come = np.zeros(length)
        receive = comm.Irecv(come, (rank - 1) % size, number)
        send = comm.Isend(own, (rank + 1) % size, number)
        course.patiently(receive.Wait)
        course.patiently(send.Wait)
        left = (rank - 1) % size
        course.check((come == np.arange(length) + 10 * left + number).all())
        course.step()
        shared = own.copy() if rank == number % size else np.zeros(length)
        comm.Bcast(shared, number % size)
        course.check((shared == np.arange(length) + 10 * (number % size) + number).all())
        total = np.zeros(length)
        comm.Allreduce(own, total)
        wanted = size * np.arange(length) + 10 * sum(range(size)) + size * number
        course.check((total == wanted).all())


def network(comm: Any, course: Course) -> None:
    """Inference of a small sparse network with random weights, against the serial kernel."""
    from serverless_mpi.inference import engine, networks, partition
    from serverless_mpi.sparse import serial_forward

    net = networks.random(128, 6, course.seed)
    owners = partition.make(net, comm.size, "greedy")
    parts = partition.build(net, owners, comm.rank)
    for number in range(max(2, course.rounds // 3)):
        course.step()
        chance = np.random.default_rng(course.seed + number)
        images = (chance.random((128, 40)) < 0.3).astype(np.float32)
        y, samples, _ = engine.infer(comm, parts, images[owners.rows(0, comm.rank)], net.bias)
        course.step()
        blocks = comm.gather((owners.rows(owners.layers, comm.rank), y))
        if comm.rank == 0:
            answer = np.empty((128, len(samples)), np.float32)
            for rows, block in blocks:
                answer[rows] = block
            whole = serial_forward(list(net), images, net.bias)
            right = np.flatnonzero((whole != 0).any(axis=0))
            course.check(np.array_equal(samples, right))
            course.check(np.array_equal(answer, whole[:, right]))


PROGRAMS: dict[str, Callable[[Any, Course], None]] = {
    "ring": ring,
    "mix": mix,
    "large": large,
    "dnn": network,
}
