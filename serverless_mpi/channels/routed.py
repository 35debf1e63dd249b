"""routed: one way per peer: a Unix socket on one machine, a TCP link, else hybrid.

The first frames for a peer go by `hybrid`, and with them an offer: the address at
which this rank can be linked.  The peer answers with its own offer, both connect in
the background (linker.py), and further frames use the link.  Where that fails, the
pair stays on `hybrid`, and nothing has waited for it.  Ranks of one node are
expected to reach each other: a frame for one waits until the two are linked.

Frames may arrive by different ways in any order; the core restores it.  A link that
breaks has its unacknowledged frames put by `hybrid`; the core drops duplicates.

A rank that waits reads its links itself, which saves a change of threads.  A thread
of its own (`_Poller`) asks `hybrid`, and only while a frame is awaited that can come
that way: from a peer without a link, or from any peer after `QUIET_S` of waiting in
vain, since a link may have broken on the other side only.

Invariants:

- An offer carries a tag made with the job's key over both ranks, the attempt and the
  address. An offer for another rank, or of an attempt that has been seen, has no effect.
- Links that leave the machine are encrypted; without the package `cryptography`
  there are none.
- A frame is handed either to a link or to `hybrid`; a link that breaks returns what
  the peer has not acknowledged, once.

Settings: `near`, addresses of the ranks' Unix sockets, and `fds`, their descriptors;
`nodes`, the node of each rank (`-ppn`); `host` and `echo`, see `Linker`.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import ipaddress
import json
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serverless_mpi.channels.base import (
    SCATTERED,
    SHARED,
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    FrameName,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.channels.hybrid import MAX_FRAME_BYTES, HybridChannel
from serverless_mpi.channels.link import CAN_SEAL, Link, Records
from serverless_mpi.channels.linker import Linker
from serverless_mpi.channels.shared_queue import SharedQueueChannel
from serverless_mpi.channels.sockets import Waker, listen_near
from serverless_mpi.channels.spin import Spinner
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.core.tags import TAG_BYTES, Purpose, make, same
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter, Prices

QUIET_S = 1.0  # a rank whose peers are all linked asks hybrid after this long without a frame
OFFER_S = 5.0  # for so long after an offer a rank looks for the answer
POLL_S = 10.0  # longest wait for hybrid, before what it delivered is acknowledged
FAREWELL_S = 5.0  # longest wait of close() for a peer that reads slowly
SLICE_S = 0.02  # a put that waits checks this often whether a get reads
ATTEMPTS = 3  # of two ranks to link

SHORT_BYTES = 16 << 10  # a frame that is joined and written in one piece

MAGIC = b"sL"  # of an offer; a frame begins with b"sM", a reference with b"sR" or b"sD"
OFFER = struct.Struct("<IIHH16sB")  # source, dest, attempt, port, address, its length

# Unix sockets within a node: 3.6 to 4.1 GB/s, measured with a socket pair of two processes on two
# cores, 64 MB per message, after the first one. The seconds per message are those of a link, whose
# code is the same.
NEAR_FIGURES = CostParameters(
    latency_s=1e-4,
    bandwidth_Bps=3.6e9,
    put_usd=0.0,
    get_usd=0.0,
    fanout=False,
    batch=64,
    put_s=3e-5,
    get_s=5e-5,
)
# Links between functions: 0.3 to 1 ms, 75 MB/s of a function's 625 Mbit/s. Sources: Copik et al.,
# "FMI: Fast and Cheap Message Passing for Serverless Functions" (ICS 2023), figure 6; AWS Lambda
# quotas, network bandwidth.
LINK_FIGURES = CostParameters(
    latency_s=5e-4,
    bandwidth_Bps=7.5e7,
    put_usd=0.0,
    get_usd=0.0,
    fanout=False,
    batch=64,
    put_s=3e-5,
    get_s=5e-5,
    near=NEAR_FIGURES,
)


@dataclass
class _Peer:
    """What this rank knows of another one.

    Attributes
    ----------
    near
        Both are on one node.
    links
        Those that live; the first one carries what is sent.
    offered, seen
        Numbers of the last attempts that this rank and the peer have offered.
    trying
        An attempt runs, or its answer is awaited, until this time.
    broken
        A link has broken; there will be no other.
    """

    near: bool
    links: list[Link] = field(default_factory=list)
    offered: int = 0
    seen: int = 0
    trying_until: float = 0.0
    broken: bool = False


def seal_offer(key: bytes, source: int, dest: int, attempt: int, address: tuple[str, int]) -> bytes:
    """Return an offer of a link as it is sent.

    Parameters
    ----------
    key
        The job's key, which makes the tag.
    source, dest
        World ranks: the one that offers its address, and the one that receives the offer.
    attempt
        Number of the attempt, from 1 on.
    address
        (IP address, port) at which `dest` can reach `source`.
    """
    packed = ipaddress.ip_address(address[0]).packed
    text = OFFER.pack(source, dest, attempt, address[1], packed, len(packed))
    return MAGIC + make(key, Purpose.LINK_OFFER, text) + text


def open_offer(data: memoryview, key: bytes, rank: int) -> tuple[int, int, tuple[str, int]] | None:
    """Return the content of an offer after verifying its tag.

    Parameters
    ----------
    data
        A frame that was received; copied.
    key
        The job's key.
    rank
        World rank of the reader.

    Returns
    -------
    tuple[int, int, tuple[str, int]] or None
        (source, attempt, address) of the offer.  None if the frame is not an offer of this job
        to `rank`.
    """
    head = len(MAGIC) + TAG_BYTES
    if data.nbytes != head + OFFER.size or data[: len(MAGIC)] != MAGIC:
        return None
    text = bytes(data[head:])
    if not same(data[len(MAGIC) : head], make(key, Purpose.LINK_OFFER, text)):
        return None
    source, dest, attempt, port, packed, length = OFFER.unpack(text)
    if dest != rank or length not in (4, 16):
        return None
    return source, attempt, (str(ipaddress.ip_address(packed[:length])), port)


def resent(frame: OutgoingFrame) -> OutgoingFrame:
    """Return a frame of one reader under a name of that reader's own.

    Others may have the same frame under its shared name, as one object that is deleted with
    the job; this one has a key of its own.

    Parameters
    ----------
    frame
        A frame with one reader.  The result has views of its memory; it is the frame itself if its
        name is not shared.
    """
    if frame.name.dest not in (SHARED, SCATTERED):
        return frame
    return frame._replace(name=frame.name._replace(dest=SCATTERED))


class RoutedChannel(Channel):
    """Unix sockets, TCP links, and hybrid for every other pair."""

    services = HybridChannel.services
    contained = True
    options = frozenset({"host", "ppn", "echo"})
    platforms = frozenset({"local", "lambda"})
    model = "serverless_mpi.simulation.media:Parametric"
    limits = Limits(MAX_FRAME_BYTES, async_put=True)
    figures = LINK_FIGURES
    predictable = False  # which pairs can be linked is found out by the job

    @classmethod
    def cost(cls, *, aws: bool, prices: Prices, store: str = "s3") -> CostParameters:
        return LINK_FIGURES

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        """Make what hybrid needs, and a listening Unix socket for each rank that shares a node.

        Parameters
        ----------
        spec
            The job; the setting `ppn` is the number of ranks per node.  Without it all ranks share
            one node.

        Returns
        -------
        dict[str, str]
            The settings of hybrid; `nodes`, `near` and `fds`, one entry per rank; and `host` and
            `echo` if they were given.  The caller owns the descriptors in `fds`.

        Raises
        ------
        ChannelError
            Something cannot be made.
        """
        per_node = int(spec.settings.get("ppn", spec.size))
        nodes = [rank // per_node for rank in range(spec.size)]
        settings = {**HybridChannel.provision(spec), "nodes": json.dumps(nodes)}
        ranks_on = collections.Counter(nodes)
        settings |= listen_near(
            [rank for rank in range(spec.size) if ranks_on[nodes[rank]] > 1], spec.size
        )
        for name in ("host", "echo"):
            if name in spec.settings:
                settings[name] = spec.settings[name]
        return settings

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        HybridChannel.destroy(spec)

    @classmethod
    def inherited(cls, spec: JobSpec) -> tuple[int, ...]:
        fds = spec.settings.get("fds", "").split()
        return (int(fds[spec.rank]),) if fds and fds[spec.rank] != "-1" else ()

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self._near: list[str] = json.loads(spec.settings["near"])
        nodes: list[int] = json.loads(spec.settings["nodes"])
        self._peers = {
            rank: _Peer(near=node == nodes[spec.rank])
            for rank, node in enumerate(nodes)
            if rank != spec.rank
        }
        shared = SharedQueueChannel(spec, meter) if "reader" in spec.settings else None
        self._base = HybridChannel(spec, meter, shared)
        self.limits = self._base.limits
        self._inbox: collections.deque[Delivery] = collections.deque()
        self._state = threading.Condition()  # guards _peers and what waits for links
        self._read_lock = threading.Lock()  # held while reading links
        self._silent_s = 0.0  # waited for since the last frame, or the last look at hybrid
        self._getting = 0  # gets that hold or want _read_lock
        self._lost: str | None = None  # a peer of this node that vanished
        # the launcher reports ranks that die: a broken connection is not an error of this rank
        self._tolerant = "notices" in spec.settings
        self._closed = self._woken = False
        self._waker = Waker()
        self._poll = select.epoll()
        self._poll.register(self._waker.fileno(), select.EPOLLIN)
        self._fresh: collections.deque[Link] = collections.deque()  # admitted, not yet polled
        self._links: dict[int, Link] = {}  # by file descriptor
        self._over: list[Link] = []  # have ended
        self._spinner = Spinner(self._poll)
        far = any(not peer.near for peer in self._peers.values()) and CAN_SEAL
        self._linker = Linker(
            spec,
            self._inherit(),
            spec.settings.get("host", "127.0.0.1") if far else None,
            spec.settings.get("echo"),
            admit=self._admit,
            gave_up=self._give_up,
            no_address=lambda: meter.count("link", "no_address"),
        )
        self._poller = _Poller(self._base, self._receive, self._waker.wake)
        self._linker.start()
        self._poller.start()

    def _inherit(self) -> socket.socket | None:
        """Return the listening socket that the launcher bound for this rank."""
        for fd in self.inherited(self.spec):
            try:
                listener = socket.socket(fileno=fd)
            except OSError as error:
                raise ChannelError(
                    f"rank {self.spec.rank} did not inherit its listening socket"
                    f" ({error.strerror}); a program that starts the rank must pass on its open"
                    " files"
                ) from error
            listener.set_inheritable(False)
            return listener
        return None

    # -- links

    def _admit(self, sock: socket.socket, rank: int, records: Records, near: bool) -> None:
        """Take over a proven connection; the linker's thread calls this."""
        link = Link(sock, rank, records, self.limits.max_frame_bytes, retains=not near)
        with self._state:
            self._peers[rank].links.append(link)
            self._state.notify_all()
        self._fresh.append(link)
        if not near:
            self.meter.count("link", "made")
        self._waker.wake()

    def _give_up(self, rank: int, reason: str) -> None:
        """Note that an attempt has failed; the linker's thread calls this."""
        with self._state:
            self._peers[rank].trying_until = 0.0
            self._peers[rank].broken |= self._tolerant
            self._state.notify_all()
        if self._peers[rank].near and self._tolerant:
            self._waker.wake()
        elif self._peers[rank].near:
            self._lost = self._lost or f"rank {rank}, which runs on this machine, {reason}"
            self._waker.wake()
        else:
            self.meter.count("link", "failed")

    def _link(self, dest: int) -> Link | None:
        """Return a link that can carry a frame to `dest`; wait for one if `dest` is near."""
        links = self._peers[dest].links
        if links and links[0].alive:
            return links[0]
        with self._state:
            peer = self._peers[dest]
            while True:
                peer.links[:] = [link for link in peer.links if link.alive]
                if peer.links:
                    return peer.links[0]
                if not peer.near or peer.broken or self._lost or self._closed:
                    return None
                if not peer.trying_until:
                    peer.trying_until = float("inf")
                    self._linker.connect(dest, "\0" + self._near[dest])
                self._state.wait()

    def at_once(self, dests: Sequence[int]) -> bool:
        for dest in dests:
            links = self._peers[dest].links
            if not links or not links[0].alive:
                return False
        return True

    def _break(self, link: Link, fault: str) -> None:
        """Give up a link that broke: what it has not delivered travels by hybrid."""
        with self._state:
            if not link.alive:
                return
            link.alive = False
            peer = self._peers[link.rank]
            peer.broken = True
            self._state.notify_all()
        if peer.near and self._tolerant:
            pass
        elif peer.near:
            self._lost = self._lost or (
                f"rank {link.rank} vanished: its connection to rank {self.spec.rank} {fault}"
            )
        else:
            self.meter.count("link", "broken", messages=self._put_again(link))
        self._waker.wake()

    def _put_again(self, link: Link) -> int:
        """Have hybrid carry what a dead link has not delivered; return the number of frames."""
        frames = [resent(frame) for frame in link.unacknowledged()]
        self._poller.put(frames)
        return len(frames)

    # -- sending

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        if len(parcels) == 1 and len(parcels[0].dests) == 1 and self._send_short(parcels[0]):
            return
        rest: list[OutgoingFrame] = []
        for frame in parcels:
            by_hybrid = [
                index
                for index, dest in enumerate(frame.dests)
                if not self._send(frame, index, dest)
            ]
            if len(by_hybrid) == len(frame.dests):
                rest.append(frame)
            elif by_hybrid:
                rest.append(_subset(frame, by_hybrid))
        if self._lost is not None:
            raise ChannelError(self._lost)
        if rest:
            self._base.put([*rest, *self._offers({dest for frame in rest for dest in frame.dests})])

    def _send_short(self, frame: OutgoingFrame) -> bool:
        """Send one short frame to one linked rank: the usual case, in few Python calls."""
        links = self._peers[frame.dests[0]].links
        nbytes = 0
        for part in frame.parts:
            nbytes += part.nbytes
        if not links or not links[0].alive or nbytes > SHORT_BYTES or frame.bodies:
            return False
        link = links[0]
        with link.send_lock:
            if not link.send_short(frame):
                return False
            self._write(link)
        self._sent(link, nbytes)
        return True

    def _send(self, frame: OutgoingFrame, index: int, dest: int) -> bool:
        """Send a frame to one of its readers by a link; return False if there is none."""
        link = self._link(dest)
        if link is None:
            return False
        parts = frame.bodies[index] if frame.bodies else frame.parts
        nbytes = sum(part.nbytes for part in parts)
        with link.send_lock:
            while link.alive and link.full:
                self._wait({})
            if not link.alive:
                return False
            link.queue(frame, parts, nbytes)
            self._write(link)
        self._sent(link, nbytes)
        return True

    def _sent(self, link: Link, nbytes: int) -> None:
        """Count a frame that was given to a link, and see that it has not come too late."""
        self.meter.count("link" if link.retains else "near", "put", nbytes=nbytes, messages=1)
        if link.alive:
            link.acknowledge()
        else:  # whoever gave up the link may have done so before the frame was kept
            self._put_again(link)

    def _write(self, link: Link, deadline: float = float("inf")) -> None:
        """Write what is queued; read while the socket is full.  With the link's send_lock."""
        try:
            while link.alive and not link.write():
                if time.monotonic() > deadline:
                    return
                self._wait({link.sock.fileno(): select.POLLOUT})
        except OSError as error:
            if not link.ended:
                self._break(link, f"broke ({error.strerror or error})")

    def _wait(self, fds: dict[int, int]) -> None:
        """Wait until one of `fds` is ready or something was read; read unless a get does."""
        poll = select.poll()
        for fd, mask in fds.items():
            poll.register(fd, mask)
        if not self._getting and self._read_lock.acquire(blocking=False):
            try:
                poll.register(self._poll.fileno(), select.POLLIN)
                poll.poll(SLICE_S * 1000)
                self._read_links(self._poll.poll(0))
            finally:
                self._read_lock.release()
        else:
            poll.poll(SLICE_S * 1000)

    def _offers(self, dests: set[int]) -> list[OutgoingFrame]:
        """Return the offers that are due to these ranks."""
        if self._linker.address is None:
            return []
        now, offers = time.monotonic(), []
        with self._state:
            for dest in sorted(dests):
                peer = self._peers[dest]
                idle = not peer.near and not peer.links and not peer.broken
                if idle and peer.trying_until <= now and peer.offered < ATTEMPTS:
                    peer.offered = max(peer.offered, peer.seen) + 1
                    peer.trying_until = now + OFFER_S
                    offers.append(self._offer(dest, peer.offered))
        if offers:
            self._poller.poll(now + OFFER_S, None)
        return offers

    def _offer(self, dest: int, attempt: int) -> OutgoingFrame:
        assert self._linker.address is not None
        text = seal_offer(self.spec.key, self.spec.rank, dest, attempt, self._linker.address)
        name = FrameName(0, 0, self.spec.rank, dest, 0, 0, 0)
        return OutgoingFrame((dest,), name, (memoryview(text),))

    # -- receiving

    def _receive(self, deliveries: list[Delivery]) -> None:
        """Take what hybrid delivered; the poller's thread calls this."""
        for delivery in deliveries:
            offer = open_offer(delivery.data, self.spec.key, self.spec.rank)
            if offer is None:
                self._inbox.append(delivery)
            else:
                self._poller.ack([delivery.receipt])
                self._accept_offer(*offer)
        if deliveries:
            self._waker.wake()

    def _accept_offer(self, source: int, attempt: int, address: tuple[str, int]) -> None:
        """Answer an offer that is new, and connect."""
        peer = self._peers.get(source)
        if peer is None or peer.near or self._linker.address is None:
            return
        answers: list[OutgoingFrame] = []
        with self._state:
            if attempt <= peer.seen or attempt > ATTEMPTS or peer.broken:
                return
            peer.seen = attempt
            peer.trying_until = time.monotonic() + OFFER_S
            if peer.offered < attempt:
                peer.offered = attempt
                answers.append(self._offer(source, attempt))
        if answers:
            self._base.put(answers)
        self._linker.connect(source, address)

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        self._getting += 1
        try:
            with self._read_lock:
                if self._closed:
                    return []
                if not self._inbox:
                    self._read(0.0 if self._woken or self._lost else max_wait_s, wanted)
                self._woken = False
                frames = []
                while self._inbox:
                    frames.append(self._inbox.popleft())
        finally:
            self._getting -= 1
        if not frames and not self._closed:
            if self._poller.error is not None:
                raise self._poller.error
            if self._lost is not None:
                raise ChannelError(self._lost)
        return frames

    def _read(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> None:
        """Read links until there is a frame, a wake or a fault, or the time is over."""
        began = now = time.monotonic()
        deadline = began + max_wait_s
        asks_at = began + max(0.0, QUIET_S - self._silent_s)
        if not all(map(_is_linked, self._peers.values())) and (
            max_wait_s <= 0 or any(map(self._may_come_by_hybrid, wanted()))
        ):
            asks_at = began
        while True:
            if now >= asks_at:
                self._poller.poll(deadline, wanted)
                asks_at, self._silent_s = float("inf"), 0.0
            left = min(deadline, asks_at) - now
            self._read_links(self._spinner.wait(left))
            now = time.monotonic()
            fault = self._lost or self._poller.error
            if self._inbox or self._woken or fault or now >= deadline:
                break
        self._silent_s = 0.0 if self._inbox else self._silent_s + now - began

    def _may_come_by_hybrid(self, frame: ExpectedFrame) -> bool:
        peer = self._peers.get(frame.source)
        peers = self._peers.values() if frame.source == ANY_SOURCE or peer is None else [peer]
        return not all(peer.near or _is_linked(peer) for peer in peers)

    def _read_links(self, events: list[tuple[int, int]]) -> None:
        """Read what is ready.  With the lock for reading."""
        for fd, _ in events:
            link = self._links.get(fd)
            if link is None:
                self._settle()
            elif link.read(self._inbox.append):
                link.acknowledge()
            else:
                self._hang_up(fd, link)

    def _settle(self) -> None:
        """Clear the waker, and poll the links that were just made."""
        self._waker.clear()
        while self._fresh:
            link = self._fresh.popleft()
            self._links[link.sock.fileno()] = link
            self._poll.register(link.sock.fileno(), select.EPOLLIN)

    def _hang_up(self, fd: int, link: Link) -> None:
        """End a link that is over, properly or not.

        A thread that sends may use the socket still, so its descriptor is closed with the channel.
        """
        self._poll.unregister(fd)
        del self._links[fd]
        self._over.append(link)
        if link.ended:
            with self._state:
                link.alive = False
                self._peers[link.rank].broken = True  # the rank has finalized
            if link.send_lock.acquire(blocking=False):  # else a put finds out
                with contextlib.suppress(OSError):
                    link.queue_goodbye()
                    link.write()
                link.send_lock.release()
        else:
            self._break(link, link.fault)
        with contextlib.suppress(OSError):  # the peer has closed it
            link.sock.shutdown(socket.SHUT_WR if link.ended else socket.SHUT_RDWR)

    def ack(self, receipts: Sequence[object]) -> None:
        self._poller.ack(receipts)

    def wake(self) -> None:
        self._woken = True
        self._waker.wake()

    # -- the end

    def abandon(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._linker.abandon()
        for link in (*self._links.values(), *self._over, *self._fresh):
            link.sock.close()
        self._poll.close()
        self._waker.abandon()
        self._base.abandon()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.wake()  # a get that waits returns at once
        with self._state:
            self._state.notify_all()
        self._linker.stop()
        deadline = time.monotonic() + FAREWELL_S
        with self._read_lock:
            self._settle()
            links = list(self._links.values())
        for link in links:
            self._say_goodbye(link, deadline)
        self._poller.close()
        self._base.close()
        with self._read_lock:
            for link in (*self._links.values(), *self._over, *self._fresh):
                link.sock.close()
            self._poll.close()
            self._waker.close()

    def _say_goodbye(self, link: Link, deadline: float) -> None:
        """End a link once the peer's system has all that was sent; else hybrid carries the rest."""
        if not link.send_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._break(link, "has a put that no rank reads")
            return
        try:
            if link.alive:
                link.queue_goodbye()
                self._write(link, deadline)
                # a Unix socket's bytes are the peer's already; TCP's are lost if the function ends
                while link.alive and link.retains and unsent(link.sock):
                    if time.monotonic() > deadline:
                        self._break(link, "did not take the last bytes")
                    self._wait({})
        finally:
            link.send_lock.release()


def _is_linked(peer: _Peer) -> bool:
    return bool(peer.links) and peer.links[0].alive


def _subset(frame: OutgoingFrame, indexes: Sequence[int]) -> OutgoingFrame:
    """Return the frame for some of its readers."""
    return frame._replace(
        dests=tuple(frame.dests[index] for index in indexes),
        bodies=tuple(frame.bodies[index] for index in indexes) if frame.bodies else (),
    )


def unsent(sock: socket.socket) -> int:
    """Return how many bytes the peer's system has not acknowledged (SIOCOUTQ of tcp(7)).

    Parameters
    ----------
    sock
        A connected TCP socket; borrowed.
    """
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, "little")


class _Poller(threading.Thread):
    """Asks hybrid for frames while somebody waits for them, and puts what links lost.

    Parameters
    ----------
    base
        Its `get` and `ack` are called by this thread only.
    receive
        Called with what arrived.
    nudge
        Called after an error.

    Attributes
    ----------
    error
        The first error of the base channel; None if there was none.
    """

    def __init__(
        self, base: Channel, receive: Callable[[list[Delivery]], None], nudge: Callable[[], None]
    ) -> None:
        super().__init__(name="smpi-routed-poll", daemon=True)
        self.error: BaseException | None = None
        self._base = base
        self._receive = receive
        self._nudge = nudge
        self._changed = threading.Condition()
        self._until = -1.0  # somebody waits until then; before the first poll: nobody
        self._wanted: Callable[[], list[ExpectedFrame]] = list
        self._receipts: list[object] = []
        self._frames: list[OutgoingFrame] = []
        self._inside = False  # in the base's get
        self._closing = False

    def poll(self, until: float, wanted: Callable[[], list[ExpectedFrame]] | None) -> None:
        """Ask at least once, and until that time of the monotonic clock."""
        with self._changed:
            self._until = max(self._until, until)
            self._wanted = wanted or self._wanted
            self._changed.notify()

    def ack(self, receipts: Sequence[object]) -> None:
        """Have receipts acknowledged after the running request."""
        with self._changed:
            self._receipts.extend(receipts)

    def put(self, frames: Sequence[OutgoingFrame]) -> None:
        """Have frames put by the base channel."""
        if not frames:
            return
        with self._changed:
            self._frames.extend(frames)
            self._changed.notify()
            inside = self._inside
        if inside:
            self._base.wake()

    def close(self) -> None:
        """Put and acknowledge what is left, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            inside = self._inside
        if inside:
            self._base.wake()
        self.join()

    def run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.error = error
            self._nudge()

    def _turn(self) -> bool:
        """Do what is due; return False at the end."""
        with self._changed:
            while not (self._closing or self._frames or self._until >= 0):
                self._changed.wait()
            frames, self._frames = self._frames, []
            receipts, self._receipts = self._receipts, []
            left = max(0.0, min(self._until - time.monotonic(), POLL_S))
            asks = self._until >= 0 and not self._closing
            if not left:
                self._until = -1.0
            self._inside = asks
            closing = self._closing
        if frames:
            self._base.put(frames)
        if receipts:
            self._base.ack(receipts)
        if asks:
            deliveries = self._base.get(left, self._wanted)
            with self._changed:
                self._inside = False
            self._receive(deliveries)
        return not closing
