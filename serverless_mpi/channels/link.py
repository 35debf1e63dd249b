"""A link: one stream socket that carries frames both ways between two ranks.

A stream is a sequence of records: the length of a payload (4 bytes, little endian),
a type (1 byte), and the payload:

    FRAME    a whole frame
    BEGIN    length of a long frame (8 bytes)
    MORE     the following bytes of that frame
    ACK      how many frames have been received (8 bytes)
    GOODBYE  nothing: no frame follows

`PlainRecords` writes them as they are, for Unix sockets. `SealedRecords` encrypts
each payload with AES-256-GCM: the key is of one direction of one connection, the
nonce is the number of the record, and length and type are authenticated with it.  A
record that was changed, replayed, reordered or cut ends the link.

A link that may break while both ranks live (TCP) keeps every frame until the peer
has acknowledged it.  `unacknowledged` then returns what must travel another way;
the receiver drops the duplicates.

Invariants:

- One thread at a time sends (`send_lock`), one thread at a time reads (the
  channel's lock). An acknowledgement is due to the peer from the reading thread, which
  must not wait for the other lock: whoever has `send_lock` sends it.
- A frame is kept before `alive` is looked at for the last time, and a thread that gives up
  a link sets `alive` before it takes what is kept: so one of the two takes every frame.
- Nothing here blocks.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from serverless_mpi.channels.base import Delivery, OutgoingFrame
from serverless_mpi.channels.buffers import uninitialized
from serverless_mpi.channels.sockets import write

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:  # the extra `links` is not installed: there are no sealed records
    CAN_SEAL = False
else:
    CAN_SEAL = True

HEADER = struct.Struct("<IB")  # length of the payload, type
COUNT = struct.Struct("<Q")
FRAME, BEGIN, MORE, ACK, GOODBYE = range(5)
RECORD_BYTES = 64 << 10  # longest sealed payload; encrypting one takes some 20 us
FIRST_BUFFER_BYTES = 16 << 10
TAG_BYTES = 16  # of AES-GCM
ACK_FRAMES = 64  # an acknowledgement is due after so many frames,
ACK_BYTES = 256 << 10  # or so many bytes
WINDOW_BYTES = 16 << 20  # a sender waits while more than this is unacknowledged

Pieces = list["bytes | memoryview"]


class LinkError(Exception):
    """The peer's bytes cannot come from an honest rank; the link has to end."""


