"""How ranks prove to each other that they know the job's key before the first frame of a connection.

The connector sends HELLO (magic, job, its rank, the rank it wants, nonce); the acceptor answers nonce, proof; the
connector answers proof.  Both proofs are tags made with the job's key (`core.tags`) over HELLO and both nonces, so each
side proves that it knows the key, freshly.  A third tag over the same, the farewell, ends the connection: only the
connector can say that nothing more will come.  On a Unix socket the other side must also be a process of the same user,
which the kernel says.  A small thread does this for whoever connects; strangers are dropped by it and cost the program
nothing.

Until a connection is proven, everything read from it has a fixed length, and nothing that it carries is believed or
raises: a connection that fails is closed.  What the system refuses for want of resources (a file descriptor, memory)
pauses accepting and ends nothing.
"""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

from serverless_mpi.core.tags import PROOF_BYTES, Purpose, make, same
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

HANDSHAKE_S = 10.0  # a stranger that says nothing is dropped after this long
STRANGERS = 64  # connections that may be unproven at once, besides one per rank

ACCEPT_PAUSE_S = (
    0.1  # no accept for this long after the system had no file descriptor or memory for one
)

MAGIC = b"SMPI/2\r\n"
HELLO = struct.Struct("<8s8sII16s")  # magic, job id, connecting rank, wanted rank, nonce
NONCE_BYTES = 16
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


# errors of accept(2) that end at once: nobody is there any more, or was
_GONE = (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO)


def farewell(key: bytes, hello: bytes, nonce: bytes) -> bytes:
    """What ends the connection of this handshake."""
    return make(key, Purpose.GOODBYE, hello + nonce)


def same_user(sock: socket.socket) -> bool:
    """Whether the other end of a Unix socket is a process of this user; TCP does not know."""
    if sock.family != socket.AF_UNIX:
        return True
    _, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return bool(uid == os.geteuid())


def authenticate(sock: socket.socket, spec: JobSpec, dest: int, wait: Callable[[], None]) -> bytes:
    """Prove to rank `dest` who this is, see that it is who it should be, and return the connection's farewell.

    sock: does not block; wait: returns when it may have something to read.

    Raises
    ------
    OSError
        The other side hung up.
    ChannelError
        It does not know the key, or is another user's.
    """
    if not same_user(sock):
        raise ChannelError(f"whoever answers for rank {dest} is another user's process")
    hello = HELLO.pack(
        MAGIC, bytes.fromhex(spec.job_id), spec.rank, dest, secrets.token_bytes(NONCE_BYTES)
    )
    sock.send(hello)
    reply = b""
    while len(reply) < NONCE_BYTES + PROOF_BYTES:
        wait()
        try:
            got = sock.recv(NONCE_BYTES + PROOF_BYTES - len(reply))
        except BlockingIOError:
            continue
        if not got:
            raise ConnectionResetError
        reply += got
    nonce, proof = reply[:NONCE_BYTES], reply[NONCE_BYTES:]
    if not same(proof, make(spec.key, Purpose.ACCEPT, hello + nonce, PROOF_BYTES)):
        raise ChannelError(f"whoever answers for rank {dest} does not know the key of this job")
    sock.send(make(spec.key, Purpose.CONNECT, hello + nonce, PROOF_BYTES))
    return farewell(spec.key, hello, nonce)


