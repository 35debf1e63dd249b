"""`Matcher` against the naive list that MPI's text describes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, Envelope, matches, patterns
from serverless_mpi.core.matching import Matcher

CONTEXTS = st.integers(1, 2)
SOURCES = st.integers(0, 2)
TAGS = st.integers(0, 2)
WILD_SOURCES = st.one_of(SOURCES, st.just(ANY_SOURCE))
WILD_TAGS = st.one_of(TAGS, st.just(ANY_TAG))


@dataclass(eq=False)
class Message:
    envelope: Envelope


@dataclass(eq=False)
class Receive:
    pattern: tuple[int, int, int]


class AgainstNaive(RuleBasedStateMachine):
    receives = Bundle("receives")

    def __init__(self) -> None:
        super().__init__()
        self.matcher: Matcher[Message, Receive] = Matcher()
        self.posted: list[Receive] = []
        self.unexpected: list[Message] = []

    def naive_probe(self, pattern: tuple[int, int, int]) -> Message | None:
        return next((m for m in self.unexpected if matches(*pattern, m.envelope)), None)

    @rule(target=receives, context=CONTEXTS, source=WILD_SOURCES, tag=WILD_TAGS)
    def post(self, context: int, source: int, tag: int) -> Receive:
        receive = Receive((context, source, tag))
        expected = self.naive_probe(receive.pattern)
        assert self.matcher.post(receive) is expected
        if expected is None:
            self.posted.append(receive)
        else:
            self.unexpected.remove(expected)
        return receive

    @rule(context=CONTEXTS, source=SOURCES, tag=TAGS)
    def arrive(self, context: int, source: int, tag: int) -> None:
        message = Message(Envelope(context, source, tag, 0))
        expected = next((r for r in self.posted if matches(*r.pattern, message.envelope)), None)
        assert self.matcher.arrive(message) is expected
        if expected is None:
            self.unexpected.append(message)
        else:
            self.posted.remove(expected)

    @rule(context=CONTEXTS, source=WILD_SOURCES, tag=WILD_TAGS, take=st.booleans())
    def probe(self, context: int, source: int, tag: int, take: bool) -> None:
        pattern = (context, source, tag)
        expected = self.naive_probe(pattern)
        if take:
            assert self.matcher.take(pattern) is expected
            if expected is not None:
                self.unexpected.remove(expected)
        else:
            assert self.matcher.probe(pattern) is expected

    @rule(receive=receives)
    def cancel(self, receive: Receive) -> None:
        assert self.matcher.cancel(receive) is (receive in self.posted)
        if receive in self.posted:
            self.posted.remove(receive)

    def teardown(self) -> None:
        assert sorted(self.matcher.posted()) == sorted({r.pattern for r in self.posted})


TestAgainstNaive = AgainstNaive.TestCase
TestAgainstNaive.settings = settings(
    derandomize=True, deadline=None, max_examples=150, stateful_step_count=40
)


def test_patterns_are_exactly_what_matches() -> None:
    envelope = Envelope(1, 2, 3, 0)
    for context in (1, 2):
        for source in (ANY_SOURCE, 1, 2):
            for tag in (ANY_TAG, 2, 3):
                pattern = (context, source, tag)
                assert matches(*pattern, envelope) == (pattern in patterns(envelope))


def test_memory_does_not_grow_with_the_tags_ever_used() -> None:
    matcher: Matcher[Message, Receive] = Matcher()
    for tag in range(1000):
        matcher.arrive(Message(Envelope(1, 0, tag, 0)))
        wild = ((1, 0, tag), (1, ANY_SOURCE, tag), (1, 0, ANY_TAG), (1, ANY_SOURCE, ANY_TAG))
        assert matcher.post(Receive(wild[tag % 4])) is not None
    assert not any(matcher._indices.values())
    assert not matcher._unexpected and not matcher._posted
