"""The handshake at a port, without sockets: who agrees with whom, and on what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.errors import JobError
from serverless_mpi.processes.bridge import Member
from serverless_mpi.processes.ports import Met, Steps, accepting, connecting

PORT, KEY, BRIDGE = b"portport", bytes(range(32)), b"linklink"
GROUPS = st.lists(
    st.builds(
        Member,
        st.sampled_from(["00" * 8, "ab" * 8]),
        st.integers(0, 1 << 20),
        st.sampled_from(["@0001", "@ffff"]),
    ),
    min_size=1,
    max_size=4,
)
ONE, OTHER = [Member("00" * 8, 0, "@1")], [Member("ab" * 8, 0, "@2"), Member("ab" * 8, 1, "@3")]


class Side:
    """One generator, fed as its socket would."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.inbox, self.met = steps, b"", None
        self.met: Met | None = None
        self.out, self.needed = next(steps)

    def run(self) -> bytes:
        """Go on as far as what has arrived allows; return what it sends."""
        sent, self.out = self.out, b""
        while self.met is None and len(self.inbox) >= self.needed:
            data, self.inbox = self.inbox[: self.needed], self.inbox[self.needed :]
            try:
                out, self.needed = self.steps.send(data)
            except StopIteration as end:
                self.met = end.value
            else:
                sent += out
        return sent


def meet(connector: Side, acceptor: Side, flip: int | None = None) -> bytes:
    """Run both sides to their end, with one bit of all that is sent flipped; return what was sent."""
    sides, wire = (connector, acceptor), b""
    for turn in range(20):
        sent = sides[turn % 2].run()
        at = None if flip is None else flip // 8 - len(wire)
        wire += sent
        if at is not None and 0 <= at < len(sent):
            sent = sent[:at] + bytes([sent[at] ^ (1 << flip % 8)]) + sent[at + 1 :]
        sides[1 - turn % 2].inbox += sent
    return wire


def both(
    one: list[Member] = ONE, other: list[Member] = OTHER, key: bytes = KEY
) -> tuple[Side, Side]:
    return (
        Side(connecting(PORT, key, one, b"c" * 16)),
        Side(accepting(PORT, KEY, other, BRIDGE, b"a" * 16)),
    )


@given(GROUPS, GROUPS)
def test_both_sides_agree_on_the_bridge_and_know_the_other_group(
    one: list[Member], other: list[Member]
) -> None:
    connector, acceptor = both(one, other)
    meet(connector, acceptor)
    assert connector.met and acceptor.met
    assert (connector.met.bridge_id, connector.met.key) == (
        acceptor.met.bridge_id,
        acceptor.met.key,
    )
    assert connector.met.remote == tuple(other) and acceptor.met.remote == tuple(one)
    assert connector.met.key != KEY


WIRE_BITS = 8 * len(meet(*both()))


@given(st.integers(0, WIRE_BITS - 1))
def test_what_was_changed_on_the_way_makes_no_bridge(flip: int) -> None:
    connector, acceptor = both()
    try:
        meet(connector, acceptor, flip)
    except JobError:
        return
    keys = [side.met.key for side in (connector, acceptor) if side.met is not None]
    assert len(keys) < 2 or keys[0] != keys[1]


def test_another_key_is_refused_before_any_member_is_read() -> None:
    connector, acceptor = both(key=bytes(32))
    with pytest.raises(JobError, match="key of this port"):
        meet(connector, acceptor)
    stranger = Side(connecting(PORT, KEY, ONE, b"c" * 16))
    acceptor = Side(accepting(b"another ", KEY, OTHER, BRIDGE, b"a" * 16))
    with pytest.raises(JobError, match="this port"):
        meet(stranger, acceptor)


def test_a_recorded_connection_cannot_be_replayed() -> None:
    connector, acceptor = both()
    sent = []
    for _ in range(4):
        sent.append(connector.run())
        acceptor.inbox += sent[-1]
        connector.inbox += acceptor.run()
    again = Side(accepting(PORT, KEY, OTHER, BRIDGE, b"b" * 16))
    again.inbox = b"".join(sent)
    with pytest.raises(JobError, match="key of this port"):
        again.run()
