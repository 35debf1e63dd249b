"""One kept HTTP/1.1 connection: sends a request's bytes and receives an answer.

No retries, no signatures, no meaning: those are in `http.py`, `sigv4.py` and the services'
files.  Why not http.client: it parses headers as e-mail, and takes twice the CPU time
of a whole call here (benchmarks/client.py).  The socket stays blocking and the kernel
keeps the time-outs, which saves a poll per read.

Pitfall: a signal handler runs inside the call that it interrupts, so its exception may
look like the socket's own (TimeoutError is the usual one).  `raised_by` distinguishes
them by the frames of the traceback: only an exception raised by this file and the
standard library's socket modules is a lost connection.  Any other closes the connection
and propagates.

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
IDLE_S = 1.0  # after as long, the server may have closed the connection: `stale` checks it
AHEAD_BYTES = 64 << 10  # of the receive buffer
MAX_HEAD_BYTES = 64 << 10
MAX_TRAILERS = 100
MAX_ANNOUNCED = 100  # answers of status 1xx before the final one
JOINED_BYTES = 64 << 10  # a body of at most this is sent in one call with its head
MAX_BODY_BYTES = 5 << 30  # of an answer: the longest object of one PUT
_TIMEVAL = struct.Struct("ll")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `body` is writable memory, header names are in lower case."""

    status: int
    body: memoryview
    headers: dict[str, str]


# memory for the body of an answer, or a function of the headers that returns it
Into = memoryview | Callable[[dict[str, str]], memoryview] | None
# called with the number of bytes of the body that have arrived
Come = Callable[[int], None] | None