class _PendingConnection:
    """A connection whose other side has not proven itself."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.heard = b""
        self.expected = b""  # the proof that will do, once HELLO was answered
        self.farewell = b""
        self.rank = -1


class Acceptor(threading.Thread):
    """Accepts connections and lets in those who know the key."""

    def __init__(
        self,
        spec: JobSpec,
        listener: socket.socket,
        admit: Callable[[socket.socket, int, bytes], None],
    ) -> None:
        """admit(sock, rank, farewell): takes a connection that rank `rank` has proven."""
        super().__init__(name="smpi-direct-accept", daemon=True)
        self._spec = spec
        self._listener = listener
        self._admit = admit
        self._stop_read, self._stop_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._strangers: dict[socket.socket, _PendingConnection] = {}
        self._accept_again_at: float | None = None  # accepting is paused until then
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop_read, selectors.EVENT_READ)

    def run(self) -> None:
        try:
            while True:
                events = self._selector.select(self._patience(time.monotonic()))
                if any(key.fileobj == self._stop_read for key, _ in events):
                    return
                now = time.monotonic()
                for key, _ in events:
                    if key.fileobj is self._listener:
                        self._accept(now)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._strangers:
                        self._hear(self._strangers[key.fileobj])
                self._tick(now)
        finally:
            for stranger in list(self._strangers.values()):
                self._drop(stranger)
            self._selector.close()
            self._listener.close()
            os.close(self._stop_read)

    def stop(self) -> None:
        """End the thread; the listening socket is closed when this returns."""
        os.close(self._stop_write)
        self.join()

    def abandon(self) -> None:
        """In a forked child, which has no such thread: close the child's copies of descriptors."""
        for stranger in self._strangers.values():
            stranger.sock.close()
        self._selector.close()
        self._listener.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _patience(self, now: float) -> float | None:
        """How long the selector may wait; None for ever."""
        times = [stranger.deadline for stranger in self._strangers.values()]
        if self._accept_again_at is not None:
            times.append(self._accept_again_at)
        return max(0.0, min(times) - now) if times else None

    def _tick(self, now: float) -> None:
        """Do what is due."""
        for stranger in [s for s in self._strangers.values() if s.deadline <= now]:
            self._drop(stranger)
        if self._accept_again_at is not None and self._accept_again_at <= now:
            self._accept_again_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self, now: float) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno not in _GONE:
                # no file descriptor or memory: the listener stays ready, so to ask it again at once would spin
                self._selector.unregister(self._listener)
                self._accept_again_at = now + ACCEPT_PAUSE_S
            return
        try:
            welcome = same_user(sock)
            sock.setblocking(False)
            if welcome:
                while len(self._strangers) >= STRANGERS + self._spec.size:
                    self._drop(min(self._strangers.values(), key=lambda s: s.deadline))
                self._selector.register(sock, selectors.EVENT_READ)
        except OSError:
            welcome = False
        if welcome:
            self._strangers[sock] = _PendingConnection(sock, now + HANDSHAKE_S)
        else:
            sock.close()

    def _forget(self, stranger: _PendingConnection) -> None:
        self._selector.unregister(stranger.sock)
        del self._strangers[stranger.sock]

    def _drop(self, stranger: _PendingConnection) -> None:
        self._forget(stranger)
        stranger.sock.close()

    def _hear(self, stranger: _PendingConnection) -> None:
        needed = PROOF_BYTES if stranger.expected else HELLO.size
        try:
            got = stranger.sock.recv(needed - len(stranger.heard))
        except BlockingIOError:
            return
        except OSError:
            got = b""
        stranger.heard += got
        if not got:
            self._drop(stranger)
        elif len(stranger.heard) == needed:
            heard, stranger.heard = stranger.heard, b""
            if stranger.expected:
                self._verify_proof(stranger, heard)
            else:
                self._answer(stranger, heard)

    def _answer(self, stranger: _PendingConnection, hello: bytes) -> None:
        spec = self._spec
        magic, job, source, dest, _nonce = HELLO.unpack(hello)
        if (
            magic != MAGIC
            or job.hex() != spec.job_id
            or dest != spec.rank
            or not 0 <= source < spec.size
        ):
            self._drop(stranger)
            return
        nonce = secrets.token_bytes(NONCE_BYTES)
        reply = nonce + make(spec.key, Purpose.ACCEPT, hello + nonce, PROOF_BYTES)
        stranger.rank = source
        stranger.expected = make(spec.key, Purpose.CONNECT, hello + nonce, PROOF_BYTES)
        stranger.farewell = farewell(spec.key, hello, nonce)
        try:
            sent = stranger.sock.send(reply)
        except OSError:
            sent = 0
        if sent != len(
            reply
        ):  # an empty socket buffer takes 48 bytes, unless the other side is gone
            self._drop(stranger)

    def _verify_proof(self, stranger: _PendingConnection, proof: bytes) -> None:
        if same(proof, stranger.expected):
            self._forget(stranger)
            self._admit(stranger.sock, stranger.rank, stranger.farewell)
        else:
            self._drop(stranger)
