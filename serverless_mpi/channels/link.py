"""A link: one stream socket that carries frames both ways between two ranks.

A stream is a sequence of records: a length (4 bytes, little endian) and that many
bytes.  A record's content is its type and a payload:

    FRAME    a whole frame
    BEGIN    length of a long frame (8 bytes) and its first bytes
    MORE     the following bytes of that frame
    ACK      how many frames have been received (8 bytes)
    GOODBYE  nothing: no frame follows

`PlainRecords` writes them as they are, for Unix sockets. `SealedRecords` encrypts
each with AES-256-GCM: the key is of one direction of one connection, the nonce is
the number of the record, and the length is authenticated with it.  A record that
was changed, replayed, reordered or cut ends the link.

A link that may break while both ranks live (TCP) keeps every frame until the peer
has acknowledged it.  `unacknowledged` then returns what must travel another way;
the receiver drops the duplicates.

Invariants:

- One thread at a time sends (`send_lock`), one thread at a time reads (the
  channel's lock). An acknowledgement is due to the peer from the reading thread, which
  must not wait for the other lock: whoever has `send_lock` sends it.
- Nothing here blocks.
"""

from __future__ import annotations

import collections
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from serverless_mpi.channels.base import Delivery, OutgoingFrame
from serverless_mpi.channels.buffers import uninitialized

LENGTH = struct.Struct("<I")
COUNT = struct.Struct("<Q")
FRAME, BEGIN, MORE, ACK, GOODBYE = range(5)
RECORD_BYTES = 64 << 10  # longest sealed record; encrypting one takes some 20 us
FIRST_BUFFER_BYTES = 16 << 10
IOV_MAX = 512  # pieces per sendmsg; Linux allows 1024
TAG_BYTES = 16  # of AES-GCM
ACK_FRAMES = 64  # an acknowledgement is due after so many frames,
ACK_BYTES = 256 << 10  # or so many bytes
WINDOW_BYTES = 16 << 20  # a sender waits while more than this is unacknowledged

Pieces = list["bytes | memoryview"]


class LinkError(Exception):
    """The peer's bytes cannot come from an honest rank; the link has to end."""


