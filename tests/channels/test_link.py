"""Links without a network: records, acknowledgements, handshakes, offers, and their enemies."""

from __future__ import annotations

import ipaddress
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.base import Delivery, FrameName, OutgoingFrame
from serverless_mpi.channels.link import (
    ACK,
    ACK_FRAMES,
    COUNT,
    FRAME,
    HEADER,
    RECORD_BYTES,
    Link,
    PlainRecords,
    Records,
    SealedRecords,
)
from serverless_mpi.channels.linker import HELLO, Handshake
from serverless_mpi.channels.routed import open_offer, seal_offer
from serverless_mpi.core.tags import PROOF_BYTES
from serverless_mpi.job import JobSpec

MAX_FRAME_BYTES = 1 << 20
KEYS = (bytes(range(32)), bytes(range(1, 33)))
SPEC = JobSpec("0123456789abcdef", 0, 4, "routed", b"k" * 32)


def frame(body: bytes) -> OutgoingFrame:
    half = len(body) // 2
    parts = (memoryview(body[:half]), memoryview(body[half:]))
    return OutgoingFrame((1,), FrameName(0, 1, 0, 1, 0, 0, 0), parts)


def records(kind: str) -> tuple[Records, Records]:
    """Return the two ends' records."""
    if kind == "plain":
        return PlainRecords(), PlainRecords()
    return SealedRecords(*KEYS), SealedRecords(*KEYS[::-1])


class Pair:
    """Two ends of a link, and the bytes between them as the test passes them on."""

    def __init__(self, kind: str) -> None:
        self.wires: list[socket.socket] = []
        self.ends: list[Link] = []
        for rank, form in enumerate(records(kind)):
            outer, inner = socket.socketpair()
            for sock in (outer, inner):
                sock.setblocking(False)
            self.wires.append(inner)
            self.ends.append(Link(outer, 1 - rank, form, MAX_FRAME_BYTES, retains=kind == "sealed"))
        self.arrived: list[list[bytes]] = [[], []]
        self.open = [True, True]

    def send(self, end: int, body: bytes) -> bytes:
        """Send a frame from an end; return the bytes on the wire."""
        link = self.ends[end]
        item = frame(body)
        link.queue(item, item.parts, len(body))
        return self.flush(end)

    def flush(self, end: int) -> bytes:
        data = b""
        while not self.ends[end].write():
            data += self.taken(end)
        return data + self.taken(end)

    def taken(self, end: int) -> bytes:
        data = b""
        try:
            while piece := self.wires[end].recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        return data

    def give(self, end: int, data: bytes, steps: list[int]) -> None:
        """Let an end receive `data` in pieces of these lengths."""
        at, step = 0, 0
        while at < len(data) and self.open[end]:
            length = min(1 + steps[step % len(steps)], 32768) if steps else 32768
            at += self.wires[end].send(data[at : at + length])
            step += 1
            self.open[end] = self.ends[end].read(lambda item: self.take(end, item))

    def take(self, end: int, item: Delivery) -> None:
        assert not item.data.readonly
        self.arrived[end].append(bytes(item.data))

    def close(self) -> None:
        for sock in (*self.wires, *(end.sock for end in self.ends)):
            sock.close()


@pytest.fixture(params=["plain", "sealed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(kind: str) -> Iterator[Pair]:
    made = Pair(kind)
    yield made
    made.close()


LENGTHS = st.one_of(
    st.integers(0, 300),
    st.integers(RECORD_BYTES - 40, RECORD_BYTES + 40),
    st.integers(100_000, 300_000),
)


@settings(max_examples=40)
@given(st.sampled_from(["plain", "sealed"]), st.lists(LENGTHS, max_size=6), st.data())
def test_frames_arrive_whole_whatever_the_pieces(
    kind: str, lengths: list[int], data: st.DataObject
) -> None:
    pair = Pair(kind)
    bodies = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    wire = b"".join(pair.send(0, body) for body in bodies)
    pair.give(1, wire, data.draw(st.lists(st.integers(0, 40_000), max_size=4)))
    assert pair.arrived[1] == bodies
    pair.close()


@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=4), st.data())
def test_a_changed_byte_ends_a_sealed_link_and_delivers_nothing_wrong(
    lengths: list[int], data: st.DataObject
) -> None:
    pair = Pair("sealed")
    bodies = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    wire = bytearray(b"".join(pair.send(0, body) for body in bodies))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    pair.give(1, bytes(wire), [])
    arrived = pair.arrived[1]
    assert arrived == bodies[: len(arrived)] and len(arrived) < len(bodies)
    pair.close()


