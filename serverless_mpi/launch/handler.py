"""The function of platform lambda: runs one rank for one event.

An event becomes an `Invocation`.  The rank starts its children in the tree,
runs its program in a child process, passes its output on to the console, and
reports how it ended.

- A rank is run once.  Lambda may deliver an event twice and retries failed ones,
  so each invocation first claims its rank by a conditional PUT; one that finds
  the claim returns.
- A job ends together.  The first rank that fails puts an object (`bucket.STOP`)
  in the bucket; every rank looks for it.  A rank that starts late and finds it
  must not run: its queue may already belong to another job.
- A rank reports before the platform can stop it: LAST_S before the time limit,
  and below the memory limit, above which the whole function would be killed.
- What the rank cannot report, `report` does: the platform calls it for failed
  invocations.

Nothing here imports boto3: every cold start would pay for it.
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

from serverless_mpi import __version__, channels, deadlock
from serverless_mpi.aws import s3express
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.functions import Functions
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.env import ENV_ALIAS, ENV_EXPLAIN, ENV_TRACE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import EXPRESS_BUCKETS, FRAMES_BUCKET, JobSpec
from serverless_mpi.launch import console, tree
from serverless_mpi.launch.base import EXIT_TIMEOUT
from serverless_mpi.launch.invocation import Invocation
from serverless_mpi.launch.sandbox import Child, unpack
from serverless_mpi.metering import Meter
from serverless_mpi.stack import bucket

TURN_S = 0.1  # seconds between two looks at the program's memory
LISTEN_S = 2.0  # seconds between two looks for the job's end: one GET, 0.02 cents per rank and hour
# The first pause between two messages of output; it doubles up to the second figure while the
# program keeps printing.
SPEAK_S, SPEAK_MOST_S = 0.25, 4.0
# Output of one message: two billed chunks, and half of what the emulator's queues accept.
MESSAGE_BYTES = 128 << 10
# Output of a rank that also goes to the function's log, which costs 0.50 USD per GB.
LOGGED_BYTES = 1 << 20
LAST_S = 4.0  # before the platform's time limit: to stop the program and to report
REPORTED_WAITS, WAIT_CHARS = 16, 300  # of a report of waits: threads, and characters of each
MEMORY_SHARE = 0.97  # of the function's memory; above it the platform kills the whole function
EXIT_MEMORY = 137  # the code of a process that the kernel killed

_cold = True
_init_s = 0.0  # of this environment, or of the one whose snapshot it was started from


def preload() -> None:
    """Import what every rank needs, once per environment (or once per snapshot of SnapStart)."""
    global _init_s
    import numpy  # noqa: F401

    import serverless_mpi.MPI  # noqa: F401

    channels.load(channels.DEFAULT)  # hybrid, which imports queue and object
    # Now, and not at the first invocation: an environment that Lambda starts ahead of need waits
    # for it, which is not billed.
    _init_s = _seconds_alive()


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Run a rank, or answer a ping of `smpi doctor` or `calibrate`; the platform calls this.

    Parameters
    ----------
    event
        What `Invocation.to_event` wrote, or `{"ping": ...}`.
    context
        Of the AWS Lambda runtime: time and memory limits.

    Returns
    -------
    dict
        Facts without secrets, which the platform may log.

    Raises
    ------
    JobError
        The event is not valid.  Other failures are reported to the launcher.
    """
    global _cold
    cold, _cold = _cold, False
    if isinstance(event, Mapping) and "ping" in event:
        return {**_about(), "cold": cold}
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
        how = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
        self._init_s = _init_s if cold and how == "on-demand" else 0.0
        self._restored = cold and how == "snap-start"
        self._cold = cold
        self._limit = self._began + context.get_remaining_time_in_millis() / 1000
        self._memory = int(context.memory_limit_in_mb) << 20
        self._meter = Meter()
        self._credentials = Credentials(spec.endpoint)
        self._clients = [
            Client(service, spec.region, spec.endpoint, self._credentials, self._meter)
            for service in ("s3", "sqs", "lambda")
        ]
        self._s3 = S3(self._clients[0], spec.settings["bucket"])
        self._sqs = Sqs(self._clients[1])
        self._functions = Functions(self._clients[2])
        self._seq = 0
        self._own_bytes = 0  # memory of the function's process that the program does not share
        # output that has not been sent to the launcher
        self._unsent: list[tuple[str, bytearray]] = []
        self._logged = 0
        self._last_words = b""
        self._waits: dict[str, Any] | None = None  # as last sent to the launcher
        self._storage: dict[str, Any] = {}  # where frames lie, if the stack has S3 Express

    def run(self) -> dict[str, Any]:
        """Claim the rank, run it, report how it ended; return facts for the platform."""
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
        if stopped is not None:  # its queue may already belong to another job
            return 0, f"started after the job had ended: {stopped}"
        self._choose_bucket()
        self._start_children()
        self._send_message(console.UP, {"cold": self._cold, "init_s": self._init_s})
        return self._run_program(folder)

    def _key(self, name: str) -> str:
        return bucket.job_key(self._invocation.spec.job_id, name)

    def _claim(self) -> bytes:
        return json.dumps({"claim": secrets.token_hex(8), "since": time.time()}).encode()

    def _choose_bucket(self) -> None:
        """Decide in which bucket the frames of all ranks lie, if this is rank 0."""
        spec = self._invocation.spec
        settings = dict(spec.settings)
        express = settings.pop(EXPRESS_BUCKETS, None)
        if express is None and FRAMES_BUCKET not in settings:
            return
        zone = s3express.own_zone()
        self._storage = {"zone": zone}
        if express is not None:
            chosen = s3express.choose(
                settings["bucket"],
                json.loads(express),
                zone,
                lambda name: s3express.try_session(
                    name, spec.region, spec.endpoint, self._credentials, self._meter
                ),
            )
            settings[FRAMES_BUCKET] = chosen.bucket
            self._storage |= {"bucket": chosen.bucket, "reason": chosen.reason}
            self._invocation = self._invocation.with_settings(settings)

    def _start_children(self) -> None:
        spec = self._invocation.spec
        for child in tree.children(spec.rank, spec.size, self._invocation.branching):
            self._functions.start(
                self._invocation.function, self._invocation.for_rank(child).to_event()
            )

    # -- the program

    def _run_program(self, folder: Path) -> tuple[int, str]:
        """Return the program's exit code, and the reason if it is not 0."""
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
        _reseed()
        child = Child(
            task.kind,
            task.argv,
            work,
            paths,
            self._variables(folder),
            f"{self._invocation.spec.job_id}.{self._invocation.spec.rank}",
        )
        try:
            ending = self._watch(child, folder / "stats")
        finally:
            child.stop(self._take)
            child.close()
            self._peak = child.peak_bytes
        return self._ended(child) if ending is None else ending

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
        """Fetch a zip and check that it is the one the launcher sent; most_bytes: unpacked."""
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

    def _watch(self, child: Child, stats: Path) -> tuple[int, str] | None:
        """Watch the program until it ends (None) or must be ended (exit code and reason).

        stats: folder in which the program's MPI reports.
        """
        listen, pause = time.monotonic() + LISTEN_S, SPEAK_S
        self._own_bytes = _private_bytes()
        speak = time.monotonic() + pause
        while child.code is None:
            child.turn(TURN_S, self._take)
            now = time.monotonic()
            if now >= speak:
                pause = min(2 * pause, SPEAK_MOST_S) if self._unsent else SPEAK_S
                self._flush()
                speak = now + pause
            self._pass_on_waits(stats)
            if now >= listen:
                if (reason := self._stopped()) is not None:
                    return 0, f"stopped: {reason}"
                listen = now + LISTEN_S
                self._own_bytes = _private_bytes()  # it grows as either process writes
            if (ending := self._beyond_a_limit(child, now)) is not None:
                return ending
        return None

    def _beyond_a_limit(self, child: Child, now: float) -> tuple[int, str] | None:
        """Return exit code and reason if the program has used up memory or time, else None."""
        used = child.peak_bytes + self._own_bytes
        if used > MEMORY_SHARE * self._memory and child.code is None:
            return EXIT_MEMORY, (
                f"out of memory: the program used {child.peak_bytes >> 20} MB of the function's"
                f" {self._memory >> 20} MB (the rest is the function's own);"
                " deploy larger functions with smpi deploy --memory"
            )
        limit_s = self._invocation.limit_s
        if limit_s is not None and now - self._began > limit_s:
            return EXIT_TIMEOUT, f"ran longer than --timeout {limit_s:g} s"
        if now > self._limit - LAST_S:
            seconds = self._limit - self._began
            return EXIT_TIMEOUT, f"time-out: the function reached its limit after {seconds:.0f} s"
        return None

    def _ended(self, child: Child) -> tuple[int, str]:
        """Return exit code and reason of a program that has exited; call it after `child.stop`."""
        assert child.code is not None
        if child.code == 0:
            return 0, ""
        used = child.peak_bytes + self._own_bytes
        if child.code == EXIT_MEMORY and used > self._memory // 2:
            return (
                EXIT_MEMORY,
                "was killed, perhaps because memory ran out: it used"
                f" {child.peak_bytes >> 20} MB of {self._memory >> 20} MB",
            )
        if child.code > 128:
            return child.code, f"was killed by signal {child.code - 128}"
        return child.code, f"ended with exit code {child.code}{self._hint()}"

    def _stopped(self) -> str | None:
        """Return why the job has ended, or None while it runs."""
        spec = self._invocation.spec
        found = self._s3.get(self._key(bucket.STOP), 0, bucket.STOP_BYTES)
        return None if found is None else bucket.stop_reason(found[0], spec.job_id, spec.key)

    def _hint(self) -> str:
        """Return a remedy if the program ended at an import."""
        last = self._last_words.decode(errors="replace").strip().rpartition("\n")[2]
        if last.startswith(("ModuleNotFoundError", "ImportError")):
            return (
                f" ({last}; name the package in a file for --requirements,"
                " or put it into the program's folder)"
            )
        return ""

    # -- reporting

    def _take(self, stream: str, data: bytes) -> None:
        """Keep output for the next message, and write it to the function's log."""
        if not self._unsent or self._unsent[-1][0] != stream:
            self._unsent.append((stream, bytearray()))
        self._unsent[-1][1].extend(data)
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
        if sum(len(part) for _, part in self._unsent) >= 4 * MESSAGE_BYTES:
            self._flush()

    def _pass_on_waits(self, stats: Path) -> None:
        """Pass on what the program reports of a long wait, and that the wait is over."""
        if not self._invocation.spec.deadlock_s:
            return
        record = deadlock.read(stats, self._invocation.spec.rank)
        if record != self._waits:
            self._waits = record
            self._send_message(console.WAITS, {} if record is None else _by_wall_clock(record))

    def _flush(self) -> None:
        for stream, data in self._unsent:
            for start in range(0, len(data), MESSAGE_BYTES):
                self._send_message(stream, {}, bytes(data[start : start + MESSAGE_BYTES]))
        self._unsent = []

    def _send_message(self, kind: str, facts: dict[str, Any], data: bytes = b"") -> None:
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
            "restored": self._restored,
            "seconds": time.monotonic() - self._began + self._init_s,
            "memory_mb": self._memory >> 20,
            "peak_mb": getattr(self, "_peak", 0) >> 20,
            "mpi": _counters(stats),
        }
        if self._storage:
            facts["storage"] = self._storage
        facts["platform"] = self._meter.snapshot()
        self._s3.put(
            self._key(f"{bucket.RANK}{spec.rank}"), (memoryview(json.dumps(facts).encode()),)
        )
        self._send_message(console.END, facts)


