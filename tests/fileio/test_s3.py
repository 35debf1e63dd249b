"""Files on an S3 in memory: any program against a plain byte array, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi import errors
from serverless_mpi.errors import MPIException
from serverless_mpi.fileio import s3
from serverless_mpi.fileio.base import Mode, Where
from serverless_mpi.fileio.pieces import Places, cut, places, total, union
from serverless_mpi.metering import Meter
from serverless_mpi.stack import bucket
from tests.fileio.world import MemoryS3, ThreadRanks, on_ranks

CELL = 16
WHERE = Where(None, "us-east-1", bytes(32), "", Meter())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells, ranges and gaps of a few bytes."""
    monkeypatch.setattr(s3, "_cell_of", lambda hints: CELL)
    for name, nbytes in (("GAP_BYTES", 2), ("AHEAD_BYTES", 8), ("PART_BYTES", 24)):
        monkeypatch.setattr(s3, name, nbytes)
    monkeypatch.setattr(s3, "MOST_COPIED", 3 * CELL)


def _run(
    store: MemoryS3, size: int, body: Callable[[s3.Bucket, int], Any], *, free: bool = True,
    create: bool = True, exclusive: bool = False,
) -> list[Any]:  # fmt: skip
    """body(file, rank) on each rank, with the file opened before and closed after it."""
    mode = Mode(read=True, write=True, create=create, exclusive=exclusive)

    def connect(name: str, where: Where) -> tuple[Any, Any, str]:
        return store, store, name.partition("/")[2]

    def one(ranks: ThreadRanks) -> Any:
        file = s3.Bucket.open("bucket/key", mode, {}, ranks, WHERE)
        result = body(file, ranks.rank)
        file.close(False)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "_connect", connect)
        return on_ranks(size, one, free=free)


def _bytes(rank: int, step: int, nbytes: int) -> memoryview:
    return memoryview(bytes((17 * rank + 31 * step + index) % 255 + 1 for index in range(nbytes)))


def _store(model: bytearray, at: Places, data: memoryview) -> None:
    done = 0
    for start, length in at.tolist():
        model.extend(bytes(max(0, start + length - len(model))))
        model[start : start + length] = data[done : done + length]
        done += length


def _own(at: Places, rank: int, size: int) -> Places:
    """The parts of a set that belong to a rank: stripes of 5 bytes."""
    stripes = [(start, 5) for start in range(5 * rank, 200, 5 * size)]
    parts = [cut(at, start, start + length)[0] for start, length in stripes]
    return np.concatenate([*parts, places()])


SETS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 40)), max_size=4).map(
    lambda pairs: union(places(*pairs))
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["write_all", "write", "sync", "read", "cut"]), SETS), max_size=8
)


def _program(
    steps: list[tuple[str, Places]], size: int, before: bytes
) -> list[tuple[str, Places, int, bytes]]:
    """(call, places, seed, what the file is before the call) of each call; the last is a sync.

    Everything is published before it is read, or written again.
    """
    model = bytearray(before)
    calls = []
    for seed, (kind, at) in enumerate(steps):
        calls.append(("sync", at, seed, bytes(model)))
        calls.append((kind, at, seed, bytes(model)))
        if kind.startswith("write"):
            for rank in range(size):
                own = _own(at, rank, size)
                _store(model, own, _bytes(rank, seed, total(own)))
        elif kind == "cut":
            cut_to = total(at)
            model = model[:cut_to] + bytes(max(0, cut_to - len(model)))
    return [*calls, ("sync", places(), 0, bytes(model))]


def _call(file: s3.Bucket, kind: str, at: Places, data: memoryview, expected: bytes) -> None:
    """Make one call of a program, and compare what is read."""
    if kind == "write_all":
        file.write_all(at, data)
    elif kind == "write":
        file.write(at, data)
        got = memoryview(bytearray(total(at)))
        assert file.read(at, got) == total(at) and got == data  # before it is published
    elif kind == "cut":
        file.set_size(total(at))
    elif kind == "sync":
        file.sync()
        assert file.size() == len(expected)
    else:
        flat = [byte for start, length in at.tolist() for byte in range(start, start + length)]
        there = bytes(expected[byte] for byte in flat if byte < len(expected))
        for read in (file.read, file.read_all):
            got = memoryview(bytearray(total(at)))
            assert bytes(got[: read(at, got)]) == there


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), STEPS, st.binary(max_size=100), st.booleans())
def test_a_file_is_what_a_byte_array_is(
    size: int, steps: list[tuple[str, Places]], before: bytes, free: bool
) -> None:
    store = MemoryS3(least_part=CELL)
    if before:
        store.objects["key"] = before
    calls = _program(steps, size, before)

    def body(file: s3.Bucket, rank: int) -> None:
        for kind, at, seed, expected in calls:
            if kind.startswith("write"):
                at = _own(at, rank, size)
            _call(file, kind, at, _bytes(rank, seed, total(at)), expected)
            if kind == "sync":
                assert store.objects["key"] == expected

    _run(store, size, body, free=free)
    assert store.objects == {"key": calls[-1][3]} and not store.uploads


