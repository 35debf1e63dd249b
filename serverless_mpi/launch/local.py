"""Platform local: N processes of this machine, and an emulator if the channel needs AWS.

- What is made is registered for removal before it is made.  A guard process
  (jobs.py) removes it if the launcher is killed.
- Ranks of one Python program are forks of a process that has imported what they
  all need (fork_server.py); other ranks are started as processes of their own.
- Each rank leads a session, so a terminal's Ctrl-C reaches the launcher only,
  which stops all ranks in order: SIGTERM, GRACE_S, SIGKILL.
- The job ends when every rank has ended, one has failed, the time is over, or a
  signal came.  The exit code is that of the rank that failed first, so ends are
  seen in their order (pidfd).
- With --restarts a job has *incarnations*. When a rank is lost (killed by a signal), or the
  emulator, everything of the incarnation is stopped and removed but the job's folder, where
  checkpoints are, and the next one begins with other names and another key. So nothing that is left
  of an earlier incarnation can enter: its frames, connections and requests have a wrong tag, proof
  or signature. A rank that ends by itself with an exit code does not start the job again: it would
  do the same.
- Neither the launcher nor the ranks get credentials of an AWS account, except those that the user
  exports with -x: the environment is cleaned first.

This file starts, watches and stops processes.  Job folders and the guard are in
jobs.py, lines of output in output.py, the emulator in emulator.py, forks of
ranks in fork_server.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from serverless_mpi import channels, metering, plugins, trace
from serverless_mpi.aws import figures as files
from serverless_mpi.aws.figures import setting
from serverless_mpi.aws.limits import Figures
from serverless_mpi.channels.base import Channel
from serverless_mpi.core import tags
from serverless_mpi.deadlock import detect_deadlock
from serverless_mpi.deaths import NOTICES, NoticeWriter, aborted
from serverless_mpi.env import (
    ENV_ALIAS,
    ENV_APPNUM,
    ENV_BEGUN,
    ENV_CHECKPOINTS,
    ENV_EXPLAIN,
    ENV_LINEAGE,
    ENV_LOCAL_RANKS,
    ENV_PARENT,
    ENV_PROFILE,
    ENV_TRACE,
)
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.job import KEY_BYTES, JobSpec
from serverless_mpi.launch import fork_server, profiling, tree
from serverless_mpi.launch.base import (
    EXIT_DEADLOCK,
    EXIT_TIMEOUT,
    Launcher,
    Plan,
    Program,
    option_of,
)
from serverless_mpi.launch.fork_server import Forked, ForkServer
from serverless_mpi.launch.jobs import (
    JobFolder,
    clear_dead_jobs,
    kill_processes_of,
    recorded_ids,
    state_folder,
)
from serverless_mpi.launch.output import LineWriter, output_writer, printable_lines, say
from serverless_mpi.launch.signals import Interrupted, Signals

if TYPE_CHECKING:
    from serverless_mpi.launch.emulator import Emulator

EXIT_EMULATOR = 1  # exit code of a job whose emulator ended first
GRACE_S = 3.0  # seconds between SIGTERM and SIGKILL
DRAIN_S = 2.0  # seconds to read what is still in the pipes when every process has ended
REAP_S = 0.05  # seconds between two polls for ended ranks, without pidfd
READ_BYTES = 64 << 10
FORKED_AT_ONCE = 32  # ranks; each has four descriptors of pipes meanwhile
SHOWN_RANKS = 8  # most ranks that one line of text names
LOST_S = 1.0  # longest wait for the end of a rank whose death may be why another has failed
STACKS_S = 5.0  # longest wait for the stacks of ranks
LOOKS = 6  # looks for a deadlock within its limit
MAX_PORT = 65535
SITE = Path(__file__).with_name("site")

# A rank must not reach an account that its user did not name.  boto3 reads these files and asks
# this service by itself.
BLINDED = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
LOOPBACK = "127.0.0.1,localhost,::1"  # never through a proxy


@dataclass
class _Rank:
    """A rank's process."""

    number: int
    program: Program
    process: subprocess.Popen[bytes] | Forked
    pidfd: int | None

    @property
    def title(self) -> str:
        """The rank, its program and process, for error texts."""
        return f"rank {self.number} ({' '.join(self.program.argv[:1])}, process {self.process.pid})"


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without names of an AWS account or a proxy for this machine.

    Nor does it have those of a job in which this launcher runs, as far as it does not set them.
    """
    clean = {
        name: value
        for name, value in environ.items()
        if not name.startswith("AWS_") and name not in ("BOTO_CONFIG", ENV_PARENT, ENV_APPNUM)
    }
    for name in ("no_proxy", "NO_PROXY"):
        clean[name] = ",".join(filter(None, (clean.get(name), LOOPBACK)))
    return clean


def command(program: Program) -> list[str]:
    """Return the command line that executes a program.

    Parameters
    ----------
    program
        A Python file, folder, zip or module, or an executable; relative to its folder.

    Raises
    ------
    UsageError
        There is no such folder, file or executable.
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
            raise UsageError(f"there is no program {name} in {folder.resolve()}")
        return [sys.executable, name, *arguments]
    if os.sep in name:
        if not path.exists():
            raise UsageError(f"there is no program {name} in {folder.resolve()}")
        if not os.access(path, os.X_OK) or path.is_dir():
            raise UsageError(
                f"{name} cannot be executed; the name of a Python program ends with .py; others"
                " need `chmod +x`"
            )
        return [
            os.path.abspath(path),
            *arguments,
        ]  # a link stays one: it is how a virtual environment is known
    search = program.variables.get("PATH", os.environ.get("PATH", os.defpath))
    found = shutil.which(name, path=search)
    if found is None:
        raise UsageError(
            f"there is no program {name}: neither a .py file in {folder.resolve()} nor a"
            " command in PATH"
        )
    return [found, *arguments]