def _counters(path: Path) -> Any:
    """Return what the program's MPI counted; None if it left nothing that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _by_wall_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of waits by the wall clock, on which the machines of the ranks agree."""
    ahead = time.time() - time.monotonic()
    return {
        "at": record["at"] + ahead,
        "since": record["since"] + ahead,
        **{
            name: [text[:WAIT_CHARS] for text in record[name][:REPORTED_WAITS]]
            for name in ("waits", "awaited")
        },
    }


def stop_all(s3: S3, spec: JobSpec, reason: str) -> bool:
    """Ask every rank of a job to stop; return whether this call did it: the first reason counts.

    Parameters
    ----------
    s3
        Client of the stack's bucket.
    spec
        The job; its key authenticates the message.
    reason
        One line, which every rank prints.
    """
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
    """Report an invocation that failed to the launcher and the other ranks.

    The platform calls this.

    Parameters
    ----------
    event
        Record of an asynchronous invocation, with the rank's event in it.
    context
        Not used.

    Raises
    ------
    JobError
        The record has no valid event.

    References
    ----------
    "Retaining records of asynchronous invocations", AWS Lambda Developer Guide.
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
    """Return exit code and reason of a failed invocation."""
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
            f"out of memory: the platform killed the function ({kind} {text});"
            " deploy larger functions with smpi deploy --memory",
        )
    if condition == "EventAgeExceeded" or "TooManyRequests" in kind or "Rate Exceeded" in text:
        return (
            1,
            "was throttled: Lambda had no function free for it; use fewer ranks, or request a"
            " higher quota of concurrent executions (smpi doctor)",
        )
    return 1, f"failed on the platform: {kind} {text}"


@contextlib.contextmanager
def _closing(client: Client) -> Iterator[Client]:
    try:
        yield client
    finally:
        client.close()


def _reseed() -> None:
    """Give NumPy's global generator a new seed.

    All forks of an environment, and all environments that were started from one snapshot, would
    otherwise draw the same numbers. Python's `random` seeds itself anew in a fork.
    """
    generator = sys.modules.get("numpy.random")  # NumPy imports it when it is used
    if generator is not None:
        generator.seed()


def _private_bytes() -> int:
    """Return the memory of this process that no other process shares, in bytes.

    The program is a fork: what it shares with this process is counted in the program's memory.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
    except (OSError, IndexError, ValueError):  # a kernel before 4.14
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds_alive() -> float:
    """Return the seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
