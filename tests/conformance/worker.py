"""One rank of a run: the cases of test modules one after the other, each outcome a line of JSON in this rank's file.

Started by smpirun and by mpiexec alike, as `worker.py TESTS OUT MODULES FIRST LIMIT CASES [EXCUSED ...]`: TESTS is the suite's
folder, MODULES names with commas, FIRST the number of the case of the first module to begin with, LIMIT the seconds after which a
case counts as hanging and this process ends; of those that a pattern in EXCUSED matches, a tenth of that is enough. CASES is
a `Cases` as JSON.
"""

from __future__ import annotations

import faulthandler
import fnmatch
import importlib
import json
import os
import sys
import time
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Cases  # in the folder of this script


def rank() -> int:
    """This process's rank, from the launcher's variables: asking MPI could fail."""
    return int(os.environ.get("SMPI_RANK") or os.environ.get("PMI_RANK") or 0)


class Recorder(unittest.TestResult):
    """Writes what happens as it happens; a case begun and not ended is the one that hung.

    A record has the keys `module`, `case`, `number` (of the case in its module) and `outcome`: "module" where a module
    begins, "begun" where a case does, and how the case ended, with `detail` and `seconds`; the last is "end".
    """

    def __init__(self, out: Path, limit: float, excused: Sequence[str]) -> None:
        super().__init__()
        self._records = (out / f"rank-{rank()}.jsonl").open("w", buffering=1)
        self._traces = (out / f"rank-{rank()}.trace").open("w")
        self._limit = limit
        self._excused = excused
        self._module = ""
        self.numbers: dict[str, int] = {}
        self._number = 0
        self._outcome = ("pass", "")
        self._began = 0.0

    def module(self, name: str, first: int) -> None:
        """Begin a module with that case."""
        self._module, self._number = name, first - 1
        self.write("module")

    def write(self, outcome: str, case: str = "", **more: Any) -> None:
        """Write a record."""
        record = {"module": self._module, "case": case, "number": self._number, "outcome": outcome}
        self._records.write(json.dumps(record | more) + "\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = ("pass", "")
        self._number = self.numbers[test.id()]
        self.write("begun", test.id())
        short = any(fnmatch.fnmatchcase(test.id(), pattern) for pattern in self._excused)
        faulthandler.dump_traceback_later(
            self._limit / 10 if short else self._limit, exit=True, file=self._traces
        )
        self._began = time.perf_counter()

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        outcome, detail = self._outcome
        seconds = round(time.perf_counter() - self._began, 4)
        self.write(outcome, test.id(), detail=detail, seconds=seconds)

    def _worse(self, outcome: str, detail: str) -> None:
        if self._outcome[0] != "fail":
            self._outcome = (outcome, detail)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        text = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        if isinstance(test, unittest.TestCase):
            self._worse("fail", text)
        else:  # setUpClass or setUpModule failed: its cases never begin
            self.write("broken", str(test), detail=text, seconds=0.0)

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._worse("skip", reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._worse("fail", "unexpected success")


def cases_of(suite: Any) -> list[unittest.TestCase]:
    """The cases of a suite, in the order they run in."""
    return (
        [suite]
        if isinstance(suite, unittest.TestCase)
        else [case for part in suite for case in cases_of(part)]
    )


def main(
    tests: str, out: str, modules: str, first: str, limit: str, cases: str, *excused: str
) -> None:
    sys.path.insert(0, tests)
    sys.dont_write_bytecode = True
    # as the suite's own main does by default: arrays of these only on demand, for they need a GPU
    sys.modules["cupy"] = sys.modules["numba"] = None  # type: ignore[assignment]
    recorder = Recorder(Path(out), float(limit), excused)
    faulthandler.dump_traceback_later(60 + float(limit), exit=True, file=recorder._traces)
    importlib.import_module("mpi4py.MPI")
    choice = Cases(**json.loads(cases))
    backends = importlib.import_module("arrayimpl").ArrayBackends
    backends[:] = [one for one in backends if one.backend in (choice.arrays or [one.backend])]
    begin = int(first)
    for module in modules.split(","):
        recorder.module(module, begin)
        every = cases_of(unittest.defaultTestLoader.loadTestsFromName(module))
        chosen = [case for case in every if choice.cover(case.id())]
        recorder.numbers = {case.id(): number for number, case in enumerate(chosen)}
        suite = unittest.TestSuite()
        suite.addTests(chosen[begin:])
        suite.run(recorder)
        # it was torn down; the next suite would do so again
        recorder._previousTestClass = None  # type: ignore[attr-defined]
        begin = 0
    recorder.write("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
