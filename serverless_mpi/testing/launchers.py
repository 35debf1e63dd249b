"""The contract of a launcher, checked with jobs of smpirun.

`check_launcher` starts `smpirun --platform NAME` as a user does, with small
programs, and checks the outcome: exit codes, lines, files, processes.  A promise
of an option is checked only if the launcher declares in `honors` that the option
has an effect; the other options must be refused.  So a launcher that claims
`--timeout` and ignores it fails, and one that does not claim it passes.

Every program ends by itself after `patience_s`.  So a launcher that breaks a
promise fails a check, and the suite does not wait forever.

A new promise is one function with `@_promise` here.  It is checked for every
launcher that is registered, extensions included.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from serverless_mpi import launch
from serverless_mpi.errors import UsageError
from serverless_mpi.launch import cli
from serverless_mpi.launch.base import COMMON_FIELDS, EXIT_DEADLOCK, EXIT_TIMEOUT, Plan, option_of

__all__ = ["PROMISES", "check_launcher"]

_MARK = "CHECK_LAUNCHER_MARK"  # a variable by which the processes of a job are found
_GONE_S = 10.0  # within this time a killed process has left the process table
_RANKS = 3

_OUT_OF_PATIENCE = "the launcher did not stop this rank"
# The head of each program.  A rank that is not stopped reports that and exits.
_HEAD = f"""\
import os, sys, threading, time
def end_by_itself():
    os.write(2, b"{_OUT_OF_PATIENCE}\\n")
    os._exit(0)
