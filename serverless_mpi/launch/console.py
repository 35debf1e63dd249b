"""Console messages: what ranks of platform lambda report to their launcher.

A rank reports that it is up, what its program prints, that it has waited long,
and how it ended.  Each report is one message of an SQS queue, the job's console:

    tag (made with the job's key) | head: one line of JSON | bytes that were printed

The queue reorders and duplicates messages.  So each rank numbers its messages
from 0, and `InOrderReader` yields them in order, each once.  A console serves
one job after the other: a message of an earlier job fails its tag and is dropped.

The number -1 is outside the order: it marks an END that the platform reports
for a rank that could not (`handler.report`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.core.tags import TAG_BYTES, Purpose, make, same

UP, OUT, ERR, WAITS, END = "up", "out", "err", "waits", "end"


@dataclass(frozen=True)
class ConsoleMessage:
    """One report of a rank.

    Attributes
    ----------
    rank
        The rank that reports.
    seq
        Number of the message, from 0; -1 if the platform reports for the rank.
    kind
        UP, OUT, ERR, WAITS or END.
    data
        Of OUT and ERR: the bytes that were printed.
    facts
        Of UP, WAITS and END: JSON values.
    """

    rank: int
    seq: int
    kind: str
    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)


def encode(message: ConsoleMessage, job_id: str, key: bytes) -> bytes:
    """Return the bytes of a message.

    Parameters
    ----------
    message
        What a rank reports.
    job_id, key
        Of the job; see `JobSpec`.

    Returns
    -------
    bytes
        Tag, head and data, as the head of this file draws them.
    """
    head = {
        "job": job_id,
        "rank": message.rank,
        "seq": message.seq,
        "kind": message.kind,
        "facts": message.facts,
    }
    body = json.dumps(head).encode() + b"\n" + message.data
    return make(key, Purpose.CONSOLE, body) + body


def decode(encoded: bytes, job_id: str, key: bytes) -> ConsoleMessage | None:
    """Return the message in bytes that `encode` made.

    Parameters
    ----------
    encoded
        Bytes from the queue, which others may write to.
    job_id, key
        Of the job; see `JobSpec`.

    Returns
    -------
    ConsoleMessage or None
        None for a message of another job, one without the job's tag, or a damaged one.
    """
    tag, body = encoded[:TAG_BYTES], encoded[TAG_BYTES:]
    if not same(tag, make(key, Purpose.CONSOLE, body)):
        return None
    line, _, data = body.partition(b"\n")
    try:
        head = json.loads(line)
        job, kind, facts = head["job"], head["kind"], head["facts"]
        rank, seq = head["rank"], head["seq"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    has_types = isinstance(rank, int) and isinstance(seq, int) and isinstance(facts, dict)
    if not has_types or job != job_id or kind not in (UP, OUT, ERR, WAITS, END):
        return None
    return ConsoleMessage(rank, seq, kind, data, facts)


class InOrderReader:
    """Restores the order of each rank's messages and drops duplicates."""

    def __init__(self) -> None:
        self._next_seq: dict[int, int] = {}  # by rank
        self._early: dict[int, dict[int, ConsoleMessage]] = {}  # by rank and number
        self._reported: set[int] = set()  # ranks for which the platform has reported

    def push(self, message: ConsoleMessage) -> Iterator[ConsoleMessage]:
        """Yield the messages that are next in order now that this one has arrived.

        Parameters
        ----------
        message
            As it came from the queue. A duplicate yields nothing.

        Yields
        ------
        ConsoleMessage
            The next messages of that rank, in the order in which it reported them.
        """
        if message.seq < 0:
            if message.rank not in self._reported:
                self._reported.add(message.rank)
                yield message
            return
        early = self._early.setdefault(message.rank, {})
        if message.seq >= self._next_seq.get(message.rank, 0):
            early[message.seq] = message
        while (seq := self._next_seq.get(message.rank, 0)) in early:
            self._next_seq[message.rank] = seq + 1
            yield early.pop(seq)
