"""Frames and bytes: version, job, envelope, chunk, authentication tag.  Nothing else reads or writes the header.

A frame is a fixed header of 84 bytes and a body.  The header ends in a BLAKE2b
tag of 16 bytes, keyed with the job's key, over the rest of the header and the
body, so a frame that was not made by a rank of this job never gets past
`decode`, and nothing that came with it is unpickled.  A long body enters the
tag as the SHA-256 of its leaves' SHA-256s: CPUs have instructions for that
(four times the speed of BLAKE2b where measured), and a channel that receives
several parts at once can digest each as it comes.  On a guarded medium, one whose bytes nobody else can
reach, the tag covers the header alone.
"""

from __future__ import annotations

import enum
import hmac
import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import NamedTuple

from serverless_mpi.core.parcel import cut
from serverless_mpi.errors import WireError

VERSION = 2
_MAGIC = b"sM"
#                       magic version kind flags pad job context source dest tag seq chunk chunks offset total
_HEAD = struct.Struct("<2sBBBxxx8sQiiiQIIQQ")
_HEAD_BYTES = _HEAD.size
TAG_BYTES = 16
HEADER_BYTES = _HEAD_BYTES + TAG_BYTES
HASHED_BYTES = (
    16 * 1024
)  # a body of at least this enters the tag as SHA-256; below, one hash is quicker than several
LEAF_BYTES = 4 << 20
FLAG_SYNC = 1  # the sender waits until a receive has matched (MPI 4.1, section 3.4)
FLAG_GUARDED = 2  # the tag covers the header alone


class Kind(enum.IntEnum):
    """What a frame is."""

    POINT = 0  # part of a point-to-point message, ordered per (context, source)
    ACK = 1  # a synchronous send, named by its sequence number, has been matched
    STEP = 2  # part of a collective, named by (context, source, seq, slot); `tag` is the slot


class Frame(NamedTuple):
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


_keyed = lru_cache(maxsize=16)(lambda key: blake2b(key=key, digest_size=TAG_BYTES))  # to be copied


def _digest(
    key: bytes,
    head: bytes | memoryview,
    body: Sequence[memoryview],
    nbytes: int,
    leaves: Sequence[bytes] = (),
) -> bytes:
    digest = _keyed(key).copy()
    digest.update(head)
    if nbytes < HASHED_BYTES:
        for part in body:
            digest.update(part)
    else:
        digest.update(sha256(b"".join(leaves or digests(body))).digest())
    return digest.digest()


def digests(body: Sequence[memoryview]) -> list[bytes]:
    """SHA-256 of each leaf of a body, or of a part of one that begins with a leaf."""
    found = []
    for pieces in cut(body, LEAF_BYTES):
        leaf = sha256()
        for piece in pieces:
            leaf.update(piece)
        found.append(leaf.digest())
    return found


def encode(
    kind: int,
    flags: int,
    context: int,
    source: int,
    dest: int,
    tag: int,
    seq: int,
    chunk: int,
    chunks: int,
    offset: int,
    total: int,
    body: Sequence[memoryview],
    nbytes: int,
    job: bytes,
    key: bytes,
) -> tuple[memoryview, ...]:
    """The bytes of a frame: its header, then the parts of `body` as they are, not copied.

    nbytes: of the body; job: 8 bytes; key: 32 bytes; the rest as in `Frame`.
    """
    head = _HEAD.pack(
        _MAGIC,
        VERSION,
        kind,
        flags,
        job,
        context,
        source,
        dest,
        tag,
        seq,
        chunk,
        chunks,
        offset,
        total,
    )
    covered, length = ((), 0) if flags & FLAG_GUARDED else (body, nbytes)
    return (memoryview(head + _digest(key, head, covered, length)), *body)


def decode(
    data: memoryview, job: bytes, key: bytes, guarded: bool = False, leaves: Sequence[bytes] = ()
) -> Frame:
    """The frame in `data`; its body is a view into `data`.

    guarded: of the medium it came by; leaves: `digests` of the body, if the channel has found them out from this memory.

    Raises
    ------
    WireError
        Too short, another version, another job, damaged, or not made with this key.
    """
    return _decode(data, data[HEADER_BYTES:], data.nbytes - HEADER_BYTES, job, key, guarded, leaves)


def decode_head(head: memoryview, nbytes: int, job: bytes, key: bytes) -> Frame:
    """The frame that begins with `head` (84 bytes) and has a body of `nbytes` that is still to come by a guarded medium.

    Raises
    ------
    WireError
        As `decode`; or the tag covers the body, too.
    """
    frame = _decode(head, _NOTHING, nbytes, job, key, True)
    if not frame.flags & FLAG_GUARDED:
        raise WireError("the body is needed to see whether the tag is right")
    return frame


_NOTHING = memoryview(b"")


def _decode(
    data: memoryview,
    body: memoryview,
    nbytes: int,
    job: bytes,
    key: bytes,
    guarded: bool,
    leaves: Sequence[bytes] = (),
) -> Frame:
    if nbytes < 0:
        raise WireError(f"{data.nbytes} bytes are shorter than a frame's header of {HEADER_BYTES}")
    (
        magic,
        version,
        kind,
        flags,
        of,
        context,
        source,
        dest,
        tag,
        seq,
        chunk,
        chunks,
        offset,
        total,
    ) = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        raise WireError(f"not a frame of version {VERSION}")
    if of != job:
        raise WireError("a frame of another job")
    if flags & FLAG_GUARDED:
        if not guarded:
            raise WireError("the tag does not cover the body, and this medium is open to others")
        expected = _digest(key, data[:_HEAD_BYTES], (), 0)
    else:
        expected = _digest(key, data[:_HEAD_BYTES], (body,), nbytes, leaves)
    if not hmac.compare_digest(expected, data[_HEAD_BYTES:HEADER_BYTES]):
        raise WireError("the authentication tag is wrong: damaged, or not made with this job's key")
    if not (chunk < chunks and offset + nbytes <= total and kind <= 2):
        raise WireError("the header contradicts itself")
    return Frame(kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total, body)
