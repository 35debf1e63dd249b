"""Envelopes: who sent what to whom, and the ONE predicate that matches them.

Source: MPI 4.1, sections 3.2.3 (envelope), 3.2.4 (wildcards) and 7.2 (contexts).
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


class Envelope(NamedTuple):
    """What a receiver can know of a message before it takes it.

    context: the communicator's 64-bit number; source: world rank; tag: the
    sender's; nbytes: length of the whole payload in bytes.
    """

    context: int
    source: int
    tag: int
    nbytes: int


def matches(context: int, source: int, tag: int, envelope: Envelope) -> bool:
    """Whether a receive for (context, source, tag), wildcards allowed, takes `envelope`."""
    return (
        context == envelope.context
        and source in (ANY_SOURCE, envelope.source)
        and tag in (ANY_TAG, envelope.tag)
    )


def patterns(envelope: Envelope) -> tuple[tuple[int, int, int], ...]:
    """The four (context, source, tag) receives that `matches` accepts for `envelope`."""
    context, source, tag, _ = envelope
    return (
        (context, source, tag),
        (context, source, ANY_TAG),
        (context, ANY_SOURCE, tag),
        (context, ANY_SOURCE, ANY_TAG),
    )


def derive_context(parent: int, *parts: object) -> int:
    """A child communicator's context, which all members compute without talking.

    `parts` are facts that all members share (a counter, a colour, a group).
    64 bits of BLAKE2b: two of a job's communicators collide with probability
    below 1e-9 up to 190,000 communicators.
    """
    digest = hashlib.blake2b(repr((parent, *parts)).encode(), digest_size=8).digest()
    context = int.from_bytes(digest, "little")
    return context if context > CONTEXT_SELF else context + CONTEXT_SELF + 1
