"""A rank's program inside a function: a forked child, its output, its memory, its end.

A function's environment serves one invocation after another, so a program never runs in the function's own process:
it would leave modules, threads and a finalized MPI behind.  A fork keeps what was imported when the environment
began (NumPy above all), costs milliseconds, and dies whole.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import io
import logging
import os
import runpy
import selectors
import signal
import sys
import threading
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NoReturn

from serverless_mpi.env import ENV_ALIAS, ENV_LINEAGE, ENV_TRACE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.launch import invocation as kinds
from serverless_mpi.launch.jobs import kill_processes_of
from serverless_mpi.stack.bucket import MAX_FILES

GRACE_S = 2.0  # between SIGTERM and SIGKILL
DRAIN_S = 1.0  # for output that is still in the pipes when the program is dead
READ_BYTES = 64 << 10
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # prctl(2)
SWEEPS = 50  # a process may start others while it is being ended
SITE = Path(__file__).with_name("site")


def seal() -> None:
    """Prepare a function's process, once: programs of one job after another run as its user.

    No process of that user may then read or write its memory, its environment or its descriptors, and what a program
    leaves behind, wherever it hides, becomes this process's child, which `Child.stop` ends.
    """
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _children() -> set[int]:
    """Process ids of this process's children."""
    found = set()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            pid = int(entry.name)
            if (
                int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
                == os.getpid()
            ):
                found.add(pid)
    return found


class Child:
    """A program that runs in a fork of this process.

    pid: its process id, and its group's; code: its exit code (128 + n if signal n ended it), None while it runs;
    peak_bytes: the most memory it was seen to use.
    """

    def __init__(
        self,
        kind: str,
        argv: Sequence[str],
        folder: Path,
        paths: Sequence[str],
        variables: dict[str, str],
        name: str,
    ) -> None:
        """Start it in `folder`; paths: put first in sys.path; name: by which its processes are known."""
        self._name = name
        self._selector = selectors.DefaultSelector()
        self.code: int | None = None
        self.peak_bytes = 0
        self._open = 2
        self._others = _children()
        (out, out_there), (err, err_there) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(
                kind,
                list(argv),
                folder,
                paths,
                {**variables, ENV_LINEAGE: name},
                out_there,
                err_there,
            )
        os.close(out_there)
        os.close(err_there)
        for fd, stream in ((out, "out"), (err, "err")):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, stream)

    def turn(self, wait_s: float, take: Callable[[str, bytes], None]) -> None:
        """Hand over output ("out" or "err", bytes) that comes within `wait_s` seconds; see whether it has ended."""
        if self._open:
            for key, _ in self._selector.select(wait_s):
                self._read(key, take)
        else:
            time.sleep(min(wait_s, 0.01))  # a program may close its output and run on
        self._reap()

    def _read(self, key: selectors.SelectorKey, take: Callable[[str, bytes], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(key.fd, READ_BYTES)
            if data:
                take(key.data, data)
            else:
                self._selector.unregister(key.fd)
                os.close(key.fd)
                self._open -= 1

    def _reap(self) -> None:
        if self.code is not None:
            return
        self.peak_bytes = max(self.peak_bytes, self.resident_bytes())
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self.code = code if code >= 0 else 128 - code
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)

    def resident_bytes(self) -> int:
        """Memory that it uses now."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has just ended
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, take: Callable[[str, bytes], None]) -> None:
        """End it and everything it started, and hand over what they still had to say."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self.code is None and time.monotonic() < deadline:
            self.turn(0.05, take)
        self._signal(signal.SIGKILL)
        while self.code is None:
            self.turn(0.05, take)
        kill_processes_of(self._name)  # what left the group
        self._end_orphans()
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline:
            self.turn(0.05, take)

    def _end_orphans(self) -> None:
        """End what left the group and the environment by which it was known; a sealed process gets it as a child."""
        for _ in range(SWEEPS):
            orphans = _children() - self._others
            if not orphans:
                return
            for pid in orphans:
                os.kill(
                    pid, signal.SIGKILL
                )  # at worst a zombie: nobody else waits for our children
                os.waitpid(pid, 0)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Let go of its pipes."""
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()


def unpack(data: bytes | memoryview, folder: Path, most_bytes: int) -> None:
    """Put a zip's files below `folder`, which is empty; nothing but plain files and folders comes of it.

    Raises
    ------
    ServerlessMPIError
        It is no zip, has more than `most_bytes` unpacked or too many files, or names one outside the folder.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            # no more than an entry's stated size is read of it, so the sum bounds what is written
            nbytes = sum(entry.file_size for entry in entries)
            if nbytes > most_bytes or len(entries) > MAX_FILES:
                raise ServerlessMPIError(
                    f"a zip of this job has {len(entries):,} files of {nbytes >> 20} MB;"
                    f" a function allows {MAX_FILES:,} files of {most_bytes >> 20} MB in all"
                )
            for entry in entries:
                parts = PurePosixPath(entry.filename).parts
                if not parts or entry.filename.startswith("/") or ".." in parts:
                    raise ServerlessMPIError(
                        "a zip of this job names a file outside its folder; it was not unpacked any further"
                    )
                path = Path(archive.extract(entry, folder))
                if not entry.is_dir():
                    path.chmod(0o755 if entry.external_attr >> 16 & 0o100 else 0o644)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ServerlessMPIError(f"a zip of this job is damaged: {error}") from error


# -- in the child


def _become(
    kind: str,
    argv: list[str],
    folder: Path,
    paths: Sequence[str],
    variables: dict[str, str],
    out: int,
    err: int,
) -> NoReturn:
    """Be the program, to its end."""
    code = 1
    try:
        os.setsid()
        # a function that is killed takes its program along; on the platform the whole environment goes
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(PR_SET_DUMPABLE, 1)  # as any process; the function's own stays as `seal` made it
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, place in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, place)
            os.close(fd)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        sys.stdin = open(0)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        logging.getLogger().handlers.clear()  # the platform's, which write to its log
        os.environ.update(variables)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(SITE), *paths, os.environ.get("PYTHONPATH")))
        )
        os.chdir(folder)
        sys.path[:0] = [path for path in paths if path not in sys.path]
        code = _run(kind, argv, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(kind: str, argv: list[str], folder: Path) -> int:
    if kind == kinds.EXECUTABLE:
        path = folder / argv[0]
        os.execvp(str(path) if path.exists() else argv[0], argv)
    if os.environ.get(ENV_ALIAS) == "1":
        from serverless_mpi import alias

        alias.install()
    if ENV_TRACE in os.environ and (loaded := sys.modules.get("serverless_mpi.MPI")) is not None:
        loaded._trace_calls()
    sys.argv = list(argv)
    try:
        if kind == kinds.SCRIPT:
            if (folder / argv[0]).suffix in (".py", ".pyw"):
                sys.path.insert(0, str((folder / argv[0]).parent))
            runpy.run_path(argv[0], run_name="__main__")
        elif kind == kinds.MODULE:
            sys.path.insert(0, str(folder))
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(folder))
            module, _, function = argv[0].partition(":")
            sys.argv[0] = function
            sys.exit(getattr(importlib.import_module(module), function)())
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:
        error.__traceback__ = _own(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the program's threads, as the interpreter does at its end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


def _exit_code(end: SystemExit) -> int:
    """As the interpreter does it."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _own(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on."""
    ours = (__file__, runpy.__file__, "<frozen runpy>", "<frozen importlib._bootstrap>")
    start = trace
    while start is not None and start.tb_frame.f_code.co_filename in ours:
        start = start.tb_next
    return start if start is not None else trace
