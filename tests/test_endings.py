"""The end of a rank: after its last output, with an error, after Abort, with threads, in forked
children.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serverless_mpi.channels.base import OutgoingFrame
from serverless_mpi.channels.direct import DirectChannel
from serverless_mpi.errors import ChannelError, JobError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.runtime import Runtime
from tests.harness import ROOT, mpirun, smpirun
from tests.test_runtime import TIMEOUT_S, runtimes, view


def python(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
    )


# --- messages that cannot be put ---------------------------------------------


def refuse(frames: Sequence[OutgoingFrame]) -> None:
    raise ChannelError("the medium is gone")


@pytest.mark.parametrize("alone", [False, True], ids=["sender thread", "caller"])
def test_finalize_raises_if_a_message_was_lost(alone: bool) -> None:
    a, _ = runtimes(2, background=True)
    a._send_queue.serial = alone
    a._channel.put = refuse  # type: ignore[method-assign]
    assert a.isend(9, 1, 0, view(b"small, so the call itself succeeds")).done
    with pytest.raises(ChannelError, match="gone"):
        a.finalize()
    assert a.finalized


LOST = """
import sys
from serverless_mpi import MPI, runtime
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
made = runtime.process.current = runtime.Runtime(JobSpec.new(2, "memory"))
made._send_queue.async_put = True
def put(parcels):
    raise ChannelError("the medium is gone")
made._channel.put = put
MPI.COMM_WORLD.send("last words", 1)
print("sent")
if sys.argv[1] == "waits":
    MPI.COMM_WORLD.recv(source=1)
"""


def test_a_rank_whose_last_words_are_lost_does_not_end_with_0() -> None:
    done = python(LOST, "ends")
    assert (done.returncode, done.stdout) == (1, "sent\n")
    assert done.stderr == (
        "rank 0: MPI was not finalized, messages may be lost: the medium is gone\n"
    )


def test_an_error_that_ended_the_program_is_reported_once() -> None:
    done = python(LOST, "waits")
    assert done.returncode == 1 and done.stderr.count("the medium is gone\n") == 1


KILLS = """
import os, signal, sys
if os.environ["SMPI_RANK"] == "1":
    os._exit(0)  # before MPI starts, so that only rank 0 can miss the emulator
from serverless_mpi import MPI
os.kill(int(sys.argv[1]), signal.SIGKILL)
MPI.COMM_WORLD.send("last words", 1)
"""


def test_a_rank_that_outlives_its_emulator_fails(tmp_path: Path) -> None:
    program = tmp_path / "kills.py"
    program.write_text(KILLS)
    with Emulator(tmp_path) as emulator:
        assert emulator._process is not None and emulator._listener is not None
        pid = emulator._process.pid
        emulator._listener.close()  # so that nobody listens once it is killed
        job = smpirun("-n", 2, "--channel", "object", "--endpoint", emulator.url, program, pid)
    assert job.returncode == 1
    assert "rank 0: MPI was not finalized, messages may be lost" in job.stderr
    assert "Traceback" not in job.stderr


# --- Abort, statistics, threads ------------------------------------------------


@pytest.mark.parametrize("how", ["sys.stderr.close(); sys.stdout.close()", "sys.stderr = None"])
def test_abort_ends_whatever_became_of_the_standard_streams(how: str) -> None:
    done = python(f"import sys\nfrom serverless_mpi import MPI\n{how}\nMPI.COMM_WORLD.Abort(7)")
    assert done.returncode == 7


def test_counters_that_cannot_be_written_are_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = runtimes(2, stats_dir=str(tmp_path / "gone"))
    a.finalize()
    assert capsys.readouterr().err == (
        f"rank 0: its counters cannot be written to {tmp_path / 'gone'} (No such file or directory);"
        " the job's statistics lack them\n"
    )


def test_a_thread_in_a_receive_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless_mpi.runtime.progress.LONG_POLL_S", 1000.0)
    spec = JobSpec.new(2, "direct")
    spec = replace(spec, settings=DirectChannel.provision(spec))
    a, b = (Runtime(spec.with_rank(rank)) for rank in range(2))
    inside, errors = threading.Event(), []
    get = b._channel.get

    def waits() -> None:
        try:
            b.wait([b.irecv(9, 0, 0)])
        except JobError as error:
            errors.append(str(error))

    def entered(*arguments: object) -> object:
        inside.set()
        return get(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(b._channel, "get", entered)
    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    assert inside.wait(TIMEOUT_S)
    ends = threading.Thread(target=b.finalize, daemon=True)
    ends.start()
    ends.join(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert not ends.is_alive() and not thread.is_alive()
    assert errors == ["rank 1 has finalized MPI and cannot communicate any more"]
    a.finalize()


# --- children --------------------------------------------------------------------

FORKS = """
import os, sys
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
other = 1 - comm.rank
assert "SMPI_KEY" not in os.environ and "SMPI_JOB" not in os.environ
assert comm.sendrecv("before", other, source=other) == "before"
child = os.fork()
if not child:
    for call in (lambda: comm.send("stolen", other), lambda: comm.recv(source=other), comm.barrier):
        try:
            call()
        except RuntimeError as error:
            assert f"forked from rank {comm.rank}" in str(error), error
        else:
            sys.exit("a forked child communicated")
    sys.exit(0)  # through atexit, as a program ends
