"""What an echo service may answer, and what of it is an address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serverless_mpi.channels import echo as questions
from serverless_mpi.channels.linker import ECHO_BYTES, ask_echo
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch.echo import handler


class Echo(HTTPServer):
    """An HTTP server that gives one answer."""

    answer = (200, b"")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 - as http.server names it
        assert isinstance(self.server, Echo)
        status, body = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (b"192.0.2.7\n", "192.0.2.7"),
        (b'{"sourceIp": "192.0.2.7"}', "192.0.2.7"),
        (b"2001:db8::1", "2001:db8::1"),
    ],
)
def test_an_address_is_read(body: bytes, address: str, echo: Echo) -> None:
    echo.answer = (200, body)
    assert ask_echo(echo.url) == address


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"192.0.2.7"),
        (200, b""),
        (200, b"not an address"),
        (200, b"0.0.0.0"),
        (200, b"224.0.0.1"),
        (200, b"\xff"),
        (200, b"{}"),
        (200, b'{"sourceIp": 7.5}'),
        (200, b'{"a":' + b"[" * (ECHO_BYTES - 5)),
    ],
)
def test_anything_else_is_an_error(answer: tuple[int, bytes], echo: Echo) -> None:
    echo.answer = answer
    with pytest.raises(ChannelError, match="did not answer with an address"):
        ask_echo(echo.url)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1", "http://127.0.0.1:9/"])
def test_a_service_that_is_not_there_is_an_error(url: str) -> None:
    with pytest.raises(ChannelError, match="did not answer with an address"):
        ask_echo(url)


def test_a_stacks_url_is_asked_with_the_keys_of_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    settings = {"echo": "https://abc.lambda-url.eu-west-1.on.aws/", questions.SIGNED: "1"}
    spec = JobSpec.new(2, "routed", region="eu-west-1", settings=settings)
    headers = questions.headers(spec)
    assert headers["host"] == "abc.lambda-url.eu-west-1.on.aws"
    assert headers["x-amz-security-token"] == "token"
    assert "/eu-west-1/lambda/aws4_request" in headers["authorization"]
    plain = JobSpec.new(2, "routed", settings={"echo": "http://127.0.0.1/"})
    assert questions.headers(plain) == {}  # a service of the user gets nothing of the role


def test_the_function_answers_with_the_callers_address(echo: Echo) -> None:
    answer = handler({"requestContext": {"http": {"sourceIp": "192.0.2.9"}}}, None)
    echo.answer = (200, json.dumps(answer).encode())
    assert ask_echo(echo.url) == "192.0.2.9"
