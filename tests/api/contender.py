"""A rank that contends for windows; contention.py starts it as `contender.py ROUNDS SEED`.

Each round is one access of a random kind to a random rank, every second one to rank 0. Six numbers
of each rank are accessed; at the end each rank compares its own with the accesses of all ranks.
"""

from __future__ import annotations

import random
import sys

import numpy as np
from mpi4py import MPI

TICKETS, EXCLUSIVE, PAIR, MIRROR, SWAPPED, SUM = range(6)

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
rounds, seed = int(sys.argv[1]), sys.argv[2]
win = MPI.Win.Allocate(6 * 8, 8, comm=comm)
memory = np.frombuffer(win, "i8")
one = np.ones(1, "i8")
tickets: list[list[int]] = [[] for _ in range(size)]
accesses = np.zeros((6, size), "i8")


def ticket(target: int, number: int) -> None:
    """Draw a number that no other access may get."""
    drawn = np.empty(1, "i8")
    win.Lock(target, MPI.LOCK_SHARED)
    win.Fetch_and_op(one, drawn, target, TICKETS)
    win.Unlock(target)
    tickets[target].append(int(drawn[0]))
    accesses[TICKETS, target] += 1


def exclusive(target: int, number: int) -> None:
    """Read, add and write, which only an exclusive lock makes atomic."""
    value = np.empty(1, "i8")
    win.Lock(target, MPI.LOCK_EXCLUSIVE)
    win.Get(value, target, EXCLUSIVE)
    win.Flush(target)
    value += 1
    win.Put(value, target, EXCLUSIVE)
    win.Unlock(target)
    accesses[EXCLUSIVE, target] += 1


def write_pair(target: int, number: int) -> None:
    """Write two numbers whose sum is 0, one after the other."""
    win.Lock(target, MPI.LOCK_EXCLUSIVE)
    win.Put(np.full(1, number, "i8"), target, PAIR)
    win.Flush(target)
    win.Put(np.full(1, -number, "i8"), target, MIRROR)
    win.Unlock(target)


def read_pair(target: int, number: int) -> None:
    """See both numbers of a pair, and never one without the other."""
    first, second = np.empty(1, "i8"), np.empty(1, "i8")
    win.Lock(target, MPI.LOCK_SHARED)
    win.Get(first, target, PAIR)
    win.Flush(target)
    win.Get(second, target, MIRROR)
    win.Unlock(target)
    assert first[0] == -second[0], f"rank {rank} read {first[0]} and {second[0]} of rank {target}"


def swap(target: int, number: int) -> None:
    """Add one by Compare_and_swap, again until no other access came between."""
    expected, found = np.zeros(1, "i8"), np.empty(1, "i8")
    win.Lock(target, MPI.LOCK_SHARED)
    while True:
        win.Compare_and_swap(expected + 1, expected, found, target, SWAPPED)
        win.Flush(target)
        if found[0] == expected[0]:
            break
        expected[0] = found[0]
    win.Unlock(target)
    accesses[SWAPPED, target] += 1


def add(target: int, number: int) -> None:
    """Add to the numbers of a target and of rank 0 in an epoch on all ranks."""
    win.Lock_all()
    for place in (target, 0):
        win.Accumulate(one, place, SUM)
        accesses[SUM, place] += 1
    win.Unlock_all()


rng = random.Random(f"{seed} {rank}")
kinds = (ticket, exclusive, write_pair, read_pair, swap, add)
memory[:] = 0
comm.Barrier()
for _ in range(rounds):
    target = 0 if rng.random() < 0.5 else rng.randrange(size)
    rng.choice(kinds)(target, rng.randrange(1 << 40))
comm.Barrier()

comm.Allreduce(MPI.IN_PLACE, accesses)
win.Lock(rank)
for kind in (TICKETS, EXCLUSIVE, SWAPPED, SUM):
    assert memory[kind] == accesses[kind, rank], (rank, kind, memory[kind], accesses[kind, rank])
assert memory[PAIR] == -memory[MIRROR]
win.Unlock(rank)
drawn = sorted(sum(comm.alltoall(tickets), []))
assert drawn == [*range(accesses[TICKETS, rank])], f"rank {rank}: the tickets are {drawn}"
win.Free()
comm.Barrier()
if rank == 0:
    print(f"right {size * rounds}")
