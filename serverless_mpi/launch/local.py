"""The local platform: N processes of this machine, and an emulator where the channel needs AWS.

This file starts, watches and stops processes. What must be removed after a
crash is jobs.py's, lines of output are output.py's, the emulator is emulator.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from serverless_mpi import channels, metering
from serverless_mpi.errors import UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch.base import EXIT_TIMEOUT, Launcher, Plan, Program
from serverless_mpi.launch.emulator import Emulator, check_endpoint
from serverless_mpi.launch.jobs import ENV_LINEAGE, JobFolder, clear_dead_jobs, kill_processes_of
from serverless_mpi.launch.output import LineWriter

WITHOUT_AWS = frozenset({"direct", "memory"})  # channels that need no service
GRACE_S = 3.0  # between SIGTERM and SIGKILL
DRAIN_S = 2.0  # for output that is still in the pipes when every process is dead
REAP_S = 0.05  # how often ends are looked for where the kernel cannot tell (no pidfd)
READ_BYTES = 64 << 10
SITE = Path(__file__).with_name("site")
ENV_ALIAS = "SMPI_ALIAS"

# A rank must not reach an account that its user did not name; boto3 reads these files and asks this service by itself.
BLINDED = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
LOOPBACK = "127.0.0.1,localhost,::1"  # never through a proxy


class Interrupted(Exception):
    """A signal asked the launcher to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class _Signals:
    """SIGINT, SIGTERM and SIGHUP: raised while the job is being made, noted while it runs.

    `noted` are the signals that came; a byte on `fd` wakes the loop.
    A second signal is raised in any case: whoever is stuck shall be let go.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.raising = True
        self.noted: list[int] = []

    def __enter__(self) -> _Signals:
        self.fd, self._write = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._come) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self.fd)
        os.close(self._write)

    def _come(self, number: int, _: FrameType | None) -> None:
        self.noted.append(number)
        if self.raising:
            self.raising = False
            raise Interrupted(number)


@dataclass
class _Rank:
    """A rank's process."""

    number: int
    program: Program
    process: subprocess.Popen[bytes]
    pidfd: int | None

    @property
    def told(self) -> str:
        return f"rank {self.number} ({' '.join(self.program.argv[:1])}, process {self.process.pid})"


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would name an AWS account, and without a proxy before this machine."""
    clean = {name: value for name, value in environ.items() if not name.startswith("AWS_") and name != "BOTO_CONFIG"}
    for name in ("no_proxy", "NO_PROXY"):
        clean[name] = ",".join(filter(None, (clean.get(name), LOOPBACK)))
    return clean


def command(program: Program) -> list[str]:
    """What to execute for `program`.

    Raises
    ------
    UsageError
        There is no such file or executable.
    """
    folder = Path(program.folder or ".")
    if not folder.is_dir():
        raise UsageError(f"--wdir {program.folder}: no such folder")
    name, *arguments = program.argv
    if program.module:
        return [sys.executable, "-m", name, *arguments]
    path = folder / name
    if path.is_dir() and (path / "__main__.py").exists() or path.suffix in (".py", ".pyz", ".pyw"):
        if not path.exists():
            raise UsageError(f"no program {name} in {folder.resolve()}")
        return [sys.executable, name, *arguments]
    if os.sep in name:
        if not path.exists():
            raise UsageError(f"no program {name} in {folder.resolve()}")
        if not os.access(path, os.X_OK) or path.is_dir():
            raise UsageError(f"{name} cannot be executed; a Python program ends with .py, others need `chmod +x`")
        return [str(path.resolve()), *arguments]
    search = program.variables.get("PATH", os.environ.get("PATH", os.defpath))
    found = shutil.which(name, path=search)
    if found is None:
        raise UsageError(f"no program {name}: neither a .py file in {folder.resolve()} nor a command in PATH")
    return [found, *arguments]


class LocalLauncher(Launcher):
    """Processes on this machine."""

    def run(self, plan: Plan) -> int:
        if plan.channel == "memory" and plan.size > 1:
            raise UsageError("channel memory is for the threads of one process: -n 1, or another channel")
        commands = [command(program) for program in plan.programs]
        prices = metering.Prices.load(plan.prices)
        channel = channels.load(plan.channel)
        inherited_environ = dict(os.environ)
        environ = _clean(inherited_environ)
        code = 0
        with _Signals() as signals, contextlib.ExitStack() as undo:
            try:
                folder = JobFolder.begin()
                undo.callback(folder.end)
                # The launcher itself calls AWS's client library, and shall see no more than the ranks do.
                undo.callback(_restore, inherited_environ)
                _restore({**environ, **BLINDED})
                undo.callback(kill_processes_of, folder.job_id)
                lineage = "/".join(filter(None, (environ.get(ENV_LINEAGE), folder.job_id)))
                environ[ENV_LINEAGE] = lineage
                endpoint = plan.endpoint
                if endpoint is not None:
                    check_endpoint(endpoint)
                elif plan.channel not in WITHOUT_AWS:
                    emulator = Emulator(folder.path, plan.port, plan.region, {ENV_LINEAGE: lineage})
                    undo.callback(emulator.stop)
                    endpoint = emulator.start()
                spec = replace(
                    JobSpec.new(plan.size, plan.channel, region=plan.region, endpoint=endpoint),
                    job_id=folder.job_id,
                    settings={} if plan.host is None else {"host": plan.host},
                    stats_dir=str(folder.stats),
                )
                if plan.endpoint is not None:
                    folder.record(spec)
                undo.callback(channel.destroy, spec)
                spec = replace(spec, settings=channel.provision(spec))
                if plan.endpoint is not None:
                    folder.record(spec)
                undo.callback(channel.destroy, spec)
                job = _Running(plan, commands, spec, environ, signals)
                undo.callback(job.close)
                job.start()
                signals.raising = False
                code = job.watch()
            except Interrupted as stop:
                code = 128 + stop.number
                _say(str(stop))
            except BrokenPipeError:
                code = 128 + signal.SIGPIPE
                with contextlib.suppress(OSError):  # what is still buffered for the reader that left must not be tried again
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            signals.raising = False  # from here on everything is being removed, and that shall be finished
            with contextlib.suppress(NameError, UnboundLocalError):
                job.stop()
                self._report(plan, folder.stats, prices)
        return code

    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        return clear_dead_jobs()

    @staticmethod
    def _report(plan: Plan, stats: Path, prices: metering.Prices) -> None:
        if plan.stats == "none":
            return
        records = [json.loads(path.read_text()) for path in sorted(stats.glob("rank-*.json"))]
        summary = metering.report(records, prices)
        if plan.stats == "json":
            sys.stdout.write(json.dumps(summary) + "\n")
            sys.stdout.flush()
        elif records:
            sys.stderr.write(metering.render(summary) + "\n")


class _Running:
    """The processes of a job, from their start to their end.

    `watch` copies their output, notices ends, signals and the deadline, and
    returns the exit code of the whole; `stop` sees that none is left.
    """

    def __init__(
        self, plan: Plan, commands: list[list[str]], spec: JobSpec, environ: Mapping[str, str], signals: _Signals
    ) -> None:
        self._plan = plan
        self._commands = commands
        self._spec = spec
        self._environ = environ
        self._signals = signals
        self._selector = selectors.DefaultSelector()
        self._writers = {1: LineWriter(1, plan.tag_output), 2: LineWriter(2, plan.tag_output)}
        self._ranks: list[_Rank] = []
        self._pipes: dict[int, tuple[int, int]] = {}  # read end -> (rank, descriptor of ours)
        self._code: int | None = None
        self._kill_at: float | None = None  # when those that did not heed SIGTERM are killed

    def start(self) -> None:
        """Start every rank.

        Raises
        ------
        UsageError
            A program cannot be executed.
        """
        number = 0
        for program, words in zip(self._plan.programs, self._commands, strict=True):
            for _ in range(program.ranks):
                self._start_rank(number, program, words)
                number += 1

    def _start_rank(self, number: int, program: Program, words: list[str]) -> None:
        spec = self._spec.with_rank(number)
        environ = {**self._environ, **BLINDED, **spec.to_env(), ENV_ALIAS: str(int(self._plan.alias))}
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), environ.get("PYTHONPATH"))))
        environ.update(program.variables)
        inherited = getattr(channels.load(spec.channel), "inherited", None)
        out, err = os.pipe(), os.pipe()
        try:
            process = subprocess.Popen(
                words,
                stdin=None if number == 0 else subprocess.DEVNULL,
                stdout=out[1],
                stderr=err[1],
                cwd=program.folder,
                env=environ,
                pass_fds=inherited(spec) if inherited is not None else (),
                process_group=0 if sys.version_info >= (3, 11) and number else None,
            )
        except OSError as error:
            raise UsageError(f"{words[0]} cannot be executed: {error.strerror}") from error
        finally:
            os.close(out[1])
            os.close(err[1])
        pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        rank = _Rank(number, program, process, pidfd)
        self._ranks.append(rank)
        for ours, (end, _) in ((1, out), (2, err)):
            self._pipes[end] = (number, ours)
            self._selector.register(end, selectors.EVENT_READ)
        if pidfd is not None:
            self._selector.register(pidfd, selectors.EVENT_READ)

    def watch(self) -> int:
        """See the job to its end; returns its exit code."""
        self._selector.register(self._signals.fd, selectors.EVENT_READ)
        timeout_s = self._plan.timeout_s
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        drained_at: float | None = None
        while True:
            self._reap()
            now = time.monotonic()
            if self._signals.noted:
                first, *more = self._signals.noted
                self._give_up(128 + first, f"stopped by {signal.Signals(first).name}")
                if more:
                    self._kill_at = now
            if deadline is not None and now >= deadline:
                self._give_up(EXIT_TIMEOUT, f"the job did not end within --timeout {timeout_s:g} s")
                deadline = None
            if self._kill_at is not None and now >= self._kill_at:
                self._signal_all(signal.SIGKILL)
                self._kill_at = None
            alive = any(rank.process.returncode is None for rank in self._ranks)
            if not alive and drained_at is None:
                drained_at = now + DRAIN_S
            if not alive and (not self._pipes or (drained_at is not None and now >= drained_at)):
                break
            times = [when - now for when in (deadline, self._kill_at, drained_at) if when is not None]
            if any(rank.pidfd is None and rank.process.returncode is None for rank in self._ranks):
                times.append(REAP_S)
            for key, _ in self._selector.select(max(0.0, min(times)) if times else None):
                self._ready(key.fd)
        for rank in self._ranks:
            for writer in self._writers.values():
                writer.finish(rank.number)
        return self._code or 0

    def _ready(self, fd: int) -> None:
        if fd == self._signals.fd:
            os.read(fd, READ_BYTES)
        elif fd in self._pipes:
            rank, ours = self._pipes[fd]
            data = os.read(fd, READ_BYTES)
            if data:
                self._writers[ours].feed(rank, data)
            else:
                self._writers[ours].finish(rank)
                self._selector.unregister(fd)
                del self._pipes[fd]
                os.close(fd)

    def _reap(self) -> None:
        for rank in self._ranks:
            if rank.process.returncode is not None or rank.process.poll() is None:
                continue
            if rank.pidfd is not None:
                self._selector.unregister(rank.pidfd)
                os.close(rank.pidfd)
                rank.pidfd = None
            status = rank.process.returncode
            if status > 0:
                self._give_up(status, f"{rank.told} ended with exit code {status}; the other ranks are stopped")
            elif status < 0:
                name = signal.Signals(-status).name
                self._give_up(128 - status, f"{rank.told} was ended by {name}; the other ranks are stopped")

    def _give_up(self, code: int, why: str) -> None:
        """The job has failed with `code`, unless it has already: say so once, and ask every rank to stop."""
        if self._code is not None:
            return
        self._code = code
        _say(why)
        self._signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + GRACE_S

    def _signal_all(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if rank.process.returncode is None:
                with contextlib.suppress(OSError):
                    rank.process.send_signal(number)

    def stop(self) -> None:
        """Kill and reap what still runs."""
        self._signal_all(signal.SIGKILL)
        for rank in self._ranks:
            rank.process.wait()

    def close(self) -> None:
        """Stop, and close every descriptor."""
        self.stop()
        for fd in [*self._pipes, *(rank.pidfd for rank in self._ranks if rank.pidfd is not None)]:
            os.close(fd)
        self._pipes.clear()
        for rank in self._ranks:
            rank.pidfd = None
        self._selector.close()


def _restore(environ: Mapping[str, str]) -> None:
    """Make the process's environment what `environ` says."""
    os.environ.clear()
    os.environ.update(environ)


def _say(text: str) -> None:
    """One line to the user."""
    sys.stderr.write(f"smpirun: {text}\n")
    sys.stderr.flush()
