"""Long runs: resident memory after a tenth of the run and at its end, of the ranks and of the emulator.

    python -m tests.endurance [NAME ...] [--quick] [--markdown FILE]

Exit code 0: each run ended well, and no process grew by more than 5 per cent from its first tenth to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from serverless_mpi.launch.emulator import Emulator
from tests.endurance.rank import SAMPLES, resident_bytes

ROOT = Path(__file__).resolve().parents[2]
GROWTH = 1.05
MB = 1e6


@dataclass(frozen=True)
class Run:
    """One run.

    count: of what `counted` says; quick: the count of the short form; emulator_mb: its limit; slack_mb: of
    buffers that an operation has or has not at a sample.
    """

    name: str
    program: str
    channel: str
    ranks: int
    count: int
    counted: str
    quick: int
    emulator_mb: float | None = None
    slack_mb: float = 0.0


RUNS = (
    Run("direct", "messages", "direct", 2, 1_000_000, "messages", 40_000),
    Run("queue", "messages", "queue", 2, 100_000, "messages", 5_000),
    Run("object", "messages", "object", 2, 20_000, "messages", 2_000),
    Run("communicators", "communicators", "direct", 3, 100_000, "communicators", 3_000),
    Run("allreduce", "allreduce", "hybrid", 3, 1_000, "Allreduces of 4 MB", 100, 300.0, 3 * 4.2),
)


@dataclass
class Outcome:
    """samples: process -> its resident bytes, at each tenth of the run."""

    run: Run
    count: int
    seconds: float = 0.0
    error: str = ""
    samples: dict[str, list[int]] = field(default_factory=dict)

    def verdict(self) -> str:
        if self.error:
            return f"FAIL: {self.error}"
        for name, samples in self.samples.items():
            if samples[-1] > GROWTH * samples[0] + self.run.slack_mb * MB:
                return f"FAIL: {name} grew"
            limit = self.run.emulator_mb
            if name == "emulator" and limit is not None and max(samples) > limit * MB:
                return f"FAIL: the emulator passed {limit:g} MB"
        return "pass"


def endure(run: Run, count: int) -> Outcome:
    """Run it."""
    outcome = Outcome(run, count)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smpi-endurance-")))
        words = ["-n", str(run.ranks), "--channel", run.channel]
        pid = None
        if run.channel != "direct":
            emulator = Emulator(folder)
            stack.callback(emulator.stop)
            words += ["--endpoint", emulator.start()]
            pid = emulator.pid
        words += [str(ROOT / "tests" / "endurance" / "rank.py"), run.program, str(outcome.count)]
        began = time.monotonic()
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("SMPI_")
        }
        with subprocess.Popen(
            [sys.executable, "-m", "serverless_mpi.launch", *words], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environ, "PYTHONPATH": str(ROOT)},
        ) as job:  # fmt: skip
            assert job.stdout is not None and job.stderr is not None
            for line in job.stdout:
                word, _, rank, size = line.split()
                assert word == "SAMPLE"
                outcome.samples.setdefault(f"rank {rank}", []).append(int(size))
                if rank == "0" and pid is not None:
                    outcome.samples.setdefault("emulator", []).append(resident_bytes(pid))
            errors = job.stderr.read().strip()
        outcome.seconds = time.monotonic() - began
    if job.returncode or any(len(samples) != SAMPLES for samples in outcome.samples.values()):
        outcome.error = f"exit code {job.returncode}: {errors.rpartition(chr(10))[2][:200]}"
    return outcome


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    """The table: a row for each process."""
    lines = [
        [
            "run",
            "process",
            "what",
            "seconds",
            "MB at 10 %",
            "MB at most",
            "MB at end",
            "ratio",
            "verdict",
        ]
    ]
    for outcome in outcomes:
        what = f"{outcome.count:,} {outcome.run.counted}, {outcome.run.channel}, {outcome.run.ranks} ranks"
        for name, samples in sorted(outcome.samples.items()) or [("-", [0])]:
            figures = [f"{size / MB:.1f}" for size in (samples[0], max(samples), samples[-1])]
            ratio = f"{samples[-1] / max(samples[0], 1):.3f}"
            lines.append(
                [
                    outcome.run.name,
                    name,
                    what,
                    f"{outcome.seconds:.0f}",
                    *figures,
                    ratio,
                    outcome.verdict(),
                ]
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [run.name for run in RUNS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="short runs, which say little of memory"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full counts to run")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no run {', '.join(unknown)}; there are {', '.join(names)}")
    outcomes = []
    for run in RUNS:
        if not options.names or run.name in options.names:
            outcome = endure(run, run.quick if options.quick else int(run.count * options.scale))
            outcomes.append(outcome)
            print(f"{run.name}: {outcome.seconds:.0f} s, {outcome.verdict()}", flush=True)
    table = rows(outcomes)
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    for row in table:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    if options.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        lines.insert(1, "|" + " --- |" * len(table[0]))
        options.markdown.write_text("\n".join(lines) + "\n")
    return 0 if all(outcome.verdict() == "pass" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
