"""The wire format: frames to bytes and back.  No other module reads or writes a header.

A frame is a header of 84 bytes and a body. The header ends in a BLAKE2b tag of 16 bytes, keyed with
the job's key. A frame that no rank of this job has made therefore never gets past `decode`, and its
body is never unpickled.

The tag covers the rest of the header, the length of the body, and the body in one of three forms:

- A short body enters as it is.
- A long body enters as the SHA-256 of the SHA-256s of its leaves.  CPUs have instructions for
  SHA-256 (measured: four times the speed of BLAKE2b), and a channel that receives several parts at
  a time can hash each part as it arrives.
- On a trusted transport, whose bytes no other user can reach, the body does not enter ("guarded").

Each form has a purpose of its own (`core.tags`), so a tag fits exactly one header, length, form and
body.  If you add a form, add a purpose: bytes that one form covers must never be a valid body in
another one.  If you change the header, raise `VERSION`.

The pieces of a message have one length, except that the last piece may be shorter.  `decode` checks
that for every frame, so the pieces of a message whose frames agree on total, number and length
(`delivery.Assembly`) neither overlap nor leave a gap.
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
# magic version kind flags pad job context source dest tag seq chunk chunks offset total
_HEAD = struct.Struct("<2sBBBxxx8sQiiiQIIQQ")
_HEAD_BYTES = _HEAD.size
_LENGTH = struct.Struct("<Q")  # of the body, for the tag alone
# what a guarded tag covers: the header and the length of the body
_COVERED = struct.Struct(_HEAD.format + "Q")
HEADER_BYTES = _HEAD_BYTES + TAG_BYTES
# a body of at least this enters the tag as SHA-256; below, one hash is faster than two
HASHED_BYTES = 16 * 1024
LEAF_BYTES = 4 << 20
FLAG_SYNC = 1  # the sender waits until a receive has matched (MPI 4.1, section 3.4)
FLAG_GUARDED = 2  # the tag covers the header alone


class Kind(enum.IntEnum):
    """What a frame is part of."""

    POINT = 0  # part of a point-to-point message, ordered per (context, source)
    ACK = 1  # a synchronous send, named by its sequence number, has been matched
    STEP = 2  # part of a collective, named by (context, source, seq, slot); `tag` is the slot


class Frame(NamedTuple):
    """One decoded frame.

    Attributes
    ----------
    kind : int
        A `Kind`.
    flags : int
        FLAG_SYNC, FLAG_GUARDED.
    context : int
        Of the communicator, 64 bits.
    source, dest : int
        World ranks; `dest` is SHARED (-1) if several ranks may read the frame.
    tag : int
        The message's tag, or the slot of a collective's step.
    seq : int
        Number of the message in its stream, or of the collective on its communicator.
    chunk, chunks : int
        Number of this piece of the message, and of how many.
    offset, total : int
        Start of this piece, and length of the whole message, in bytes.
    body : memoryview
        The piece, a view into the received bytes.
    """

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
    """Keyed hashes to be copied, for each form of the body: as it is, hashed, left out."""
    return (
        start(key, Purpose.FRAME_SHORT),
        start(key, Purpose.FRAME_HASHED),
        start(key, Purpose.FRAME_GUARDED),
    )


def _tag(
    key: bytes,
    covered: bytes,
    body: Sequence[memoryview],
    nbytes: int,
    flags: int,
    leaves: Sequence[bytes] = (),
) -> bytes:
    """Return the tag of a frame.

    `covered` is the header without its tag, then the length of the body; `leaves` are `digests` of
    the body, if they are known.
    """
    short, hashed, guarded = _forms(key)
    if flags & FLAG_GUARDED:
        digest = guarded.copy()
        digest.update(covered)
    elif nbytes < HASHED_BYTES:
        digest = short.copy()
        digest.update(covered)
        for part in body:
            digest.update(part)
    else:
        digest = hashed.copy()
        digest.update(covered)
        digest.update(sha256(b"".join(leaves or digests(body))).digest())
    return digest.digest()


def _pieces_agree(chunk: int, chunks: int, offset: int, nbytes: int, total: int) -> bool:
    """Whether `nbytes` from `offset` on can be piece `chunk` of a message of several pieces."""
    last = chunks - 1
    if chunk < last:
        return offset == chunk * nbytes and last * nbytes < total <= chunks * nbytes
    if chunk > last or chunk == 0:
        return False
    piece, rest = divmod(offset, last)
    return rest == 0 and 0 < nbytes <= piece and offset + nbytes == total


def digests(body: Sequence[memoryview]) -> list[bytes]:
    """Return the SHA-256 of each leaf (`LEAF_BYTES`) of a body.

    Parameters
    ----------
    body
        Byte views that together are the body, or a part of it that begins at a multiple of
        `LEAF_BYTES`.
    """
    leaves = []
    for pieces in cut(body, LEAF_BYTES):
        digest = sha256()
        for piece in pieces:
            digest.update(piece)
        leaves.append(digest.digest())
    return leaves


def encode_whole(
    kind: int,
    flags: int,
    context: int,
    source: int,
    dest: int,
    tag: int,
    seq: int,
    total: int,
    body: Sequence[memoryview],
    job: bytes,
    key: bytes,
) -> tuple[memoryview, ...]:
    """Return the bytes of the only frame of a message; parameters and result as for `encode`.

    Most frames are such, and fewer arguments save 0.3 us.

    Parameters
    ----------
    kind, flags, context, source, dest, tag, seq, total
        Fields of the header, as in `Frame`.
    body
        C-contiguous byte views, borrowed by the result.
    job, key
        Id and key of the job.
    """
    covered = _COVERED.pack(
        _MAGIC, VERSION, kind, flags, job, context, source, dest, tag, seq, 0, 1, 0, total, total
    )
    if flags & FLAG_GUARDED:  # as `_tag` does, written out
        digest = _forms(key)[2].copy()
        digest.update(covered)
        made = digest.digest()
    else:
        made = _tag(key, covered, body, total, flags)
    return (memoryview(covered[:_HEAD_BYTES] + made), *body)


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
    """Return the bytes of a frame.

    The arguments are positional because this is called for every frame.

    Parameters
    ----------
    kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total
        As in `Frame`.
    body
        C-contiguous byte views that together are the body; borrowed, not copied.
    nbytes
        Length of the body in bytes.
    job
        8 bytes that name the job.
    key
        32 bytes, the job's key.

    Returns
    -------
    tuple of memoryview
        The header, then the parts of `body`.  They are valid until the body changes.
    """
    covered = _COVERED.pack(
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
        nbytes,
    )
    return (memoryview(covered[:_HEAD_BYTES] + _tag(key, covered, body, nbytes, flags)), *body)


def decode_head(head: memoryview, nbytes: int, job: bytes, key: bytes) -> Frame:
    """Verify and parse the header of a frame whose body has not been received yet.

    Parameters
    ----------
    head
        The first 84 bytes, from a trusted transport.
    nbytes
        Length of the body in bytes.
    job, key
        As for `encode`.

    Returns
    -------
    Frame
        With an empty body.

    Raises
    ------
    WireError
        As for `decode`, or the tag covers the body, so that it cannot be verified without it.
    """
    frame = decode(head, job, key, True, (), _NOTHING, nbytes)
    if not frame.flags & FLAG_GUARDED:
        raise WireError("the tag covers the body, which has not been received yet")
    return frame


_NOTHING = memoryview(b"")


def decode(
    data: memoryview,
    job: bytes,
    key: bytes,
    guarded: bool = False,
    leaves: Sequence[bytes] = (),
    body: memoryview | None = None,
    nbytes: int = 0,
) -> Frame:
    """Verify and parse a whole frame.

    The version is verified first, then the tag, and only then is the header used.

    Parameters
    ----------
    data
        The received bytes.
    job, key
        As for `encode`.
    guarded
        Whether the channel is a trusted transport, so that the tag need not cover the body.
    leaves
        `digests` of the body, if the channel has computed them from this memory.
    body, nbytes
        The body and its length, if `data` is the header alone; for `decode_head`.

    Returns
    -------
    Frame
        Its body is a view into `data`.

    Raises
    ------
    WireError
        The bytes are too short, of another version or job, damaged, not made with this key, or the
        header contradicts itself.
    """
    if body is None:
        nbytes = data.nbytes - HEADER_BYTES
        body = data[HEADER_BYTES:]
    if nbytes < 0:
        raise WireError(f"{data.nbytes} bytes are less than a frame's header of {HEADER_BYTES}")
    (
        magic,
        version,
        kind,
        flags,
        sender_job,
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
    if sender_job != job:
        raise WireError("the frame belongs to another job")
    if flags & FLAG_GUARDED and not guarded:
        raise WireError("the tag does not cover the body, but the channel is not a trusted one")
    covered = bytes(data[:_HEAD_BYTES]) + _LENGTH.pack(nbytes)
    if not same(data[_HEAD_BYTES:HEADER_BYTES], _tag(key, covered, (body,), nbytes, flags, leaves)):
        raise WireError("the authentication tag is wrong: damaged, or not made with this job's key")
    if chunks == 1:
        agree = chunk == 0 and offset == 0 and nbytes == total
    else:
        agree = _pieces_agree(chunk, chunks, offset, nbytes, total)
    if not agree or kind > 2:
        raise WireError("the header contradicts itself, or the length of the body")
    # tuple.__new__ is C; the constructor of a NamedTuple is a Python function
    return tuple.__new__(
        Frame, (kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total, body)
    )
