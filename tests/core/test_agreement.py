"""Agreement under deaths: every crash point of small groups, and random schedules of larger ones."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.core.agreement import DECISION, Agreement, Message, Value

ALL = 0xFF


class Died(Exception):
    """A member dies in the middle of a call."""


class Group:
    """A group of members, their messages and notices in flight, and a random order of events.

    crashes: member -> number of messages that it sends before it dies while it sends the next;
    with 0 it dies before its first message. Its messages in flight may be lost.
    """

    def __init__(self, size: int, crashes: dict[int, int], seed: int) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.left = dict(crashes)
        self.flags = [ALL & ~(1 << rank) for rank in range(size)]
        self.dead: set[int] = set()
        self.members: dict[int, Agreement] = {}
        self.known: list[set[int]] = [set() for _ in range(size)]
        self.early: list[list[tuple[int, Message]]] = [[] for _ in range(size)]
        self.decisions: dict[int, Value] = {}  # also those of members that died later
        # (receiver, sender, message); a message of None is the notice of the sender's death
        self.flying: list[tuple[int, int, Message | None]] = []

    def send(self, source: int, dest: int, message: Message) -> None:
        if source in self.left:
            if not self.left[source]:
                raise Died
            self.left[source] -= 1
        self.flying.append((dest, source, Message.from_json(message.to_json())))

    def run(self) -> None:
        joining = list(range(self.size))
        while joining or self.flying:
            if joining and self.random.random() < 0.4:
                rank = joining.pop(self.random.randrange(len(joining)))
                self.act(rank, lambda rank=rank: self.join(rank))
                continue
            if not self.flying:
                continue
            dest, source, message = self.flying.pop(self.random.randrange(len(self.flying)))
            if dest not in self.dead:
                self.act(dest, lambda: self.deliver(dest, source, message))

    def join(self, rank: int) -> None:
        known = frozenset(self.known[rank])
        contribution = Value(self.flags[rank], known, known)
        # built in two steps, since the constructor may die
        member = self.members[rank] = Agreement.__new__(Agreement)
        member.decided = None
        member.__init__(  # type: ignore[misc]
            rank,
            range(self.size),
            contribution,
            known,
            lambda dest, message: self.send(rank, dest, message),
        )
        for source, message in self.early[rank]:
            member.receive(source, message)

    def deliver(self, dest: int, source: int, message: Message | None) -> None:
        member = self.members.get(dest)
        if message is None:
            self.known[dest].add(source)
            if member is not None:
                member.member_ended(source)
        elif member is None:
            self.early[dest].append((source, message))
        else:
            member.receive(source, message)

    def act(self, rank: int, event: object) -> None:
        if rank in self.dead:
            return
        try:
            event()  # type: ignore[operator]
        except Died:
            self.dead.add(rank)
            self.flying = [
                entry for entry in self.flying if entry[1] != rank or self.random.random() < 0.5
            ]
            self.flying += [(other, rank, None) for other in range(self.size) if other != rank]
        member = self.members.get(rank)
        if member is not None and member.decided is not None:
            self.decisions[rank] = member.decided

    def check(self) -> None:
        survivors = set(range(self.size)) - self.dead
        assert survivors <= set(self.decisions), "a survivor has not decided"
        assert len(set(self.decisions.values())) == 1, "decisions differ"
        (value,) = set(self.decisions.values())
        assert value.ended <= self.dead, "a member that lives was excluded"
        assert value.acknowledged <= value.ended
        contributed = {rank for rank in range(self.size) if not value.flag >> rank & 1}
        assert survivors <= contributed, "the flag of a survivor is missing"
        assert value.flag | (1 << self.size) - 1 == ALL
        assert contributed | value.ended == set(range(self.size)), "excluded without a notice"


def play(size: int, crashes: dict[int, int], seed: int) -> Group:
    group = Group(size, crashes, seed)
    group.run()
    group.check()
    return group


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_crash_point_of_every_set_of_members(size: int) -> None:
    points = range(3 * size)  # a member sends at most so many messages before others die
    for count in range(size):
        for victims in itertools.combinations(range(size), count):
            for sent in itertools.product(points, repeat=count):
                for seed in range(6):
                    play(size, dict(zip(victims, sent, strict=True)), seed)


def test_every_crash_point_of_four_members() -> None:
    for count in range(4):
        for victims in itertools.combinations(range(4), count):
            for sent in itertools.product(range(7), repeat=count):
                play(4, dict(zip(victims, sent, strict=True)), hash(sent) & 0xFFFF)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 8).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.dictionaries(st.integers(0, size - 1), st.integers(0, 20), max_size=size - 1),
            st.integers(0, 1 << 32),
        )
    )
)
def test_random_crashes_and_orders(case: tuple[int, dict[int, int], int]) -> None:
    play(*case)


def test_without_a_death_a_member_sends_two_messages_and_gets_two() -> None:
    sent = []
    group = Group(4, {}, 0)
    send = group.send
    group.send = lambda source, dest, message: (  # type: ignore[method-assign]
        sent.append((source, dest, message.type)),
        send(source, dest, message),
    )[1]
    group.run()
    group.check()
    assert len(sent) == 4 * 3
    assert sum(kind == DECISION for _, _, kind in sent) == 3
    (value,) = set(group.decisions.values())
    assert value == Value(ALL & ~0b1111, frozenset(), frozenset())