assert os.waitpid(child, 0)[1] == 0
for number in range(3):
    assert comm.sendrecv(number, other, source=other) == number
print("good")
"""


@pytest.mark.parametrize("channel", ["direct", "hybrid"])
def test_a_forked_child_is_not_the_rank(tmp_path: Path, channel: str) -> None:
    program = tmp_path / "forks.py"
    program.write_text(FORKS)
    job = smpirun("-n", 2, "--channel", channel, "--stats", "none", program)
    assert (job.returncode, job.stdout, job.stderr) == (0, "good\ngood\n", "")


def test_a_forked_child_closes_its_copies_and_writes_nothing(tmp_path: Path) -> None:
    spec = JobSpec.new(2, "direct", stats_dir=str(tmp_path))
    spec = replace(spec, settings=DirectChannel.provision(spec))
    a, b = (Runtime(spec.with_rank(rank)) for rank in range(2))
    a.isend(9, 1, 0, view(b"x"))
    channel = a._channel
    assert isinstance(channel, DirectChannel)
    sock = channel._outgoing[1]
    child = os.fork()
    if not child:
        code = 1
        try:
            if sock.fileno() == -1:
                a.finalize()
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert list(tmp_path.iterdir()) == []
    ends = threading.Thread(target=a.finalize)
    ends.start()
    b.finalize()
    ends.join(TIMEOUT_S)
    assert len(list(tmp_path.iterdir())) == 2


SPAWNS = """
import multiprocessing, subprocess, sys
from mpi4py import MPI
comm = MPI.COMM_WORLD
rank = comm.Get_rank()  # also in each worker of the pool

def worker(number):
    return number, comm.Get_size()

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(worker, range(2)) == [(0, 1), (1, 1)]
    words = [sys.executable, "-c", "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "1\\n"
    assert comm.allgather(rank) == [0, 1]
    print("good")
"""


def test_what_a_rank_starts_is_a_job_of_its_own(tmp_path: Path) -> None:
    program = tmp_path / "spawns.py"
    program.write_text(SPAWNS)
    # the rank itself is a grandchild of the launcher
    words = f"{sys.executable} {program}; exit $?"
    job = smpirun("-n", 2, "--channel", "direct", "--stats", "none", "bash", "-c", words)
    assert (job.returncode, job.stdout, job.stderr) == (0, "good\ngood\n", "")


LATE = """
from mpi4py import MPI
import os, time
comm = MPI.COMM_WORLD
if comm.rank:
    counters = os.path.join({folder!r}, "go")
    while not os.path.exists(counters):
        time.sleep(0.01)
    comm.send("nobody receives this", 0)
    comm.Send(bytearray(1 << 20), 0)
    print("sent")
else:
    MPI.Finalize()
    open(os.path.join({folder!r}, "go"), "w").close()
"""


@pytest.mark.parametrize("channel", ["direct", "hybrid"])
def test_a_send_may_outlast_a_rank_that_does_not_receive_it(channel: str, tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(LATE.format(folder=str(tmp_path)))
    job = smpirun("-n", 2, "--channel", channel, "--stats", "none", program)
    assert (job.returncode, job.stdout, job.stderr) == (0, "sent\n", "")


INNER = """
import subprocess, sys
from mpi4py import MPI
words = "from mpi4py import MPI; comm = MPI.COMM_WORLD; print(comm.rank, comm.allreduce(1))"
if MPI.COMM_WORLD.rank == 0:
    job = subprocess.run(
        [{mpiexec!r}, "-n", "2", sys.executable, "-c", words], capture_output=True, text=True
    )
    print(sorted(job.stdout.split()), job.stderr)
MPI.COMM_WORLD.barrier()
"""


@pytest.mark.skipif(mpirun() is None, reason="needs mpiexec")
def test_a_rank_may_start_a_job_of_a_real_mpi(tmp_path: Path) -> None:
    program = tmp_path / "inner.py"
    program.write_text(INNER.format(mpiexec=str(mpirun())))
    job = smpirun("-n", 2, "--channel", "direct", "--stats", "none", program)
    assert (job.returncode, job.stdout) == (0, "['0', '1', '2', '2'] \n"), job.stderr
