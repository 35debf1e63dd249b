"""direct: latency at 8 bytes and bandwidth at 16 MB, two ranks of a machine, compared with MPICH.

Both run the same ping-pong of Send and Recv on NumPy arrays, in turns. Two more rows take the
latency apart: the same Send and Recv without a second process to wake, and a bare Unix socket
between two processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.interleave import calm, in_turns, ratio
from benchmarks.table import Row, render, spread

SMALL, LARGE = 8, 16 << 20
REPEAT = {SMALL: 2000, 1024: 1000, LARGE: 16}
ROUNDS = 5
TIMEOUT_S = 120.0


def rank() -> None:
    """What each rank does: seconds one way, by size, printed by rank 0."""
    import numpy as np

    from serverless_mpi import MPI

    calm()
    comm = MPI.COMM_WORLD
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(
        0, {cores[comm.rank % len(cores)]}
    )  # a core each, as on a machine with nothing else to do
    times: dict[int, float] = {}
    for nbytes, repeat in REPEAT.items():
        array = np.zeros(nbytes, np.uint8)
        taken = []
        for _ in range(repeat):
            began = MPI.Wtime()
            if comm.rank == 0:
                comm.Send(array, 1)
                comm.Recv(array, 1)
            else:
                comm.Recv(array, 0)
                comm.Send(array, 0)
            taken.append(MPI.Wtime() - began)
        times[nbytes] = statistics.median(taken) / 2
    if comm.rank == 0:
        print(json.dumps(times))


def alone() -> float:
    """Seconds of a Send and a Recv of 8 bytes when both ranks are one thread, so that nobody has to
    be woken.
    """
    import numpy as np

    from serverless_mpi.api.intracomm import world_of
    from serverless_mpi.channels.direct import DirectChannel
    from serverless_mpi.job import JobSpec
    from serverless_mpi.runtime import Runtime

    spec = JobSpec.new(2, "direct")
    spec = replace(spec, settings=DirectChannel.provision(spec))
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(2)]
    sender, receiver = (world_of(runtime) for runtime in runtimes)
    array, taken = np.zeros(SMALL, np.uint8), []
    for _ in range(REPEAT[SMALL]):
        began = time.perf_counter()
        sender.Send(array, 1)
        receiver.Recv(array, 0)
        taken.append(time.perf_counter() - began)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Runtime.finalize, runtimes))
    return statistics.median(taken)


def bare() -> float:
    """Seconds one way of 8 bytes over a Unix socket between two processes."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        for _ in range(REPEAT[SMALL]):
            theirs.send(theirs.recv(SMALL))
        os._exit(0)
    taken = []
    for _ in range(REPEAT[SMALL]):
        began = time.perf_counter()
        ours.send(bytes(SMALL))
        ours.recv(SMALL)
        taken.append(time.perf_counter() - began)
    os.waitpid(child, 0)
    ours.close()
    theirs.close()
    return statistics.median(taken) / 2


def _times(launcher: list[str]) -> dict[int, float]:
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "benchmarks.direct", "rank"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
    )
    return {
        int(nbytes): seconds for nbytes, seconds in json.loads(done.stdout.splitlines()[-1]).items()
    }


def run() -> list[Row]:
    """Latency and bandwidth, and their ratios to MPICH's."""
    launchers = {
        "direct": [
            sys.executable,
            "-m",
            "serverless_mpi.launch",
            "-n",
            "2",
            "--channel",
            "direct",
            "--stats",
            "none",
        ]
    }
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if mpiexec.exists() and importlib.util.find_spec("mpi4py"):
        launchers["mpich"] = [str(mpiexec), "-n", "2"]
    found: dict[str, list[dict[int, float]]] = {name: [] for name in launchers}

    def measure(name: str) -> float:
        found[name].append(_times(launchers[name]))
        return found[name][-1][SMALL]

    in_turns({name: (lambda name=name: measure(name)) for name in launchers}, ROUNDS)  # type: ignore[misc]
    apart = in_turns({"alone": alone, "bare": bare}, ROUNDS)
    inside, wake = (statistics.median(apart[name]) * 1e6 for name in ("alone", "bare"))
    rows = [
        Row(
            "direct, 8 B, Send and Recv in one thread", inside, "us", spread=spread(apart["alone"])
        ),
        Row("a bare Unix socket, 8 B one way", wake, "us", spread=spread(apart["bare"])),
    ]
    why = f"a Send and a Recv take {inside:.0f} us of Python and the socket {wake:.0f} us; MPICH polls shared memory from C"
    for nbytes, label in ((SMALL, "8 B"), (1024, "1 KB"), (LARGE, "16 MB")):
        ours = [times[nbytes] for times in found["direct"]]
        value = statistics.median(ours)
        large = nbytes == LARGE
        figure, unit = (nbytes / value / 1e9, "GB/s") if large else (value * 1e6, "us")
        target, met = {SMALL: ("<= 40 us", value <= 40e-6), LARGE: (">= 2 GB/s", figure >= 2)}.get(
            nbytes, ("", None)
        )
        reason = why if met is False else ""
        rows.append(
            Row(f"direct, {label} one way", figure, unit, target=target, met=met, reason=reason)
        )
        if "mpich" in found:
            middle, wide = ratio(ours, [times[nbytes] for times in found["mpich"]])
            target, met = {SMALL: ("<= 10x", middle <= 10), LARGE: ("<= 3x", middle <= 3)}.get(
                nbytes, ("", None)
            )
            theirs = statistics.median(times[nbytes] for times in found["mpich"])
            theirs = nbytes / theirs / 1e9 if large else theirs * 1e6
            rows.append(
                Row(
                    f"mpi4py on MPICH, {label}: time of direct / its",
                    theirs,
                    unit,
                    middle,
                    wide,
                    target,
                    met,
                    why if met is False else "",
                )
            )
    return rows


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
