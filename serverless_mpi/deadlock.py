"""Deadlock detection: every rank of a job waits, and no message is in flight.

A rank that has waited long reports it in a file of the job's folder (`WaitReporter`), and the
launcher reads the files of all ranks (`detect_deadlock`). A rank that has not waited long does
nothing for this, and a rank that computes has no file.

The rule: it is a deadlock only if no thread of any running rank can act, and every rank has
reported that again a whole limit after the last frame that any of them sent or received. Times are
those of the machine's monotonic clock, which all processes of one machine share.

A thread cannot act if it waits in an MPI call without a time limit, or if the kernel reports
(`/proc/self/task`) that it sleeps on a lock of its own process without a time limit, so that only
another thread of the process can wake it. Idle threads of pools do that, in Python as in C
libraries, and so do `join`, `Event.wait` and `Queue.get`. A thread that sleeps for a time, polls,
reads or runs may act, whether `threading` has made it or not, and so may a process with a timer
(`signal.setitimer`, `signal.alarm`).

Pitfall: a false report ends a job that is fine, and a missing one only costs time. In doubt (a file
that cannot be read, an unknown system call) the functions below assume that a thread may act.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# Threads of this package that never start a communication, whatever they wait for.
OWN_THREADS = (
    "smpi-agent",
    "smpi-deaths",
    "smpi-direct-accept",
    "smpi-sender",
    "smpi-signals",
    "smpi-worker",
)
FUTEX = {"x86_64": 202, "aarch64": 98}  # number of the system call; source: asm/unistd.h
FUTEX_COMMANDS = 0x7F  # of its second argument; source: futex(2)
FUTEX_PRIVATE = 0x80
FUTEX_WAITS = (0, 9)  # FUTEX_WAIT, FUTEX_WAIT_BITSET
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SHOWN = (
    *("dest", "source", "root", "rank", "target_rank"),
    *("tag", "sendtag", "recvtag", "local_leader", "remote_leader"),
)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"waits-{rank}.json"


class WaitReporter:
    """Reports the long waits of one rank. Not thread-safe: the runtime calls it under its lock.

    Parameters
    ----------
    folder
        Folder of the job.
    rank
        World rank.
    limit_s
        Seconds without a frame after which a wait of all ranks is a deadlock.

    Attributes
    ----------
    interval_s : float
        Seconds that a wait lasts before its first report, and between reports.
    """

    def __init__(self, folder: Path, rank: int, limit_s: float) -> None:
        self.interval_s = limit_s / 3
        self._path = _path(folder, rank)
        self._waits: dict[int, str] = {}  # native thread id -> the call that it waits in
        self._frames = -1
        self._idle_since = 0.0

    def report(self, frames: int, awaited: Callable[[], Sequence[str]]) -> None:
        """Report that the calling thread still waits, unless another thread may act.

        Parameters
        ----------
        frames
            Number of frames that the rank has sent and received so far.
        awaited
            Returns descriptions of what the rank waits for; called only if a report is written.
        """
        now = time.monotonic()
        if frames != self._frames or not self._waits:
            self._frames, self._idle_since = frames, now
        self._waits[threading.get_native_id()] = _where(inspect.currentframe())
        if _may_act(set(self._waits)):
            self._remove()
            return
        record = {
            "at": now,
            "since": self._idle_since,
            "waits": list(self._waits.values()),
            "awaited": list(awaited()),
        }
        draft = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # the job's folder is being removed
            draft.write_text(json.dumps(record))
            draft.rename(self._path)

    def over(self) -> None:
        """Withdraw the report: the calling thread does not wait any more."""
        self._waits.pop(threading.get_native_id(), None)
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def _may_act(waiting: set[int]) -> bool:
    """Return whether this process may communicate although the threads `waiting` wait in MPI."""
    if any(signal.getitimer(timer)[0] for timer in TIMERS):
        return True
    ignored = {
        thread.native_id for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)
    }
    threads = {int(name) for name in os.listdir("/proc/self/task")}
    return not all(_stuck(thread) for thread in threads - waiting - ignored)


def _stuck(thread: int) -> bool:
    """Return whether a thread sleeps until another thread of this process wakes it."""
    try:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            number, *arguments = file.read().split()
    except FileNotFoundError:  # the thread has ended
        return True
    except OSError:  # not permitted here
        return False
    if number != str(FUTEX.get(os.uname().machine)) or len(arguments) < 4:
        return False  # "running", or another call
    operation, timeout = int(arguments[1], 16), int(arguments[3], 16)
    waits = operation & FUTEX_COMMANDS in FUTEX_WAITS
    return waits and bool(operation & FUTEX_PRIVATE) and not timeout


def _where(frame: FrameType | None) -> str:
    """Describe the MPI call that the program made: its ranks and tags, and the program's line."""
    call: FrameType | None = None
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        call, frame = frame, frame.f_back
    if call is None:
        return "an MPI call"
    local = call.f_locals
    name = call.f_code.co_name
    owner = local.get("self")
    if owner is not None:
        name = f"{type(owner).__name__}.{name}"
    arguments = ", ".join(
        f"{key}={local[key]}" for key in _SHOWN if isinstance(local.get(key), int)
    )
    text = f"{name}({arguments})"
    communicator = getattr(owner, "name", None)
    if isinstance(communicator, str) and communicator:
        text += f" on {communicator}"
    if frame is None:
        return text
    return f"{text} at {frame.f_code.co_filename}:{frame.f_lineno}"


