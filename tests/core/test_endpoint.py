"""Any order, duplication or delay of frames gives the same messages."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.core.delivery import Freed
from serverless_mpi.core.endpoint import GAP_TIMEOUT_S, Endpoint, Receive
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, CONTEXT_SELF, CONTEXT_WORLD
from serverless_mpi.core.frames import SHARED, OutgoingFrame
from serverless_mpi.core.wire import HEADER_BYTES, Kind, digests
from serverless_mpi.errors import ERR_COMM, ERR_NO_MEM, ChannelError, MPIException

JOB = bytes(8)
KEY = bytes(32)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


def endpoint(rank: int, body: int = 1 << 20, held: int = 1 << 30) -> Endpoint:
    return Endpoint(rank, JOB, KEY, HEADER_BYTES + body, held)


def raw(parcel: OutgoingFrame) -> memoryview:
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
        assert all(p.dests == (1, 2) and p.name.dest == SHARED for p in parcels)
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
    assert (receiver.duplicates, receiver.held_bytes, receiver._contexts[7].steps) == (1, 0, {})


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
        (Kind.STEP, 8, 0, SHARED, 5, 0),
    }
    first, *_ = sender.send(7, 1, 3, view(b"0123456789"))
    receiver.receive(raw(first), 0.0)
    assert (Kind.POINT, 7, 0, 1, 0, 1) in {
        (w.kind, w.context, w.source, w.dest, w.seq, w.chunk) for w in receiver.wanted()
    }


def guarded(rank: int, body: int = 1 << 20) -> Endpoint:
    return Endpoint(rank, JOB, KEY, HEADER_BYTES + body, 1 << 30, guarded=True)


def land(receiver: Endpoint, parcel: OutgoingFrame) -> memoryview | None:
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
    assert (receiver.duplicates, receiver.held_bytes) == (len(frames), 0)
    receiver.retire(7, 0)
    assert not receiver._contexts[7].steps


def forged(parcel: OutgoingFrame) -> memoryview:
    """Header and tag of a true frame with a long body, and those bytes that its tag is made of in the body's place."""
    true = raw(parcel)
    hashed = sha256(b"".join(digests((true[HEADER_BYTES:],)))).digest()
    return memoryview(bytes(true[:HEADER_BYTES]) + hashed)


def test_a_frame_whose_body_was_replaced_by_its_digest_is_dropped() -> None:
    """Alone, as one of several frames of a message, and as a step of a collective."""
    body = random.Random(1).randbytes(90_000)
    sender, receiver = endpoint(0, 40_000), endpoint(1, 40_000)
    whole = endpoint(2)
    (alone,) = whole.send(7, 1, 0, view(body))
    several = sender.send(7, 1, 0, view(body))
    steps = whole.publish(7, 0, 0, (1,), view(body))
    parcels = [alone, *several, *steps]
    assert len(parcels) == 5
    posted = [receiver.post(7, 2, 0), receiver.post(7, 0, 0), receiver.expect(7, 2, 0, 0)]
    for parcel in parcels:
        receiver.receive(forged(parcel), 0.0)
    assert receiver.dropped == 5 and not any(receive.done for receive in posted)
    for parcel in parcels:
        receiver.receive(raw(parcel), 0.0)
    assert [got(receive) for receive in posted] == [body] * 3 and receiver.duplicates == 0


@SETTINGS
@given(st.integers(0, 2**32), st.booleans())
def test_frames_of_a_message_that_do_not_agree_are_dropped(seed: int, step: bool) -> None:
    """Each is authentic and agrees with itself: a message is one of those that were sent, never a mixture."""
    chance = random.Random(seed)
    bodies = [chance.randbytes(nbytes) for nbytes in (11, 11, 11, 9, 10)]
    frames = []
    for piece, data in zip((4, 5, 3, 3, 4), bodies, strict=True):
        sender = endpoint(0, piece)
        parcels = (
            sender.publish(7, 0, 0, (1,), view(data)) if step else sender.send(7, 1, 0, view(data))
        )
        frames += [raw(parcel) for parcel in parcels]
    chance.shuffle(frames)
    receiver = endpoint(1, 5)
    receive = receiver.expect(7, 0, 0, 0) if step else receiver.post(7, 0, 0)
    for frame in frames:
        receiver.receive(frame, 0.0)
    assert receive.done and got(receive) in bodies and receiver.held_bytes == 0


