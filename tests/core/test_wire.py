"""Any bytes give a frame or `WireError`; a frame comes back as it was; what is forged does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.core.wire import (
    FLAG_GUARDED,
    HASHED_BYTES,
    HEADER_BYTES,
    LEAF_BYTES,
    Frame,
    Kind,
    decode,
    decode_head,
    digests,
    encode,
)
from serverless_mpi.errors import WireError

JOB = bytes(range(8))
KEY = bytes(range(32))

FRAMES = st.builds(
    lambda kind, flags, context, source, dest, tag, seq, chunk, more, offset, body, rest: Frame(
        kind,
        flags,
        context,
        source,
        dest,
        tag,
        seq,
        chunk,
        chunk + 1 + more,
        offset,
        offset + len(body) + rest,
        memoryview(body),
    ),
    st.sampled_from(Kind),
    st.integers(0, 255).filter(lambda flags: not flags & FLAG_GUARDED),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(-1, 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**62),
    st.integers(0, 2**20),
    st.integers(0, 2**20),
    st.integers(0, 2**40),
    st.binary(max_size=200),
    st.integers(0, 2**40),
)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)


def whole(frame: Frame, job: bytes = JOB, key: bytes = KEY) -> bytes:
    return b"".join(encode(*frame[:-1], (frame.body,), frame.body.nbytes, job, key))


@SETTINGS
@given(FRAMES)
def test_round_trip(frame: Frame) -> None:
    assert decode(memoryview(whole(frame)), JOB, KEY) == frame


@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes_give_an_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(memoryview(data), JOB, KEY)


@SETTINGS
@given(FRAMES, st.data())
def test_one_changed_bit_is_seen(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(whole(frame))
    position = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[position // 8] ^= 1 << position % 8
    with pytest.raises(WireError):
        decode(memoryview(raw), JOB, KEY)


@pytest.mark.parametrize("job, key", [(b"another!", KEY), (JOB, bytes(32))])
def test_another_job_or_key_is_refused(job: bytes, key: bytes) -> None:
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, 4, memoryview(b"body"))
    with pytest.raises(WireError):
        decode(memoryview(whole(frame, job, key)), JOB, KEY)


def test_a_body_in_parts_is_the_body() -> None:
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, 4, memoryview(b"body"))
    parts = encode(
        *frame[:-1], (memoryview(b"bo"), memoryview(b""), memoryview(b"dy")), 4, JOB, KEY
    )
    assert b"".join(parts) == whole(frame)
    assert parts[0].nbytes == HEADER_BYTES


def test_authentic_but_contradictory_headers_are_refused() -> None:
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 5, 5, 0, 4, memoryview(b"body"))  # chunk 5 of 5
    with pytest.raises(WireError, match="contradicts"):
        decode(memoryview(whole(frame)), JOB, KEY)


@pytest.mark.parametrize("nbytes", [HASHED_BYTES - 1, HASHED_BYTES, HASHED_BYTES + 1])
def test_every_bit_of_a_long_body_counts(nbytes: int) -> None:
    body = memoryview(bytes(nbytes))
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, nbytes, body)
    raw = bytearray(whole(frame))
    assert decode(memoryview(raw), JOB, KEY) == frame
    for place in (HEADER_BYTES, HEADER_BYTES + nbytes // 2, HEADER_BYTES + nbytes - 1):
        raw[place] ^= 1
        with pytest.raises(WireError, match="tag"):
            decode(memoryview(raw), JOB, KEY)
        raw[place] ^= 1
    with pytest.raises(WireError):
        decode(memoryview(raw)[:-1], JOB, KEY)


def test_a_body_without_a_tag_is_taken_from_a_guarded_medium_alone() -> None:
    frame = Frame(Kind.POINT, FLAG_GUARDED, 1, 0, 1, 2, 3, 0, 1, 0, 4, memoryview(b"body"))
    raw = memoryview(bytearray(whole(frame)))
    assert decode(raw, JOB, KEY, guarded=True) == frame
    assert decode_head(raw[:HEADER_BYTES], 4, JOB, KEY)[:-1] == frame[:-1]
    with pytest.raises(WireError, match="open to others"):
        decode(raw, JOB, KEY)
    raw[20] ^= 1
    with pytest.raises(WireError, match="tag"):
        decode(raw, JOB, KEY, guarded=True)
    with pytest.raises(WireError, match="tag"):
        decode_head(raw[:HEADER_BYTES], 4, JOB, KEY)
    with pytest.raises(WireError, match="contradicts"):
        raw[20] ^= 1
        decode_head(raw[:HEADER_BYTES], 5, JOB, KEY)
    plain = memoryview(whole(Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, 0, memoryview(b""))))
    assert decode(plain, JOB, KEY, guarded=True).flags == 0
    with pytest.raises(WireError, match="body is needed"):
        decode_head(plain, 0, JOB, KEY)


def test_a_body_is_digested_by_leaves_wherever_its_parts_are() -> None:
    body = memoryview(bytes(range(256)) * (9 * 4096))  # nine quarters of a leaf
    assert body.nbytes == 9 * LEAF_BYTES // 4
    leaves = digests((body,))
    assert len(leaves) == 3 and digests((body[:100], body[100:])) == leaves
    assert digests((body[:LEAF_BYTES],)) + digests((body[LEAF_BYTES:],)) == leaves
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, body.nbytes, body)
    raw = memoryview(whole(frame))
    assert decode(raw, JOB, KEY, leaves=leaves) == frame
    with pytest.raises(WireError, match="tag"):
        decode(raw, JOB, KEY, leaves=leaves[::-1])
