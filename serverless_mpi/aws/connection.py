"""One kept HTTP/1.1 connection: a request's bytes out, an answer in.  No retries, no signing, no meaning.

Why not http.client: it parses headers as e-mail and takes twice the CPU of the whole call here (benchmarks/client.py).
The socket stays blocking and the kernel keeps the time-outs, which saves a poll for each read.
A signal handler runs inside whatever call it interrupts, so its exception may look like the socket's own (TimeoutError is
the usual one).  `raised_by` tells them apart by the frames of the traceback: only an exception that this file and the
standard library's socket modules raised is a lost connection; any other closes the connection and propagates.
Source: RFC 9112 (HTTP/1.1 message syntax).
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl  # 10 MB and 40 ms, which a rank without TLS does not pay

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # above the longest poll of 20 s
IDLE_S = 1.0  # a connection that was idle for longer may have been closed by the other side, so it is looked at first
AHEAD_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10
MAX_TRAILERS = 100
MAX_ANNOUNCED = 100
JOINED_BYTES = 64 << 10  # a body up to this goes out in one piece with its head
MAX_BODY_BYTES = (
    5 << 30
)  # of an answer: the longest object of one PUT; more is no answer of these services
_TIMEVAL = struct.Struct("ll")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; body is writable memory; the names of headers are in lower case."""

    status: int
    body: memoryview
    headers: dict[str, str]


Into = memoryview | Callable[[dict[str, str]], memoryview] | None

Come = Callable[[int], None] | None


