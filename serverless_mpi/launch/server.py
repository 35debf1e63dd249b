"""The emulator's process: ministack behind a guard, served by uvicorn, with long polls that answer at once.

A script of its own, which `emulator.py` starts; it imports nothing of this package.  Its one argument is the number of
the listening socket that it inherits.  Its standard input carries its settings, one line of JSON, and then nothing: the
end of that pipe is the end of the process that started it, so this process ends too.

Who may ask for what is decided by `Guard`, before the body of a request is read:

- A loopback port is open to every user of the machine and to every web page in a browser on it.  So a request must
  carry the signature (AWS Signature Version 4) of the job's own keys, which only the launcher and the ranks can derive.
- A request of a web page is refused by its headers: `Origin`, `Sec-Fetch-Site`, or a `Host` that is not this server
  (DNS rebinding).  Preflight requests are refused too, so a browser learns nothing.
- The emulator's own paths (they begin with `/_`) are closed: they reset it, and list what others have sent.
- A connection on which no request has been accepted yet may send one head of a limited size, in a limited time.

Under the server that ministack brings, most of a request's time goes to HTTP; and ministack's long poll looks every
100 ms, where AWS's answers at once.  `LongPollMiddleware` does that in front of it, and says so in a header, so that a client need
not ask again and again.
Sources: "Create a signed AWS API request", AWS IAM User Guide; Amazon SQS Developer Guide, "Amazon SQS short and long
polling"; Fetch Standard, "Origin header"; Fetch Metadata Request Headers (W3C).
"""

from __future__ import annotations

import asyncio
import calendar
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
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

