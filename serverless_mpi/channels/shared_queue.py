"""shared_queue: one queue for all ranks of a function, read by the function's own process.

A job of 1,000 ranks in 170 functions leases 170 queues: a queue belongs to a node, and
a message states which ranks read its frame.  One process reads it, and hands each
frame to its ranks over socket pairs:

    message of the queue   magic, number of ranks, the ranks, the frame
    to a rank              length and frame; or FAILED, length, and why the queue failed
    from a rank            WAITS, RESTS (waits no longer) or LOOKS (wants one poll)

The reader is not one of the ranks: a rank may compute for minutes, and end before the
others.  It polls only while a rank waits, as a rank with a queue of its own does, so
frames that nobody awaits stay in the queue.

Invariants:

- The addresses in a message are not trusted: they choose among the ranks of this
  function, each of which verifies the frame's tag.  What has no proper address goes to
  the first rank, which counts it as dropped.
- A message is deleted once its frames are queued for their ranks: the memory of the
  function is lost only with all its ranks.

Settings: `queues` and `slots` have an entry per node, `nodes` an entry per rank;
`reader` is the descriptor of this rank's socket.
"""

from __future__ import annotations

import collections
import contextlib
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

from serverless_mpi.channels.base import Delivery, ExpectedFrame, OutgoingFrame
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.channels.sockets import Waker, write
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter

MAGIC = b"sF"  # a frame begins with b"sM"
HEAD = struct.Struct("<2sH")  # magic, number of ranks; the ranks follow, 2 bytes each
LENGTH = struct.Struct("<I")
FAILED = 1 << 31  # added to the length: the text of an error follows
WAITS, RESTS, LOOKS = b"+", b"-", b"!"
POLL_S, EMULATOR_POLL_S = 20.0, 1.0  # of one poll; an emulator is asked all the time meanwhile


def addressed(ranks: Sequence[int]) -> bytes:
    """Return what precedes a frame in a message.

    Parameters
    ----------
    ranks
        World ranks that read the frame, 1 to 65535 of them.
    """
    return HEAD.pack(MAGIC, len(ranks)) + struct.pack(f"<{len(ranks)}H", *ranks)


def opened(message: memoryview) -> tuple[tuple[int, ...], memoryview] | None:
    """Return the addresses and the frame of a message.

    Parameters
    ----------
    message
        A message that was received; borrowed, and not trusted.

    Returns
    -------
    tuple[tuple[int, ...], memoryview] or None
        World ranks, and a view of the frame; None if the message does not have that form.
    """
    if message.nbytes < HEAD.size:
        return None
    magic, count = HEAD.unpack_from(message)
    end = HEAD.size + 2 * count
    if magic != MAGIC or not count or message.nbytes <= end:
        return None
    return struct.unpack_from(f"<{count}H", message, HEAD.size), message[end:]


class SharedQueueChannel(QueueChannel):
    """A rank's side: it sends to the queues of nodes, and receives from the reader of its own."""

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self._nodes = spec.nodes or (0,) * spec.size
        self._sock = socket.socket(fileno=int(spec.settings["reader"]))
        self._sock.set_inheritable(False)
        self._sock.setblocking(False)
        self._waker = Waker()
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        self._partial, self._filled = bytearray(LENGTH.size), 0
        self._in_body = self._failed = False

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        super().put([self._to_nodes(frame) for frame in parcels])

    def _to_nodes(self, frame: OutgoingFrame) -> OutgoingFrame:
        """Return the frame with its readers in front, for one rank of each of their nodes."""
        first = {self._nodes[dest]: dest for dest in reversed(frame.dests)}
        head = memoryview(addressed(frame.dests))
        return frame._replace(dests=tuple(first.values()), parts=(head, *frame.parts))

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        deliveries = self._read()
        if deliveries:
            return deliveries
        if max_wait_s <= 0:
            self._tell(LOOKS)
            return self._read()
        self._tell(WAITS)
        deadline = time.monotonic() + max_wait_s
        try:
            while not deliveries and (left := deadline - time.monotonic()) > 0:
                ready = [fd for fd, _ in self._poll.poll(left * 1000)]
                deliveries = self._read()
                if self._waker.fileno() in ready:
                    self._waker.clear()
                    break
        finally:
            self._tell(RESTS)
        return deliveries

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # `_read` reports the latter
            self._sock.send(word)

    def _read(self) -> list[Delivery]:
        """Return the frames that are there."""
        deliveries: list[Delivery] = []
        while True:
            try:
                nbytes = self._sock.recv_into(memoryview(self._partial)[self._filled :])
            except BlockingIOError:
                return deliveries
            except ConnectionResetError:
                nbytes = 0
            if not nbytes:
                raise ChannelError("the process that reads this function's queue has ended")
            self._filled += nbytes
            if self._filled == len(self._partial):
                self._complete(deliveries)

    def _complete(self, deliveries: list[Delivery]) -> None:
        """Take a length or a body that has arrived completely."""
        data, self._filled = self._partial, 0
        if not self._in_body:
            (length,) = LENGTH.unpack(data)
            self._failed, self._in_body = bool(length & FAILED), True
            data = self._partial = bytearray(length & ~FAILED)
            if data:
                return
        self._in_body, self._partial = False, bytearray(LENGTH.size)
        if self._failed:
            raise ChannelError(data.decode())
        deliveries.append(Delivery(memoryview(data), None))

    def ack(self, receipts: Sequence[object]) -> None:
        """Do nothing: the reader has deleted the messages."""

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._sock.close()
            self._waker.close()


