"""Frames and bytes: version, job, envelope, chunk, authentication tag.  Nothing else reads or writes the header.

A frame is a fixed header of 80 bytes and a body.  The header ends in a BLAKE2b
tag of 16 bytes, keyed with the job's key, over the rest of the header and the
body, so a frame that was not made by a rank of this job never gets past
`decode`, and nothing that came with it is unpickled.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serverless_mpi.errors import WireError

VERSION = 1
_MAGIC = b"sM"
#                       magic version kind flags pad job context source dest tag seq chunk chunks offset total
_HEAD = struct.Struct("<2sBBBxxx8sQiiiQIIQQ")
TAG_BYTES = 16
HEADER_BYTES = _HEAD.size + TAG_BYTES
FLAG_SYNC = 1  # the sender waits until a receive has matched (MPI 4.1, section 3.4)


class Kind(enum.IntEnum):
    """What a frame is."""

    POINT = 0  # part of a point-to-point message, ordered per (context, source)
    ACK = 1  # a synchronous send, named by its sequence number, has been matched
    STEP = 2  # part of a collective, named by (context, source, seq, slot); `tag` is the slot


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame.  dest is -1 where many ranks read it; offset, total: bytes of the whole message."""

    kind: int
    flags: int
    context: int
    source: int
    dest: int
    tag: int
    seq: int
    chunk: int
    chunks: int
    offset: int
    total: int
    body: memoryview


def _digest(key: bytes, head: bytes | memoryview, body: Iterable[memoryview]) -> bytes:
    digest = hashlib.blake2b(head, key=key, digest_size=TAG_BYTES)
    for part in body:
        digest.update(part)
    return digest.digest()


def encode(frame: Frame, body: Sequence[memoryview], job: bytes, key: bytes) -> tuple[memoryview, ...]:
    """The bytes of a frame: its header, then the parts of `body` as they are, not copied.

    frame.body is not looked at.  job: 8 bytes; key: 32 bytes.
    """
    head = _HEAD.pack(
        _MAGIC, VERSION, frame.kind, frame.flags, job, frame.context, frame.source, frame.dest, frame.tag,
        frame.seq, frame.chunk, frame.chunks, frame.offset, frame.total,
    )  # fmt: skip
    return (memoryview(head + _digest(key, head, body)), *body)


def decode(data: memoryview, job: bytes, key: bytes) -> Frame:
    """The frame in `data`; its body is a view into `data`.

    Raises
    ------
    WireError
        Too short, another version, another job, damaged, or not made with this key.
    """
    if data.nbytes < HEADER_BYTES:
        raise WireError(f"{data.nbytes} bytes are shorter than a frame's header of {HEADER_BYTES}")
    head = data[: _HEAD.size]
    fields = _HEAD.unpack(head)
    if fields[0] != _MAGIC or fields[1] != VERSION:
        raise WireError(f"not a frame of version {VERSION}")
    if fields[4] != job:
        raise WireError("a frame of another job")
    body = data[HEADER_BYTES:]
    if not hmac.compare_digest(_digest(key, head, (body,)), bytes(data[_HEAD.size : HEADER_BYTES])):
        raise WireError("the authentication tag is wrong: damaged, or not made with this job's key")
    frame = Frame(fields[2], fields[3], *fields[5:], body)
    if not (frame.chunk < frame.chunks and frame.offset + body.nbytes <= frame.total and frame.kind in (0, 1, 2)):
        raise WireError("the header contradicts itself")
    return frame
