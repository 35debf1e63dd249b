"""Run a rank's program inside a function: a forked child, its output, its memory, its end.

An execution environment serves one invocation after another. If a program ran in the function's
own process, it would leave modules, threads and a finalized MPI behind. So each program runs in a
fork. A fork keeps what was imported when the environment began (NumPy above all), starts in
milliseconds, and can be killed as a whole.

Invariants:

- Programs of successive jobs run as one user. `seal` keeps them from reading the memory of the
  function's process, and makes that process the parent of every orphan (subreaper).
- After `Child.stop` no process that the program started is running, even one that left its process
  group or removed its environment.

Pitfall: code after the fork runs without the other threads of the parent, so it takes no lock that
one of them could hold.

References
----------
prctl(2): PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
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
from collections.abc import Callable, Container, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NoReturn

from serverless_mpi.env import ENV_ALIAS, ENV_LINEAGE, ENV_PROFILE, ENV_TRACE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.launch import invocation as kinds
from serverless_mpi.launch.jobs import kill_processes_of
from serverless_mpi.stack.bucket import MAX_FILES

GRACE_S = 2.0  # between SIGTERM and SIGKILL
DRAIN_S = 1.0  # for output that is still in the pipes when the program has ended
READ_BYTES = 64 << 10
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # prctl(2)
SWEEPS = 50  # a process may start others while it is being killed
SITE = Path(__file__).with_name("site")


def seal() -> None:
    """Protect the function's process against the programs that run as its user; call it once.

    No other process of that user can then read or write its memory, its environment or its
    descriptors. Orphans of programs become this process's children, which `Child.stop` kills.
    """
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def children() -> set[int]:
    """Return the process ids of this process's children, zombies included."""
    children = set()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            pid = int(entry.name)
            # The program's name is in brackets and may hold any character; the parent follows it.
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                children.add(pid)
    return children


class Child:
    """A program that runs in a fork of this process. The constructor starts it.

    Parameters
    ----------
    kind, argv
        As in `invocation.Task`.
    folder
        Its working directory.
    paths
        Folders that are put first in `sys.path`.
    variables
        Environment variables to set in addition to this process's.
    name
        Marks the environment of all its processes, by which `stop` finds them.
    keep, drop
        Descriptors that the program gets, and those of this process that it must not have.

    Attributes
    ----------
    pid
        Its process id, which is also that of its process group.
    code
        Its exit code (128 + N if signal N ended it); None while it runs.
    peak_bytes
        The most resident memory that was measured, in bytes.
    """

    def __init__(
        self,
        kind: str,
        argv: Sequence[str],
        folder: Path,
        paths: Sequence[str],
        variables: dict[str, str],
        name: str,
        keep: Sequence[int] = (),
        drop: Sequence[int] = (),
    ) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self.code: int | None = None
        self.peak_bytes = 0
        self._stopped = False
        self._open = 2  # pipes that have not reached their end
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            environ = {**variables, ENV_LINEAGE: name}
            streams = child_out, child_err
            _become(kind, list(argv), folder, paths, environ, streams, keep, drop)
        os.close(child_out)
        os.close(child_err)
        for fd, stream in ((out, "out"), (err, "err")):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, stream)

    def turn(self, wait_s: float, take: Callable[[str, bytes], None]) -> None:
        """Deliver output for a while, and check whether the program has ended.

        Parameters
        ----------
        wait_s
            Seconds to wait for output; returns earlier if there is some.
        take
            Called with "out" or "err", and the bytes that the program wrote to it.
        """
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
        """Return the resident memory of the program's process, in bytes; 0 if it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has just ended
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, take: Callable[[str, bytes], None]) -> None:
        """Stop the program and the processes it started, and deliver their last output.

        The program gets SIGTERM, and SIGKILL after GRACE_S. Processes that left its group and
        removed its environment are ended by `end_orphans`.

        Parameters
        ----------
        take
            As in `turn`.
        """
        if self._stopped:  # its process id may be another's by now
            return
        self._stopped = True
        self.terminate()
        deadline = time.monotonic() + GRACE_S
        while self.code is None and time.monotonic() < deadline:
            self.turn(0.05, take)
        # Output is read while waiting: a program that blocks on a full pipe could not end.
        self._signal(signal.SIGKILL)
        while self.code is None:
            self.turn(0.05, take)
        kill_processes_of(self._name)  # processes that left the group
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline:
            self.turn(0.05, take)

    def show_stacks(self) -> None:
        """Let a Python program print the stacks of its threads to its standard error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGQUIT)

    def terminate(self) -> None:
        """Send SIGTERM to the program; `stop` follows."""
        self._signal(signal.SIGTERM)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is output, for a poll."""
        return self._selector.fileno()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Close the pipes."""
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()


