"""Requests, probes and barriers in an event loop: without polling, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import mpirun, smpirun, under_mpirun

PROGRAM = """\
import asyncio, json, sys, time
import numpy as np
from serverless_mpi import MPI, aio

comm = MPI.COMM_WORLD
above, below = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
count = int(sys.argv[1])
report = {}

async def main():
    # many receives at once, and a loop that is idle meanwhile
    values = asyncio.gather(*(aio.recv(comm, below, tag) for tag in range(count)))
    await aio.barrier(comm)
    begun, spent = time.monotonic(), time.process_time()
    await asyncio.sleep(2.0)
    report["busy"] = (time.process_time() - spent) / (time.monotonic() - begun)
    await aio.barrier(comm)
    await asyncio.gather(*(aio.send(comm, [comm.rank, tag], above, tag) for tag in range(count)))
    report["values"] = await values == [[below, tag] for tag in range(count)]

    # a receive that is cancelled takes nothing
    request = comm.irecv(source=below, tag=count)
    try:
        await asyncio.wait_for(aio.wait(request), 0.05)
    except asyncio.TimeoutError:
        report["cancelled"] = True
    await aio.barrier(comm)
    await aio.send(comm, "kept", above, count)
    status = MPI.Status()
    await aio.probe(comm, below, count, status)
    report["probed"] = status.source == below
    message = await aio.mprobe(comm, below, count)
    report["message"] = message.recv()

    # nonblocking collectives, and a failing call
    total = np.zeros(1)
    await aio.wait(comm.Iallreduce(np.ones(1), total))
    report["total"] = total[0]
    one, two = await aio.gather(comm.isend("x", above), comm.irecv(source=below))
    report["gathered"] = [one, two]
    if hasattr(request, "__await__"):
        comm.isend("y", above)
        report["awaited"] = await comm.irecv(source=below)

asyncio.run(main())
print(json.dumps(report), flush=True)
"""
EXPECTED = {
    "values": True,
    "cancelled": True,
    "probed": True,
    "message": "kept",
    "gathered": [None, "x"],
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "prog.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize("channel, ranks, count", [("direct", 4, 1000), ("hybrid", 2, 20)])
def test_many_receives_in_a_loop_that_is_idle(
    channel: str, ranks: int, count: int, program: Path
) -> None:
    done = smpirun("-n", ranks, "--channel", channel, program, count)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == ranks
    for report in reports:
        assert report.pop("busy") < 0.01  # of a processor
        assert report == {**EXPECTED, "total": ranks, "awaited": "y"}


@pytest.mark.skipif(mpirun() is None, reason="the real MPI is not installed")
def test_the_same_program_under_mpirun(program: Path) -> None:
    done = under_mpirun(2, str(program), "20")
    assert done.returncode == 0, done.stderr
    rest, reports = done.stdout, []
    while rest.strip():  # mpiexec may put the newlines of two ranks together
        report, end = json.JSONDecoder().raw_decode(rest.lstrip())
        rest = rest.lstrip()[end:]
        del report["busy"]
        reports.append(report)
    assert reports == [{**EXPECTED, "total": 2}] * 2


FAILS = """\
import asyncio, os
from serverless_mpi import MPI, aio
comm = MPI.COMM_WORLD

async def main():
    await aio.barrier(comm)
    if comm.rank == 1:
        os._exit(0)
    try:
        await aio.recv(comm, 1)
    except Exception as error:
        print(type(error).__name__, error, flush=True)

asyncio.run(main())
os._exit(0)
"""


def test_a_rank_that_fails_wakes_who_awaits(tmp_path: Path) -> None:
    path = tmp_path / "prog.py"
    path.write_text(FAILS)
    done = smpirun("-n", 2, "--channel", "direct", path)
    assert "ChannelError" in done.stdout and "rank 1" in done.stdout, done.stdout + done.stderr
