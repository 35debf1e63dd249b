"""The encrypted stream: any bytes in any pieces come out as they went in, or not at all."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels.link import HEADER, RECORD_BYTES
from serverless_mpi.channels.sealing import SealedStream, Sealer
from serverless_mpi.channels.sockets import StreamError

KEY = bytes(range(32))
SETTINGS = settings(derandomize=True, deadline=None, max_examples=100)
LENGTHS = st.one_of(
    st.integers(0, 300),
    st.sampled_from([RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, 3 * RECORD_BYTES + 5]),
)


def take(stream: SealedStream, nbytes: int) -> tuple[bytes, str]:
    """What a stream gives, in pieces of at most `nbytes`, and how it ended."""
    got = bytearray()
    into = memoryview(bytearray(nbytes))
    while True:
        try:
            received = stream.recv_into(into)
        except BlockingIOError:
            return bytes(got), "waits"
        except StreamError:
            return bytes(got), "fault"
        if not received:
            return bytes(got), "end"
        got += into[:received]


@SETTINGS
@given(
    batches=st.lists(st.lists(LENGTHS, max_size=4), max_size=4),
    cuts=st.lists(st.integers(1, 100_000), max_size=6),
    nbytes=st.sampled_from([1 << 10, RECORD_BYTES - 1, RECORD_BYTES, 1 << 20]),
    seed=st.integers(0, 255),
)
def test_any_bytes_arrive_however_they_are_cut(
    batches: list[list[int]], cuts: list[int], nbytes: int, seed: int
) -> None:
    sealer, plain, wire = Sealer(KEY), bytearray(), bytearray()
    for batch in batches:
        views = [memoryview(bytes((seed + i) % 251 for i in range(length))) for length in batch]
        plain += b"".join(views)
        wire += b"".join(sealer.seal(views))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setblocking(False)
        stream, got = SealedStream(ours, KEY), b""
        for cut in [*cuts, len(wire)]:
            while wire and cut > 0:
                sent = theirs.send(wire[: min(cut, 50_000)])
                del wire[:sent]
                cut -= sent
                piece, state = take(stream, nbytes)
                got += piece
                assert state == "waits"
        theirs.close()
        assert take(stream, nbytes) == (b"", "end")
    assert got == plain


@SETTINGS
@given(
    harm=st.sampled_from(["change", "drop", "repeat", "swap", "other key", "cut"]),
    at=st.integers(0, 4),
    where=st.integers(0, 1 << 20),
)
def test_what_was_harmed_is_not_delivered(harm: str, at: int, where: int) -> None:
    sealer = Sealer(KEY)
    bodies = [bytes([number]) * 50 for number in range(6)]
    records = [bytearray(b"".join(sealer.seal([memoryview(body)]))) for body in bodies]
    if harm == "change":
        records[at][where % len(records[at])] ^= 1 + where % 255
    elif harm == "drop":
        del records[at]
    elif harm == "repeat":
        records.insert(at + 1, records[at])
        at += 1
    elif harm == "swap":
        records[at], records[at + 1] = records[at + 1], records[at]
    elif harm == "cut":
        del records[at][where % (len(records[at]) - 1) + 1 :]
    key = bytes(32) if harm == "other key" else KEY
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"".join(records))
        theirs.close()
        got, state = take(SealedStream(ours, key), 1000)
    whole = b"".join(bodies)
    assert whole.startswith(got) and state in ("fault", "end")
    assert len(got) <= 50 * (0 if harm == "other key" else at)


@pytest.mark.parametrize("nbytes", [0, 16, RECORD_BYTES + 17, (1 << 32) - 1])
def test_a_length_that_no_rank_writes_ends_it(nbytes: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(HEADER.pack(nbytes, 2) + bytes(100))
        assert take(SealedStream(ours, KEY), 100) == (b"", "fault")
