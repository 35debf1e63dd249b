"""Envelopes, and the predicate that matches them with receives.

`matches` is the definition.  `patterns` lists the four receives for which it is true, so that
`core/matching.py` can look a message up in constant time. If you change one, change the other: a
test compares them.

References
----------
MPI 4.1, sections 3.2.3 (envelope), 3.2.4 (wildcards) and 7.2 (contexts).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

ANY_SOURCE = -2
ANY_TAG = -1
PROC_NULL = -1
ROOT = -3
UNDEFINED = -32766

TAG_UB = 0x3FFFFFFF  # largest tag a program may use

CONTEXT_WORLD = 1
CONTEXT_SELF = 2
CONTEXT_FAULTS = 3  # messages of the fault tolerance itself, see runtime/failures.py


class Envelope(NamedTuple):
    """What is known of a message before its payload is received.

    Attributes
    ----------
    context : int
        The communicator's 64-bit number.
    source : int
        World rank of the sender.
    tag : int
        The sender's tag.
    nbytes : int
        Length of the whole payload in bytes.
    """

    context: int
    source: int
    tag: int
    nbytes: int


def matches(context: int, source: int, tag: int, envelope: Envelope) -> bool:
    """Return whether a receive for (context, source, tag), with wildcards, matches `envelope`.

    Parameters
    ----------
    context, source, tag
        Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
    envelope
        Envelope of a message.
    """
    return (
        context == envelope.context
        and source in (ANY_SOURCE, envelope.source)
        and tag in (ANY_TAG, envelope.tag)
    )


def patterns(envelope: Envelope) -> tuple[tuple[int, int, int], ...]:
    """Return the four receives (context, source, tag) that match `envelope`.

    Parameters
    ----------
    envelope
        Envelope of a message.
    """
    context, source, tag, _ = envelope
    return (
        (context, source, tag),
        (context, source, ANY_TAG),
        (context, ANY_SOURCE, tag),
        (context, ANY_SOURCE, ANY_TAG),
    )


def derive_context(parent: int, *parts: object) -> int:
    """Return a new communicator's context, which every member computes without communication.

    Parameters
    ----------
    parent
        Context of the communicator that it is derived from.
    parts
        Facts that all members share, and that differ between the communicators derived from
        `parent`: a counter, a colour, a group.

    Returns
    -------
    int
        64 bits of BLAKE2b, never one of the predefined contexts.  Two of a job's 190,000
        communicators have the same one with a probability below 1e-9.
    """
    digest = hashlib.blake2b(repr((parent, *parts)).encode(), digest_size=8).digest()
    context = int.from_bytes(digest, "little")
    return context if context > CONTEXT_FAULTS else context + CONTEXT_FAULTS + 1
