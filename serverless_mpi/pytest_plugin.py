"""pytest on several ranks: tests run on all ranks of a job, or start ranks of their own.

Under `smpirun -n 3 -m pytest` (or `mpirun`), every rank collects and runs the same tests.
After each test all ranks exchange their reports, so that each of them has the same merged
report: a test fails if it fails on any rank, and the text names the ranks.  Rank 0 prints;
the others print nothing and exit with 0, so that the launcher ends the job by rank 0's code.

In a run without ranks, a test with `@pytest.mark.mpi(n=4)` starts a job: smpirun runs pytest on
4 ranks for this test, rank 0 writes the merged reports to a file, and they become this test's.

A test that hangs is ended by `--mpi-timeout`: an alarm raises `HangError` in each rank that is
inside it, so its traceback is the place of the hang.  The ranks are out of step after that, and
the session ends.  A real MPI does not return from its calls for an alarm, so there all stacks are
printed and the job is aborted.

The marks of pytest-mpi have their meaning.  If pytest-mpi is installed, its own plugin handles
them.  A test that is marked mpi and names no number of ranks runs where it is, unless --mpi-n is
given: the plugin is active wherever the package is installed, and must change no other tests.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from _pytest.terminal import TerminalReporter

from serverless_mpi.env import ENV_JOB
from serverless_mpi.job import MPI_LAUNCHER_VARIABLES

PLUGIN = "serverless-mpi-ranks"
PHASES = ("setup", "call", "teardown")
THEIRS = "pytest_mpi"  # the name of pytest-mpi's plugin
MARKS = (
    "mpi(n=None, min_size=None): runs on several ranks; in a run without ranks it starts n",
    "mpi_skip: is skipped on several ranks",
    "mpi_xfail: is expected to fail on several ranks",
    "mpi_break: is skipped on several ranks, since it breaks MPI",
)


class HangError(Exception):
    """A test took longer than --mpi-timeout."""


# -- options and marks


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    group = parser.getgroup("mpi", "tests on several ranks (serverless-mpi)")
    group.addoption(
        "--mpi-n", type=_ranks, metavar="N", help="ranks of tests marked mpi that name no number"
    )
    group.addoption(
        "--mpi-channel", default="direct", metavar="NAME", help="channel of ranks that tests start"
    )
    group.addoption(
        "--mpi-timeout", type=float, metavar="S", help="longest time of a test on several ranks"
    )
    group.addoption("--mpi-report", metavar="FILE", help="write merged reports (for internal use)")
    if not pluginmanager.hasplugin(THEIRS):
        group.addoption("--with-mpi", action="store_true", help="has no effect (pytest-mpi)")
        group.addoption("--only-mpi", action="store_true", help="run no other tests (pytest-mpi)")


def _ranks(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("at least 1")
    return number


def _has_ranks() -> bool:
    """Return whether a launcher has started this process as one of several ranks."""
    return ENV_JOB in os.environ or any(name in os.environ for name in MPI_LAUNCHER_VARIABLES)


@pytest.hookimpl(trylast=True)  # when the printer is there
def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
    if not _has_ranks():
        return
    mpi = import_module("serverless_mpi.MPI")
    if mpi.COMM_WORLD.size == 1 and not config.getoption("mpi_report"):
        return
    ranks = Ranks(config, mpi)
    config.pluginmanager.register(ranks, PLUGIN)
    printer = config.pluginmanager.get_plugin("terminalreporter")
    if ranks.rank and printer is not None:  # rank 0 alone prints
        config.pluginmanager.unregister(printer)
        silent = TerminalReporter(config, open(os.devnull, "w"))
        config.pluginmanager.register(silent, "terminalreporter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin(THEIRS):
        return
    ranks: Ranks | None = config.pluginmanager.get_plugin(PLUGIN)
    size = 1 if ranks is None else ranks.size
    only = config.getoption("only_mpi")
    for item in items:
        mark = item.get_closest_marker("mpi")
        if mark is None and only:
            item.add_marker(pytest.mark.skip(reason="--only-mpi: it is not marked mpi"))
        if size > 1:
            _mark_for_ranks(item)
            least = None if mark is None else mark.kwargs.get("n") or mark.kwargs.get("min_size")
            if least is not None and least > size:
                reason = f"it needs {least} ranks, and there are {size}"
                item.add_marker(pytest.mark.skip(reason=reason))


def _mark_for_ranks(item: pytest.Item) -> None:
    for name in ("mpi_skip", "mpi_break"):
        if item.get_closest_marker(name) is not None:
            item.add_marker(pytest.mark.skip(reason=f"{name}: not on several ranks"))
    if item.get_closest_marker("mpi_xfail") is not None:
        item.add_marker(pytest.mark.xfail(reason="mpi_xfail: on several ranks"))


# -- a test that starts ranks


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test that is marked mpi on ranks of its own."""
    config = item.config
    mark = item.get_closest_marker("mpi")
    if mark is None or config.pluginmanager.hasplugin(PLUGIN) or _is_skipped(item):
        return None
    n = mark.kwargs.get("n") or mark.kwargs.get("min_size") or config.getoption("mpi_n")
    if n is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _on_ranks(item, n):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _is_skipped(item: pytest.Item) -> bool:
    return item.get_closest_marker("skip") is not None


