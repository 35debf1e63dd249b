"""A scripted HTTP server on 127.0.0.1: it records each request and sends the response of the test."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Request:
    """What was asked."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int  # which connection of the server it came on, from 0


class HangUp(Exception):
    """An answer of this kind closes the connection instead."""


# bytes of a whole answer; HangUp("part of an answer") sends the part and closes
Reply = bytes | HangUp


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} x\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Server:
    """A context manager; `answer(request)` is called for each request."""

    answer: Callable[[Request], Reply]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Server:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._thread.join()

    def hang_up(self) -> None:
        """Close every connection, as a service does with idle ones."""
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                pass
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
                number = len(self._sockets)
                if self.tls is not None:
                    sock = self.tls.wrap_socket(sock, server_side=True)
            except ssl.SSLError:  # a client that does not trust us
                continue
            except OSError:
                return
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with sock, sock.makefile("rb") as stream:
                while line := stream.readline():
                    method, target, _ = line.decode().split(" ")
                    headers = {}
                    while (line := stream.readline().decode().strip()) != "":
                        name, _, value = line.partition(": ")
                        headers[name] = value
                    body = stream.read(int(headers.get("content-length", "0")))
                    request = Request(method, target, headers, body, number)
                    self.requests.append(request)
                    answer = self.answer(request)
                    if isinstance(answer, HangUp):
                        sock.sendall(str(answer).encode())
                        sock.shutdown(socket.SHUT_RDWR)
                        return
                    sock.sendall(answer)
        except OSError:
            return