@pytest.mark.parametrize("change", ["replay", "swap", "drop"])
def test_sealed_records_come_once_and_in_order(change: str) -> None:
    pair = Pair("sealed")
    first, second = pair.send(0, b"first"), pair.send(0, b"second")
    wire = {"replay": first + first, "swap": second + first, "drop": second}[change]
    pair.give(1, wire, [])
    assert pair.arrived[1] == ([b"first"] if change == "replay" else [])
    assert not pair.open[1] and "damaged or changed" in pair.ends[1].fault
    pair.close()


def test_the_directions_have_different_keys() -> None:
    pair = Pair("sealed")
    wire = pair.send(0, b"mine")
    pair.give(0, wire, [])  # sent back to its sender
    assert pair.arrived[0] == [] and not pair.open[0]
    pair.close()


def test_what_is_not_acknowledged_is_returned_once() -> None:
    pair = Pair("sealed")
    bodies = [b"%d" % index for index in range(ACK_FRAMES + 3)]
    for body in bodies[:ACK_FRAMES]:
        pair.give(1, pair.send(0, body), [])
    pair.ends[1].acknowledge()
    pair.give(0, pair.flush(1), [])
    for body in bodies[ACK_FRAMES:]:
        pair.send(0, body)
    frames = pair.ends[0].unacknowledged()
    assert [b"".join(one.parts) for one in frames] == bodies[ACK_FRAMES:]
    assert pair.ends[0].unacknowledged() == []
    pair.close()


def test_an_acknowledgement_of_more_than_was_sent_ends_the_link() -> None:
    pair = Pair("sealed")
    pair.send(0, b"one")
    forged = b"".join(pair.ends[1]._records.write(3, (COUNT.pack(2),), COUNT.size))
    pair.give(0, forged, [])
    assert not pair.open[0] and "acknowledged 2 frames" in pair.ends[0].fault
    pair.close()


def test_an_acknowledgement_of_frames_that_took_another_way_ends_the_link() -> None:
    pair = Pair("sealed")
    for body in (b"one", b"two"):
        pair.give(1, pair.send(0, body), [])
    link = pair.ends[0]

    class Kept(deque[OutgoingFrame]):
        def __len__(self) -> int:
            count = super().__len__()
            self.clear()  # as a thread that gives the link up does right after
            return count

    link._unacknowledged = Kept(link._unacknowledged)
    pair.give(0, b"".join(pair.ends[1]._records.write(ACK, (COUNT.pack(2),), COUNT.size)), [])
    assert not pair.open[0]
    pair.close()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xff\xff\xff\0", "announced a record of 4294967295 bytes"),
        (b"\0\0\0\0\x09", "impossible record of type 9"),
        (b"\1\0\0\0\x02x", "impossible record of type 2"),
        (b"\1\0\0\0\x04x", "impossible record of type 4"),
        (b"\x08\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff", "announced a frame"),
        (b"\x08\0\0\0\x01\0\0\0\0\0\0\0\0", "announced a frame of 0 bytes"),
    ],
)
def test_impossible_records_end_the_link(content: bytes, fault: str) -> None:
    pair = Pair("plain")
    pair.give(1, content, [])
    assert not pair.open[1] and fault in pair.ends[1].fault
    assert pair.arrived[1] == []
    pair.close()