def _on_ranks(item: pytest.Item, n: int) -> list[pytest.TestReport]:
    """Run one test by smpirun; return its merged reports, or one that says why there are none."""
    config = item.config
    with tempfile.TemporaryDirectory(prefix="smpi-pytest-") as folder:
        file = Path(folder, "reports.json")
        command = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(n)]
        command += [
            "--channel",
            config.getoption("mpi_channel"),
            "-m",
            "pytest",
            "-q",
            "-p",
            __name__,
        ]
        command += ["-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        timeout = config.getoption("mpi_timeout")
        if timeout is not None:
            command += ["--mpi-timeout", str(timeout)]
        command += ["--mpi-report", str(file), str(config.rootpath / item.nodeid)]
        environ = {**os.environ, "PYTEST_ADDOPTS": ""}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=config.invocation_params.dir,
            env=environ,
        )
        if file.exists():
            found = [_loaded(config, data) for data in json.loads(file.read_text())]
            if found and found[-1].when == PHASES[-1]:
                return found
    text = (
        f"the job of {n} ranks ended with exit code {done.returncode}\n{done.stdout}{done.stderr}"
    )
    keywords = dict(item.keywords)
    place = (item.nodeid, item.location, keywords)
    return [
        pytest.TestReport(*place, "passed", None, "setup"),
        pytest.TestReport(*place, "failed", text, "call"),
        pytest.TestReport(*place, "passed", None, "teardown"),
    ]


def _loaded(config: pytest.Config, data: Mapping[str, Any]) -> pytest.TestReport:
    report = config.hook.pytest_report_from_serializable(config=config, data=dict(data))
    assert isinstance(report, pytest.TestReport)
    return report


def _dumped(config: pytest.Config, report: pytest.TestReport) -> dict[str, Any]:
    data: dict[str, Any] = config.hook.pytest_report_to_serializable(config=config, report=report)
    return data


# -- every test on all ranks


def spans(ranks: Iterable[int]) -> str:
    """Return ranks in words, such as "ranks 0 to 2, 5".

    Parameters
    ----------
    ranks
        At least one, ascending.
    """
    found: list[list[int]] = []
    for rank in ranks:
        if found and found[-1][1] == rank - 1:
            found[-1][1] = rank
        else:
            found.append([rank, rank])
    words = [f"{a}" if a == b else f"{a} to {b}" for a, b in found]
    many = len(found) > 1 or found[0][0] != found[0][1]
    return f"rank{'s' * many} {', '.join(words)}"


