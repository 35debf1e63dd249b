"""imports: time and memory of importing the package, compared with NumPy, boto3 and awscrt.

With byte code for all of them, as pip and the function's package install it.
"""

from __future__ import annotations

import compileall
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import serverless_mpi
from benchmarks.interleave import in_turns, ratio
from benchmarks.table import Row, render

ROUNDS = 7
STATEMENTS = {
    "from serverless_mpi import MPI": ("serverless_mpi", "from serverless_mpi import MPI"),
    "numpy": ("numpy", "import numpy"),
    "the lean client with TLS": ("ssl", "import ssl, serverless_mpi.aws.http"),
    "boto3 with clients for SQS, SNS, S3": (
        "boto3",
        "import boto3; [boto3.client(s, region_name='us-east-1') for s in ('sqs', 'sns', 's3')]",
    ),
    "awscrt": ("awscrt", "import awscrt.http, awscrt.auth, awscrt.io"),
}
# The process itself says what the statement cost; VmHWM is the most it ever had in memory.
PROGRAM = """
import time
began = time.perf_counter()
{statement}
taken = time.perf_counter() - began
high = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
print(taken, high)
"""


def _once(statement: str) -> tuple[float, float]:
    """(seconds, MB) of a statement in a process of its own."""
    program = PROGRAM.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    seconds, kilobytes = done.stdout.split()
    return float(seconds), float(kilobytes) / 1024


def run() -> list[Row]:
    """Milliseconds and megabytes, and the ratios to NumPy's."""
    # an editable install has none where PYTHONDONTWRITEBYTECODE is set, and would be compiled anew
    # each time
    compileall.compile_dir(Path(serverless_mpi.__file__).parent, quiet=1)
    memory: dict[str, list[float]] = {}

    def measure(name: str) -> float:
        seconds, megabytes = _once(STATEMENTS[name][1])
        memory.setdefault(name, []).append(megabytes)
        return seconds

    there = [name for name, (needs, _) in STATEMENTS.items() if importlib.util.find_spec(needs)]
    taken = in_turns({name: (lambda name=name: measure(name)) for name in there}, ROUNDS)  # type: ignore[misc]
    numpy = statistics.median(taken["numpy"])
    rows = []
    for name in there:
        middle, spread = ratio(taken[name], taken["numpy"])
        milliseconds = statistics.median(taken[name]) * 1e3
        target, met, reason = "", None, ""
        if name.startswith("from serverless_mpi"):
            # the target is of a machine on which NumPy takes 50 ms
            target, met = "<= 120 ms (2.4x NumPy)", milliseconds <= 120 or middle <= 2.4
            if milliseconds > 120:
                reason = f"NumPy took {numpy * 1e3:.0f} ms, and 50 where the target was set"
        rows.append(
            Row(f"import, {name} / NumPy", milliseconds, "ms", middle, spread, target, met, reason)
        )
    for name in there:
        middle, spread = ratio(memory[name], memory["numpy"])
        megabytes = statistics.median(memory[name])
        target, met = (
            ("<= 45 MB", megabytes <= 45) if name.startswith("from serverless_mpi") else ("", None)
        )
        rows.append(Row(f"memory, {name} / NumPy", megabytes, "MB", middle, spread, target, met))
    return rows


if __name__ == "__main__":
    print(render(run()))