def read(folder: Path, rank: int) -> dict[str, Any] | None:
    """Return a rank's last report of its long waits.

    Parameters
    ----------
    folder
        Folder of the job.
    rank
        World rank.

    Returns
    -------
    dict or None
        `at`: time of the report, and `since`: time of the last frame that the rank sent or
        received, both in seconds of the monotonic clock; `waits`: calls in which its threads wait;
        `awaited`: what they wait for. None if the rank has not reported, or the file is damaged.
    """
    try:
        record = json.loads(_path(folder, rank).read_text())
        valid = all(isinstance(at, int | float) for at in (record["at"], record["since"])) and all(
            isinstance(text, str) for text in (*record["waits"], *record["awaited"])
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if valid else None


def detect_deadlock(folder: Path, ranks: Sequence[int], limit_s: float) -> list[str] | None:
    """Detect a deadlock of the processes of one machine.

    Parameters
    ----------
    folder
        Folder of the job, in which ranks report.
    ranks
        World ranks that still run.
    limit_s
        As for `WaitReporter`.

    Returns
    -------
    list of str or None
        A line for each of `ranks` that describes its waits; None if it is not a deadlock.
    """
    return deadlock_in({rank: read(folder, rank) for rank in ranks}, limit_s)


def deadlock_in(reports: Mapping[int, dict[str, Any] | None], limit_s: float) -> list[str] | None:
    """Detect a deadlock in the last reports of the ranks that still run.

    Parameters
    ----------
    reports
        World rank -> what `read` returned for it. The times of all reports must be of one clock, or
        of clocks that agree well within `limit_s`.
    limit_s
        As for `WaitReporter`.

    Returns
    -------
    list of str or None
        As for `detect_deadlock`.
    """
    records = [record for record in reports.values() if record is not None]
    if not records or len(records) < len(reports):
        return None  # a rank computes, or has not waited long
    confirmed = min(record["at"] for record in records)
    if confirmed < max(record["since"] for record in records) + limit_s:
        return None  # a frame may have been in flight when the oldest report was written
    lines = []
    for rank, record in zip(reports, records, strict=True):
        waits, awaited = "; ".join(record["waits"]), "; ".join(record["awaited"])
        lines.append(f"rank {rank} waits in {waits}" + (f", for {awaited}" if awaited else ""))
    return lines