def merged(reports: Sequence[pytest.TestReport | None]) -> pytest.TestReport | None:
    """Return one report of a phase of all ranks.

    It failed if it failed on any rank, else it passed if it passed on any, else it was skipped.

    Parameters
    ----------
    reports
        By rank; None of a rank that did not reach the phase.
    """
    present = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not present:
        return None
    failed = {rank: report for rank, report in present.items() if report.failed}
    if not failed:
        return next((one for one in present.values() if one.passed), present[min(present)])
    result = failed[min(failed)]
    by_text: dict[str, list[int]] = {}
    for rank, report in failed.items():
        by_text.setdefault(report.longreprtext, []).append(rank)
    others = sorted(set(range(len(reports))) - set(failed))
    parts = [f"on {spans(failed)}: {_summary(result)}"]
    parts += [f"---- {spans(ranks)} ----\n{text}" for text, ranks in by_text.items()]
    if others:
        parts.append(f"---- {spans(others)}: no failure ----")
    result.longrepr = "\n".join(parts)
    result.sections = [
        (f"{title}, rank {rank}", text)
        for rank, report in failed.items()
        for title, text in report.sections
    ]
    return result


def _summary(report: pytest.TestReport) -> str:
    """Return the line of a failure that pytest's own summary shows."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else str(crash.message)
    return text.strip().partition("\n")[0]


class Ranks:
    """The plugin of a process that is one of several ranks.

    Parameters
    ----------
    config
        pytest's.
    mpi
        `serverless_mpi.MPI`, or the real `mpi4py.MPI`.
    """

    def __init__(self, config: pytest.Config, mpi: ModuleType) -> None:
        self._config = config
        self._comm = mpi.COMM_WORLD.Dup()  # tests may leave messages on COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        self._own = mpi.__name__.startswith("serverless_mpi")
        self._limit: float | None = config.getoption("mpi_timeout")
        self._file: str | None = config.getoption("mpi_report")
        self._reports: list[dict[str, Any]] = []
        self._hung = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Compare what the ranks have collected: they must run the same tests in one order."""
        names = "\n".join(item.nodeid for item in session.items)
        digest = hashlib.sha256(names.encode(errors="replace")).hexdigest()
        digests = self._comm.allgather((digest, len(session.items)))
        differ = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if differ:
            counts = ", ".join(str(count) for _, count in digests)
            raise pytest.UsageError(
                f"{spans(differ)} collected other tests than rank 0 ({counts} tests by rank): a"
                " test's name, number or order must not depend on the rank, time or chance"
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._exchange(self._limited(item, nextitem)):
            if self._file is not None:
                self._reports.append(_dumped(self._config, report))
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if self._hung:
            item.session.shouldstop = f"the ranks are out of step after {item.nodeid}"
        return True

    def _exchange(self, own: Sequence[pytest.TestReport]) -> Iterator[pytest.TestReport]:
        """Yield the merged report of each phase."""
        mine = {str(report.when): _dumped(self._config, report) for report in own}
        everyone = self._comm.allgather((mine, self._hung))
        self._hung = any(hung for _, hung in everyone)
        for when in PHASES:
            phase = [
                _loaded(self._config, reports[when]) if when in reports else None
                for reports, _ in everyone
            ]
            report = merged(phase)
            if report is not None:
                yield report

    def _limited(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Sequence[pytest.TestReport]:
        """Run a test, within the limit of time."""
        if self._limit is None:
            return runtestprotocol(item, log=False, nextitem=nextitem)
        if not self._own:
            faulthandler.dump_traceback_later(self._limit, exit=True)
            try:
                return runtestprotocol(item, log=False, nextitem=nextitem)
            finally:
                faulthandler.cancel_dump_traceback_later()
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self._limit)
        try:
            return runtestprotocol(item, log=False, nextitem=nextitem)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._hung = True
        raise HangError(f"the test took longer than --mpi-timeout {self._limit:g} s; it was here")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.rank == 0 and self._file is not None:
            Path(self._file).write_text(json.dumps(self._reports))
        if self.rank:
            session.exitstatus = 0
