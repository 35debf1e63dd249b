"""Posted receives and unexpected messages, matched in order and in constant time.

The rule is `envelope.matches`; this module indexes it.  A receive is filed under its own pattern,
and a message under the pattern without wildcards, each in the order of arrival.  So the oldest
match is always the first of a queue, and few queues are looked at:

- A message looks at the queue of its own pattern alone while no receive with a wildcard is posted.
- The three indices of messages for patterns with wildcards are made when one is first looked up,
  and kept from then on.  A program without wildcards never pays for them.

The oldest message that a pattern with wildcards matches is also the first of its own queue, so only
the indices for other wildcards remove messages from their middle.

An empty queue is deleted, so memory does not grow with the number of tags ever used.

References
----------
MPI 4.1, sections 3.5 (order) and 3.8 (probe, matched probe, cancel).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, Envelope, patterns


class _HasEnvelope(Protocol):
    @property
    def envelope(self) -> Envelope: ...


class _HasPattern(Protocol):
    @property
    def pattern(self) -> tuple[int, int, int]: ...


M = TypeVar("M", bound=_HasEnvelope)
R = TypeVar("R", bound=_HasPattern)

Pattern = tuple[int, int, int]


def _wildcards(pattern: Pattern) -> int:
    """Index in `patterns` of the kind of a pattern: 0 without wildcards, to 3 with two."""
    return (pattern[2] == ANY_TAG) + 2 * (pattern[1] == ANY_SOURCE)


class Matcher(Generic[M, R]):
    """The posted receives and the unexpected messages of one rank, in all its contexts."""

    def __init__(self) -> None:
        self._age = 0  # of the next receive or message
        self._posted: dict[Pattern, deque[tuple[int, R]]] = {}
        self._posted_wild = 0  # receives with a wildcard
        self._unexpected: dict[Pattern, deque[tuple[int, M]]] = {}  # no pattern has a wildcard
        # kind of wildcards -> pattern -> messages by age; only kinds that were looked up
        self._indices: dict[int, dict[Pattern, OrderedDict[int, M]]] = {}

    def post(self, receive: R) -> M | None:
        """Return the oldest unexpected message that `receive` matches; None: it is posted now.

        Parameters
        ----------
        receive
            Not posted before; kept until a message matches it, or `cancel`.
        """
        pattern = receive.pattern
        if self._unexpected:
            message = self.take(pattern)
            if message is not None:
                return message
        self._age = age = self._age + 1
        queue = self._posted.get(pattern)
        if queue is None:
            self._posted[pattern] = deque(((age, receive),))
        else:
            queue.append((age, receive))
        if pattern[1] == ANY_SOURCE or pattern[2] == ANY_TAG:
            self._posted_wild += 1
        return None

    def claim(self, context: int, source: int, tag: int) -> R | None:
        """Remove and return the oldest receive that matches a message; None if there is none.

        Parameters
        ----------
        context, source, tag
            Envelope of the message.
        """
        pattern = (context, source, tag)
        if self._posted_wild:
            pattern = self._oldest(pattern)
        queue = self._posted.get(pattern)
        if queue is None:
            return None
        receive = queue.popleft()[1]
        if not queue:
            del self._posted[pattern]
        if pattern[1] == ANY_SOURCE or pattern[2] == ANY_TAG:
            self._posted_wild -= 1
        return receive

    def _oldest(self, pattern: Pattern) -> Pattern:
        """The pattern of the oldest receive that matches a message of this pattern."""
        oldest = pattern
        age = 0
        for key in patterns(Envelope(*pattern, 0)):
            queue = self._posted.get(key)
            if queue is not None and (not age or queue[0][0] < age):
                oldest, age = key, queue[0][0]
        return oldest

    def keep(self, message: M) -> None:
        """File a message that no receive has matched.

        Parameters
        ----------
        message
            Kept until a receive matches it, or `discard`.
        """
        self._age = age = self._age + 1
        envelope = message.envelope
        pattern = envelope[:3]
        queue = self._unexpected.get(pattern)
        if queue is None:
            self._unexpected[pattern] = deque(((age, message),))
        else:
            queue.append((age, message))
        if self._indices:
            keys = patterns(envelope)
            for kind, index in self._indices.items():
                index.setdefault(keys[kind], OrderedDict())[age] = message

    def arrive(self, message: M) -> R | None:
        """Return the oldest matching receive; None: `message` is kept as unexpected.

        Parameters
        ----------
        message
            Complete or not; its envelope is known.
        """
        envelope = message.envelope
        receive = self.claim(envelope[0], envelope[1], envelope[2])
        if receive is None:
            self.keep(message)
        return receive

    def probe(self, pattern: Pattern) -> M | None:
        """Return the oldest unexpected message for (context, source, tag), and leave it there.

        Parameters
        ----------
        pattern
            (context, source, tag), the latter two perhaps wildcards.
        """
        kind = _wildcards(pattern)
        if kind:
            found = self._index(kind).get(pattern)
            return found[next(iter(found))] if found else None
        queue = self._unexpected.get(pattern)
        return queue[0][1] if queue is not None else None

    def take(self, pattern: Pattern) -> M | None:
        """Remove and return the oldest unexpected message for (context, source, tag).

        Parameters
        ----------
        pattern
            (context, source, tag), the latter two perhaps wildcards.
        """
        message = self.probe(pattern)
        if message is not None:
            envelope = message.envelope
            own = envelope[:3]
            queue = self._unexpected[own]
            age, _ = queue.popleft()
            if not queue:
                del self._unexpected[own]
            if self._indices:
                keys = patterns(envelope)
                for kind, index in self._indices.items():
                    messages = index[keys[kind]]
                    del messages[age]
                    if not messages:
                        del index[keys[kind]]
        return message

    def _index(self, kind: int) -> dict[Pattern, OrderedDict[int, M]]:
        """The index of one kind of wildcards, made at its first use."""
        index = self._indices.get(kind)
        if index is None:
            index = self._indices[kind] = {}
            filed = [entry for queue in self._unexpected.values() for entry in queue]
            for age, message in sorted(filed, key=lambda entry: entry[0]):
                key = patterns(message.envelope)[kind]
                index.setdefault(key, OrderedDict())[age] = message
        return index

    def cancel(self, receive: R) -> bool:
        """Withdraw a posted receive; return False if it has been matched.

        Parameters
        ----------
        receive
            What `post` was given.
        """
        pattern = receive.pattern
        queue = self._posted.get(pattern)
        place = next((i for i, entry in enumerate(queue or ()) if entry[1] is receive), None)
        if queue is None or place is None:
            return False
        del queue[place]
        if not queue:
            del self._posted[pattern]
        if _wildcards(pattern):
            self._posted_wild -= 1
        return True

    def discard(self, context: int) -> list[M]:
        """Remove and return every unexpected message of a context.

        Parameters
        ----------
        context
            Context of a communicator.
        """
        messages: list[M] = []
        for pattern in [pattern for pattern in self._unexpected if pattern[0] == context]:
            while (message := self.take(pattern)) is not None:
                messages.append(message)
        return messages

    def remove(self, message: M) -> None:
        """Remove one unexpected message; no effect if it is not filed.

        Parameters
        ----------
        message
            What `keep` or `arrive` was given.
        """
        own = message.envelope[:3]
        queue = self._unexpected.get(own)
        entry = next((entry for entry in queue or () if entry[1] is message), None)
        if queue is None or entry is None:
            return
        queue.remove(entry)
        if not queue:
            del self._unexpected[own]
        keys = patterns(message.envelope)
        for kind, index in self._indices.items():
            del index[keys[kind]][entry[0]]
            if not index[keys[kind]]:
                del index[keys[kind]]

    def receives(self) -> list[R]:
        """Return the posted receives."""
        return [receive for queue in self._posted.values() for _, receive in queue]

    @property
    def waiting(self) -> bool:
        """Whether a receive is posted."""
        return bool(self._posted)

    def posted(self) -> list[Pattern]:
        """Return the patterns of the posted receives."""
        return list(self._posted)
