"""direct: one-way latency at 8 bytes and bandwidth at 16 MB between two ranks of one machine, beside mpi4py on MPICH.

Both run the same ping-pong of Send and Recv on NumPy arrays, in turns.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.table import Row, render
from benchmarks.turns import calm, in_turns, ratio

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


def _times(launcher: list[str]) -> dict[int, float]:
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "benchmarks.direct", "rank"],
        capture_output=True, text=True, timeout=TIMEOUT_S, cwd=Path(__file__).resolve().parent.parent, check=True,
    )  # fmt: skip
    return {int(nbytes): seconds for nbytes, seconds in json.loads(done.stdout.splitlines()[-1]).items()}


def run() -> list[Row]:
    """Latency and bandwidth, and their ratios to MPICH's."""
    launchers = {"direct": [sys.executable, "-m", "serverless_mpi.launch", "-n", "2", "--channel", "direct", "--stats", "none"]}
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if mpiexec.exists() and importlib.util.find_spec("mpi4py"):
        launchers["mpich"] = [str(mpiexec), "-n", "2"]
    found: dict[str, list[dict[int, float]]] = {name: [] for name in launchers}

    def measure(name: str) -> float:
        found[name].append(_times(launchers[name]))
        return found[name][-1][SMALL]

    in_turns({name: (lambda name=name: measure(name)) for name in launchers}, ROUNDS)  # type: ignore[misc]
    rows = []
    for nbytes, label in ((SMALL, "8 B"), (1024, "1 KB"), (LARGE, "16 MB")):
        ours = [times[nbytes] for times in found["direct"]]
        value = statistics.median(ours)
        large = nbytes == LARGE
        figure, unit = (nbytes / value / 1e9, "GB/s") if large else (value * 1e6, "us")
        target, met = {SMALL: ("<= 40 us", value <= 40e-6), LARGE: (">= 2 GB/s", figure >= 2)}.get(nbytes, ("", None))
        rows.append(Row(f"direct, {label} one way", figure, unit, target=target, met=met))
        if "mpich" in found:
            middle, spread = ratio(ours, [times[nbytes] for times in found["mpich"]])
            target, met = {SMALL: ("<= 10x", middle <= 10), LARGE: ("<= 3x", middle <= 3)}.get(nbytes, ("", None))
            theirs = statistics.median(times[nbytes] for times in found["mpich"])
            theirs = nbytes / theirs / 1e9 if large else theirs * 1e6
            rows.append(Row(f"mpi4py on MPICH, {label}: time of direct / its", theirs, unit, middle, spread, target, met))
    return rows


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else print(render(run()))