class Records(Protocol):
    """Writes and reads the content of records."""

    longest: int  # bytes of content that one record holds
    overhead: int  # bytes that a record is longer than its content

    def write(self, kind: int, payload: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        """Return a record, length included; payload of `nbytes` bytes."""

    def read(self, record: memoryview) -> memoryview:
        """Return the content of a record; raise LinkError if it is not the peer's next one."""


class PlainRecords:
    """Records in the clear, for connections that the kernel protects."""

    longest = (1 << 32) - 2
    overhead = 0

    def write(self, kind: int, payload: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        return [LENGTH.pack(nbytes + 1) + bytes((kind,)), *payload]

    def read(self, record: memoryview) -> memoryview:
        return record


class SealedRecords:
    """Records encrypted and authenticated with AES-256-GCM.

    Parameters
    ----------
    send_key, receive_key
        32 bytes each, of this connection and this direction only.

    Raises
    ------
    ImportError
        The package `cryptography` is not installed.

    References
    ----------
    NIST SP 800-38D, section 8.2.1: deterministic construction of the nonce, here the number of
    the record.
    """

    longest = RECORD_BYTES
    overhead = TAG_BYTES

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._seal, self._open = AESGCM(send_key), AESGCM(receive_key)
        self._sent = self._received = 0

    def write(self, kind: int, payload: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        length = LENGTH.pack(1 + nbytes + TAG_BYTES)
        nonce = self._sent.to_bytes(12, "little")
        self._sent += 1
        content = b"".join((bytes((kind,)), *payload))
        return [length, self._seal.encrypt(nonce, content, length)]

    def read(self, record: memoryview) -> memoryview:
        from cryptography.exceptions import InvalidTag

        nonce = self._received.to_bytes(12, "little")
        self._received += 1
        try:
            return memoryview(self._open.decrypt(nonce, record, LENGTH.pack(record.nbytes)))
        except InvalidTag as error:
            raise LinkError("carried a record that was damaged or changed in transit") from error


def remove_sent(views: collections.deque[memoryview], sent: int) -> None:
    """Remove the first `sent` bytes of `views`."""
    while sent:
        head = views[0]
        if sent >= head.nbytes:
            sent -= head.nbytes
            views.popleft()
        else:
            views[0] = head[sent:]
            sent = 0


class Link:
    """An authenticated connection to `rank`.

    Parameters
    ----------
    sock
        Connected and nonblocking; owned.
    rank
        World rank of the peer.
    records
        How records are written.
    max_frame_bytes
        Longest frame; an announced longer one ends the link.
    retains
        Whether frames are kept until the peer has acknowledged them.

    Attributes
    ----------
    send_lock
        Held by the thread that sends.
    alive
        Frames can be sent; False after a fault, or after the peer's GOODBYE.
    ended
        The peer has said that no frame follows.
    fault
        Why the link ended otherwise, as the end of a sentence that begins with the link.
    """

    def __init__(
        self,
        sock: socket.socket,
        rank: int,
        records: Records,
        max_frame_bytes: int,
        *,
        retains: bool,
    ) -> None:
        self.sock = sock
        self.rank = rank
        self.retains = retains
        self.send_lock = threading.Lock()
        self.alive = True
        self.ended = False
        self.fault = "broke without a goodbye"
        self._records = records
        self._max_frame_bytes = max_frame_bytes
        self._views: collections.deque[memoryview] = collections.deque()  # to be written
        self._unacknowledged: collections.deque[OutgoingFrame] = collections.deque()
        # Each counter has one writer: the sending thread, or the reading one.
        self._sent_bytes = 0
        self._acknowledged = self._acknowledged_bytes = 0  # of what was sent
        self._received = self._received_bytes = 0
        self._ack_frames = self._ack_bytes = 0  # of what was received, in the last acknowledgement
        self._buffer = memoryview(bytearray(FIRST_BUFFER_BYTES))
        self._have = 0  # bytes in _buffer that are not part of a complete record
        self._body: memoryview | None = None  # of a frame that arrives in several records or reads
        self._filled = 0
        self._direct = False  # the body is the rest of a plain record: receive into it

    # -- sending, under send_lock

    @property
    def full(self) -> bool:
        """Whether the peer has to acknowledge something before more is sent."""
        return self._sent_bytes - self._acknowledged_bytes > WINDOW_BYTES

    def queue(self, frame: OutgoingFrame, parts: Sequence[memoryview], nbytes: int) -> None:
        """Queue one frame for this peer; call `write` until it returns True.

        Parameters
        ----------
        frame
            For its name, by which the frame can travel another way.
        parts, nbytes
            The frame's bytes, borrowed until `write` has returned True.
        """
        if self.retains:
            parts = (memoryview(b"".join(parts)),)
            self._unacknowledged.append(OutgoingFrame((self.rank,), frame.name, tuple(parts)))
            self._sent_bytes += nbytes
        if self._ack_due():
            self._queue_ack()
        if nbytes < self._records.longest:
            self._extend(self._records.write(FRAME, parts, nbytes))
            return
        (whole,) = parts if len(parts) == 1 else (memoryview(b"".join(parts)),)
        step = self._records.longest - COUNT.size - 1
        self._extend(
            self._records.write(BEGIN, (COUNT.pack(nbytes), whole[:step]), COUNT.size + step)
        )
        for start in range(step, nbytes, step):
            piece = whole[start : start + step]
            self._extend(self._records.write(MORE, (piece,), piece.nbytes))

    def queue_goodbye(self) -> None:
        """Queue the statement that no frame follows."""
        self._extend(self._records.write(GOODBYE, (), 0))

    def _queue_ack(self) -> None:
        self._ack_frames, self._ack_bytes = self._received, self._received_bytes
        self._extend(self._records.write(ACK, (COUNT.pack(self._ack_frames),), COUNT.size))

    def _ack_due(self) -> bool:
        return self.retains and (
            self._received - self._ack_frames >= ACK_FRAMES
            or self._received_bytes - self._ack_bytes >= ACK_BYTES
        )

    def _extend(self, pieces: Pieces) -> None:
        for piece in pieces:
            if len(piece):
                self._views.append(memoryview(piece))

    def write(self) -> bool:
        """Write what the socket accepts; return whether nothing is left.

        Raises
        ------
        OSError
            The connection is broken.
        """
        views = self._views
        try:
            while views:
                sent = self.sock.sendmsg(
                    views if len(views) <= IOV_MAX else [views[i] for i in range(IOV_MAX)]
                )
                remove_sent(views, sent)
        except BlockingIOError:
            return False
        return True

    def unacknowledged(self) -> list[OutgoingFrame]:
        """Return, once, the frames that the peer may not have."""
        frames = list(self._unacknowledged)
        self._unacknowledged.clear()
        return frames

    # -- reading

    def acknowledge(self) -> None:
        """Send an acknowledgement if one is due and no other thread sends.

        A thread that has sent calls this after it has released `send_lock`: the reading thread may
        have found it taken.
        """
        if self._ack_due() and self.send_lock.acquire(blocking=False):
            try:
                if not self._views:  # otherwise a thread that waits for the socket goes on
                    self._queue_ack()
                    self.write()
            except OSError:
                pass  # the next read finds the fault
            finally:
                self.send_lock.release()

    def read(self, deliver: Callable[[Delivery], None]) -> bool:
        """Receive what has arrived; return False once the connection is over.

        Parameters
        ----------
        deliver
            Called with every complete frame.
        """
        try:
            while True:
                target = (
                    self._body[self._filled :]
                    if self._direct and self._body is not None
                    else self._buffer[self._have :]
                )
                got = self.sock.recv_into(target)
                if got == 0:
                    return False
                if self._direct:
                    self._filled += got
                    self._complete(deliver)
                else:
                    self._have += got
                    self._cut(deliver)
                if self.ended:
                    return False
                if got < len(target):
                    return True  # the socket is drained: no need to ask again
        except BlockingIOError:
            return True
        except LinkError as error:
            self.fault = str(error)
            return False
        except OSError as error:
            self.fault = f"broke ({error.strerror or error})"
            return False

    def _cut(self, deliver: Callable[[Delivery], None]) -> None:
        """Cut what was received into records."""
        at = 0
        while self._have - at >= LENGTH.size:
            (nbytes,) = LENGTH.unpack_from(self._buffer, at)
            start = at + LENGTH.size
            if not 0 < nbytes <= self._longest_record():
                raise LinkError(f"announced a record of {nbytes} bytes")
            if self._have - start >= nbytes:
                at = start + nbytes
                self._take(self._records.read(self._buffer[start:at]), deliver)
                if self.ended:
                    break
            elif self._records.overhead == 0 and self._have > start and nbytes > len(self._buffer):
                self._begin_direct(self._buffer[start : self._have], nbytes)
                at = self._have
            else:
                self._make_space(at, LENGTH.size + nbytes)
                return
        left = self._have - at
        if at and left:
            self._buffer[:left] = bytes(self._buffer[at : self._have])
        self._have = left

    def _longest_record(self) -> int:
        content = min(self._records.longest, self._max_frame_bytes + 1 + COUNT.size)
        return 1 + content + self._records.overhead

    def _make_space(self, at: int, nbytes: int) -> None:
        """Move the record at `at` to the front, in a buffer that holds all its `nbytes` bytes."""
        rest = bytes(self._buffer[at : self._have])
        if nbytes > len(self._buffer):
            self._buffer = memoryview(bytearray(max(nbytes, 2 * len(self._buffer))))
        self._buffer[: len(rest)] = rest
        self._have = len(rest)

    def _begin_direct(self, there: memoryview, nbytes: int) -> None:
        """Begin to receive a long plain record into the memory of its frame."""
        if there[0] != FRAME:
            raise LinkError(f"announced a record of {nbytes} bytes")
        self._body = uninitialized(nbytes - 1)
        self._filled = there.nbytes - 1
        self._body[: self._filled] = there[1:]
        self._direct = True

    def _take(self, content: memoryview, deliver: Callable[[Delivery], None]) -> None:
        """Act on the content of a record."""
        kind, payload = content[0], content[1:]
        if kind == FRAME and self._body is None:
            self._deliver(memoryview(bytearray(payload)), deliver)
        elif kind == BEGIN and self._body is None and payload.nbytes > COUNT.size:
            (nbytes,) = COUNT.unpack_from(payload)
            if not payload.nbytes - COUNT.size < nbytes <= self._max_frame_bytes:
                raise LinkError(f"announced a frame of {nbytes} bytes")
            self._body, self._filled = uninitialized(nbytes), 0
            self._fill(payload[COUNT.size :], deliver)
        elif kind == MORE and self._body is not None:
            self._fill(payload, deliver)
        elif kind == ACK and payload.nbytes == COUNT.size:
            self._drop_acknowledged(COUNT.unpack(payload)[0])
        elif kind == GOODBYE and self._body is None and not payload.nbytes:
            self.ended = True
        else:
            raise LinkError(f"carried an impossible record of type {kind}")

    def _fill(self, piece: memoryview, deliver: Callable[[Delivery], None]) -> None:
        assert self._body is not None
        end = self._filled + piece.nbytes
        if end > self._body.nbytes:
            raise LinkError("carried more bytes than the frame that it announced")
        self._body[self._filled : end] = piece
        self._filled = end
        self._complete(deliver)

    def _complete(self, deliver: Callable[[Delivery], None]) -> None:
        """Deliver the long frame if all of it has arrived."""
        body = self._body
        assert body is not None
        if self._filled == body.nbytes:
            self._body, self._direct = None, False
            self._deliver(body, deliver)

    def _deliver(self, frame: memoryview, deliver: Callable[[Delivery], None]) -> None:
        self._received += 1
        self._received_bytes += frame.nbytes
        deliver(Delivery(frame, None))

    def _drop_acknowledged(self, count: int) -> None:
        if not self._acknowledged <= count <= self._acknowledged + len(self._unacknowledged):
            raise LinkError(f"acknowledged {count} frames, which is not possible")
        for _ in range(count - self._acknowledged):
            self._acknowledged_bytes += self._unacknowledged.popleft().nbytes
        self._acknowledged = count