@pytest.mark.parametrize("kind", ["message", "landing", "step"])
def test_memory_is_counted_before_it_is_taken(kind: str) -> None:
    total, cap = 64 << 20, 1 << 20
    sender = guarded(0, 100_000)
    receiver = Endpoint(1, JOB, KEY, HEADER_BYTES + 100_000, cap, guarded=True)
    data = view(bytes(total))
    first = raw(
        sender.publish(7, 0, 0, (1,), data)[0] if kind == "step" else sender.send(7, 1, 0, data)[0]
    )
    tracemalloc.start()
    try:
        with pytest.raises(MPIException) as caught:
            if kind == "landing":
                receiver.land(first[:HEADER_BYTES], first.nbytes - HEADER_BYTES, 0.0)
            else:
                receiver.receive(first, 0.0)
        assert tracemalloc.get_traced_memory()[1] < cap
    finally:
        tracemalloc.stop()
    assert caught.value.Get_error_class() == ERR_NO_MEM
    receiver = Endpoint(1, JOB, KEY, HEADER_BYTES + 100_000, cap, guarded=True)
    into = memoryview(bytearray(total))  # memory that a receive asked for is not counted
    receive = receiver.expect(7, 0, 0, 0) if kind == "step" else receiver.post(7, 0, 0, into)
    if kind == "landing":
        assert receiver.land(first[:HEADER_BYTES], first.nbytes - HEADER_BYTES, 0.0) is not None
    else:
        receiver.receive(first, 0.0)
    assert receiver.held_bytes == 0 and not receive.done


def test_a_message_that_is_not_whole_is_held_with_all_its_bytes_until_a_receive_takes_it() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    frames = [raw(parcel) for parcel in sender.send(7, 1, 0, view(b"0123456789"))]
    receiver.receive(frames[2], 0.0)
    receiver.receive(frames[2], 0.0)
    assert receiver.held_bytes == 10 and receiver.duplicates == 1
    receive = receiver.post(7, 0, 0)
    assert receiver.held_bytes == 0
    for frame in frames[:2]:
        receiver.receive(frame, 0.0)
    assert got(receive) == b"0123456789" and receiver.held_bytes == 0


