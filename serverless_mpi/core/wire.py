"""Frames and bytes: version, job, envelope, chunk, authentication tag.  Nothing else reads or writes the header.

A frame is a fixed header of 84 bytes and a body.  The header ends in a BLAKE2b
tag of 16 bytes, keyed with the job's key, so a frame that was not made by a rank
of this job never gets past `decode`, and nothing that came with it is unpickled.

The tag covers the rest of the header, the length of the body, and the body in
one of three forms.  A short body enters as it is.  A long one enters as the
SHA-256 of its leaves' SHA-256s: CPUs have instructions for that (four times the
speed of BLAKE2b where measured), and a channel that receives several parts at
once can digest each as it comes.  On a guarded medium, one whose bytes nobody
else can reach, the body does not enter.  Each form is a purpose of its own
(`core.tags`), so a tag fits one header, one length, one form and one body.  If
you add a form, add a purpose: bytes that one form covers must never be a valid
body in another.

The pieces of a message are all of one length but the last, which is not longer.
`decode` holds every frame to that, so a message whose frames agree on total,
number and piece length (`delivery.Assembly`) has no gap and no overlap.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import NamedTuple

from serverless_mpi.core.frames import cut
from serverless_mpi.core.tags import TAG_BYTES, Purpose, same, start
from serverless_mpi.errors import WireError

VERSION = 3
_MAGIC = b"sM"
#                       magic version kind flags pad job context source dest tag seq chunk chunks offset total
_HEAD = struct.Struct("<2sBBBxxx8sQiiiQIIQQ")
_HEAD_BYTES = _HEAD.size
_LENGTH = struct.Struct("<Q")  # of the body, for the tag alone
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


@lru_cache(maxsize=16)
def _forms(key: bytes) -> tuple[blake2b, blake2b, blake2b]:
    """Keyed hashes to be copied: for a short body, a hashed body, a guarded frame."""
    return (
        start(key, Purpose.FRAME_SHORT),
        start(key, Purpose.FRAME_HASHED),
        start(key, Purpose.FRAME_GUARDED),
    )


def _tag(
    key: bytes,
    head: bytes | memoryview,
    body: Sequence[memoryview],
    nbytes: int,
    flags: int,
    leaves: Sequence[bytes] = (),
) -> bytes:
    """The tag of a frame with a body of `nbytes`; leaves: its `digests`, if they are known."""
    short, hashed, guarded = _forms(key)
    if flags & FLAG_GUARDED:
        digest = guarded.copy()
        digest.update(head)
        digest.update(_LENGTH.pack(nbytes))
    elif nbytes < HASHED_BYTES:
        digest = short.copy()
        digest.update(head)
        digest.update(_LENGTH.pack(nbytes))
        for part in body:
            digest.update(part)
    else:
        digest = hashed.copy()
        digest.update(head)
        digest.update(_LENGTH.pack(nbytes))
        digest.update(sha256(b"".join(leaves or digests(body))).digest())
    return digest.digest()


def _pieces_agree(chunk: int, chunks: int, offset: int, nbytes: int, total: int) -> bool:
    """Whether `nbytes` from `offset` on can be piece `chunk` of a message that was cut into several."""
    last = chunks - 1
    if chunk < last:
        return offset == chunk * nbytes and last * nbytes < total <= chunks * nbytes
    if chunk > last or chunk == 0:
        return False
    piece, rest = divmod(offset, last)
    return rest == 0 and 0 < nbytes <= piece and offset + nbytes == total


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
    return (memoryview(head + _tag(key, head, body, nbytes, flags)), *body)


def decode(
    data: memoryview, job: bytes, key: bytes, guarded: bool = False, leaves: Sequence[bytes] = ()
) -> Frame:
    """The frame in `data`; its body is a view into `data`.

    guarded: of the medium it came by; leaves: `digests` of the body, if the channel has found them out from this memory.

    Raises
    ------
    WireError
        Too short, another version, another job, damaged, not made with this key, or contradictory.
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
    if flags & FLAG_GUARDED and not guarded:
        raise WireError("the tag does not cover the body, and this medium is open to others")
    if not same(
        data[_HEAD_BYTES:HEADER_BYTES],
        _tag(key, data[:_HEAD_BYTES], (body,), nbytes, flags, leaves),
    ):
        raise WireError("the authentication tag is wrong: damaged, or not made with this job's key")
    if chunks == 1:
        agree = chunk == 0 and offset == 0 and nbytes == total
    else:
        agree = _pieces_agree(chunk, chunks, offset, nbytes, total)
    if not agree or kind > 2:
        raise WireError("the header contradicts itself, or the length of the body")
    return Frame(kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total, body)
