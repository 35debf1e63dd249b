"""The handshake of a connection: each side proves that it knows the job's key.

The connector sends HELLO (magic, job, its rank, the rank that it wants, nonce); the
acceptor answers with a nonce and a proof; the connector answers with a proof.  Both
proofs are tags made with the job's key (`core.tags`) over HELLO and the acceptor's
nonce, so neither can be replayed.  Two more tags over them are the connection's secrets:
the farewell, which ends it, so that only the connector can state that nothing follows,
and the key by which TCP is encrypted.  On a Unix socket the kernel also names the
peer's user, which must be this one.

Invariants:

- Everything read before the proof has a fixed length and a deadline, and nothing in
  it raises: a connection that fails is closed.
- Unproven connections are bounded; the oldest is dropped for a new one.
- If the system lacks a file descriptor or memory, accepting pauses and nothing ends.

A thread of its own (`Acceptor`) accepts, so that strangers cost the program nothing.
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
from typing import NamedTuple

from serverless_mpi.core.tags import PROOF_BYTES, Purpose, make, same
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

HANDSHAKE_S = 10.0  # a connection that is not proven after this long is dropped
STRANGERS = 64  # unproven connections at once, in addition to one per rank
ACCEPT_PAUSE_S = 0.1  # after an accept that failed for lack of a file descriptor or memory

MAGIC = b"SMPI/2\r\n"
HELLO = struct.Struct("<8s8sII16s")  # magic, job id, connecting rank, wanted rank, nonce
NONCE_BYTES = 16
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


# errors of accept(2) for which trying again at once is right: the connector is gone
_GONE = (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO)


class Secrets(NamedTuple):
    """What the two ends of one connection know, and nobody else."""

    farewell: bytes  # ends the connection
    key: bytes  # 32 bytes, for encryption

    @classmethod
    def of(cls, key: bytes, hello: bytes, nonce: bytes) -> Secrets:
        """Return the secrets of the connection of a handshake.

        Parameters
        ----------
        key
            The job's key.
        hello
            The HELLO of the connecting rank, as it was sent.
        nonce
            The nonce of the answering rank.
        """
        covered = hello + nonce
        return cls(make(key, Purpose.GOODBYE, covered), make(key, Purpose.STREAM_KEY, covered, 32))


def same_user(sock: socket.socket) -> bool:
    """Return whether the peer is a process of this user; True on TCP, which does not state it.

    Parameters
    ----------
    sock
        A connected socket; borrowed.
    """
    if sock.family != socket.AF_UNIX:
        return True
    _, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return bool(uid == os.geteuid())


def authenticate(
    sock: socket.socket, spec: JobSpec, dest: int, wait: Callable[[], None]
) -> Secrets:
    """Do the handshake as the connector.

    Parameters
    ----------
    sock
        A connected, nonblocking socket.
    spec
        The job, as this rank sees it.
    dest
        The rank that should answer.
    wait
        Returns when the socket may be readable.

    Returns
    -------
    The secrets of the connection.

    Raises
    ------
    OSError
        The peer closed the connection.
    ChannelError
        The peer does not know the job's key, or is another user's process.
    """
    if not same_user(sock):
        raise ChannelError(f"the process that answers for rank {dest} is another user's")
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
        raise ChannelError(
            f"the process that answers for rank {dest} does not know the key of this job"
        )
    sock.send(make(spec.key, Purpose.CONNECT, hello + nonce, PROOF_BYTES))
    return Secrets.of(spec.key, hello, nonce)


class _PendingConnection:
    """A connection whose peer has not proven that it knows the key."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.received = b""
        self.expected = b""  # the peer's proof; empty until HELLO is answered
        self.secrets = Secrets(b"", b"")
        self.rank = -1