def _channel_options(plan: Plan) -> dict[str, str]:
    """Return the options that the channel's `provision` reads, by their names in `settings`."""
    given = {"host": plan.host, "ppn": plan.ppn, "echo": plan.echo}
    return {name: str(value) for name, value in given.items() if value is not None}


def _incarnated(spec: JobSpec, incarnation: int) -> JobSpec:
    """Return an incarnation of a job: later ones have names and keys of their own.

    The key of one does not reveal that of another, since ranks know neither the job's own.
    """
    number = str(incarnation).encode()
    key = tags.make(spec.key, tags.Purpose.INCARNATION, number, KEY_BYTES)
    job_id = hashlib.sha256(f"{spec.job_id} {incarnation}".encode()).hexdigest()[:16]
    return replace(spec, key=key, job_id=job_id if incarnation else spec.job_id)


def _restore(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


def _figures(plan: Plan, usual_region: str) -> Figures | None:
    """Return the figures that a plan names; UsageError if they are of another region."""
    if plan.figures is None:
        return None
    figures = files.load(plan.figures)
    reason = files.trouble(figures, plan.region) if plan.region != usual_region else None
    if reason is not None:
        raise UsageError(f"--figures {plan.figures}: {reason}")
    return figures


def _new_spec(plan: Plan, folder: JobFolder) -> JobSpec:
    """Return the job of a plan, without what its channel adds."""
    made = JobSpec.new(
        plan.size,
        plan.channel,
        region=plan.region,
        endpoint=plan.endpoint,
        plugins=plugins.algorithm_modules(),
        algorithms=plan.algorithms,
        settings=_channel_options(plan),
        deadlock_s=plan.deadlock_s,
    )
    return replace(made, job_id=folder.job_id)


class LocalLauncher(Launcher):
    """Runs ranks as processes of this machine."""

    honors = frozenset(
        {
            "endpoint",
            "port",
            "host",
            "ppn",
            "echo",
            "region",
            "alias",
            "tag_output",
            "outfile",
            "errfile",
            "torch",
            "debug",
            "debugpy",
            "timeout_s",
            "deadlock_s",
            "ft",
            "restarts",
            "stats",
            "prices",
            "algorithms",
            "explain",
            "figures",
            "trace",
            "profile",
            "branching",
        }
    )

    @property
    def _running(self) -> type[Running]:
        """The class of the processes of a job."""
        return Running

    def _prepare(self, spec: JobSpec) -> JobSpec:
        """The job with what a subclass adds to it, before its channel is provisioned."""
        return spec

    def _adopt(self, job: Running) -> None:
        """Give the processes of a job, none of which has been started, what a subclass adds."""

    def run(self, plan: Plan) -> int:
        channel = channels.load_for(plan.channel, "local", plan.size)
        commands = [command(program) for program in plan.programs]
        if plan.branching is not None and any(argv[0] != sys.executable for argv in commands):
            raise UsageError(
                "--branching works with Python programs only: other executables do not start"
                " further ranks"
            )
        prices = metering.Prices.load(plan.prices)
        profiling.check(plan)
        for name in _channel_options(plan):
            if name not in channel.options:
                able = [one for one in channels.CHANNELS if name in channels.load(one).options]
                raise UsageError(
                    f"{option_of(name)} has no effect on channel {plan.channel};"
                    f" it works with {' and '.join(able)}"
                )
        figures = _figures(plan, self.region)
        _check_debugger(plan, commands)
        if plan.restarts and plan.ft:
            raise UsageError(
                "--restarts and --ft exclude each other: the job either starts again or goes on"
                " when a rank dies"
            )
        if plan.port is not None and (plan.endpoint is not None or not channel.services):
            raise UsageError(
                "--port sets the port of the emulator that smpirun starts, and this job starts none"
            )
        _open_standard_files()
        with Signals() as signals, contextlib.ExitStack() as undo:
            try:
                return self._run(plan, commands, channel, prices, figures, signals, undo)
            except Interrupted as stop:
                say(str(stop))
                return 128 + stop.number
            except BrokenPipeError:  # whoever read our output has left, as `head` does
                return 128 + signal.SIGPIPE
            except OSError as error:  # a full disk, no more processes or descriptors
                raise JobError(f"this machine cannot run the job: {error}") from error
            finally:
                signals.raising = (
                    False  # from here on things are being removed, and that shall be finished
                )

    def _run(
        self,
        plan: Plan,
        commands: list[list[str]],
        channel: type[Channel],
        prices: metering.Prices,
        figures: Figures | None,
        signals: Signals,
        undo: contextlib.ExitStack,
    ) -> int:
        folder = JobFolder.begin()
        undo.callback(folder.end)
        # The launcher calls boto3 as well, which must not see more than the ranks do.
        undo.callback(_restore, dict(os.environ))
        environ = {**_clean(os.environ), **BLINDED}
        _restore(environ)
        undo.callback(kill_processes_of, folder.job_id)
        environ[ENV_LINEAGE] = "/".join(filter(None, (environ.get(ENV_LINEAGE), folder.job_id)))
        environ.pop(ENV_CHECKPOINTS, None)
        if plan.restarts:
            environ[ENV_CHECKPOINTS] = str(folder.path / "checkpoints")
        spec = self._prepare(_new_spec(plan, folder))
        deadline = None
        for incarnation in range(plan.restarts + 1):
            stats = folder.stats(incarnation)
            own = replace(_incarnated(spec, incarnation), stats_dir=str(stats))
            signals.raise_now()
            with contextlib.ExitStack() as of_incarnation:
                job = self._incarnation(
                    plan, commands, channel, own, environ, figures, signals, folder, of_incarnation
                )
                if plan.timeout_s is not None and deadline is None:
                    deadline = time.monotonic() + plan.timeout_s
                code = job.watch(deadline, plan.restarts - incarnation)
            if not job.lost:
                break
        self._report(plan, stats, prices, figures)
        return code

    def _incarnation(
        self,
        plan: Plan,
        commands: list[list[str]],
        channel: type[Channel],
        spec: JobSpec,
        environ: Mapping[str, str],
        figures: Figures | None,
        signals: Signals,
        folder: JobFolder,
        undo: contextlib.ExitStack,
    ) -> Running:
        """Make everything that the ranks need, and start them; `undo` removes it."""
        servers = _fork_servers(plan, commands, channel, environ, undo)
        emulator: Emulator | None = None
        if plan.endpoint is not None or channel.services:
            emulator = _emulator(plan, channel, folder, spec)
        if emulator is not None:
            undo.callback(emulator.stop)
            spec = replace(spec, endpoint=emulator.start())
        outlives = emulator is None or not channel.contained
        if outlives:
            folder.record(spec)
            undo.callback(self._destroy, channel, folder)
        try:
            spec = replace(spec, settings={**channel.provision(spec), **setting(figures)})
        except (ChannelError, UsageError) as error:
            end = None if emulator is None else emulator.ended()
            raise (error if end is None else JobError(end)) from error
        if outlives:
            folder.record(spec)
        job = self._running(plan, commands, channel, spec, environ, signals, emulator, servers)
        undo.callback(job.close)
        self._adopt(job)
        job.start()
        signals.raising = False
        return job

    @staticmethod
    def _destroy(channel: type[Channel], folder: JobFolder) -> None:
        try:
            channel.destroy(folder.recorded())
        except (ChannelError, UsageError) as error:
            folder.keep = True
            say(
                f"job {folder.job_id} could not be removed completely; `smpirun --cleanup`"
                f" tries again: {error}"
            )

    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        from serverless_mpi.aws import control

        _restore({**_clean(os.environ), **BLINDED})
        if endpoint is not None:
            _emulators().check_endpoint(endpoint)
        said = clear_dead_jobs()
        if (
            endpoint is not None
        ):  # jobs that no folder here tells of: another machine's, or after a reboot
            running = recorded_ids()
            for job_id in control.leftovers(endpoint, region):
                if not (state_folder() / job_id).exists() and job_id not in running:
                    said.append(
                        f"removed job {job_id} from {endpoint}:"
                        f" {control.remove(endpoint, region, job_id)} resources"
                    )
        return said

    @staticmethod
    def _report(plan: Plan, stats: Path, prices: metering.Prices, figures: Figures | None) -> None:
        if plan.trace is not None:
            trace.save(stats, plan.trace, say)
        if plan.profile is not None:
            profiling.save(plan, "local", stats, prices)
        if plan.stats == "none" and not plan.explain:
            return
        records = _records(stats, plan.size, prices)
        if plan.explain:
            from serverless_mpi import explain

            plugins.import_algorithms(plugins.algorithm_modules())
            for line in explain.explain(records, plan.channel, plan.region, prices, figures):
                sys.stderr.write(printable_lines(line) + "\n")
        if plan.stats == "none":
            return
        summary = metering.report(records, prices)
        if plan.stats == "json":
            LineWriter(1, tagged=False).feed(0, json.dumps(summary).encode() + b"\n")
        elif summary["ranks"]:
            sys.stderr.write(printable_lines(metering.render(summary)) + "\n")
            if plan.region != prices.region:
                say(
                    f"the prices are not those of {plan.region}; name a table of them with"
                    " --prices FILE"
                )


def _emulators() -> ModuleType:
    """The module of the emulator; its HTTP client takes 20 ms that a job over `direct` can save."""
    from serverless_mpi.launch import emulator

    return emulator


def _emulator(
    plan: Plan, channel: type[Channel], folder: JobFolder, spec: JobSpec
) -> Emulator | None:
    """Return the emulator that the job needs, not yet started; check one that the user named."""
    module = _emulators()
    if plan.endpoint is not None:
        module.check_endpoint(plan.endpoint)
        return None
    emulator: Emulator = module.of_job(
        folder.path, plan.port, plan.region, channel.services, spec.key
    )
    return emulator


def _variables(plan: Plan, program: Program, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that all ranks of a program have."""
    variables = dict(environ)
    if any(name.startswith("AWS_") for name in program.variables):  # the user names an account
        for name in BLINDED:
            del variables[name]
    variables.update(program.variables)
    variables["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(SITE), variables.get("PYTHONPATH")))
    )
    variables[ENV_ALIAS] = "1" if plan.alias else "0"
    if plan.explain:
        variables[ENV_EXPLAIN] = "1"
    if plan.trace is not None:
        variables[ENV_TRACE] = "1"
    if plan.profile is not None:
        variables[ENV_PROFILE] = "1"
    variables.setdefault(ENV_LOCAL_RANKS, str(plan.size))
    return variables


def _fork_servers(
    plan: Plan,
    commands: list[list[str]],
    channel: type[Channel],
    environ: Mapping[str, str],
    undo: contextlib.ExitStack,
) -> list[ForkServer | None]:
    """Start the processes of which ranks are forks; None for a program that has none."""
    servers: list[ForkServer | None] = []
    for program, argv in zip(plan.programs, commands, strict=True):
        variables = _variables(plan, program, environ)
        server = None
        if plan.debugpy is None and fork_server.usable(argv, program.ranks, variables):
            server = ForkServer(
                argv, program.folder, variables, [channel.__module__], reads=not servers
            )
            undo.callback(server.stop)
        servers.append(server)
    return servers


def _check_debugger(plan: Plan, commands: list[list[str]]) -> None:
    """Raise UsageError if the plan asks for a debugger that cannot work."""
    if plan.debug is not None and plan.debug >= plan.size:
        raise UsageError(f"--debug {plan.debug}: the job has ranks 0 to {plan.size - 1}")
    if plan.debugpy is None:
        return
    if any(argv[0] != sys.executable for argv in commands):
        raise UsageError("--debugpy works with Python programs only")
    if plan.debugpy + plan.size > MAX_PORT + 1:
        raise UsageError(
            f"--debugpy {plan.debugpy}: there is no port for each of {plan.size} ranks"
        )
    if importlib.util.find_spec("debugpy") is None:
        raise UsageError("--debugpy needs the package debugpy: pip install debugpy")


def _torch_variables(size: int) -> dict[str, str]:
    """Return the variables of torch.distributed that all ranks have, with a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }


_NO_RECORD = {"rank": 0, "seconds": 0.0, "meter": {}, "dropped": 0, "duplicates": 0}


def _records(stats: Path, size: int, prices: metering.Prices) -> list[dict[str, Any]]:
    """Return the counters that ranks left; print whose are missing or damaged.

    Nothing is printed if no rank left any: the programs do not use MPI.
    """
    records, missing, damaged = [], [], []
    for rank in range(size):
        try:
            record = json.loads((stats / f"rank-{rank}.json").read_text())
            metering.report([_NO_RECORD, record], prices)  # raises if a number is missing
        except OSError:
            missing.append(rank)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged.append(rank)
        else:
            records.append(record)
    if damaged:
        say(f"the statistics of {_ranks(damaged)} are damaged and not counted")
    if missing and (records or damaged):
        say(f"{_ranks(missing)} left no statistics; the figures cover the other ranks")
    return records


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN_RANKS]))
    more = f" and {len(numbers) - SHOWN_RANKS} more" if len(numbers) > SHOWN_RANKS else ""
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}{more}"


