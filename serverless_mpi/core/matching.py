"""Posted receives and unexpected messages, matched in order and in constant time.

The rule is `envelope.matches`; this module indexes it.  A message is filed under each of the four
patterns that match it, and a receive under its own pattern, in the order of arrival.  So the oldest
match is always the first of a queue, and at most four queues are looked at.

A message that is taken is removed from all four queues, and an empty queue is deleted, so memory
does not grow with the number of tags ever used.  Ages are kept by `id`: the queues hold a reference
to every object whose id is used.

References
----------
MPI 4.1, sections 3.5 (order) and 3.8 (probe, matched probe, cancel).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, Protocol, TypeVar

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


class Matcher(Generic[M, R]):
    """The posted receives and the unexpected messages of one rank, in all its contexts."""

    def __init__(self) -> None:
        self._age = 0
        self._posted: dict[Pattern, OrderedDict[int, R]] = {}
        self._unexpected: dict[Pattern, OrderedDict[int, M]] = {}
        self._ages: dict[int, int] = {}  # id(message or receive) -> age

    def post(self, receive: R) -> M | None:
        """Return the oldest unexpected message that `receive` matches; None: it is posted now."""
        message = self.take(receive.pattern)
        if message is None:
            self._file(self._posted, (receive.pattern,), receive)
        return message

    def arrive(self, message: M) -> R | None:
        """Return the oldest matching receive; None: `message` is kept as unexpected."""
        best: R | None = None
        best_age = -1
        for pattern in patterns(message.envelope):
            queue = self._posted.get(pattern)
            if queue:
                age = next(iter(queue))
                if best is None or age < best_age:
                    best, best_age = queue[age], age
        if best is None:
            self._file(self._unexpected, patterns(message.envelope), message)
        else:
            self._unfile(self._posted, (best.pattern,), best)
        return best

    def probe(self, pattern: Pattern) -> M | None:
        """Return the oldest unexpected message for (context, source, tag), and leave it there."""
        queue = self._unexpected.get(pattern)
        return queue[next(iter(queue))] if queue else None

    def take(self, pattern: Pattern) -> M | None:
        """Remove and return the oldest unexpected message for (context, source, tag)."""
        message = self.probe(pattern)
        if message is not None:
            self._unfile(self._unexpected, patterns(message.envelope), message)
        return message

    def cancel(self, receive: R) -> bool:
        """Withdraw a posted receive; return False if it has been matched."""
        if id(receive) not in self._ages:
            return False
        self._unfile(self._posted, (receive.pattern,), receive)
        return True

    def discard(self, context: int) -> list[M]:
        """Remove and return every unexpected message of a context."""
        messages = list(self._unexpected.get((context, ANY_SOURCE, ANY_TAG), {}).values())
        for message in messages:
            self._unfile(self._unexpected, patterns(message.envelope), message)
        return messages

    @property
    def waiting(self) -> bool:
        """Whether a receive is posted."""
        return bool(self._posted)

    def posted(self) -> list[Pattern]:
        """Return the patterns of the posted receives."""
        return list(self._posted)

    def _file(
        self, index: dict[Pattern, OrderedDict[int, Any]], keys: tuple[Pattern, ...], item: object
    ) -> None:
        """Append an item to the queues of `keys`, with the next age."""
        self._age += 1
        self._ages[id(item)] = self._age
        for key in keys:
            queue = index.get(key)
            if queue is None:
                queue = index[key] = OrderedDict()
            queue[self._age] = item

    def _unfile(
        self, index: dict[Pattern, OrderedDict[int, Any]], keys: tuple[Pattern, ...], item: object
    ) -> None:
        """Remove an item from the queues of `keys`, and delete the queues that are empty then."""
        age = self._ages.pop(id(item))
        for key in keys:
            queue = index[key]
            del queue[age]
            if not queue:
                del index[key]