class Acceptor(threading.Thread):
    """A thread that accepts connections and passes on those whose peers know the key.

    Parameters
    ----------
    spec
        The job, as this rank sees it.
    listener
        The rank's listening socket; the thread closes it.
    admit
        Called as admit(socket, rank, secrets) in the thread; takes over the connection.
    """

    def __init__(
        self,
        spec: JobSpec,
        listener: socket.socket,
        admit: Callable[[socket.socket, int, Secrets], None],
    ) -> None:
        super().__init__(name="smpi-direct-accept", daemon=True)
        self._spec = spec
        self._listener = listener
        self._admit = admit
        self._stop_read, self._stop_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._pending: dict[socket.socket, _PendingConnection] = {}
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
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pending:
                        self._on_readable(self._pending[key.fileobj])
                self._tick(now)
        finally:
            for pending in list(self._pending.values()):
                self._drop(pending)
            self._selector.close()
            self._listener.close()
            os.close(self._stop_read)

    def stop(self) -> None:
        """End the thread; the listening socket is closed when this returns."""
        os.close(self._stop_write)
        self.join()

    def abandon(self) -> None:
        """Close a forked child's copies of descriptors; the child does not have the thread."""
        for pending in self._pending.values():
            pending.sock.close()
        self._selector.close()
        self._listener.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _patience(self, now: float) -> float | None:
        """Return how many seconds the selector may wait; None for no limit."""
        times = [pending.deadline for pending in self._pending.values()]
        if self._accept_again_at is not None:
            times.append(self._accept_again_at)
        return max(0.0, min(times) - now) if times else None

    def _tick(self, now: float) -> None:
        """Drop connections that took too long, and accept again after a pause."""
        for late in [pending for pending in self._pending.values() if pending.deadline <= now]:
            self._drop(late)
        if self._accept_again_at is not None and self._accept_again_at <= now:
            self._accept_again_at = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self, now: float) -> None:
        """Accept one connection, or pause accepting if the system lacks resources."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno not in _GONE:
                # no descriptor or memory; the listener stays readable, so polling it would spin
                self._selector.unregister(self._listener)
                self._accept_again_at = now + ACCEPT_PAUSE_S
            return
        try:
            acceptable = same_user(sock)
            sock.setblocking(False)
            if acceptable:
                while len(self._pending) >= STRANGERS + self._spec.size:
                    self._drop(min(self._pending.values(), key=lambda pending: pending.deadline))
                self._selector.register(sock, selectors.EVENT_READ)
        except OSError:
            acceptable = False
        if acceptable:
            self._pending[sock] = _PendingConnection(sock, now + HANDSHAKE_S)
        else:
            sock.close()

    def _release(self, pending: _PendingConnection) -> None:
        """Stop watching a connection."""
        self._selector.unregister(pending.sock)
        del self._pending[pending.sock]

    def _drop(self, pending: _PendingConnection) -> None:
        self._release(pending)
        pending.sock.close()

    def _on_readable(self, pending: _PendingConnection) -> None:
        """Receive a part of HELLO or of the proof, and act once it is complete."""
        needed = PROOF_BYTES if pending.expected else HELLO.size
        try:
            got = pending.sock.recv(needed - len(pending.received))
        except BlockingIOError:
            return
        except OSError:
            got = b""
        pending.received += got
        if not got:
            self._drop(pending)
        elif len(pending.received) == needed:
            received, pending.received = pending.received, b""
            if pending.expected:
                self._verify_proof(pending, received)
            else:
                self._answer(pending, received)

    def _answer(self, pending: _PendingConnection, hello: bytes) -> None:
        """Answer HELLO with a nonce and this side's proof."""
        spec = self._spec
        magic, job, source, dest, _nonce = HELLO.unpack(hello)
        if (
            magic != MAGIC
            or job.hex() != spec.job_id
            or dest != spec.rank
            or not 0 <= source < spec.size
        ):
            self._drop(pending)
            return
        nonce = secrets.token_bytes(NONCE_BYTES)
        reply = nonce + make(spec.key, Purpose.ACCEPT, hello + nonce, PROOF_BYTES)
        pending.rank = source
        pending.expected = make(spec.key, Purpose.CONNECT, hello + nonce, PROOF_BYTES)
        pending.secrets = Secrets.of(spec.key, hello, nonce)
        try:
            sent = pending.sock.send(reply)
        except OSError:
            sent = 0
        # an empty socket buffer takes 48 bytes, unless the peer is gone
        if sent != len(reply):
            self._drop(pending)

    def _verify_proof(self, pending: _PendingConnection, proof: bytes) -> None:
        """Admit a connection whose peer has sent the expected proof."""
        if same(proof, pending.expected):
            self._release(pending)
            self._admit(pending.sock, pending.rank, pending.secrets)
        else:
            self._drop(pending)
