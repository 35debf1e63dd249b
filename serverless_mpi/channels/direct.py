"""direct: frames between ranks by Unix sockets and shared memory on one machine, by TCP otherwise.

A connection carries frames one way, from the rank that opened it to the rank
that accepted it; two ranks that exchange frames hold two.  So `put` and `get`
never share a socket, and closing a connection never discards bytes in transit.
The launcher binds every rank's listening socket before any rank runs, and the rank
inherits it: addresses are known from the start, and an early connection waits in
the backlog.  `handshake.py` has the mutual proof of the job key.

A frame is its length (8 bytes, little endian) and that many bytes.  The length
GOODBYE, followed by the farewell of the handshake, ends the connection properly.
A connection that ends otherwise means that the peer died.

On one machine a connection begins with a ring (`ring.py`): shared memory through which
short frames go.  Longer ones, and those that find the ring full, take the socket; so
frames may overtake each other, as on any channel.  The socket keeps all other duties:
it proves who the peer is, and that it lives.

A get that waits looks for SPIN_S before it sleeps, if each rank has a core: a process
that slept takes longer to resume than a short message takes to arrive.  It does so
every time, although a look that finds nothing is wasted: the kernel leaves two ranks
that mostly sleep on one core, and moves one of two that run.

Invariants:

- Only the user's own processes can connect to a Unix socket, and what goes by TCP is
  encrypted and authenticated (`sealing.py`), so the transport is trusted (see `Limits`):
  the body of a long frame is received into the memory of the receive that waits for it.
- A frame longer than MAX_FRAME_BYTES, or a wrong farewell, breaks the connection before
  any memory is allocated for it.
- What a rank wrote into a ring before it said goodbye, or died, is taken before that is noticed.
- What is sent to a rank that has finalized MPI is discarded, as if the rank took it: a send may
  outlast the rank that does not receive it.
- A put whose socket is full reads meanwhile, unless a get does, so two ranks that
  send to each other do not deadlock.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serverless_mpi.channels.base import (
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.channels.buffers import uninitialized
from serverless_mpi.channels.handshake import Acceptor, Secrets, authenticate
from serverless_mpi.channels.ring import MOST_BYTES, RingReader, RingWriter, barrier, usable
from serverless_mpi.channels.sockets import StreamError, Waker, write
from serverless_mpi.core.tags import TAG_BYTES, same
from serverless_mpi.core.wire import HEADER_BYTES
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.plugins import resolve

if TYPE_CHECKING:
    from serverless_mpi.channels.sealing import SealedStream, Sealer

MAX_FRAME_BYTES = 16 << 20  # so that verifying one frame overlaps receiving the next
AHEAD_BYTES = 64 << 10  # of a receive buffer: one recv takes many small frames
SOCKET_BYTES = 1 << 20  # requested buffer of a Unix socket; net.core.wmem_max limits it
COUNTERS_S = 1.0  # within which a rank that closes its channel leaves its counters
CONNECT_S = (
    30.0  # the peer's socket is bound before any rank starts: only a broken network takes long
)
FAREWELL_S = 5.0  # longest wait of close() for a peer that reads slowly
SPIN_S = 200e-6  # how long a get looks before it sleeps; a process that slept takes 60 us to resume
YIELD_S = 20e-6  # from then on it lets another process run between polls: the peer, perhaps
# measured on two cores with benchmarks/collectives.py
FIGURES = CostParameters(
    latency_s=1e-4,
    bandwidth_Bps=8e9,
    put_usd=0.0,
    get_usd=0.0,
    fanout=False,
    batch=64,
    put_s=2e-5,
    get_s=4e-5,
)
SLICE_S = 0.02  # a put that waits checks this often whether a get reads

INSTALL = 'pip install "serverless-mpi[links]"'
SEALING = "serverless_mpi.channels.sealing"
LENGTH = struct.Struct("<Q")
GOODBYE = (1 << 64) - 1
RING = (1 << 64) - 2  # first on a connection: the memory of a ring comes with it
RING_RANKS = 16  # most ranks with rings: a reader looks into every ring
SOCKETS_EVERY = 16  # of so many reads one looks at the sockets first, however full the rings are
LOOKS = 4  # looks into the rings per look at the sockets
_PREFIX = LENGTH.size + HEADER_BYTES
JOINED_BYTES = MOST_BYTES - _PREFIX  # a body of at most this is copied behind its header
_NOTHING = memoryview(b"")

Land = Callable[[memoryview, int], Any] | None


def _address(text: str) -> tuple[str, int] | str:
    """Parse an address of the settings: host:port, or @ and a Unix socket's abstract name."""
    if text.startswith("@"):
        return "\0" + text[1:]
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class _Incoming:
    """An authenticated connection from `rank`: bytes in, frames out."""

    def __init__(
        self,
        sock: socket.socket,
        rank: int,
        farewell: bytes,
        may_ring: bool = False,
        stream: SealedStream | None = None,
    ) -> None:
        self.sock = sock
        self.ring: RingReader | None = None
        self._opening = may_ring  # its first bytes may bring a ring
        self.rank = rank
        self.ended = False  # by the peer's farewell
        self.fault = "broke without a goodbye"  # otherwise, in an error text
        self._farewell = farewell
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._sealed = stream is not None
        self._recv_into: Callable[[memoryview], int] = (stream or sock).recv_into
        self._have = 0  # bytes in _ahead that are not part of a frame yet
        self._long: Delivery | None = None  # a frame that is too long for _ahead,
        self._body = _NOTHING  # the memory that receives it,
        self._filled = 0  # and how much of that is received

    def read(self, inbox: list[Delivery], land: Land) -> bool:
        """Receive what has arrived; return False once the connection is over."""
        if self._opening and not self._open(land):
            return False
        while True:
            if self._long is not None:
                free = self._body[self._filled :]
            else:
                free = self._ahead[self._have :] if self._have else self._ahead
            try:
                got = self._recv_into(free)
            except BlockingIOError:
                return True
            except OSError as error:
                if isinstance(error, StreamError):
                    self.fault = str(error)
                return False
            if got == 0:
                return False
            if self._long is None:
                self._have += got
                if not self._cut(inbox, land):
                    return False
                more = self._long is not None or got == len(free)
            else:
                self._filled += got
                more = self._filled < len(self._body)
                if not more:
                    inbox.append(self._long)
                    self._long, self._body = None, _NOTHING
            # A socket that is drained need not be asked again, and the poll reports one that is
            # not.  It does not know of what a stream has decrypted.
            if not (more or self._sealed):
                return True

    def _open(self, land: Land) -> bool:
        """Receive the first bytes of a connection, which may bring a ring."""
        try:
            first, fds, _, _ = socket.recv_fds(self.sock, LENGTH.size, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._opening = False
        try:
            if len(fds) == 2 and first == LENGTH.pack(RING):
                self.ring = RingReader(*fds)
                del fds[1]
                return True
        except (OSError, ValueError):
            return self._refuse("passed something else than a ring")
        finally:
            for fd in fds:
                os.close(fd)
        self._ahead[: len(first)] = first
        self._have = len(first)
        return bool(first)

    def _cut(self, inbox: list[Delivery], land: Land) -> bool:
        """Cut what was received into frames; return False if the connection is over."""
        at = 0
        while self._have - at >= LENGTH.size:
            (nbytes,) = LENGTH.unpack_from(self._ahead, at)
            start = at + LENGTH.size
            if nbytes > MAX_FRAME_BYTES:
                if nbytes != GOODBYE:
                    return self._refuse(f"announced a frame of {nbytes} bytes")
                if self._have - start < TAG_BYTES:
                    break
                if not same(self._ahead[start : start + TAG_BYTES], self._farewell):
                    return self._refuse("carried a goodbye that the rank did not send")
                self.ended = True
                return False
            if self._have - start >= nbytes:
                at = start + nbytes
                inbox.append(Delivery(memoryview(bytearray(self._ahead[start:at])), None))
            elif LENGTH.size + nbytes <= AHEAD_BYTES or self._have - at < _PREFIX:
                break  # wait for the rest of the frame, or of a long frame's header
            else:
                self._begin(self._ahead[start : self._have], nbytes, land)
                at = self._have
        left = self._have - at
        if at and left:
            self._ahead[:left] = bytes(self._ahead[at : self._have])
        self._have = left
        return True

    def _refuse(self, what: str) -> bool:
        """Break the connection: an honest peer would not have sent this."""
        self.fault = f"{what}, so its bytes were damaged or changed in transit"
        return False

    def _begin(self, there: memoryview, nbytes: int, land: Land) -> None:
        """Begin a long frame of `nbytes` of which `there`, at least its header, has arrived."""
        landing = land(there[:HEADER_BYTES], nbytes - HEADER_BYTES) if land is not None else None
        if landing is None:
            self._body = uninitialized(nbytes)
            self._long = Delivery(self._body, None)
        else:
            self._body = landing.memory
            self._long = Delivery(_NOTHING, None, landing)
            there = there[HEADER_BYTES:]
        self._body[: there.nbytes] = there
        self._filled = there.nbytes


class DirectChannel(Channel):
    """Streams between the ranks of one machine or one private network.

    Settings that `provision` makes: `addresses` and `fds`, one word per rank, and `lanes`, the
    number of cores that the ranks share.  Setting that it takes: `host`, the address to listen on
    by TCP; Unix sockets without it.
    """

    limits = Limits(max_frame_bytes=MAX_FRAME_BYTES, async_put=False, trusted_transport=True)
    figures = FIGURES
    options = frozenset({"host"})
    platforms = frozenset({"local"})  # a function of Lambda accepts no connections
    model = "serverless_mpi.simulation.media:Parametric"

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        """Bind one listening socket per rank.

        Parameters
        ----------
        spec
            The job; the setting `host` is the address to listen on by TCP.

        Returns
        -------
        dict[str, str]
            The settings `addresses`, `fds` and `lanes`.  The caller owns the descriptors in `fds`.

        Raises
        ------
        ChannelError
            The host is not an address of this machine, or the package that encrypts is missing.
        """
        host = spec.settings.get("host")
        if host is not None and not resolve("serverless_mpi.channels.link:CAN_SEAL"):
            raise ChannelError(f"--host needs the package cryptography, which encrypts: {INSTALL}")
        bound: list[socket.socket] = []
        addresses = []
        try:
            for _ in range(spec.size):
                if host is None:
                    family = socket.AF_UNIX
                else:
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = socket.socket(family, socket.SOCK_STREAM)
                bound.append(sock)
                sock.bind("" if host is None else (host, 0))  # the kernel picks a free name or port
                sock.listen(max(128, spec.size))
                name = sock.getsockname()
                if host is None:
                    addresses.append("@" + name[1:].decode())
                else:
                    addresses.append(f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}")
        except OSError as error:
            for sock in bound:
                sock.close()
            raise ChannelError(
                f"channel direct cannot listen on {host or 'a Unix socket'}:"
                f" {error.strerror or error};"
                " --host takes an address of this machine, 127.0.0.1 always works"
            ) from error
        return {
            "addresses": " ".join(addresses),
            "fds": " ".join(str(sock.detach()) for sock in bound),
            "lanes": str(os.cpu_count() or 1),
        }

    @classmethod
    def inherited(cls, spec: JobSpec) -> tuple[int, ...]:
        fds = spec.settings.get("fds", "").split()
        return (int(fds[spec.rank]),) if fds else ()

    def __init__(self, spec: JobSpec, meter: Any) -> None:
        super().__init__(spec, meter)
        self._addresses = [_address(text) for text in spec.settings["addresses"].split()]
        self.figures = replace(FIGURES, parallelism=int(spec.settings.get("lanes", "0")))
        unix = all(isinstance(address, str) for address in self._addresses)
        self._seals = not unix
        (fd,) = self.inherited(spec)
        try:
            listener = socket.socket(fileno=fd)
        except OSError as error:
            raise ChannelError(
                f"rank {spec.rank} did not inherit its listening socket ({error.strerror});"
                " a program that starts the rank must pass on its open files"
            ) from error
        listener.set_inheritable(False)
        self._inbox: list[Delivery] = []
        self._fresh: collections.deque[_Incoming] = (
            collections.deque()
        )  # authenticated, not yet polled
        self._may_ring = unix and spec.size <= RING_RANKS and usable()
        self._rings: dict[int, RingWriter] = {}  # of outgoing connections
        self._ringed: list[_Incoming] = []  # connections that have a ring
        self._bells: set[int] = set()  # their descriptors
        self._turn = 0  # of reading, see SOCKETS_EVERY
        self._outgoing: dict[int, socket.socket] = {}
        self._farewells: dict[int, bytes] = {}  # of the outgoing connections
        self._sealers: dict[int, Sealer] = {}  # of those by TCP
        self._put_lock = threading.Lock()
        self._counts: list[int] | None = None  # of puts, in the meter
        self._get_lock = threading.Lock()  # held while reading: by a get, or a put that waits
        self._getting = 0  # gets that hold or want _get_lock
        self._lost: list[_Incoming] = []  # connections that broke
        self._ended: set[int] = set()  # ranks whose connection ended by a farewell
        # the launcher reports ranks that die: a broken connection is not an error of this rank
        self._tolerant = "notices" in spec.settings
        self._gone: set[int] = set()  # tolerant: ranks to which a connection broke
        self._peer_ended: Callable[[int, bool], None] | None = None  # see watch_peers
        self._closed = False
        self._waker = Waker()
        self._woken = False
        # with fewer cores than ranks, a rank that looks keeps the one it waits for from its core
        self._spins = spec.size <= len(os.sched_getaffinity(0))
        self._poll = select.epoll()
        self._poll.register(self._waker.fileno(), select.EPOLLIN)
        self._incoming: dict[int, _Incoming] = {}  # by file descriptor
        self._acceptor = Acceptor(spec, listener, self._admit)
        self._acceptor.start()

    # -- sending

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        # One short frame is the usual case: it is joined and written at once, and in this function,
        # which saves Python calls.  A copy of some KB costs less than a list of pieces.
        frame = parcels[0]
        parts = frame.parts
        if len(parcels) != 1 or not 0 < len(parts) <= 2 or parts[-1].nbytes > JOINED_BYTES:
            self._put_batch(parcels)
            return
        data = b"".join(parts)
        nbytes = len(data)
        data = LENGTH.pack(nbytes) + data
        with self._put_lock:
            for dest in frame.dests:
                ring = self._rings.get(dest)
                if ring is None or not ring.put(data):
                    self._write_short(dest, data)
            self._count(len(frame.dests), len(frame.dests) * nbytes)

    def _write_short(self, dest: int, data: bytes) -> None:
        """Under the put lock: write a short frame to a socket."""
        try:
            sent = 0 if self._seals else self._outgoing[dest].send(data)
        except (KeyError, OSError):  # not connected, full or broken: `_send` finds out
            sent = 0
        if sent < len(data):
            self._send({dest: collections.deque([memoryview(data)[sent:]])})

    def _put_batch(self, parcels: Sequence[OutgoingFrame]) -> None:
        """Put any frames, those for one rank in as few system calls as possible."""
        pending: dict[int, collections.deque[memoryview]] = {}
        nbytes = frames = 0
        for frame in parcels:
            size = frame.nbytes
            length = memoryview(LENGTH.pack(size))
            for dest in frame.dests:
                nbytes += size
                frames += 1
                views = pending.get(dest)
                if views is None:
                    views = pending[dest] = collections.deque()
                views.append(length)
                views.extend([part for part in frame.parts if part.nbytes])
        with self._put_lock:
            self._send(pending)
            self._count(frames, nbytes)

    def _count(self, frames: int, nbytes: int) -> None:
        """Under the put lock: count frames that were put."""
        row = self._counts
        if row is None:
            row = self._counts = self.meter.row("direct", "put")
        row[0] += frames
        row[1] += frames
        row[2] += nbytes
        row[3] += frames

    def _send(
        self, pending: dict[int, collections.deque[memoryview]], deadline: float | None = None
    ) -> None:
        """Write everything until `deadline`; read while a socket is full."""
        for dest in list(pending):
            if dest in self._gone:
                del pending[dest]
            elif dest not in self._outgoing:
                try:
                    self._outgoing[dest] = self._connect(dest)
                except ChannelError:
                    if not self._tolerant and not self._finalized(dest):
                        raise
                    self._gone.add(dest)
                    del pending[dest]
        for dest in pending if self._seals else ():
            pending[dest] = self._sealers[dest].seal(pending[dest])
        while True:
            for dest in list(pending):
                if self._write(dest, pending[dest]):
                    del pending[dest]
            if not pending or (deadline is not None and time.monotonic() >= deadline):
                return
            self._wait({self._outgoing[dest].fileno(): select.POLLOUT for dest in pending})

    def _write(self, dest: int, views: collections.deque[memoryview]) -> bool:
        """Write what a socket accepts; return whether everything is written."""
        try:
            return write(self._outgoing[dest], views)
        except OSError as error:
            if self._tolerant or self._finalized(dest):
                self._gone.add(dest)
                return True
            raise ChannelError(
                f"rank {self.spec.rank} cannot send to rank {dest}, which {self._fate(dest)}"
            ) from error

    def _finalized(self, rank: int) -> bool:
        """Return whether a rank has finalized MPI: it said goodbye, or has left its counters.

        It leaves them just after its channel has been closed, so they are waited for.
        """
        if rank in self._ended:
            return True
        if self.spec.stats_dir is None:
            return False
        counters = Path(self.spec.stats_dir, f"rank-{rank}.json")
        deadline = time.monotonic() + COUNTERS_S
        while not counters.exists():
            if time.monotonic() >= deadline:
                return False
            time.sleep(COUNTERS_S / 100)
        return True

    def _fate(self, rank: int) -> str:
        """Return what became of a rank, for an error text."""
        return (
            "has already finalized"
            if rank in self._ended
            else "vanished (its process ended or was cut off)"
        )

    def _wait(self, fds: dict[int, int]) -> None:
        """Wait until one of `fds` is ready; read meanwhile unless a get does."""
        poll = select.poll()
        for fd, mask in fds.items():
            poll.register(fd, mask)
        if not self._getting and self._get_lock.acquire(blocking=False):
            try:
                poll.register(self._poll.fileno(), select.POLLIN)
                poll.poll(SLICE_S * 1000)
                self._read(0)
            finally:
                self._get_lock.release()
        else:
            poll.poll(SLICE_S * 1000)

    def _connect(self, dest: int) -> socket.socket:
        """Return an authenticated connection to `dest`, once that rank has started."""
        spec = self.spec
        if not 0 <= dest < spec.size:
            raise ChannelError(f"rank {dest} is outside 0..{spec.size - 1}")
        address = self._addresses[dest]
        where = f"rank {dest} at {address[1:] if isinstance(address, str) else '%s:%d' % address}"
        try:
            if isinstance(address, str):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(CONNECT_S)
                sock.connect(address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            else:
                sock = socket.create_connection(address, CONNECT_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ChannelError(
                f"{where} cannot be reached by rank {spec.rank}; it {self._fate(dest)}"
            ) from error
        try:
            sock.setblocking(False)
            secrets = authenticate(
                sock, spec, dest, lambda: self._wait({sock.fileno(): select.POLLIN})
            )
        except OSError as error:
            sock.close()
            raise ChannelError(
                f"{where} hung up on rank {spec.rank}; it {self._fate(dest)}"
            ) from error
        except BaseException:
            sock.close()
            raise
        self._farewells[dest] = secrets.farewell
        if self._seals:
            self._sealers[dest] = resolve(f"{SEALING}:Sealer")(secrets.key)
        elif self._may_ring:
            self._pass_ring(sock, dest)
        return sock

    def _pass_ring(self, sock: socket.socket, dest: int) -> None:
        """Give a new connection a ring; without memory for it, frames take the socket."""
        try:
            ring = RingWriter()
        except OSError:
            return
        try:
            ring.send(sock, LENGTH.pack(RING))  # an empty socket buffer takes 8 bytes
        except OSError:  # the peer is gone: the first put finds out
            ring.close()
        else:
            self._rings[dest] = ring

    # -- receiving

    def _admit(self, sock: socket.socket, rank: int, secrets: Secrets) -> None:
        """Take over an authenticated connection; the acceptor's thread calls this."""
        stream = resolve(f"{SEALING}:SealedStream")(sock, secrets.key) if self._seals else None
        self._fresh.append(_Incoming(sock, rank, secrets.farewell, self._may_ring, stream))
        self._waker.wake()

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        self._getting += 1
        try:
            with self._get_lock:
                if self._closed:
                    return []
                if not self._inbox:
                    self._read(0 if self._woken or self._lost else max_wait_s)
                self._woken = False
                frames, self._inbox = self._inbox, []
        finally:
            self._getting -= 1
        if not frames and self._lost and not self._closed:
            lost = self._lost[0]
            raise ChannelError(
                f"rank {lost.rank} vanished: its connection to rank {self.spec.rank} {lost.fault}"
            )
        return frames

    def _take(self) -> bool:
        """Take the frames that are in rings; return whether there is any frame."""
        for connection in self._ringed:
            ring = connection.ring
            # an empty ring is found out by `take` too, so `waiting` would be one more call
            if ring is not None and not ring.take(self._inbox):
                connection.fault = "wrote no frames into its shared memory"
                self._hang_up(connection.sock.fileno(), connection)
                break
        return bool(self._inbox)

    def _read(self, max_wait_s: float) -> None:
        """Read until there is a frame, a wake or a lost peer, or the time is over."""
        self._turn += 1
        if max_wait_s > 0 and self._turn % SOCKETS_EVERY and self._take():
            return
        events = self._poll.poll(0)
        deadline = 0.0
        while True:
            for fd, _ in events:
                connection = self._incoming.get(fd)
                if connection is None:
                    self._notice(fd)
                elif not connection.read(self._inbox, self.land):
                    self._hang_up(fd, connection)
                elif connection.ring is not None and connection not in self._ringed:
                    self._ringed.append(connection)
                    self._bells.add(connection.ring.bell)
                    self._poll.register(connection.ring.bell, select.EPOLLIN)
            if self._take() or self._woken or self._lost or max_wait_s <= 0:
                return
            now = time.monotonic()
            if not deadline:
                deadline = now + max_wait_s
                events = self._spin(now, deadline)
            elif now < deadline:
                events = self._sleep(deadline - now)
            else:
                return

    def _spin(self, now: float, deadline: float) -> list[tuple[int, int]]:
        """Look for SPIN_S without sleeping, if each rank has a core; return the events.

        It returns when a ring has a frame, too.
        """
        if not self._spins:
            return []
        until = min(now + SPIN_S, deadline)
        yield_from = now + YIELD_S
        while True:
            for _ in range(LOOKS):
                for connection in self._ringed:
                    if connection.ring is not None and connection.ring.waiting():
                        return []
            events = self._poll.poll(0)
            now = time.monotonic()
            if events or now >= until:
                return events
            if now >= yield_from:
                os.sched_yield()

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for events of sockets; writers of rings wake it through theirs."""
        rings = [connection.ring for connection in self._ringed if connection.ring is not None]
        if not rings:
            return self._poll.poll(seconds)
        for ring in rings:
            ring.sleep(True)
        try:
            barrier()  # see ring.py
            if any(ring.waiting() for ring in rings):
                return []
            return self._poll.poll(seconds)
        finally:
            for ring in rings:
                ring.sleep(False)

    def _notice(self, fd: int) -> None:
        """Process an event of the waker, or of the bell of a ring."""
        if fd == self._waker.fileno():
            self._settle()
        elif fd in self._bells:  # not hung up meanwhile
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)

    def _settle(self) -> None:
        """Clear the waker, and poll the connections that were just authenticated."""
        self._waker.clear()
        while self._fresh:
            connection = self._fresh.popleft()
            self._incoming[connection.sock.fileno()] = connection
            self._poll.register(connection.sock.fileno(), select.EPOLLIN)

    def _hang_up(self, fd: int, connection: _Incoming) -> None:
        """Close a connection that is over, and note whether it ended properly."""
        if connection.ring is not None:
            connection.ring.take(self._inbox)  # what it wrote before it ended
            if connection in self._ringed:
                self._ringed.remove(connection)
                self._bells.remove(connection.ring.bell)
                self._poll.unregister(connection.ring.bell)
            connection.ring.close()
            connection.ring = None
        self._poll.unregister(fd)
        del self._incoming[fd]
        connection.sock.close()
        if connection.ended:
            self._ended.add(connection.rank)
        elif not self._tolerant:
            self._lost.append(connection)
        if self._peer_ended is not None:
            self._peer_ended(connection.rank, not connection.ended)

    def watch_peers(self, ended: Callable[[int, bool], None]) -> None:
        self._peer_ended = ended
        for dest in range(self.spec.size):
            if dest == self.spec.rank:
                continue
            try:
                with self._put_lock:
                    if dest not in self._outgoing and not self._closed:
                        self._outgoing[dest] = self._connect(dest)
            except ChannelError:
                if not self._closed:
                    self._gone.add(dest)
                    ended(dest, dest not in self._ended)

    def wake(self) -> None:
        self._woken = True
        self._waker.wake()

    def abandon(self) -> None:
        if self._closed:
            return
        # without farewells, and without unregistering anything: the parent shares the poll object
        self._closed = True
        self._acceptor.abandon()
        for sock in self._outgoing.values():
            sock.close()
        for connection in (*self._incoming.values(), *self._fresh):
            connection.sock.close()
        # mapped memory stays until the child ends: the thread that forked may be inside a ring
        self._poll.close()
        self._waker.abandon()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.wake()  # a get that waits returns at once
        self._acceptor.stop()
        deadline = time.monotonic() + FAREWELL_S
        # without the lock, a thread is in a put that no rank reads
        if self._put_lock.acquire(timeout=FAREWELL_S):
            try:
                for dest, sock in self._outgoing.items():
                    goodbye = memoryview(LENGTH.pack(GOODBYE) + self._farewells[dest])
                    try:
                        self._send({dest: collections.deque([goodbye])}, deadline)
                    except ChannelError:  # the peer ended first
                        pass
                    sock.close()
                self._outgoing.clear()
                for ring in self._rings.values():
                    ring.close()
                self._rings.clear()
            finally:
                self._put_lock.release()
        with self._get_lock:
            self._settle()
            for connection in self._incoming.values():
                connection.sock.close()
                if connection.ring is not None:
                    connection.ring.close()
            self._ringed.clear()
            self._poll.close()
            self._waker.close()