def end_orphans(others: Container[int]) -> None:
    """Kill processes that left their program's group and changed their environment.

    They are children of this process now, because `seal` made it the subreaper. Call it when every
    `Child` has been stopped.

    Parameters
    ----------
    others
        What `children` returned before the first program was started.
    """
    for _ in range(SWEEPS):
        orphans = [pid for pid in children() if pid not in others]
        if not orphans:
            return
        for pid in orphans:
            # The process exists, at worst as a zombie: nothing else waits for our children.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def private_bytes() -> int:
    """Return the memory of this process that no other process shares, in bytes.

    A program is a fork: what it shares with this process is counted in the program's memory.
    """
    found = _rollup("self", "Private_")
    return found or int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


def shared_out_bytes(pids: Sequence[int]) -> int:
    """Return the memory of processes, in bytes: what several of them share is counted once.

    Parameters
    ----------
    pids
        Processes of the same user; one that has ended counts as nothing.

    Notes
    -----
    The kernel walks the page tables: about 1 ms per 100 MB.
    """
    return sum(_rollup(str(pid), "Pss:") for pid in pids)


def _rollup(pid: str, name: str) -> int:
    """Return the sum of the lines of smaps_rollup that begin with `name`; 0 if it is not there."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    except (OSError, IndexError, ValueError):  # it has ended, or a kernel before 4.14
        return 0


def unpack(data: bytes | memoryview, folder: Path, most_bytes: int) -> None:
    """Unpack a zip; it can make only plain files and folders inside the target folder.

    Parameters
    ----------
    data
        The zip.
    folder
        Target; must be empty.
    most_bytes
        Greatest sum of the unpacked sizes, in bytes.

    Raises
    ------
    ServerlessMPIError
        The data is not a valid zip, is larger than allowed, has too many files, or names a file
        outside the folder.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            # Extraction reads at most the stated size of an entry, so the sum bounds the output.
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
                        "a zip of this job names a file outside its folder;"
                        " unpacking has stopped there"
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
    streams: tuple[int, int],
    keep: Sequence[int],
    drop: Sequence[int],
) -> NoReturn:
    """Run the program in the forked child, and exit with its code."""
    code = 1
    try:
        os.setsid()
        # If the function's process is killed, so is the program. (On Lambda the whole environment
        # ends with it.)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # An ordinary process again; the parent remains as `seal` made it.
        _prctl(PR_SET_DUMPABLE, 1)
        for fd in drop:
            os.close(fd)
        for fd in keep:
            os.set_inheritable(fd, True)
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, standard_fd in ((null, 0), (streams[0], 1), (streams[1], 2)):
            os.dup2(fd, standard_fd)
            os.close(fd)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        sys.stdin = open(0)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        logging.getLogger().handlers.clear()  # Lambda's handlers, which write to the function's log
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
    """Run the program, then what the interpreter does at its end; return the exit code."""
    if kind == kinds.EXECUTABLE:
        path = folder / argv[0]
        os.execvp(str(path) if path.exists() else argv[0], argv)
    faulthandler.register(signal.SIGQUIT, 2)  # see `Child.show_stacks`
    if os.environ.get(ENV_ALIAS) == "1":
        from serverless_mpi import alias

        alias.install()
    observed = ENV_TRACE in os.environ or ENV_PROFILE in os.environ
    if observed and (loaded := sys.modules.get("serverless_mpi.MPI")) is not None:
        loaded._observe_calls()
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
    # The end of an interpreter, which `os._exit` skips: join non-daemon threads, run atexit.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


def _exit_code(end: SystemExit) -> int:
    """Return the exit code of a SystemExit, as the interpreter computes it."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _own(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins with the program's first frame."""
    ours = (__file__, runpy.__file__, "<frozen runpy>", "<frozen importlib._bootstrap>")
    start = trace
    while start is not None and start.tb_frame.f_code.co_filename in ours:
        start = start.tb_next
    return start if start is not None else trace
