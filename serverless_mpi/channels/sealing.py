"""A stream of bytes one way, cut into records that are encrypted and authenticated.

A record is that of `link.py`, of the one kind MORE.  Nothing of a record is passed on before it was
verified, so a change, a repetition, a gap or another order of records ends the stream there.

Only connections that leave the machine import this module: it needs the package `cryptography`.
"""

from __future__ import annotations

import collections
import socket
from collections.abc import Iterable

from serverless_mpi.channels.link import (
    HEADER,
    MORE,
    RECORD_BYTES,
    TAG_BYTES,
    LinkError,
    SealedRecords,
)
from serverless_mpi.channels.sockets import StreamError

AHEAD_BYTES = 4 * (HEADER.size + RECORD_BYTES + TAG_BYTES)  # that one recv takes at most


class Sealer:
    """The writing end of a stream.

    Parameters
    ----------
    key
        32 bytes, of this stream only.
    """

    def __init__(self, key: bytes) -> None:
        self._records = SealedRecords(key, key)

    def seal(self, views: Iterable[memoryview]) -> collections.deque[memoryview]:
        """Return the next bytes of the stream as they are sent.

        Parameters
        ----------
        views
            Those bytes, borrowed; copied.
        """
        sealed: collections.deque[memoryview] = collections.deque()
        parts: list[bytes | memoryview] = []
        room = RECORD_BYTES
        for view in views:
            at = 0
            while at < view.nbytes:
                part = view[at : at + room]
                parts.append(part)
                at += part.nbytes
                room -= part.nbytes
                if not room:
                    sealed.extend(map(memoryview, self._records.write(MORE, parts, RECORD_BYTES)))
                    parts, room = [], RECORD_BYTES
        if parts:
            sealed.extend(map(memoryview, self._records.write(MORE, parts, RECORD_BYTES - room)))
        return sealed


class SealedStream:
    """The reading end of a stream.

    Parameters
    ----------
    sock
        Connected and nonblocking; borrowed.
    key
        That of the writing end.
    """

    def __init__(self, sock: socket.socket, key: bytes) -> None:
        self._sock = sock
        self._records = SealedRecords(key, key)
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._start = self._have = 0  # what of it is not decrypted yet
        self._plain = memoryview(bytearray(RECORD_BYTES))
        self._rest = self._plain[:0]  # of the last record, what nobody took yet

    def recv_into(self, into: memoryview) -> int:
        """Receive as much of the stream as has arrived; like the method of a socket.

        Parameters
        ----------
        into
            Memory for the bytes, not empty.

        Returns
        -------
        int
            How many there were; 0 at the end of the connection, also if it cuts a record.

        Raises
        ------
        BlockingIOError
            None has arrived.
        OSError
            The connection is broken.
        StreamError
            The next record is not the one that the peer wrote.
        """
        filled = 0
        try:
            while filled < into.nbytes:
                if not self._rest.nbytes:
                    payload = self._payload()
                    if payload is None:
                        break
                    nbytes = payload.nbytes - TAG_BYTES
                    if nbytes <= into.nbytes - filled:
                        self._records.read(MORE, payload, into[filled : filled + nbytes])
                        filled += nbytes
                        continue
                    self._rest = self._plain[:nbytes]
                    self._records.read(MORE, payload, self._rest)
                take = min(self._rest.nbytes, into.nbytes - filled)
                into[filled : filled + take] = self._rest[:take]
                self._rest = self._rest[take:]
                filled += take
        except BlockingIOError:
            if not filled:
                raise
        except LinkError as error:
            raise StreamError(str(error)) from error
        return filled

    def _payload(self) -> memoryview | None:
        """Return the encrypted payload of the next record; None at the end of the connection."""
        while True:
            there = self._ahead[self._start : self._have]
            if there.nbytes >= HEADER.size:
                nbytes, kind = HEADER.unpack_from(there)
                if kind != MORE or not TAG_BYTES < nbytes <= RECORD_BYTES + TAG_BYTES:
                    raise LinkError("carried a record that no rank writes")
                end = HEADER.size + nbytes
                if there.nbytes >= end:
                    self._start += end
                    return there[HEADER.size : end]
            if self._start:
                self._ahead[: there.nbytes] = bytes(there)
                self._start, self._have = 0, there.nbytes
            got = self._sock.recv_into(self._ahead[self._have :])
            if not got:
                return None
            self._have += got
