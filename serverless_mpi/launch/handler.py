"""The function of platform lambda: runs one rank, or a pack of ranks, for one event.

An event becomes an `Invocation`.  The function starts its children in the tree,
runs the program of each rank in a child process, passes their output on to the
console, and reports how each rank ended (rank.py).

- A rank is run once.  Lambda may deliver an event twice and retries failed ones,
  so each invocation first claims its first rank by a conditional PUT; one that
  finds the claim returns.
- The ranks of a pack share the function: its memory, its vCPUs, its working
  directory, its address, and the queue, which this process reads for them
  (channels/shared_queue.py).  Its threads begin after the last fork.
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
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from serverless_mpi import __version__, channels, deadlock
from serverless_mpi.aws import s3express
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.functions import Functions
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sqs import MAX_ENTRIES, Sqs
from serverless_mpi.channels.shared_queue import QueueReader
from serverless_mpi.channels.sockets import listen_near
from serverless_mpi.env import ENV_ALIAS, ENV_EXPLAIN, ENV_LOCAL_RANKS, ENV_PROFILE, ENV_TRACE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import EXPRESS_BUCKETS, FRAMES_BUCKET, JobSpec
from serverless_mpi.launch import console
from serverless_mpi.launch.base import EXIT_TIMEOUT
from serverless_mpi.launch.invocation import EXECUTABLE, Invocation
from serverless_mpi.launch.rank import MESSAGE_BYTES, Rank, named, stats_file
from serverless_mpi.launch.sandbox import (
    Child,
    children,
    end_orphans,
    private_bytes,
    shared_out_bytes,
    unpack,
)
from serverless_mpi.metering import Meter
from serverless_mpi.stack import bucket

TURN_S = 0.1  # seconds between two looks at the program's memory
TOO_LONG = "ran longer than --timeout"  # in the reason for which ranks are stopped
STACKS_S = 0.5  # for programs to print their stacks
LISTEN_S = 2.0  # seconds between two looks for the job's end: one GET, 0.02 cents per rank and hour
# The first pause between two messages of output; it doubles up to the second figure while the
# program keeps printing.
SPEAK_S, SPEAK_MOST_S = 0.25, 4.0
# Console messages of one request: what the emulator's queues accept.
REQUEST_BYTES = MESSAGE_BYTES + (16 << 10)
LAST_S = 4.0  # before the platform's time limit: to stop the program and to report
REPORTED_WAITS, WAIT_CHARS = 16, 300  # of a report of waits: threads, and characters of each
MEMORY_SHARE = 0.97  # of the function's memory; above it the platform kills the whole function
EXIT_MEMORY = 137  # the code of a process that the kernel killed

# The rank that failed (None: none did), exit code, and reason; "" if all ended by themselves.
_Ending: TypeAlias = "tuple[Rank | None, int, str]"

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
    """Run ranks, or answer a ping of `smpi doctor` or `calibrate`; the platform calls this.

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
    return Function(Invocation.from_event(event), context, cold).run()


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


