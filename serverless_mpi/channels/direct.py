"""direct: framed TCP between ranks that can reach each other.

A connection carries frames one way, from the rank that opened it to the rank
that accepted it: two ranks that talk both ways hold two.  So `put` and `get`
never share a socket, and a connection that is closed never throws away bytes
that are still on their way.  The launcher binds every rank's listening socket
before any rank runs and the rank inherits it, so addresses are known from the
start and connecting early merely waits in the backlog.

Connection:  connector sends HELLO (magic, job, its rank, the rank it wants, nonce);
acceptor answers nonce, MAC; connector answers MAC.  Both MACs are BLAKE2b
keyed with the job's key over both nonces, so each side proves that it knows
the key, freshly, before the first frame.  A small thread does this for whoever
connects; strangers are dropped by it and cost the program nothing.

Frame: length (8 bytes, little endian), then that many bytes; length GOODBYE
ends a connection properly.  A connection that ends otherwise means that the
peer died.
"""

from __future__ import annotations

import collections
import hmac
import os
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from serverless_mpi.channels.base import Channel, Delivery, Figures, Limits, Parcel, Wanted
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

DEFAULT_HOST = "127.0.0.1"
MAX_FRAME_BYTES = 16 << 20  # larger messages travel as several frames, so that checking one overlaps moving the next
AHEAD_BYTES = 64 << 10  # one recv takes many small frames
IOV_MAX = 512  # pieces per sendmsg; Linux allows 1024
HANDSHAKE_S = 10.0  # a stranger that says nothing is dropped after this long
STRANGERS = 64  # connections that may be unproven at once, besides one per rank
CONNECT_S = 30.0  # TCP connect; the socket was bound before the rank started, so this only bounds a broken network
FAREWELL_S = 5.0  # how long close() tries to tell a slow peer that this rank ended properly
SLICE_S = 0.02  # a put that waits looks this often whether it must read as well

MAGIC = b"SMPI/1\r\n"
HELLO = struct.Struct("<8s8sII16s")  # magic, job id, connecting rank, wanted rank, nonce
NONCE_BYTES = 16
MAC_BYTES = 32
LENGTH = struct.Struct("<Q")
GOODBYE = (1 << 64) - 1


def _mac(key: bytes, role: bytes, hello: bytes, nonce: bytes) -> bytes:
    return blake2b(role + hello + nonce, key=key, digest_size=MAC_BYTES).digest()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _space(nbytes: int) -> memoryview:
    """Writable bytes whose content nobody has paid to clear, where that is worth it."""
    return memoryview(bytearray(nbytes)) if nbytes < AHEAD_BYTES else memoryview(np.empty(nbytes, np.uint8))


class _Incoming:
    """A proven connection from `rank`: bytes in, frames out."""

    def __init__(self, sock: socket.socket, rank: int) -> None:
        self.sock = sock
        self.rank = rank
        self.ended = False  # said goodbye
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._have = 0  # bytes of _ahead not yet made into frames
        self._body: memoryview | None = None  # a frame too large for _ahead, being filled
        self._filled = 0

    def read(self, inbox: collections.deque[memoryview]) -> bool:
        """Take what is there; False once the connection is over."""
        while True:
            space = self._ahead[self._have :] if self._body is None else self._body[self._filled :]
            try:
                got = self.sock.recv_into(space)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if got == 0:
                return False
            if self._body is None:
                self._have += got
                if not self._cut(inbox):
                    return False
                if self._body is None and got < len(space):
                    return True  # the socket is drained: no need to ask again
            else:
                self._filled += got
                if self._filled == len(self._body):
                    inbox.append(self._body)
                    self._body = None
                    return True

    def _cut(self, inbox: collections.deque[memoryview]) -> bool:
        """Make frames of what was read ahead."""
        at = 0
        while self._have - at >= LENGTH.size:
            (nbytes,) = LENGTH.unpack_from(self._ahead, at)
            if nbytes == GOODBYE:
                self.ended = True
                return False
            start = at + LENGTH.size
            there = min(nbytes, self._have - start)
            if there < nbytes and LENGTH.size + nbytes <= AHEAD_BYTES:
                break  # small and not complete: wait for the rest
            frame = _space(nbytes)
            frame[:there] = self._ahead[start : start + there]
            at = start + there
            if there == nbytes:
                inbox.append(frame)
            else:
                self._body, self._filled = frame, there
        left = self._have - at
        if at and left:
            self._ahead[:left] = bytes(self._ahead[at : self._have])
        self._have = left
        return True


