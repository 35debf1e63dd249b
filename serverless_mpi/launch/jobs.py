"""Job folders and guards: nothing of a job outlives it, even if its launcher is killed.

- Every job has a folder in the user's state folder, with a lock that the
  launcher holds and a record of what must be removed (`JobSpec.public`).
- Every process of a job has the job's id in its environment.
- A guard is forked before anything else is made.  It shares the lock and waits
  for the launcher.  If the launcher dies, the guard kills the job's processes,
  removes what the job made, and ends.
- If the guard died as well, `smpirun --cleanup` does its work: a folder whose
  lock is free belongs to a dead job.

The job's key is never written to a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serverless_mpi import channels
from serverless_mpi.env import ENV_LINEAGE
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.job import KEY_BYTES, JobSpec

# A process may fork during a scan of /proc; each sweep finds what the last one missed.
SWEEPS = 50
_DONE = b"d"
_REMEDY = "free some disk space, or set TMPDIR to a folder on another disk"


def state_folder() -> Path:
    """Return the user's folder of job folders, in the temporary directory.

    Raises
    ------
    JobError
        No file can be written in any temporary directory.
    """
    try:
        return Path(tempfile.gettempdir()) / f"smpi-{os.getuid()}"
    except FileNotFoundError as error:
        raise JobError(f"{error.strerror}; {_REMEDY}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise JobError for a file or folder that cannot be written inside."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; {_REMEDY}") from error


@contextlib.contextmanager
def _locked_state() -> Iterator[Path]:
    """Yield the state folder, made if needed, locked against other launchers.

    Raises
    ------
    UsageError
        Another user, or something that is not a folder, has its name.
    """
    folder = state_folder()
    while True:
        with contextlib.suppress(FileExistsError), _writing(folder):
            folder.mkdir(mode=0o700)
        try:
            entry = folder.lstat()
            if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid():
                raise UsageError(
                    f"{folder} is not a folder of this user;"
                    " remove it, or set TMPDIR to a folder of your own"
                )
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another job ended, and removed it, in between
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The folder may have been removed, and made again, before this lock was granted.
            locked = os.fstat(fd)
            if locked.st_nlink and folder.exists() and os.path.samestat(locked, folder.stat()):
                os.fchmod(fd, 0o700)
                yield folder
                with contextlib.suppress(OSError):  # not empty: other jobs run
                    folder.rmdir()
                return
        finally:
            os.close(fd)


def processes_of(job_id: str) -> list[int]:
    """Return the ids of the processes whose environment names the job.

    Parameters
    ----------
    job_id
        Id of the job, one of those in SMPI_LINEAGE.

    Returns
    -------
    list of int
        Without this process; empty on systems without /proc.
    """
    pids = []
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = Path(entry.path, "environ").read_bytes()
        except OSError:  # a process of another user, or one that has ended
            continue
        for variable in environ.split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == ENV_LINEAGE.encode() and job_id.encode() in value.split(b"/"):
                pids.append(int(entry.name))
                break
    return pids


def kill_processes_of(job_id: str) -> None:
    """Kill every process of a job, including those that left their process group.

    Parameters
    ----------
    job_id
        As in `processes_of`.
    """
    for _ in range(SWEEPS):
        pids = processes_of(job_id)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class JobFolder:
    """A job's folder, its lock and its guard. `begin` makes them, `end` removes them.

    Attributes
    ----------
    path
        The folder.
    job_id
        Id of the job, the name of the folder.
    keep
        Set it if something could not be removed: `end` then leaves the record for `--cleanup`.
    """

    path: Path
    job_id: str
    _lock: int
    _guard: int = 0  # process id
    _lifeline: int = -1  # the guard waits while this descriptor is open
    keep: bool = False

    @classmethod
    def begin(cls) -> JobFolder:
        """Make the folder, lock and guard of a new job.

        It forks, so call it before the process has threads.

        Raises
        ------
        UsageError
            The state folder belongs to another user.
        JobError
            The folder cannot be written.
        """
        job_id = secrets.token_hex(8)
        with _locked_state() as state:
            path = state / job_id
            with _writing(path):
                path.mkdir(mode=0o700)
                lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder = cls(path, job_id, lock)
        folder._start_guard()
        return folder

    def stats(self, incarnation: int) -> Path:
        """Make and return the folder for the counters of an incarnation's ranks.

        Parameters
        ----------
        incarnation
            How often the job has started before.
        """
        path = self.path / f"stats-{incarnation}"
        with _writing(path):
            path.mkdir()
        return path

    def record(self, spec: JobSpec) -> None:
        """Write down the job, so that `clear` can remove what its channel makes elsewhere.

        Parameters
        ----------
        spec
            The job; its key is not written.
        """
        draft = self.path / "spec.new"
        with _writing(draft):
            draft.write_text(json.dumps(spec.public()))
            draft.replace(self.path / "spec.json")

    def recorded(self) -> JobSpec:
        """Return what `record` wrote last, without the key."""
        return _recorded(self.path / "spec.json")

    def end(self) -> None:
        """Remove the folder of a job that has removed all else, and end its guard."""
        with _locked_state():
            if not self.keep:
                shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(BrokenPipeError):  # the guard was killed, perhaps with the ranks
            os.write(self._lifeline, _DONE)
        os.close(self._lifeline)
        os.waitpid(self._guard, 0)
        os.close(self._lock)

    def _start_guard(self) -> None:
        ours, self._lifeline = os.pipe()
        self._guard = os.fork()
        if self._guard:
            os.close(ours)
            return
        status = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            # Close everything but the pipe and the lock: an open pipe of the launcher would make
            # its reader wait for the guard.
            start = 3
            for fd in sorted((ours, self._lock)):
                os.closerange(start, fd)
                start = fd + 1
            os.closerange(start, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
            if os.read(ours, 1) != _DONE:
                clear(self.path)
                with _locked_state():
                    pass  # removes the state folder if this was the last job in it
            status = 0
        finally:
            os._exit(status)


def _recorded(path: Path) -> JobSpec:
    """Read a record of a job.

    Raises
    ------
    JobError
        It is damaged, or another version of this package wrote it.
    """
    try:
        public = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"the job's record cannot be read: {error}") from error
    return JobSpec.from_public(public, rank=0, key=bytes(KEY_BYTES))


def recorded_ids() -> set[str]:
    """Return the ids under which the jobs of this user have made something elsewhere.

    A job that was started again has another id than its folder.
    """
    found = set()
    for path in state_folder().glob("*/spec.json"):
        with contextlib.suppress(JobError):
            found.add(_recorded(path).job_id)
    return found


def clear(path: Path) -> None:
    """Remove everything of a dead job: processes, what its channel made, its folder.

    Parameters
    ----------
    path
        Folder of the job.

    Raises
    ------
    ChannelError
        The service could not be reached; the folder stays, for another try.
    JobError
        The record of what the job made is damaged; the folder stays.
    UsageError
        The job's channel is an extension that is not installed here; the folder stays.
    """
    kill_processes_of(path.name)
    record = path / "spec.json"
    if record.exists():
        spec = _recorded(record)
        channels.load(spec.channel).destroy(spec)
    shutil.rmtree(path)


def clear_dead_jobs() -> list[str]:
    """Clear every job whose launcher and guard are dead.

    Returns
    -------
    list of str
        One line per job: that it was removed, or why it was kept.
    """
    lines = []
    with _locked_state() as state:
        for path in sorted(state.iterdir()):
            if not (path / "lock").exists():
                shutil.rmtree(path, ignore_errors=True)
                continue
            with open(path / "lock") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # it runs, or its guard is clearing it
                try:
                    clear(path)
                except (ChannelError, JobError, UsageError) as error:
                    lines.append(f"kept job {path.name}; to give it up, remove {path}: {error}")
                else:
                    lines.append(f"removed job {path.name}")
    return lines