class Function:
    """One invocation: the ranks that it runs, and what they share."""

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
        self._ranks = [Rank(spec.with_rank(number)) for number in invocation.ranks]
        self._own_bytes = 0  # memory of the function's process that no program shares
        self._storage: dict[str, Any] = {}  # where frames lie, if the stack has S3 Express

    def run(self) -> dict[str, Any]:
        """Claim the ranks, run them, report how they ended; return facts for the platform."""
        spec = self._invocation.spec
        try:
            if not self._s3.create(self._key(f"{bucket.RANK}{spec.rank}"), self._claim()):
                return {"rank": spec.rank, "claimed": False}
            # no TemporaryDirectory: its finalizer would run at the exit of a forked program, too
            folder = Path(tempfile.mkdtemp(prefix=f"smpi-{spec.job_id}-{spec.rank}-"))
            (folder / "stats").mkdir()
            try:
                try:
                    failed, code, reason = self._begin(folder)
                except ServerlessMPIError as error:
                    failed, code, reason = self._ranks[0], 1, str(error)
                code = self._end_all(failed, code, reason, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return {"rank": spec.rank, "claimed": True, "code": code}
        finally:
            for client in self._clients:
                client.close()

    def _begin(self, folder: Path) -> _Ending:
        stopped = self._stopped()
        if stopped is not None:  # the queue may already belong to another job
            return None, 0, f"started after the job had ended: {stopped}"
        self._choose_bucket()
        self._start_children()
        facts = {"cold": self._cold, "init_s": self._init_s}
        self._send([self._ranks[0].message(console.UP, facts)])
        return self._run_programs(folder)

    def _key(self, name: str) -> str:
        return bucket.job_key(self._invocation.spec.job_id, name)

    def _claim(self) -> bytes:
        return json.dumps({"claim": secrets.token_hex(8), "since": time.time()}).encode()

    def _choose_bucket(self) -> None:
        """Decide in which bucket the frames of all ranks lie, if this function has rank 0."""
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
        for first in self._invocation.children:
            self._functions.start(
                self._invocation.function, self._invocation.for_rank(first).to_event()
            )

    # -- the programs

    def _run_programs(self, folder: Path) -> _Ending:
        """Run the programs until all have ended or one must end the others."""
        works, paths = self._unpack(folder)
        channels.load(self._invocation.spec.channel)  # once, and not in every program
        _reseed()
        others, numbers = children(), self._invocation.ranks
        with contextlib.ExitStack() as undo:
            shared: dict[str, str] = {}
            reader: QueueReader | None = None
            if self._invocation.pack > 1:
                shared = listen_near(numbers if len(numbers) > 1 else (), self._ranks[0].spec.size)
                undo.callback(_close_all, _descriptors(shared))
                reader = QueueReader(self._invocation.spec, self._meter, numbers)
                undo.callback(reader.close)
            undo.callback(end_orphans, others)
            undo.callback(self._stop_programs)
            for rank in self._ranks:
                self._start_program(rank, folder, works, paths, shared, reader)
            if reader is not None:
                reader.start()
            return self._watch(folder)

    def _unpack(self, folder: Path) -> tuple[dict[str | None, Path], list[str]]:
        """Unpack the bundles; return their working directories, and folders for `sys.path`."""
        works: dict[str | None, Path] = {}
        for number in self._invocation.ranks:
            bundle = self._invocation.task(number).bundle
            if bundle in works:
                continue
            works[bundle] = work = folder / f"program{len(works) or ''}"
            work.mkdir()
            if bundle is not None:
                unpack(self._fetch(bundle, bucket.PROGRAM_BYTES), work, bucket.PROGRAM_BYTES)
        paths = []
        if self._invocation.site is not None:
            # anew for every job: what an earlier program could write to is not imported from
            site = folder / "site"
            site.mkdir()
            unpack(self._fetch(self._invocation.site, bucket.SITE_BYTES), site, bucket.SITE_BYTES)
            paths.append(str(site))
        paths += [
            entry for entry in sys.path if entry and Path(entry).is_dir()
        ]  # for processes that the programs start
        return works, paths

    def _start_program(
        self,
        rank: Rank,
        folder: Path,
        works: Mapping[str | None, Path],
        paths: list[str],
        shared: Mapping[str, str],
        reader: QueueReader | None,
    ) -> None:
        """Start a rank's program; shared: settings of all ranks of the function."""
        task = self._invocation.task(rank.number)
        settings, keep, drop = dict(shared), [], []
        if reader is not None:
            settings["reader"] = str(reader.descriptors[rank.number])
            near = settings["fds"].split()[rank.number]
            keep = [int(fd) for fd in (settings["reader"], near) if fd != "-1"]
            drop = [fd for fd in (*reader.open_descriptors(), *_descriptors(shared))]
        rank.child = Child(
            task.kind,
            task.argv,
            works[task.bundle],
            paths,
            self._variables(rank, folder, settings),
            f"{rank.spec.job_id}.{rank.number}",
            keep,
            [fd for fd in drop if fd not in keep],
        )

    def _variables(self, rank: Rank, folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
        home = folder / f"rank-{rank.number}"
        home.mkdir()
        spec = replace(
            self._invocation.spec.with_rank(rank.number),
            stats_dir=str(folder / "stats"),
            settings={**self._invocation.spec.settings, **settings},
        )
        asked = {
            ENV_EXPLAIN: self._invocation.explain,
            ENV_TRACE: self._invocation.trace,
            ENV_PROFILE: self._invocation.profile,
        }
        return {
            "TMPDIR": str(home),
            "HOME": str(home),
            **({ENV_LOCAL_RANKS: str(len(self._ranks))} if len(self._ranks) > 1 else {}),
            **{name: "1" for name, on in asked.items() if on},
            **self._invocation.task(rank.number).variables,
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

    def _watch(self, folder: Path) -> _Ending:
        """Watch the programs until all have ended, or one has failed, or all must end."""
        listen, pause = time.monotonic() + LISTEN_S, SPEAK_S
        self._own_bytes = private_bytes()
        speak = time.monotonic() + pause
        with contextlib.closing(_Poll(self._ranks)) as poll:
            while poll.running:
                for rank in poll.turn(TURN_S):  # in the order of their ends
                    code, reason = self._ended(rank)
                    if code:
                        return rank, code, reason
                    if poll.running:  # the function reports with the last one
                        self._end(rank, 0, "", folder)
                now = time.monotonic()
                unsent = sum(rank.unsent_bytes for rank in self._ranks)
                if now >= speak or unsent >= 4 * MESSAGE_BYTES:
                    pause = min(2 * pause, SPEAK_MOST_S) if unsent else SPEAK_S
                    self._flush()
                    speak = now + pause
                self._pass_on_waits(folder / "stats")
                if now >= listen:
                    if (why := self._stopped()) is not None:
                        if TOO_LONG in why:
                            self._show_stacks(poll)
                        return None, 0, f"stopped: {why}"
                    listen = now + LISTEN_S
                    self._own_bytes = private_bytes()  # it grows as any process writes
                if poll.running and (ending := self._beyond_a_limit(now)) is not None:
                    if ending[1] == EXIT_TIMEOUT:
                        self._show_stacks(poll)
                    return ending
        return None, 0, ""

    def _show_stacks(self, poll: _Poll) -> None:
        """Let every Python program print its stacks, with its rank in front."""
        for rank in poll.running:
            if self._invocation.task(rank.number).kind != EXECUTABLE:
                title = f"the Python stacks of rank {rank.number}, most recent call first:\n"
                rank.take(console.ERR, title.encode())
                _child(rank).show_stacks()
        deadline = time.monotonic() + STACKS_S
        while poll.running and time.monotonic() < deadline:
            poll.turn(TURN_S)

    def _stop_programs(self) -> None:
        """Stop what runs: all get the signal before the first one is waited for."""
        programs = [(rank, rank.child) for rank in self._ranks if rank.child is not None]
        for _, child in programs:
            if child.code is None:
                child.terminate()
        for rank, child in programs:
            child.stop(rank.take)
            child.close()

    def _used_bytes(self) -> int:
        """Return the memory of the programs and the function's process, in bytes."""
        if len(self._ranks) == 1:
            return self._ranks[0].peak_bytes + self._own_bytes
        programs = [_child(rank) for rank in self._ranks]
        living = [child for child in programs if child.code is None]
        most = sum(child.resident_bytes() for child in living) + self._own_bytes
        if most <= MEMORY_SHARE * self._memory:  # what they share is counted in each
            return most
        return shared_out_bytes([os.getpid(), *(child.pid for child in living)]) or most

    def _beyond_a_limit(self, now: float) -> _Ending | None:
        """Return the rank, exit code and reason if memory or time is used up, else None."""
        living = [rank for rank in self._ranks if _child(rank).code is None]
        if living and self._used_bytes() > MEMORY_SHARE * self._memory:
            largest = max(living, key=lambda rank: _child(rank).resident_bytes())
            return largest, EXIT_MEMORY, self._out_of_memory(largest)
        limit_s = self._invocation.limit_s
        rank = next(rank for rank in self._ranks if not rank.ended)
        if limit_s is not None and now - self._began > limit_s:
            return rank, EXIT_TIMEOUT, f"{TOO_LONG} {limit_s:g} s"
        if now > self._limit - LAST_S:
            seconds = self._limit - self._began
            reason = f"time-out: the function reached its limit after {seconds:.0f} s"
            return rank, EXIT_TIMEOUT, reason
        return None

    def _out_of_memory(self, rank: Rank) -> str:
        remedy = "deploy larger functions with smpi deploy --memory"
        rest = "the rest is the function's own"
        if len(self._ranks) > 1:
            rest = f"the rest is that of the other {len(self._ranks) - 1} ranks of the function"
            remedy += ", or use fewer ranks per function (-ppn)"
        return (
            f"out of memory: the program used {rank.peak_bytes >> 20} MB of the function's"
            f" {self._memory >> 20} MB ({rest}); {remedy}"
        )

    def _ended(self, rank: Rank) -> tuple[int, str]:
        """Return exit code and reason of a program that has exited, after its last output."""
        child = rank.child
        assert child is not None
        child.stop(rank.take)
        assert child.code is not None
        if child.code == 0:
            return 0, ""
        used = sum(one.peak_bytes for one in self._ranks) + self._own_bytes
        if child.code == EXIT_MEMORY and used > self._memory // 2:
            return (
                EXIT_MEMORY,
                "was killed, perhaps because memory ran out: it used"
                f" {child.peak_bytes >> 20} MB of {self._memory >> 20} MB",
            )
        if child.code > 128:
            return child.code, f"was killed by signal {child.code - 128}"
        return child.code, f"ended with exit code {child.code}{rank.hint()}"

    def _stopped(self) -> str | None:
        """Return why the job has ended, or None while it runs."""
        spec = self._invocation.spec
        found = self._s3.get(self._key(bucket.STOP), 0, bucket.STOP_BYTES)
        return None if found is None else bucket.stop_reason(found[0], spec.job_id, spec.key)

    # -- reporting

    def _pass_on_waits(self, stats: Path) -> None:
        """Pass on what programs report of long waits, and that a wait is over."""
        if not self._invocation.spec.deadlock_s:
            return
        messages = []
        for rank in self._ranks:
            record = None if rank.ended else deadlock.read(stats, rank.number)
            if record != rank.waits and not rank.ended:
                rank.waits = record
                facts = {} if record is None else _by_wall_clock(record)
                messages.append(rank.message(console.WAITS, facts))
        self._send(messages)

    def _flush(self) -> None:
        self._send([message for rank in self._ranks for message in rank.drain()])

    def _send(self, messages: Sequence[bytes]) -> None:
        """Send console messages in as few requests as their lengths allow."""
        while messages:
            count, nbytes = 0, 0
            while count < min(len(messages), MAX_ENTRIES):
                nbytes += len(messages[count])
                if count and nbytes > REQUEST_BYTES:
                    break
                count += 1
            self._sqs.send(self._invocation.console, messages[:count])
            messages = messages[count:]

    def _end_all(self, failed: Rank | None, code: int, reason: str, folder: Path) -> int:
        """Report the ranks that have not ended: one with its code, the others as stopped."""
        left = [rank for rank in self._ranks if not rank.ended]
        if code:
            assert failed is not None
            stop_all(self._s3, self._invocation.spec, f"rank {failed.number} {reason}")
            left = [failed, *(rank for rank in left if rank is not failed)]
        for number, rank in enumerate(left):
            last = number == len(left) - 1
            if rank is failed or not code:
                self._end(rank, code, reason, folder, last)
            else:
                assert failed is not None
                self._end(rank, 0, f"stopped: rank {failed.number} {reason}", folder, last)
        return code

    def _end(self, rank: Rank, code: int, reason: str, folder: Path, last: bool = False) -> None:
        """Report a rank's end; with the last one, what the function took."""
        rank.ended = True
        stats = folder / "stats"
        for kind, name in (("trace", bucket.trace), ("profile", bucket.profile)):
            left = stats_file(stats, kind, rank.number)
            if left.exists():
                self._s3.put(self._key(name(rank.number)), (memoryview(left.read_bytes()),))
        seconds = time.monotonic() - self._began + self._init_s
        facts: dict[str, Any] = {
            "code": code,
            "reason": reason,
            "cold": self._cold,
            "init_s": self._init_s,
            "restored": self._restored,
            "seconds": seconds,
            # one rank of a function carries what is billed for the function
            "billed_s": seconds if last else 0.0,
            "memory_mb": self._memory >> 20,
            "peak_mb": rank.peak_bytes >> 20,
            "mpi": _counters(stats_file(stats, "rank", rank.number)),
            "platform": {},
        }
        if self._storage:
            facts["storage"] = self._storage
        if last:
            facts["platform"] = self._meter.snapshot()
        self._s3.put(
            self._key(f"{bucket.RANK}{rank.number}"), (memoryview(json.dumps(facts).encode()),)
        )
        self._send([*rank.drain(), rank.message(console.END, facts)])


class _Poll:
    """Waits for output and ends of programs; ends are seen in their order (pidfd).

    Attributes
    ----------
    running
        Ranks whose end `turn` has not returned.
    """

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.running = list(ranks)
        self._poll = select.epoll()
        self._pidfds: dict[int, Rank] = {}
        for rank in ranks:
            self._poll.register(_child(rank).fileno(), select.EPOLLIN)
            with contextlib.suppress(OSError):  # a kernel before 5.3: ends are seen by turns
                self._pidfds[os.pidfd_open(_child(rank).pid)] = rank
        for fd in self._pidfds:
            self._poll.register(fd, select.EPOLLIN)

    def turn(self, wait_s: float) -> list[Rank]:
        """Take output for a while; return the ranks whose programs have ended, in that order."""
        ended = []
        for fd, _ in self._poll.poll(wait_s):
            if fd in self._pidfds:
                ended.append(self._pidfds.pop(fd))
                os.close(fd)
        for rank in self.running:
            _child(rank).turn(0.0, rank.take)
            if _child(rank).code is not None and rank not in ended:
                ended.append(rank)
        self.running = [rank for rank in self.running if rank not in ended]
        return ended

    def close(self) -> None:
        self._poll.close()
        for fd in self._pidfds:
            os.close(fd)


def _child(rank: Rank) -> Child:
    assert rank.child is not None
    return rank.child


def _descriptors(settings: Mapping[str, str]) -> list[int]:
    """Return the listening sockets among the settings of a function."""
    return [int(fd) for fd in settings.get("fds", "").split() if fd != "-1"]


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


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
    spec, ranks = invocation.spec, invocation.ranks
    code, reason = _why(event)
    meter = Meter()
    credentials = Credentials(spec.endpoint)
    with (
        _closing(Client("s3", spec.region, spec.endpoint, credentials, meter)) as to_s3,
        _closing(Client("sqs", spec.region, spec.endpoint, credentials, meter)) as to_sqs,
    ):
        if len(ranks) > 1:
            reason += f"; {named(ranks)} ran in it"
        stop_all(S3(to_s3, spec.settings["bucket"]), spec, f"rank {spec.rank} {reason}")
        facts = {"code": code, "reason": reason}
        messages = [
            console.encode(
                console.ConsoleMessage(rank, -1, console.END, facts=facts), spec.job_id, spec.key
            )
            for rank in ranks
        ]
        for first in range(0, len(messages), MAX_ENTRIES):
            Sqs(to_sqs).send(invocation.console, messages[first : first + MAX_ENTRIES])


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


def _seconds_alive() -> float:
    """Return the seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