class _Stranger:
    """A connection whose other side has not proven itself."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self.heard = b""
        self.expected = b""  # the proof that will do, once HELLO was answered
        self.rank = -1


class _Doorkeeper(threading.Thread):
    """Accepts connections and lets in those who know the key."""

    def __init__(self, spec: JobSpec, listener: socket.socket, admit: Callable[[socket.socket, int], None]) -> None:
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
                    patience = max(0.0, min(s.deadline for s in self._strangers.values()) - time.monotonic())
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

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again before it was accepted, or no file descriptor left: the peer sees the error
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
        if magic != MAGIC or job.hex() != spec.job_id or dest != spec.rank or not 0 <= source < spec.size:
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
        if sent != len(reply):  # an empty socket buffer takes 48 bytes, unless the other side is gone
            self._drop(stranger)

    def _judge(self, stranger: _Stranger, proof: bytes) -> None:
        if hmac.compare_digest(proof, stranger.expected):
            self._forget(stranger)
            self._admit(stranger.sock, stranger.rank)
        else:
            self._drop(stranger)


class DirectChannel(Channel):
    """TCP between the ranks of one machine or one private network.

    Settings: `addresses` and `fds`, one word per rank, made by `provision`.
    The setting `host`, if given to `provision`, is the address to bind.
    """

    limits = Limits(max_frame_bytes=MAX_FRAME_BYTES, background=False)
    figures = Figures(latency_s=3e-5, bandwidth_Bps=2e9, put_usd=0.0, get_usd=0.0, fanout=False, batch=64)

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        """Bind one listening socket per rank.

        Raises
        ------
        ChannelError
            The host is no address of this machine.
        """
        host = spec.settings.get("host", DEFAULT_HOST)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        shown = f"[{host}]" if ":" in host else host
        bound: list[socket.socket] = []
        try:
            for _ in range(spec.size):
                sock = socket.socket(family, socket.SOCK_STREAM)
                bound.append(sock)
                sock.bind((host, 0))
                sock.listen(max(128, spec.size))
        except OSError as error:
            for sock in bound:
                sock.close()
            raise ChannelError(
                f"channel direct cannot listen on {host}: {error.strerror or error};"
                " --host takes an address of this machine, 127.0.0.1 always works"
            ) from error
        addresses = " ".join(f"{shown}:{sock.getsockname()[1]}" for sock in bound)
        return {"addresses": addresses, "fds": " ".join(str(sock.detach()) for sock in bound)}

    @classmethod
    def inherited(cls, spec: JobSpec) -> tuple[int, ...]:
        """The listening socket of rank `spec.rank`."""
        fds = spec.settings.get("fds", "").split()
        return (int(fds[spec.rank]),) if fds else ()

    def __init__(self, spec: JobSpec, meter: Any) -> None:
        super().__init__(spec, meter)
        self._addresses = [_address(text) for text in spec.settings["addresses"].split()]
        (fd,) = self.inherited(spec)
        try:
            listener = socket.socket(fileno=fd)
        except OSError as error:
            raise ChannelError(
                f"rank {spec.rank} did not inherit its listening socket ({error.strerror});"
                " a program that starts the rank must pass on its open files"
            ) from error
        listener.set_inheritable(False)
        self._inbox: collections.deque[memoryview] = collections.deque()
        self._fresh: collections.deque[_Incoming] = collections.deque()  # proven, not yet in the selector
        self._outgoing: dict[int, socket.socket] = {}
        self._put_lock = threading.Lock()
        self._get_lock = threading.Lock()  # held by whoever reads: a get, or a put that waits
        self._getting = 0  # gets that hold or want _get_lock
        self._lost: list[int] = []  # ranks whose connection broke
        self._ended: set[int] = set()  # ranks that said goodbye
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._woken = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._door = _Doorkeeper(spec, listener, self._admit)
        self._door.start()

    # -- sending

    def put(self, parcels: Sequence[Parcel]) -> None:
        pending: dict[int, collections.deque[memoryview]] = {}
        nbytes = frames = 0
        mine = False
        for parcel in parcels:
            size = parcel.nbytes
            length = memoryview(LENGTH.pack(size))
            for dest in parcel.dests:
                nbytes += size
                frames += 1
                if dest == self.spec.rank:
                    self._inbox.append(memoryview(bytearray().join(parcel.parts)))
                    mine = True
                    continue
                views = pending.setdefault(dest, collections.deque())
                views.append(length)
                views.extend(part for part in parcel.parts if part.nbytes)
        if mine and self._getting:
            self.wake()
        if pending:
            with self._put_lock:
                self._send(pending)
        self.meter.count("direct", "put", requests=frames, nbytes=nbytes, messages=frames)

    def _send(self, pending: dict[int, collections.deque[memoryview]], deadline: float | None = None) -> None:
        """Write everything; while a socket is full, read, so that two ranks may send to each other at once."""
        for dest in pending:
            if dest not in self._outgoing:
                self._outgoing[dest] = self._connect(dest)
        while True:
            for dest in list(pending):
                if self._write(dest, pending[dest]):
                    del pending[dest]
            if not pending or (deadline is not None and time.monotonic() >= deadline):
                return
            self._wait({self._outgoing[dest].fileno(): select.POLLOUT for dest in pending})

    def _write(self, dest: int, views: collections.deque[memoryview]) -> bool:
        """Write what fits; True when all of it is written."""
        sock = self._outgoing[dest]
        try:
            while views:
                sent = sock.sendmsg([*views] if len(views) <= IOV_MAX else [views[i] for i in range(IOV_MAX)])
                while sent:
                    head = views[0]
                    if sent >= head.nbytes:
                        sent -= head.nbytes
                        views.popleft()
                    else:
                        views[0] = head[sent:]
                        sent = 0
        except BlockingIOError:
            return False
        except OSError as error:
            raise ChannelError(f"rank {self.spec.rank} cannot send to rank {dest}, which {self._fate(dest)}") from error
        return True

    def _fate(self, rank: int) -> str:
        return "has already finalized" if rank in self._ended else "vanished (its process ended or was cut off)"

    def _wait(self, fds: dict[int, int]) -> None:
        """Wait until one of `fds` is ready, reading meanwhile unless a get does."""
        poll = select.poll()
        for fd, mask in fds.items():
            poll.register(fd, mask)
        if not self._getting and self._get_lock.acquire(blocking=False):
            try:
                poll.register(self._selector.fileno(), select.POLLIN)  # type: ignore[attr-defined]
                poll.poll(SLICE_S * 1000)
                self._read(0)
            finally:
                self._get_lock.release()
        else:
            poll.poll(SLICE_S * 1000)

    def _connect(self, dest: int) -> socket.socket:
        """A proven connection to `dest`; waits until that rank has started."""
        spec = self.spec
        if not 0 <= dest < spec.size:
            raise ChannelError(f"rank {dest} is outside 0..{spec.size - 1}")
        host, port = self._addresses[dest]
        where = f"rank {dest} at {host}:{port}"
        try:
            sock = socket.create_connection((host, port), CONNECT_S)
        except OSError as error:
            raise ChannelError(f"{where} cannot be reached by rank {spec.rank}; it {self._fate(dest)}") from error
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = HELLO.pack(MAGIC, bytes.fromhex(spec.job_id), spec.rank, dest, secrets.token_bytes(NONCE_BYTES))
            sock.send(hello)
            reply = b""
            while len(reply) < NONCE_BYTES + MAC_BYTES:
                self._wait({sock.fileno(): select.POLLIN})
                try:
                    got = sock.recv(NONCE_BYTES + MAC_BYTES - len(reply))
                except BlockingIOError:
                    continue
                if not got:
                    raise ConnectionResetError
                reply += got
            nonce, proof = reply[:NONCE_BYTES], reply[NONCE_BYTES:]
            if not hmac.compare_digest(proof, _mac(spec.key, b"accept", hello, nonce)):
                raise ChannelError(f"whoever answers for {where} does not know the key of this job")
            sock.send(_mac(spec.key, b"connect", hello, nonce))
        except OSError as error:
            sock.close()
            raise ChannelError(f"{where} hung up on rank {spec.rank}; it {self._fate(dest)}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    # -- receiving

    def _admit(self, sock: socket.socket, rank: int) -> None:
        """Called by the doorkeeper's thread."""
        self._fresh.append(_Incoming(sock, rank))
        self._nudge()

    def get(self, max_wait_s: float, wanted: Callable[[], list[Wanted]]) -> list[Delivery]:
        self._getting += 1
        try:
            with self._get_lock:
                if not self._inbox:
                    self._read(0 if self._woken or self._lost else max_wait_s)
                self._woken = False
                frames = []
                while self._inbox:
                    frames.append(Delivery(self._inbox.popleft(), None))
        finally:
            self._getting -= 1
        if not frames and self._lost and not self._closed:
            raise ChannelError(
                f"rank {self._lost[0]} vanished: its connection to rank {self.spec.rank} broke without a goodbye"
            )
        return frames

    def _read(self, max_wait_s: float) -> None:
        """Read what comes until there is a frame, a wake, a lost peer, or the time is over."""
        left = max_wait_s
        deadline = time.monotonic() + left if left > 0 else 0.0
        while True:
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._settle()
                elif not key.data.read(self._inbox):
                    self._hang_up(key.data)
            if self._inbox or self._woken or self._lost or left <= 0:
                return
            left = deadline - time.monotonic()

    def _settle(self) -> None:
        """Take in the nudges: wakes, and connections that were just proven."""
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        while self._fresh:
            connection = self._fresh.popleft()
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)

    def _hang_up(self, connection: _Incoming) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        if connection.ended:
            self._ended.add(connection.rank)
        else:
            self._lost.append(connection.rank)

    def wake(self) -> None:
        self._woken = True
        self._nudge()

    def _nudge(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:  # the pipe is full of nudges: one more would say nothing new
            pass

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._door.stop()
        goodbye = memoryview(LENGTH.pack(GOODBYE))
        deadline = time.monotonic() + FAREWELL_S
        with self._put_lock:
            for dest, sock in self._outgoing.items():
                try:
                    self._send({dest: collections.deque([goodbye])}, deadline)
                except ChannelError:  # it ended first: there is nobody to say goodbye to
                    pass
                sock.close()
            self._outgoing.clear()
        with self._get_lock:
            self._settle()
            for key in list(self._selector.get_map().values()):
                if key.data is not None:
                    key.data.sock.close()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
