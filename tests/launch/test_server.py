"""The long poll in front of the emulator: it answers when a message arrives, and loses none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serverless_mpi.launch import server
from serverless_mpi.launch.server import (
    PROMPT_HEADER,
    LongPollMiddleware,
    Message,
    Receive,
    Scope,
    Send,
)

LIMIT_S = 20.0  # nothing here waits; what hangs fails


@pytest.fixture(autouse=True)
def no_unasked_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a poll check the queue only after a send."""
    monkeypatch.setattr(server, "POLL_S", 3600.0)


class Queues:
    """An emulator of sends and receives, which counts how often it is asked for messages."""

    def __init__(self) -> None:
        self.messages: dict[str, list[str]] = {}
        self.asked = 0
        self.seen: list[Any] = []
        self.empty = asyncio.Event()  # set when a receive has found nothing
        self.while_asked: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = dict(scope["headers"]).get(b"x-amz-target", b"").decode()
        body = await server._body(receive)
        self.seen.append((target, body))
        answer: dict[str, Any] = {}
        status = 200
        if target == "AmazonSQS.ReceiveMessage":
            self.asked += 1
            try:
                request = json.loads(body)
            except ValueError:
                status = 400
            else:
                assert int(dict(scope["headers"])[b"content-length"]) == len(body)
                assert request["WaitTimeSeconds"] == 0
                found, self.messages[request["QueueUrl"]] = (
                    self.messages.get(request["QueueUrl"], []),
                    [],
                )
                answer = {"Messages": found} if found else {}
                if self.while_asked is not None:
                    meanwhile, self.while_asked = self.while_asked, None
                    await meanwhile()
                if not found:
                    self.empty.set()
        elif target.startswith("AmazonSQS.Send"):
            request = json.loads(body)
            self.messages.setdefault(request["QueueUrl"], []).append(request["MessageBody"])
        elif body == b"publish":
            for queue in ("a", "b"):
                self.messages.setdefault(queue, []).append("published")
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send(
            {"type": "http.response.body", "body": json.dumps(answer).encode(), "more_body": False}
        )


class Caller:
    """A request, and who made it: who may hang up."""

    def __init__(
        self, app: LongPollMiddleware, target: str, body: bytes, authorization: bytes = b""
    ) -> None:
        self.answer: list[Message] = []
        self.gone = asyncio.Event()
        headers = [
            (b"x-amz-target", target.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", authorization),
        ]
        self._body: list[Message] = [  # in two pieces, as a long one comes
            {"type": "http.request", "body": body[:5], "more_body": True},
            {"type": "http.request", "body": body[5:], "more_body": False},
        ]
        scope = {"type": "http", "headers": [pair for pair in headers if pair[1]]}
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            return self._body.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.answer.append(message)

    async def done(self) -> Any:
        """(what was answered, whether the header was there)."""
        await asyncio.wait_for(self.task, LIMIT_S)
        return json.loads(self.answer[1]["body"]), PROMPT_HEADER in self.answer[0]["headers"]


def receive(app: LongPollMiddleware, queue: str = "a", wait_s: int = 20) -> Caller:
    return Caller(
        app,
        "AmazonSQS.ReceiveMessage",
        json.dumps({"WaitTimeSeconds": wait_s, "QueueUrl": queue}).encode(),
    )


def send(app: LongPollMiddleware, queue: str, text: str) -> Caller:
    return Caller(
        app, "AmazonSQS.SendMessage", json.dumps({"MessageBody": text, "QueueUrl": queue}).encode()
    )


def run(test: Callable[[Queues, LongPollMiddleware], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        queues = Queues()
        app = LongPollMiddleware(queues)
        await asyncio.wait_for(test(queues, app), 3 * LIMIT_S)
        assert not app._waiting

    asyncio.run(main())


def test_a_send_answers_a_poll_that_waits() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        poll = receive(app)
        await queues.empty.wait()
        await send(app, "a", "x").done()
        assert await poll.done() == ({"Messages": ["x"]}, True)

    run(test)


def test_a_send_to_another_queue_does_not() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        poll = receive(app)
        await queues.empty.wait()
        await send(app, "b", 'x "QueueUrl": "a"').done()
        assert queues.asked == 1 and not poll.task.done()
        await send(app, "a", "y").done()
        assert await poll.done() == ({"Messages": ["y"]}, True)
        assert queues.asked == 2

    run(test)


def test_a_publish_lets_every_poll_look() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        polls = [receive(app, queue) for queue in "ab"]
        while queues.asked < 2:
            await queues.empty.wait()
            await asyncio.sleep(0)
        signed = b"AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/sns/aws4_request, Signature=0"
        publish = Caller(app, "", b"publish", signed)
        await publish.done()
        for poll in polls:
            assert await poll.done() == ({"Messages": ["published"]}, True)

    run(test)


def test_a_message_that_arrives_during_a_poll_is_not_missed() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        async def meanwhile() -> None:
            await send(app, "a", "x").done()

        queues.while_asked = meanwhile
        assert await receive(app).done() == ({"Messages": ["x"]}, True)

    run(test)


def test_a_disconnected_client_takes_no_message() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        poll = receive(app)
        await queues.empty.wait()
        poll.gone.set()
        await asyncio.wait_for(poll.task, LIMIT_S)
        await send(app, "a", "x").done()
        assert not poll.answer and queues.messages["a"] == ["x"]

    run(test)


def test_a_short_poll_answers_at_once_and_a_long_one_at_its_end() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        assert await receive(app, wait_s=0).done() == ({}, True)
        times = iter([0.0, 1.0])
        assert await receive(LongPollMiddleware(queues, lambda: next(times)), wait_s=1).done() == (
            {},
            True,
        )
        assert queues.asked == 2

    run(test)


def test_the_emulator_answers_invalid_requests() -> None:
    async def test(queues: Queues, app: LongPollMiddleware) -> None:
        caller = Caller(app, "AmazonSQS.ReceiveMessage", b"{no json")
        await caller.done()
        assert caller.answer[0]["status"] == 400 and queues.seen == [
            ("AmazonSQS.ReceiveMessage", b"{no json")
        ]

    run(test)
