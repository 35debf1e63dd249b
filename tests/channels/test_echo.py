"""What an echo service may answer, and what of it is an address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serverless_mpi.channels.linker import ECHO_BYTES, ask_echo
from serverless_mpi.errors import ChannelError


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
