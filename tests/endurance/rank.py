"""One rank of a long run: NAME COUNT.  It prints its resident memory for each tenth of the run."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serverless_mpi import MPI

SAMPLES = 10
LIBC = ctypes.CDLL(None)
BURST = 100  # messages before the receiver answers


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def messages(comm: Any, count: int) -> None:
    """Bursts of small messages, some of a few kilobytes, from rank 0 to rank 1, which answers each burst."""
    bodies = [bytes(size) for size in (10, 10, 10, 10, 200, 5000)]
    for number in range(max(1, count // (BURST + 1))):
        if comm.rank == 0:
            for place in range(BURST):
                comm.send((number, place, bodies[place % len(bodies)]), 1, place % 3)
            assert comm.recv(source=1) == number
        else:
            for place in range(BURST):
                message = comm.recv(source=0, tag=place % 3)
                assert message[:2] == (number, place)
            comm.send(number, 0)


def communicators(comm: Any, count: int) -> None:
    """Communicators made, used and freed: by Dup, each tenth by Split."""
    own, total = np.ones(1), np.zeros(1)
    for number in range(count):
        made = comm.Split(0, comm.rank) if number % 10 == 0 else comm.Dup()
        made.Allreduce(own, total)
        if comm.size > 1:
            right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            assert made.sendrecv(number, right, source=left) == number
        assert total[0] == comm.size
        made.Free()


def allreduce(comm: Any, count: int) -> None:
    """Sums of 4 MB."""
    own, total = np.ones(1 << 19), np.zeros(1 << 19)
    for number in range(count):
        own[:] = number
        comm.Allreduce(own, total)
        assert total[0] == total[-1] == number * comm.size


PROGRAMS: dict[str, Callable[[Any, int], None]] = {
    "messages": messages,
    "communicators": communicators,
    "allreduce": allreduce,
}


def main(name: str, count: int) -> None:
    comm = MPI.COMM_WORLD
    for number in range(SAMPLES):
        PROGRAMS[name](comm, count // SAMPLES)
        comm.Barrier()  # no operation is under way, so no buffer of one is there
        gc.collect()
        LIBC.malloc_trim(0)  # what the allocator keeps for later is not growth
        print(f"SAMPLE {number} {comm.rank} {resident_bytes()}", flush=True)
        comm.Barrier()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
