"""The emulator's process: ministack, served by uvicorn, with long polls that answer as soon as a message comes.

A script of its own, which `emulator.py` starts as `HOST PORT LIFELINE`; it imports nothing of this package.  Under the server that
ministack brings, most of a request's time goes to HTTP; and ministack's long poll looks every 100 ms, where AWS's answers at
once.  `Prompt` does that in front of it, and says so in a header, so that a client need not ask again and again.
Source: Amazon SQS Developer Guide, "Amazon SQS short and long polling".
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
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

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Prompt:
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


def _watch(lifeline: int) -> None:
    """End with whoever holds the other end of the pipe."""
    os.read(lifeline, 1)
    os._exit(1)


def main(host: str, port: str, lifeline: str) -> None:
    """Serve until a signal."""
    threading.Thread(target=_watch, args=(int(lifeline),), daemon=True).start()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each rank keeps some connections
    import uvicorn
    from ministack.app import app

    uvicorn.run(
        Prompt(app),
        host=host,
        port=int(port),
        http="httptools",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
