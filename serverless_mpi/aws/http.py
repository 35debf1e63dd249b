"""Signed requests of one service over kept connections; every attempt is metered.

The rule: `Client.request` repeats an attempt as the tables of `retry.py` allow,
after a random part of a growing pause, and returns the answer whatever its
status once no rule applies.  What a status means is for the caller: `sqs.py`,
`sns.py`, `s3.py`.

Invariants:

- A request that may have been done is repeated only if `retry.REPEATABLE` names it.
- Each attempt is signed anew, since a pause may outlive a signature or a credential,
  and is counted by the meter, since AWS bills it.
- A connection is used by one thread at a time; after any error it is closed.
"""

from __future__ import annotations

import calendar
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from serverless_mpi.aws.config import Config
from serverless_mpi.aws.connection import IDLE_S, Answer, Come, Connection, Into, Lost, Untrusted
from serverless_mpi.aws.refusals import refused
from serverless_mpi.aws.retry import (
    ATTEMPTS,
    BUDGET_S,
    BUSY,
    Event,
    Patience,
    again,
    event_of,
    longest_pause_s,
)
from serverless_mpi.aws.sigv4 import UNSIGNED, Keys, Signer, canonical_query
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import Meter

__all__ = ["Answer", "Busy", "Client"]

GARBLED_BYTES = 120  # of a malformed answer, shown in the error
_NO_HEADERS: Mapping[str, str] = {}


