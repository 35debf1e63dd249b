"""Programs whose results are known; faults must not change them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.runtime import Runtime
from tests.harness import on_each

GIVE_UP_S = 100.0  # only reached by a failure


def order(comm: Intracomm) -> None:
    """Messages of all sizes to everybody, received by wildcards: each sender's in its order."""
    count, size = 6, comm.size
    chance = random.Random(comm.rank)
    requests = []
    for number in range(count):
        for dest in range(size):
            if dest != comm.rank:
                body = bytes([number]) * chance.choice((0, 10, 1000, 200_000))
                requests.append(comm.isend((comm.rank, number, body), dest, number % 3))
    seen = dict.fromkeys(range(size), 0)
    for _ in range(count * (size - 1)):
        source, number, body = comm.recv(source=ANY_SOURCE, tag=ANY_TAG)
        assert number == seen[source] and set(body) <= {number}
        seen[source] += 1
    for request in requests:
        request.wait()


def together(comm: Intracomm) -> None:
    """Collectives of small and large data, one after the other."""
    size, rank = comm.size, comm.rank
    for length in (1, 50_000):
        total = np.zeros(length)
        comm.Allreduce(np.full(length, rank + 1.0), total)
        assert (total == size * (size + 1) / 2).all()
        assert comm.bcast("x" * length if rank == 1 else None, 1) == "x" * length
        crossed = comm.alltoall([(rank, dest, length) for dest in range(size)])
        assert crossed == [(source, rank, length) for source in range(size)]
        gathered = comm.gather(rank * length, 0)
        assert gathered == ([r * length for r in range(size)] if rank == 0 else None)
    comm.barrier()


PROGRAMS: Sequence[Callable[[Intracomm], None]] = (order, together)


def run(runtimes: Sequence[Runtime], program: Callable[[Intracomm], Any]) -> None:
    """Run a program on every rank, each a thread; raises what the first failing one raised."""
    on_each(runtimes, program, GIVE_UP_S)