def test_later_collective_writes_win_and_complete_cells_are_uploaded_at_once() -> None:
    store = MemoryS3(least_part=CELL)

    def body(file: s3.Bucket, rank: int) -> None:
        file.write_all(places((rank * 20, 20)), memoryview(b"a" * 20))
        file.write_all(places((40 - 20 * rank, 4)), memoryview(bytes([48 + rank]) * 4))
        assert set(store.uploads["key"]) == {1, 2}
        with pytest.raises(MPIException) as caught:
            file.read(places((0, 4)), memoryview(bytearray(4)))
        assert caught.value.Get_error_class() == errors.ERR_UNSUPPORTED_OPERATION
        assert "Sync" in str(caught.value)

    with pytest.raises(MPIException):  # the second write touches a cell that is uploaded
        _run(store, 2, body)
    store = MemoryS3(least_part=CELL)

    def later(file: s3.Bucket, rank: int) -> None:
        file.write_all(places((rank * 10, 10)), memoryview(b"a" * 10))
        assert set(store.uploads["key"]) == {1}
        file.write_all(places((rank * 8, 8)), memoryview(bytes([48 + rank]) * 8))  # all of it
        file.write_all(places((16 + rank, 1)), memoryview(b"z"))
        other = places((0, 16)) if rank else places()  # now by the rank that had less of it
        file.write_all(other, memoryview(b"o" * total(other)))
        assert "key" not in store.objects

    _run(store, 2, later)
    assert store.objects == {"key": b"o" * 16 + b"zzaa"}


@pytest.mark.parametrize("action", ["begin", "put_part", "complete"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [("ExpiredToken", "ERR_ACCESS"), ("InsufficientStorage", "ERR_NO_SPACE"), ("Odd", "ERR_IO")],
)
def test_after_a_refusal_nothing_is_visible_and_all_ranks_fail(
    action: str, code: str, expected: str
) -> None:
    store = MemoryS3(least_part=CELL)
    store.objects["key"] = b"before"

    store.refuse[action] = code

    def body(file: s3.Bucket, rank: int) -> list[int]:
        caught = []
        for call in (
            lambda: file.write_all(places((rank * 40, 40)), memoryview(bytes(40))),
            file.sync,
            lambda: file.write(places((0, 1)), memoryview(b"x")),
        ):
            try:
                call()
            except MPIException as error:
                caught.append(error.Get_error_class())
        try:
            file.close(False)
        except MPIException as error:
            caught.append(error.Get_error_class())
        return caught

    def one(ranks: ThreadRanks) -> list[int]:
        mode = Mode(read=True, write=True, create=False, exclusive=False)
        return body(s3.Bucket.open("bucket/key", mode, {}, ranks, WHERE), ranks.rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "_connect", lambda name, where: (store, store, "key"))
        for caught in on_ranks(2, one):
            assert set(caught) == {getattr(errors, expected)} and len(caught) >= 2
    assert store.objects == {"key": b"before"} and not store.uploads


def test_reads_are_shared_where_that_saves_requests() -> None:
    store = MemoryS3()
    store.objects["key"] = bytes(range(96))

    def body(file: s3.Bucket, rank: int) -> bytes:
        got = memoryview(bytearray(96))
        assert file.read_all(places((0, 96)), got) == 96
        return bytes(got)

    assert _run(store, 4, body) == [bytes(range(96))] * 4
    assert store.requests.count("get") == 4  # of 24 bytes each, and not of each rank
    store.requests.clear()
    _run(store, 4, body, free=False)  # messages cost more
    assert store.requests.count("get") == 16


def test_small_reads_in_sequence_read_ahead_and_a_replaced_object_is_an_error() -> None:
    store = MemoryS3()
    store.objects["key"] = bytes(range(40))

    def body(file: s3.Bucket, rank: int) -> None:
        for start in range(0, 16, 2):
            got = memoryview(bytearray(2))
            assert file.read(places((start, 2)), got) == 2 and got[0] == start
        assert store.requests.count("get") == 2
        store.objects["key"] = bytes(40)
        with pytest.raises(MPIException) as caught:
            file.read(places((30, 9)), memoryview(bytearray(9)))
        assert caught.value.Get_error_class() == errors.ERR_IO

    _run(store, 1, body)


def test_the_counter_counts_for_all_ranks_and_leaves_nothing() -> None:
    store = MemoryS3()

    def body(file: s3.Bucket, rank: int) -> list[int]:
        first = [file.counter(1, 2) for _ in range(5)]
        file.sync()
        return [*first, file.counter(2, 0)]

    results = _run(store, 4, body)
    assert sorted(value for result in results for value in result[:5]) == [*range(0, 40, 2)]
    assert [result[5] for result in results] == [0] * 4 and list(store.objects) == ["key"]


def test_opening() -> None:
    store = MemoryS3()
    for create, exclusive, expected in (
        (False, False, errors.ERR_NO_SUCH_FILE),
        (True, True, None),
        (True, True, errors.ERR_FILE_EXISTS),
        (True, False, None),
    ):
        if expected is None:
            _run(store, 2, lambda file, rank: None, create=create, exclusive=exclusive)
            assert store.objects == {"key": b""}
            continue
        with pytest.raises(MPIException) as caught:
            _run(store, 2, lambda file, rank: None, create=create, exclusive=exclusive)
        assert caught.value.Get_error_class() == expected
    for name in ("", "/", "bucket", "bucket/", "B_/key", "/key"):
        with pytest.raises(MPIException) as caught:
            s3.Bucket.delete(name, WHERE)
        assert caught.value.Get_error_class() == errors.ERR_BAD_FILE
    assert s3.DATA == bucket.DATA
