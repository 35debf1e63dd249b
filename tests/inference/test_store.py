"""A stored model gives the engine the same parts; files of different models or partitions do not
mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from serverless_mpi.aws import control
from serverless_mpi.errors import StoreError, UsageError
from serverless_mpi.inference import engine, networks, partition, store
from serverless_mpi.inference.backends import Backend, Folder, open_backend
from serverless_mpi.sparse import serial_forward
from tests.harness import run

BIAS = -0.15
NETWORK = networks.randomnet(96, 7, seed=4)
IMAGES = (np.random.default_rng(4).random((96, 130)) > 0.9).astype(np.float32)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "folder":
        yield Folder(tmp_path)
        return
    endpoint = request.getfixturevalue("ministack_endpoint")
    name = f"store-{crc32(request.node.name.encode()):08x}"
    control.client("s3", endpoint, "us-east-1").create_bucket(Bucket=name)
    opened = open_backend(f"s3://{name}/m", endpoint)
    yield opened
    opened.close()


def written(
    place: Backend, parts: int = 3, method: str = "random", net: Any = NETWORK
) -> store.Index:
    return store.write_model(place, net, partition.make(net, parts, method, 1), bias=BIAS)


def test_parts_are_read_and_run(place: Backend) -> None:
    index = written(place)
    store.write_inputs(place, index, "images", IMAGES)
    assert store.read_index(place).model == index.model
    cut = partition.make(NETWORK, 3, "random", 1)

    def body(comm: Any) -> Any:
        own = store.read_index(place)
        parts = store.load_part(place, own, comm.rank)
        for got, wanted in zip(parts, partition.build(NETWORK, cut, comm.rank), strict=True):
            for field in fields(engine.Part):
                one, other = getattr(got, field.name), getattr(wanted, field.name)
                assert np.array_equal(one, other) and type(one) is type(other), field.name
                assert not isinstance(one, np.ndarray) or one.dtype == other.dtype, field.name
        return engine.infer(
            comm, parts, store.load_inputs(place, own, "images", comm.rank), own.bias, own.cap
        )

    results = run(3, body)
    whole = serial_forward(NETWORK, IMAGES, BIAS)
    living = np.flatnonzero((whole != 0).any(axis=0))
    for part, (y, samples, _) in enumerate(results):
        assert (samples == living).all() and 0 < len(living) < 130
        assert y.tobytes() == np.ascontiguousarray(whole[index.last == part][:, living]).tobytes()


def test_inputs_of_any_values(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    index = written(place)
    for name, x in (
        ("bits", IMAGES),
        ("grey", IMAGES * np.float32(0.3)),
        ("real", np.random.default_rng(1).random((96, 9), np.float32)),
    ):
        store.write_inputs(place, index, name, x)
        for part in range(3):
            assert (
                store.load_inputs(place, index, name, part).tobytes()
                == x[index.first == part].tobytes()
            )
    sizes = {
        path.name.split("-")[1]: path.stat().st_size for path in tmp_path.glob("input-*-00000.smpi")
    }
    assert sizes["bits"] < 2000 and sizes["grey"] < 2000


def test_constant_weights_are_not_stored(tmp_path: Path) -> None:
    net = networks.radix(1024, 12)
    index = written(Folder(tmp_path), 4, "block", net)
    entries = sum(
        len(part.indices)
        for number in range(4)
        for part in store.load_part(Folder(tmp_path), index, number)
    )
    assert index.nbytes < 3 * entries + 12 * 4 * 4000 and index.nonzeros == 12 * 32 * 1024


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
def test_a_damaged_part_is_refused_by_name(tmp_path: Path, change: str) -> None:
    index = written(Folder(tmp_path))
    path = tmp_path / "part-00001.smpi"
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
    elif change == "cut":
        del data[-100:]
    else:
        data += b"x"
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"part-00001\.smpi is (damaged|cut short)"):
        store.load_part(Folder(tmp_path), index, 1)
    store.load_part(Folder(tmp_path), index, 0)


def test_files_of_different_models_and_partitions_do_not_mix(tmp_path: Path) -> None:
    a, b, c = (Folder(tmp_path / name) for name in "abc")
    index = written(a)
    written(b, net=networks.randomnet(96, 7, seed=5))
    written(c, method="block")
    store.write_inputs(c, store.read_index(c), "x", IMAGES)
    for other, what in (("b", "model"), ("c", "partition")):
        (tmp_path / "a" / "part-00002.smpi").write_bytes(
            (tmp_path / other / "part-00002.smpi").read_bytes()
        )
        with pytest.raises(
            StoreError, match=f"part-00002.smpi is of another {what} than index.smpi"
        ):
            store.load_part(a, index, 2)
    (tmp_path / "a" / "input-x-00000.smpi").write_bytes(
        (tmp_path / "c" / "input-x-00000.smpi").read_bytes()
    )
    with pytest.raises(StoreError, match="input-x-00000.smpi is of another partition"):
        store.load_inputs(a, index, "x", 0)
    (tmp_path / "a" / "part-00000.smpi").write_bytes(
        (tmp_path / "a" / "part-00001.smpi").read_bytes()
    )
    with pytest.raises(StoreError, match="is part 1, under a wrong name"):
        store.load_part(a, index, 0)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    with pytest.raises(StoreError, match="no model in .*smpi-infer store"):
        store.read_index(place)
    index = written(place)
    with pytest.raises(StoreError, match="has no input-nothing-00000.smpi"):
        store.load_inputs(place, index, "nothing", 0)
    with pytest.raises(UsageError, match="no part 3 in .*, which has 3"):
        store.load_part(place, index, 3)
    with pytest.raises(UsageError, match="not a valid name of an input"):
        store.write_inputs(place, index, "../x", IMAGES)
    (tmp_path / "part-00001.smpi").unlink()
    with pytest.raises(StoreError, match="has no part-00001.smpi"):
        store.load_part(place, index, 1)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((95, 3), np.float32), "images of 95 pixels"),
        (np.zeros((96, 0), np.float32), "0 images of"),
        (np.full((96, 1), np.nan, np.float32), "NaN"),
        (np.zeros((96, 3)), "float64"),
        (np.zeros(96, np.float32), r"\(96,\)"),
        ([1.0], "list"),
    ],
)
def test_invalid_images_are_refused(tmp_path: Path, x: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.write_inputs(Folder(tmp_path), written(Folder(tmp_path)), "x", x)


def test_a_partition_has_a_file_of_its_own(tmp_path: Path) -> None:
    cut = partition.make(NETWORK, 3, "random", 1)
    store.write_partition(tmp_path / "cut.smpi", cut, NETWORK)
    again = store.read_partition(tmp_path / "cut.smpi", NETWORK)
    assert (again.parts, again.method) == (3, "random") and store.layout(again) == store.layout(cut)
    block = partition.make(NETWORK, 3, "block")  # one array for all boundaries
    store.write_partition(tmp_path / "block.smpi", block, NETWORK)
    assert (tmp_path / "block.smpi").stat().st_size < (tmp_path / "cut.smpi").stat().st_size
    with pytest.raises(StoreError, match="cut.smpi is a partition of another model"):
        store.read_partition(tmp_path / "cut.smpi", networks.randomnet(96, 7, seed=5))
