"""The emulator's process: ministack behind a guard, served by uvicorn, with prompt long polls.

`emulator.py` starts this file as a script of its own; it imports nothing of this package. Its one
argument is the descriptor of the listening socket, which it inherits. Its standard input carries
the settings as one line of JSON and then stays open: when the process that started it ends, the
pipe is closed and this process exits.

`Guard` decides which requests are served, before it reads a body:

- Every user of the machine, and every web page in a browser on it, can connect to a loopback port.
  So a request must be signed (AWS Signature Version 4) with the job's own keys, which only the
  launcher and the ranks can derive.
- Requests of web pages are refused by their headers: `Origin`, `Sec-Fetch-Site`, or a `Host` that
  is not this server (DNS rebinding). Preflight requests are refused as well.
- The emulator's administrative paths (they begin with `/_`) are closed: they reset it, and list
  what others have sent.
- A connection without an accepted request may send one head of limited size in a limited time.

Under the server that ministack includes, HTTP takes most of a request's time, and ministack's long
poll checks the queue every 100 ms where SQS answers at once. `LongPollMiddleware` wakes the poll
when a message is sent, and adds the header `PROMPT_HEADER`, so that a client need not short-poll.

If you change `PROMPT_HEADER`, also change aws/sqs.py, which reads it.

References
----------
"Create a signed AWS API request", AWS IAM User Guide; "Amazon SQS short and long polling", Amazon
SQS Developer Guide; "Origin header", Fetch Standard; Fetch Metadata Request Headers, W3C.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import hashlib
import hmac
import json
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any

PROMPT_HEADER = (b"x-prompt-long-poll", b"1")  # read by aws/sqs.py
# Period in which a poll also checks the queue unasked: messages appear without a send when a
# visibility timeout or a delay ends.
POLL_S = 0.5
# A quote inside a JSON string is escaped, so this matches only the key of the outer object.
_QUEUE = re.compile(rb'"QueueUrl"\s*:\s*"([^"]*)"')
SKEW_S = 900  # greatest age of a signature in seconds, as on AWS
# Longest body of a request. SQS takes 1 MiB of messages and SNS 256 KiB, both in base64; S3 takes
# 5 GiB in one PUT; Lambda takes a package of 50 MB in base64.
BODY_BYTES = {b"s3": 5 << 30, b"lambda": 128 << 20}
OTHER_BODY_BYTES = 2 << 20
UNPROVEN_HEAD_BYTES = 64 << 10
UNPROVEN_S = 30  # seconds within which a connection must send a request that is accepted
MOST_UNPROVEN = 4096  # for one more, the oldest is closed
_AUTHORIZATION = re.compile(
    rb"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/((\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request),"
    rb" ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)
_MUST_BE_SIGNED = {b"host", b"x-amz-date", b"x-amz-content-sha256"}

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """Reason why a request is not passed on.

    Parameters
    ----------
    text
        The reason, for the body of the response.
    status
        HTTP status of the response.
    """

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


class Verifier:
    """Verifies the signatures of one access key in one region, for some services.

    Parameters
    ----------
    access, secret
        Identifier and secret of the access key.
    region
        AWS region for which requests must be signed.
    services
        Signing names of the services that may be requested, as "sqs".
    clock
        Returns seconds since the epoch.

    Notes
    -----
    The signature covers the method, path, query and signed headers, including the stated hash of
    the body. The body itself is not hashed, which took 0.2 ms for 100 KB. Only someone who can
    intercept this machine's loopback traffic, so root, could combine another body with a signed
    head; and frames have authentication tags of their own.
    """

    def __init__(
        self,
        access: str,
        secret: str,
        region: str,
        services: Iterable[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access.encode()
        self._secret = secret
        self._region = region.encode()
        self._services = frozenset(service.encode() for service in services)
        self._clock = clock
        # Credential scope -> signing key; a scope is valid for one day and one service.
        self._keys: dict[bytes, bytes] = {}
        self._stamp: tuple[bytes, int] = (b"", 0)  # last x-amz-date, and its seconds of the epoch

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> bytes:
        """Return the service that a request is for, if the key has signed it.

        Parameters
        ----------
        scope
            ASGI scope of the request.
        headers
            Its headers, names in lower case.

        Returns
        -------
        bytes
            Signing name of the service, as b"sqs".

        Raises
        ------
        Refusal
            The request has no valid signature; the text says what is wrong with it.
        """
        found = _AUTHORIZATION.fullmatch(headers.get(b"authorization", b""))
        if found is None:
            raise Refusal("the request is not signed")
        access, credential_scope, day, region, service, names, signature = found.groups()
        if access != self._access or region != self._region or service not in self._services:
            raise Refusal("the signature is for another key, region or service")
        listed = names.split(b";")
        stamp = headers.get(b"x-amz-date", b"")
        if not _MUST_BE_SIGNED.issubset(listed) or not all(name in headers for name in listed):
            raise Refusal("a required header is not signed, or a signed header is missing")
        if stamp[:8] != day or abs(self._clock() - self._second(stamp)) > SKEW_S:
            raise Refusal("the signature is too old, or its date is in the future")
        # The canonical request, as the IAM User Guide defines it.
        query = scope["query_string"]
        canonical = b"\n".join(
            [
                scope["method"].encode(),
                scope["raw_path"],
                _canonical(query) if query else b"",
                *[name + b":" + headers[name] for name in listed],
                b"",
                names,
                headers[b"x-amz-content-sha256"],
            ]
        )
        digest = hashlib.sha256(canonical).hexdigest().encode()
        text = b"\n".join((b"AWS4-HMAC-SHA256", stamp, credential_scope, digest))
        key = self._keys.get(credential_scope) or self._derived(credential_scope)
        expected = hmac.digest(key, text, "sha256").hex().encode()
        if not hmac.compare_digest(signature, expected):
            raise Refusal("the signature is wrong")
        return bytes(service)

    def _second(self, stamp: bytes) -> int:
        if stamp != self._stamp[0]:
            try:
                parsed = time.strptime(stamp.decode("latin-1"), "%Y%m%dT%H%M%SZ")
            except ValueError:
                raise Refusal("x-amz-date is not a date") from None
            self._stamp = stamp, calendar.timegm(parsed)
        return self._stamp[1]

    def _derived(self, credential_scope: bytes) -> bytes:
        """Derive and keep the signing key of a scope.

        Only scopes with a valid region, service and date come here, so few keys are kept.
        """
        key = f"AWS4{self._secret}".encode()
        for part in credential_scope.split(b"/"):
            key = hmac.digest(key, part, "sha256")
        self._keys[credential_scope] = key
        return key


def _canonical(query: bytes) -> bytes:
    return b"&".join(sorted(pair if b"=" in pair else pair + b"=" for pair in query.split(b"&")))


class UnprovenConnections:
    """Connections without an accepted request, the oldest first.

    Their number and age are bounded, so that a client that only connects cannot exhaust this
    process. Age is counted in ticks of the event loop: a process that was suspended for a minute
    does not charge that minute to its clients.

    Parameters
    ----------
    most
        Most connections that are kept open.
    """

    def __init__(self, most: int = MOST_UNPROVEN) -> None:
        self._most = most
        # Peer -> (tick at which it connected, closes the connection).
        self._open: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self._tick = 0

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, peer: Hashable, close: Callable[[], None]) -> None:
        """Register a new connection; close the oldest one if there are too many.

        Parameters
        ----------
        peer
            Address of the client.
        close
            Closes the connection.
        """
        if len(self._open) >= self._most:
            self._open.pop(next(iter(self._open)))[1]()
        self._open[peer] = self._tick, close

    def accepted(self, peer: Hashable) -> None:
        """Remove a connection that has sent an accepted request, or has ended.

        Parameters
        ----------
        peer
            Address of the client.
        """
        self._open.pop(peer, None)

    def tick(self) -> None:
        """Advance the clock by a second, and close the connections that are too old."""
        self._tick += 1
        while self._open:
            peer, (since, close) = next(iter(self._open.items()))
            if self._tick - since <= UNPROVEN_S:
                return
            del self._open[peer]
            close()

    async def watch(self) -> None:
        """Tick every second until the task is cancelled."""
        while True:
            await asyncio.sleep(1.0)
            self.tick()


class Guard:
    """ASGI middleware that passes permitted requests on and refuses the others unread.

    Parameters
    ----------
    app
        Answers the permitted requests.
    host
        The only `Host` that is served, as "127.0.0.1:4566"; without a verifier, with any port.
    verifier
        Verifies signatures. None serves every client, for an emulator without keys.
    unproven
        Is informed of connections whose request was accepted.
    """

    def __init__(
        self, app: App, host: str, verifier: Verifier | None, unproven: UnprovenConnections
    ) -> None:
        self._app = app
        self._host = host.encode()
        self._verifier = verifier
        self._unproven = unproven

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # lifespan: start and end of the server
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope, headers)
            self._unproven.accepted(scope["client"])
        except Refusal as refusal:
            await _refuse(send, refusal)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise Refusal for a request that may not be served."""
        host, own = headers.get(b"host", b""), self._host
        if self._verifier is None:  # a proxy with another port may be in front of this server
            host, own = host.partition(b":")[0], own.partition(b":")[0]
        if host != own:
            raise Refusal("the request is for another host")
        if b"origin" in headers or b"sec-fetch-site" in headers:
            raise Refusal("the request comes from a web page")
        if self._verifier is not None:
            service = self._verifier.check(scope, headers)
        else:
            claimed = _AUTHORIZATION.fullmatch(headers.get(b"authorization", b""))
            service = claimed[5] if claimed else b""
        if scope["path"].startswith("/_"):
            raise Refusal("the emulator's administrative paths are closed")
        if b"transfer-encoding" in headers:
            raise Refusal("the request does not state the length of its body", 411)
        length = headers.get(b"content-length", b"0")
        limit = BODY_BYTES.get(service, OTHER_BODY_BYTES)
        if not length.isdigit() or int(length) > limit:  # the parser reads no more than it states
            raise Refusal(f"the body of a request has at most {limit} bytes", 413)


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"__type": "AccessDenied", "message": f"{refusal} (emulator)"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the body of the request is not read
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class LongPollMiddleware:
    """ASGI middleware whose ReceiveMessage waits until a send or a publish has been answered.

    Parameters
    ----------
    app
        The emulator.
    clock
        Returns seconds, monotonic.

    Notes
    -----
    A poll registers a future before it asks the emulator, so a message that is sent in between
    wakes it. A publish wakes the polls of all queues, since only the emulator resolves filters.
    """

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}  # by queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        target = headers.get(b"x-amz-target", b"")
        if target == b"AmazonSQS.ReceiveMessage":
            await self._poll(scope, await _body(receive), receive, send)
        elif target.startswith(b"AmazonSQS.Send"):
            body = await _body(receive)
            await self._app(scope, _replay(body, receive), send)
            if queue := _QUEUE.search(body):
                self._wake([queue[1]])
        else:
            await self._app(scope, receive, send)
            if b"/sns/aws4_request" in headers.get(b"authorization", b""):
                self._wake(list(self._waiting))

    def _wake(self, queues: Iterable[bytes]) -> None:
        for queue in queues:
            for future in self._waiting.pop(queue, ()):
                if not future.done():
                    future.set_result(None)

    async def _poll(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer a ReceiveMessage: short-poll the emulator whenever a message may have come."""
        try:
            request = json.loads(body)
            queue = request["QueueUrl"].encode()
            deadline = self._clock() + int(request.get("WaitTimeSeconds", 0))
            short = json.dumps({**request, "WaitTimeSeconds": 0}).encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            # The request is not valid; the emulator answers what is wrong with it.
            await self._app(scope, _replay(body, receive), send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(short)).encode())]}
        disconnected: asyncio.Future[Message] | None = None
        try:
            while True:
                # Registered before the emulator is asked, so that no send is missed in between.
                with self._registered(queue) as sent:
                    response: list[Message] = []
                    await self._app(scope, _replay(short, receive), _into(response))
                    left = deadline - self._clock()
                    has_messages = any(b'"Messages"' in part.get("body", b"") for part in response)
                    if has_messages or left <= 0 or response[0]["status"] != 200:
                        response[0]["headers"] = [*response[0]["headers"], PROMPT_HEADER]
                        for part in response:
                            await send(part)
                        return
                    if disconnected is None:
                        disconnected = asyncio.ensure_future(receive())
                    await asyncio.wait(
                        (sent, disconnected),
                        timeout=min(left, POLL_S),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    # A message that the emulator gave out now would be lost until it times out.
                    if disconnected.done():
                        return
        finally:
            if disconnected is not None:
                disconnected.cancel()

    @contextlib.contextmanager
    def _registered(self, queue: bytes) -> Iterator[asyncio.Future[None]]:
        """Yield a future that completes when a message may have been sent to the queue."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, set()).add(sent)
        try:
            yield sent
        finally:
            waiting = self._waiting.get(queue, set())
            waiting.discard(sent)
            if not waiting:
                self._waiting.pop(queue, None)


async def _body(receive: Receive) -> bytes:
    """Read the body of a request to its end."""
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields a body that was read before, then what `receive` yields."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return unread.pop() if unread else await receive()

    return read


def _into(response: list[Message]) -> Send:
    """Return a `send` that appends to a list."""

    async def keep(message: Message) -> None:
        response.append(message)

    return keep


def _end_with(lifeline: int) -> None:
    """Exit when the process that holds the other end of the pipe has ended."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)


def protocol(unproven: UnprovenConnections) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, extended to limit unproven connections.

    Parameters
    ----------
    unproven
        Is informed of connections that open and end.
    """
    # This module is imported without uvicorn, which is an extra.
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Watched(HttpToolsProtocol):
        head_bytes = 0  # received of the first request, while its head is not complete

        def connection_made(  # type: ignore[override]  # uvicorn states the same narrower type
            self, transport: asyncio.Transport
        ) -> None:
            super().connection_made(transport)
            unproven.opened(self.client, transport.abort)

        def connection_lost(self, error: Exception | None) -> None:
            unproven.accepted(self.client)
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None:
                self.head_bytes += len(data)
                if self.head_bytes > UNPROVEN_HEAD_BYTES:
                    self.transport.abort()

    return Watched


async def _serve(settings: dict[str, Any], listener: socket.socket) -> None:
    # This module is imported without the two, which are extras.
    import uvicorn
    from ministack.app import app

    unproven = UnprovenConnections()
    verifier = None
    if settings["access"] is not None:
        verifier = Verifier(
            settings["access"], settings["secret"], settings["region"], settings["services"]
        )
    host, port = listener.getsockname()
    watch = asyncio.ensure_future(unproven.watch())
    config = uvicorn.Config(
        Guard(LongPollMiddleware(app), f"{host}:{port}", verifier, unproven),
        http=protocol(unproven),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve(sockets=[listener])
    watch.cancel()


def main(descriptor: str) -> None:
    """Serve until a signal arrives, or until the parent process ends.

    Parameters
    ----------
    descriptor
        Number of the listening socket, which this process inherits.
    """
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each rank keeps some connections
    asyncio.run(_serve(settings, socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main(*sys.argv[1:])
