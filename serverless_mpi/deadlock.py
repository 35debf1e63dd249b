"""A deadlock: every rank of a job waits, and nothing is in flight.

A rank that has waited long says so in a file of the job's folder (`WaitReporter`); the
launcher reads the files (`verdict`).  A rank that has not waited long does
nothing for this, and a rank that computes has no file: the verdict is
"deadlock" only if no thread of any rank that still runs can act, and each rank
confirmed, a whole limit after the last frame that any of them sent or
received, that this is still so.  The clock is the machine's monotonic one,
which all its processes share.

A thread cannot act if it waits in an MPI call without a time limit, or if the
kernel says (`/proc/self/task`) that it sleeps on a lock of its own process
without a time limit: then only another thread can wake it.  That is what an
idle thread of a pool does, in Python or in a library of C, and what `join`,
`Event.wait` and `Queue.get` do.  A thread that sleeps for a time, polls, reads,
or runs may act, known to `threading` or not; so may a process with a timer
(`signal.setitimer`, `signal.alarm`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# threads that never begin a communication, whatever they wait for
OWN_THREADS = ("smpi-direct-accept", "smpi-sender", "smpi-worker", "smpi-signals")
FUTEX = {"x86_64": 202, "aarch64": 98}  # number of the system call; source: asm/unistd.h
FUTEX_COMMANDS = 0x7F  # of its second argument; source: futex(2)
FUTEX_PRIVATE = 0x80
FUTEX_WAITS = (0, 9)  # FUTEX_WAIT, FUTEX_WAIT_BITSET
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SHOWN = ("dest", "source", "root", "tag", "sendtag", "recvtag", "local_leader", "remote_leader")


def _path(folder: Path, rank: int) -> Path:
    return folder / f"waits-{rank}.json"


class WaitReporter:
    """Tells of one rank's long waits.

    folder: of the job; limit_s: after how many seconds it counts as a deadlock.
    Not thread-safe: the runtime calls it under its lock.
    """

    def __init__(self, folder: Path, rank: int, limit_s: float) -> None:
        self.interval_s = (
            limit_s / 3
        )  # how long a wait lasts before it is told, and then between tellings
        self._path = _path(folder, rank)
        self._waits: dict[int, str] = {}  # the kernel's number of a thread -> where it stands
        self._frames = -1
        self._idle_since = 0.0

    def report(self, frames: int, awaited: Callable[[], Sequence[str]]) -> None:
        """The calling thread still waits.

        frames: how many the rank has sent and received; awaited: what it waits for, asked only if it is told.
        """
        now = time.monotonic()
        if frames != self._frames or not self._waits:
            self._frames, self._idle_since = frames, now
        self._waits[threading.get_native_id()] = _where(sys._getframe())
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
        with contextlib.suppress(OSError):  # the job's folder is going
            draft.write_text(json.dumps(record))
            draft.rename(self._path)

    def over(self) -> None:
        """The calling thread waits no longer."""
        self._waits.pop(threading.get_native_id(), None)
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def _may_act(waiting: set[int]) -> bool:
    """Whether anything in this process but the threads `waiting`, which wait in MPI, may communicate by itself."""
    if any(signal.getitimer(timer)[0] for timer in TIMERS):
        return True
    ignored = {
        thread.native_id for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)
    }
    threads = {int(name) for name in os.listdir("/proc/self/task")}
    return not all(_stuck(thread) for thread in threads - waiting - ignored)


def _stuck(thread: int) -> bool:
    """Whether a thread sleeps until another one of this process wakes it."""
    try:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            number, *arguments = file.read().split()
    except FileNotFoundError:  # it has ended
        return True
    except OSError:  # the kernel does not say
        return False
    if number != str(FUTEX.get(os.uname().machine)) or len(arguments) < 4:
        return False  # "running", or another call
    operation, timeout = int(arguments[1], 16), int(arguments[3], 16)
    waits = operation & FUTEX_COMMANDS in FUTEX_WAITS
    return waits and bool(operation & FUTEX_PRIVATE) and not timeout


def _where(frame: FrameType | None) -> str:
    """The MPI call that the program made, its ranks and tags, and the program's line."""
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
    """What a rank tells of its long waits, or None while it does not wait long; a damaged record says nothing."""
    try:
        found = json.loads(_path(folder, rank).read_text())
        good = all(isinstance(found[name], int | float) for name in ("at", "since")) and all(
            isinstance(text, str) for name in ("waits", "awaited") for text in found[name]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if good else None


def verdict(folder: Path, ranks: Sequence[int], limit_s: float) -> list[str] | None:
    """A line for each of the `ranks` that still run, if they wait for each other forever; else None."""
    return judge({rank: read(folder, rank) for rank in ranks}, limit_s)


def judge(told: Mapping[int, dict[str, Any] | None], limit_s: float) -> list[str] | None:
    """The verdict on what each of the ranks that still run has told last, by clocks that agree."""
    records = [record for record in told.values() if record is not None]
    if (
        not records
        or len(records) < len(told)
        or min(record["at"] for record in records)
        < max(record["since"] for record in records) + limit_s
    ):
        return None
    lines = []
    for rank, record in zip(told, records, strict=True):
        waits, awaited = "; ".join(record["waits"]), "; ".join(record["awaited"])
        lines.append(f"rank {rank} waits in {waits}" + (f", for {awaited}" if awaited else ""))
    return lines
