"""Windows between processes: progress without the target, atomicity, shared memory, and no leaks.

The protocol is tested without processes in tests/core/test_window.py, all calls and datatypes by
mpi4py's own suite (tests/conformance), wrong calls in tests/api/bad_calls.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api import contention
from tests.harness import smpirun

HEAD = """\
import os, sys, threading, time
import numpy as np
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
"""


def _run(folder: Path, ranks: int, channel: str, body: str) -> list[str]:
    program = folder / "prog.py"
    program.write_text(HEAD + body)
    done = smpirun("-n", ranks, "--channel", channel, program)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


COUNTER = """\
times = 3
win = MPI.Win.Allocate(8 if rank == 0 else 0, 8, comm=comm)
if rank == 0:
    np.frombuffer(win, "i8")[:] = 0
comm.Barrier()
one, seen, got = np.ones(1, "i8"), np.zeros(1, "i8"), []
for _ in range(times):
    win.Lock(0, MPI.LOCK_SHARED)
    win.Fetch_and_op(one, seen, 0)
    win.Unlock(0)
    got.append(int(seen[0]))
total = np.zeros(1, "i8")
for _ in range(times):  # read, add and write in an exclusive epoch
    win.Lock(0)
    win.Get(total, 0)
    win.Flush(0)
    total += 1
    win.Put(total, 0)
    win.Unlock(0)
comm.Barrier()
if rank == 0:
    print("total", np.frombuffer(win, "i8")[0] == 2 * times * size)
numbers = sorted(sum(comm.allgather(got), []))
assert numbers[: times] != numbers[times : 2 * times] and len(set(numbers)) == len(numbers)
win.Free()
"""


def test_a_counter_that_all_ranks_raise(tmp_path: Path) -> None:
    assert _run(tmp_path, 2, "hybrid", COUNTER) == ["total True"]


def test_16_ranks_contend_for_locks_and_counters() -> None:
    # `python -m tests.api.contention` is the long form
    assert contention.job("direct", 16, rounds=40, seed=1, give_up_s=90) == ""


PASSIVE = """\
memory = np.zeros(4)
win = MPI.Win.Create(memory, 8, comm=comm)
if rank == 0:
    win.Lock(1)
    win.Put(np.arange(4.0), 1)
    win.Unlock(1)
    print("put")
else:
    deadline = time.monotonic() + 60
    while memory[3] != 3 and time.monotonic() < deadline:
        sum(range(1000))  # it computes, and makes no MPI call
    print("seen", memory.tolist())
comm.Barrier()
win.Free()
"""


@pytest.mark.parametrize("channel", ["direct", "queue"])
def test_a_target_that_computes_is_reached(channel: str, tmp_path: Path) -> None:
    assert _run(tmp_path, 2, channel, PASSIVE) == ["put", "seen [0.0, 1.0, 2.0, 3.0]"]


GROUPS = """\
memory = np.zeros(2)
win = MPI.Win.Create(memory, 8, comm=comm)
everyone = win.Get_group()
for turn in range(5):
    if rank == 0:
        others = everyone.Excl([0])
        win.Start(others)
        for target in range(1, size):
            win.Put(np.full(1, turn + target, "f8"), target, target=0)
        win.Complete()
        win.Post(others)
        win.Wait()
        assert memory[1] == turn * (size - 1)
        memory[1] = 0
    else:
        first = everyone.Incl([0])
        win.Post(first)
        while not win.Test():
            pass
        assert memory[0] == turn + rank
        win.Start(first)
        win.Accumulate(np.full(1, turn, "f8"), 0, target=1)
        win.Complete()
comm.Barrier()
win.Free()
print("done")
"""


@pytest.mark.parametrize("channel", ["direct", "hybrid"])
def test_epochs_of_groups(channel: str, tmp_path: Path) -> None:
    assert _run(tmp_path, 3, channel, GROUPS) == ["done"] * 3


SHARED = """\
win = MPI.Win.Allocate_shared(8, 8, comm=comm)
memory, unit = win.Shared_query(0)
first = np.frombuffer(memory, "i8")
own = np.frombuffer(win, "i8")
own[0] = rank + 1
win.Fence()
whole = [int(np.frombuffer(win.Shared_query(r)[0], "i8")[0]) for r in range(size)]
print(whole, unit)
win.Fence()
win.Free()
"""


def test_shared_windows_are_shared_memory(tmp_path: Path) -> None:
    assert _run(tmp_path, 3, "direct", SHARED) == ["[1, 2, 3] 8"] * 3


LEAKS = """\
import gc
def state():
    gc.collect()  # mapped memory of a freed window keeps a descriptor until it is collected
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(get_runtime()._services)
from serverless_mpi.runtime import get_runtime
for number in range(110):
    kind = number % 3
    if kind == 0:
        win = MPI.Win.Allocate(64, comm=comm)
    elif kind == 1:
        win = MPI.Win.Allocate_shared(64, comm=comm)
    else:
        win = MPI.Win.Create_dynamic(comm=comm)
    win.Fence()
    win.Fence()
    win.Free()
    if number == 10:  # also a shared one, whose object still exists
        before = state()
after = state()
more = [later - earlier for earlier, later in zip(before, after) if later > earlier]
print(more, after[2])  # fewer: of two connections to a rank, one was closed in between
"""


def test_windows_leave_no_thread_no_descriptor_and_no_service(tmp_path: Path) -> None:
    assert _run(tmp_path, 2, "direct", LEAKS) == ["[] 0"] * 2


DEADLOCK = """\
win = MPI.Win.Allocate(8, comm=comm)
comm.recv(source=1 - rank)
"""


def test_an_idle_agent_does_not_hide_a_deadlock(tmp_path: Path) -> None:
    program = tmp_path / "prog.py"
    program.write_text(HEAD + DEADLOCK)
    done = smpirun("-n", 2, "--channel", "direct", "--deadlock", 3, program)
    assert done.returncode == 125 and "rank 0 waits in" in done.stderr, done.stderr
