"""What ranks say to their launcher: they are up, what they print, that they have waited long, how they ended.

A word is a message of a queue: a tag made with the job's key, a head in JSON, the bytes that were printed.  Queues
reorder and duplicate; each rank numbers its words, and the launcher hears them in order, once.
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
    """One thing a rank says.

    rank, seq: who says it, and its number from 0; kind: UP, OUT, ERR, WAITS or END; data: what was printed;
    facts: of UP, WAITS and END.
    """

    rank: int
    seq: int
    kind: str
    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)


def encode(word: ConsoleMessage, job_id: str, key: bytes) -> bytes:
    """The message."""
    head = json.dumps(
        {"job": job_id, "rank": word.rank, "seq": word.seq, "kind": word.kind, "facts": word.facts}
    ).encode()
    body = head + b"\n" + word.data
    return make(key, Purpose.CONSOLE, body) + body


def decode(message: bytes, job_id: str, key: bytes) -> ConsoleMessage | None:
    """The word in a message, or None: it is of another job, not made with the job's key, or not a word."""
    tag, body = message[:TAG_BYTES], message[TAG_BYTES:]
    if not same(tag, make(key, Purpose.CONSOLE, body)):
        return None
    line, _, data = body.partition(b"\n")
    try:
        head = json.loads(line)
        job, kind, facts = head["job"], head["kind"], head["facts"]
        rank, seq = head["rank"], head["seq"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(rank, int) and isinstance(seq, int) and isinstance(facts, dict)
    if not good or job != job_id or kind not in (UP, OUT, ERR, WAITS, END):
        return None
    return ConsoleMessage(rank, seq, kind, data, facts)


class InOrderReader:
    """Puts words in order.  A rank's END that the platform itself reports (seq -1) stands outside the order."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._early: dict[int, dict[int, ConsoleMessage]] = {}
        self._reported: set[int] = set()

    def hear(self, word: ConsoleMessage) -> Iterator[ConsoleMessage]:
        """The words that may be heard now, in order; nothing for one that was heard before."""
        if word.seq < 0:
            if word.rank not in self._reported:
                self._reported.add(word.rank)
                yield word
            return
        early = self._early.setdefault(word.rank, {})
        if word.seq >= self._next.get(word.rank, 0):
            early[word.seq] = word
        while (number := self._next.get(word.rank, 0)) in early:
            self._next[word.rank] = number + 1
            yield early.pop(number)