patience = threading.Timer({{patience_s}}, end_by_itself)
patience.daemon = True
patience.start()
from serverless_mpi import MPI
comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
"""


@dataclass(frozen=True)
class _Case:
    """The launcher that is checked, and how its jobs are started."""

    name: str
    workdir: Path
    options: tuple[str, ...]
    stdin: bool
    patience_s: float

    @property
    def temporary(self) -> Path:
        return self.workdir / "tmp"

    def program(self, body: str, name: str = "program.py") -> str:
        """Write a program to the working directory; return its path."""
        path = self.workdir / name
        path.write_text(_HEAD.format(patience_s=self.patience_s) + body)
        return str(path)

    def start(self, *arguments: object) -> tuple[subprocess.Popen[str], str]:
        """Start smpirun; return it and the mark of its processes."""
        mark = secrets.token_hex(8)
        self.temporary.mkdir(exist_ok=True)
        environ = {**os.environ, _MARK: mark, "TMPDIR": str(self.temporary)}
        command = [sys.executable, "-m", "serverless_mpi.launch", "--platform", self.name]
        job = subprocess.Popen(
            [*command, *self.options, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        return job, mark

    def end(
        self, job: subprocess.Popen[str], mark: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Wait for a job, and check that it leaves nothing behind."""
        try:
            out, err = job.communicate(stdin, timeout=20 * self.patience_s)
        except subprocess.TimeoutExpired:
            job.kill()
            job.communicate()
            raise AssertionError(
                f"the job did not end, though its ranks end after {self.patience_s:g} s"
            ) from None
        assert _OUT_OF_PATIENCE not in err, (
            f"a rank was not stopped; it ended by itself after {self.patience_s:g} s"
        )
        deadline = time.monotonic() + _GONE_S
        while (left := _marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, f"processes are left behind: {', '.join(left)}"
        files = sorted(path.name for path in self.temporary.iterdir())
        assert not files, f"left behind in the temporary directory: {', '.join(files)}"
        return subprocess.CompletedProcess(job.args, job.returncode, out, err)

    def run(self, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        return self.end(*self.start(*arguments), stdin)


@dataclass(frozen=True)
class Promise:
    """Something that users rely on.

    Attributes
    ----------
    name
        The promise in words, for the report.
    check
        Raises AssertionError if the launcher breaks it.
    needs
        Field of `Plan`; the promise concerns launchers that honor it. None for all launchers.
    """

    name: str
    check: Callable[[_Case], None]
    needs: str | None


PROMISES: dict[str, Promise] = {}


def _promise(
    name: str, needs: str | None = None
) -> Callable[[Callable[[_Case], None]], Callable[[_Case], None]]:
    def register(check: Callable[[_Case], None]) -> Callable[[_Case], None]:
        PROMISES[name] = Promise(name, check, needs)
        return check

    return register


def check_launcher(
    name: str,
    workdir: Path,
    *,
    options: Sequence[str] = ("--channel", "direct"),
    promises: Iterable[str] | None = None,
    stdin: bool = True,
    patience_s: float = 10.0,
) -> None:
    """Check the launcher of a platform against the promises that hold on every platform.

    Parameters
    ----------
    name
        Name of the platform, as after `--platform`: one of the package, or an entry point.
    workdir
        An empty folder for programs and temporary files; it is not removed.
    options
        Options of smpirun for every job: a channel that works on the platform, and an endpoint
        and a stack if it needs them.
    promises
        Names from `PROMISES`; all by default.
    stdin
        Whether rank 0 reads the standard input of smpirun on this platform.
    patience_s
        After this many seconds each rank of a check ends by itself, with exit code 0.
        Must be longer than a job takes to start.

    Raises
    ------
    AssertionError
        A promise is broken; the text names the promise and what was observed.
    UsageError
        There is no such platform, or no such promise.

    Notes
    -----
    On one machine a promise takes about half a second.  Processes that are left behind are
    detected on Linux only, in /proc.
    """
    launcher = launch.load(name)
    case = _Case(name, workdir, tuple(options), stdin, patience_s)
    for title in PROMISES if promises is None else promises:
        if title not in PROMISES:
            raise UsageError(f"unknown promise {title!r}; known: {', '.join(PROMISES)}")
        promise = PROMISES[title]
        if promise.needs is not None and promise.needs not in launcher.honors:
            continue
        try:
            promise.check(case)
        except AssertionError as error:
            raise AssertionError(f"platform {name}: {title}: {error}") from error


def _marked(mark: str) -> list[str]:
    """Return the ids of processes with that mark in their environment (Linux)."""
    wanted = f"{_MARK}={mark}".encode()
    marked = []
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if not entry.name.isdigit():
            continue
        try:
            environ = Path(entry.path, "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if wanted in environ.split(b"\0"):
            marked.append(entry.name)
    return marked


def _expect(job: subprocess.CompletedProcess[str], code: int) -> None:
    assert job.returncode == code, (
        f"exit code {job.returncode}, expected {code}; standard error: {job.stderr[-2000:]!r}"
    )


def _expect_lines(text: str, expected: Iterable[str]) -> None:
    lines, wanted = sorted(text.splitlines()), sorted(expected)
    assert lines == wanted, f"the output has the lines {lines[:20]}, expected {wanted[:20]}"


# -- promises of every launcher


@_promise("ranks are numbered through the programs")
def _check_numbers(case: _Case) -> None:
    """Run `-n 1 a.py x : -n 2 b.py`: a.py is rank 0, and b.py is ranks 1 and 2."""
    body = "print({!r}, rank, size, sys.argv[1:])\n"
    first, second = (case.program(body.format(name), f"{name}.py") for name in "ab")
    job = case.run("-n", 1, first, "x", ":", "-n", 2, second)
    _expect(job, 0)
    _expect_lines(job.stdout, ["a 0 3 ['x']", "b 1 3 []", "b 2 3 []"])


@_promise("ranks reach each other")
def _check_messages(case: _Case) -> None:
    job = case.run("-n", _RANKS, case.program("print(comm.allreduce(rank))\n"))
    _expect(job, 0)
    _expect_lines(job.stdout, ["3"] * _RANKS)


@_promise("the exit code is that of the rank that failed first")
def _check_exit_code(case: _Case) -> None:
    """Let a rank fail: the others, which wait forever, are stopped, and the error names it."""
    body = "if rank == 1: sys.exit(7)\ncomm.recv(source=1)\n"
    job = case.run("-n", _RANKS, case.program(body))
    _expect(job, 7)
    assert "rank 1" in job.stderr, f"no line names rank 1: {job.stderr!r}"


@_promise("a rank that signal N ended gives 128 + N")
def _check_signalled(case: _Case) -> None:
    body = "if rank == 1: os.kill(os.getpid(), 9)\ncomm.recv(source=1)\n"
    _expect(case.run("-n", 2, case.program(body)), 128 + signal.SIGKILL)


@_promise("processes that a rank started end with the job")
def _check_descendants(case: _Case) -> None:
    """Leave a process running; `_Case.end` finds it by its mark."""
    body = (
        "import subprocess\n"
        "if rank == 0: subprocess.Popen(['sleep', '{:.0f}'])\n"
        "comm.barrier()\n"
        "if rank == 1: sys.exit(3)\n"
        "comm.recv(source=1)\n"
    )
    _expect(case.run("-n", 2, case.program(body.format(30 * case.patience_s))), 3)


@_promise("Ctrl-C stops every rank")
def _check_interrupt(case: _Case) -> None:
    """Interrupt: the exit code is 130, and the lines that ranks wrote before have arrived."""
    job, mark = case.start("-n", 2, case.program("print(rank, flush=True)\ncomm.recv(rank)\n"))
    assert job.stdout is not None
    begun = [job.stdout.readline() for _ in range(2)]
    job.send_signal(signal.SIGINT)
    _expect(case.end(job, mark), 128 + signal.SIGINT)
    _expect_lines("".join(begun), ["0", "1"])


@_promise("lines of output are whole")
def _check_lines(case: _Case) -> None:
    """Write lines in two halves: those of several ranks and both streams are not mixed."""
    body = (
        "for number in range(20):\n"
        "    for stream, name in ((sys.stdout, 'out'), (sys.stderr, 'err')):\n"
        "        stream.write(name + ' ' + str(rank) * 3000); stream.flush()\n"
        "        stream.write(f' {number}\\n'); stream.flush()\n"
    )
    job = case.run("-n", _RANKS, case.program(body))
    _expect(job, 0)
    for name, text in (("out", job.stdout), ("err", job.stderr)):
        expected = [
            f"{name} {str(rank) * 3000} {number}" for rank in range(_RANKS) for number in range(20)
        ]
        assert sorted(text.splitlines()) == sorted(expected), (
            f"lines of std{name} are mixed or lost"
        )


@_promise("no rank but 0 reads standard input")
def _check_stdin(case: _Case) -> None:
    """Let the others read first: a rank that shared the input with rank 0 would get the text."""
    body = (
        "if rank == 0: comm.barrier()\n"
        "print(rank, repr(sys.stdin.read()))\n"
        "if rank == 1: comm.barrier()\n"
    )
    job = case.run("-n", 2, case.program(body), stdin="text")
    _expect(job, 0)
    _expect_lines(job.stdout, [f"0 {'text' if case.stdin else ''!r}", "1 ''"])


@_promise("an option without effect is refused by its name")
def _check_refusals(case: _Case) -> None:
    """Use the option of every field of `Plan` that the launcher does not honor."""
    launcher = launch.load(case.name)
    for entry in fields(Plan):
        if entry.name in COMMON_FIELDS or entry.name in launcher.honors:
            continue
        option = option_of(entry.name)
        arguments = [option, *_VALUES.get(entry.name, ())]
        assert entry.default is not MISSING or entry.name in _VALUES, f"no value for {option}"
        try:
            cli.plan(["--platform", case.name, *arguments, "program.py"], {})
        except UsageError as error:
            assert str(error).startswith(f"{option} has no effect"), f"{option}: {error}"
        else:
            raise AssertionError(f"{option} is neither honored nor refused")


# A value for each option that takes one.  It is not the default.
_VALUES: dict[str, tuple[str, ...]] = {
    "endpoint": ("http://127.0.0.1:1",),
    "port": ("1",),
    "host": ("127.0.0.1",),
    "ppn": ("2",),
    "echo": ("http://127.0.0.1:1/",),
    "region": ("eu-west-1",),
    "outfile": ("%r.out",),
    "errfile": ("%r.err",),
    "debug": ("0",),
    "debugpy": ("5678",),
    "timeout_s": ("5",),
    "deadlock_s": ("5",),
    "restarts": ("2",),
    "stats": ("json",),
    "prices": ("prices.json",),
    "figures": ("figures.json",),
    "algorithms": ("bcast=binomial",),
    "trace": ("trace.json",),
    "stack": ("other",),
    "memory_mb": ("1024",),
    "branching": ("2",),
    "budget_usd": ("1",),
    "requirements": ("requirements.txt",),
}


# -- promises of an option


@_promise("--timeout stops the job with exit code 124", needs="timeout_s")
def _check_timeout(case: _Case) -> None:
    body = f"time.sleep({2 * case.patience_s})\n"
    job = case.run("-n", 2, "--timeout", case.patience_s / 10, case.program(body))
    _expect(job, EXIT_TIMEOUT)
    assert "--timeout" in job.stderr, f"no line names --timeout: {job.stderr!r}"


@_promise("--restarts starts the job again when a rank is killed", needs="restarts")
def _check_restarts(case: _Case) -> None:
    """Kill a rank in each incarnation but the third; then in each of two."""
    mark = case.workdir / "incarnations"
    body = (
        f"path = {str(mark)!r}\n"
        "if rank == 1:\n"
        "    with open(path, 'a') as file: file.write('x')\n"
        "    if os.path.getsize(path) % 3: os.kill(os.getpid(), 9)\n"
        "print(comm.allreduce(rank))\n"
    )
    job = case.run("-n", 2, "--restarts", 2, case.program(body))
    _expect(job, 0)
    _expect_lines(job.stdout, ["1", "1"])
    _expect(case.run("-n", 2, "--restarts", 1, case.program(body)), 128 + signal.SIGKILL)
    assert mark.read_text() == "x" * 5, f"the job began {len(mark.read_text())} times, expected 5"


@_promise("--deadlock ends the job with exit code 125", needs="deadlock_s")
def _check_deadlock(case: _Case) -> None:
    """Let all ranks wait. Another process limits the time: a thread with a timer may still act."""
    body = (
        "import subprocess\n"
        "patience.cancel()\n"
        f"command = f'sleep {case.patience_s:.0f}; kill -9 {{os.getpid()}}'\n"
        "subprocess.Popen(['sh', '-c', command], stdin=subprocess.DEVNULL)\n"
        "comm.recv(source=(rank + 1) % size)\n"
    )
    job = case.run("-n", 2, "--deadlock", case.patience_s / 20, case.program(body))
    _expect(job, EXIT_DEADLOCK)
    assert "deadlock" in job.stderr and "rank 1" in job.stderr, job.stderr


@_promise("--tag-output begins each line with its rank", needs="tag_output")
def _check_tags(case: _Case) -> None:
    job = case.run("-n", 2, "--tag-output", case.program("print('line')\nprint('more')\n"))
    _expect(job, 0)
    _expect_lines(
        job.stdout, [f"[{rank}] {text}" for rank in range(2) for text in ("line", "more")]
    )


@_promise("--outfile writes a file per rank", needs="outfile")
def _check_outfile(case: _Case) -> None:
    pattern = str(case.workdir / "lines" / "%r.out")
    job = case.run("-n", 2, "--outfile", pattern, case.program("print('rank', rank)\n"))
    _expect(job, 0)
    _expect_lines(job.stdout, [])
    for rank in range(2):
        text = (case.workdir / "lines" / f"{rank}.out").read_text()
        assert text == f"rank {rank}\n", text


@_promise("--errfile writes a file per rank", needs="errfile")
def _check_errfile(case: _Case) -> None:
    pattern = str(case.workdir / "%r.err")
    body = "print('rank', rank, file=sys.stderr)\n"
    job = case.run("-n", 2, "--errfile", pattern, case.program(body))
    _expect(job, 0)
    for rank in range(2):
        text = (case.workdir / f"{rank}.err").read_text()
        assert text == f"rank {rank}\n", text


@_promise("programs that import mpi4py run unless --no-alias is given", needs="alias")
def _check_alias(case: _Case) -> None:
    body = (
        "try: from mpi4py import MPI as found\n"
        "except (ImportError, RuntimeError): found = None\n"
        "print(found is MPI)\n"
    )
    for options, expected in (((), "True"), (("--no-alias",), "False")):
        job = case.run("-n", 1, *options, case.program(body))
        _expect(job, 0)
        _expect_lines(job.stdout, [expected])


@_promise("--stats json is the last line of standard output", needs="stats")
def _check_stats(case: _Case) -> None:
    job = case.run("-n", 2, "--stats", "json", case.program("comm.barrier()\n"))
    _expect(job, 0)
    lines = job.stdout.splitlines()
    assert lines, "standard output is empty"
    assert json.loads(lines[-1])["ranks"] == 2, lines[-1]


@_promise("--explain names the algorithm of each collective", needs="explain")
def _check_explain(case: _Case) -> None:
    job = case.run("-n", 2, "--explain", case.program("comm.bcast(rank)\n"))
    _expect(job, 0)
    assert "bcast" in job.stderr, f"no line names bcast: {job.stderr!r}"


@_promise("--algorithm is the algorithm that ranks use", needs="algorithms")
def _check_algorithm(case: _Case) -> None:
    body = (
        "from serverless_mpi.job import current_spec\n"
        "print(dict(current_spec(os.environ).algorithms))\n"
    )
    job = case.run("-n", 2, "--algorithm", "bcast=binomial", case.program(body))
    _expect(job, 0)
    _expect_lines(job.stdout, ["{'bcast': 'binomial'}"] * 2)


@_promise("--trace writes one file with every rank", needs="trace")
def _check_trace(case: _Case) -> None:
    path = case.workdir / "trace.json"
    job = case.run("-n", 2, "--trace", path, case.program("comm.barrier()\n"))
    _expect(job, 0)
    assert path.exists(), f"there is no file {path}"
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in events if "pid" in event} == {0, 1}


@_promise("--profile prints the lines of the program and writes a page", needs="profile")
def _check_profile(case: _Case) -> None:
    path = case.workdir / "profile.json"
    job = case.run("-n", 2, f"--profile={path}", case.program("comm.barrier()\n"))
    _expect(job, 0)
    assert "barrier" in job.stderr, f"no line names barrier: {job.stderr!r}"
    assert [rank["rank"] for rank in json.loads(path.read_text())["ranks"]] == [0, 1]


@_promise("--branching starts every rank", needs="branching")
def _check_branching(case: _Case) -> None:
    job = case.run("-n", 4, "--branching", 1, case.program("print(comm.allreduce(1))\n"))
    _expect(job, 0)
    _expect_lines(job.stdout, ["4"] * 4)
