"""The linker: a thread that connects ranks and proves, both ways, that each knows the job's key.

Ranks of one machine or function connect by a Unix socket that the launcher bound.
Other ranks connect by TCP, both at the same time and from the port that each has
announced, every `RETRY_S` for at most `LINK_S`.  Both sides may be behind a NAT that
keeps the port and lets in what answers an outgoing packet: each side's first packet
opens its own NAT for the other side's.  Where no NAT is between them, one side's
connection reaches the other's listening socket.

The handshake is symmetric, since in a simultaneous open nobody accepts:

    HELLO   magic, job, own rank, peer's rank, nonce
    proof   a tag over both HELLOs, that of the lower rank first; each of the two ranks
            has a purpose of its own, so a proof cannot be sent back

A socket that was accepted sends nothing until it has read a HELLO for its own job
and rank. The keys of a TCP link are tags over the same two HELLOs.

Invariants:

- Everything read before the proof has a fixed length and a deadline, and what fails
  is closed.  Unproven accepted connections are bounded; the oldest is dropped.
- Nothing is read beyond the proof: records follow at once.
"""

from __future__ import annotations

import collections
import http.client
import ipaddress
import json
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from serverless_mpi.channels import echo
from serverless_mpi.channels.handshake import HANDSHAKE_S, STRANGERS, same_user
from serverless_mpi.channels.link import PlainRecords, Records, SealedRecords
from serverless_mpi.channels.sockets import Waker
from serverless_mpi.core.tags import PROOF_BYTES, Purpose, make, same
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

MAGIC = b"SMPILK1\n"
HELLO = struct.Struct("<8s8sII16s")  # magic, job id, own rank, peer's rank, nonce
NONCE_BYTES = 16
LINK_S = 2.0  # longest attempt to connect by TCP
NEAR_S = 30.0  # longest wait for a rank of this machine to start
RETRY_S = 0.05  # between two connects; a NAT forgets a refused mapping no faster
ECHO_S = 2.0  # longest wait for the echo service
ECHO_BYTES = 4096  # longest answer of the echo service
# A link that is silent is probed after 5 s, and its NAT's mapping renewed; it is given up 15 s
# after the peer was last heard (tcp(7)).
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 15_000}

Address = tuple[str, int] | str  # of TCP, or the name of a Unix socket


class Handshake:
    """One side of the handshake: bytes in, bytes out.

    Parameters
    ----------
    spec
        The job, as this rank sees it.
    peer
        The rank that shall answer; None for a connection that was accepted.

    Attributes
    ----------
    needed
        Bytes to receive next; 0 once the peer is proven.
    """

    def __init__(self, spec: JobSpec, peer: int | None) -> None:
        self.peer = peer
        self.needed = HELLO.size
        self._spec = spec
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._received = b""
        self._both = b""  # both HELLOs, once the peer's has arrived

    def hello(self) -> bytes:
        """Return this side's HELLO."""
        assert self.peer is not None
        job = bytes.fromhex(self._spec.job_id)
        return HELLO.pack(MAGIC, job, self._spec.rank, self.peer, self._nonce)

    def feed(self, data: bytes) -> bytes | None:
        """Take received bytes, and return the answer to them.

        Parameters
        ----------
        data
            The next bytes of the peer, at most `needed`.

        Returns
        -------
        bytes or None
            Bytes to send, perhaps none.  None: hang up, since the peer is not the expected rank of
            this job.
        """
        self._received += data
        self.needed -= len(data)
        if self.needed:
            return b""
        if not self._both:
            return self._take_hello()
        proof = make(self._spec.key, self._purpose(self.peer), self._both, PROOF_BYTES)
        return b"" if same(self._received, proof) else None

    def _take_hello(self) -> bytes | None:
        hello, self._received = self._received, b""
        magic, job, source, dest, _ = HELLO.unpack(hello)
        spec, accepted = self._spec, self.peer is None
        known = magic == MAGIC and job.hex() == spec.job_id and dest == spec.rank
        if not known or source == spec.rank or not 0 <= source < spec.size:
            return None
        if self.peer not in (None, source):
            return None
        self.peer = source
        own = self.hello()
        self._both = own + hello if spec.rank < source else hello + own
        self.needed = PROOF_BYTES
        proof = make(spec.key, self._purpose(spec.rank), self._both, PROOF_BYTES)
        return own + proof if accepted else proof

    def _purpose(self, rank: int | None) -> Purpose:
        assert self.peer is not None
        lower = rank == min(self._spec.rank, self.peer)
        return Purpose.LINK_LOWER if lower else Purpose.LINK_HIGHER

    def sealed(self) -> SealedRecords:
        """Return the encryption of the connection, once the peer is proven."""
        assert self.peer is not None and not self.needed
        lower, higher = (
            make(self._spec.key, purpose, self._both, 32)
            for purpose in (Purpose.LINK_KEY_LOWER, Purpose.LINK_KEY_HIGHER)
        )
        own_first = self._spec.rank < self.peer
        return SealedRecords(*((lower, higher) if own_first else (higher, lower)))