class Running:
    """The processes of one job, and their output."""

    def __init__(
        self,
        plan: Plan,
        commands: list[list[str]],
        channel: type[Channel],
        spec: JobSpec,
        environ: Mapping[str, str],
        signals: Signals,
        emulator: Emulator | None,
        servers: Sequence[ForkServer | None],
    ) -> None:
        self._plan = plan
        self._notices: NoticeWriter | None = None  # with --ft
        if plan.ft and spec.stats_dir is not None:
            self._notices = NoticeWriter(Path(spec.stats_dir), spec.size, spec.key)
            spec = replace(spec, settings={**spec.settings, NOTICES: self._notices.path})
        self._survived = False  # with notices: a rank has ended with exit code 0
        # with notices: exit code and text of the first rank that ended with another exit code, and
        # of the first that a signal killed
        self._exited: tuple[int, tuple[str, ...]] | None = None
        self._killed: tuple[int, tuple[str, ...]] | None = None
        self._channel = channel
        self._spec = spec
        self._environ = environ
        self._signals = signals
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals.fd, selectors.EVENT_READ, None)
        self._emulator = emulator
        self._emulator_fd = None if emulator is None else _pidfd(emulator.pid)
        if self._emulator_fd is not None:  # its end is seen at once
            self._selector.register(self._emulator_fd, selectors.EVENT_READ, ("emulator", None))
        self._writers = {
            "out": output_writer(1, plan.tag_output, plan.outfile, plan.size),
            "err": output_writer(2, plan.tag_output, plan.errfile, plan.size),
        }
        self._torch = _torch_variables(spec.size) if plan.torch else {}
        self._unseen: set[int] = set()  # ranks whose stacks were asked for and have not come
        self._muted = False  # nobody reads the output any longer
        self._living: dict[int, _Rank] = {}
        self._pipes = 0
        self._inherited = [
            fd for rank in range(spec.size) for fd in channel.inherited(spec.with_rank(rank))
        ]
        # exit code and text (a line, and lines below it) of the first failure
        self._failure: tuple[int, tuple[str, ...]] | None = None
        self.lost = False  # a rank or the emulator was lost: the job may start again
        self._unstarted: list[tuple[int, Program, list[str], ForkServer | None]] = []
        for program, argv, server in zip(plan.programs, commands, servers, strict=True):
            first = len(self._unstarted)
            self._unstarted += [(first + i, program, argv, server) for i in range(program.ranks)]
            if server is not None:
                self._selector.register(server.output, selectors.EVENT_READ, ("imports", first))
        self._python = [argv[0] == sys.executable for _, _, argv, _ in self._unstarted]
        self._program_numbers = [
            number for number, program in enumerate(plan.programs) for _ in range(program.ranks)
        ]
        self._servers = [server for server in servers if server is not None]
        # a pipe: ranks of a tree write their numbers when they begin
        self._begun: tuple[int, ...] = ()
        self._stopping = self._stopped = False

    # -- beginning

    def start(self) -> None:
        """Start every rank; in a tree only rank 0, since a rank's start triggers its children's."""
        if self._plan.branching is None:
            self._start_some(range(self._spec.size))
            return
        self._begun = os.pipe()
        os.set_blocking(self._begun[0], False)
        self._selector.register(self._begun[0], selectors.EVENT_READ, ("begun", None))
        self._start_some(range(1))

    def _start_some(self, numbers: range) -> None:
        """Start the ranks among `numbers` that have not been started."""
        chosen = [entry for entry in self._unstarted if entry[0] in numbers]
        self._unstarted = [entry for entry in self._unstarted if entry[0] not in numbers]
        by_server: dict[ForkServer, list[tuple[int, Program]]] = {}
        for number, program, argv, server in chosen:
            if server is not None and number != self._plan.debug and server.ready():
                by_server.setdefault(server, []).append((number, program))
            else:
                self._start(number, program, argv)
        for server, ranks in by_server.items():
            for first in range(0, len(ranks), FORKED_AT_ONCE):
                self._fork(server, ranks[first : first + FORKED_AT_ONCE])
        if not self._unstarted:
            self._let_go()

    def _grow(self, number: int) -> None:
        """Start the children of a rank that has begun, which on Lambda it would invoke itself."""
        if self._plan.branching is not None and not self._stopping:
            self._start_some(tree.children(number, self._spec.size, self._plan.branching))

    def _own_variables(self, spec: JobSpec) -> dict[str, str]:
        """What a rank has besides the variables of its program."""
        begun = {ENV_BEGUN: str(self._begun[1])} if self._begun else {}
        if len(self._plan.programs) > 1:
            begun[ENV_APPNUM] = str(self._program_numbers[spec.rank])
        rank = str(spec.rank)
        torch = {**self._torch, "RANK": rank, "LOCAL_RANK": rank} if self._torch else {}
        return {**begun, **torch, **spec.to_env()}

    def _descriptors(self, spec: JobSpec) -> tuple[int, ...]:
        """What a rank inherits besides its standard streams."""
        return (*self._channel.inherited(spec), *self._begun[1:])

    def _start(self, number: int, program: Program, argv: list[str]) -> None:
        """Start a rank as a process of its own."""
        spec = self._spec.with_rank(number)
        if self._plan.debugpy is not None:
            address = f"127.0.0.1:{self._plan.debugpy + number}"
            debugger = ["-m", "debugpy", "--listen", address, "--wait-for-client"]
            argv = [argv[0], *debugger, *argv[1:]]
        on_terminal = number == self._plan.debug
        reads = on_terminal if self._plan.debug is not None else number == 0
        try:
            process = subprocess.Popen(
                argv,
                stdin=None if reads else subprocess.DEVNULL,
                stdout=None if on_terminal else subprocess.PIPE,
                stderr=None if on_terminal else subprocess.PIPE,
                bufsize=0,
                cwd=program.folder,
                env={**_variables(self._plan, program, self._environ), **self._own_variables(spec)},
                pass_fds=self._descriptors(spec),
                # a terminal's Ctrl-C comes to the launcher, which stops all ranks in order
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{argv[0]} cannot be executed: {error.strerror}") from error
        self._add(number, program, process, process.stdout, process.stderr)

    def _fork(self, server: ForkServer, ranks: Sequence[tuple[int, Program]]) -> None:
        """Start ranks as forks."""
        pipes = [(os.pipe(), os.pipe()) for _ in ranks]
        null = os.open(os.devnull, os.O_RDONLY)
        requests = []
        for (number, _), ((_, out), (_, err)) in zip(ranks, pipes, strict=True):
            spec = self._spec.with_rank(number)
            inherited = self._descriptors(spec)
            reads = number == 0 and self._plan.debug is None
            descriptors = {0: 0 if reads else null, 1: out, 2: err}
            requests.append(
                (self._own_variables(spec), {**descriptors, **{fd: fd for fd in inherited}})
            )
        try:
            forked = server.fork(requests)
        finally:
            os.close(null)
            for (_, out), (_, err) in pipes:
                os.close(out)
                os.close(err)
        for (number, program), process, ((out, _), (err, _)) in zip(
            ranks, forked, pipes, strict=True
        ):
            files = [open(fd, "rb", buffering=0) for fd in (out, err)]
            self._add(number, program, process, *files)

    def _add(
        self,
        number: int,
        program: Program,
        process: subprocess.Popen[bytes] | Forked,
        out: IO[bytes] | None,
        err: IO[bytes] | None,
    ) -> None:
        """Watch a rank that has been started; without pipes if it has the terminal."""
        rank = _Rank(number, program, process, _pidfd(process.pid))
        self._living[number] = rank
        if rank.pidfd is not None:
            self._selector.register(rank.pidfd, selectors.EVENT_READ, ("end", rank))
        for name, pipe in (("out", out), ("err", err)):
            if pipe is None:
                continue
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, (name, rank))
            self._pipes += 1

    def _let_go(self) -> None:
        """Close the launcher's copies of inherited sockets, so that each closes with its rank.

        Fork servers, which have copies too, are not needed any longer.
        """
        for server in self._servers:
            server.stop()
        while self._inherited:
            os.close(self._inherited.pop())

    # -- watching

    def watch(self, deadline: float | None, restarts: int) -> int:
        """Write output until the job ends (see the head of the file), then stop all ranks.

        Parameters
        ----------
        deadline
            When the job is stopped, by the monotonic clock; None for never.
        restarts
            How often the job may start again.

        Returns
        -------
        int
            Exit code of the job.
        """
        while self._living and self._failure is None and not self._signals.noted:
            left = None if deadline is None else deadline - time.monotonic()
            if self._without_emulator() or self._deadlocked():
                break
            if self._signals.stacks_wanted:
                self._signals.stacks_wanted = False
                self._show_stacks()
            if left is not None and left <= 0:
                self._failure = (
                    EXIT_TIMEOUT,
                    (
                        f"the job ran longer than --timeout {self._plan.timeout_s:g} s; all"
                        " ranks were stopped",
                    ),
                )
                self._show_stacks()
                break
            tick = self._plan.deadlock_s / LOOKS or None
            self._turn(tick if left is None else left if tick is None else min(left, tick))
        running = len(self._living)
        self._without_emulator()  # a rank may have failed because of it
        self._find_lost()
        self.stop()
        if self._failure is not None:
            code, (first, *more) = self._failure
            if running and code not in (EXIT_TIMEOUT, EXIT_DEADLOCK):
                first += "; the other ranks were stopped"
            self.lost = self.lost and not self._signals.noted
            if self.lost and restarts:
                first += (
                    f"; the job starts again ({restarts} of {self._plan.restarts} restarts left)"
                )
            say(first, *more)
            return code
        if self._signals.noted:
            say(str(Interrupted(self._signals.noted[0])))
            return 128 + self._signals.noted[0]
        return 0

    def _find_lost(self) -> None:
        """Let a rank that was killed be the failure, if another has failed because of it.

        The kernel closes a killed process's connections before it reports the end, so a peer may
        come to its own end first.
        """
        deadline = time.monotonic() + LOST_S
        while self._living and self._undecided and (left := deadline - time.monotonic()) > 0:
            self._quiet_turn(left)

    @property
    def _undecided(self) -> bool:
        """Whether a rank has failed, and the end of a killed one may still show why."""
        return (
            self._plan.restarts > 0
            and self._failure is not None
            and self._failure[0] not in (EXIT_TIMEOUT, EXIT_DEADLOCK)
            and not (self.lost or self._stopping)
        )

    def _show_stacks(self) -> None:
        """Let every Python rank print the stacks of its threads, with its rank in front."""
        ranks = [rank for rank in self._living.values() if self._python[rank.number]]
        if not ranks:
            return
        say("the Python stacks of the ranks, most recent call first:")
        self._writers["err"].tag()
        self._unseen = {rank.number for rank in ranks if rank.number != self._plan.debug}
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.process.pid, signal.SIGQUIT)
        deadline = time.monotonic() + STACKS_S
        while self._unseen and (left := deadline - time.monotonic()) > 0:
            self._quiet_turn(left)

    def _without_emulator(self) -> bool:
        """Fail the job if the emulator has ended before the ranks; return whether it has."""
        end = None if self._emulator is None else self._emulator.ended()
        if end is None or not (self._living or self._failure) or self._signals.noted:
            return False
        self._failure = (EXIT_EMULATOR, (end,))
        self.lost = True
        return True

    def _deadlocked(self) -> bool:
        """Fail the job if every running rank waits for another; return whether it does."""
        limit = self._plan.deadlock_s
        if not limit or self._spec.stats_dir is None:
            return False
        lines = detect_deadlock(Path(self._spec.stats_dir), sorted(self._living), limit)
        if lines is None:
            return False
        ended = [
            f"rank {number} has ended"
            for number in range(self._spec.size)
            if number not in self._living
        ]
        story = [
            f"deadlock: every rank has waited for {limit:g} s, and nothing is in flight",
            *lines,
            *ended,
        ]
        self._failure = (EXIT_DEADLOCK, tuple(story))
        return True

    def _turn(self, left: float | None) -> None:
        """Wait at most `left` seconds for output, ends and signals, and handle what came."""
        blind = any(rank.pidfd is None for rank in self._living.values())  # then so is the emulator
        if blind:
            left = REAP_S if left is None else min(left, REAP_S)
        for key, _ in self._selector.select(left):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, READ_BYTES)
                continue
            name, rank = key.data
            if name == "imports":
                self._take_imports(key, rank)
            elif name == "begun":
                for (number,) in struct.iter_unpack("<I", os.read(key.fd, READ_BYTES)):
                    self._grow(number)
            elif name == "emulator":
                self._selector.unregister(key.fd)  # `watch` looks at it after each turn
            elif name == "end":
                self._reap(rank)
            elif name == "parent":
                rank()  # of a spawned job: see spawned.py
            else:
                self._take(key, name, rank)
        if blind:
            for rank in list(self._living.values()):
                self._reap(rank)

    def _take(self, key: selectors.SelectorKey, name: str, rank: _Rank) -> None:
        try:
            data = os.read(key.fd, READ_BYTES)
        except BlockingIOError:
            return
        writer = self._writers[name]
        if name == "err":
            self._unseen.discard(rank.number)
        if not data:
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # a file
            self._pipes -= 1
        if self._muted:
            return
        try:
            if data:
                writer.feed(rank.number, data)
            else:
                writer.finish(rank.number)
        except (BrokenPipeError, JobError):
            self._muted = True
            raise

    def _take_imports(self, key: selectors.SelectorKey, number: int) -> None:
        """Write what a fork server prints as the first of its ranks would."""
        data = os.read(key.fd, READ_BYTES)
        if data and not self._muted:
            self._writers["err"].feed(number, data)
        elif not data:
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # a file

    def _reap(self, rank: _Rank) -> None:
        code = rank.process.poll()
        if code is None:
            return
        del self._living[rank.number]
        if rank.pidfd is not None:
            self._selector.unregister(rank.pidfd)
            os.close(rank.pidfd)
        if self._signals.noted:
            return
        if self._failure is not None and not (code < 0 and self._undecided):
            return
        if code == 0:
            self._grow(rank.number)  # its number may still be in the pipe
        failure = None
        if code < 0:
            failure = (128 - code, (f"{rank.title} was killed by {_signal_name(-code)}",))
        elif code > 0:
            failure = (code, (f"{rank.title} ended with exit code {code}",))
        if self._notices is None or aborted(Path(self._spec.stats_dir or "."), rank.number):
            self._failure = failure
            self.lost = code < 0
        else:
            self._lose(self._notices, rank.number, code, failure)

    def _lose(
        self,
        notices: NoticeWriter,
        number: int,
        code: int,
        failure: tuple[int, tuple[str, ...]] | None,
    ) -> None:
        """Notify the others of a rank's end; the last end decides how the job has ended."""
        notices.tell(number, died=failure is not None)
        if failure is None:
            self._survived = True
        else:
            say(f"{failure[1][0]}; the other ranks go on")
            if code > 0:
                self._exited = self._exited or failure
            else:
                self._killed = self._killed or failure
        if not self._living and not self._unstarted:
            self._failure = self._exited or (None if self._survived else self._killed)

    # -- ending

    def stop(self) -> None:
        """Stop every process: SIGTERM, SIGKILL after GRACE_S or a second signal; read all output.

        A second call does nothing.
        """
        if self._stopped:
            return
        self._stopping = True
        signals_seen = len(self._signals.noted)
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while (
            self._living
            and len(self._signals.noted) == signals_seen
            and (left := deadline - time.monotonic()) > 0
        ):
            self._quiet_turn(left)
        self._signal(signal.SIGKILL)
        while self._living:
            self._quiet_turn(None)
        lineage = self._environ[ENV_LINEAGE]
        kill_processes_of(lineage.rpartition("/")[2])  # also those that left their process group
        deadline = time.monotonic() + DRAIN_S
        while self._pipes and (left := deadline - time.monotonic()) > 0:
            self._quiet_turn(left)
        if not self._muted:
            with contextlib.suppress(BrokenPipeError, JobError):
                for writer in self._writers.values():
                    for number in range(self._spec.size):
                        writer.finish(number)
        self._stopped = True

    def _quiet_turn(self, left: float | None) -> None:
        with contextlib.suppress(BrokenPipeError, JobError):
            self._turn(left)

    def _signal(self, number: int) -> None:
        for rank in self._living.values():
            with contextlib.suppress(
                ProcessLookupError
            ):  # ended, not yet reaped, and its group is empty
                os.killpg(rank.process.pid, number)

    def close(self) -> None:
        """Stop what still runs and close all files; call it after `watch`, however that ended."""
        self._let_go()
        self.stop()
        for key in list(self._selector.get_map().values()):
            if key.data is not None and key.data[1] is not None:
                # An escaped process holds the other end of the pipe open.
                key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        if self._emulator_fd is not None:
            os.close(self._emulator_fd)
            self._emulator_fd = None
        for fd in self._begun:
            os.close(fd)
        self._begun = ()
        if self._notices is not None:
            self._notices.close()


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None without pidfd."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or before 5.3
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _open_standard_files() -> None:
    """Open /dev/null for closed standard files, whose numbers a pipe would get otherwise."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