PROMPT_HEADER = (b"x-prompt-long-poll", b"1")  # read by aws/sqs.py
LOOK_S = 0.5  # a poll looks so often for what it was not told of: a visibility timeout that ended, a delayed message
_QUEUE = re.compile(
    rb'"QueueUrl"\s*:\s*"([^"]*)"'
)  # a quote within a JSON string is escaped, so this finds the key alone
SKEW_S = 900  # how old a signature may be, as with AWS
# The longest body of a request.  SQS takes 1 MiB of message, SNS 256 KiB, both in base64; S3 takes 5 GiB in one PUT;
# Lambda takes a package of 50 MB in base64.
BODY_BYTES = {b"s3": 5 << 30, b"lambda": 128 << 20}
OTHER_BODY_BYTES = 2 << 20
STRANGER_HEAD_BYTES = 64 << 10
STRANGER_S = 30  # seconds until a connection must have brought a request that is accepted
MOST_STRANGERS = 4096  # the oldest of them is closed for a new one
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
    """Why a request is not passed on, with the HTTP status that says so."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


class Verifier:
    """Checks the signatures of one access key in one region, for some services.

    Parameters
    ----------
    access, secret
        The access key.
    region, services
        What a signature may be for.
    clock
        Seconds of the epoch.

    Notes
    -----
    The head of a request is checked: method, path, query and signed headers, the stated hash of the body among them.  The
    body is not hashed here, which took 0.2 ms for 100 KB.  Only somebody who reads this machine's loopback traffic, so
    root, could put another body below a head that was signed; and frames carry authentication tags of their own.
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
        self._keys: dict[
            bytes, bytes
        ] = {}  # credential scope -> signing key: one a day and service
        self._stamp: tuple[bytes, int] = (b"", 0)  # the last x-amz-date, and the second it names

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> bytes:
        """Return the service that the request is for, if it is signed with the key.

        Raises
        ------
        Refusal
            It is not; the text says what is wrong with it.
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
            raise Refusal("a header is not signed, or is signed and not there")
        if stamp[:8] != day or abs(self._clock() - self._second(stamp)) > SKEW_S:
            raise Refusal("the signature is too old, or of the future")
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
        """The signing key; only of scopes that passed the checks of region, service and date, so few are kept."""
        key = f"AWS4{self._secret}".encode()
        for part in credential_scope.split(b"/"):
            key = hmac.digest(key, part, "sha256")
        self._keys[credential_scope] = key
        return key


def _canonical(query: bytes) -> bytes:
    return b"&".join(sorted(pair if b"=" in pair else pair + b"=" for pair in query.split(b"&")))


class Strangers:
    """Connections that have not brought an accepted request yet, the oldest first.

    They are counted and timed, so that somebody who only connects does not use up this process.  The time is counted in
    ticks of the event loop: a process that was stopped for a minute does not take its own absence for a client's.
    """

    def __init__(self, most: int = MOST_STRANGERS) -> None:
        self._most = most
        self._open: dict[Any, tuple[int, Callable[[], None]]] = {}  # peer -> tick, how to close it
        self._tick = 0

    def come(self, peer: Any, close: Callable[[], None]) -> None:
        """A connection was made; `close` ends it."""
        if len(self._open) >= self._most:
            self._open.pop(next(iter(self._open)))[1]()
        self._open[peer] = self._tick, close

    def accepted(self, peer: Any) -> None:
        """A request of this connection was accepted, or it has ended."""
        self._open.pop(peer, None)

    def tick(self) -> None:
        """A second has passed."""
        self._tick += 1
        while self._open:
            peer, (since, close) = next(iter(self._open.items()))
            if self._tick - since <= STRANGER_S:
                return
            del self._open[peer]
            close()

    async def watch(self) -> None:
        """Tick for ever."""
        while True:
            await asyncio.sleep(1.0)
            self.tick()


class Guard:
    """An ASGI application: `app`, for the requests that it may have; another is refused before its body is read.

    Parameters
    ----------
    app
        What answers.
    host
        The only `Host` that is served, as "127.0.0.1:4566"; without a verifier with any port.
    verifier
        None: whoever reaches the port is served (tests and benchmarks, with an emulator of their own).
    strangers
        Told of connections whose request was accepted.
    """

    def __init__(
        self, app: App, host: str, verifier: Verifier | None, strangers: Strangers
    ) -> None:
        self._app = app
        self._host = host.encode()
        self._verifier = verifier
        self._strangers = strangers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server's own start and end
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope, headers)
            self._strangers.accepted(scope["client"])
        except Refusal as refusal:
            await _refuse(send, refusal)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"")
        if (
            self._verifier is None
        ):  # then a proxy of a test, with another port, may stand before this
            host, own = host.partition(b":")[0], self._host.partition(b":")[0]
        else:
            own = self._host
        if host != own:
            raise Refusal("the request is for another host")
        if b"origin" in headers or b"sec-fetch-site" in headers:
            raise Refusal("the request is of a web page")
        if self._verifier is not None:
            service = self._verifier.check(scope, headers)
        else:
            claimed = _AUTHORIZATION.fullmatch(headers.get(b"authorization", b""))
            service = claimed[5] if claimed else b""
        if scope["path"].startswith("/_"):
            raise Refusal("the emulator's own paths are closed")
        if b"transfer-encoding" in headers:
            raise Refusal("the length of the body is not given", 411)
        length = headers.get(b"content-length", b"0")
        limit = BODY_BYTES.get(service, OTHER_BODY_BYTES)
        if not length.isdigit() or int(length) > limit:  # the parser takes no byte more than that
            raise Refusal(f"a body here has at most {limit} bytes", 413)


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"__type": "AccessDenied", "message": f"{refusal} (emulator)"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what there is of a body is not read
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class LongPollMiddleware:
    """An ASGI application: `app`, but ReceiveMessage waits until a send or a publish has been answered."""

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
            await self._app(scope, _again(body, receive), send)
            if found := _QUEUE.search(body):
                self._wake([found[1]])
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
        try:
            request = json.loads(body)
            queue = request["QueueUrl"].encode()
            deadline = self._clock() + int(request.get("WaitTimeSeconds", 0))
            short = json.dumps({**request, "WaitTimeSeconds": 0}).encode()
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ):  # the emulator says what is wrong with it
            await self._app(scope, _again(body, receive), send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(short)).encode())]}
        gone: asyncio.Future[Message] | None = None
        try:
            while True:
                # before it is asked, so that no send falls between
                told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.setdefault(queue, set()).add(told)
                try:
                    answer: list[Message] = []
                    await self._app(scope, _again(short, receive), _into(answer))
                    left = deadline - self._clock()
                    found = any(b'"Messages"' in message.get("body", b"") for message in answer)
                    if found or left <= 0 or answer[0]["status"] != 200:
                        answer[0]["headers"] = [*answer[0]["headers"], PROMPT_HEADER]
                        for message in answer:
                            await send(message)
                        return
                    if gone is None:
                        gone = asyncio.ensure_future(receive())
                    await asyncio.wait(
                        (told, gone), timeout=min(left, LOOK_S), return_when=asyncio.FIRST_COMPLETED
                    )
                    if gone.done():  # nobody is there any more to take a message
                        return
                finally:
                    waiting = self._waiting.get(queue, set())
                    waiting.discard(told)
                    if not waiting:
                        self._waiting.pop(queue, None)
        finally:
            if gone is not None:
                gone.cancel()


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A request's body once more, then whatever `receive` says."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return unread.pop() if unread else await receive()

    return read


def _into(answer: list[Message]) -> Send:
    async def keep(message: Message) -> None:
        answer.append(message)

    return keep


def _end_with(lifeline: int) -> None:
    """End with whoever holds the other end of the pipe."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)


def _protocol(strangers: Strangers) -> Any:
    """uvicorn's protocol, which tells `strangers` of its connections."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Watched(HttpToolsProtocol):
        head_bytes = 0  # of a first request whose head is not complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            strangers.come(self.client, transport.abort)

        def connection_lost(self, error: Exception | None) -> None:
            strangers.accepted(self.client)
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None:
                self.head_bytes += len(data)
                if self.head_bytes > STRANGER_HEAD_BYTES:
                    self.transport.abort()

    return Watched


async def _serve(settings: dict[str, Any], listener: socket.socket) -> None:
    import uvicorn
    from ministack.app import app

    strangers = Strangers()
    verifier = None
    if settings["access"] is not None:
        verifier = Verifier(
            settings["access"], settings["secret"], settings["region"], settings["services"]
        )
    host, port = listener.getsockname()
    watch = asyncio.ensure_future(strangers.watch())
    config = uvicorn.Config(
        Guard(LongPollMiddleware(app), f"{host}:{port}", verifier, strangers),
        http=_protocol(strangers),
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
    """Serve until a signal."""
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each rank keeps some connections
    asyncio.run(_serve(settings, socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main(*sys.argv[1:])
