"""One rank under faults: runs a program of workloads.py, injects faults into itself as ordered, and
reports to the driver.

Arguments: a JSON object with program, fault, seed, rounds, stop_s.  The report goes to the datagram socket that
SMPI_FAULT_REPORT names, because files and standard streams may be what fails.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHILD_S = 20.0  # a forked child or a subprocess that has not ended by then hangs
NOISE_LINES, NOISE_WIDTH = 300, 400  # of each rank at each step, for a reader that is slow
_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
# read before the package takes them out of the environment
_job = json.loads(os.environ.get("SMPI_JOB", "{}"))
_rank = int(os.environ.get("SMPI_RANK", "-1"))


def report(event: str, **facts: Any) -> None:
    """Report to the driver."""
    record = json.dumps({"event": event, "rank": _rank, **facts}).encode()
    _socket.sendto(record, "\0" + os.environ["SMPI_FAULT_REPORT"])


def use_relay(ports: list[int], folder: str) -> None:
    """Let this rank's connections go through the driver's relay, which finds the true addresses in `folder`."""
    job = json.loads(os.environ["SMPI_JOB"])
    words = job["settings"]["addresses"].split()
    draft = Path(folder, f"addresses.{_rank}")
    draft.write_text(" ".join(words))
    draft.rename(Path(folder, "addresses"))
    job["settings"]["addresses"] = " ".join(f"127.0.0.1:{port}" for port in ports)
    os.environ["SMPI_JOB"] = json.dumps(job)


class Interrupt(Exception):
    """What the signal handler raises."""


def interrupted(chance: random.Random) -> Callable[[Callable[[], Any]], Any]:
    """Make calls under a timer whose handler raises at a random moment, until one ends by itself."""

    armed = False  # a signal that is handled after the call ended has nothing to interrupt

    def handler(*_: object) -> None:
        if armed:
            raise Interrupt

    signal.signal(signal.SIGALRM, handler)

    def patiently(call: Callable[[], Any]) -> Any:
        nonlocal armed
        for _ in range(10):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 0.02))
                result = call()
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                return result
            except Interrupt:
                armed = False
                report("struck")
        return call()

    return patiently


def strike(fault: str, comm: Any, chance: random.Random, stop_s: float) -> None:
    """Injure this process."""
    report("struck")
    if fault in ("emulator gone", "emulator restarted"):
        _await_refusal(2.0)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stopped":
        waker = f"sleep {stop_s}; kill -CONT {os.getpid()}"
        subprocess.Popen(["/bin/sh", "-c", waker], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "slow rank":
        time.sleep(stop_s)
    elif fault == "forked":
        pid = os.fork()
        if not pid:
            _child(comm, chance.random() < 0.5)
        _await_child(pid)
    elif fault == "subprocess":
        _subprocess()
    elif fault == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    elif fault == "streams closed":
        sys.stdout.close()
        sys.stderr.close()
        os.close(0)


def _child(comm: Any, uses: bool) -> None:
    """A forked child: it communicates, which must be refused, or ends as any program does."""
    signal.alarm(int(CHILD_S))
    if uses:
        from serverless_mpi.errors import MPIException, ServerlessMPIError

        try:
            comm.send("from a forked child", (comm.rank + 1) % comm.size, 99)
        except (MPIException, ServerlessMPIError) as error:
            report("child refused", text=str(error))
        else:
            report("wrong", text="a forked child's send returned without an error")
    sys.exit(0)


def _await_child(pid: int) -> None:
    deadline = time.monotonic() + CHILD_S + 5
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                report("wrong", text=f"a forked child was ended by signal {os.WTERMSIG(status)}")
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    report("wrong", text="a forked child did not end")


def _subprocess() -> None:
    code = "from serverless_mpi import MPI; print(MPI.COMM_WORLD.size)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=CHILD_S
        )
    except subprocess.TimeoutExpired:
        report("wrong", text="a subprocess that imports MPI hangs")
        return
    if done.returncode == 0 and done.stdout.strip() != "1":
        report("wrong", text=f"a subprocess takes itself for a rank: size {done.stdout.strip()}")


def _await_refusal(limit_s: float) -> None:
    """Wait until the emulator refuses connections."""
    place = urlsplit(_job["endpoint"])
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection((place.hostname, place.port), 1.0).close()
        except OSError:
            break
        time.sleep(0.02)


def _last_words(comm: Any, course: Any) -> None:
    """Send a small message when the emulator is gone: it cannot be sent any more, and the job must not end well."""
    comm.Barrier()
    if comm.rank == 0:
        report("struck")
    _await_refusal(CHILD_S)
    comm.send(b"last words", (comm.rank + 1) % comm.size, 77)


def main(plan: dict[str, Any]) -> int:
    fault, seed = plan["fault"], plan["seed"]
    if plan.get("relay"):
        use_relay(plan["relay"], plan["folder"])
    from serverless_mpi import MPI
    from serverless_mpi.errors import MPIException, ServerlessMPIError
    from tests.faults.workloads import PROGRAMS, Course

    course = Course(seed, plan["rounds"])
    chance = random.Random(f"{seed}/{_rank}")
    common = random.Random(seed)
    victim, at = common.randrange(plan["size"]), common.randrange(1, 3)
    try:
        comm = MPI.COMM_WORLD
        if _rank == victim and fault != "emulator gone at the end":
            course.strike_at = at
            course.strike = lambda: strike(fault, comm, chance, plan["stop_s"])
        if fault == "interrupted":
            course.patiently = interrupted(chance)
        if fault == "slow reader":

            def noise(step: int) -> None:
                for line in range(NOISE_LINES):
                    print(f"noise {_rank} {step} {line} ".ljust(NOISE_WIDTH, "."))

            course.noise = noise
        report("began", job=_job.get("job_id"))
        PROGRAMS[plan["program"]](comm, course)
        if fault == "emulator gone at the end":
            _last_words(comm, course)
    except (MPIException, ServerlessMPIError) as error:
        report("error", kind=type(error).__name__, text=str(error))
        if not sys.stderr.closed:
            print(f"rank {_rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 3
    except (Exception, KeyboardInterrupt) as error:
        report("foreign error", kind=type(error).__name__, text=str(error))
        raise
    report(
        "done",
        steps=course.steps,
        lost=course.lost,
        duplicated=course.duplicated,
        wrong=course.wrong,
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main(json.loads(sys.argv[1])))
