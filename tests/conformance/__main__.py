"""The command: runs the suite, prints the table, and says by its exit code whether what is promised holds."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from serverless_mpi.launch.emulator import Emulator
from tests.conformance import exceptions, jobs, recorded, suite
from tests.conformance.cases import Cases
from tests.conformance.jobs import Module, Outcome

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
        "--modules",
        default="promised",
        help="names with commas; promised (default), short (promised, without the modules,"
        " cases and kinds of arrays that take minutes) or all",
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
        help="use the real MPI's outcomes that are recorded for its version, or of an earlier run",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="run the real MPI, and write its outcomes to tests/conformance/recorded.json",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print what failing cases had to say"
    )
    return parser


def _modules(text: str) -> list[str]:
    if text in ("promised", "all"):
        return list(suite.PROMISED) if text == "promised" else suite.modules()
    if text == "short":
        return [name for name in suite.PROMISED if f"{name}.*" not in suite.LONG]
    names = [name if name.startswith("test_") else f"test_{name}" for name in text.split(",")]
    unknown = set(names) - set(suite.modules())
    if unknown:
        raise SystemExit(
            f"no such module in mpi4py's tests: {', '.join(sorted(unknown))}; known: {', '.join(suite.modules())}"
        )
    return names


def _real(
    size: int, modules: Sequence[str], limit: float, cases: Cases, cached: bool
) -> dict[str, Module]:
    """The real MPI's outcomes, run now, or with `cached` those of an earlier run."""
    folder = suite.cache() / f"mpich-{version('mpich')}"
    stores = {module: folder / f"{module}.{size}.json" for module in modules}
    found = recorded.read(size, modules) if cached else {}
    for module, store in stores.items() if cached else ():
        if store.exists() and module not in found:
            kinds = json.loads(store.read_text())
            found[module] = Module({case: Outcome(kind) for case, kind in kinds.items()})
    missing = [module for module in modules if module not in found]
    run = jobs.run(jobs.mpiexec(), size, missing, limit, cases)
    for module, now in run.items() if cases == Cases() else ():
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {case: outcome.kind for case, outcome in now.outcomes.items()}
        draft = stores[module].with_suffix(f".{os.getpid()}")  # another run may read it now
        draft.write_text(json.dumps(kinds))
        draft.replace(stores[module])
    for module in found.values():
        module.outcomes = {
            case: outcome
            for case, outcome in module.outcomes.items()
            if case.startswith("(") or cases.cover(case)
        }
    return found | run


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


class Table:
    """Prints a row for each module and number of ranks, and adds up what the verdict needs."""

    def __init__(self, name: str, verbose: bool) -> None:
        self.listed = exceptions.read()
        self.failures: list[str] = []
        self.passed = self.known = self.excused = 0
        self._verbose = verbose
        print(
            f"{'module':24}{'np':>3}{name:>9}{'mpich':>9}{'skipped':>9}{'not here':>10}{'listed':>8}{'s':>8}{'mpich s':>9}"
        )

    def add(self, module: str, size: int, here: Module, real: Module | None) -> None:
        """One row: what came out here, and under the real MPI."""
        outcomes = here.outcomes
        owed = _owed(outcomes, None if real is None else real.outcomes)
        for line in self.listed:
            ran = [case for case in outcomes if line.covers(case, size)]
            line.ran += len(ran)
            line.failed += sum(outcomes[case].kind != "pass" for case in ran)
        excused = [case for case in owed if any(line.covers(case, size) for line in self.listed)]
        faults = [case for case in owed if case not in excused]
        passed = _count(outcomes, "pass")
        known = _count(real.outcomes, "pass") if real is not None else 0
        self.passed += passed
        self.known += known
        self.excused += len(excused)
        row = f"{module:24}{size:>3}{passed:>9}{known or '-':>9}{_count(outcomes, 'skip'):>9}{len(faults):>10}{len(excused):>8}"
        promised = module in suite.PROMISED
        seconds = 0.0 if real is None else real.seconds
        print(
            f"{row}{here.seconds:>8.1f}{seconds:>9.1f}{'' if promised else '  not promised'}",
            flush=True,
        )
        broken = [case for case in outcomes if case.startswith("(")]
        for case in broken or faults:
            outcome = outcomes.get(case, Outcome("missing", "it did not run"))
            if promised or self._verbose:
                print(f"    {outcome.kind} {case} on {size} ranks")
            if self._verbose:
                print("      " + outcome.detail.replace("\n", "\n      "))
        if promised:
            self.failures += [f"{case} on {size} ranks" for case in faults]
            for case, outcome in real.outcomes.items() if real is not None else ():
                if case.startswith("("):
                    print(f"    under the real MPI: {outcome.kind} {case}: {outcome.detail[-500:]}")
                    self.failures.append(f"{module} on {size} ranks under the real MPI")

    def end(self, seconds: float) -> int:
        """The sums, and an exit code."""
        stale = [line for line in self.listed if line.ran and not line.failed]
        for line in stale:
            print(f"docs/conformance.md lists {line.pattern}, which passes; take the line out")
        print(
            f"{self.passed} passed here, {self.known} under the real MPI, {self.excused} listed with a reason, "
            f"{len(self.failures)} failed; {seconds:.0f} s"
        )
        return 1 if self.failures or stale else 0


def main(words: Sequence[str] | None = None) -> int:
    """Run, print, judge."""
    asked = _parser().parse_args(words)
    limit = asked.limit or CASE_LIMIT_S.get(asked.channel, CASE_LIMIT_REQUESTS_S)
    modules = _modules(asked.modules)
    cases = Cases(asked.cases)
    if asked.modules == "short":
        cases = Cases(asked.cases, suite.LONG, suite.SHORT_ARRAYS)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        endpoint = None
        if asked.channel != "direct":
            emulator = Emulator(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.callback(emulator.stop)
            endpoint = emulator.start()
        launcher = jobs.smpirun(asked.channel, endpoint)
        table = Table(launcher.name, asked.verbose)
        for size in map(int, asked.np.split(",")):
            excused = [line.pattern for line in table.listed if line.at(size)]
            here = jobs.run(launcher, size, modules, limit, cases, excused)
            real = {}
            if not asked.no_mpich:
                real = _real(size, modules, limit, cases, asked.cached_mpich)
            if asked.record and cases == Cases():
                recorded.write(size, real)
            for module in modules:
                table.add(module, size, here[module], real.get(module))
    return table.end(time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
