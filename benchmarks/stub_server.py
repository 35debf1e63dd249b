"""A server on 127.0.0.1 that answers every request at once with the same bytes: what is left is the
client's own cost.

It runs in a process of its own, so that the client's CPU time can be read from the client's
process.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Iterator


def _serve(listener: socket.socket, answer: bytes) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    pending: dict[socket.socket, bytes] = {}
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ)
                pending[accepted] = b""
                continue
            try:
                got = sock.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                selector.unregister(sock)
                sock.close()
                del pending[sock]
                continue
            data = pending[sock] + got
            head = data.find(b"\r\n\r\n")
            if head >= 0:
                low = data[:head].lower()
                at = low.find(b"content-length:")
                length = int(low[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
                if len(data) >= head + 4 + length:
                    sock.sendall(answer)
                    data = data[head + 4 + length :]
            pending[sock] = data


@contextlib.contextmanager
def server(body: bytes, content_type: str) -> Iterator[str]:
    """URL of a server that answers 200 with `body`; it ends with the block."""
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nx-amzn-requestid: 00000000-0000-0000-0000-000000000000\r\n"
        b"date: Tue, 24 Nov 2026 00:00:00 GMT\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n%s"
    ) % (content_type.encode(), len(body), body)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        host, port = listener.getsockname()
        child = os.fork()
        if not child:
            try:
                _serve(listener, answer)
            finally:
                os._exit(0)
    try:
        yield f"http://{host}:{port}"
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
