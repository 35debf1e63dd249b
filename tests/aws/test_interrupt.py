"""An exception of a signal handler is not taken for a network error, and its connection is not
reused.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from serverless_mpi.aws.connection import Connection
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.aws.workers import Workers
from serverless_mpi.metering import Meter
from tests.aws.server import Reply, Request, Server, reply


class Alarm:
    """SIGUSR1 raises `error` in the main thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, number: int, frame: object) -> None:
        raise self.error

    @staticmethod
    def ring() -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)


@pytest.fixture
def alarm() -> Iterator[Callable[[BaseException], Alarm]]:
    before = signal.getsignal(signal.SIGUSR1)

    def set_to(error: BaseException) -> Alarm:
        made = Alarm(error)
        signal.signal(signal.SIGUSR1, made)
        return made

    yield set_to
    signal.signal(signal.SIGUSR1, before)


ERRORS = [
    TimeoutError("time is up"),
    ConnectionResetError("raised by the handler"),
    BlockingIOError(11, "raised by the handler"),
    ValueError("raised by the handler"),
    EOFError("raised by the handler"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "half read"])
def test_an_exception_of_a_handler_propagates(
    alarm: Callable[[BaseException], Alarm], error: BaseException, begun: bool
) -> None:
    ring = alarm(error).ring
    asked = 0

    def answer(request: Request) -> Reply:
        nonlocal asked
        asked += 1
        if asked == 1:
            if begun:
                server._sockets[0].sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
            ring()
            # the answer comes all the same: of a connection that is read on it would be taken for the next one's
            return b" rest"
        return reply(body=b"second")

    with Server(answer) as server:
        client = Client("s3", "us-east-1", server.url, Credentials(server.url), Meter())
        try:
            with pytest.raises(type(error)) as caught:
                client.request("GET", "GET", "/first")
                client.request("GET", "GET", "/not reached")  # where the signal came late
            assert caught.value is error
            assert bytes(client.request("GET", "GET", "/second").body) == b"second"
            assert [request.connection for request in server.requests] == [0, 1]
        finally:
            client.close()


def test_an_exception_of_a_callback_propagates() -> None:
    def into(headers: dict[str, str]) -> memoryview:
        raise OSError("no memory file")

    with Server(lambda request: reply(body=b"body")) as server:
        client = Client("s3", "us-east-1", server.url, Credentials(server.url), Meter())
        with pytest.raises(OSError, match="no memory file"):
            client.request("GET", "GET", "/", into=into)
        assert len(server.requests) == 1 and not client._idle


def test_an_exception_of_a_handler_while_connecting_propagates(
    alarm: Callable[[BaseException], Alarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = TimeoutError("time is up")
    ring = alarm(error).ring

    def connect(*arguments: object) -> object:
        ring()
        raise AssertionError("the handler runs first")

    monkeypatch.setattr("socket.getaddrinfo", connect)
    with pytest.raises(TimeoutError) as caught:
        Connection("127.0.0.1", 1)
    assert caught.value is error


def test_a_call_is_not_made_twice_when_a_handler_raises(
    alarm: Callable[[BaseException], Alarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("raised by the handler")
    ring = alarm(error).ring
    workers = Workers(1)
    submit = workers._pool.submit
    made: list[int] = []

    def interrupted(call: Callable[..., None], *arguments: object) -> object:
        future = submit(call, *arguments)
        future.result()
        ring()
        return future

    monkeypatch.setattr(workers._pool, "submit", interrupted)
    with pytest.raises(RuntimeError) as caught:
        workers.submit(made.append, 1)
    assert caught.value is error and made == [1]
    workers.close()
    monkeypatch.undo()
    workers.submit(made.append, 2)  # the pool takes nothing any more
    assert made == [1, 2]


@pytest.mark.parametrize("name", ["json.loads", "binascii.a2b_base64"])
def test_an_exception_of_a_handler_is_not_taken_for_a_bad_message(
    alarm: Callable[[BaseException], Alarm], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError("raised by the handler")
    ring = alarm(error).ring
    monkeypatch.setattr(name, lambda text: ring())
    body = b'{"Messages":[{"ReceiptHandle":"h","MessageAttributes":{"f":{"BinaryValue":"AAAA"}}}]}'
    with Server(lambda request: reply(body=body)) as server:
        client = Client("sqs", "us-east-1", server.url, Credentials(server.url), Meter())
        with pytest.raises(ValueError, match="raised by the handler") as caught:
            Sqs(client).receive("queue", 0)
        assert caught.value is error
        client.close()
