"""The function: an event becomes a JobSpec, the rank starts its children, and its program runs as it would locally.

A rank is what claims its number first: the claim is a conditional PUT, so a second delivery of the same event, and a
retry, finds it and leaves.  How a rank ended is told to the launcher, and a failure to all other ranks, by an object
that whoever fails first makes and everybody looks at.  Nothing here imports boto3.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serverless_mpi import __version__, deadlock
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.functions import Functions
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.env import ENV_ALIAS, ENV_EXPLAIN, ENV_TRACE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import console, tree
from serverless_mpi.launch.base import EXIT_TIMEOUT
from serverless_mpi.launch.invocation import Invocation
from serverless_mpi.launch.sandbox import Child, unpack
from serverless_mpi.metering import Meter
from serverless_mpi.stack import bucket

TURN_S = 0.1  # how often memory is looked at
LISTEN_S = 2.0  # between two looks for the job's end: a GET each, 0.02 cents a rank and hour
SPEAK_S = 0.25  # the first pause between two words of output; it doubles to SPEAK_MOST_S while the program keeps printing
SPEAK_MOST_S = 4.0
WORD_BYTES = (
    128 << 10
)  # of output in a word; two billed chunks, and half of what the emulator's queues take
LOGGED_BYTES = (
    1 << 20
)  # of a rank's output that goes to the function's log too, which costs 0.50 USD a GB
LAST_S = 4.0  # before the platform's limit: time to stop the program, and to tell
WAITS_TOLD, WAIT_CHARS = 16, 300  # of a report of waits: threads, and characters of each
MEMORY_SHARE = 0.97  # of the function's memory: a program above it would be killed, with the function, by the platform
EXIT_MEMORY = 137  # as a process that the kernel killed

_cold = True


def preload() -> None:
    """Import what every rank needs; done once, when an environment begins (and kept in its snapshot)."""
    import numpy  # noqa: F401

    import serverless_mpi.channels.hybrid
    import serverless_mpi.channels.object
    import serverless_mpi.channels.queue
    import serverless_mpi.MPI  # noqa: F401


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """What the platform calls.  Returns facts that hold no secret; raises only where nobody could be told."""
    global _cold
    cold, _cold = _cold, False
    if isinstance(event, Mapping) and "ping" in event:
        return _about()
    return Rank(Invocation.from_event(event), context, cold).run()


def _about() -> dict[str, Any]:
    import numpy

    kernel = True
    try:
        import serverless_mpi.sparse  # noqa: F401
    except ImportError:
        kernel = False
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "numpy": numpy.__version__,
        "kernel": kernel,
    }


class Rank:
    """One rank's invocation."""

    def __init__(self, invocation: Invocation, context: Any, cold: bool) -> None:
        spec = invocation.spec
        self._invocation = invocation
        self._began = time.monotonic()
        begun_for_this = (
            cold and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") == "on-demand"
        )
        self._init_s = _seconds_alive() if begun_for_this else 0.0
        self._cold = cold
        self._limit = self._began + context.get_remaining_time_in_millis() / 1000
        self._memory = int(context.memory_limit_in_mb) << 20
        self._meter = Meter()
        credentials = Credentials(spec.endpoint)
        self._clients = [
            Client(service, spec.region, spec.endpoint, credentials, self._meter)
            for service in ("s3", "sqs", "lambda")
        ]
        self._s3 = S3(self._clients[0], spec.settings["bucket"])
        self._sqs = Sqs(self._clients[1])
        self._functions = Functions(self._clients[2])
        self._seq = 0
        self._said: list[
            tuple[str, bytearray]
        ] = []  # output that the launcher has not been told yet
        self._logged = 0
        self._last_words = b""
        self._waits: dict[str, Any] | None = None  # as the launcher was told last

    def run(self) -> dict[str, Any]:
        """From the claim to the end."""
        spec = self._invocation.spec
        try:
            if not self._s3.create(self._key(f"{bucket.RANK}{spec.rank}"), self._claim()):
                return {"rank": spec.rank, "claimed": False}
            # no TemporaryDirectory: its finalizer would run at the exit of the forked program too
            folder = Path(tempfile.mkdtemp(prefix=f"smpi-{spec.job_id}-{spec.rank}-"))
            try:
                try:
                    code, reason = self._begin(folder)
                except ServerlessMPIError as error:
                    code, reason = 1, str(error)
                self._end(code, reason, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return {"rank": spec.rank, "claimed": True, "code": code}
        finally:
            for client in self._clients:
                client.close()

    def _begin(self, folder: Path) -> tuple[int, str]:
        stopped = self._stopped()
        if (
            stopped is not None
        ):  # a rank that begins late must not take the messages of who has its queue next
            return 0, f"started after the job had ended: {stopped}"
        self._start_children()
        self._speak(console.UP, {"cold": self._cold, "init_s": self._init_s})
        return self._run_program(folder)

    def _key(self, name: str) -> str:
        return bucket.job_key(self._invocation.spec.job_id, name)

    def _claim(self) -> bytes:
        return json.dumps({"claim": secrets.token_hex(8), "since": time.time()}).encode()

    def _start_children(self) -> None:
        spec = self._invocation.spec
        for child in tree.children(spec.rank, spec.size, self._invocation.branching):
            self._functions.start(
                self._invocation.function, self._invocation.for_rank(child).to_event()
            )

    # -- the program

    def _run_program(self, folder: Path) -> tuple[int, str]:
        """Its exit code, and why if it is not 0."""
        work = folder / "program"
        work.mkdir()
        task = self._invocation.task
        if task.bundle is not None:
            unpack(self._fetch(task.bundle, bucket.PROGRAM_BYTES), work, bucket.PROGRAM_BYTES)
        paths = []
        if self._invocation.site is not None:
            # anew for every rank: what an earlier program could write to is not imported from
            site = folder / "site"
            site.mkdir()
            unpack(self._fetch(self._invocation.site, bucket.SITE_BYTES), site, bucket.SITE_BYTES)
            paths.append(str(site))
        paths += [
            entry for entry in sys.path if entry and Path(entry).is_dir()
        ]  # for processes that the program starts
        (folder / "stats").mkdir()
        child = Child(
            task.kind,
            task.argv,
            work,
            paths,
            self._variables(folder),
            f"{self._invocation.spec.job_id}.{self._invocation.spec.rank}",
        )
        own = _resident_bytes()
        try:
            ending = self._watch(child, own, folder / "stats")
        finally:
            child.stop(self._take)
            child.close()
            self._peak = child.peak_bytes
        return self._ended(child, own) if ending is None else ending

    def _variables(self, folder: Path) -> dict[str, str]:
        from dataclasses import replace

        spec = replace(self._invocation.spec, stats_dir=str(folder / "stats"))
        asked = {ENV_EXPLAIN: self._invocation.explain, ENV_TRACE: self._invocation.trace}
        return {
            "TMPDIR": str(folder),
            "HOME": str(folder),
            **{name: "1" for name, on in asked.items() if on},
            **self._invocation.task.variables,
            **spec.to_env(),
            ENV_ALIAS: "1" if self._invocation.alias else "0",
        }

    def _fetch(self, key: str, most_bytes: int) -> memoryview:
        """A zip, if it is the one that the launcher sent; most_bytes: it may have unpacked."""
        most_bytes += most_bytes // 8  # what does not compress grows a little
        found = self._s3.get(key, 0, most_bytes)
        if found is None:
            raise ServerlessMPIError(
                f"the bucket has no {key}: it was removed while the job was being started"
            )
        data, size = found
        if size > most_bytes:
            raise ServerlessMPIError(
                f"{key} in the bucket has {size:,} bytes; a function takes {most_bytes:,}"
            )
        bucket.check_zip(key, data)
        return data

    def _watch(self, child: Child, own: int, stats: Path) -> tuple[int, str] | None:
        """Exit code and reason where the program is to be ended, None once it has ended.

        own: bytes of the function itself; stats: the folder in which the program's MPI reports.
        """
        listen, pause = time.monotonic() + LISTEN_S, SPEAK_S
        speak = time.monotonic() + pause
        while child.code is None:
            child.turn(TURN_S, self._take)
            now = time.monotonic()
            if now >= speak:
                pause = min(2 * pause, SPEAK_MOST_S) if self._said else SPEAK_S
                self._flush()
                speak = now + pause
            self._tell_waits(stats)
            if now >= listen:
                if (reason := self._stopped()) is not None:
                    return 0, f"stopped: {reason}"
                listen = now + LISTEN_S
            if child.peak_bytes + own > MEMORY_SHARE * self._memory and child.code is None:
                return EXIT_MEMORY, (
                    f"out of memory: the program used {child.peak_bytes >> 20} MB of the function's {self._memory >> 20} MB"
                    " (the rest is the function's own); deploy larger functions with smpi deploy --memory"
                )
            if (
                self._invocation.limit_s is not None
                and now - self._began > self._invocation.limit_s
            ):
                return EXIT_TIMEOUT, f"ran longer than --timeout {self._invocation.limit_s:g} s"
            if now > self._limit - LAST_S:
                return (
                    EXIT_TIMEOUT,
                    f"time-out: the function reached its limit after {self._limit - self._began:.0f} s",
                )
        return None

    def _ended(self, child: Child, own: int) -> tuple[int, str]:
        """The same of a program that has ended; all that it said has been taken, which may have come after its end was seen."""
        assert child.code is not None
        if child.code == 0:
            return 0, ""
        if child.code == EXIT_MEMORY and child.peak_bytes + own > self._memory // 2:
            return (
                EXIT_MEMORY,
                f"was killed, perhaps because memory ran out: it used {child.peak_bytes >> 20} MB of {self._memory >> 20} MB",
            )
        if child.code > 128:
            return child.code, f"was killed by signal {child.code - 128}"
        return child.code, f"ended with exit code {child.code}{self._hint()}"

    def _stopped(self) -> str | None:
        """Why the job is over, or None while it is not."""
        spec = self._invocation.spec
        found = self._s3.get(self._key(bucket.STOP), 0, bucket.STOP_BYTES)
        return None if found is None else bucket.stop_reason(found[0], spec.job_id, spec.key)

    def _hint(self) -> str:
        """What would help a program that does not import."""
        last = self._last_words.decode(errors="replace").strip().rpartition("\n")[2]
        if last.startswith(("ModuleNotFoundError", "ImportError")):
            return f" ({last}; name the package in a file for --requirements, or put it into the program's folder)"
        return ""

    # -- telling

    def _take(self, stream: str, data: bytes) -> None:
        """Keep output until it is told, and put it in the function's log."""
        if not self._said or self._said[-1][0] != stream:
            self._said.append((stream, bytearray()))
        self._said[-1][1].extend(data)
        if stream == "err":
            self._last_words = (self._last_words + data)[-2000:]
        spec = self._invocation.spec
        if self._logged < LOGGED_BYTES:
            for line in data.decode(errors="replace").splitlines():
                print(f"smpi {spec.job_id} rank {spec.rank} {stream}: {line}")
            sys.stdout.flush()
            self._logged += len(data)
            if self._logged >= LOGGED_BYTES:
                print(f"smpi {spec.job_id} rank {spec.rank}: more output is not logged")
        if sum(len(part) for _, part in self._said) >= 4 * WORD_BYTES:
            self._flush()

    def _tell_waits(self, stats: Path) -> None:
        """Pass on what the program reports of a long wait, and that it waits no longer."""
        if not self._invocation.spec.deadlock_s:
            return
        record = deadlock.read(stats, self._invocation.spec.rank)
        if record != self._waits:
            self._waits = record
            self._speak(console.WAITS, {} if record is None else _by_wall_clock(record))

    def _flush(self) -> None:
        for stream, data in self._said:
            for start in range(0, len(data), WORD_BYTES):
                self._speak(stream, {}, bytes(data[start : start + WORD_BYTES]))
        self._said = []

    def _speak(self, kind: str, facts: dict[str, Any], data: bytes = b"") -> None:
        spec = self._invocation.spec
        message = console.ConsoleMessage(spec.rank, self._seq, kind, data, facts)
        self._seq += 1
        self._sqs.send(self._invocation.console, [console.encode(message, spec.job_id, spec.key)])

    def _end(self, code: int, reason: str, folder: Path) -> None:
        spec = self._invocation.spec
        if code:
            stop_all(self._s3, spec, f"rank {spec.rank} {reason}")
        self._flush()
        stats = folder / "stats" / f"rank-{spec.rank}.json"
        traced = folder / "stats" / f"trace-{spec.rank}.json"
        if traced.exists():
            self._s3.put(
                self._key(f"{bucket.TRACE}{spec.rank}"), (memoryview(traced.read_bytes()),)
            )
        facts = {
            "code": code,
            "reason": reason,
            "cold": self._cold,
            "init_s": self._init_s,
            "seconds": time.monotonic() - self._began + self._init_s,
            "memory_mb": self._memory >> 20,
            "peak_mb": getattr(self, "_peak", 0) >> 20,
            "mpi": _counters(stats),
        }
        facts["platform"] = self._meter.snapshot()
        self._s3.put(
            self._key(f"{bucket.RANK}{spec.rank}"), (memoryview(json.dumps(facts).encode()),)
        )
        self._speak(console.END, facts)


def _counters(path: Path) -> Any:
    """What the program's MPI counted; None if it left nothing that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _by_wall_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """A report of waits as the launcher compares it: ranks are on different machines, whose wall clocks agree."""
    ahead = time.time() - time.monotonic()
    return {
        "at": record["at"] + ahead,
        "since": record["since"] + ahead,
        **{
            name: [text[:WAIT_CHARS] for text in record[name][:WAITS_TOLD]]
            for name in ("waits", "awaited")
        },
    }


def stop_all(s3: S3, spec: JobSpec, reason: str) -> bool:
    """Have every rank of a job stop; whether this call did it: the first reason counts."""
    key = bucket.job_key(spec.job_id, bucket.STOP)
    message = bucket.stop_message(spec.job_id, spec.key, reason)
    if s3.create(key, message):
        return True
    there = s3.get(key, 0, bucket.STOP_BYTES)
    if there is not None and bucket.stop_reason(there[0], spec.job_id, spec.key) is not None:
        return False
    s3.put(key, (memoryview(message),))  # what is there is not of this job's ranks
    return True


def report(event: Mapping[str, Any], context: Any) -> None:
    """What the platform calls when it gave up an invocation: it tells launcher and ranks what the rank itself cannot.

    The event is the record of an asynchronous invocation, with the rank's order in it.
    Source: "Retaining records of asynchronous invocations", AWS Lambda Developer Guide.
    """
    invocation = Invocation.from_event(event.get("requestPayload", {}))
    spec = invocation.spec
    code, reason = _why(event)
    meter = Meter()
    credentials = Credentials(spec.endpoint)
    with (
        _closing(Client("s3", spec.region, spec.endpoint, credentials, meter)) as to_s3,
        _closing(Client("sqs", spec.region, spec.endpoint, credentials, meter)) as to_sqs,
    ):
        stop_all(S3(to_s3, spec.settings["bucket"]), spec, f"rank {spec.rank} {reason}")
        message = console.ConsoleMessage(
            spec.rank, -1, console.END, facts={"code": code, "reason": reason}
        )
        Sqs(to_sqs).send(invocation.console, [console.encode(message, spec.job_id, spec.key)])


def _why(event: Mapping[str, Any]) -> tuple[int, str]:
    """Exit code and reason of a failed invocation."""
    answer, context = event.get("responsePayload"), event.get("requestContext")
    if not isinstance(answer, Mapping):
        answer = {"errorMessage": "" if answer is None else str(answer)[:1000]}
    kind, text = str(answer.get("errorType", "")), str(answer.get("errorMessage", ""))
    condition = context.get("condition", "") if isinstance(context, Mapping) else ""
    if "timed out" in text or kind == "Sandbox.Timedout":
        return EXIT_TIMEOUT, f"time-out: {text}"
    if "OutOfMemory" in kind or "signal: killed" in text:
        return (
            EXIT_MEMORY,
            f"out of memory: the platform killed the function ({kind} {text}); deploy larger functions with smpi deploy --memory",
        )
    if condition == "EventAgeExceeded" or "TooManyRequests" in kind or "Rate Exceeded" in text:
        return (
            1,
            "was throttled: Lambda had no function free for it; use fewer ranks, or request a higher quota of concurrent executions (smpi doctor)",
        )
    return 1, f"failed on the platform: {kind} {text}"


@contextlib.contextmanager
def _closing(client: Client) -> Iterator[Client]:
    try:
        yield client
    finally:
        client.close()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds_alive() -> float:
    """Since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
