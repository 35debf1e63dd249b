"""References of `hybrid` and console messages: any bytes give a value or None."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.hybrid import opened, reference, sealed
from serverless_mpi.channels.object import locate, table_bytes
from serverless_mpi.core.frames import SCATTERED, SHARED, FrameName, OutgoingFrame
from serverless_mpi.core.tags import TAG_BYTES, Purpose, make
from serverless_mpi.launch import console

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
JOB = "0011223344556677"
SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)

BODY = (memoryview(b"body"),)
SHARED_FRAME = OutgoingFrame((1, 2), FrameName(2, 7, 0, SHARED, 5, 6, 0), BODY)
DEALT = OutgoingFrame((1, 2), FrameName(2, 7, 0, SCATTERED, 5, 6, 0), (), (BODY, BODY))
WORD = console.ConsoleMessage(1, 2, console.OUT, b"\xff\n\0", {"a": 1})


@pytest.mark.parametrize("frame", [SHARED_FRAME, DEALT])
def test_a_reference_comes_back_as_it_was(frame: OutgoingFrame) -> None:
    magic, text = reference(frame)
    assert opened(memoryview(sealed(frame, KEY)), KEY) == (magic, text)
    assert opened(memoryview(sealed(frame, KEY)), OTHER_KEY) is None


@SETTINGS
@given(st.sampled_from([b"", b"sR", b"sD", b"sM"]), st.binary(max_size=100))
def test_odd_bytes_are_no_reference_and_no_word(magic: bytes, data: bytes) -> None:
    assert opened(memoryview(magic + data), KEY) is None
    assert console.decode(magic + data, JOB, KEY) is None


@SETTINGS
@given(st.sampled_from([SHARED_FRAME, DEALT]), st.data())
def test_a_reference_that_was_changed_is_none(frame: OutgoingFrame, data: st.DataObject) -> None:
    true = sealed(frame, KEY)
    place = data.draw(st.integers(0, len(true)))
    until = data.draw(st.integers(place, len(true)))
    changed = true[:place] + data.draw(st.binary(max_size=20)) + true[until:]
    if changed != true:
        assert opened(memoryview(changed), KEY) is None


@SETTINGS
@given(st.data())
def test_a_word_that_was_changed_is_none(data: st.DataObject) -> None:
    true = console.encode(WORD, JOB, KEY)
    place = data.draw(st.integers(0, len(true)))
    until = data.draw(st.integers(place, len(true)))
    changed = true[:place] + data.draw(st.binary(max_size=20)) + true[until:]
    assert console.decode(changed, JOB, KEY) == (WORD if changed == true else None)


def test_a_tag_of_one_purpose_fits_no_other() -> None:
    magic, text = reference(SHARED_FRAME)
    for purpose in Purpose:
        if purpose is not Purpose.REFERENCE:
            moved = magic + make(KEY, purpose, magic + text) + text
            assert opened(memoryview(moved), KEY) is None
        if purpose is not Purpose.CONSOLE:
            body = console.encode(WORD, JOB, KEY)[TAG_BYTES:]
            assert console.decode(make(KEY, purpose, body) + body, JOB, KEY) is None


@SETTINGS
@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_index_has_a_range_for_each_rank_or_none(data: bytes, rank: int) -> None:
    """A table that is an object's beginning is not authenticated; the frame that it leads to is."""
    view = memoryview(data)
    if view.nbytes >= table_bytes(view):
        start, nbytes = locate(view, rank)
        assert start >= table_bytes(view) and nbytes >= 0
