"""The caller's side: starts smpirun, passes calls on, and collects what the ranks return.

`Cluster` owns one child process, smpirun, and through it the ranks.  `run` is a Cluster of
one call.  The child leads a session of its own, so Ctrl-C reaches the caller alone, which then
interrupts the child; smpirun stops the ranks and removes what it made.

Only the thread that calls `Cluster.run` reads the child's output.  `cancel` may be called from
any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar, overload

from serverless_mpi.calls import messages
from serverless_mpi.errors import ServerlessMPIError, UsageError

LOCAL = "local"  # the platform whose ranks have a standard input
STOP_S = 600.0  # seconds that smpirun has to stop the ranks and remove what it made
READ_BYTES = 1 << 16
CALL_FILE = "smpi_call.pickle"
PROGRAM_FILE = "smpi_call.py"
OMITTED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.pyc", "node_modules", CALL_FILE, PROGRAM_FILE
)
T = TypeVar("T")
_TAG = re.compile(rb"\[(\d+)\] ")
_OWN_WORDS = "smpirun: "
_KILLED = "was killed by"  # in smpirun's words of a rank that a signal ended


class CallError(ServerlessMPIError):
    """The ranks ended without an outcome: they were killed, or could not start."""


class RankTraceback(Exception):
    """The cause of an exception that a rank raised: the text of its traceback there."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Result(Sequence[T], Generic[T]):
    """What a call returned on each rank; `result[rank]` is the value of a rank.

    Attributes
    ----------
    values
        Values by rank.
    seconds
        Wall time from the call to the last outcome.
    stats
        Requests, bytes and dollars of the job, as `smpirun --stats json` prints them.  None for a
        call of a Cluster, whose job goes on: see `Cluster.stats`.
    """

    values: tuple[T, ...]
    seconds: float
    stats: dict[str, Any] | None = None

    @overload
    def __getitem__(self, rank: int) -> T: ...
    @overload
    def __getitem__(self, rank: slice) -> tuple[T, ...]: ...
    def __getitem__(self, rank: int | slice) -> T | tuple[T, ...]:
        return self.values[rank]

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class _Job:
    """One smpirun and what is known of its output."""

    process: subprocess.Popen[bytes]
    token: str
    readers: list[messages.OutcomeReader]
    selector: selectors.BaseSelector
    folder: tempfile.TemporaryDirectory[str] | None
    calls: int = 0
    partial: dict[str, bytes] = field(default_factory=dict)
    rank: int = 0  # whose line the last one of the output was
    words: list[str] = field(default_factory=list)  # of smpirun itself
    stats: dict[str, Any] | None = None


