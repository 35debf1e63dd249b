"""Posted receives and unexpected messages, matched in order in constant time.

The rule is `envelope.matches`; this file only indexes it.  A message is filed
under the four patterns that match it, a receive under the one it asks for, each
with the age of its arrival, so the oldest match is always at a head.
Source: MPI 4.1, section 3.5 (order), 3.8 (probe, matched probe, cancel).
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
    """The two queues of MPI matching, for all contexts of one rank."""

    def __init__(self) -> None:
        self._age = 0
        self._posted: dict[Pattern, OrderedDict[int, R]] = {}
        self._unexpected: dict[Pattern, OrderedDict[int, M]] = {}
        self._ages: dict[int, int] = {}  # id(message or receive) -> age

    def post(self, receive: R) -> M | None:
        """The oldest unexpected message that `receive` takes, or None after posting it."""
        message = self.take(receive.pattern)
        if message is None:
            self._file(self._posted, (receive.pattern,), receive)
        return message

    def arrive(self, message: M) -> R | None:
        """The oldest posted receive that takes `message`, or None after keeping it."""
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
        """The oldest unexpected message for (context, source, tag), left where it is."""
        queue = self._unexpected.get(pattern)
        return queue[next(iter(queue))] if queue else None

    def take(self, pattern: Pattern) -> M | None:
        """The same, taken out."""
        message = self.probe(pattern)
        if message is not None:
            self._unfile(self._unexpected, patterns(message.envelope), message)
        return message

    def cancel(self, receive: R) -> bool:
        """Withdraw a posted receive; False if a message has already been matched to it."""
        if id(receive) not in self._ages:
            return False
        self._unfile(self._posted, (receive.pattern,), receive)
        return True

    def discard(self, context: int) -> list[M]:
        """Take out every unexpected message of a context."""
        messages = list(self._unexpected.get((context, ANY_SOURCE, ANY_TAG), {}).values())
        for message in messages:
            self._unfile(self._unexpected, patterns(message.envelope), message)
        return messages

    @property
    def waiting(self) -> bool:
        """Whether a receive waits."""
        return bool(self._posted)

    def posted(self) -> list[Pattern]:
        """The patterns for which receives wait."""
        return list(self._posted)

    def _file(
        self, index: dict[Pattern, OrderedDict[int, Any]], keys: tuple[Pattern, ...], item: object
    ) -> None:
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
        age = self._ages.pop(id(item))
        for key in keys:
            queue = index[key]
            del queue[age]
            if not queue:
                del index[key]  # so that memory does not grow with the tags ever used
