"""The kernel against NumPy in float64, all paths against each other, and the challenge's official
answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi import sparse
from serverless_mpi.inference import dataset, networks
from serverless_mpi.sparse import WIDTH, Panels, SparseRows, cpus
from tests.harness import DATA, ROOT


def random_rows(chance: np.random.Generator, rows: int, cols: int, constant: bool) -> SparseRows:
    counts = chance.integers(0, min(cols, 6) + 1, rows)
    columns = np.concatenate(
        [np.sort(chance.choice(cols, n, replace=False)) for n in counts] or [np.empty(0, int)]
    )
    values = 0.25 if constant else chance.normal(size=len(columns)).astype(np.float32)
    return SparseRows(
        np.concatenate([[0], np.cumsum(counts)]), columns.astype(np.int64), values, cols
    )


SHAPES = given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.sampled_from([0, 1, 31, 32, 33, 70]),
    st.booleans(),
    st.integers(0, 2**32),
)


def reference_layer(
    w: SparseRows, x: np.ndarray, bias: float, cap: float = sparse.CAP
) -> np.ndarray:
    """One layer in float64 by NumPy: (n_rows, samples)."""
    rows = np.repeat(np.arange(w.n_rows), np.diff(w.indptr))
    z = np.zeros((w.n_rows, x.shape[1]))
    np.add.at(z, rows, w.all_values().astype(np.float64)[:, None] * x[w.indices])
    return np.clip(np.where(z != 0, z + bias, 0), 0, cap)


def compacted(w: SparseRows) -> tuple[SparseRows, np.ndarray]:
    """(the rows over the columns in use alone, those columns ascending); a row keeps its order."""
    used, columns = np.unique(w.indices, return_inverse=True)
    return SparseRows(w.indptr, columns, w.all_values(), len(used)), used


SETTINGS = settings(derandomize=True, deadline=None, max_examples=80)


@SETTINGS
@SHAPES
def test_a_layer_is_the_reference(
    rows: int, cols: int, samples: int, constant: bool, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    w = random_rows(chance, rows, cols, constant)
    x = chance.choice([0.0, -0.0, 1e-40, 1.5, -2.0, 32.0], (cols, samples)).astype(np.float32)
    y, alive = sparse.layer(w, x, -0.3)
    z = sparse.multiply(w, x)
    # the bias is put on what is a nonzero in float32, so the reference begins from the kernel's own
    # zeros
    expected = np.clip(np.where(z != 0, z.astype(float) - 0.3, 0), 0, 32)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    exact = reference_layer(w, x, 0.0, np.inf)
    np.testing.assert_allclose(np.maximum(z, 0), exact, rtol=1e-4, atol=1e-4)
    assert (alive == (y != 0).any(axis=0)).all()


@SETTINGS
@SHAPES
def test_any_block_of_rows_has_the_bits_of_the_whole(
    rows: int, cols: int, samples: int, constant: bool, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    w = random_rows(chance, rows, cols, constant)
    x = chance.normal(size=(cols, samples)).astype(np.float32)
    whole, _ = sparse.layer(w, x, -0.1)
    cut = int(chance.integers(0, rows + 1))
    for start, stop in ((0, cut), (cut, rows)):
        part, used = compacted(w.rows(start, stop))
        y, _ = sparse.layer(part, np.ascontiguousarray(x[used]), -0.1)
        assert y.tobytes() == whole[start:stop].tobytes()


@SETTINGS
@SHAPES
def test_a_sum_that_is_continued_has_the_bits_of_one_that_is_not(
    rows: int, cols: int, samples: int, constant: bool, seed: int
) -> None:
    """Columns cut in three, as rows of three peers: multiply, multiply on, finish; in panels and in
    C order.
    """
    chance = np.random.default_rng(seed)
    w = random_rows(chance, rows, cols, constant)
    x = chance.normal(size=(cols, samples)).astype(np.float32)
    whole, living = sparse.layer(w, x, -0.1)
    cuts = [0, *np.sort(chance.integers(0, cols + 1, 2)), cols]
    parts = [column_block(w, start, stop) for start, stop in zip(cuts, cuts[1:])]
    pieces = [np.ascontiguousarray(x[start:stop]) for start, stop in zip(cuts, cuts[1:])]
    y = sparse.multiply(parts[0], pieces[0])
    assert sparse.multiply(parts[1], pieces[1], out=y, accumulate=True) is y
    counts = np.full(rows, 99, np.uint32)
    _, alive = sparse.layer(parts[2], pieces[2], -0.1, out=y, accumulate=True, counts=counts)
    assert y.tobytes() == whole.tobytes()
    assert (alive == living).all() and (counts == np.count_nonzero(whole, axis=1)).all()
    panels = Panels(rows, samples)
    for number, (part, piece) in enumerate(zip(parts, pieces)):
        if number < 2:
            sparse.multiply(part, Panels.of(piece), panels, number > 0)
    counts[:] = 99
    _, alive = sparse.layer(
        parts[2], Panels.of(pieces[2]), -0.1, out=panels, accumulate=True, counts=counts, threads=3
    )
    assert panels.take().tobytes() == whole.tobytes()
    assert (alive == living).all() and (counts == np.count_nonzero(whole, axis=1)).all()


def column_block(w: SparseRows, start: int, stop: int) -> SparseRows:
    """Columns start..stop-1 of w."""
    here = (w.indices >= start) & (w.indices < stop)
    indptr = np.concatenate([[0], np.cumsum(here)])[w.indptr]
    return SparseRows(
        indptr, w.indices[here].astype(np.int64) - start, w.all_values()[here], max(stop - start, 0)
    )


@SETTINGS
@given(st.integers(1, 9), st.integers(0, 100), st.integers(0, 2**32))
def test_panels_are_the_array(rows: int, samples: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(rows, samples)).astype(np.float32)
    panels = Panels.of(x)
    assert (
        panels.shape == x.shape
        and (panels.take() == x).all()
        and not (samples and panels.data.ctypes.data % 64)
    )
    some = chance.integers(0, rows, 5)
    assert (panels.take(some) == x[some]).all()
    distinct = chance.permutation(rows)[: rows // 2]
    x[distinct] = x[: len(distinct)] + 1
    panels.put(np.ascontiguousarray(x[distinct]), distinct)
    assert (panels.take() == x).all()
    kept = chance.random(samples) > 0.5
    panels.keep(kept)
    assert (panels.take() == x[:, kept]).all()
    if kept.sum() % WIDTH:
        assert not panels.data[-1, :, kept.sum() % WIDTH :].any()


@SETTINGS
@given(
    st.integers(1, 5), st.integers(1, 200), st.booleans(), st.integers(1, 3), st.integers(0, 2**32)
)
def test_other_networks_with_the_same_answer(
    depth: int, samples: int, constant: bool, threads: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    layers = []
    width = inputs = 12
    for _ in range(depth):
        rows = int(chance.integers(8, 16))
        layers.append(
            random_rows(chance, rows, width, constant).chosen(chance.integers(0, rows, rows))
        )  # some rows are equal
        width = rows
    x = (chance.random((inputs, samples)) > 0.6).astype(np.float32)
    expected, living = sparse.forward(layers, x, -0.05)
    for other in (
        sparse.relabelled(layers),
        sparse.merged(layers),
        sparse.relabelled(sparse.merged(layers)),
    ):
        y, alive = sparse.forward(other, x, -0.05, threads=threads)
        assert (alive == living).all() and y.tobytes() == expected.tobytes()
    y = x
    for one in layers:
        y, _ = sparse.layer(one, y, -0.05)
    assert y[:, living].tobytes() == expected.tobytes() and np.count_nonzero(y) == np.count_nonzero(
        expected
    )


def test_merging_leaves_one_of_equal_rows() -> None:
    layers = sparse.merged(networks.radixnet(1024, 8))
    assert [one.n_rows for one in layers] == [64] * 5 + [
        32,
        64,
        1024,
    ]  # 16 of each; 32 where the stride is half the classes


def test_all_layers_at_once_have_the_bits_of_one_by_one() -> None:
    layers = networks.randomnet(64, 5, seed=1)
    x = (np.random.default_rng(1).random((64, 75)) > 0.6).astype(np.float32)
    y = x
    for one in layers:
        y, _ = sparse.layer(one, y, -0.05)
    assert (y != 0).any() and sparse.serial_forward(layers, x, -0.05).tobytes() == y.tobytes()


def test_every_path_gives_the_same_bits() -> None:
    program = (
        "import hashlib, numpy as np\nfrom serverless_mpi import sparse\nfrom "
        "serverless_mpi.inference import networks\n"
        "x = (np.random.default_rng(0).random((64, 75)) > .5).astype('f4')\n"
        "try: sparse.path()\nexcept ValueError: print('absent')\n"
        "else: print(hashlib.sha256(sparse.serial_forward(networks.randomnet(64, 4), x, "
        "-.1)).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "SMPI_KERNEL": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for path in ("plain", "avx2", "avx512", "neon")
    }
    assert len(said - {"absent"}) == 1


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA}")
def test_the_official_categories() -> None:
    images = dataset.read_images(DATA / "graphchallenge_images_1024_first10k.npz", 1024)
    y = sparse.serial_forward(networks.radixnet(1024, 120), images, networks.BIAS[1024])
    right = dataset.read_categories(DATA / "graphchallenge_categories_1024_120_first10k.txt")
    assert (np.flatnonzero((y != 0).any(axis=0)) + 1).tolist() == right.tolist() and len(
        right
    ) == 337


def test_a_random_network_computes_as_scipy_does() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    layers = networks.randomnet(128, 6, seed=2)
    x = (np.random.default_rng(2).random((128, 50)) > 0.7).astype(np.float32)
    y = x.astype(np.float64)
    for one in layers:
        z = (
            scipy_sparse.csr_matrix(
                (one.all_values(), one.indices, one.indptr), (one.n_rows, one.n_cols)
            )
            @ y
        )
        y = np.clip(np.where(z != 0, z - 0.02, 0), 0, 32)
    got = sparse.serial_forward(layers, x, -0.02)
    assert 0 < np.count_nonzero(y) < y.size and len(np.unique(got)) > 100  # it does not saturate
    np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
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
def test_bad_matrices_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseRows(*arguments)


@pytest.mark.parametrize(
    "message, call",
    [
        ("out overlaps x", lambda w, x: sparse.layer(w, x[:5], 0.0, out=x[1:6])),
        ("out must be", lambda w, x: sparse.layer(w, x[:5], 0.0, out=x[:3])),
        ("out must be Panels", lambda w, x: sparse.layer(w, Panels(5, 4), 0.0, out=x[:5])),
        ("out must be Panels", lambda w, x: sparse.layer(w, Panels(5, 4), 0.0, out=Panels(5, 5))),
        ("accumulate needs out", lambda w, x: sparse.layer(w, x[:5], 0.0, accumulate=True)),
        ("x has 4 rows", lambda w, x: sparse.layer(w, Panels(4, 4), 0.0)),
        ("threads", lambda w, x: sparse.layer(w, x[:5], 0.0, threads=0)),
        ("threads", lambda w, x: sparse.forward([w], x[:5], 0.0, threads=-1)),
        ("bias", lambda w, x: sparse.layer(w, x[:5], np.nan)),
        ("cap", lambda w, x: sparse.layer(w, x[:5], 0.0, cap=-1.0)),
        ("cap", lambda w, x: sparse.forward([w], x[:5], 0.0, cap=np.nan)),
        ("counts", lambda w, x: sparse.layer(w, x[:5], 0.0, counts=np.zeros(5, np.int32))),
        ("layers is empty", lambda w, x: sparse.forward([], x[:5], 0.0)),
        (r"layers\[1\]", lambda w, x: sparse.forward([w, SparseRows([0], [], 1.0, 4)], x[:5], 0.0)),
        ("read-only", lambda w, x: sparse.layer(w, x[:5], 0.0, out=frozen(x[5:]))),
        ("rows must be", lambda w, x: Panels(3, 4).put(x[:1], [3])),
        ("rows must be", lambda w, x: Panels(3, 4).take([-1])),
        ("x must be", lambda w, x: Panels(3, 4).put(x[:2], [1])),
        ("samples must rise", lambda w, x: Panels(3, 4).keep([2, 1])),
        ("samples must be", lambda w, x: Panels(3, 4).keep([4])),
        ("samples has shape", lambda w, x: Panels(3, 4).keep([True])),
        ("negative", lambda w, x: Panels(-1, 4)),
    ],
)
def test_bad_calls_are_refused(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call(SparseRows([0, 1, 1, 1, 1, 1], [0], 1.0, 5), np.zeros((10, 4), np.float32))


def frozen(x: Any) -> Any:
    x.flags.writeable = False
    return x


def test_threads_are_shared_with_the_other_ranks_and_the_quota() -> None:
    assert cpus.threads_of({}, 8, np.inf) == 8
    assert cpus.threads_of({"SMPI_LOCAL_RANKS": "3"}, 8, np.inf) == 2
    assert cpus.threads_of({"SMPI_LOCAL_RANKS": "30"}, 8, np.inf) == 1
    assert cpus.threads_of({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 8, 1.5) == 1
    assert cpus.threads_of({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "3538"}, 6, np.inf) == 2
    assert cpus.threads_of({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128"}, 2, np.inf) == 1
    assert cpus.threads_of({"SMPI_THREADS": "5", "SMPI_LOCAL_RANKS": "4"}, 2, 1.0) == 5
    for bad in ("0", "-1", "two"):
        with pytest.raises(ValueError, match="SMPI_THREADS"):
            cpus.threads_of({"SMPI_THREADS": bad}, 2, np.inf)


def test_the_quota_of_both_versions_of_cgroups(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path) == np.inf
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpus.quota(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpus.quota(tmp_path) == np.inf
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpus.quota(tmp_path) == 1.5


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((5, 3)),
        np.zeros((4, 3), "f4"),
        np.zeros(5, "f4"),
        np.zeros((3, 5), "f4").T,
        [[0.0]] * 5,
    ],
)
def test_bad_arrays_are_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="x must be a C-contiguous float32 array"):
        sparse.layer(SparseRows([0, 1], [0], 1.0, 5), x, 0.0)


def test_a_matrix_does_not_change_once_it_is_made() -> None:
    """Whatever happens to the arrays it was made of; the kernel reads its own without looking."""
    for kind in (np.uint16, np.uint32, np.int64):
        indptr, indices = np.array([0, 2, 3], np.int64), np.array([0, 4, 2], kind)
        values = np.array([1.0, 2.0, 3.0], np.float32)
        w = SparseRows(indptr, indices, values, 5)
        for array in (indptr, indices, values):
            array[:] = 60000
        assert w.indptr.tolist() == [0, 2, 3] and w.indices.tolist() == [0, 4, 2]
        assert w.all_values().tolist() == [1, 2, 3]
        for kept in (w.indptr, w.indices, w.values):
            assert kept is not None
            for one in (kept, kept.view(), kept.reshape(-1), kept.base):
                if isinstance(one, np.ndarray):
                    with pytest.raises(ValueError, match="WRITEABLE"):
                        one.flags.writeable = True
        for name in ("indices", "n_rows", "c", "values"):
            with pytest.raises(AttributeError, match="make a new one"):
                setattr(w, name, None)
    for name in ("rows", "samples", "data", "c"):
        with pytest.raises(AttributeError, match="cannot be set"):
            setattr(Panels(2, 2), name, None)


def test_only_what_may_change_is_copied() -> None:
    whole = np.arange(7, dtype=np.uint16)
    once = sparse.frozen(whole)
    assert once is not whole and sparse.frozen(once) is once
    assert np.shares_memory(sparse.frozen(once[2:5]), once)
    fixed = np.frombuffer(whole.tobytes(), np.uint16)
    assert sparse.frozen(fixed) is fixed
    view = whole.view()
    view.flags.writeable = False  # `whole` can still be written to
    backed = np.frombuffer(memoryview(bytearray(14)).toreadonly(), np.uint16)
    for other in (view, backed, np.asarray(memoryview(whole).toreadonly())):
        assert not np.shares_memory(sparse.frozen(other), other)
