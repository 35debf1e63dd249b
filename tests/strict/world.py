"""What the strict layer knows and remembers: settings, clocks, chance, stacks, and counts of rules.

The layer sees requests, not the emulator's state, so what a rule needs to remember of
earlier requests is kept here.  `Settings` states how adverse the services are: the
defaults are the documented limits with no adversity; tests turn single ones up.
"""

from __future__ import annotations

import random
import re
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.strict.call import Answer, Call, Request

ACCOUNT = "000000000000"  # of the emulator
REGION = "us-east-1"


class Clock(Protocol):
    """Time of the layer."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call later."""


class FakeClock:
    """Moves only when a test moves it."""

    def __init__(self) -> None:
        self._now = 1_000_000.0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._now

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call when the clock has been advanced by as much."""
        self._later.append((self._now + seconds, call))

    def advance(self, seconds: float) -> None:
        """Move on, and do what became due, in the order of time."""
        end = self._now + seconds
        while due := sorted((one for one in self._later if one[0] <= end), key=lambda one: one[0]):
            self._later.remove(due[0])
            self._now = max(self._now, due[0][0])
            due[0][1]()
        self._now = end


class RealClock:
    """The machine's, and what a test adds to it: for jobs, whose processes have clocks of their own."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._timers: list[threading.Timer] = []

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic() + self.ahead

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in a thread."""
        timer = threading.Timer(seconds, call)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def stop(self) -> None:
        """Cancel what has not been called."""
        for timer in self._timers:
            timer.cancel()


class Bucket:
    """A token bucket: so many per second, and as many at once as a burst."""

    def __init__(self, burst: float, now: float) -> None:
        self._left, self._then = burst, now

    def take(self, now: float, per_s: float, burst: float, count: float) -> bool:
        """Take tokens if there are as many."""
        self._left = min(burst, self._left + (now - self._then) * per_s)
        self._then = now
        if self._left < count:
            return False
        self._left -= count
        return True


@dataclass
class Settings:
    """Quotas of the account, and shares of requests that adversity strikes."""

    published_per_s: float = 30_000  # us-east-1
    s3_writes_per_s: float = 3_500
    s3_reads_per_s: float = 5_500
    environments: float = 1_000  # new ones of a function at once
    environments_per_s: float = 100  # and later: 1,000 per 10 s
    filter_s: float = 900.0  # until a filter policy applies
    policy_s: float = 60.0  # until a queue's attributes apply
    new_account: bool = False
    in_flight: int = 120_000
    duplicates: float = 0.0
    reordered: bool = False
    short_polls: float = 0.0  # that see no server with messages
    reappearing: float = 0.0  # receives whose visibility timeout ends at once
    failing_entries: float = 0.0
    conflicts: float = 0.0  # conditional writes
    failing_completions: float = 0.0
    repeated_events: float = 0.0


ADVERSE = Settings(
    published_per_s=20,
    s3_writes_per_s=30,
    s3_reads_per_s=30,
    environments=2,
    environments_per_s=1,
    filter_s=3.0,
    policy_s=1.0,
    duplicates=0.15,
    reordered=True,
    short_polls=0.25,
    reappearing=0.15,
    failing_entries=0.05,
    conflicts=0.3,
    failing_completions=0.5,
    repeated_events=0.3,
)


class Refusal(Exception):
    """The service's answer to a request that breaks a rule."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


@dataclass
class Subscription:
    """A queue that a topic sends to, and when this was last changed."""

    queue: str  # ARN
    since: float


@dataclass
class StackFacts:
    """What a template makes: names that rules ask for, and the policies of its roles."""

    template: Mapping[str, Any]
    queues: list[str] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)  # name -> logical name of its role
    reports: dict[str, str] = field(default_factory=dict)  # function -> OnFailure function
    ages: dict[str, float] = field(default_factory=dict)  # function -> MaximumEventAgeInSeconds
    retries: dict[str, int] = field(default_factory=dict)  # function -> MaximumRetryAttempts
    statements: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # role -> resolved
    subscriptions: list[tuple[str, str]] = field(default_factory=list)  # (topic, queue) ARNs
    policies: dict[str, str] = field(default_factory=dict)  # queue ARN -> text


Forward = Callable[[Request], Answer]


