"""The launcher's side of `serverless_mpi.forks`: a process of which Python ranks are forks.

A fork server is started as a rank would be: the same command, environment and folder, so whatever
the interpreter reads there holds for all ranks of a program. It imports while the launcher makes
the job's resources, and is stopped when its ranks have started.

`usable` decides where it is used. If the server ends before it is ready, its ranks are started as
processes of their own, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serverless_mpi.env import ENV_FORK, ENV_FORKS
from serverless_mpi.errors import JobError
from serverless_mpi.forks import LENGTH, PID, READY, receive

READY_S = 30.0  # then ranks are started as processes of their own
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

# Variables of Python that mean the same to a fork. Others (PYTHONPROFILEIMPORTTIME, ...) watch the
# start of an interpreter, and so do tools that hook into it.
_HARMLESS = {
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONHOME",
    "PYTHONIOENCODING",
    "PYTHONNOUSERSITE",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "PYTHONSAFEPATH",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
    "PYTHONWARNINGS",
}
_WATCHING = ("PYTHON", "COVERAGE_", "COV_CORE_")


def usable(argv: Sequence[str], ranks: int, environ: Mapping[str, str]) -> bool:
    """Return whether ranks of a program can be forks of one process.

    Parameters
    ----------
    argv
        Command line of a rank.
    ranks
        Number of ranks that run it; one alone starts as fast without.
    environ
        Environment of a rank.
    """
    python = argv[0] in (sys.executable, os.path.abspath(sys.executable))
    return (
        python
        and ranks > 1
        and len(argv) > 1
        and (not argv[1].startswith("-") or argv[1] in ("-m", "-c"))
        and sys.platform == "linux"
        and hasattr(os, "pidfd_open")
        and environ.get(ENV_FORKS) != "0"
        and all(
            name in _HARMLESS or not name.startswith(_WATCHING)
            for name, value in environ.items()
            if value
        )
    )


@dataclass
class Forked:
    """A forked rank, with the part of `subprocess.Popen` that the launcher uses."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (-n for signal n); None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkServer:
    """A fork server of one program.

    Parameters
    ----------
    argv, folder, environ
        Of a rank, without what distinguishes ranks.
    modules
        Imported before the first fork.
    reads
        Whether rank 0, which reads the launcher's standard input, is one of its ranks.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: str | None,
        environ: Mapping[str, str],
        modules: Sequence[str],
        reads: bool,
    ) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._socket, theirs = socket.socketpair()
        settings = {
            "fd": theirs.fileno(),
            "modules": list(modules),
            "folder": _folder_of_modules(argv, folder),
        }
        output, output_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=None if reads else subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                cwd=folder,
                env={**environ, ENV_FORK: json.dumps(settings)},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            self._socket.close()
            raise
        finally:
            os.close(output_end)
            theirs.close()
        self.output = open(output, "rb", buffering=0)  # what it prints while it imports
        self._ready: bool | None = None

    def ready(self) -> bool:
        """Wait until it can fork; return False if it has ended, or takes too long."""
        if self._ready is None:
            readable, _, _ = select.select([self._socket], [], [], READY_S)
            self._ready = bool(readable) and self._socket.recv(1) == READY
        return self._ready

    def fork(self, requests: Sequence[tuple[Mapping[str, str], Mapping[int, int]]]) -> list[Forked]:
        """Fork ranks.

        Parameters
        ----------
        requests
            For each rank: its own variables, and its descriptors, number in the rank -> number
            here; they are not closed.

        Returns
        -------
        list of Forked
            In the order of `requests`; each leads a session.

        Raises
        ------
        JobError
            The server has ended.
        """
        try:
            for environ, descriptors in requests:
                body = json.dumps({"environ": environ, "places": list(descriptors)}).encode()
                message = LENGTH.pack(len(body)) + body
                sent = socket.send_fds(self._socket, [message], list(descriptors.values()))
                self._socket.sendall(message[sent:])
            self._socket.sendall(LENGTH.pack(0))
            return [
                Forked(PID.unpack(receive(self._socket, PID.size))[0]) for _ in range(len(requests))
            ]
        except (OSError, EOFError) as error:
            raise JobError(
                f"the process that forks ranks (process {self._process.pid}) has ended;"
                f" {ENV_FORKS}=0 starts each rank by itself"
            ) from error

    def stop(self) -> None:
        """End it; its ranks go on. May be called again."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)  # later orphans are not the launcher's
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _folder_of_modules(argv: Sequence[str], folder: str | None) -> str:
    """The folder that the interpreter searches first for modules of the program."""
    here = folder or os.curdir
    if argv[1].startswith("-"):
        return here
    program = os.path.join(here, argv[1])
    return program if os.path.isdir(program) else os.path.dirname(program)