def test_steps_that_nobody_took_go_with_their_collective() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    for slot in range(3):  # one of them stays incomplete
        for parcel in sender.publish(7, 0, slot, (1,), view(b"0123456789"))[: 3 - slot // 2]:
            receiver.receive(raw(parcel), 0.0)
    other = sender.publish(7, 1, 0, (1,), view(b"next"))
    receiver.receive(raw(other[0]), 0.0)
    assert got(receiver.expect(7, 0, 0, 1)) == b"0123456789"
    assert receiver.held_bytes == 24
    receiver.retire(7, 0)
    assert receiver.held_bytes == 4 and list(receiver._contexts[7].steps) == [1]
    assert got(receiver.expect(7, 0, 1, 0)) == b"next"


# --- contexts that are freed


def nothing_left(receiver: Endpoint, contexts: int = 1) -> bool:
    """Whether only 8 bytes a context are left of contexts that were freed."""
    return (
        not receiver._contexts
        and not receiver._closing
        and not receiver.awaits()
        and receiver.held_bytes == 0
        and len(receiver._freed) == contexts
    )


def test_a_freed_context_leaves_eight_bytes_and_its_late_frames_are_duplicates() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    frames = [raw(parcel) for parcel in sender.send(7, 1, 0, view(b"0123456789"))]
    frames += [raw(parcel) for parcel in sender.send(7, 1, 0, view(b"unasked"))]
    frames += [raw(parcel) for parcel in sender.publish(7, 0, 0, (1,), view(b"step"))]
    gap, later = sender.send(7, 1, 0, view(b"gap")) + sender.send(7, 1, 0, view(b"late"))
    for frame in (*frames, raw(later)):
        receiver.receive(frame, 0.0)
    receiver.send(7, 0, 0, view(b"sent"))
    assert got(receiver.post(7, 0, 0)) == b"0123456789" and receiver.held_bytes == 7 + 4 + 4
    for _ in range(2):
        receiver.free(7)
        assert nothing_left(receiver)
    for frame in (*frames, raw(gap), raw(later)):
        receiver.receive(frame, 1e9)
    assert receiver.duplicates == len(frames) + 2 and receiver.dropped == 0
    assert nothing_left(receiver)
    receiver.check(1e9)
    receiver.retire(7, 0)
    assert nothing_left(receiver)
    with pytest.raises(MPIException) as caught:
        receiver.send(7, 0, 0, view(b"x"))
    assert caught.value.Get_error_class() == ERR_COMM


def test_the_predefined_contexts_are_never_freed() -> None:
    receiver = endpoint(1)
    for context in (CONTEXT_WORLD, CONTEXT_SELF):
        receiver.send(context, 0, 0, view(b"x"))
        receiver.free(context)
    assert set(receiver._contexts) == {CONTEXT_WORLD, CONTEXT_SELF} and not receiver._freed


@pytest.mark.parametrize("land_them", [False, True])
def test_a_receive_that_was_posted_gets_its_message_after_free(land_them: bool) -> None:
    make = guarded if land_them else endpoint
    sender, receiver = make(0, 4), make(1, 4)
    frames = sender.send(7, 1, 5, view(b"0123456789"))
    unasked = sender.send(7, 1, 6, view(b"unasked"))
    receives = [receiver.post(7, ANY_SOURCE, 5), receiver.post(7, 0, 9)]
    receiver.free(7)
    for parcel in (*unasked, *frames[::-1]):
        land(receiver, parcel)
    assert got(receives[0]) == b"0123456789" and not nothing_left(receiver)
    assert receiver.cancel(receives[1]) and nothing_left(receiver)


def test_a_matched_probe_keeps_its_message_after_free() -> None:
    sender, receiver = endpoint(0, 4), endpoint(1, 4)
    frames = [raw(parcel) for parcel in sender.send(7, 1, 5, view(b"0123456789"))]
    receiver.receive(frames[0], 0.0)
    message = receiver.mprobe(7, 0, 5)
    assert message is not None
    receiver.free(7)
    receive = receiver.post_matched(message)
    for frame in frames[1:]:
        receiver.receive(frame, 0.0)
    assert got(receive) == b"0123456789" and nothing_left(receiver)


def test_a_synchronous_send_is_acknowledged_after_free() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    matched: list[bool] = []
    (parcel,) = sender.send(7, 1, 5, view(b"x"), lambda: matched.append(True))
    sender.free(7)
    receive = receiver.post(7, 0, 5)
    receiver.free(7)
    assert not nothing_left(sender) and not nothing_left(receiver)
    receiver.receive(raw(parcel), 0.0)
    assert got(receive) == b"x" and nothing_left(receiver)
    sender.receive(raw(receiver.outbox[0]), 0.0)
    assert matched == [True] and nothing_left(sender)


def test_a_collective_under_way_ends_after_free() -> None:
    sender, receiver = endpoint(0), endpoint(1)
    first, second = (sender.publish(7, 0, slot, (1,), view(b"%d" % slot))[0] for slot in range(2))
    receive = receiver.expect(7, 0, 0, 0)
    following: list[Receive] = []
    receive.on_done = lambda _: following.append(receiver.expect(7, 0, 0, 1))
    receiver.free(7)
    receiver.receive(raw(first), 0.0)
    assert following and not nothing_left(receiver)
    following[0].on_done = lambda _: receiver.retire(7, 0)
    receiver.receive(raw(second), 0.0)
    assert got(following[0]) == b"1" and nothing_left(receiver)


def test_a_context_that_is_new_here_is_not_a_freed_one() -> None:
    """A peer may have made a communicator, and sent on it, before this rank has."""
    sender, receiver = endpoint(0), endpoint(1)
    for context in range(10, 200, 2):
        receiver.free(context)
    for context in range(11, 200, 2):
        receiver.receive(raw(sender.send(context, 1, 0, view(b"early"))[0]), 0.0)
        assert got(receiver.post(context, 0, 0)) == b"early"


@SETTINGS
@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.integers(0, 2**64 - 1))
def test_freed_contexts_are_a_set(contexts: list[int], other: int) -> None:
    freed = Freed()
    for number, context in enumerate(contexts):
        assert context not in freed and len(freed) == number
        freed.add(context)
    assert all(context in freed for context in contexts)
    assert (other in freed) == (other in contexts)


