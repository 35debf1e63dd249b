"""The kernel against NumPy in float64, all paths against each other, and the challenge's official answer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi import sparse
from serverless_mpi.inference import dataset, networks
from serverless_mpi.sparse import SparseRows
from tests.harness import DATA, ROOT


def random_rows(chance: np.random.Generator, rows: int, cols: int, constant: bool) -> SparseRows:
    counts = chance.integers(0, min(cols, 6) + 1, rows)
    columns = np.concatenate([np.sort(chance.choice(cols, n, replace=False)) for n in counts] or [np.empty(0, int)])
    values = 0.25 if constant else chance.normal(size=len(columns)).astype(np.float32)
    return SparseRows(np.concatenate([[0], np.cumsum(counts)]), columns.astype(np.int64), values, cols)


SHAPES = given(
    st.integers(0, 40), st.integers(1, 40), st.sampled_from([0, 1, 31, 32, 33, 70]), st.booleans(), st.integers(0, 2**32)
)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=80)


@SETTINGS
@SHAPES
def test_a_layer_is_the_reference(rows: int, cols: int, samples: int, constant: bool, seed: int) -> None:
    chance = np.random.default_rng(seed)
    w = random_rows(chance, rows, cols, constant)
    x = chance.choice([0.0, -0.0, 1e-40, 1.5, -2.0, 32.0], (cols, samples)).astype(np.float32)
    y, alive = sparse.layer(w, x, -0.3)
    z = sparse.multiply(w, x)
    # the bias is put on what is a nonzero in float32, so the reference begins from the kernel's own zeros
    expected = np.clip(np.where(z != 0, z.astype(float) - 0.3, 0), 0, 32)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    exact = sparse.reference_layer(w, x, 0.0, np.inf)
    np.testing.assert_allclose(np.maximum(z, 0), exact, rtol=1e-4, atol=1e-4)
    assert (alive == (y != 0).any(axis=0)).all()


@SETTINGS
@SHAPES
def test_any_block_of_rows_has_the_bits_of_the_whole(rows: int, cols: int, samples: int, constant: bool, seed: int) -> None:
    chance = np.random.default_rng(seed)
    w = random_rows(chance, rows, cols, constant)
    x = chance.normal(size=(cols, samples)).astype(np.float32)
    whole, _ = sparse.layer(w, x, -0.1)
    cut = int(chance.integers(0, rows + 1))
    for start, stop in ((0, cut), (cut, rows)):
        part, used = w.rows(start, stop).compacted()
        y, _ = sparse.layer(part, np.ascontiguousarray(x[used]), -0.1)
        assert y.tobytes() == whole[start:stop].tobytes()


def test_accumulating_adds_to_what_is_there() -> None:
    chance = np.random.default_rng(5)
    w = random_rows(chance, 9, 7, False)
    x = chance.normal(size=(7, 40)).astype(np.float32)
    y = np.ones((9, 40), np.float32)
    assert sparse.multiply(w, x, out=y, accumulate=True) is y
    np.testing.assert_allclose(y, 1 + sparse.multiply(w, x), rtol=1e-5, atol=1e-6)


def test_all_layers_at_once_have_the_bits_of_one_by_one() -> None:
    layers = networks.randomnet(64, 5, seed=1)
    x = (np.random.default_rng(1).random((64, 75)) > 0.6).astype(np.float32)
    y = x
    for one in layers:
        y, _ = sparse.layer(one, y, -0.05)
    assert (y != 0).any() and sparse.serial_forward(layers, x, -0.05).tobytes() == y.tobytes()


def test_every_path_gives_the_same_bits() -> None:
    program = (
        "import hashlib, numpy as np\nfrom serverless_mpi import sparse\nfrom serverless_mpi.inference import networks\n"
        "x = (np.random.default_rng(0).random((64, 75)) > .5).astype('f4')\n"
        "try: sparse.path()\nexcept ValueError: print('absent')\n"
        "else: print(hashlib.sha256(sparse.serial_forward(networks.randomnet(64, 4), x, -.1)).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "SMPI_KERNEL": path}, cwd=ROOT, capture_output=True,
            text=True, check=True,
        ).stdout.strip()
        for path in ("plain", "avx2", "avx512", "neon")
    }  # fmt: skip
    assert len(said - {"absent"}) == 1


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA}")
def test_the_official_categories() -> None:
    images = dataset.read_images(DATA / "graphchallenge_images_1024_first10k.npz", 1024)
    y = sparse.serial_forward(networks.radixnet(1024, 120), images, networks.BIAS[1024])
    right = dataset.read_categories(DATA / "graphchallenge_categories_1024_120_first10k.txt")
    assert (np.flatnonzero((y != 0).any(axis=0)) + 1).tolist() == right.tolist() and len(right) == 337


def test_a_random_network_is_what_scipy_says() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    layers = networks.randomnet(128, 6, seed=2)
    x = (np.random.default_rng(2).random((128, 50)) > 0.7).astype(np.float32)
    y = x.astype(np.float64)
    for one in layers:
        z = scipy_sparse.csr_matrix((one.all_values(), one.indices, one.indptr), (one.n_rows, one.n_cols)) @ y
        y = np.clip(np.where(z != 0, z - 0.02, 0), 0, 32)
    got = sparse.serial_forward(layers, x, -0.02)
    assert 0 < np.count_nonzero(y) < y.size and len(np.unique(got)) > 100  # it does not saturate
    np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (([0, 1], [5], 1.0, 5), "indices"),
        (([0, 1], [-1], 1.0, 5), "indices"),
        (([0, 2], [1], 1.0, 5), "indices"),
        (([1, 1], [0], 1.0, 5), "indptr"),
        (([0, 2, 1], [0], 1.0, 5), "indptr"),
        (([0, 1], [0], [1.0, 2.0], 5), "values"),
        (([0, 1], [0], np.nan, 5), "values"),
        (([0, 1], [0.5], 1.0, 5), "indices"),
    ],
)
def test_bad_matrices_are_refused(arguments: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SparseRows(*arguments)


@pytest.mark.parametrize(
    "x",
    [np.zeros((5, 3)), np.zeros((4, 3), "f4"), np.zeros(5, "f4"), np.zeros((3, 5), "f4").T, [[0.0]] * 5],
)
def test_bad_arrays_are_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="x must be a C-contiguous float32 array"):
        sparse.layer(SparseRows([0, 1], [0], 1.0, 5), x, 0.0)
