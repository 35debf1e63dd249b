"""Authentication tags, keyed with the job's key.  No other module computes or compares one.

Every use of the key has a `Purpose`, which enters BLAKE2b as its personalization. A tag made for
one purpose is therefore random noise for every other purpose, whatever bytes the two cover.  To use
the key for something new, add a purpose; never reuse one.

References
----------
Aumasson et al., "BLAKE2: simpler, smaller, fast as MD5" (2013): keyed hashing, personalization.
"""

from __future__ import annotations

import enum
from hashlib import blake2b
from hmac import compare_digest

TAG_BYTES = 16  # a forger who tries n frames succeeds with probability n / 2**128
PROOF_BYTES = 32  # of a handshake


class Purpose(enum.Enum):
    """What a tag authenticates.  Values are distinct and have at most 16 bytes."""

    FRAME_SHORT = b"smpi frame short"  # the tag covers the body itself
    FRAME_HASHED = b"smpi frame hash"  # the tag covers the body's hash
    FRAME_GUARDED = b"smpi frame guard"  # the tag does not cover the body
    REFERENCE = b"smpi reference"
    CONSOLE = b"smpi console"
    ACCEPT = b"smpi accept"  # the acceptor's proof in a handshake
    CONNECT = b"smpi connect"  # the connecting side's proof
    GOODBYE = b"smpi goodbye"  # the proper end of a connection
    STREAM_KEY = b"smpi stream key"  # makes the key of what a connection of `direct` encrypts
    READ_REPORT = b"smpi read report"  # which shared objects a rank has read
    STOP = b"smpi stop"  # the object that ends a job
    LINK_OFFER = b"smpi link offer"  # where a rank accepts a link
    LINK_LOWER = b"smpi link lower"  # the lower rank's proof in the handshake of a link
    LINK_HIGHER = b"smpi link higher"
    LINK_KEY_LOWER = b"smpi key lower"  # makes the key of what the lower rank encrypts
    LINK_KEY_HIGHER = b"smpi key higher"
    NOTICE = b"smpi notice"  # that a rank has ended
    SPAWN = b"smpi spawn"  # makes the key of the bridge between a job and one that it spawns
    CHILD = b"smpi child job"  # makes the key of a spawned job from that of the bridge
    PORT_ACCEPT = b"smpi port accept"  # the proof of the group that accepts at a port
    PORT_CONNECT = b"smpi port asks"  # the proof of the group that connects to a port
    PORT_BRIDGE = b"smpi port bridge"  # makes the key of the bridge that a port has made
    PORT_SEAL = b"smpi port seal"  # makes the pad under which a group shares that key
    INCARNATION = b"smpi incarnation"  # makes the key of a job that was started again
    CHECKPOINT = b"smpi checkpoint"  # records and parts of a checkpoint
    EMULATOR = b"smpi emulator"  # secret access key at the job's own emulator


def start(key: bytes, purpose: Purpose, nbytes: int = TAG_BYTES) -> blake2b:
    """Return a keyed hash; feed it what the tag covers, and its digest of `nbytes` is the tag.

    Parameters
    ----------
    key
        The job's key, 32 bytes.
    purpose
        What the tag authenticates.
    nbytes
        Length of the tag, at most 64 bytes.
    """
    return blake2b(key=key, digest_size=nbytes, person=purpose.value)


def make(key: bytes, purpose: Purpose, covered: bytes, nbytes: int = TAG_BYTES) -> bytes:
    """Return the tag of the bytes `covered`, `nbytes` long.

    Parameters
    ----------
    key, purpose
        As for `start`.
    covered
        Bytes that the tag authenticates.
    nbytes
        Length of the tag, at most 64 bytes.
    """
    return blake2b(covered, key=key, digest_size=nbytes, person=purpose.value).digest()


# same(tag, expected): whether a received tag is the expected one, in time independent of its bytes
same = compare_digest
