"""Signed requests of one service over kept connections; every attempt is metered.

Whether a request is tried again is decided by the tables of `retry.py`, after a random part of a growing pause.
"""

from __future__ import annotations

import calendar
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from serverless_mpi.aws.config import Config
from serverless_mpi.aws.connection import IDLE_S, Answer, Come, Connection, Into, Lost, Untrusted
from serverless_mpi.aws.credentials import Credentials
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
from serverless_mpi.aws.sigv4 import UNSIGNED, Signer, canonical_query
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import Meter

__all__ = ["Answer", "Busy", "Client"]

GARBLED_BYTES = 120  # of such an answer that an error shows
_NO_HEADERS: Mapping[str, str] = {}


class Busy(ChannelError):
    """The service throttled the request, or failed, for as long as it may; it can be asked again later."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class Client:
    """Requests of one service to one endpoint.  Safe for threads; each in use has a connection of its own.

    service: "sqs", "sns" or "s3"; endpoint: URL, None for what the configuration says, else AWS's own in `region`.
    sleep, chance, clock: pause for seconds, a random number between two, and seconds since some time.
    """

    def __init__(
        self,
        service: str,
        region: str,
        endpoint: str | None,
        credentials: Credentials,
        meter: Meter,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service = service
        self.meter = meter
        config = Config()
        self.endpoint = endpoint or config.endpoint(service, region)
        url = urlsplit(self.endpoint)
        self._tls = config.tls() if url.scheme == "https" else None
        self._address = (url.hostname or "", url.port or (443 if self._tls else 80))
        self.host = url.netloc
        self._credentials = credentials
        self._signer = Signer(service, region)
        self.sleep = sleep
        self._chance = chance
        self._clock = clock
        self._idle: deque[Connection] = deque()
        self._closed = threading.Event()

    def patience(self, budget_s: float = BUDGET_S) -> Patience:
        """A time of `budget_s` seconds for trouble with this service, by the client's clock."""
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
    ) -> Answer:
        """Do a request; the answer whatever its status, once nothing of `retry.py` is to be done about it.

        action: its name in `retry.REPEATABLE`; headers: names in lower case; body: bytes, or byte views that are sent
        one after the other; nbytes, messages, billed_as: what the meter counts for each attempt, and under which name if
        not the action's; into: memory for the answer's body, or what
        names it, given the headers; come: told how many bytes of that are filled, again from 0 after another attempt;
        budget_s: for how long a service that is busy is asked again.

        Raises
        ------
        Busy
            The service throttled the request, or failed, for `budget_s` seconds.
        ChannelError
            No answer after 8 attempts, or none to a request that must not be done twice.
        """
        target = f"{path}?{canonical_query(query)}" if query else path
        if isinstance(body, bytes):
            payload_hash, parts, length = sha256(body).hexdigest(), [body], len(body)
        else:
            payload_hash, parts, length = UNSIGNED, body, sum(part.nbytes for part in body)  # type: ignore[assignment]
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
                    f"a line break in the headers of {self.service}.{action}: {sorted(signed)}"
                )
            self.meter.count(self.service, billed_as or action, nbytes=nbytes, messages=messages)
            answer: Answer | None = None
            kept = False
            try:
                connection = self._connection()
                try:
                    answer = connection.exchange(head.encode("latin-1"), parts, method, into, come)
                except Lost:
                    kept = connection.used
                    raise
                self._keep(connection)
                event = event_of(answer)
            except Untrusted as error:
                raise ChannelError(
                    f"the certificate of {self.endpoint} is not trusted: {error}; AWS_CA_BUNDLE names a file of those that are"
                ) from error
            except Lost as lost:
                event = Event.LOST if lost.sent else Event.NOT_SENT
                problem: object = lost
            if not again(event, f"{self.service}.{action}", before):
                if answer is not None:
                    return answer
                raise ChannelError(
                    f"{self.service} at {self.endpoint} was asked to {action} and did not answer; "
                    f"it may have done it, so it is not asked again: {problem}"
                )
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
                        f"{self.service} at {self.endpoint} did not do {action} {path[:80]} in {ATTEMPTS} "
                        f"attempts; the last: {problem}",
                        retryable=True,
                    )
                if not kept:  # one that was kept may have been closed meanwhile: no sign of trouble
                    self.sleep(self._chance(0.0, longest_pause_s(lost_attempts)))

    def refused(self, what: str, answer: Answer) -> ChannelError:
        """The error for an answer that is not what was asked for."""
        return refused(self.service, what, answer)

    def garbled(self, what: str, body: bytes | memoryview) -> ChannelError:
        """The error for a success whose body is not what the service's documentation says."""
        text = bytes(body[:GARBLED_BYTES]).decode(errors="replace")
        return ChannelError(
            f"{self.service} at {self.endpoint} answered to {what} with what the AWS API does not "
            f"allow: {text!r}; is that address AWS or an emulator of it?"
        )

    def _correct_clock(self, answer: Answer) -> None:
        try:
            theirs = time.strptime(answer.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
        except (KeyError, ValueError):  # then the second attempt tells the story
            return
        self._signer.skew_s = calendar.timegm(theirs) - time.time()

    def _connection(self) -> Connection:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # a signal handler's
                break  # another thread was quicker
            if time.monotonic() - connection.used_at < IDLE_S or not connection.stale():
                return connection
            connection.close()
        return Connection(*self._address, self._tls)

    def _keep(self, connection: Connection) -> None:
        if connection.reusable and not self._closed.is_set():
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the kept connections."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()
