"""Platform lambda: ranks run in invocations of a deployed function, one in each or a pack (-ppn).

The launcher uploads the program to the stack's bucket, leases a queue for each
function, invokes the first one, and reads the console, a queue.  Functions start
the other functions, as a tree.

- The console is how the launcher learns of everything: a rank is up, printed,
  waits, ended.  A rank that cannot report is reported by the platform
  (`handler.report`).
- The launcher stops ranks by an object in the bucket, which each rank looks for.
- The lease of queues ends with the job.  A rank that may still run keeps its
  queue until its time limit, so that the next job does not get its messages.
- What is made is registered with `undo` before it is made, so it is removed on
  every way out.

How a rank runs is in handler.py; what a deployed stack is, in deploy/.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serverless_mpi import __version__, channels, metering, plugins, trace
from serverless_mpi.aws.figures import setting
from serverless_mpi.aws.functions import MAX_EVENT_BYTES
from serverless_mpi.aws.limits import LAMBDA_MOST_MB, LAMBDA_VCPU_MB, Figures
from serverless_mpi.aws.sqs import FRAME, MAX_ENTRIES
from serverless_mpi.channels import echo
from serverless_mpi.deadlock import deadlock_in
from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.job import EXPRESS_BUCKETS, JobSpec, frames_prefix
from serverless_mpi.launch import console, profiling, tree
from serverless_mpi.launch.base import EXIT_DEADLOCK, EXIT_TIMEOUT, Launcher, Plan, option_of
from serverless_mpi.launch.bundle import Bundle, pack
from serverless_mpi.launch.emulator import check_endpoint
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.launch.output import LineWriter, output_writer, printable_lines, say
from serverless_mpi.launch.signals import Interrupted, Signals
from serverless_mpi.stack import bucket, pool, stored_figures
from serverless_mpi.stack.layout import TIME_LIMIT_S
from serverless_mpi.stack.stack import Stack, empty, explained, own_region

LISTEN_S = 2  # seconds of one receive; a signal is handled after it
# No rank has come up for this long, and some are missing.  Lambda gives an event up after 60 s.
APPEAR_S = 75.0
EMULATOR_APPEAR_S = 180.0  # all its functions start at once on the cores of this machine
# Least limit of a deadlock on AWS: a message whose receive was lost comes again after 30 s (the
# queues' visibility timeout), and the long poll that finds it takes up to 20 s.
LEAST_DEADLOCK_S = 90.0
# A rank's report arrives within this time: a turn of the rank, SQS, two receives of the launcher.
SETTLE_S = 6.0
# Lambda gives an event up after 60 s without a free function.  A rank that starts later than this
# finds that the job has ended.
LATE_S = 75.0
DRAIN_S = 20.0  # for other ranks to find that the job has ended (2 s), stop (3 s) and report


class LambdaLauncher(Launcher):
    """Runs ranks as invocations of the functions of a deployed stack."""

    honors = frozenset(
        {
            "endpoint",
            "region",
            "alias",
            "tag_output",
            "outfile",
            "errfile",
            "timeout_s",
            "deadlock_s",
            "stats",
            "prices",
            "algorithms",
            "explain",
            "figures",
            "trace",
            "profile",
            "stack",
            "memory_mb",
            "branching",
            "budget_usd",
            "requirements",
            "ppn",
            "echo",
        }
    )
    region = ""  # that of AWS's own settings

    def run(self, plan: Plan) -> int:
        _check(plan)
        if plan.endpoint is not None:
            check_endpoint(plan.endpoint)
        plan = replace(plan, region=own_region(plan.region, plan.endpoint))
        prices = metering.Prices.load(plan.prices)
        profiling.check(plan)
        bundles = [pack(program, plan.requirements is not None) for program in plan.programs]
        stack = Stack.find(plan.stack, plan.endpoint, plan.region)
        memory, function = stack.function(plan.memory_mb)
        if stack.version != __version__:
            raise UsageError(
                f"stack {stack.name} runs serverless_mpi {stack.version}, this machine"
                f" {__version__}: update the stack with `smpi deploy`"
            )
        figures = stored_figures.of_job(plan.figures, stack, say)
        _check_pack(plan, memory)
        functions = -(-plan.size // _pack(plan))
        _check_quota(stack, functions)
        limit_s = min(plan.timeout_s or TIME_LIMIT_S, TIME_LIMIT_S)
        _check_budget(
            plan, prices.lambda_usd(limit_s, memory / 1024, stack.arch) * functions, limit_s
        )
        with Signals() as signals, contextlib.ExitStack() as undo:
            try:
                job = Job(plan, stack, memory, function, limit_s, signals, undo, figures)
                job.start(bundles)
                # a receive that is cut off would hide its messages for a minute
                signals.raising = False
                code = job.watch()
                job.save_trace()
                job.save_profile(prices)
                job.report(prices)
                return code
            except Interrupted as stop:
                say(f"{stop}; the ranks stop within seconds")
                return 128 + stop.number
            except BrokenPipeError:
                return 128 + signal.SIGPIPE
            finally:
                signals.raising = False

    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        raise UsageError(
            "--cleanup has no effect with --platform lambda: `smpi clean` removes what jobs left in"
            " a stack, `smpi destroy` the stack"
        )


def _check(plan: Plan) -> None:
    channel = channels.load_for(plan.channel, "lambda", plan.size)
    for name in ("ppn", "echo"):
        if getattr(plan, name) is not None and name not in channel.options:
            raise UsageError(
                f"{option_of(name)} has no effect on channel {plan.channel}: use --channel routed"
            )
    if plan.timeout_s is not None and plan.timeout_s > TIME_LIMIT_S:
        raise UsageError(
            f"--timeout {plan.timeout_s:g}: a function runs for at most {TIME_LIMIT_S} s;"
            " use more ranks, or continue from a checkpoint"
        )


def _pack(plan: Plan) -> int:
    """Return the ranks of each function."""
    return min(plan.ppn or 1, plan.size)


def _check_pack(plan: Plan, memory_mb: int) -> None:
    """Refuse more ranks in a function than it has vCPUs; state that a function is not full."""
    pack, vcpus = _pack(plan), vcpus_of(memory_mb)
    if pack > vcpus:
        needed = (pack - 1) * LAMBDA_VCPU_MB.value + 1
        remedy = (
            f"choose functions of {needed} MB or more with --memory (`smpi deploy --memory` makes"
            " them)"
            if needed <= LAMBDA_MOST_MB.value
            else f"the largest function has {LAMBDA_MOST_MB.value} MB and"
            f" {vcpus_of(LAMBDA_MOST_MB.value)} vCPUs"
        )
        raise UsageError(
            f"-ppn {plan.ppn}: a function of {memory_mb} MB has {vcpus} vCPU{'s' * (vcpus > 1)},"
            f" and each rank needs one: use -ppn {vcpus}, or {remedy}"
        )
    if plan.size % pack:
        say(
            f"{plan.size} ranks by {pack} are {-(-plan.size // pack)} functions; the last one has"
            f" {plan.size % pack} of {pack} ranks and costs as much as the others"
        )


def vcpus_of(memory_mb: int) -> int:
    """Return the vCPUs of a function, the last one perhaps in part.

    Parameters
    ----------
    memory_mb
        Its memory in MB.
    """
    return -(-memory_mb // LAMBDA_VCPU_MB.value)


def _check_quota(stack: Stack, size: int) -> None:
    with explained("ask for the quota of concurrent executions", stack.endpoint, stack.region):
        limit = int(
            stack.client("lambda").get_account_settings()["AccountLimit"][
                "UnreservedConcurrentExecutions"
            ]
        )
    if size > limit:
        raise UsageError(
            f"{size} functions run at the same time, and this account is limited to {limit}"
            f" concurrent executions in {stack.region}: use fewer ranks, more ranks per function"
            " (-ppn), or request a higher limit in Service Quotas (L-B99A9384)"
        )


def _check_budget(plan: Plan, most_usd: float, limit_s: float) -> None:
    """Ask for consent, or refuse, if the ranks' time alone might cost more than the budget."""
    if plan.budget_usd is None or most_usd <= plan.budget_usd:
        return
    story = (
        f"{plan.size} ranks cost up to {most_usd:.4f} USD if they run to their limit of"
        f" {limit_s:g} s, messages not included; the budget is {plan.budget_usd:g} USD"
    )
    fits = limit_s * plan.budget_usd / most_usd
    if sys.stdin is not None and sys.stdin.isatty():
        sys.stderr.write(f"smpirun: {story}. Start it? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UsageError("not started")
    raise UsageError(f"{story}; --timeout {max(1, int(fits))} stays within it")


@dataclass
class _RankFacts:
    """What a rank has reported."""

    up: bool = False
    ended: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class Job:
    """One job on the platform, from the first upload to the bill."""

    def __init__(
        self,
        plan: Plan,
        stack: Stack,
        memory: int,
        function: str,
        limit_s: float,
        signals: Signals,
        undo: contextlib.ExitStack,
        figures: Figures | None = None,
    ) -> None:
        self._plan = plan
        self._pack = _pack(plan)
        self._stack = stack
        self._memory = memory
        self._function = function
        self._limit_s = limit_s
        self._signals = signals
        self._undo = undo
        self._figures = figures
        self._s3 = stack.client("s3")
        self._sqs = stack.client("sqs")
        self._meter = metering.Meter()
        self._ranks = [_RankFacts() for _ in range(plan.size)]
        self._writers = {
            console.OUT: output_writer(1, plan.tag_output, plan.outfile, plan.size),
            console.ERR: output_writer(2, plan.tag_output, plan.errfile, plan.size),
        }
        self._reader = console.InOrderReader()
        self._waits: dict[int, dict[str, Any]] = {}  # of ranks that have waited long
        self._deadlocked_since: float | None = None
        self._failure: tuple[int, str] | None = None
        self._lease: pool.Lease | None = None
        self._invoked = False
        self._began = time.time()
        deadlock_s = plan.deadlock_s
        if deadlock_s and plan.endpoint is None:
            deadlock_s = max(deadlock_s, LEAST_DEADLOCK_S)
        self.spec = JobSpec.new(
            plan.size,
            plan.channel,
            region=plan.region,
            endpoint=plan.endpoint,
            deadlock_s=deadlock_s,
            plugins=plugins.algorithm_modules(),
            algorithms=plan.algorithms,
        )

    # -- starting

    def start(self, bundles: list[Bundle]) -> None:
        """Upload what the bucket lacks, lease queues, and invoke rank 0, which starts the others.

        Every step is undone by `undo` in reverse, however the job ends.

        Parameters
        ----------
        bundles
            Packed programs, in the order of the plan.
        """
        tasks = tuple(
            Task(bundle.kind, bundle.argv, program.ranks, self._upload(bundle), program.variables)
            for bundle, program in zip(bundles, self._plan.programs, strict=True)
        )
        site = self._upload_requirements()
        self._undo.callback(self._remove_frames)
        self._undo.callback(self._give_back)
        self._take_lease()
        event = self._event(tasks, site)
        self._undo.callback(self._stop_if_unfinished)
        self._record_start()
        self._until = time.time() + self._limit_s + pool.MARGIN_S / 2
        self._invoke(event)

    def _take_lease(self) -> None:
        """Lease a console and the queues that the channel needs; the job's settings name them."""
        stack, plan = self._stack, self._plan
        needs_queues = "sqs" in channels.load(plan.channel).services
        queues = len(self._functions) if needs_queues else 0
        self._lease = lease = pool.take(stack, self.spec.job_id, queues, self._limit_s)
        settings = {
            **self._channel_settings(),
            "bucket": stack.bucket,
            "slots": json.dumps(lease.slots),
            "queues": json.dumps([stack.queue(slot) for slot in lease.slots]),
            "topics": json.dumps(stack.topics()),
            **setting(self._figures),
        }
        if stack.express and "s3" in channels.load(plan.channel).services:
            settings[EXPRESS_BUCKETS] = json.dumps(stack.express)
        self.spec = replace(self.spec, settings=settings)
        self._console = stack.console(lease.console)

    @property
    def _functions(self) -> range:
        """First ranks of the functions."""
        return range(0, self._plan.size, self._pack)

    def _channel_settings(self) -> dict[str, str]:
        """Return what channel routed must know of functions and their addresses."""
        plan = self._plan
        if "ppn" not in channels.load(plan.channel).options:
            return {}
        settings = {
            "nodes": json.dumps([rank // self._pack for rank in range(plan.size)]),
            "near": json.dumps([""] * plan.size),  # a function makes those of its ranks
            "host": "127.0.0.1" if plan.endpoint is not None else "0.0.0.0",
        }
        if plan.echo is not None:
            settings["echo"] = plan.echo
        elif plan.endpoint is None:  # functions of an emulator are processes of its machine
            settings |= {"echo": self._stack.echo_url, echo.SIGNED: "1"}
        return settings

    def _event(self, tasks: tuple[Task, ...], site: str | None) -> bytes:
        """Return the payload of rank 0's invocation.

        Raises
        ------
        UsageError
            It is larger than an asynchronous invocation may be.
        """
        plan = self._plan
        event = Invocation(
            self.spec,
            tasks,
            function=self._function,
            branching=self._branching,
            console=self._console,
            limit_s=plan.timeout_s,
            alias=plan.alias,
            site=site,
            explain=plan.explain,
            trace=plan.trace is not None,
            profile=plan.profile is not None,
            pack=self._pack,
        ).to_event()
        if len(event) > MAX_EVENT_BYTES:
            raise UsageError(
                f"the description of the job has {len(event):,} bytes, and an asynchronous"
                f" invocation takes {MAX_EVENT_BYTES:,}:"
                " use fewer ranks, shorter arguments or variables"
            )
        return event

    @property
    def _branching(self) -> int:
        return self._plan.branching or tree.choose(len(self._functions))

    def _record_start(self) -> None:
        """Write what `smpi jobs` lists and what `smpi clean` needs to stop the job."""
        stack, plan, now = self._stack, self._plan, time.time()
        self._put(
            "job.json",
            {
                "size": plan.size,
                "channel": plan.channel,
                "memory_mb": self._memory,
                "arch": stack.arch,
                "began": now,
                "until": now + self._limit_s,
                # without arguments, which may hold secrets: every job of the stack may read this
                "program": [Path(program.argv[0]).name for program in plan.programs],
                "version": __version__,
            },
        )
        with explained("write to the bucket", stack.endpoint, stack.region):
            self._s3.put_object(
                Bucket=stack.bucket,
                Key=bucket.stop_for_clean_key(self.spec.job_id),
                Body=bucket.stop_message(self.spec.job_id, self.spec.key, "smpi clean"),
            )

    def _invoke(self, event: bytes) -> None:
        """Start rank 0.  The job counts as started even if the answer is lost."""
        stack = self._stack
        name, _, alias = self._function.partition(":")
        qualifier = {"Qualifier": alias} if alias else {}
        with explained(f"invoke function {self._function}", stack.endpoint, stack.region):
            self._meter.count("lambda", "Invoke", nbytes=len(event), messages=1)
            self._invoked = True
            stack.client("lambda").invoke(
                FunctionName=name, InvocationType="Event", Payload=event, **qualifier
            )

    def _key(self, name: str) -> str:
        return bucket.job_key(self.spec.job_id, name)

    def _put(self, name: str, facts: dict[str, Any]) -> None:
        with explained("write to the bucket", self._stack.endpoint, self._stack.region):
            self._s3.put_object(
                Bucket=self._stack.bucket, Key=self._key(name), Body=json.dumps(facts).encode()
            )

    def _upload(self, bundle: Bundle) -> str | None:
        if not bundle.files:
            return None
        if not self._has(bundle.key, bundle.etag):
            self._put_zip(bundle.key, bundle.zipped)
        return bundle.key

    def _has(self, key: str, etag: str) -> bool:
        """Return whether the bucket has what was sent under that key, for long enough.

        etag: S3's tag of it, the MD5. If somebody else replaced the object, it is sent again; ranks
        compare the SHA-256.
        """
        with explained("look for the program", self._stack.endpoint, self._stack.region):
            found = self._s3.list_objects_v2(Bucket=self._stack.bucket, Prefix=key, MaxKeys=1)
        return any(
            one["Key"] == key
            and one["ETag"].strip('"') == etag
            # objects expire after a day: one that might expire meanwhile is sent again
            and time.time() - one["LastModified"].timestamp() < 80_000
            for one in found.get("Contents", ())
        )

    def _put_zip(self, key: str, data: bytes) -> None:
        with explained("send the program", self._stack.endpoint, self._stack.region):
            self._s3.put_object(Bucket=self._stack.bucket, Key=key, Body=data)

    def _upload_requirements(self) -> str | None:
        if self._plan.requirements is None:
            return None
        from serverless_mpi.deploy import requirements

        wanted = requirements.Requirements.read(self._plan.requirements, self._stack)
        known = wanted.known()
        if known is not None and self._has(*known):
            return known[0]
        data = wanted.fetch()
        key, _ = wanted.remember(data)
        self._put_zip(key, data)
        return key

    # -- reading the console

    def watch(self) -> int:
        """Write the ranks' output until all have ended or one has failed; then stop the others.

        Returns
        -------
        int
            Exit code of the job.

        Raises
        ------
        Interrupted
            A signal came.
        """
        quiet_since = time.monotonic()
        while not all(rank.ended for rank in self._ranks) and self._failure is None:
            messages = self._listen()
            if any(message.kind == console.UP for message in messages):
                quiet_since = time.monotonic()
            for message in messages:
                self._take(message)
            if self._signals.noted:
                raise Interrupted(self._signals.noted[0])
            if self._failure is None:
                self._look_for_a_deadlock()
            if self._failure is None:
                self._look_for_the_missing(time.monotonic() - quiet_since)
        if self._failure is not None:
            story = self._failure[1]
            self._stop(story)
            others = self.spec.size > 1 and self._failure[0] != EXIT_DEADLOCK
            first, *more = story.split("\n  ")
            say(first + ("; the other ranks are stopped" if others else ""), *more)
            self._drain()
        for writer in self._writers.values():
            for number in range(self.spec.size):
                writer.finish(number)
        return 0 if self._failure is None else self._failure[0]

    def _drain(self) -> None:
        """Read what ranks still report after the job has ended, for at most DRAIN_S."""
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and not all(rank.ended for rank in self._ranks):
            for message in self._listen():
                self._take(message)

    def _listen(self) -> list[console.ConsoleMessage]:
        with explained("receive messages of the ranks", self._stack.endpoint, self._stack.region):
            # Signals are only noted meanwhile: one that raised between the receive and the delete
            # would lose messages.
            answer = self._sqs.receive_message(
                QueueUrl=self._console,
                MaxNumberOfMessages=MAX_ENTRIES,
                WaitTimeSeconds=LISTEN_S,
                MessageAttributeNames=[FRAME],
            )
            received = answer.get("Messages", [])
            frames = [
                entry.get("MessageAttributes", {}).get(FRAME, {}).get("BinaryValue", b"")
                for entry in received
            ]
            self._meter.count(
                "sqs", "ReceiveMessage", nbytes=sum(map(len, frames)), messages=len(received)
            )
            messages: list[console.ConsoleMessage] = []
            for encoded in frames:
                message = console.decode(encoded, self.spec.job_id, self.spec.key)
                if message is not None:  # else it is of a job that had this console before
                    messages += self._reader.push(message)
            if received:
                entries = [
                    {"Id": str(n), "ReceiptHandle": entry["ReceiptHandle"]}
                    for n, entry in enumerate(received)
                ]
                self._meter.count("sqs", "DeleteMessageBatch")
                self._sqs.delete_message_batch(QueueUrl=self._console, Entries=entries)
        return messages

    def _take(self, message: console.ConsoleMessage) -> None:
        rank = self._ranks[message.rank]
        if message.kind == console.UP:  # the function's
            for other in self._ranks[message.rank : message.rank + self._pack]:
                other.up = True
            rank.facts.update(message.facts)
        elif message.kind == console.WAITS:
            if message.facts:
                self._waits[message.rank] = message.facts
            else:
                self._waits.pop(message.rank, None)
        elif message.kind == console.END:
            rank.up = True
            if not rank.ended:
                rank.ended = True
                rank.facts.update(message.facts)
                self._writers[console.OUT].finish(message.rank)
                self._writers[console.ERR].finish(message.rank)
                if message.facts["code"] and self._failure is None:
                    self._failure = (
                        message.facts["code"],
                        f"rank {message.rank} {message.facts['reason']}",
                    )
        else:
            self._writers[message.kind].feed(message.rank, message.data)

    def _look_for_a_deadlock(self) -> None:
        """Fail the job if every rank that runs waits for another.

        A rank reports a wait after a third of the limit, and when the wait is over. The verdict
        counts once it has stood long enough for that last report to arrive.
        """
        limit_s = self.spec.deadlock_s
        running = [number for number, rank in enumerate(self._ranks) if not rank.ended]
        lines = deadlock_in({number: self._waits.get(number) for number in running}, limit_s)
        if not limit_s or lines is None:
            self._deadlocked_since = None
            return
        now = time.monotonic()
        if self._deadlocked_since is None:
            self._deadlocked_since = now
        if now - self._deadlocked_since < SETTLE_S:
            return
        ended = [f"rank {n} has ended" for n, rank in enumerate(self._ranks) if rank.ended]
        story = f"deadlock: every rank has waited for {limit_s:g} s, and nothing is in flight"
        self._failure = (EXIT_DEADLOCK, "\n  ".join([story, *lines, *ended]))

    def _look_for_the_missing(self, quiet_s: float) -> None:
        """Fail the job if a rank whose parent is up does not report, or its time is over."""
        if time.time() > self._until:
            number = next(number for number, rank in enumerate(self._ranks) if not rank.ended)
            self._failure = (
                EXIT_TIMEOUT,
                f"rank {number} did not report its exit before the time limit of its function;"
                " see `smpi logs`",
            )
        if quiet_s < (APPEAR_S if self._plan.endpoint is None else EMULATOR_APPEAR_S):
            return
        for number in self._functions:
            above = tree.parent(number // self._pack, self._branching)
            parent_up = above is None or self._ranks[above * self._pack].up
            if not self._ranks[number].up and parent_up:
                self._failure = (
                    1,
                    f"rank {number} did not start: Lambda accepted its invocation {quiet_s:.0f}"
                    " s ago"
                    " and started no function; see `smpi logs` and `smpi doctor`",
                )
                return

    # -- ending

    def _stop(self, reason: str) -> None:
        """Ask all ranks to stop; replace what a rank, or another job, put there."""
        message = bucket.stop_message(self.spec.job_id, self.spec.key, reason)
        try:
            self._s3.put_object(Bucket=self._stack.bucket, Key=self._key(bucket.STOP), Body=message)
        except Exception as error:  # boto3 has no common class of what a request may raise
            say(f"the ranks could not be asked to stop, and run to their time limit: {error}")

    def _stop_if_unfinished(self) -> None:
        """On every way out: stop a job that has not ended, and read its last reports."""
        if all(rank.ended for rank in self._ranks) or self._failure is not None:
            return
        self._stop("its launcher ended")
        if self._invoked:
            with contextlib.suppress(ChannelError, UsageError, BrokenPipeError):
                self._drain()

    def _give_back(self) -> None:
        """End the lease; queues of ranks that may still run stay leased until they cannot."""
        if self._lease is None:
            return
        unsure = (
            [
                slot
                for slot, first in zip(self._lease.slots, self._functions, strict=False)
                if not all(rank.ended for rank in self._ranks[first : first + self._pack])
            ]
            if self._invoked
            else []
        )
        runs = any(rank.up and not rank.ended for rank in self._ranks)
        with contextlib.suppress(ChannelError, UsageError):  # it ends by itself
            pool.give_back(self._stack, self.spec.job_id, unsure, None if runs else LATE_S)

    def _remove_frames(self) -> None:
        """Delete the job's frames in the buckets; a lifecycle rule expires its records in a day."""
        if "s3" not in channels.load(self._plan.channel).services:
            return
        # the one that rank 0 chose; all in which they may lie if it did not report that
        names = [self._stack.bucket, *self._stack.express.values()]
        chosen = (self._ranks[0].facts.get("storage") or {}).get("bucket")
        for name in [chosen] if chosen in names else names:
            with (
                contextlib.suppress(ChannelError, UsageError),
                explained("remove the job's objects", self._stack.endpoint, self._stack.region),
            ):
                empty(self._s3, name, frames_prefix(self.spec.job_id))

    # -- the bill

    def save_trace(self) -> None:
        """Merge the traces of the ranks to one file, and remove them from the bucket."""
        if self._plan.trace is None:
            return
        with tempfile.TemporaryDirectory(prefix="smpirun-") as folder:
            self._fetch_left(folder, "trace", bucket.trace)
            trace.save(Path(folder), self._plan.trace, say)

    def save_profile(self, prices: metering.Prices) -> None:
        """Print the profile, with the price of the ranks' time.

        Parameters
        ----------
        prices
            By which the job is billed.
        """
        if self._plan.profile is None:
            return
        per_s = prices.usd_per_gb_second[self._stack.arch] * self._memory / 1024 / self._pack
        with tempfile.TemporaryDirectory(prefix="smpirun-") as folder:
            self._fetch_left(folder, "profile", bucket.profile)
            profiling.save(self._plan, "lambda", Path(folder), prices, per_s)

    def _fetch_left(self, folder: str, kind: str, name: Callable[[int], str]) -> None:
        """Fetch a file of each rank that left one, and remove them from the bucket."""
        with explained(f"fetch the {kind}", self._stack.endpoint, self._stack.region):
            for number in range(self.spec.size):
                key = self._key(name(number))
                with contextlib.suppress(
                    self._s3.exceptions.NoSuchKey
                ):  # a rank that did not finalize left none
                    found = self._s3.get_object(Bucket=self._stack.bucket, Key=key)
                    with open(f"{folder}/{kind}-{number}.json", "wb") as out:
                        out.writelines(found["Body"].iter_chunks())
                    self._s3.delete_object(Bucket=self._stack.bucket, Key=key)

    def report(self, prices: metering.Prices) -> None:
        """Write what the job took to the bucket, for `smpi cost`, and print it if asked for.

        Parameters
        ----------
        prices
            By which the job is billed.
        """
        ranks, launcher = [rank.facts for rank in self._ranks], self._meter.snapshot()
        facts = {
            "ranks": ranks,
            "launcher": launcher,
            "seconds": time.time() - self._began,
            "code": 0 if self._failure is None else self._failure[0],
            "reason": "" if self._failure is None else self._failure[1],
        }
        with contextlib.suppress(ChannelError, UsageError):
            self._put("end.json", facts)
        if self._plan.explain:
            from serverless_mpi import explain

            for line in explain.explain(
                [rank.get("mpi") or {} for rank in ranks],
                self._plan.channel,
                self._plan.region,
                prices,
                self._figures,
            ):
                sys.stderr.write(printable_lines(line) + "\n")
        if self._plan.stats == "none":
            return
        from serverless_mpi.stack import bill

        summary = bill.summary(ranks, launcher, self._memory, self._stack.arch, prices)
        if self._plan.stats == "json":
            LineWriter(1, tagged=False).feed(0, json.dumps(summary).encode() + b"\n")
        else:
            sys.stderr.write(printable_lines(bill.render(summary)) + "\n")
