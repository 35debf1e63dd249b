"""Signed HTTP requests over kept connections, with retries; every attempt is metered.

A request is tried again after throttling, a 5xx answer or a lost connection, after a random part of a
growing pause (full jitter).  Sending a frame twice is harmless: the receiver drops duplicates.
Source: "Exponential Backoff And Jitter", AWS Architecture Blog.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.sigv4 import UNSIGNED, Signer, canonical_query
from serverless_mpi.errors import ChannelError

ATTEMPTS = 8
PAUSE_S = 0.05  # the first pause is up to this, each later one up to twice the one before
MAX_PAUSE_S = 5.0
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # above the longest poll of 20 s
_RETRIED = (500, 502, 503, 504, 429)
_THROTTLED = (b"Throttl", b"SlowDown", b"RequestLimitExceeded", b"KmsThrottled", b"TooManyRequests")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; body is writable memory."""

    status: int
    body: memoryview
    headers: dict[str, str]


class Client:
    """Requests of one service to one endpoint.  Safe for threads; each in use has a connection of its own.

    service: "sqs", "sns" or "s3"; endpoint: URL, None for AWS's own in `region`.
    """

    def __init__(
        self, service: str, region: str, endpoint: str | None, credentials: Credentials,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.service = service
        url = urlsplit(endpoint or f"https://{service}.{region}.amazonaws.com")
        self.endpoint = endpoint or url.geturl()
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._address = (url.hostname or "", url.port or (443 if self._tls else 80))
        self.host = url.netloc
        self._credentials = credentials
        self._signer = Signer(service, region)
        self._sleep = sleep
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._closed = threading.Event()

    def request(
        self, method: str, path: str, query: dict[str, str] | None = None, headers: dict[str, str] | None = None,
        body: bytes | Sequence[memoryview] = b"", metered: Callable[[], None] = lambda: None,
        into: memoryview | None = None,
    ) -> Answer:  # fmt: skip
        """Do a request; the answer whatever its status, once throttling and 5xx are over.

        body: bytes, or views that are sent one after the other; into: memory for the answer's body; metered is
        called before each attempt.

        Raises
        ------
        ChannelError
            No answer after 8 attempts: the endpoint cannot be reached or stays overloaded.
        """
        query = query or {}
        whole = isinstance(body, bytes)
        length = len(body) if isinstance(body, bytes) else sum(part.nbytes for part in body)
        payload_hash = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else UNSIGNED
        target = f"{path}?{canonical_query(query)}" if query else path
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(random.uniform(0, min(MAX_PAUSE_S, PAUSE_S * 2**attempt)))
            signed = self._signer.headers(
                self._credentials.get(), method, self.host, path, query, headers or {}, payload_hash
            )
            signed["content-length"] = str(length)
            metered()
            try:
                answer = self._once(method, target, signed, body if whole else iter(body), into)  # type: ignore[arg-type]
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.status in _RETRIED or (answer.status == 400 and any(t in bytes(answer.body[:2000]) for t in _THROTTLED)):
                problem = f"HTTP {answer.status}: {bytes(answer.body[:300]).decode(errors='replace')}"
                continue
            return answer
        raise ChannelError(
            f"{self.service} at {self.endpoint} did not do {method} {path[:80]} in {ATTEMPTS} attempts; the last: {problem}",
            retryable=True,
        )

    def _once(
        self, method: str, target: str, headers: dict[str, str], body: object, into: memoryview | None
    ) -> Answer:
        try:
            connection, fresh = self._idle.pop(), False
        except IndexError:
            connection, fresh = self._connect(), True
        try:
            connection.request(method, target, body=body, headers=headers)  # type: ignore[arg-type]
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
            connection.close()
            if fresh or not isinstance(body, bytes):
                raise
            connection = self._connect()  # a kept connection may have been closed by the other side while idle
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        try:
            length = response.length
            if method == "HEAD" or length == 0:
                data = memoryview(bytearray())
                response.read()
            elif length is None:
                data = memoryview(bytearray(response.read()))
            else:
                use = into is not None and response.status < 300 and into.nbytes >= length
                data = into[:length] if use and into is not None else memoryview(bytearray(length))
                filled = 0
                while filled < length:
                    count = response.readinto(data[filled:])
                    if not count:
                        raise http.client.IncompleteRead(bytes(data[:filled]), length - filled)
                    filled += count
                response.read()  # ends the answer, so that the connection can be kept
            answer = Answer(response.status, data, {name.lower(): value for name, value in response.getheaders()})
        except BaseException:
            connection.close()
            raise
        if response.will_close or self._closed.is_set():
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=self._tls)
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Close the kept connections."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()