class Records(Protocol):
    """Writes and reads records."""

    longest: int  # bytes that the payload of one record holds
    overhead: int  # bytes that a payload grows by

    def write(self, kind: int, parts: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        """Return a record as pieces to be sent one after the other.

        Parameters
        ----------
        kind
            FRAME, BEGIN, MORE, ACK or GOODBYE.
        parts
            The payload.  The result may have views of it, so it must not change until it is sent.
        nbytes
            Length of all parts together, in bytes; at most `longest`.
        """

    def read(self, kind: int, payload: memoryview, into: memoryview) -> None:
        """Put what a payload holds into memory.

        Parameters
        ----------
        kind
            The kind that the record's header states.
        payload
            The payload as it was received.
        into
            Receives the content; shorter than `payload` by `overhead` bytes.

        Raises
        ------
        LinkError
            It is not the next payload that the peer wrote.
        """


class PlainRecords:
    """Records in the clear, for connections that the kernel protects."""

    longest = (1 << 32) - 1
    overhead = 0

    def write(self, kind: int, parts: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        return [HEADER.pack(nbytes, kind), *parts]

    def read(self, kind: int, payload: memoryview, into: memoryview) -> None:
        into[:] = payload


class SealedRecords:
    """Records encrypted and authenticated with AES-256-GCM.

    Parameters
    ----------
    send_key, receive_key
        32 bytes each, of this connection and this direction only.

    Needs the package `cryptography` (`CAN_SEAL`).

    References
    ----------
    NIST SP 800-38D, section 8.2.1: deterministic construction of the nonce, here the number of
    the record.
    """

    longest = RECORD_BYTES
    overhead = TAG_BYTES

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._seal, self._open = AESGCM(send_key), AESGCM(receive_key)
        self._sent = self._received = 0

    def write(self, kind: int, parts: Sequence[bytes | memoryview], nbytes: int) -> Pieces:
        header = HEADER.pack(nbytes + TAG_BYTES, kind)
        nonce = self._sent.to_bytes(12, "little")
        self._sent += 1
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        return [header, self._seal.encrypt(nonce, payload, header)]

    def read(self, kind: int, payload: memoryview, into: memoryview) -> None:
        nonce = self._received.to_bytes(12, "little")
        self._received += 1
        try:
            self._open.decrypt_into(nonce, payload, HEADER.pack(payload.nbytes, kind), into)
        except InvalidTag as error:
            raise LinkError("carried a record that was damaged or changed in transit") from error


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

    def send_short(self, frame: OutgoingFrame) -> bool:
        """Send a frame that fits one record; call `write` until it returns True.

        Parameters
        ----------
        frame
            The frame; its bytes are copied.

        Returns
        -------
        bool
            False: nothing was done, and the frame takes `queue`.
        """
        if not self.alive or self._views or self.full or self._ack_due():
            return False
        data = b"".join(frame.parts)
        if self.retains:
            self._unacknowledged.append(frame._replace(parts=(memoryview(data),)))
            self._sent_bytes += len(data)
        record = b"".join(self._records.write(FRAME, (data,), len(data)))
        try:
            sent = self.sock.send(record)
        except OSError:  # full, or broken: `write` finds out
            sent = 0
        if sent < len(record):
            self._views.append(memoryview(record)[sent:])
        return True

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
        if nbytes <= self._records.longest:
            self._extend(self._records.write(FRAME, parts, nbytes))
            return
        (whole,) = parts if len(parts) == 1 else (memoryview(b"".join(parts)),)
        self._extend(self._records.write(BEGIN, (COUNT.pack(nbytes),), COUNT.size))
        for start in range(0, nbytes, self._records.longest):
            piece = whole[start : start + self._records.longest]
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
        return not self._views or write(self.sock, self._views)

    def unacknowledged(self) -> list[OutgoingFrame]:
        """Return, once, the frames that the peer may not have."""
        frames: list[OutgoingFrame] = []
        with contextlib.suppress(IndexError):
            while True:  # one by one: two threads may ask, and a third may add a frame
                frames.append(self._unacknowledged.popleft())
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
        while self._have - at >= HEADER.size:
            nbytes, kind = HEADER.unpack_from(self._buffer, at)
            start = at + HEADER.size
            if nbytes < self._records.overhead or nbytes > self._longest_payload():
                raise LinkError(f"announced a record of {nbytes} bytes")
            if self._have - start >= nbytes:
                at = start + nbytes
                self._take(kind, self._buffer[start:at], deliver)
                if self.ended:
                    break
            elif kind == FRAME and not self._records.overhead and nbytes > len(self._buffer):
                self._begin_direct(self._buffer[start : self._have], nbytes)
                at = self._have
            else:
                self._make_space(at, HEADER.size + nbytes)
                return
        left = self._have - at
        if at and left:
            self._buffer[:left] = bytes(self._buffer[at : self._have])
        self._have = left

    def _longest_payload(self) -> int:
        return min(self._records.longest, self._max_frame_bytes) + self._records.overhead

    def _make_space(self, at: int, nbytes: int) -> None:
        """Move the record at `at` to the front, in a buffer that holds all its `nbytes` bytes."""
        rest = bytes(self._buffer[at : self._have])
        if nbytes > len(self._buffer):
            self._buffer = memoryview(bytearray(max(nbytes, 2 * len(self._buffer))))
        self._buffer[: len(rest)] = rest
        self._have = len(rest)

    def _begin_direct(self, there: memoryview, nbytes: int) -> None:
        """Begin to receive a long plain record into the memory of its frame."""
        if self._body is not None:
            raise LinkError("began a frame within another one")
        self._body = uninitialized(nbytes)
        self._filled = there.nbytes
        self._body[: self._filled] = there
        self._direct = True

    def _take(self, kind: int, payload: memoryview, deliver: Callable[[Delivery], None]) -> None:
        """Act on a record."""
        nbytes = payload.nbytes - self._records.overhead
        if kind == FRAME and self._body is None:
            frame = memoryview(bytearray(nbytes))
            self._records.read(kind, payload, frame)
            self._deliver(frame, deliver)
        elif kind == MORE and self._body is not None:
            end = self._filled + nbytes
            if end > self._body.nbytes:
                raise LinkError("carried more bytes than the frame that it announced")
            self._records.read(kind, payload, self._body[self._filled : end])
            self._filled = end
            self._complete(deliver)
        elif kind in (BEGIN, ACK) and nbytes == COUNT.size:
            count = memoryview(bytearray(COUNT.size))
            self._records.read(kind, payload, count)
            (self._begin if kind == BEGIN else self._drop_acknowledged)(COUNT.unpack(count)[0])
        elif kind == GOODBYE and self._body is None and not nbytes:
            self._records.read(kind, payload, memoryview(bytearray()))
            self.ended = True
        else:
            raise LinkError(f"carried an impossible record of type {kind}")

    def _begin(self, nbytes: int) -> None:
        """Begin a frame that comes in several records."""
        if self._body is not None or not self._records.longest < nbytes <= self._max_frame_bytes:
            raise LinkError(f"announced a frame of {nbytes} bytes")
        self._body, self._filled = uninitialized(nbytes), 0

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
        try:
            for _ in range(count - self._acknowledged):
                self._acknowledged_bytes += self._unacknowledged.popleft().nbytes
        except IndexError as error:  # another thread has given up the link meanwhile
            raise LinkError("acknowledged frames that have taken another way") from error
        self._acknowledged = count
