"""Runs the cases of modules on N ranks, under smpirun or mpiexec, to the last case.

One job runs all modules, as mpi4py's own `runtests.py` does: an interpreter starts in 0.2 s, most
modules take less.  After a case that hangs or ends a rank, another job continues with the next case;
after a module that breaks outside of its cases (at import, in `setUpClass`), with the next module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance import suite
from tests.conformance.cases import Cases

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent
MOST_SECONDS = (
    12 * 3600.0
)  # of a job: the ranks end hanging cases themselves, so this is never reached
_WORST = ("fail", "skip", "pass")


@dataclass
class Outcome:
    """Of one case over all ranks. kind: pass, skip, or fail; detail: what the ranks that failed had to say."""

    kind: str
    detail: str = ""


@dataclass
class Module:
    """Of one module: the outcome of each case, and the seconds that rank 0 spent in its cases.

    A key without the name of a case is what broke the module as a whole.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0


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
    modules: Sequence[str],
    limit: float,
    cases: Cases = Cases(),
    excused: Sequence[str] = (),
) -> dict[str, Module]:
    """What each module's cases on `size` ranks came to.

    excused: patterns of cases that need not pass, and are not waited for as long.
    """
    found = {module: Module() for module in modules}
    left, first = list(modules), 0
    chosen = cases.to_json()
    environ = {
        **{
            name: os.environ[name]
            for name in os.environ
            if not name.startswith(("SMPI_JOB", "PMI_"))
        },
        # MPICH's ranks poll: with more of them than cores each takes its whole time slice from the others
        "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
        # workers that a case spawns import the case's module
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(suite.folder()), os.environ.get("PYTHONPATH")))
        ),
    }
    while left:
        with tempfile.TemporaryDirectory() as out:
            words = [str(WORKER), str(suite.folder()), out, ",".join(left), str(first), str(limit)]
            done = subprocess.run(
                [*launcher.command(size), *words, chosen, *excused],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=MOST_SECONDS,
                cwd=ROOT,
                env=environ,
            )
            story = f"exit code {done.returncode}\n{done.stderr[-4000:]}"
            left, first = _read(Path(out), size, found, left, first, story)
    return found


def _read(
    out: Path, size: int, found: dict[str, Module], modules: Sequence[str], first: int, story: str
) -> tuple[list[str], int]:
    """Take the ranks' records; the modules to go on with, and the first case of the first of them."""
    ranks = [_records(out / f"rank-{rank}.jsonl") for rank in range(size)]
    stop, left = None, list[str]()
    if not all(records and records[-1]["outcome"] == "end" for records in ranks):
        stopped = [
            records[-1] for records in ranks if records and records[-1]["outcome"] == "begun"
        ]
        if stopped:
            culprit = min(stopped, key=lambda record: _place(record, modules))
            stop = _place(culprit, modules)
            traces = [
                f"--- rank {rank}\n{_text(out / f'rank-{rank}.trace')}" for rank in range(size)
            ]
            found[culprit["module"]].outcomes[culprit["case"]] = Outcome(
                "fail", "\n".join([f"hung, or ended a rank: {story}", *traces])
            )
            left, first = list(modules[stop[0] :]), stop[1] + 1
        else:  # between two cases
            begin = {"outcome": "module", "module": modules[0], "number": first - 1}
            index, number = min(_place([begin, *records][-1], modules) for records in ranks)
            stop = index, number + 1
            found[modules[stop[0]]].outcomes[f"(from case {stop[1]} on)"] = Outcome("fail", story)
            left, first = list(modules[stop[0] + 1 :]), 0
    _judge(ranks, found, modules, stop)
    return left, first


def _judge(
    ranks: Sequence[list[dict[str, Any]]],
    found: dict[str, Module],
    modules: Sequence[str],
    stop: tuple[int, int] | None,
) -> None:
    """Add the outcomes of the cases before `stop`: a case passes if it passes on every rank."""
    seen: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for rank, records in enumerate(ranks):
        for record in records:
            if record["outcome"] not in ("module", "begun", "end") and (
                stop is None or _place(record, modules) < stop
            ):
                kind = "fail" if record["outcome"] == "broken" else record["outcome"]
                key = record["module"], record["case"]
                seen.setdefault(key, []).append((rank, kind, record["detail"]))
                if rank == 0:
                    found[record["module"]].seconds += record["seconds"]
    for (module, case), parts in seen.items():
        kind = min((kind for _, kind, _ in parts), key=_WORST.index)
        if kind != "fail" and len(parts) < len(ranks):
            kind, parts = "fail", [(-1, "fail", f"only {len(parts)} of {len(ranks)} ranks ran it")]
        detail = [f"--- rank {rank}\n{text}" for rank, of, text in parts if of == kind and text]
        found[module].outcomes[case] = Outcome(kind, "\n".join(detail))


def _place(record: dict[str, Any], modules: Sequence[str]) -> tuple[int, int]:
    """Where in the run a record was written: its module's index and its case's number."""
    if record["outcome"] == "end":
        return len(modules), 0
    return modules.index(record["module"]), record["number"]


def _records(path: Path) -> list[dict[str, Any]]:
    lines = _text(path).splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