@dataclass
class _Connection:
    """A socket that is being connected or proven."""

    sock: socket.socket
    handshake: Handshake
    deadline: float
    connected: bool
    attempt: _Attempt | None = None  # None: it was accepted


@dataclass
class _Attempt:
    """One try to reach a rank, by as many connects as its time allows."""

    rank: int
    address: Address
    deadline: float
    retry_at: float = 0.0
    connection: _Connection | None = field(default=None, repr=False)


class Linker(threading.Thread):
    """Connects this rank with others.

    Parameters
    ----------
    spec
        The job, as this rank sees it.
    near
        The rank's listening Unix socket, owned; None if no rank shares its machine.
    host
        Address to listen on by TCP; None: no TCP.
    echo
        URL that answers with the caller's public address; None: `host` is what peers can reach.
    admit
        Called in this thread as admit(socket, rank, records, near) with a proven connection.
    gave_up
        Called in this thread as gave_up(rank, reason) when an attempt has failed.
    no_address
        Called in this thread if the echo service did not answer with an address.

    Attributes
    ----------
    address
        (address, port) that peers can reach; None until it is known, or without TCP.

    Raises
    ------
    ChannelError
        `host` is not an address of this machine, or has no free port.
    """

    def __init__(
        self,
        spec: JobSpec,
        near: socket.socket | None,
        host: str | None,
        echo: str | None,
        *,
        admit: Callable[[socket.socket, int, Records, bool], None],
        gave_up: Callable[[int, str], None],
        no_address: Callable[[], None],
    ) -> None:
        super().__init__(name="smpi-linker", daemon=True)
        self.address: tuple[str, int] | None = None
        self._spec = spec
        self._host, self._echo = host, echo
        self._admit, self._gave_up, self._no_address = admit, gave_up, no_address
        self._selector = selectors.DefaultSelector()
        self._connections: dict[socket.socket, _Connection] = {}
        self._attempts: list[_Attempt] = []
        self._asked: collections.deque[_Attempt] = collections.deque()  # by other threads
        self._waker = Waker()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._stopping = False
        self._near, self._far = near, None if host is None else self._listen(host)
        for listener in (self._near, self._far):
            if listener is not None:
                listener.setblocking(False)
                self._selector.register(listener, selectors.EVENT_READ)

    # -- calls of other threads

    def connect(self, rank: int, address: Address) -> None:
        """Begin to connect to a rank; `admit` or `gave_up` follows.

        Parameters
        ----------
        rank
            World rank of the peer.
        address
            (address, port) of TCP, tried for `LINK_S` seconds; or the name of a Unix socket, tried
            for `NEAR_S` seconds.
        """
        patience = NEAR_S if isinstance(address, str) else LINK_S
        self._asked.append(_Attempt(rank, address, time.monotonic() + patience))
        self._waker.wake()

    def stop(self) -> None:
        """End the thread and close what is not a link yet."""
        self._stopping = True
        self._waker.wake()
        self.join()

    def abandon(self) -> None:
        """Close a forked child's copies of descriptors; the child does not have the thread."""
        self._close_sockets()
        self._waker.abandon()

    def _close_sockets(self) -> None:
        for sock in (*self._connections, self._near, self._far):
            if sock is not None:
                sock.close()
        self._selector.close()

    # -- the thread

    def run(self) -> None:
        try:
            self._find_address()
            while not self._stopping:
                events = self._selector.select(self._patience(time.monotonic()))
                now = time.monotonic()
                for key, mask in events:
                    if key.fileobj is self._waker:
                        self._waker.clear()
                    elif key.fileobj in (self._near, self._far):
                        assert isinstance(key.fileobj, socket.socket)
                        self._accept(key.fileobj, now)
                    elif isinstance(key.fileobj, socket.socket):
                        if (connection := self._connections.get(key.fileobj)) is not None:
                            self._go_on(connection, mask)
                while self._asked:
                    self._attempts.append(self._asked.popleft())
                self._tick(now)
        finally:
            self._close_sockets()
            self._waker.close()

    def _find_address(self) -> None:
        """Learn the address that peers can reach."""
        if self._far is None or self._host is None:
            return
        port = self._far.getsockname()[1]
        if self._echo is None:
            self.address = (self._host, port)
        else:
            try:
                self.address = (ask_echo(self._echo, echo.headers(self._spec)), port)
            except ChannelError:
                self._no_address()

    def _listen(self, host: str) -> socket.socket:
        sock = self._bound(host, 0)
        sock.listen(min(self._spec.size, 128))
        return sock

    def _bound(self, host: str, port: int) -> socket.socket:
        """Return a socket bound to an address that others of this process may share."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise ChannelError(
                f"channel routed cannot listen on {host}: {error.strerror or error};"
                " --host takes an address of this machine"
            ) from error
        return sock

    def _patience(self, now: float) -> float | None:
        times = [connection.deadline for connection in self._connections.values()]
        for attempt in self._attempts:
            times.append(attempt.deadline if attempt.connection else attempt.retry_at)
        return max(0.0, min(times) - now) if times else None

    def _tick(self, now: float) -> None:
        """End what is late, and connect again where it is time."""
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                self._drop(connection, now)
        for attempt in list(self._attempts):
            if attempt.deadline <= now:
                self._attempts.remove(attempt)
                if attempt.connection is not None:
                    self._drop(attempt.connection, now)
                self._gave_up(attempt.rank, "did not answer")
            elif attempt.connection is None and attempt.retry_at <= now:
                self._try(attempt, now)

    def _try(self, attempt: _Attempt, now: float) -> None:
        """Connect once."""
        attempt.retry_at = now + RETRY_S
        address = attempt.address
        try:
            if isinstance(address, str):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            else:
                assert self._far is not None
                sock = self._bound(*self._far.getsockname()[:2])
        except (ChannelError, OSError):
            return  # for want of descriptors: tried again
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            pass
        except OSError:
            sock.close()  # refused, or the peer's connection has taken the pair of addresses
            return
        connection = _Connection(
            sock, Handshake(self._spec, attempt.rank), attempt.deadline, False, attempt
        )
        attempt.connection = connection
        self._connections[sock] = connection
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _accept(self, listener: socket.socket, now: float) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        strangers = [one for one in self._connections.values() if one.attempt is None]
        while len(strangers) >= STRANGERS + self._spec.size:
            self._drop(strangers.pop(0), now)
        if not same_user(sock):
            sock.close()
            return
        sock.setblocking(False)
        self._connections[sock] = _Connection(
            sock, Handshake(self._spec, None), now + HANDSHAKE_S, True
        )
        self._selector.register(sock, selectors.EVENT_READ)

    def _drop(self, connection: _Connection, now: float) -> None:
        """Close a connection; its attempt goes on while it has time."""
        self._release(connection)
        connection.sock.close()
        if connection.attempt is not None:
            connection.attempt.connection = None
            connection.attempt.retry_at = now + RETRY_S

    def _release(self, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        del self._connections[connection.sock]

    def _go_on(self, connection: _Connection, mask: int) -> None:
        """Finish a connect, or receive a part of the handshake."""
        sock, handshake = connection.sock, connection.handshake
        now = time.monotonic()
        try:
            if not connection.connected:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._drop(connection, now)
                    return
                connection.connected = True
                if not same_user(sock):
                    self._drop(connection, now)
                    return
                self._selector.modify(sock, selectors.EVENT_READ)
                sock.send(handshake.hello())
                return
            data = sock.recv(handshake.needed)
            answer = handshake.feed(data) if data else None
            if answer is None:
                self._drop(connection, now)
                return
            if answer and sock.send(answer) != len(answer):  # an empty buffer takes 72 bytes
                self._drop(connection, now)
                return
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection, now)
            return
        if not handshake.needed:
            self._proven(connection)

    def _proven(self, connection: _Connection) -> None:
        """Hand over a connection whose peer knows the key."""
        self._release(connection)
        rank = connection.handshake.peer
        assert rank is not None
        sock, near = connection.sock, connection.sock.family == socket.AF_UNIX
        if not near:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        # A second connection to the rank is not closed: the peer may have proven that one first.
        self._attempts = [attempt for attempt in self._attempts if attempt.rank != rank]
        self._admit(sock, rank, PlainRecords() if near else connection.handshake.sealed(), near)


def ask_echo(url: str, headers: Mapping[str, str] | None = None) -> str:
    """Return this process's public address, as an echo service sees it.

    Parameters
    ----------
    url
        Its answer is an address as text, or JSON with the field `sourceIp`.
    headers
        Of the question.

    Raises
    ------
    ChannelError
        It does not answer with an address within `ECHO_S`.
    """
    parts = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    try:
        connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=ECHO_S)
        try:
            connection.request("GET", parts.path or "/", headers=headers or {})
            answer = connection.getresponse()
            text = answer.read(ECHO_BYTES).decode("ascii").strip()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        if text.startswith("{"):
            text = json.loads(text)["sourceIp"]
        address = ipaddress.ip_address(text)
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{address} is not the address of a machine")
        return str(address)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        http.client.HTTPException,
    ) as error:
        raise ChannelError(
            f"the echo service {url} did not answer with an address: {error}"
        ) from error