class Lost(Exception):
    """No complete answer arrived; `sent` states whether the server may have seen the request."""

    def __init__(self, sent: bool, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.sent = sent


class Untrusted(Exception):
    """The server's certificate is not trusted."""


def raised_by(error: BaseException, files: Collection[str]) -> bool:
    """Return whether an exception was raised by code of given files alone.

    Parameters
    ----------
    error
        A caught exception.  Its traceback is checked from the function that caught it down.
    files
        Names of files, as `file_of` returns them.

    Returns
    -------
    bool
        False if another function raised it: a signal handler, or a caller's callback.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename not in files:
            return False
        trace = trace.tb_next
    return True


def file_of(function: Callable[..., object]) -> str:
    """Return the file of a Python function, as tracebacks name it.

    Parameters
    ----------
    function
        A function written in Python, not a bound method or a built-in one.
    """
    assert isinstance(function, FunctionType)
    return function.__code__.co_filename


def _own(error: BaseException) -> bool:
    """Return whether the socket, or what was received from it, is the cause."""
    files = [file_of(raised_by), file_of(socket.create_connection)]
    if "ssl" in sys.modules:
        files.append(file_of(sys.modules["ssl"].create_default_context))
    return raised_by(error, files)


class Connection:
    """A connection to a server.  Not thread-safe.

    Parameters
    ----------
    host, port
        The server.
    tls
        Context that verifies the server's certificate for `host`; None for plain HTTP.
    timeout_s
        Longest wait in seconds for the connection and for each read of an answer.

    Attributes
    ----------
    used_at
        Monotonic seconds of the last answer.
    used
        Whether it has answered a request.
    reusable
        Whether it may carry another request.

    Raises
    ------
    Lost
        The server cannot be reached.
    Untrusted
        Its certificate is not trusted.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._longest_s = self._timeout_s = timeout_s or ANSWER_TIMEOUT_S
        try:
            sock = socket.create_connection((host, port), timeout_s or CONNECT_TIMEOUT_S)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock = _secured(sock, tls, host)
                sock.settimeout(None)
                limit = _timeval(self._timeout_s)
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
        self.used = False
        self.reusable = True

    def stale(self) -> bool:
        """Return whether the server has closed it; ask after it was idle for `IDLE_S`."""
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        return bool(readable.poll(0))  # before a request only its end can make it readable

    def exchange(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        method: str,
        into: Into = None,
        come: Come = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send a request and receive its answer.

        Parameters
        ----------
        head
            Request line and headers, with the empty line.
        body
            Sent one after the other; borrowed.
        method
            HTTP method of `head`.
        into
            Memory that receives the body of a success that fits; or a function of the headers.
        come
            Called with the number of bytes that `into` has received, first with 0.
        timeout_s
            Longest wait in seconds for each read of this answer; None for the connection's.

        Raises
        ------
        Lost
            The connection broke, or what arrived is not HTTP.
        BaseException
            Anything that a signal handler, `into` or `come` raised.

        Notes
        -----
        The connection is closed after any error.
        """
        sent = False
        nbytes = 0
        for part in body:
            nbytes += len(part)
        if come is not None:
            come(0)
        try:
            self._wait_for(timeout_s or self._longest_s)
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

    def _wait_for(self, timeout_s: float) -> None:
        """Set the longest wait of a read; the system call is saved where it is set already."""
        if timeout_s != self._timeout_s:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout_s))
            self._timeout_s = timeout_s

    def _answer(self, method: str, into: Into, come: Come) -> Answer:
        """Receive an answer."""
        for _ in range(MAX_ANNOUNCED):
            status, headers = self._head()
            if status >= 200:
                break  # 1xx announces another answer
        else:
            raise ValueError(f"{MAX_ANNOUNCED} answers of status 1xx and no final one")
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
        """Receive status and headers."""
        while (end := self._ahead.find(b"\r\n\r\n", 0, self._have)) < 0:
            if self._have >= MAX_HEAD_BYTES:
                raise ValueError(f"an answer's head is longer than {MAX_HEAD_BYTES} bytes")
            self._more()
        first, *lines = self._ahead[:end].decode("latin-1").split("\r\n")
        self._drop(end + 4)
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"not an answer of HTTP/1.1: {first[:60]!r}")
        if version == "HTTP/1.0":
            self.reusable = False
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _more(self) -> None:
        """Receive into the buffer what has arrived."""
        got = self._sock.recv_into(self._view[self._have :])
        if not got:
            raise EOFError("the server closed the connection")
        self._have += got

    def _drop(self, nbytes: int) -> None:
        """Remove the first bytes from the buffer."""
        left = self._have - nbytes
        if left:
            self._view[:left] = self._ahead[nbytes : self._have]
        self._have = left

    def _fill(self, into: memoryview, come: Come = None) -> None:
        """Receive exactly as many bytes as `into` holds."""
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
        """Receive a line of a chunked body."""
        while (end := self._ahead.find(b"\r\n", 0, self._have)) < 0:
            if self._have >= MAX_HEAD_BYTES:
                raise ValueError("a line of a chunked answer is too long")
            self._more()
        line = bytes(self._ahead[:end])
        self._drop(end + 2)
        return line

    def _chunks(self) -> memoryview:
        """Receive a chunked body."""
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
        """Receive a body that ends with the connection."""
        whole = bytearray(self._ahead[: self._have])
        self._have = 0
        while len(whole) <= MAX_BODY_BYTES:
            got = self._sock.recv(AHEAD_BYTES)
            if not got:
                return memoryview(whole)
            whole += got
        raise ValueError(f"an answer is longer than {MAX_BODY_BYTES:,} bytes")

    def close(self) -> None:
        """Close the connection; may be called again."""
        self.reusable = False
        self._sock.close()


def _timeval(seconds: float) -> bytes:
    """Return seconds as the kernel takes them."""
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))


def _memory(nbytes: int, before: int = 0) -> bytearray:
    """Allocate `nbytes` for an answer of which `before` bytes have arrived."""
    if not 0 <= nbytes <= MAX_BODY_BYTES - before:
        raise ValueError(f"an answer cannot be {before + nbytes:,} bytes long")
    try:
        return bytearray(nbytes)
    except MemoryError:
        raise ValueError(f"not enough memory for an answer of {nbytes:,} bytes") from None


def _secured(sock: socket.socket, tls: ssl.SSLContext, host: str) -> socket.socket:
    """Do the TLS handshake."""
    import ssl  # imported already: the context is one of its objects

    try:
        return tls.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise Untrusted(error.verify_message) from error
