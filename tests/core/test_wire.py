"""Any bytes give a frame or `WireError`; frames survive a round trip; forged frames are refused."""

from __future__ import annotations

import struct
from hashlib import sha256

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
FLAGS_AT = 4  # in the header

BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda nbytes, start: (start + bytes(HASHED_BYTES + 40))[:nbytes],
        st.integers(HASHED_BYTES - 3, HASHED_BYTES + 40),
        st.binary(max_size=40),
    ),
)


def pieces(draw: st.DrawFn, body: bytes) -> tuple[int, int, int, int]:
    """(chunk, chunks, offset, total) with which `body` may be a piece of a message."""
    before, after = draw(st.integers(0, 2**20)), draw(st.integers(0, 2**20))
    if not body or not (before or after):
        return 0, 1, 0, len(body)
    if after:  # all pieces are as long but the last
        last = draw(st.integers(1, len(body)))
        return before, before + 1 + after, before * len(body), (before + after) * len(body) + last
    piece = draw(st.integers(len(body), len(body) + 1000))
    return before, before + 1, before * piece, before * piece + len(body)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    body = draw(BODIES)
    return Frame(
        draw(st.sampled_from(Kind)),
        draw(st.integers(0, 255).filter(lambda flags: not flags & FLAG_GUARDED)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**31 - 1)),
        draw(st.integers(-1, 2**31 - 1)),
        draw(st.integers(-(2**31), 2**31 - 1)),
        draw(st.integers(0, 2**62)),
        *pieces(draw, body),
        memoryview(body),
    )


FRAMES = frames()
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


@SETTINGS
@given(FRAMES, BODIES, st.booleans())
def test_a_header_and_its_tag_fit_one_body(frame: Frame, other: bytes, guarded: bool) -> None:
    """Not a shorter one, a longer one, one of another form, or what the tag was made of."""
    raw = whole(frame)
    head, body = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    hashed = sha256(b"".join(digests((frame.body,)))).digest()
    inputs = (hashed, struct.pack("<Q", len(body)) + body, struct.pack("<Q", len(body)) + hashed)
    for forged in (body[:-1], body[1:], body + b"\0", b"\0" + body, b"", other, *inputs):
        if forged != body:
            with pytest.raises(WireError):
                decode(memoryview(head + forged), JOB, KEY, guarded)


@SETTINGS
@given(FRAMES, FRAMES, st.integers(0, 300))
def test_frames_that_are_mixed_are_refused(one: Frame, other: Frame, place: int) -> None:
    mixed = whole(one)[:place] + whole(other)[place:]
    if mixed not in (whole(one), whole(other)):
        with pytest.raises(WireError):
            decode(memoryview(mixed), JOB, KEY)


@SETTINGS
@given(FRAMES, BODIES)
def test_a_guarded_tag_fits_one_length_and_no_other_form(frame: Frame, body: bytes) -> None:
    frame = frame._replace(flags=frame.flags | FLAG_GUARDED)
    raw = bytearray(whole(frame))
    nbytes = frame.body.nbytes
    assert decode_head(memoryview(raw)[:HEADER_BYTES], nbytes, JOB, KEY)[:-1] == frame[:-1]
    for length in {0, nbytes - 1, nbytes + 1, len(body)} - {nbytes, -1}:
        with pytest.raises(WireError):
            decode_head(memoryview(raw)[:HEADER_BYTES], length, JOB, KEY)
    raw[FLAGS_AT] &= ~FLAG_GUARDED  # as if its tag covered the body
    for forged in (raw[HEADER_BYTES:], body, b"", struct.pack("<Q", nbytes)):
        with pytest.raises(WireError):
            decode(memoryview(raw[:HEADER_BYTES] + forged), JOB, KEY, guarded=True)


@SETTINGS
@given(st.binary(max_size=100), st.lists(st.binary(max_size=32), max_size=3), st.booleans())
def test_odd_bytes_behind_a_true_beginning_give_an_error(
    data: bytes, leaves: list[bytes], guarded: bool
) -> None:
    raw = memoryview(whole(Frame(0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, memoryview(b"")))[:16] + data)
    with pytest.raises(WireError):
        decode(raw, JOB, KEY, guarded, leaves)
    with pytest.raises(WireError):
        decode_head(raw, len(data) - HEADER_BYTES, JOB, KEY)


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


@pytest.mark.parametrize(
    "chunk, chunks, offset, total, nbytes",
    [
        (0, 0, 0, 4, 4),  # no frames at all
        (5, 5, 16, 20, 4),  # beyond the last
        (1, 1, 0, 4, 4),
        (0, 1, 0, 5, 4),  # the only one, and not the whole
        (0, 1, 1, 5, 4),
        (0, 1, 0, 3, 4),
        (1, 3, 3, 12, 4),  # overlaps the first
        (1, 3, 5, 12, 4),  # leaves a gap
        (0, 3, 0, 13, 4),  # more than three pieces of 4
        (0, 3, 0, 8, 4),  # less than two and a bit
        (2, 3, 8, 13, 4),  # the last, and not to the end
        (2, 3, 9, 13, 4),  # the last, behind pieces of four and a half
        (2, 3, 6, 10, 4),  # the last, longer than the others
        (0, 2, 0, 8, 0),  # empty
        (1, 2, 8, 8, 0),
    ],
)
def test_authentic_but_contradictory_headers_are_refused(
    chunk: int, chunks: int, offset: int, total: int, nbytes: int
) -> None:
    body = memoryview(bytes(nbytes))
    frame = Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, chunk, chunks, offset, total, body)
    with pytest.raises(WireError, match="contradicts"):
        decode(memoryview(whole(frame)), JOB, KEY)


def test_an_unknown_kind_is_refused() -> None:
    frame = Frame(3, 0, 1, 0, 1, 2, 3, 0, 1, 0, 0, memoryview(b""))
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
    with pytest.raises(WireError, match="not a trusted one"):
        decode(raw, JOB, KEY)
    raw[20] ^= 1
    with pytest.raises(WireError, match="tag"):
        decode(raw, JOB, KEY, guarded=True)
    with pytest.raises(WireError, match="tag"):
        decode_head(raw[:HEADER_BYTES], 4, JOB, KEY)
    raw[20] ^= 1
    with pytest.raises(WireError, match="tag"):
        decode_head(raw[:HEADER_BYTES], 5, JOB, KEY)
    plain = memoryview(whole(Frame(Kind.POINT, 0, 1, 0, 1, 2, 3, 0, 1, 0, 0, memoryview(b""))))
    assert decode(plain, JOB, KEY, guarded=True).flags == 0
    with pytest.raises(WireError, match="has not been received yet"):
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
