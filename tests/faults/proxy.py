"""An HTTP proxy between ranks and an emulator that injects faults by a seed.

`Proxy` with a share breaks that part of all requests, chosen by the seed and by how many requests came before on the
same connection.  `Proxy` with a `Harm` (see harms.py) leaves the choice to the harm, which sees each request whole and
decides what is forwarded and what is answered.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

HARMS = ("refuse", "break before", "break after", "break within", "throttle")
_REFUSED = (
    b"HTTP/1.1 503 Slow Down\r\ncontent-length: 39\r\n\r\n<Error><Code>SlowDown</Code></Error>   "
)
_THROTTLED = b'HTTP/1.1 400 Bad Request\r\ncontent-length: 40\r\n\r\n{"__type":"x#ThrottlingException"}      '


class Harm(Protocol):
    """Decides what becomes of each request.  Called by several threads at once."""

    def exchange(
        self, kind: str, request: bytes, forward: Callable[[bytes], bytes]
    ) -> bytes | None:
        """Return the answer for the client, or None to reset its connection.

        kind: "sqs.ACTION", "sns.ACTION" or "s3"; forward: sends a request to the emulator and returns its answer.
        """


class Proxy:
    """A context manager; share: of the requests that are broken; harm: decides instead; seen and harmed count."""

    def __init__(
        self, endpoint: str, seed: int, share: float = 0.0, harm: Harm | None = None
    ) -> None:
        parts = urlsplit(endpoint)
        self._there = (parts.hostname, parts.port)
        self._seed, self._share, self._harm = seed, share, harm
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()  # requests by kind: S3's method, or the action
        self.harmed: Counter[str] = Counter()

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            chance = random.Random(f"{self._seed}/{number}")
            number += 1
            threading.Thread(target=self._serve, args=(sock, chance), daemon=True).start()

    def _serve(self, client: socket.socket, chance: random.Random) -> None:
        try:
            with client, socket.create_connection(self._there) as server:  # type: ignore[arg-type]
                from_client, from_server = client.makefile("rb"), server.makefile("rb")
                while (request := _message(from_client)) is not None:
                    if self._harm is not None:
                        with self._lock:
                            self.seen[_kind(request)] += 1

                        def forward(request: bytes) -> bytes:
                            server.sendall(request)
                            head = request.startswith(b"HEAD ")
                            answer = _message(from_server, bodyless=head)
                            if answer is None:
                                raise ConnectionResetError("the emulator hung up")
                            return answer

                        answer = self._harm.exchange(_kind(request), request, forward)
                        if answer is None:
                            _reset(client)
                            return
                        client.sendall(answer)
                        continue
                    harm = chance.choice(HARMS) if chance.random() < self._share else ""
                    with self._lock:
                        self.seen[_kind(request)] += 1
                        self.harmed[harm] += 1
                    if harm in ("refuse", "throttle"):
                        client.sendall(_REFUSED if harm == "refuse" else _THROTTLED)
                        continue
                    if harm == "break before":
                        return
                    server.sendall(request)
                    head = b"HEAD " if request.startswith(b"HEAD ") else b""
                    answer = _message(from_server, bodyless=bool(head))
                    if (
                        answer is None or harm == "break after"
                    ):  # it is done, and nobody hears of it
                        return
                    if harm == "break within":
                        client.sendall(answer[: len(answer) // 2])
                        return
                    client.sendall(answer)
        except OSError:
            return


def _reset(sock: socket.socket) -> None:
    """Make the close send a RST: the peer sees a reset connection, not an end of file."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.shutdown(socket.SHUT_RD)


def _message(stream, bodyless: bool = False) -> bytes | None:  # type: ignore[no-untyped-def]
    """A request or an answer, whole; None at the end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    lines = head.lower().split(b"\r\n")
    if bodyless:
        return head
    for line in lines:
        if line.startswith(b"content-length:"):
            return head + stream.read(int(line[15:]))
        if line.startswith(b"transfer-encoding:"):
            body = b""
            while True:
                size = stream.readline()
                body += size + stream.read(int(size, 16) + 2)
                if int(size, 16) == 0:
                    return head + body
    return head


def _kind(request: bytes) -> str:
    head = request[: request.find(b"\r\n\r\n")].decode()
    if "AmazonSQS." in head:
        return "sqs." + head.partition("AmazonSQS.")[2].split("\r\n")[0]
    if "/sns/" in head:
        return "sns." + request.partition(b"Action=")[2].partition(b"&")[0].decode()
    return "s3"
