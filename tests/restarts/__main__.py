"""Jobs whose ranks, launcher and emulator are killed at random: the answer must have the same bits.

    python -m tests.restarts [PROGRAM ...] [--kills N] [--seed S] [--channel NAME] [--markdown FILE]

Per program and channel: N kills (100), seeded; of a rank, of the launcher, after which the program is run
again, and on hybrid of the emulator. A kill comes when the victim has done a random number of steps since it
began, also none. Lost steps are those that rank 0 did more than once. Exit code 0: no wrong answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.restarts.programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "restarts" / "programs.py"
RANKS = 3
STEPS = 300
MOST_STEPS = 40  # between the beginning of a victim and its end
GIVE_UP_S = 180.0
RESTARTS = 1_000_000


@dataclass
class Outcome:
    """What happened in the jobs of one program on one channel."""

    program: str
    channel: str
    ranks_killed: int = 0
    launchers_killed: int = 0
    emulators_killed: int = 0
    jobs: int = 0
    begun: int = 0  # incarnations, as rank 0 saw them
    lost_steps: int = 0
    wrong: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """All kills."""
        return self.ranks_killed + self.launchers_killed + self.emulators_killed

    def row(self) -> str:
        """A row of the table."""
        cells = [
            self.program, self.channel, self.ranks_killed, self.launchers_killed,
            self.emulators_killed, self.jobs, self.begun, self.lost_steps, self.wrong,
            f"{self.seconds:.0f}",
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| program | channel | ranks killed | launchers | emulators | jobs | incarnations | steps done again"
    " | wrong answers | seconds |\n|" + " --- |" * 10
)


def command(program: str, channel: str, folder: Path | None, steps: int) -> list[str]:
    """The command line of a job."""
    words = ["-n", str(RANKS), "--channel", channel, "--restarts", str(RESTARTS)]
    arguments = [str(PROGRAM), program, str(steps), *([] if folder is None else [str(folder)])]
    return [sys.executable, "-m", "serverless_mpi.launch", *words, *arguments]


def environment() -> dict[str, str]:
    """That of a user, whatever job this process is in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SMPI_")}


def lines(folder: Path, rank: int) -> list[str]:
    """The whole lines of a rank's log."""
    try:
        text = (folder / f"log-{rank}").read_text()
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def since_it_began(folder: Path, rank: int) -> tuple[int, int]:
    """Process of a rank's last incarnation, and how many steps that has done; (0, 0) before."""
    steps = 0
    for line in reversed(lines(folder, rank)):
        kind, number = line.split()
        if kind == "P":
            return int(number), steps
        steps += 1
    return 0, 0


def emulator_of(launcher: int) -> int | None:
    """Process of the emulator that a launcher has started."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            if b"server.py" in Path("/proc", pid, "cmdline").read_bytes():
                stat = Path("/proc", pid, "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == launcher:
                    return int(pid)
    return None


class Job:
    """A job, which is run again after its launcher was killed."""

    def __init__(self, outcome: Outcome, folder: Path, steps: int) -> None:
        self._words = command(outcome.program, outcome.channel, folder, steps)
        self._outcome = outcome
        self.folder = folder
        outcome.jobs += 1
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._words, cwd=ROOT, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def kill(self, victim: str, rank: int, steps: int) -> bool:
        """Kill a victim when a rank of a new incarnation has done some steps; False if it ended."""
        killed = getattr(self, "killed", 0)
        end = time.monotonic() + GIVE_UP_S
        while True:
            pid, done = since_it_began(self.folder, rank)
            if pid and pid != killed and done >= steps:
                break
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < end, "the job does not go on"
            time.sleep(0.002)
        self.killed = since_it_began(self.folder, rank)[0]
        if victim == "launcher":
            self.process.kill()
            self.process.communicate(
                timeout=GIVE_UP_S
            )  # the guard has ended all that holds the pipes
            self._outcome.launchers_killed += 1
            self._start()
        elif victim == "emulator":
            emulator = emulator_of(self.process.pid)
            if emulator is None:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(emulator, signal.SIGKILL)
                self._outcome.emulators_killed += 1
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._outcome.ranks_killed += 1
        return True

    def answer(self) -> str:
        """What it prints; its error if it fails."""
        out, err = self.process.communicate(timeout=GIVE_UP_S)
        return out if self.process.returncode == 0 else f"exit {self.process.returncode}: {err}"


def survive(
    program: str, channel: str, kills: int, seed: int, steps: int = STEPS,
    victims: Sequence[str] = ("rank", "rank", "rank", "launcher", "emulator"),
) -> Outcome:  # fmt: skip
    """Kill until there were `kills` kills, and compare every answer."""
    outcome = Outcome(program, channel)
    chance = random.Random(f"{seed} {program} {channel}")
    began = time.monotonic()
    plain = [word for word in command(program, "direct", None, steps) if word != str(RESTARTS)]
    plain.remove("--restarts")
    with tempfile.TemporaryDirectory(prefix="smpi-restarts-") as name:
        alone = subprocess.run(
            plain, cwd=name, env={**environment(), "PYTHONPATH": str(ROOT)}, text=True,
            capture_output=True, timeout=GIVE_UP_S, check=True,
        )  # fmt: skip
        while outcome.kills < kills:
            folder = Path(name) / str(outcome.jobs)
            folder.mkdir()
            job = Job(outcome, folder, steps)
            going = True
            while going and outcome.kills < kills:
                victim = chance.choice(victims)
                if victim == "emulator" and channel == "direct":
                    victim = "rank"
                after = chance.choice([0, chance.randrange(MOST_STEPS)])
                going = job.kill(victim, chance.randrange(RANKS), after)
            answer = job.answer()
            if answer != alone.stdout:
                outcome.wrong += 1
                print(f"{program} on {channel}: {answer!r}, not {alone.stdout!r}", file=sys.stderr)
            log = lines(folder, 0)
            outcome.begun += sum(line.startswith("P") for line in log)
            done = [line for line in log if line.startswith("S")]
            outcome.lost_steps += len(done) - len(set(done))
    outcome.seconds = time.monotonic() - began
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", help=f"of {', '.join(PROGRAMS)}; default: all")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--channel", action="append", choices=("direct", "hybrid"))
    parser.add_argument("--markdown", type=Path, help="write the table to this file, too")
    options = parser.parse_args(arguments)
    unknown = set(options.programs) - set(PROGRAMS)
    if unknown:
        parser.error(f"unknown program {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    rows, wrong = [HEAD], 0
    print(HEAD, flush=True)
    for program in options.programs or PROGRAMS:
        for channel in options.channel or ("direct", "hybrid"):
            outcome = survive(program, channel, options.kills, options.seed)
            rows.append(outcome.row())
            print(rows[-1], flush=True)
            wrong += outcome.wrong
    if options.markdown is not None:
        options.markdown.write_text("\n".join(rows) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