class Busy(ChannelError):
    """The service throttled a request, or failed, for its whole budget; a later one may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class KeySource(Protocol):
    """What signs requests: `credentials.Credentials`, or sessions of a directory bucket."""

    def get(self) -> Keys:
        """Return the keys to sign with now."""

    def renew(self) -> None:
        """Note that the service says that the keys have expired."""


class _Attempt(NamedTuple):
    """What became of one attempt: an answer, or the reason for which there is none."""

    event: Event
    answer: Answer | None
    problem: Lost | None = None
    on_kept_connection: bool = False


class Client:
    """Requests of one service to one endpoint.

    Thread-safe: each request in progress has a connection of its own.

    Parameters
    ----------
    service
        "sqs", "sns", "s3" or "s3express".
    region
        AWS region for signatures and for AWS's own endpoint.
    endpoint
        URL; None for the one that the user's AWS configuration names, or else AWS's own.
    credentials
        Source of access keys.
    meter
        Counts every attempt.
    sleep, chance, clock
        Pause in seconds; a random number between two; monotonic seconds.  Tests replace them.
    host
        The Host header, of a bucket with a name of its own; "" for the endpoint's.
    """

    def __init__(
        self,
        service: str,
        region: str,
        endpoint: str | None,
        credentials: KeySource,
        meter: Meter,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
        host: str = "",
    ) -> None:
        self.service = service
        self.meter = meter
        config = Config()
        self.endpoint = endpoint or config.endpoint(service, region)
        url = urlsplit(self.endpoint)
        self._tls = config.tls() if url.scheme == "https" else None
        self._address = (url.hostname or "", url.port or (443 if self._tls else 80))
        self.host = host or url.netloc
        self._credentials = credentials
        self._signer = Signer(service, region)
        self.sleep = sleep
        self._chance = chance
        self._clock = clock
        self._idle: deque[Connection] = deque()
        self._closed = threading.Event()

    def patience(self, budget_s: float = BUDGET_S) -> Patience:
        """Return the retry time of one request, by the client's clock.

        Parameters
        ----------
        budget_s
            Seconds for which a busy service is asked again.
        """
        return Patience(budget_s, self._clock, self._chance)

    def request(
        self,
        action: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        body: bytes | Sequence[memoryview] = b"",
        *,
        nbytes: int = 0,
        messages: int = 0,
        into: Into = None,
        come: Come = None,
        billed_as: str | None = None,
        budget_s: float = BUDGET_S,
        answer_s: float | None = None,
    ) -> Answer:
        """Do a request and return its answer, whatever the status, once no retry is due.

        Parameters
        ----------
        action
            Name in `retry.REPEATABLE`, and on the meter unless `billed_as` is given.
        method, path, query
            HTTP method, percent-encoded path, and query, which is encoded here.
        headers
            Header names in lower case.
        body
            Bytes, which the signature covers, or byte views that are sent one after the other
            unsigned.  Borrowed until the call returns.
        nbytes, messages, billed_as
            What the meter counts for each attempt, and under which name.
        into
            Memory for the answer's body, or a function of the answer's headers that returns it.
        come
            Called with the number of bytes of the body that have arrived; from 0 again in
            another attempt.
        budget_s
            Seconds for which a busy service is asked again.
        answer_s
            Seconds without a byte of the answer after which an attempt is lost; 60 if None.

        Raises
        ------
        Busy
            The service throttled the request, or failed, for `budget_s` seconds.
        ChannelError
            There was no answer in 8 attempts, or none to a request that must not be repeated;
            or the server's certificate is not trusted.
        """
        target = f"{path}?{canonical_query(query)}" if query else path
        if isinstance(body, bytes):
            payload_hash, parts, length = sha256(body).hexdigest(), [body], len(body)
        else:
            payload_hash, parts = UNSIGNED, body  # type: ignore[assignment]
            length = sum(part.nbytes for part in body)
        before: set[Event] = set()
        patience: Patience | None = None
        lost_attempts = 0
        while True:
            signed = self._signer.headers(
                self._credentials.get(), method, self.host, path, query or {}, headers, payload_hash
            )
            signed["content-length"] = str(length)
            head = f"{method} {target} HTTP/1.1\r\n"
            for name, value in signed.items():
                head += f"{name}: {value}\r\n"
            head += "\r\n"
            if head.count("\n") != len(signed) + 2:
                raise ChannelError(
                    f"a header of {self.service}.{action} contains a line break: {sorted(signed)}"
                )
            self.meter.count(self.service, billed_as or action, nbytes=nbytes, messages=messages)
            on_request = self.meter.on_request
            begin = 0 if on_request is None else time.perf_counter_ns()
            try:
                attempt = self._attempt(head.encode("latin-1"), parts, method, into, come, answer_s)
            finally:
                if on_request is not None:
                    on_request(self.service, action, begin)
            event, answer = attempt.event, attempt.answer
            if not again(event, f"{self.service}.{action}", before):
                if answer is not None:
                    return answer
                raise ChannelError(
                    f"no answer from {self.service} at {self.endpoint} to {action}, which is not"
                    f" repeated because it may have been done: {attempt.problem}"
                )
            problem: object = attempt.problem
            if answer is not None:
                problem = refused(self.service, action, answer)
                if event is Event.EXPIRED:
                    self._credentials.renew()
                elif event is Event.SKEWED:
                    self._correct_clock(answer)
            before.add(event)
            if event in BUSY:
                if patience is None:
                    patience = self.patience(budget_s)
                pause = patience.pause()
                if pause is None:
                    raise Busy(
                        f"{self.service} at {self.endpoint} did not do {action} {path[:80]} in "
                        f"{patience.troubles} attempts within {budget_s:g} s; the last: {problem}"
                    )
                self.sleep(pause)
            elif answer is None:
                lost_attempts += 1
                if lost_attempts == ATTEMPTS:
                    raise ChannelError(
                        f"{self.service} at {self.endpoint} did not do {action} {path[:80]} in"
                        f" {ATTEMPTS} attempts; the last: {problem}",
                        retryable=True,
                    )
                # the server may close an idle connection at any time: no reason to pause
                if not attempt.on_kept_connection:
                    self.sleep(self._chance(0.0, longest_pause_s(lost_attempts)))

    def _attempt(
        self,
        head: bytes,
        parts: Sequence[bytes | memoryview],
        method: str,
        into: Into,
        come: Come,
        answer_s: float | None,
    ) -> _Attempt:
        """Send a request once, over a kept connection if there is one."""
        connection: Connection | None = None
        try:
            while connection is None:
                try:
                    connection = self._idle.pop()
                except IndexError as error:
                    # a signal handler may have raised it, deeper in
                    if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                        raise
                    connection = Connection(*self._address, self._tls)
                    break
                if time.monotonic() - connection.used_at >= IDLE_S and connection.stale():
                    connection.close()
                    connection = None
            answer = connection.exchange(head, parts, method, into, come, answer_s)
            self._keep(connection)
            return _Attempt(event_of(answer), answer)
        except Untrusted as error:
            raise ChannelError(
                f"the certificate of {self.endpoint} is not trusted: {error};"
                " set AWS_CA_BUNDLE to a file of trusted certificates"
            ) from error
        except Lost as lost:
            event = Event.LOST if lost.sent else Event.NOT_SENT
            kept = connection is not None and connection.used
            return _Attempt(event, None, lost, kept)

    def refused(self, what: str, answer: Answer) -> ChannelError:
        """Return the error for an answer whose status is not success.

        Parameters
        ----------
        what
            What was tried, after "refused to".
        answer
            The last answer.

        Returns
        -------
        ChannelError
            For the caller to raise.
        """
        return refused(self.service, what, answer)

    def garbled(self, what: str, body: bytes | memoryview) -> ChannelError:
        """Return the error for a success whose body violates the service's API.

        Parameters
        ----------
        what
            What was tried, after "answered to".
        body
            Body of the answer, or the part that is wrong; the error quotes its first 120 bytes.

        Returns
        -------
        ChannelError
            For the caller to raise.
        """
        text = bytes(body[:GARBLED_BYTES]).decode(errors="replace")
        return ChannelError(
            f"{self.service} at {self.endpoint} answered to {what} with what the AWS API does not "
            f"allow: {text!r}; is that address AWS or an emulator of it?"
        )

    def _correct_clock(self, answer: Answer) -> None:
        """Sign by the service's clock from now on."""
        try:
            theirs = time.strptime(answer.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
        except (KeyError, ValueError):  # the second attempt then fails, with the service's reason
            return
        self._signer.skew_s = calendar.timegm(theirs) - time.time()

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for the next request, unless either side ends it."""
        if connection.reusable and not self._closed.is_set():
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the kept connections."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()