class World:
    """State of one emulated account behind a layer.

    Attributes
    ----------
    exercised, broken
        Rule -> how often it held or acted, and how often a request broke it.
    refusals
        What was refused, and why.
    calls
        Lambda function -> names of the calls that it made.
    """

    def __init__(self, settings: Settings, clock: Clock, seed: int) -> None:
        self.settings, self.clock, self._seed = settings, clock, seed
        self.lock = threading.RLock()
        self.exercised: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.refusals: list[str] = []
        self.calls: defaultdict[str, set[str]] = defaultdict(set)
        self._chances: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}
        self.deleted_queues: dict[str, float] = {}  # name -> when
        self.filters: dict[str, list[Subscription]] = {}  # topic ARN -> subscriptions
        self.queue_policies: dict[str, tuple[str, float]] = {}  # queue ARN -> (text, since)
        self.in_flight: dict[str, dict[str, float]] = {}  # queue URL -> handle -> until
        self.handles: set[str] = set()  # of messages that were received
        self.parts: dict[str, dict[int, int]] = {}  # upload -> part -> bytes
        self.writing: set[str] = set()  # keys with a conditional write under way
        self.stacks: dict[str, StackFacts] = {}
        self.doomed: dict[str, tuple[str, str]] = {}  # stack -> (logical name, reason)
        self.forward: Forward = lambda request: Answer(599)  # to the emulator; the front sets it

    def chance(self, name: str) -> random.Random:
        """Return the randomness of the next event of that name: no other event changes it."""
        with self.lock:
            number = self._chances[name]
            self._chances[name] += 1
        return random.Random(zlib.crc32(f"{self._seed}/{name}/{number}".encode()))

    def strikes(self, name: str, share: float) -> bool:
        """Return whether an adversity of that share strikes now."""
        return share > 0 and self.chance(name).random() < share

    def admits(
        self, name: str, per_s: float, count: float = 1.0, burst: float | None = None
    ) -> bool:
        """Take `count` tokens of a quota per second; return whether there were as many.

        The burst is that of a second if None.
        """
        burst = per_s if burst is None else burst
        with self.lock:
            now = self.clock.now()
            bucket = self._buckets.get(name)
            if bucket is None:
                bucket = self._buckets[name] = Bucket(burst, now)
            return bucket.take(now, per_s, burst, count)

    def count(self, rule: str, times: int = 1) -> None:
        """Count that a rule held, or acted."""
        with self.lock:
            self.exercised[rule] += times

    def refusals_but(self, *throttles: str) -> list[str]:
        """Return the refusals of other rules than these, which any client meets."""
        return [one for one in self.refusals if one.partition(":")[0] not in throttles]

    def facts_of(self, function: str) -> StackFacts | None:
        """Return the stack that has a function of that name."""
        name = function.split(":")[-1] if function.startswith("arn:") else function.split(":")[0]
        return next((facts for facts in self.stacks.values() if name in facts.functions), None)


def authorization(service: str) -> dict[str, str]:
    """Return the header by which the emulator knows for which service a request is."""
    scope = f"smpi/20260101/{REGION}/{service}/aws4_request"
    return {
        "authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
    }


def queue_arn(url: str) -> str:
    """Return the ARN of a queue by its URL."""
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{url.rpartition('/')[2]}"


def refused(call: Call, refusal: Refusal) -> Answer:
    """Return a refusal as the service would word it."""
    code, text = refusal.code, refusal.message
    if call.service in ("sqs", "logs"):
        body = f'{{"__type":"com.amazonaws.{call.service}#{code}","message":"{_plain(text)}"}}'
        return Answer(refusal.status, body.encode(), {"content-type": "application/x-amz-json-1.0"})
    if call.service == "lambda":  # REST-JSON: the code is in a header, and only there
        body = f'{{"Type":"User","Message":"{_plain(text)}"}}'
        headers = {"content-type": "application/json", "x-amzn-errortype": f"{code}:http://x/"}
        return Answer(refusal.status, body.encode(), headers)
    error = (
        f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{_plain(text)}</Message></Error>"
    )
    if call.service != "s3":
        error = f"<ErrorResponse>{error}<RequestId>0</RequestId></ErrorResponse>"
    body = "" if call.request.method == "HEAD" else error
    return Answer(refusal.status, body.encode(), {"content-type": "text/xml"})


def _plain(text: str) -> str:
    return re.sub(r'[<>&"\\\n]', " ", text)