@SETTINGS
@given(st.integers(0, 2**32))
def test_whatever_the_order_of_frames_and_frees_operations_end_and_nothing_is_left(
    seed: int,
) -> None:
    """Two ranks post, send, and free at moments of their own; frames come late, in any order, and twice."""
    chance = random.Random(seed)
    ends = [endpoint(rank, 8) for rank in range(2)]
    contexts = range(10, 10 + chance.randint(1, 3))
    pool: list[tuple[int, memoryview]] = []  # (to whom, frame): on their way
    receives: list[tuple[Receive, bytes]] = []
    matched: list[int] = []
    expected_matches = 0
    plans: list[list[Callable[[], None]]] = []

    def put(dest: int, parcels: list[OutgoingFrame]) -> None:
        pool.extend((dest, raw(parcel)) for parcel in parcels for _ in range(chance.randint(1, 2)))

    def acknowledge() -> None:
        for end in ends:
            put(1 - end.rank, end.outbox)
            end.outbox.clear()

    def deliver(count: int) -> None:
        for _ in range(min(count, len(pool))):
            dest, frame = pool.pop(chance.randrange(len(pool)))
            ends[dest].receive(frame, 0.0)
            acknowledge()

    for context in contexts:
        bodies = [chance.randbytes(chance.randint(0, 30)) for _ in range(chance.randint(0, 4))]
        for here in range(2):

            def send(body: bytes, tag: int, context: int = context, here: int = here) -> None:
                sync = (lambda: matched.append(tag)) if tag % 2 else None
                put(1 - here, ends[here].send(context, 1 - here, tag, view(body), sync))

            def post(body: bytes, tag: int, context: int = context, here: int = here) -> None:
                receives.append((ends[here].post(context, 1 - here, tag), body))

            def step(seq: int, context: int = context, here: int = here) -> None:
                put(1 - here, ends[here].publish(context, seq, 0, (1 - here,), view(b"step of it")))
                receive = ends[here].expect(context, 1 - here, seq, 0)
                receives.append((receive, b"step of it"))
                if receive.done:
                    ends[here].retire(context, seq)
                else:
                    receive.on_done = lambda _: ends[here].retire(context, seq)

            calls: list[Callable[[], None]] = []
            calls += [partial(send, body, tag) for tag, body in enumerate(bodies)]
            calls += [partial(post, body, tag) for tag, body in enumerate(bodies)]
            calls += [partial(step, seq) for seq in range(2)]
            if here == 0 and chance.random() < 0.5:
                calls.append(partial(send, b"nobody receives this", 2 * len(bodies)))
            chance.shuffle(calls)
            plans.append([*calls, partial(ends[here].free, context)])
            expected_matches += len(range(1, len(bodies), 2))
    while any(plans):
        plan = chance.choice([plan for plan in plans if plan])
        plan.pop(0)()
        acknowledge()
        deliver(chance.randint(0, 3))
    while pool:
        deliver(1)
    assert all(got(receive) == body for receive, body in receives)
    assert len(matched) == expected_matches
    assert all(nothing_left(end, len(contexts)) for end in ends)
    assert [end.dropped for end in ends] == [0, 0]


@SETTINGS
@given(st.integers(0, 2**32))
def test_the_short_ways_do_what_the_long_ones_do(seed: int) -> None:
    """One schedule of frames and receives, with and without `_short` and `_whole_step`."""
    generator = random.Random(seed)
    sent: list[memoryview] = []
    for source in (1, 2):
        sender = endpoint(source, 16)
        for number in range(generator.randrange(8)):
            body = generator.randbytes(generator.randrange(24))
            matched = (lambda: None) if generator.random() < 0.2 else None
            tag = generator.randrange(2)
            sent += map(raw, sender.send(7, 0, tag, view(body), matched))
            sent += map(raw, sender.publish(7, number, 0, (0,), view(body)))
    sent += generator.sample(sent, len(sent) // 4)  # twice
    generator.shuffle(sent)
    receives = [
        (
            generator.randrange(len(sent) + 1),  # before which frame
            generator.choice((1, 2, ANY_SOURCE)),
            generator.choice((0, 1, ANY_TAG)),
            generator.choice((None, 8, 30)),
        )
        for _ in range(12)
    ]
    retired = generator.randrange(8)

    def play(long_only: bool) -> list[object]:
        receiver = endpoint(0, 16)
        seen: list[object] = []
        receiver.on_match = lambda envelope, seq: seen.append((envelope, seq))
        receiver.on_step = seen.append
        if long_only:
            receiver._short = lambda frame, now: False  # type: ignore[method-assign]
            receiver._whole_step = lambda frame: False  # type: ignore[method-assign]
        posted: list[Receive] = []
        for place in range(len(sent) + 1):
            for before, source, tag, room in receives:
                if before == place:
                    into = None if room is None else memoryview(bytearray(room))
                    posted.append(receiver.post(7, source, tag, into))
                    if source > 0:
                        posted.append(receiver.expect(7, source, before % 8, 0))
            if place == len(sent) // 2:
                receiver.retire(7, retired)
            if place < len(sent):
                receiver.receive(memoryview(bytearray(sent[place])), float(place))
        return [
            seen,
            [(one.done, one.envelope, one.landed, one.data and bytes(one.data)) for one in posted],
            [frame.name for frame in receiver.outbox],
            (receiver.held_bytes, receiver.dropped, receiver.duplicates),
            sorted(receiver.wanted()),
        ]

    assert play(False) == play(True)
