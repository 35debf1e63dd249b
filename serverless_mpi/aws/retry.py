"""When a request is tried again: three tables, and nothing else decides it.

What happened decides whether the service may have done the request (`AGAIN`); whether doing it twice is harmless is
a property of the action (`REPEATABLE`).  A request that the service may have done and that is not in that table is
never sent again.  A service that answers that it is busy or has failed gets a time to recover (`BUSY`), since it is
there and most of its troubles pass; a service that cannot be reached gets a number of attempts, since it may be gone.
Sources: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter); "Retry behavior", AWS SDKs and Tools
Reference Guide (codes).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from serverless_mpi.aws.connection import Answer
from serverless_mpi.aws.refusals import code_of

ATTEMPTS = 8  # that end without an answer
BUDGET_S = 90.0  # from the first answer of a busy service to the last attempt
PAUSE_S = 0.05  # the first pause is up to this, each later one up to twice the one before
MAX_PAUSE_S = 5.0


class Event(enum.Enum):
    """How an attempt ended."""

    ANSWERED = "answered"  # success, or a refusal that would come again
    NOT_SENT = "not sent"  # no connection
    LOST = "lost"  # the connection broke when the request may have been seen
    THROTTLED = "throttled"  # the service says that it did nothing, and to come later
    FAILED = "failed"  # the service does not know what it did
    EXPIRED = "expired"  # the keys are too old: with new ones, once
    SKEWED = "skewed"  # the clocks differ: with the service's time, once


class Again(enum.Enum):
    """Whether the request is sent again."""

    NO = "no"
    YES = "yes"
    IF_REPEATABLE = "if it may be done twice"
    ONCE = "once, after what was wrong has been put right"


AGAIN: dict[Event, Again] = {
    Event.ANSWERED: Again.NO,
    Event.NOT_SENT: Again.YES,
    Event.LOST: Again.IF_REPEATABLE,
    Event.THROTTLED: Again.YES,
    Event.FAILED: Again.IF_REPEATABLE,
    Event.EXPIRED: Again.ONCE,
    Event.SKEWED: Again.ONCE,
}

BUSY = frozenset(
    (Event.THROTTLED, Event.FAILED)
)  # the service is there: time decides, not attempts

# service.action -> why it may be done twice
REPEATABLE: dict[str, str] = {
    "sqs.SendMessageBatch": "the receiver drops a frame that comes twice (core/delivery.py)",
    "sqs.ReceiveMessage": "messages of an answer that was lost come again after the visibility timeout",
    "sqs.DeleteMessageBatch": "deleting what is deleted succeeds",
    "sns.Publish": "the receiver drops a frame that comes twice (core/delivery.py)",
    "sns.PublishBatch": "the receiver drops a frame that comes twice (core/delivery.py)",
    "s3.GET": "reading changes nothing",
    "s3.LIST": "reading changes nothing",
    "s3.PUT": "the same bytes under the same key, or under the same part number",
    "s3.DELETE": "deleting what is deleted succeeds",
    "s3.CreateMultipartUpload": "an upload that nobody continues holds no bytes",
    "lambda.Invoke": "a rank is what claims its number first (launch/handler.py)",
    "sts.AssumeRole": "another set of keys, both good",
    "sts.AssumeRoleWithWebIdentity": "another set of keys, both good",
}
# not in it: s3.CompleteMultipartUpload.  Once done, it fails a second time with NoSuchUpload; aws/s3.py looks for the object.

_THROTTLES = frozenset(
    (
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "Throttled",
        "ThrottledRequestException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "SlowDown",
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "KmsThrottled",
        "KMSThrottlingException",
        "TransactionInProgressException",
        "EC2ThrottledException",
        "ProvisionedThroughputExceededException",
    )
)
_TRANSIENT = frozenset(
    ("RequestTimeout", "RequestTimeoutException", "InternalError", "InternalFailure")
)
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "RequestExpired"))
_SKEWED = frozenset(("RequestTimeTooSkewed", "RequestInTheFuture"))


def event_of(answer: Answer) -> Event:
    """What an answer tells of the attempt."""
    status = answer.status
    if status < 400:
        return Event.ANSWERED
    if status in (429, 503):
        return Event.THROTTLED
    code, message = code_of(answer)
    if code in _THROTTLES:
        return Event.THROTTLED
    if status in (500, 502, 504) or code in _TRANSIENT:
        return Event.FAILED
    if code in _EXPIRED:
        return Event.EXPIRED
    # SQS and SNS say it with the code of a wrong signature
    if code in _SKEWED or "Signature expired" in message or "Signature not yet current" in message:
        return Event.SKEWED
    return Event.ANSWERED


def again(event: Event, action: str, before: set[Event]) -> bool:
    """Whether to send `action` ("service.action") again after `event`; before: what happened to it already."""
    rule = AGAIN[event]
    if rule is Again.IF_REPEATABLE:
        return action in REPEATABLE
    if rule is Again.ONCE:
        return event not in before
    return rule is Again.YES


def longest_pause_s(attempt: int) -> float:
    """The pause before attempt 2, 3, ... is a random part of this; attempt: of those already made."""
    return float(min(MAX_PAUSE_S, PAUSE_S * 2 ** min(attempt - 1, 32)))


class Patience:
    """How long a busy service is asked again: random pauses that grow (full jitter), within a time.

    Parameters
    ----------
    budget_s : float
        Seconds from the first trouble in a row to the last attempt; 0: there is no second attempt.
    clock : callable
        Seconds, monotonic.
    chance : callable
        A random number between two.
    """

    def __init__(
        self, budget_s: float, clock: Callable[[], float], chance: Callable[[float, float], float]
    ) -> None:
        self.budget_s = budget_s
        self._clock = clock
        self._chance = chance
        self._began = 0.0
        self.troubles = 0  # in a row

    def pause(self) -> float | None:
        """Note one more trouble; seconds until the next attempt, or None if the time is over."""
        now = self._clock()
        if not self.troubles:
            self._began = now
        self.troubles += 1
        pause = self._chance(0.0, longest_pause_s(self.troubles))
        return None if now + pause - self._began > self.budget_s else pause

    def over(self) -> None:
        """The trouble has passed."""
        self.troubles = 0
