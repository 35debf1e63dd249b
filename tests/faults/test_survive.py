"""Ranks that survive the deaths of others: the random kills of survive.py, and what each call raises."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.survive import job

ERRORS = """
import os, signal
from mpi4py import MPI

def of(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except MPI.Exception as error:
        return error.error_class
    return MPI.SUCCESS

comm = MPI.COMM_WORLD
if comm.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if comm.rank == 0:
    pending = comm.irecv(source=MPI.ANY_SOURCE, tag=5)
    persistent = comm.Recv_init(bytearray(1), 1)
    persistent.Start()
    assert of(comm.recv, source=1) == MPI.ERR_PROC_FAILED
    assert of(persistent.Wait) == MPI.ERR_PROC_FAILED
    for call in (comm.send, comm.ssend):
        assert of(call, None, 1) == MPI.ERR_PROC_FAILED
    assert of(comm.issend(None, 1).wait) == MPI.ERR_PROC_FAILED
    for call in (comm.probe, comm.iprobe, comm.mprobe):
        assert of(call, 1) == MPI.ERR_PROC_FAILED
    assert of(comm.probe, MPI.ANY_SOURCE) == MPI.ERR_PROC_FAILED
    assert of(comm.recv, source=MPI.ANY_SOURCE) == MPI.ERR_PROC_FAILED
    assert of(pending.wait) == of(pending.test) == MPI.ERR_PROC_FAILED_PENDING
    assert comm.Get_failed().size == 1 and comm.Ack_failed(0) == 0 and comm.Ack_failed() == 1
    comm.send(None, 2)
    assert pending.wait() == "late"
else:
    assert of(comm.Barrier) == MPI.ERR_PROC_FAILED
    comm.recv(source=0)
    comm.send("late", 0, tag=5)
assert of(comm.Barrier) == of(comm.Ibarrier().Wait) == MPI.ERR_PROC_FAILED
assert of(comm.Agree, 1) == MPI.ERR_PROC_FAILED  # rank 2 has not acknowledged
comm.Ack_failed()
assert comm.Agree(0b110 | comm.rank) == 0b110
comm.Dup().Shrink().Barrier()
comm.Revoke()
assert comm.Is_revoked() and of(comm.Barrier) == of(comm.send, 0, 0) == MPI.ERR_REVOKED
assert of(comm.Dup) == MPI.ERR_REVOKED
assert comm.Agree(-2) == -2
shrunk, request = comm.Ishrink()
request.Wait()
assert shrunk.allreduce(1) == 2
"""


@pytest.mark.parametrize("channel", ["direct", "routed"])
def test_calls_raise_the_classes_of_the_specification(channel: str, tmp_path: Path) -> None:
    program = tmp_path / "errors.py"
    program.write_text(ERRORS)
    command = [sys.executable, "-m", "serverless_mpi.launch", "--ft", "-n", "3"]
    command += ["--channel", channel, "--timeout", "90", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was killed by SIGKILL; the other ranks go on") == 1


@pytest.mark.parametrize("seed", range(2))
def test_survivors_finish_with_the_right_sum(seed: int) -> None:
    assert job("direct", 4, 1 + seed, 40, random.Random(seed)) == ""


def test_a_revocation_reaches_a_rank_that_waits(tmp_path: Path) -> None:
    program = tmp_path / "revoked.py"
    program.write_text(
        "from mpi4py import MPI\n"
        "comm = MPI.COMM_WORLD.Dup()\n"
        "if comm.rank == 0: comm.Revoke()\n"
        "try: comm.recv(source=1 - comm.rank)\n"
        "except MPI.Exception as error: assert error.error_class == MPI.ERR_REVOKED\n"
        "else: raise SystemExit(1)\n"
    )
    command = [sys.executable, "-m", "serverless_mpi.launch", "-n", "2", "--timeout", "60"]
    command += ["--channel", "direct", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end, code", [("raise SystemExit(3)", 3), ("MPI.COMM_WORLD.Abort(5)", 5)])
def test_exit_codes(end: str, code: int, tmp_path: Path) -> None:
    program = tmp_path / "ends.py"
    program.write_text(f"from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 1: {end}\n")
    command = [sys.executable, "-m", "serverless_mpi.launch", "--ft", "-n", "2", "--timeout", "60"]
    command += ["--channel", "direct", str(program)]
    assert subprocess.run(command, capture_output=True, timeout=90).returncode == code
