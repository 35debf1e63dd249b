"""Starts the launcher of a spawned job, and ends with it.

The launcher (launch/spawned.py) is a process of this rank's process group, so whoever stops the
rank stops it, too. It has one end of a socket pair: the request and the reply go over it, and when
this process ends, the launcher sees its end close and stops the spawned ranks.

A thread waits for each launcher. If a spawned job fails, this rank ends with the same exit code, as
if one of its own job had failed; fault-tolerant ranks (`smpirun --ft`) go on. At the end of the
interpreter the rank waits for the jobs that it has spawned.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from serverless_mpi.env import (
    ENV_APPNUM,
    ENV_BEGUN,
    ENV_EXPLAIN,
    ENV_FORK,
    ENV_LOCAL_RANKS,
    ENV_RANK,
    ENV_TRACE,
)
from serverless_mpi.errors import JobError
from serverless_mpi.processes.request import SpawnReply, SpawnRequest

MODULE = "serverless_mpi.launch.spawned"
# of this rank alone: the new job counts its own ranks, and is neither traced nor explained
_OWN_VARIABLES = (
    ENV_RANK,
    ENV_APPNUM,
    ENV_LOCAL_RANKS,
    ENV_BEGUN,
    ENV_FORK,
    ENV_TRACE,
    ENV_EXPLAIN,
)
NOTICE_S = 10.0  # after so long a program that only waits for spawned jobs says so
_SIGNALED = 128  # exit codes from here on are those of a launcher that was stopped

_watchers: list[threading.Thread] = []


def spawn(request: SpawnRequest, on_failure: Callable[[int, str], None]) -> SpawnReply:
    """Start a job, and return when its processes have been started.

    Parameters
    ----------
    request
        The job.
    on_failure
        Called in another thread as on_failure(exit code, reason) if the job fails later; the
        launcher has printed why, so the reason may be empty.

    Returns
    -------
    SpawnReply
        It states why if the job was not started.
    """
    ours, theirs = socket.socketpair()
    environ = {name: text for name, text in os.environ.items() if name not in _OWN_VARIABLES}
    with theirs:
        try:
            launcher = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environ,
            )
        except OSError as error:
            ours.close()
            return SpawnReply(error=f"{sys.executable} cannot be executed: {error.strerror}")
    try:
        ours.sendall(request.to_json().encode() + b"\n")
        with ours.makefile("rb") as stream:
            line = stream.readline()
        reply = SpawnReply.from_json(line.decode())
    except (OSError, JobError):
        reply = SpawnReply(error="its launcher ended before the job began")
    if reply.error:
        ours.close()
        launcher.wait()
        return reply
    watcher = threading.Thread(
        target=_watch, args=(launcher, ours, on_failure), name="smpi-spawned", daemon=True
    )
    _watchers[:] = [other for other in _watchers if other.is_alive()]
    _watchers.append(watcher)
    watcher.start()
    return reply


def _watch(
    launcher: subprocess.Popen[bytes],
    lifeline: socket.socket,
    on_failure: Callable[[int, str], None],
) -> None:
    """Wait for the end of a launcher; the lifeline stays open until then."""
    code = launcher.wait()
    lifeline.close()
    if code < 0:
        on_failure(_SIGNALED - code, f"the launcher of a spawned job was killed by signal {-code}")
    elif code >= _SIGNALED:
        on_failure(code, "")
    elif code:
        on_failure(code, f"a spawned job ended with exit code {code}")


def wait_for_jobs() -> None:
    """Return when all spawned jobs have ended, or at once after an exception of the program.

    The launchers then stop their jobs, since nobody sends them what they may wait for.
    """
    if getattr(sys, "last_value", None) is not None:  # the interpreter has printed its traceback
        return
    for watcher in _watchers:
        watcher.join(NOTICE_S)
        if watcher.is_alive():
            text = "this program has ended and waits for a job that it has spawned"
            print(text, file=sys.stderr, flush=True)
            watcher.join()


def forked() -> None:
    """Forget the jobs of the parent process, in a forked child."""
    _watchers.clear()


os.register_at_fork(after_in_child=forked)
