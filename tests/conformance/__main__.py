"""The command: runs the suite, prints the table, and says by its exit code whether what is promised holds."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from serverless_mpi.launch.emulator import Emulator
from tests.conformance import exceptions, jobs, suite
from tests.conformance.jobs import Launcher, Outcome

# after so many seconds a case hangs: the longest takes 10 s over direct on an idle machine, and makes tens of thousands of requests
CASE_LIMIT_S = {"direct": 120.0}
CASE_LIMIT_REQUESTS_S = 1800.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=f"mpi4py {suite.VERSION}'s own tests under smpirun and under mpiexec, side by side.",
        epilog="Exit code 0: every case that the real MPI passes in a promised module passes here, or stands in docs/conformance.md.",
    )
    parser.add_argument("--np", default="1,2,3,4,5", help="numbers of ranks (default %(default)s)")
    parser.add_argument(
        "--channel", default="direct", help="direct, hybrid, queue or object (default %(default)s)"
    )
    parser.add_argument(
        "--modules", default="promised", help="names with commas; promised (default) or all"
    )
    parser.add_argument(
        "--cases",
        default="*",
        metavar="PATTERN",
        help="only cases whose full name matches, as *Datatype*",
    )
    parser.add_argument(
        "--limit",
        type=float,
        help="seconds after which a case hangs (default 120 over direct, else 1800)",
    )
    parser.add_argument(
        "--no-mpich",
        action="store_true",
        help="leave the comparison out: every case of this package must pass",
    )
    parser.add_argument(
        "--cached-mpich",
        action="store_true",
        help="use the real MPI's outcomes of an earlier run, if there are any",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print what failing cases had to say"
    )
    return parser


def _modules(text: str) -> list[str]:
    if text in ("promised", "all"):
        return list(suite.PROMISED) if text == "promised" else suite.modules()
    names = [name if name.startswith("test_") else f"test_{name}" for name in text.split(",")]
    unknown = set(names) - set(suite.modules())
    if unknown:
        raise SystemExit(
            f"no such module in mpi4py's tests: {', '.join(sorted(unknown))}; known: {', '.join(suite.modules())}"
        )
    return names


def _real(size: int, module: str, limit: float, pattern: str, cached: bool) -> dict[str, Outcome]:
    """The real MPI's outcomes, run now, or with `cached` those of an earlier run."""
    store = suite.cache() / f"mpich-{version('mpich')}" / f"{module}.{size}.json"
    if cached and store.exists():
        return {case: Outcome(kind) for case, kind in json.loads(store.read_text()).items()}
    outcomes = jobs.run(jobs.mpiexec(), size, module, limit, pattern)
    if pattern == "*":
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({case: outcome.kind for case, outcome in outcomes.items()}))
    return outcomes


def _count(outcomes: dict[str, Outcome], kind: str) -> int:
    return sum(outcome.kind == kind for outcome in outcomes.values())


def _owed(here: dict[str, Outcome], real: dict[str, Outcome] | None) -> list[str]:
    """The cases that do not pass here though they do under the real MPI (or, without it, that fail)."""
    if real is None:
        return [case for case, outcome in here.items() if outcome.kind == "fail"]
    missing = Outcome("fail", "it did not run")
    return [
        case
        for case, outcome in real.items()
        if outcome.kind == "pass" and here.get(case, missing).kind != "pass"
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, judge."""
    asked = _parser().parse_args(words)
    sizes = [int(size) for size in asked.np.split(",")]
    limit = asked.limit or CASE_LIMIT_S.get(asked.channel, CASE_LIMIT_REQUESTS_S)
    modules = _modules(asked.modules)
    listed = exceptions.read()
    failures: list[str] = []
    totals = [0, 0, 0]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        endpoint = None
        if asked.channel != "direct":
            emulator = Emulator(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.callback(emulator.stop)
            endpoint = emulator.start()
        launcher: Launcher = jobs.smpirun(asked.channel, endpoint)
        print(
            f"{'module':24}{'np':>3}{launcher.name:>9}{'mpich':>9}{'skipped':>9}{'not here':>10}{'listed':>8}{'s':>8}{'mpich s':>9}"
        )
        for module in modules:
            for size in sizes:
                start = time.monotonic()
                excused_here = [line.pattern for line in listed if line.at(size)]
                here = jobs.run(launcher, size, module, limit, asked.cases, excused_here)
                middle = time.monotonic()
                real = (
                    None
                    if asked.no_mpich
                    else _real(size, module, limit, asked.cases, asked.cached_mpich)
                )
                end = time.monotonic()
                owed = _owed(here, real)
                for line in listed:
                    ran = [case for case in here if line.covers(case, size)]
                    line.ran += len(ran)
                    line.failed += sum(here[case].kind != "pass" for case in ran)
                excused = [case for case in owed if any(line.covers(case, size) for line in listed)]
                faults = [case for case in owed if case not in excused]
                passed = _count(here, "pass")
                known = _count(real, "pass") if real is not None else 0
                totals[0] += passed
                totals[1] += known
                totals[2] += len(excused)
                row = f"{module:24}{size:>3}{passed:>9}{known or '-':>9}{_count(here, 'skip'):>9}{len(faults):>10}{len(excused):>8}"
                promised = module in suite.PROMISED
                print(
                    f"{row}{middle - start:>8.1f}{end - middle:>9.1f}{'' if promised else '  not promised'}",
                    flush=True,
                )
                broken = [case for case in here if case.startswith("(")]
                for case in broken or faults:
                    outcome = here.get(case, Outcome("missing", "it did not run"))
                    if promised or asked.verbose:
                        print(f"    {outcome.kind} {case} on {size} ranks")
                    if asked.verbose:
                        print("      " + outcome.detail.replace("\n", "\n      "))
                if promised:
                    failures += [f"{case} on {size} ranks" for case in faults]
    stale = [line for line in listed if line.ran and not line.failed]
    for line in stale:
        print(f"docs/conformance.md lists {line.pattern}, which passes; take the line out")
    print(
        f"{totals[0]} passed here, {totals[1]} under the real MPI, {totals[2]} listed with a reason, {len(failures)} failed; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failures or stale else 0


if __name__ == "__main__":
    sys.exit(main())