class Cluster:
    """N ranks that serve calls until they are closed.

    Locally the ranks are processes that stay between calls, with their modules and global
    variables.  On another platform each call is a job of its own; on AWS Lambda the functions'
    environments stay warm between calls for some minutes.

    Parameters
    ----------
    n
        Number of ranks.
    platform
        Where they run, as `smpirun --platform`.
    channel
        How messages travel, as `smpirun --channel`; by default smpirun's default.
    timeout
        Longest time of a call in seconds; None for no limit.
    memory
        MB of memory of each rank's function, on AWS Lambda.
    on_output
        Called with the rank and each line that it prints, without the newline; by default lines are
        printed on the caller's standard output, which a notebook shows.
    on_progress
        Called with the number of ranks that have returned and the number of ranks.  By default a
        terminal shows it.
    requirements
        Packages that the function imports besides numpy, on AWS Lambda: lines in pip's format.
    options
        Further options of smpirun, such as ("--stack", "NAME").

    Raises
    ------
    UsageError
        An argument is not valid.
    """

    def __init__(
        self,
        n: int,
        *,
        platform: str = LOCAL,
        channel: str | None = None,
        timeout: float | None = None,
        memory: int | None = None,
        on_output: Callable[[int, str], object] | None = None,
        on_progress: Callable[[int, int], object] | None = None,
        requirements: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UsageError(f"n is the number of ranks, at least 1, and not {n!r}")
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout is a number of seconds above 0, and not {timeout!r}")
        self.n = n
        self.stats: dict[str, Any] | None = None
        self._platform = platform
        self._timeout = timeout
        self._requirements = tuple(requirements)
        self._on_output = on_output or _print
        self._on_progress = on_progress or _Progress()
        self._options = [*options, "--tag-output", "--stats", "json", "--platform", platform]
        if channel is not None:
            self._options += ["--channel", channel]
        if memory is not None:
            self._options += ["--memory", str(memory)]
        self._job: _Job | None = None
        self._busy = threading.Lock()
        self._cancelled = threading.Event()

    # -- calls

    def run(self, function: Callable[..., T], *args: object) -> Result[T]:
        """Call a function on every rank, and wait for all of them.

        Parameters
        ----------
        function
            Called as `function(*args)` on each rank; its communicator is
            `serverless_mpi.MPI.COMM_WORLD`.
        *args
            Its arguments, equal on all ranks.

        Returns
        -------
        Result
            The value of each rank.

        Raises
        ------
        Exception
            The exception of the first rank that raised one; its cause is a `RankTraceback`.  The
            ranks end, and the next call starts new ones.
        CallError
            A rank was killed, or the job could not start.
        TimeoutError
            The call took longer than `timeout`.
        UsageError
            The function, an argument or an option cannot be used.
        """
        if not self._busy.acquire(blocking=False):
            raise UsageError(
                "another thread calls this cluster; a cluster serves one call at a time"
            )
        try:
            self._cancelled.clear()
            result = self._run(function, args)
            if self._platform != LOCAL:
                self._end()
            return result
        except Exception as error:
            # The exception of a rank ends that rank, after which smpirun stops the others.
            self._end(interrupt=not isinstance(error.__cause__, RankTraceback))
            raise
        except BaseException:
            self._end(interrupt=True)
            raise
        finally:
            self._busy.release()

    async def run_async(self, function: Callable[..., T], *args: object) -> Result[T]:
        """Call a function on every rank, while the event loop does other work.

        Parameters
        ----------
        function, *args
            As for `run`.  A cancelled task cancels the call and ends the ranks.

        Returns
        -------
        Result
            The value of each rank.
        """
        call = asyncio.ensure_future(asyncio.to_thread(self.run, function, *args))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            self.cancel()
            with contextlib.suppress(Exception):
                await call
            raise

    def cancel(self) -> None:
        """End the call of another thread, which then raises CallError, and the ranks."""
        self._cancelled.set()
        job = self._job
        if job is not None:
            _interrupt(job.process)

    def close(self) -> None:
        """End the ranks.  `stats` has the requests and dollars of the last job."""
        with self._busy:
            self._end()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- one call

    def _run(self, function: Callable[..., T], args: tuple[object, ...]) -> Result[T]:
        began = time.monotonic()
        if self._job is not None and self._job.process.poll() is not None:
            self._end()  # the ranks have ended between two calls, for example by a signal
        token = secrets.token_hex(16) if self._job is None else self._job.token
        paths = tuple(dict.fromkeys(os.path.abspath(path) for path in ("", *sys.path)))
        origin = messages.Origin(
            (sys.version_info[0], sys.version_info[1]),
            messages.by_value(),
            paths if self._platform == LOCAL else (),
            token,
        )
        data = messages.dump_call(function, args, origin)
        if self._job is None:
            self._job = self._start(token, data)
        job = self._job
        if job.process.stdin is not None:
            threading.Thread(target=_write, args=(job.process.stdin, data), daemon=True).start()
        number, job.calls = job.calls, job.calls + 1
        values = self._collect(job, number, began)
        return Result(tuple(values[rank] for rank in range(self.n)), time.monotonic() - began)

    def _collect(self, job: _Job, number: int, began: float) -> dict[int, Any]:
        """Return rank -> value once all ranks have returned; raise what the first one raised."""
        values: dict[int, Any] = {}
        consequence: Exception | None = None
        self._on_progress(0, self.n)
        for rank, index, outcome in self._outcomes(job, began):
            if index != number:
                continue
            error = outcome.error
            if error is None:
                values[rank] = outcome.value
                self._on_progress(len(values), self.n)
                if len(values) == self.n:
                    return values
                continue
            error.__cause__ = RankTraceback(f"\nrank {rank}:\n{outcome.traceback}")
            # A rank that lost its peer may report it before smpirun reports the peer's end.
            if not isinstance(error, ServerlessMPIError) or isinstance(error, UsageError):
                raise error
            consequence = consequence or error
        end = self._without_outcome(job)
        if consequence is None or _KILLED in str(end):
            raise end from consequence
        raise consequence

    def _without_outcome(self, job: _Job) -> Exception:
        if self._cancelled.is_set():
            return CallError("the call was cancelled")
        code = job.process.wait()
        text = "\n".join(job.words) or f"smpirun ended with exit code {code}"
        return UsageError(text) if code == 2 else CallError(text)

    def _outcomes(
        self, job: _Job, began: float | None
    ) -> Iterator[tuple[int, int, messages.Outcome]]:
        """Yield (rank, index of the call, outcome) until the output of smpirun ends.

        With `began`, raise TimeoutError when the call has taken too long.
        """
        while job.selector.get_map():
            left = None
            if self._timeout is not None and began is not None:
                left = began + self._timeout - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"the call took longer than {self._timeout:g} s")
            for key, _ in job.selector.select(left):
                chunk = os.read(key.fd, READ_BYTES)
                if not chunk:
                    job.selector.unregister(key.fileobj)
                *lines, rest = (job.partial.pop(key.data, b"") + chunk).split(b"\n")
                if rest and chunk:
                    job.partial[key.data] = rest
                elif rest:
                    lines.append(rest)
                for line in lines:
                    yield from self._line(job, key.data, line)

    def _line(
        self, job: _Job, stream: str, line: bytes
    ) -> Iterator[tuple[int, int, messages.Outcome]]:
        tag = _TAG.match(line)
        if tag is None:
            self._own_line(job, stream, line.decode(errors="replace"))
            return
        rank, line = int(tag[1]), line[tag.end() :]
        whole = True
        if stream == "out":
            printed, outcome = job.readers[rank].feed(line)
            whole = printed is line
            line = printed
            if outcome is not None:
                yield (rank, *outcome)
        if whole or line:
            self._on_output(rank, line.decode(errors="replace"))

    def _own_line(self, job: _Job, stream: str, line: str) -> None:
        """Keep what smpirun says itself: messages on standard error, and counts at the end."""
        if stream == "err":
            if line:
                job.words.append(line.removeprefix(_OWN_WORDS))
        elif line.startswith("{"):
            with contextlib.suppress(ValueError):
                job.stats = json.loads(line)

    # -- the job

    def _start(self, token: str, data: bytes) -> _Job:
        command = [sys.executable, "-m", "serverless_mpi.launch", *self._options]
        folder = None
        if self._platform == LOCAL:
            command += ["-n", str(self.n), "-m", "serverless_mpi.calls"]
        else:
            folder = tempfile.TemporaryDirectory(prefix="smpi-call-")
            command += self._staged(Path(folder.name), data)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if folder is None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None and process.stderr is not None
        selector = selectors.DefaultSelector()
        selector.register(process.stdout, selectors.EVENT_READ, "out")
        selector.register(process.stderr, selectors.EVENT_READ, "err")
        readers = [messages.OutcomeReader(token) for _ in range(self.n)]
        return _Job(process, token, readers, selector, folder)

    def _staged(self, folder: Path, data: bytes) -> list[str]:
        """Make a folder with the caller's modules and the call; return the words that run it."""
        program = folder / "program"
        shutil.copytree(os.getcwd(), program, ignore=OMITTED, symlinks=False)
        (program / CALL_FILE).write_bytes(data)
        text = "from serverless_mpi.calls.rank import main\n\nmain()\n"
        (program / PROGRAM_FILE).write_text(text)
        words = []
        requirements = list(self._requirements)
        if messages.by_value():
            requirements.append(f"cloudpickle=={version('cloudpickle')}")
        if requirements:
            (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
            words += ["--requirements", str(folder / "requirements.txt")]
        return [*words, "-n", str(self.n), str(program / PROGRAM_FILE), CALL_FILE]

    def _end(self, interrupt: bool = False) -> None:
        """End the job, if there is one, and keep its counts."""
        job, self._job = self._job, None
        if job is None:
            return
        if interrupt:
            _interrupt(job.process)
        if job.process.stdin is not None:
            with contextlib.suppress(OSError):  # the ranks have ended already
                job.process.stdin.close()
        # What the ranks still print is read, so that none of them waits for its reader.
        killer = threading.Timer(STOP_S, job.process.kill)
        killer.start()
        try:
            for _ in self._outcomes(job, None):
                pass  # of a call that is over
            job.process.wait()
        finally:
            killer.cancel()
            job.selector.close()
            for stream in (job.process.stdout, job.process.stderr):
                if stream is not None:
                    stream.close()
            if job.folder is not None:
                job.folder.cleanup()
        self.stats = job.stats


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)


