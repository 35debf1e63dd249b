"""When a request is sent again: three tables decide it, and nothing else.

The rule: what happened decides whether the service may have done the request (`AGAIN`);
whether doing it twice is harmless is a property of the action (`REPEATABLE`).  A request
that may have been done and is not in that table is never sent again.  A service that
answers that it is busy, or has failed, gets time to recover (`BUSY`), since most of its
troubles pass; a service that cannot be reached gets a number of attempts, since it may
be gone.

If you add an action to `sqs.py`, `sns.py` or `s3.py`, decide whether it is repeatable.

Sources: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter); "Retry
behavior", AWS SDKs and Tools Reference Guide (codes).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from serverless_mpi.aws.connection import Answer
from serverless_mpi.aws.refusals import code_of

ATTEMPTS = 8  # without an answer
BUDGET_S = 90.0  # from the first answer of a busy service to the last attempt
PAUSE_S = 0.05  # longest first pause; the longest doubles with each attempt, up to:
MAX_PAUSE_S = 5.0


class Event(enum.Enum):
    """How an attempt ended."""

    ANSWERED = "answered"  # success, or a refusal that another attempt would repeat
    NOT_SENT = "not sent"  # no connection
    LOST = "lost"  # the connection broke after the service may have seen the request
    THROTTLED = "throttled"  # the service did nothing, and asks for a later attempt
    FAILED = "failed"  # the service may or may not have done it
    EXPIRED = "expired"  # the credentials have expired: once more with new ones
    SKEWED = "skewed"  # the clocks differ: once more with the service's time


class Again(enum.Enum):
    """Rule for another attempt."""

    NO = "no"
    YES = "yes"
    IF_REPEATABLE = "if it may be done twice"
    ONCE = "once, after its cause has been removed"


AGAIN: dict[Event, Again] = {
    Event.ANSWERED: Again.NO,
    Event.NOT_SENT: Again.YES,
    Event.LOST: Again.IF_REPEATABLE,
    Event.THROTTLED: Again.YES,
    Event.FAILED: Again.IF_REPEATABLE,
    Event.EXPIRED: Again.ONCE,
    Event.SKEWED: Again.ONCE,
}

# the service can be reached: time limits the attempts, not their number
BUSY = frozenset((Event.THROTTLED, Event.FAILED))

# service.action -> why it may be done twice
REPEATABLE: dict[str, str] = {
    "sqs.SendMessageBatch": "the receiver drops a duplicate frame (core/delivery.py)",
    "sqs.ReceiveMessage": "messages of a lost answer reappear after the visibility timeout",
    "sqs.DeleteMessageBatch": "deleting what is deleted succeeds",
    "sns.Publish": "the receiver drops a duplicate frame (core/delivery.py)",
    "sns.PublishBatch": "the receiver drops a duplicate frame (core/delivery.py)",
    "s3.GET": "reading changes nothing",
    "s3.LIST": "reading changes nothing",
    "s3.PUT": "the same bytes under the same key, or under the same part number",
    "s3.DELETE": "deleting what is deleted succeeds",
    "s3.CreateMultipartUpload": "an upload without parts holds no bytes",
    "lambda.Invoke": "a rank is what claims its number first (launch/handler.py)",
    "sts.AssumeRole": "another set of keys, both good",
    "sts.AssumeRoleWithWebIdentity": "another set of keys, both good",
}
# a directory bucket has the actions of a bucket
REPEATABLE |= {
    name.replace("s3.", "s3express."): why
    for name, why in REPEATABLE.items()
    if name.startswith("s3.")
}
REPEATABLE["s3express.CreateSession"] = "another set of keys, both good"
# s3.CompleteMultipartUpload is not in it: a second one fails with NoSuchUpload, and aws/s3.py then
# looks for the object.

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
    """Return how the attempt ended that brought an answer.

    Parameters
    ----------
    answer
        An answer of any status.

    Returns
    -------
    Event
        ANSWERED for a success and for a refusal that another attempt would repeat.
    """
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
    # SQS and SNS report it with the code of a wrong signature
    if code in _SKEWED or "Signature expired" in message or "Signature not yet current" in message:
        return Event.SKEWED
    return Event.ANSWERED


def again(event: Event, action: str, before: set[Event]) -> bool:
    """Return whether to send a request again.

    Parameters
    ----------
    event
        How the last attempt ended.
    action
        "service.action".
    before
        How earlier attempts ended.
    """
    rule = AGAIN[event]
    if rule is Again.IF_REPEATABLE:
        return action in REPEATABLE
    if rule is Again.ONCE:
        return event not in before
    return rule is Again.YES


def longest_pause_s(attempt: int) -> float:
    """Return the longest pause before the next attempt, in seconds.

    Parameters
    ----------
    attempt
        Number of attempts so far, at least 1.

    Returns
    -------
    float
        PAUSE_S after the first attempt, twice as long after each further one, at most MAX_PAUSE_S.
        The pause itself is a random part of it.
    """
    return float(min(MAX_PAUSE_S, PAUSE_S * 2 ** min(attempt - 1, 32)))


class Patience:
    """Pauses between attempts at a busy service: random and growing (full jitter), within a budget.

    Parameters
    ----------
    budget_s
        Seconds from the first trouble in a row to the last attempt; 0 allows no second attempt.
    clock
        Returns monotonic seconds.
    chance
        Returns a random number between two.

    Attributes
    ----------
    troubles
        Number of troubles in a row.
    """

    def __init__(
        self, budget_s: float, clock: Callable[[], float], chance: Callable[[float, float], float]
    ) -> None:
        self.budget_s = budget_s
        self._clock = clock
        self._chance = chance
        self._began = 0.0
        self.troubles = 0

    def pause(self) -> float | None:
        """Note a trouble; return the seconds until the next attempt, None if time is over."""
        now = self._clock()
        if not self.troubles:
            self._began = now
        self.troubles += 1
        pause = self._chance(0.0, longest_pause_s(self.troubles))
        return None if now + pause - self._began > self.budget_s else pause

    def over(self) -> None:
        """Note that the trouble has passed."""
        self.troubles = 0
