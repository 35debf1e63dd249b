"""Uniform agreement among the members of a group of which any may die: a sans-IO state machine.

The members agree on a `Value`. The coordinator is the lowest member that is not known to have
ended. It collects the state of every other such member, proposes a value, and decides when all of
them have adopted it:

1. A member sends the coordinator its state: the proposal that it has adopted, with the number of
   the coordinator that made it, or else its own contribution.
2. The coordinator proposes the adopted value with the highest number; if no member has adopted one,
   the combination of all contributions. It adds the members that it knows to have ended.
3. A member adopts a proposal, unless it has turned to a later coordinator, and confirms it.
4. When every member that has not ended has confirmed, the coordinator decides and announces it.

When a member learns that its coordinator has ended, it turns to the next one and sends its state.

Why it is uniform: a value is decided only when every member that has not ended has adopted it, so
each later coordinator finds it among the states with the highest number. Failure notices must be
*accurate* (a member that is reported never acts again) and *complete* (each end is reported to all
others some time); they may come in any order and at different times. Without a death an agreement
takes four messages per member: state, proposal, confirmation, decision.

A member that has decided keeps the machine: if the coordinator ends before it has announced the
decision to all, the members that know it pass it on to the next coordinator.

References
----------
R. Guerraoui and L. Rodrigues, Introduction to Reliable Distributed Programming (2006), chapter 5:
uniform consensus with a perfect failure detector. MPI 5 has agreement in `MPI_Comm_agree`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

STATE, PROPOSAL, CONFIRMATION, DECISION = range(4)
NONE = -1  # number of a state that is a contribution


class Value(NamedTuple):
    """What is agreed on.

    Attributes
    ----------
    flag : int
        Bitwise AND of the contributed flags.
    ended : frozenset of int
        World ranks of the members that are excluded: the union of what the members knew.
    acknowledged : frozenset of int
        World ranks whose failure every contributor had acknowledged.
    """

    flag: int
    ended: frozenset[int]
    acknowledged: frozenset[int]


class Message(NamedTuple):
    """A message between two members: a type, the number of the coordinator, and a value."""

    type: int
    number: int
    value: Value | None = None

    def to_json(self) -> list[object]:
        """Return the message as JSON values, for `from_json`."""
        value = self.value
        fields = value and [value.flag, sorted(value.ended), sorted(value.acknowledged)]
        return [self.type, self.number, fields]

    @classmethod
    def from_json(cls, fields: Sequence[object]) -> Message:
        """Rebuild a message from what `to_json` returned.

        Parameters
        ----------
        fields
            Parsed JSON, of an authenticated frame.
        """
        kind, number, value = json.loads(json.dumps(fields))
        if value is None:
            return cls(kind, number)
        flag, ended, acknowledged = value
        return cls(kind, number, Value(flag, frozenset(ended), frozenset(acknowledged)))


def _combine(values: Iterable[Value], ended: Iterable[int]) -> Value:
    """Combine contributions, and add members that have ended."""
    first, *others = values
    for value in others:
        first = Value(
            first.flag & value.flag,
            first.ended | value.ended,
            first.acknowledged & value.acknowledged,
        )
    return first._replace(ended=first.ended | frozenset(ended))


class Agreement:
    """One agreement, as one member sees it.

    Parameters
    ----------
    rank
        This member.
    members
        World ranks of all members, this one included.
    contribution
        Of this member.
    ended
        World ranks that are known to have ended.
    send
        send(rank, message) is called for each message to another member.

    Attributes
    ----------
    decided : Value or None
        The decision, the same on every member that has one.
    """

    def __init__(
        self,
        rank: int,
        members: Iterable[int],
        contribution: Value,
        ended: Iterable[int],
        send: Callable[[int, Message], None],
    ) -> None:
        self._rank = rank
        self._members = tuple(sorted(members))
        self._contribution = contribution
        self._ended = set(ended)
        self._send = send
        self.decided: Value | None = None
        self._adopted: tuple[int, Value] | None = None
        self._states: dict[int, tuple[int, Value]] = {}  # of the members that chose this one
        self._confirmed: set[int] = set()
        self._proposed: Value | None = None
        self._coordinator = NONE
        self._turn()

    def _alive(self) -> list[int]:
        return [member for member in self._members if member not in self._ended]

    def _turn(self) -> None:
        """Send the state to the coordinator, if there is a new one; or go on as the coordinator."""
        coordinator = self._alive()[0]
        if coordinator != self._coordinator:
            self._coordinator = coordinator
            if self.decided is not None:
                self._announce()
            elif coordinator != self._rank:
                self._send(coordinator, Message(STATE, *self._state()))
        if coordinator == self._rank and self.decided is None:
            self._coordinate()

    def _state(self) -> tuple[int, Value]:
        return self._adopted or (NONE, self._contribution)

    def _coordinate(self) -> None:
        """As the coordinator: propose when all states are there, decide when all confirmed."""
        others = [member for member in self._alive() if member != self._rank]
        if self._proposed is None:
            if any(member not in self._states for member in others):
                return
            # also those of members that have ended since
            states = [self._state(), *self._states.values()]
            number, value = max(states, key=lambda state: state[0])
            if number == NONE:
                ended = self._ended.intersection(self._members)
                value = _combine((contribution for _, contribution in states), ended)
            self._proposed = value
            self._adopted = (self._rank, value)
            for member in others:
                self._send(member, Message(PROPOSAL, self._rank, value))
        if all(member in self._confirmed for member in others):
            self._decide(self._proposed)

    def _decide(self, value: Value) -> None:
        self.decided = value
        self._announce()

    def _announce(self) -> None:
        """Send the decision to the members if this one coordinates them, else to who does."""
        assert self.decided is not None
        for member in self._alive() if self._coordinator == self._rank else (self._coordinator,):
            if member != self._rank:
                self._send(member, Message(DECISION, self._coordinator, self.decided))

    def member_ended(self, rank: int) -> None:
        """Process a failure notice.

        Parameters
        ----------
        rank
            World rank that has ended; no effect if it is not a member.
        """
        if rank in self._members and rank not in self._ended:
            self._ended.add(rank)
            self._turn()

    def receive(self, source: int, message: Message) -> None:
        """Process a message.

        Parameters
        ----------
        source
            World rank of its sender, a member.
        message
            What the sender passed to `send`.
        """
        kind, number, value = message
        if kind == DECISION and self.decided is None:
            assert value is not None
            self.decided = value
            # a member that passes the decision on does it for a coordinator that has ended
            if self._coordinator == self._rank:
                self._announce()
        elif kind == STATE:
            assert value is not None
            if self.decided is not None:
                self._send(source, Message(DECISION, self._rank, self.decided))
            else:
                self._states[source] = (number, value)
                if self._coordinator == self._rank:
                    self._coordinate()
        elif kind == PROPOSAL:
            assert value is not None
            if self.decided is not None:
                self._send(source, Message(DECISION, self._rank, self.decided))
            elif number >= self._coordinator:
                self._adopted = (number, value)
                self._send(source, Message(CONFIRMATION, number))
        elif kind == CONFIRMATION and number == self._rank:
            self._confirmed.add(source)
            if self._coordinator == self._rank and self.decided is None:
                self._coordinate()
