"""How ranks prove to each other that they know the job's key before the first frame of a connection.

The connector sends HELLO (magic, job, its rank, the rank it wants, nonce); the acceptor answers nonce, MAC; the
connector answers MAC.  Both MACs are BLAKE2b keyed with the job's key over both nonces, so each side proves that it
knows the key, freshly.  On a Unix socket the other side must also be a process of the same user, which the kernel
says.  A small thread does this for whoever connects; strangers are dropped by it and cost the program nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from hashlib import blake2b

from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

HANDSHAKE_S = 10.0  # a stranger that says nothing is dropped after this long
STRANGERS = 64  # connections that may be unproven at once, besides one per rank

MAGIC = b"SMPI/1\r\n"
HELLO = struct.Struct("<8s8sII16s")  # magic, job id, connecting rank, wanted rank, nonce
NONCE_BYTES = 16
MAC_BYTES = 32
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def _mac(key: bytes, role: bytes, hello: bytes, nonce: bytes) -> bytes:
    return blake2b(role + hello + nonce, key=key, digest_size=MAC_BYTES).digest()


def same_user(sock: socket.socket) -> bool:
    """Whether the other end of a Unix socket is a process of this user; TCP does not know."""
    if sock.family != socket.AF_UNIX:
        return True
    _, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return bool(uid == os.geteuid())


def introduce(sock: socket.socket, spec: JobSpec, dest: int, wait: Callable[[], None]) -> None:
    """Prove to rank `dest` who this is, and see that it is who it should be.

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
    while len(reply) < NONCE_BYTES + MAC_BYTES:
        wait()
        try:
            got = sock.recv(NONCE_BYTES + MAC_BYTES - len(reply))
        except BlockingIOError:
            continue
        if not got:
            raise ConnectionResetError
        reply += got
    nonce, proof = reply[:NONCE_BYTES], reply[NONCE_BYTES:]
    if not hmac.compare_digest(proof, _mac(spec.key, b"accept", hello, nonce)):
        raise ChannelError(f"whoever answers for rank {dest} does not know the key of this job")
    sock.send(_mac(spec.key, b"connect", hello, nonce))


class _Stranger:
    """A connection whose other side has not proven itself."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.heard = b""
        self.expected = b""  # the proof that will do, once HELLO was answered
        self.rank = -1


class Doorkeeper(threading.Thread):
    """Accepts connections and lets in those who know the key."""

    def __init__(
        self, spec: JobSpec, listener: socket.socket, admit: Callable[[socket.socket, int], None]
    ) -> None:
        super().__init__(name="smpi-direct-accept", daemon=True)
        self._spec = spec
        self._listener = listener
        self._admit = admit
        self._stop_read, self._stop_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._strangers: dict[socket.socket, _Stranger] = {}

    def run(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        try:
            while True:
                patience = None
                if self._strangers:
                    patience = max(
                        0.0, min(s.deadline for s in self._strangers.values()) - time.monotonic()
                    )
                for key, _ in self._selector.select(patience):
                    if key.fileobj == self._stop_read:
                        return
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._strangers:
                        self._hear(self._strangers[key.fileobj])
                now = time.monotonic()
                for stranger in [s for s in self._strangers.values() if s.deadline <= now]:
                    self._drop(stranger)
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

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (
            OSError
        ):  # gone again before it was accepted, or no file descriptor left: the peer sees the error
            return
        if not same_user(sock):
            sock.close()
            return
        sock.setblocking(False)
        while len(self._strangers) >= STRANGERS + self._spec.size:
            self._drop(min(self._strangers.values(), key=lambda s: s.deadline))
        self._strangers[sock] = _Stranger(sock, time.monotonic() + HANDSHAKE_S)
        self._selector.register(sock, selectors.EVENT_READ)

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.sock)
        del self._strangers[stranger.sock]

    def _drop(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        stranger.sock.close()

    def _hear(self, stranger: _Stranger) -> None:
        needed = MAC_BYTES if stranger.expected else HELLO.size
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
                self._judge(stranger, heard)
            else:
                self._answer(stranger, heard)

    def _answer(self, stranger: _Stranger, hello: bytes) -> None:
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
        reply = nonce + _mac(spec.key, b"accept", hello, nonce)
        stranger.rank = source
        stranger.expected = _mac(spec.key, b"connect", hello, nonce)
        try:
            sent = stranger.sock.send(reply)
        except OSError:
            sent = 0
        if sent != len(
            reply
        ):  # an empty socket buffer takes 48 bytes, unless the other side is gone
            self._drop(stranger)

    def _judge(self, stranger: _Stranger, proof: bytes) -> None:
        if hmac.compare_digest(proof, stranger.expected):
            self._forget(stranger)
            self._admit(stranger.sock, stranger.rank)
        else:
            self._drop(stranger)