class Lost(Exception):
    """No whole answer came.  sent: whether the other side may have seen the request."""

    def __init__(self, sent: bool, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.sent = sent


class Untrusted(Exception):
    """The other side's certificate is not good."""


def raised_by(error: BaseException, files: Collection[str]) -> bool:
    """Whether `error` was raised by code of `files` alone, from where it is caught down.

    False if another function raised it: a signal handler that ran meanwhile, or a caller's callback.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename not in files:
            return False
        trace = trace.tb_next
    return True


def file_of(function: Callable[..., object]) -> str:
    """The file of a Python function, as tracebacks name it."""
    assert isinstance(function, FunctionType)
    return function.__code__.co_filename


def _own(error: BaseException) -> bool:
    """Whether the socket, or what is read from it, is the cause."""
    files = [file_of(raised_by), file_of(socket.create_connection)]
    if "ssl" in sys.modules:
        files.append(file_of(sys.modules["ssl"].create_default_context))
    return raised_by(error, files)


class Connection:
    """A connection to host:port; with `tls` its certificate is verified for `host`.

    timeout_s: for connecting and for an answer, each.  Raises Lost if it cannot be made, Untrusted if the certificate is
    not good.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._timeout_s = timeout_s or ANSWER_TIMEOUT_S
        try:
            sock = socket.create_connection((host, port), timeout_s or CONNECT_TIMEOUT_S)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock = _secured(sock, tls, host)
                sock.settimeout(None)
                limit = _TIMEVAL.pack(int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            if not _own(error):
                raise
            raise Lost(False, error) from error
        self._sock = sock
        self._ahead = bytearray(AHEAD_BYTES)
        self._view = memoryview(self._ahead)
        self._have = 0
        self.used_at = time.monotonic()
        self.used = False  # it has answered before
        self.reusable = True

    def stale(self) -> bool:
        """Return whether the server has closed it; ask after it was idle for `IDLE_S`."""
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        return bool(readable.poll(0))  # nothing may come before a request but the end

    def exchange(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        method: str,
        into: Into = None,
        come: Come = None,
    ) -> Answer:
        """Send a request and take its answer, in `into` if it succeeds and fits.

        into: memory, or what names it when the answer's headers are here; come: told how many bytes of it are filled,
        first that none is, so that it drops what an earlier attempt filled.

        Raises
        ------
        Lost
            The connection broke, or what came is not HTTP; it is closed then.
        BaseException
            Whatever a signal handler, `into` or `come` raised; the connection is closed then, too.
        """
        sent = False
        nbytes = 0
        for part in body:
            nbytes += len(part)
        if come is not None:
            come(0)
        try:
            if nbytes <= JOINED_BYTES:
                sent = True
                self._sock.sendall(b"".join((head, *body)))
            else:
                self._sock.sendall(head)
                sent = True
                for part in body:
                    self._sock.sendall(part)
            answer = self._answer(method, into, come)
        except (OSError, ValueError, EOFError) as error:
            self.close()
            if not _own(error):
                raise
            if isinstance(error, BlockingIOError):
                error = TimeoutError(f"no answer within {self._timeout_s:g} s")
            raise Lost(sent, error) from error
        except BaseException:
            self.close()
            raise
        self.used = True
        self.used_at = time.monotonic()
        return answer

    def _answer(self, method: str, into: Into, come: Come) -> Answer:
        for _ in range(MAX_ANNOUNCED):
            status, headers = self._head()
            if status >= 200:
                break  # 1xx only announces
        else:
            raise ValueError(f"{MAX_ANNOUNCED} answers announce another, and none comes")
        if headers.get("connection", "").lower() == "close":
            self.reusable = False
        if method == "HEAD" or status in (204, 304):
            return Answer(status, memoryview(bytearray()), headers)
        if headers.get("transfer-encoding", "identity").lower() != "identity":
            return Answer(status, self._chunks(), headers)
        length = headers.get("content-length")
        if length is None:
            self.reusable = False
            return Answer(status, self._rest(), headers)
        nbytes = int(length)
        if callable(into):
            into = into(headers) if status < 300 else None
        if into is not None and status < 300 and into.nbytes >= nbytes >= 0:
            body = into[:nbytes]
        else:
            body, come = memoryview(_memory(nbytes)), None
        self._fill(body, come)
        return Answer(status, body, headers)

    def _head(self) -> tuple[int, dict[str, str]]:
        """Status line and headers."""
        while (end := self._ahead.find(b"\r\n\r\n", 0, self._have)) < 0:
            if self._have >= MAX_HEAD_BYTES:
                raise ValueError(f"an answer's head is longer than {MAX_HEAD_BYTES} bytes")
            self._more()
        first, *lines = self._ahead[:end].decode("latin-1").split("\r\n")
        self._drop(end + 4)
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"no HTTP/1.1 answer: {first[:60]!r}")
        if version == "HTTP/1.0":
            self.reusable = False
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _more(self) -> None:
        """Read ahead."""
        got = self._sock.recv_into(self._view[self._have :])
        if not got:
            raise EOFError("the other side closed the connection")
        self._have += got

    def _drop(self, nbytes: int) -> None:
        left = self._have - nbytes
        if left:
            self._view[:left] = self._ahead[nbytes : self._have]
        self._have = left

    def _fill(self, into: memoryview, come: Come = None) -> None:
        filled = min(self._have, into.nbytes)
        into[:filled] = self._view[:filled]
        self._drop(filled)
        while filled < into.nbytes:
            got = self._sock.recv_into(into[filled:])
            if not got:
                raise EOFError(f"the answer ended after {filled} of {into.nbytes} bytes")
            filled += got
            if come is not None:
                come(filled)

    def _line(self) -> bytes:
        while (end := self._ahead.find(b"\r\n", 0, self._have)) < 0:
            if self._have >= MAX_HEAD_BYTES:
                raise ValueError("a line of a chunked answer is too long")
            self._more()
        line = bytes(self._ahead[:end])
        self._drop(end + 2)
        return line

    def _chunks(self) -> memoryview:
        whole = bytearray()
        while size := int(self._line().partition(b";")[0], 16):
            piece = _memory(size, len(whole))
            self._fill(memoryview(piece))
            whole += piece
            self._line()
        for _ in range(MAX_TRAILERS):
            if not self._line():
                break
        else:
            raise ValueError(f"more than {MAX_TRAILERS} lines after a chunked answer")
        return memoryview(whole)

    def _rest(self) -> memoryview:
        whole = bytearray(self._ahead[: self._have])
        self._have = 0
        while len(whole) <= MAX_BODY_BYTES:
            got = self._sock.recv(AHEAD_BYTES)
            if not got:
                return memoryview(whole)
            whole += got
        raise ValueError(f"an answer is longer than {MAX_BODY_BYTES:,} bytes")

    def close(self) -> None:
        """Close it; may be called again."""
        self.reusable = False
        self._sock.close()


def _memory(nbytes: int, before: int = 0) -> bytearray:
    """Memory for `nbytes` of an answer of which `before` are here."""
    if not 0 <= nbytes <= MAX_BODY_BYTES - before:
        raise ValueError(f"an answer cannot be {before + nbytes:,} bytes long")
    try:
        return bytearray(nbytes)
    except MemoryError:
        raise ValueError(f"there is no memory for an answer of {nbytes:,} bytes") from None


def _secured(sock: socket.socket, tls: ssl.SSLContext, host: str) -> socket.socket:
    import ssl

    try:
        return tls.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise Untrusted(error.verify_message) from error
