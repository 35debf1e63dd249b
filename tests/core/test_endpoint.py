"""Any order, duplication or delay of frames gives the same messages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.core.endpoint import GAP_TIMEOUT_S, Endpoint, Receive
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.core.parcel import MANY, Parcel
from serverless_mpi.core.wire import HEADER_BYTES, Kind
from serverless_mpi.errors import ERR_NO_MEM, ChannelError, MPIException

JOB = bytes(8)
KEY = bytes(32)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


def endpoint(rank: int, body: int = 1 << 20, held: int = 1 << 30) -> Endpoint:
    return Endpoint(rank, JOB, KEY, HEADER_BYTES + body, held)


def raw(parcel: Parcel) -> memoryview:
    return memoryview(b"".join(parcel.parts))


def view(data: bytes) -> list[memoryview]:
    return [memoryview(data)]


def got(receive: Receive) -> bytes:
    assert receive.done and receive.data is not None
    return bytes(receive.data)


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.binary(max_size=40)), max_size=12),
    st.integers(1, 16),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_shuffled_and_duplicated_frames_keep_the_order(
    messages: list[tuple[int, int, bytes]], body: int, seed: int, post_first: bool
) -> None:
    chance = random.Random(seed)
    senders = [endpoint(0, body), endpoint(1, body)]
    receiver = endpoint(2, body)
    frames = []
    for source, tag, data in messages:
        frames += [raw(p) for p in senders[source].send(7, 2, tag, view(data))]
    frames += chance.choices(frames, k=len(frames)) if frames else []
    chance.shuffle(frames)

    def post() -> list[tuple[int, int, bytes, Receive]]:
        return [
            (source, tag, data, receiver.post(7, source, tag)) for source, tag, data in messages
        ]

    receives = post() if post_first else []
    for now, frame in enumerate(frames):
        receiver.receive(frame, float(now))
    receives = receives or post()
    for source, tag, data, receive in receives:
        assert got(receive) == data
        assert receive.envelope is not None
        assert (receive.envelope.source, receive.envelope.tag, receive.envelope.nbytes) == (
            source,
            tag,
            len(data),
        )
    assert receiver.held_bytes == 0
    assert receiver.dropped == 0
    assert receiver.next_deadline() is None


@SETTINGS
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 2**32))
def test_a_wildcard_takes_them_in_sending_order(messages: list[bytes], seed: int) -> None:
    sender, receiver = endpoint(0, 8), endpoint(1, 8)
    frames = [raw(p) for data in messages for p in sender.send(7, 1, len(data), view(data))]
    random.Random(seed).shuffle(frames)
    for frame in frames:
        receiver.receive(frame, 0.0)
    for data in messages:
        assert got(receiver.post(7, ANY_SOURCE, ANY_TAG)) == data


@SETTINGS
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_steps_of_collectives_come_by_name(seed: int, body: int) -> None:
    chance = random.Random(seed)
    sender, receiver = endpoint(0, body), endpoint(1, body)
    names = [(seq, slot) for seq in range(3) for slot in range(3)]
    frames = []
    for seq, slot in names:
        parcels = sender.publish(7, seq, slot, (1, 2), view(b"%d/%d and more" % (seq, slot)))
        assert all(p.dests == (1, 2) and p.name.dest == MANY for p in parcels)
        frames += [raw(p) for p in parcels] * 2
    chance.shuffle(frames)
    early = {name: receiver.expect(7, 0, *name) for name in chance.sample(names, 4)}
    for frame in frames[: len(frames) // 2]:
        receiver.receive(frame, 0.0)
    late = {name: receiver.expect(7, 0, *name) for name in names if name not in early}
    for frame in frames[len(frames) // 2 :]:
        receiver.receive(frame, 0.0)
    for (seq, slot), receive in {**early, **late}.items():
        assert got(receive) == b"%d/%d and more" % (seq, slot)


def test_duplicates_of_a_collective_that_is_over_are_dropped() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    (parcel,) = sender.publish(7, 0, 0, (1,), view(b"x"))
    receiver.receive(raw(parcel), 0.0)
    assert got(receiver.expect(7, 0, 0, 0)) == b"x"
    receiver.retire(7, 0)
    receiver.receive(raw(parcel), 0.0)
    assert (receiver.duplicates, receiver.held_bytes, len(receiver._steps)) == (1, 0, 0)


def test_a_synchronous_send_ends_when_a_receive_matches() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    matched: list[bool] = []
    (parcel,) = sender.send(7, 1, 5, view(b"x"), lambda: matched.append(True))
    receiver.receive(raw(parcel), 0.0)
    assert not receiver.outbox and [w.kind for w in sender.wanted()] == [Kind.ACK]
    receiver.post(7, 0, 5)
    (ack,) = receiver.outbox
    for _ in range(2):  # an acknowledgement that comes twice counts once
        sender.receive(raw(ack), 0.0)
    assert matched == [True] and sender.wanted() == []


def test_a_message_to_oneself_never_meets_the_channel() -> None:
    me = endpoint(3)
    data = bytearray(b"mine")
    matched: list[bool] = []
    assert me.send(7, 3, 1, [memoryview(data)], lambda: matched.append(True)) == []
    data[:] = b"gone"
    assert me.probe(7, 3, 1) is not None and not matched
    assert got(me.post(7, ANY_SOURCE, 1)) == b"mine" and matched == [True]


def test_a_long_body_lands_in_the_receivers_memory() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    into = bytearray(12)
    receive = receiver.post(7, 0, 0, memoryview(into))
    for parcel in reversed(sender.send(7, 1, 0, view(b"0123456789"))):
        receiver.receive(raw(parcel), 0.0)
    assert receive.landed and into == b"0123456789\0\0" and got(receive) == b"0123456789"
    assert receive.data is not None and receive.data.obj is into


def test_a_body_that_does_not_fit_is_given_apart() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    into = bytearray(3)
    receive = receiver.post(7, 0, 0, memoryview(into))
    for parcel in sender.send(7, 1, 0, view(b"0123456789")):
        receiver.receive(raw(parcel), 0.0)
    assert not receive.landed and into == bytes(3) and got(receive) == b"0123456789"


def test_a_single_frame_into_memory() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    into = bytearray(4)
    (parcel,) = sender.send(7, 1, 0, view(b"abcd"))
    receiver.receive(raw(parcel), 0.0)
    receive = receiver.post(7, 0, 0, memoryview(into))
    assert receive.landed and into == b"abcd"


def test_matched_probe_takes_the_message_from_everybody_else() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    frames = [raw(p) for p in sender.send(7, 1, 0, view(b"01234567"))]
    receiver.receive(frames[0], 0.0)
    message = receiver.mprobe(7, ANY_SOURCE, ANY_TAG)
    assert message is not None and receiver.probe(7, ANY_SOURCE, ANY_TAG) is None
    receive = receiver.post_matched(message)
    assert not receive.done
    receiver.receive(frames[1], 0.0)
    assert got(receive) == b"01234567" and receiver.held_bytes == 0


def test_frames_of_others_are_dropped_and_counted() -> None:
    receiver = endpoint(1)
    stranger = Endpoint(0, JOB, b"k" * 32, 1 << 20, 1 << 20)
    misdirected = endpoint(0).send(7, 2, 0, view(b"for rank 2"))
    for parcel in (*stranger.send(7, 1, 0, view(b"x")), *misdirected):
        receiver.receive(raw(parcel), 0.0)
    receiver.receive(memoryview(b"noise"), 0.0)
    assert receiver.dropped == 3 and receiver.probe(7, ANY_SOURCE, ANY_TAG) is None


def test_a_lost_message_is_found_out_by_the_clock_alone() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    sender.send(7, 1, 0, view(b"lost"))
    (later,) = sender.send(7, 1, 0, view(b"later"))
    receiver.receive(raw(later), 10.0)
    assert receiver.next_deadline() == 10.0 + GAP_TIMEOUT_S
    receiver.check(10.0 + GAP_TIMEOUT_S - 1)
    with pytest.raises(ChannelError, match="message 0 from rank 0"):
        receiver.check(10.0 + GAP_TIMEOUT_S)


def test_unasked_bytes_are_bounded() -> None:
    sender, receiver = endpoint(0), endpoint(1, held=10)
    frames = [raw(p) for _ in range(3) for p in sender.send(7, 1, 0, view(b"12345"))]
    receiver.receive(frames[0], 0.0)
    receiver.receive(frames[1], 0.0)
    with pytest.raises(MPIException) as caught:
        receiver.receive(frames[2], 0.0)
    assert caught.value.Get_error_class() == ERR_NO_MEM and "rank 0" in str(caught.value)


def test_wanted_names_the_next_frames() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    receiver.post(7, 0, 3)
    receiver.post(7, ANY_SOURCE, 4)
    receiver.expect(8, 0, 5, 6)
    wanted = {(w.kind, w.context, w.source, w.dest, w.seq, w.chunk) for w in receiver.wanted()}
    assert wanted == {
        (Kind.POINT, 7, 0, 1, 0, 0),
        (Kind.POINT, 7, ANY_SOURCE, 1, 0, 0),
        (Kind.STEP, 8, 0, MANY, 5, 0),
    }
    first, *_ = sender.send(7, 1, 3, view(b"0123456789"))
    receiver.receive(raw(first), 0.0)
    assert (Kind.POINT, 7, 0, 1, 0, 1) in {
        (w.kind, w.context, w.source, w.dest, w.seq, w.chunk) for w in receiver.wanted()
    }


def guarded(rank: int, body: int = 1 << 20) -> Endpoint:
    return Endpoint(rank, JOB, KEY, HEADER_BYTES + body, 1 << 30, guarded=True)


def land(receiver: Endpoint, parcel: Parcel) -> memoryview | None:
    """Deliver a frame in two steps, header and body; the memory that its body was put in."""
    data = raw(parcel)
    landing = receiver.land(data[:HEADER_BYTES], data.nbytes - HEADER_BYTES, 0.0)
    if landing is None:
        receiver.receive(data, 0.0)
        return None
    landing.memory[:] = data[HEADER_BYTES:]
    receiver.landed(landing)
    return landing.memory


@SETTINGS
@given(st.binary(min_size=1, max_size=60), st.integers(1, 20), st.booleans(), st.integers(0, 2**32))
def test_bodies_land_in_the_receivers_memory_in_any_order(
    data: bytes, body: int, posted: bool, seed: int
) -> None:
    sender, receiver = guarded(0, body), guarded(1, body)
    into = bytearray(len(data))
    parcels = sender.send(7, 1, 3, view(data))
    random.Random(seed).shuffle(parcels)
    receive = receiver.post(7, 0, 3, memoryview(into)) if posted else None
    places = [land(receiver, parcel) for parcel in parcels]
    if posted:
        assert all(place is not None and place.obj is into for place in places)
    receive = receive or receiver.post(7, 0, 3, memoryview(into))
    assert (
        receive.landed
        and into == data
        and receiver.held_bytes == 0
        and receiver.next_deadline() is None
    )


def test_a_landing_keeps_its_receive() -> None:
    """While a body is on its way another message cannot take the receive whose memory it goes to."""
    long, short, receiver = guarded(0), guarded(2), guarded(1)
    into = bytearray(4)
    receive = receiver.post(7, ANY_SOURCE, 3, memoryview(into))
    data = raw(long.send(7, 1, 3, view(b"long"))[0])
    landing = receiver.land(data[:HEADER_BYTES], 4, 0.0)
    assert landing is not None
    receiver.receive(raw(short.send(7, 1, 3, view(b"shor"))[0]), 0.0)
    assert not receive.done and into == bytes(4)
    landing.memory[:] = b"long"
    receiver.landed(landing)
    assert (
        receive.landed
        and into == b"long"
        and receive.envelope is not None
        and receive.envelope.source == 0
    )
    assert got(receiver.post(7, 2, 3)) == b"shor"


def test_what_cannot_land_goes_the_ordinary_way() -> None:
    sender, receiver = guarded(0), guarded(1)
    (parcel,) = sender.send(7, 1, 0, view(b"once"))
    assert (
        land(receiver, parcel) is not None
        and land(receiver, parcel) is None
        and receiver.duplicates == 1
    )
    (step,) = sender.publish(7, 0, 0, (1,), view(b"step"))
    assert land(receiver, step) is None and got(receiver.expect(7, 0, 0, 0)) == b"step"
    forged = bytearray(raw(parcel))
    forged[70] ^= 1
    assert receiver.land(memoryview(forged)[:HEADER_BYTES], 4, 0.0) is None
    receiver.post(7, 0, 0, memoryview(bytearray(2)))
    assert (
        land(receiver, sender.send(7, 1, 0, view(b"too long"))[0]) is not None
    )  # in memory of its own


def test_what_is_awaited_is_told_in_words() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    first, *rest = sender.send(7, 1, 3, view(b"0123456789"))
    receiver.receive(raw(first), 0.0)
    receiver.post(7, 0, 9)
    assert receiver.awaits()
    assert receiver.awaited() == [
        ("a message from", 7, 0, 9),
        ("the rest of a message from", 7, 0, None),
    ]
    for parcel in rest:
        receiver.receive(raw(parcel), 0.0)
    assert receiver.awaited() == [("a message from", 7, 0, 9)]


def test_a_step_that_comes_again_before_its_collective_is_over_is_a_duplicate() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    frames = [raw(parcel) for parcel in sender.publish(7, 0, 0, (1,), view(b"0123456789"))]
    receive = receiver.expect(7, 0, 0, 0)
    for frame in frames + frames:
        receiver.receive(frame, 0.0)
    assert got(receive) == b"0123456789"
    assert (receiver.duplicates, receiver.held_bytes, receiver._steps) == (len(frames), 0, {})
    receiver.retire(7, 0)
    assert not receiver._finished
