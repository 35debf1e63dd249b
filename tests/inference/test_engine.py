"""The distributed engine gives the serial kernel's bits, on any number of ranks; its codec is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.inference import codec, dataset, engine, networks, partition
from serverless_mpi.sparse import serial_forward
from tests.harness import run


@pytest.mark.parametrize("method", ["block", "random", "greedy"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_number_of_ranks_gives_the_serial_bits(ranks: int, method: str) -> None:
    network = networks.random(96, 7, seed=4)
    x = (np.random.default_rng(4).random((96, 130)) > 0.9).astype(np.float32)
    x[:, ::7] = 0  # samples that are dead from the start
    owners = partition.make(network, ranks, method)

    def body(comm: Any) -> Any:
        parts = partition.build(network, owners, comm.rank)
        return engine.infer(comm, parts, x[owners.rows(0, comm.rank)], -0.15)

    results = run(ranks, body)
    whole = serial_forward(list(network), x, -0.15)
    living = np.flatnonzero((whole != 0).any(axis=0))
    assert 0 < len(living) < 130  # some die, some live
    for rank, (y, samples, _) in enumerate(results):
        assert (samples == living).all()
        assert y.tobytes() == whole[owners.rows(7, rank)][:, living].tobytes()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(0, 40), st.sampled_from(["zero", "constant", "mixed"]), st.integers(0, 2**32))
def test_the_codec_is_exact(rows: int, samples: int, kind: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = {"zero": [0.0], "constant": [0.0, 32.0], "mixed": [0.0, 1.5, -3.25, 1e-40, 32.0]}[kind]
    x = chance.choice(values, (rows, samples)).astype(np.float32)
    assert codec.decode(codec.encode(x), (rows, samples)).tobytes() == x.tobytes()


def test_rows_of_another_shape_are_refused() -> None:
    data = codec.encode(np.arange(12, dtype=np.float32).reshape(3, 4))
    with pytest.raises(ValueError, match="same network"):
        codec.decode(data, (2, 4))


def test_radixnet_has_the_challenges_shape() -> None:
    for number, one in enumerate(networks.radixnet(1024, 14, seed=1)):
        inputs = one.indices.reshape(1024, 32)
        assert (np.bincount(one.indices, minlength=1024) == 32).all() and one.constant == 1 / 16
        if number < 6:
            shift = inputs[:, :] % 64
            assert {tuple(sorted(set(row))) for row in shift[:1].tolist()} == {tuple(sorted({0, 2**number}))}


@pytest.mark.parametrize(
    "text, told",
    [("1\t2\n", "line 1"), ("1\t2\t1\n1\tx\t1\n", "line 2"), ("0\t1\t1\n", "line 1"), ("1\t65\t1\n", "line 1"), ("1\t1\tnan\n", "line 1")],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "images.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        dataset.read_images(path, 64)


def test_tsv_and_npz_are_read_alike(tmp_path: Path) -> None:
    images = (np.random.default_rng(3).random((5, 64)) > 0.5).astype(np.uint8)
    images[4, 0] = 1  # the last image has a point
    np.savez(tmp_path / "bits.npz", bits=np.packbits(images, axis=1))
    (tmp_path / "images.tsv").write_text("".join(f"{r + 1}\t{c + 1}\t1\n" for r, c in np.argwhere(images)))
    for name in ("bits.npz", "images.tsv"):
        assert (dataset.read_images(tmp_path / name, 64) == images.T).all()
    with pytest.raises(ValueError, match="bits of shape"):
        dataset.read_images(tmp_path / "bits.npz", 128)
    with pytest.raises(ValueError, match="5 images, not 9"):
        dataset.read_images(tmp_path / "bits.npz", 64, 9)
