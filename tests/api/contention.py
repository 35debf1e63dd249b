"""A stress test of windows: ranks that contend for locks and raise counters, on one machine.

    python -m tests.api.contention [--ranks 16] [--rounds 2000] [--channel direct] [--seed 0]

Exit code 0: no counter lost an access, no ticket was drawn twice, and no reader saw half of what an
exclusive lock protects.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

RANK = Path(__file__).with_name("contender.py")


def job(channel: str, ranks: int, rounds: int, seed: int, give_up_s: int) -> str:
    """Run the ranks; return what is wrong, or nothing."""
    command = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(ranks)]
    command += ["--channel", channel, "--timeout", str(give_up_s), str(RANK)]
    command += [str(rounds), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=give_up_s + 60)
    if done.returncode or done.stdout.split() != ["right", str(ranks * rounds)]:
        return f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.api.contention", description=__doc__)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2000, help="accesses of each rank")
    parser.add_argument("--channel", default="direct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for the job")
    words = parser.parse_args()
    began = time.monotonic()
    wrong = job(words.channel, words.ranks, words.rounds, words.seed, words.timeout)
    if wrong:
        print(f"FAIL: seed {words.seed}: {wrong}")
        return 1
    accesses = words.ranks * words.rounds
    print(f"pass: {accesses} accesses by {words.ranks} ranks in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