def _write(stream: BinaryIO, data: bytes) -> None:
    """Write a call in a thread of its own: the caller reads output meanwhile."""
    with contextlib.suppress(OSError, ValueError):  # the ranks have ended; their words say why
        messages.write_call(stream, data)


def _print(rank: int, line: str) -> None:
    print(line, flush=True)


class _Progress:
    """Shows on a terminal how many ranks have returned; elsewhere nothing."""

    def __call__(self, returned: int, n: int) -> None:
        stream = sys.stderr
        if n > 1 and stream is not None and stream.isatty():
            end = "\n" if returned == n else ""
            stream.write(f"\r{returned} of {n} ranks have returned{end}")
            stream.flush()


def run(
    function: Callable[..., T],
    *args: object,
    n: int,
    platform: str = LOCAL,
    channel: str | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    on_output: Callable[[int, str], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    requirements: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Result[T]:
    """Call a function on N ranks, which are started for it and end after it.

    Parameters
    ----------
    function, *args
        As for `Cluster.run`.
    n, platform, channel, timeout, memory, on_output, on_progress, requirements, options
        As for `Cluster`.

    Returns
    -------
    Result
        The value of each rank, and the job's requests and dollars.

    Raises
    ------
    Exception
        As `Cluster.run`.

    Examples
    --------
    >>> def area(steps):
    ...     from serverless_mpi import MPI
    ...     comm = MPI.COMM_WORLD
    ...     xs = ((i + 0.5) / steps for i in range(comm.rank, steps, comm.size))
    ...     return comm.allreduce(sum(4 / (1 + x * x) for x in xs) / steps)
    >>> serverless_mpi.run(area, 10_000, n=4)[0]  # doctest: +SKIP
    3.141592654423134
    """
    cluster = Cluster(
        n,
        platform=platform,
        channel=channel,
        timeout=timeout,
        memory=memory,
        on_output=on_output,
        on_progress=on_progress,
        requirements=requirements,
        options=options,
    )
    with cluster:
        result = cluster.run(function, *args)
    return Result(result.values, result.seconds, cluster.stats)
