"""Kill ranks with SIGKILL at random moments; the others must shrink and finish with the right sum.

`python -m tests.faults.survive --kills 200` prints a line per job that fails and one at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SURVIVOR = Path(__file__).with_name("survivor.py")
TIMEOUT_S = 90.0


def job(channel: str, ranks: int, victims: int, rounds: int, generator: random.Random) -> str:
    """Run a job, kill `victims` of its ranks, and return what is wrong; "" if nothing is."""
    command = [sys.executable, "-m", "serverless_mpi.launch", "--ft", "-n", str(ranks)]
    command += ["--channel", channel, "--timeout", str(TIMEOUT_S), str(SURVIVOR), str(rounds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(process.stderr or ()))
    reader.start()
    pids: list[int] = []
    lines: list[str] = []
    for line in process.stdout:
        word, _, number = line.partition(" ")
        if word != "begun":
            lines.append(line.strip())
            continue
        pids.append(int(number))
        if len(pids) == ranks:
            for pid in generator.sample(sorted(pids), victims):
                time.sleep(generator.random() * 0.05)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return "the job ended before its ranks were killed"
    code = process.wait()
    reader.join()
    process.stdout.close()
    process.stderr.close()
    if code:
        return f"exit code {code}: {' '.join(told).strip()}"
    if len(lines) != ranks - victims or any(not line.startswith("right") for line in lines):
        return f"{ranks - victims} lines of survivors were expected: {lines}"
    if sum("was killed by SIGKILL" in line for line in told) != victims:
        return f"a line per death was expected: {told}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--channel", default="direct")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    begun, done, failures, jobs = time.monotonic(), 0, 0, 0
    while done < options.kills:
        victims = min(generator.randint(1, options.ranks - 1), options.kills - done)
        trouble = job(options.channel, options.ranks, victims, options.rounds, generator)
        done, jobs = done + victims, jobs + 1
        if trouble:
            failures += 1
            print(f"job {jobs}: {trouble}", flush=True)
    seconds = time.monotonic() - begun
    print(
        f"{options.channel}: {done} kills in {jobs} jobs of {options.ranks} ranks,"
        f" {failures} failed; {seconds:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
