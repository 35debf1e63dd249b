"""Files of the store survive a round trip, and a damaged file is refused by its name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.aws import control
from serverless_mpi.errors import StoreError, UsageError
from serverless_mpi.inference.backends import Bucket, Folder, open_backend
from serverless_mpi.inference.container import ALIGN, narrow, pack, unpack

ARRAYS = {
    "wide": np.arange(70000, dtype=np.int64),
    "small": np.arange(300, dtype=np.int64).reshape(3, 100),
    "signed": np.array([-1, 5], np.int64),
    "empty": np.zeros(0, np.uint32),
    "floats": np.array([1.5, -0.0, np.inf], np.float32),
    "flags": np.array([True, False]),
}


def whole(pieces: list[memoryview]) -> bytes:
    return b"".join(pieces)


def test_arrays_are_restored_and_stored_narrow_and_aligned() -> None:
    data = whole(pack("a thing", {"name": "x", "bias": -0.3}, ARRAYS))
    facts, arrays = unpack("file", memoryview(data), "a thing")
    assert (facts["name"], facts["bias"]) == ("x", -0.3)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes(), name
    assert narrow(ARRAYS["small"]).dtype == np.uint16 and narrow(ARRAYS["wide"]).dtype == np.uint32
    assert narrow(ARRAYS["signed"]).dtype == np.int64
    assert len(data) % ALIGN == 0 and len(data) < 70000 * 4 + 2000  # 4 bytes a number, not 8


def test_arrays_of_the_stored_type_are_views() -> None:
    array = np.arange(9, dtype=np.uint16)
    data = memoryview(whole(pack("a thing", {}, {"a": array})))
    view = unpack("file", data, "a thing")[1]["a"]
    assert np.shares_memory(view, np.frombuffer(data, np.uint8)) and not view.flags.writeable


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    good = whole(pack("a thing", {}, {"a": np.arange(40), "b": np.ones(3, np.float32)}))
    bad = bytearray(good)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(good) - 1))
        bad[place] ^= data.draw(st.integers(1, 255))
    else:
        del bad[data.draw(st.integers(0, len(good) - 1)) :]
    try:
        _, arrays = unpack("some/file", memoryview(bytes(bad)), "a thing")
    except StoreError as error:
        assert "some/file" in str(error)
    else:  # only padding was hit
        assert (arrays["a"] == np.arange(40)).all() and (arrays["b"] == 1).all()


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="f is not a file"):
        unpack("f", memoryview(data), "a thing")


def test_later_versions_and_other_kinds_are_refused() -> None:
    data = bytearray(whole(pack("a thing", {}, {})))
    with pytest.raises(StoreError, match="x holds a thing, not a part"):
        unpack("x", memoryview(bytes(data)), "a part")
    struct.pack_into("<I", data, 8, 7)
    with pytest.raises(StoreError, match="x has format 7, of a later version of serverless_mpi"):
        unpack("x", memoryview(bytes(data)), "a thing")


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    if request.param == "folder":
        yield open_backend(tmp_path / "deep" / "store")
        return
    endpoint = request.getfixturevalue("ministack_endpoint")
    control.client("s3", endpoint, "us-east-1").create_bucket(Bucket="models")
    opened = open_backend("s3://models/some/prefix", endpoint)
    yield opened
    opened.close()


def test_files_are_put_and_got(place) -> None:  # type: ignore[no-untyped-def]
    assert place.get("nothing") is None
    with pytest.raises(StoreError, match="has no nothing"):
        place.read("nothing", "a thing")
    place.put("a", [memoryview(b"one"), memoryview(b"two")])
    place.put("a", [memoryview(b"three")])
    assert bytes(place.get("a")) == b"three"


def test_a_large_object_comes_in_ranges(
    ministack_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.client("s3", ministack_endpoint, "us-east-1").create_bucket(Bucket="ranges")
    monkeypatch.setattr("serverless_mpi.inference.backends.PART_BYTES", 1000)
    opened = open_backend("s3://ranges/p", ministack_endpoint)
    assert isinstance(opened, Bucket)
    data = np.random.default_rng(0).bytes(5500)
    opened.put("x", [memoryview(data)])
    assert bytes(opened.get("x")) == data  # type: ignore[arg-type]
    assert opened.meter.snapshot()["s3.GET"]["requests"] == 6
    opened.close()


def test_a_missing_bucket_and_a_bad_place_are_named(
    ministack_endpoint: str, tmp_path: Path
) -> None:
    opened = open_backend("s3://no-such-bucket/x", ministack_endpoint)
    with pytest.raises(StoreError, match="no bucket 'no-such-bucket' at http"):
        opened.get("a")
    with pytest.raises(StoreError, match="no bucket 'no-such-bucket'"):
        opened.put("a", [memoryview(b"1")])
    opened.close()
    with pytest.raises(UsageError, match="name where that bucket is: --endpoint"):
        open_backend("s3://bucket/prefix")
    for url in ("s3://B", "http://bucket/x"):
        with pytest.raises(UsageError, match="neither a folder nor s3://bucket/prefix"):
            open_backend(url, "aws")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Folder(tmp_path / "file").put("a", [])
