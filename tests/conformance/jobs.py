"""Runs a module's cases on N ranks, under smpirun or mpiexec, to the last case: after one that hangs or kills a rank, from the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import suite

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent
MOST_SECONDS = (
    6 * 3600.0
)  # of a module: the ranks end hanging cases themselves, so this is never reached
_WORST = ("fail", "skip", "pass")


@dataclass
class Outcome:
    """Of one case over all ranks. kind: pass, skip, or fail; detail: what the ranks that failed had to say."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Launcher:
    """How N ranks of the worker are started. name: what the table calls it; words: the command before the ranks' own."""

    name: str
    words: tuple[str, ...]

    def command(self, size: int) -> list[str]:
        """Up to the program."""
        return [str(size) if word == "{n}" else word for word in self.words]


def smpirun(channel: str, endpoint: str | None) -> Launcher:
    """This package."""
    words = [sys.executable, "-m", "serverless_mpi.launch", "-n", "{n}", "--channel", channel]
    return Launcher(channel, (*words, *(("--endpoint", endpoint) if endpoint else ())))


def mpiexec() -> Launcher:
    """The real MPI of the mpich wheel."""
    return Launcher(
        "mpich", (str(Path(sys.executable).parent / "mpiexec"), "-n", "{n}", sys.executable)
    )


def run(
    launcher: Launcher,
    size: int,
    module: str,
    limit: float,
    pattern: str = "*",
    excused: Sequence[str] = (),
) -> dict[str, Outcome]:
    """Outcome of each case of a module on `size` ranks; a key without a case's name is what broke the module as a whole.

    excused: patterns of cases that need not pass, and are not waited for as long.
    """
    outcomes: dict[str, Outcome] = {}
    first = 0
    while first is not None:
        with tempfile.TemporaryDirectory() as out:
            words = [
                str(WORKER),
                str(suite.folder()),
                out,
                module,
                str(first),
                str(limit),
                pattern,
                *excused,
            ]
            environ = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SMPI_JOB", "PMI_"))
            }
            done = subprocess.run(
                [*launcher.command(size), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MOST_SECONDS,
                cwd=ROOT,
                env=environ,
            )
            first = _read(
                Path(out),
                size,
                outcomes,
                first,
                f"exit code {done.returncode}\n{done.stderr[-4000:]}",
            )
    return outcomes


def _read(out: Path, size: int, outcomes: dict[str, Outcome], first: int, story: str) -> int | None:
    """Take the ranks' records; the case to go on from, or None where all ranks came to their end."""
    ranks = [_records(out / f"rank-{rank}.jsonl") for rank in range(size)]
    ended = all(records and records[-1]["outcome"] == "end" for records in ranks)
    stop = None
    if not ended:
        stopped = [
            records[-1] for records in ranks if records and records[-1]["outcome"] == "begun"
        ]
        if not stopped:
            outcomes[f"(from case {first} on)"] = Outcome("fail", story)
            return None
        culprit = min(stopped, key=lambda record: record["number"])
        stop = culprit["number"]
        traces = [f"--- rank {rank}\n{_text(out / f'rank-{rank}.trace')}" for rank in range(size)]
        outcomes[culprit["case"]] = Outcome(
            "fail", "\n".join([f"hung, or ended a rank: {story}", *traces])
        )
    seen: dict[str, list[tuple[int, str, str]]] = {}
    for rank, records in enumerate(ranks):
        for record in records:
            if record["outcome"] not in ("begun", "end") and (
                stop is None or record["number"] < stop
            ):
                kind = "fail" if record["outcome"] == "broken" else record["outcome"]
                seen.setdefault(record["case"], []).append((rank, kind, record["detail"]))
    for case, parts in seen.items():
        kind = min((kind for _, kind, _ in parts), key=_WORST.index)
        if kind != "fail" and len(parts) < size:
            kind, parts = "fail", [(-1, "fail", f"only {len(parts)} of {size} ranks ran it")]
        detail = [f"--- rank {rank}\n{text}" for rank, of, text in parts if of == kind and text]
        outcomes[case] = Outcome(kind, "\n".join(detail))
    return None if stop is None else stop + 1


def _records(path: Path) -> list[dict[str, str]]:
    lines = _text(path).splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