class QueueReader:
    """The function's side: reads the queue of a node while one of its ranks waits.

    Parameters
    ----------
    spec
        The job, as one of the ranks sees it.
    meter
        Counts the requests.
    ranks
        The ranks of this function.

    Attributes
    ----------
    descriptors
        Rank -> descriptor of its socket, for its setting `reader`; open until `start`.
    """

    def __init__(self, spec: JobSpec, meter: Meter, ranks: Sequence[int]) -> None:
        self._spec, self._meter = spec, meter
        pairs = {rank: socket.socketpair() for rank in ranks}
        self._socks = {rank: own for rank, (own, _) in pairs.items()}
        self._given = {rank: given for rank, (_, given) in pairs.items()}
        self.descriptors = {rank: given.fileno() for rank, given in self._given.items()}
        self._outboxes: dict[int, collections.deque[memoryview]] = {
            rank: collections.deque() for rank in ranks
        }
        self._waiting: set[int] = set()
        self._looks = self._closing = False
        self._changed = threading.Condition()  # guards the three above
        # (ranks, or None for all; what each is sent), from the thread that polls
        self._arrived: collections.deque[tuple[Sequence[int], tuple[bytes, memoryview]]] = (
            collections.deque()
        )
        self._waker = Waker()
        self._channel: QueueChannel | None = None
        self._threads: list[threading.Thread] = []

    def open_descriptors(self) -> list[int]:
        """Return every descriptor that a rank of this function must not keep but for its own."""
        return [sock.fileno() for sock in (*self._socks.values(), *self._given.values())]

    def start(self) -> None:
        """Begin to serve the ranks; call it when all of them have been forked."""
        for given in self._given.values():
            given.close()
        for sock in self._socks.values():
            sock.setblocking(False)
        self._channel = QueueChannel(self._spec, self._meter)
        self._threads = [
            threading.Thread(target=work, name=f"smpi-queue-{work.__name__}", daemon=True)
            for work in (self._poll, self._serve)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Delete what was received, and end the threads; the ranks have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._waker.wake()
        if self._channel is not None:
            self._channel.wake()
        for thread in self._threads:
            thread.join()
        if self._channel is not None:
            self._channel.close()
        for sock in (*self._socks.values(), *self._given.values()):
            sock.close()
        self._waker.close()

    # -- the thread that asks the queue

    def _poll(self) -> None:
        assert self._channel is not None
        longest_s = EMULATOR_POLL_S if self._channel.limits.serial else POLL_S
        try:
            while self._is_wanted():
                deliveries = self._channel.get(longest_s, list)
                for delivery in deliveries:
                    self._hand_over(delivery.data)
                self._waker.wake()
                self._channel.ack([delivery.receipt for delivery in deliveries])
        except Exception as error:  # a rank that waits must not wait for ever
            text = f"the function cannot read its queue: {error}".encode()
            head = LENGTH.pack(len(text) | FAILED)
            self._arrived.append((list(self._socks), (head, memoryview(text))))
            self._waker.wake()

    def _is_wanted(self) -> bool:
        """Wait until a rank waits, and return True; False at the end."""
        with self._changed:
            while not (self._closing or self._waiting or self._looks):
                self._changed.wait()
            self._looks = False
            return not self._closing

    def _hand_over(self, message: memoryview) -> None:
        found = opened(message)
        ranks, frame = found if found is not None else ((), message)
        own = [rank for rank in ranks if rank in self._socks] or [min(self._socks)]
        self._arrived.append((own, (LENGTH.pack(frame.nbytes), frame)))

    # -- the thread that serves the ranks

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ)
            for rank, sock in self._socks.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            while not self._closing:
                for key, mask in selector.select():
                    if key.data is None:
                        self._waker.clear()
                        self._distribute(selector)
                    elif not (mask & selectors.EVENT_READ) or self._listen(key.data, selector):
                        self._write(key.data, selector)

    def _listen(self, rank: int, selector: selectors.BaseSelector) -> bool:
        """Take what a rank tells; return False if it has ended."""
        try:
            words = self._socks[rank].recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            words = b""
        with self._changed:
            self._looks = self._looks or LOOKS in words
            # the last word counts: a rank tells every change
            if words.rfind(WAITS) > words.rfind(RESTS):
                self._waiting.add(rank)
            elif RESTS in words or not words:
                self._waiting.discard(rank)
            self._changed.notify()
        if not words:
            selector.unregister(self._socks[rank])
            self._outboxes.pop(rank)
        return bool(words)

    def _distribute(self, selector: selectors.BaseSelector) -> None:
        while self._arrived:
            ranks, (head, body) = self._arrived.popleft()
            for rank in ranks:
                if rank in self._outboxes:  # else it has finalized
                    self._outboxes[rank] += (memoryview(head), body)[: 1 + bool(body.nbytes)]
        for rank in list(self._outboxes):
            self._write(rank, selector)

    def _write(self, rank: int, selector: selectors.BaseSelector) -> None:
        """Write what a rank's socket takes, and watch for more space while something is left."""
        with contextlib.suppress(OSError):  # `_listen` finds that the rank has ended
            done = write(self._socks[rank], self._outboxes[rank])
            events = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
            selector.modify(self._socks[rank], events, rank)