def test_a_goodbye_ends_the_link_properly(pair: Pair) -> None:
    pair.ends[0].queue_goodbye()
    pair.give(1, pair.flush(0), [])
    assert not pair.open[1] and pair.ends[1].ended


def test_an_end_without_a_goodbye_is_a_fault(pair: Pair) -> None:
    pair.wires[1].close()
    assert not pair.ends[1].read(lambda item: None)
    assert not pair.ends[1].ended and "without a goodbye" in pair.ends[1].fault


# --- handshake -----------------------------------------------------------------------------


def talk(left: Handshake, right: Handshake, steps: list[int]) -> bool:
    """Let two sides talk in pieces of these lengths; return whether both are proven."""
    to_right = left.hello() if left.peer is not None else b""
    to_left = right.hello() if right.peer is not None else b""
    step = 0
    while to_right or to_left:
        for side in ("right", "left"):
            data, end = (to_right, right) if side == "right" else (to_left, left)
            length = min(end.needed, 1 + steps[step % len(steps)] if steps else end.needed)
            step += 1
            piece, rest = data[:length], data[length:]
            answer = end.feed(piece) if piece else b""
            if answer is None:
                return False
            if side == "right":
                to_right, to_left = rest, to_left + answer
            else:
                to_left, to_right = rest, to_right + answer
    return not left.needed and not right.needed


@given(st.booleans(), st.lists(st.integers(0, 60), max_size=5))
def test_both_sides_prove_the_key(simultaneous: bool, steps: list[int]) -> None:
    lower = Handshake(SPEC.with_rank(1), 3)
    higher = Handshake(SPEC.with_rank(3), 1 if simultaneous else None)
    assert talk(lower, higher, steps)
    assert (lower.peer, higher.peer) == (3, 1)
    sealed = memoryview(b"".join(lower.sealed().write(FRAME, (b"body",), 4)))
    body = bytearray(4)
    higher.sealed().read(FRAME, sealed[HEADER.size :], memoryview(body))
    assert body == b"body"


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, rank=3, key=b"x" * 32),
        replace(SPEC, rank=3, job_id="ffffffffffffffff"),
        replace(SPEC, rank=2),
    ],
)
@pytest.mark.parametrize("simultaneous", [True, False])
def test_another_key_job_or_rank_is_refused(other: JobSpec, simultaneous: bool) -> None:
    lower = Handshake(SPEC.with_rank(1), 3)
    assert not talk(lower, Handshake(other, 1 if simultaneous else None), [])
    assert lower.needed


def test_what_is_sent_back_proves_nothing() -> None:
    side = Handshake(SPEC.with_rank(1), 3)
    assert side.feed(side.hello()) is None  # it is for rank 3


def test_a_stranger_who_mirrors_the_proof_is_refused() -> None:
    side = Handshake(SPEC.with_rank(1), 3)
    forged = HELLO.pack(*HELLO.unpack(side.hello())[:2], 3, 1, b"n" * 16)
    proof = side.feed(forged)
    assert proof is not None and len(proof) == PROOF_BYTES
    assert side.feed(proof) is None


# --- offers --------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 65535), st.ip_addresses())
def test_an_offer_is_read_by_its_reader_only(
    source: int, attempt: int, port: int, address: ipaddress.IPv4Address
) -> None:
    sealed = memoryview(seal_offer(SPEC.key, source, 2, attempt, (str(address), port)))
    assert open_offer(sealed, SPEC.key, 2) == (source, attempt, (str(address), port))
    assert open_offer(sealed, SPEC.key, 1) is None
    assert open_offer(sealed, b"x" * 32, 2) is None


@given(st.data())
def test_a_damaged_offer_is_not_one(data: st.DataObject) -> None:
    sealed = bytearray(seal_offer(SPEC.key, 0, 2, 1, ("10.1.2.3", 4000)))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    assert open_offer(memoryview(sealed), SPEC.key, 2) is None
    length = data.draw(st.integers(0, len(sealed) - 1))
    assert open_offer(memoryview(sealed)[:length], SPEC.key, 2) is None
