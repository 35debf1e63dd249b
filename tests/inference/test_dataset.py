"""Networks have the challenge's shape; formats survive a round trip; an invalid line is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serverless_mpi.inference import dataset, files, networks
from serverless_mpi.sparse import SparseRows, serial_forward
from tests.harness import DATA
from tests.inference import writing


def test_radixnet_has_the_challenges_shape() -> None:
    for number, one in enumerate(networks.radixnet(1024, 14, seed=1)):
        inputs = one.indices.reshape(1024, 32)
        assert (np.bincount(one.indices, minlength=1024) == 32).all() and one.constant == 1 / 16
        if number < 6:
            shift = inputs[:, :] % 64
            assert {tuple(sorted(set(row))) for row in shift[:1].tolist()} == {
                tuple(sorted({0, 2**number}))
            }


def test_a_network_is_made_anew_by_each_reader_one_layer_at_a_time() -> None:
    network = networks.radix(1024, 1920, seed=3)
    layers = iter(network)
    first = [next(layers).indices for _ in range(8)]
    again = [matrix.indices for matrix, _ in zip(network, range(8))]
    assert len(network) == 1920 and all(
        (one == other).all() for one, other in zip(first, again, strict=True)
    )
    assert all(
        (one.indices == other.indices).all()
        for one, other in zip(networks.random(100, 3, 1), networks.random(100, 3, 1))
    )
    assert (
        networks.randomnet(100, 1, 1)[0].indices != networks.randomnet(100, 1, 2)[0].indices
    ).any()


@pytest.mark.parametrize("neurons, layers", [(1000, 3), (1024, 0)])
def test_invalid_sizes_are_refused(neurons: int, layers: int) -> None:
    with pytest.raises(ValueError, match="neurons per layer|at least 1 layer"):
        networks.radix(neurons, layers)


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA}")
def test_the_official_categories_of_real_images() -> None:
    images = dataset.read_images(DATA / "graphchallenge_images_1024_first10k.npz", 1024, 2000)
    y = serial_forward(networks.radixnet(1024, 120), images, networks.BIAS[1024])
    wanted = dataset.read_categories(DATA / "graphchallenge_categories_1024_120_first10k.txt")
    assert (np.flatnonzero((y != 0).any(axis=0)) + 1).tolist() == wanted[wanted <= 2000].tolist()


@pytest.mark.parametrize("suffix", dataset.SUFFIXES)
def test_a_network_is_read_from_its_files(tmp_path: Path, suffix: str) -> None:
    for network in (
        networks.randomnet(50, 3, seed=2),
        [SparseRows([0, 0, 2, 3], [0, 2, 1], [0.5, -1e-30, 3.0], 3)],
    ):
        neurons = network[0].n_cols
        writing.write_network(tmp_path, network, suffix)
        read = dataset.read_network(tmp_path, neurons, len(network), bias=-0.5)
        assert (read.neurons, len(read), read.bias) == (neurons, len(network), -0.5)
        for _ in range(2):
            for one, other in zip(read, network, strict=True):
                assert (one.indptr == other.indptr).all() and (one.indices == other.indices).all()
                assert one.all_values().tobytes() == other.all_values().tobytes()


def test_scipy_reads_what_is_written_and_writes_what_is_read(tmp_path: Path) -> None:
    scipy_io, sparse = pytest.importorskip("scipy.io"), pytest.importorskip("scipy.sparse")
    matrix = networks.randomnet(40, 1, seed=1)[0]
    dense = sparse.csr_matrix((matrix.all_values(), matrix.indices, matrix.indptr), (40, 40)).T
    writing.write_layer(tmp_path / "a.npz", matrix)
    writing.write_layer(tmp_path / "a.mtx", matrix)
    assert (sparse.load_npz(tmp_path / "a.npz") != dense).nnz == 0
    assert abs(scipy_io.mmread(tmp_path / "a.mtx").tocsr() - dense).max() == 0
    for kind in ("csr", "csc", "coo"):
        sparse.save_npz(tmp_path / f"{kind}.npz", dense.asformat(kind))
        assert (
            dataset.read_layer(tmp_path / f"{kind}.npz", 40).all_values() == matrix.all_values()
        ).all()
    scipy_io.mmwrite(tmp_path / "b.mtx", dense.tocoo(), precision=9)
    assert (dataset.read_layer(tmp_path / "b.mtx", 40).all_values() == matrix.all_values()).all()


@pytest.mark.parametrize(
    "text, message",
    [
        ("1\t2\n", "line 1"),
        ("1\t2\t1\n1\tx\t1\n", "line 2"),
        ("0\t1\t1\n", "line 1"),
        ("1\t65\t1\n", "line 1"),
        ("1\t1\tnan\n", "line 1"),
        ("1\t1\t1\n\n1\t2\t1e39\n", "line 3"),
        ("1\t1\t1\n1.5\t2\t1\n", "line 2"),
        ("1\t1\t1\n2\t2\n1\t3\t1\t4\n", "line 2"),
        ("1\t1\t1\n2\t2\t1\n1\t1\t2\n", "entry .1, 1., counted from 1, is repeated"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "images.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        dataset.read_images(path, 64)


def test_a_bad_line_is_named_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 24)
    path = tmp_path / "images.tsv"
    lines = [f"{number}\t1\t1" for number in range(1, 12)]
    path.write_text("\n".join(lines))
    assert dataset.read_images(path, 8).sum(axis=0).tolist() == [1.0] * 11
    lines[9] = "10\t9\t1"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 10: '10.t9.t1' is outside of 1..any and 1..8"):
        dataset.read_images(path, 8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("%%MatrixMarket matrix array real general\n", "line 1"),
        ("%%MatrixMarket matrix coordinate real symmetric\n", "line 1"),
        ("%%MatrixMarket matrix coordinate real general\n% made by hand\n3 3\n", "line 3"),
        (
            "%%MatrixMarket matrix coordinate real general\n4 3 1\n1 1 1\n",
            "shape .4, 3., not .3, 3.",
        ),
        (
            "%%MatrixMarket matrix coordinate real general\n3 3 2\n1 1 1\n",
            "1 entries; its line 2 states 2",
        ),
        ("%%MatrixMarket matrix coordinate pattern general\n3 3 1\n1 4\n", "line 3"),
    ],
)
def test_an_invalid_matrix_market_file_is_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "n3-l1.mtx").write_text(text)
    with pytest.raises(ValueError, match=message):
        dataset.read_layer(tmp_path / "n3-l1.mtx", 3)


def test_a_folder_without_the_layers_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file n3-l1 with a suffix of .tsv, .npz, .mtx"):
        dataset.read_network(tmp_path, 3, 2)
    writing.write_network(tmp_path, [SparseRows([0, 0, 0, 1], [1], 1.0, 3)])
    with pytest.raises(ValueError, match="lacks 1 of 2 layers, the first of them n3-l2.tsv"):
        dataset.read_network(tmp_path, 3, 2)


def test_images_are_read_from_every_format(tmp_path: Path) -> None:
    images = (np.random.default_rng(3).random((5, 64)) > 0.5).astype(np.uint8)
    images[4, 0] = 1  # the last image has a point
    np.savez(tmp_path / "bits.npz", bits=np.packbits(images, axis=1))
    np.savez(tmp_path / "dense.npz", images=images)
    for name in ("sparse.npz", "images.tsv", "images.mtx"):
        writing.write_images(tmp_path / name, np.ascontiguousarray(images.T, np.float32))
    for name in ("bits.npz", "dense.npz", "sparse.npz", "images.tsv", "images.mtx"):
        read = dataset.read_images(tmp_path / name, 64)
        assert (read == images.T).all() and read.dtype == np.float32 and read.flags.c_contiguous
    with pytest.raises(ValueError, match="bits of type uint8"):
        dataset.read_images(tmp_path / "bits.npz", 128)
    with pytest.raises(ValueError, match="not numbers of shape .samples, 65."):
        dataset.read_images(tmp_path / "dense.npz", 65)
    with pytest.raises(ValueError, match="5 images, not 9"):
        dataset.read_images(tmp_path / "bits.npz", 64, 9)
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    np.savez(tmp_path / "other.npz", something=images)
    np.savez(tmp_path / "nan.npz", images=np.full((2, 64), np.nan))
    for name, message in (
        ("broken.npz", "is not an npz"),
        ("other.npz", "neither 'bits' nor 'images'"),
        ("nan.npz", "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.read_images(tmp_path / name, 64)


def test_categories_are_read_and_an_invalid_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "categories.txt"
    for wanted in ([], [3], [1, 5, 9000]):
        writing.write_categories(path, np.array(wanted, np.int64))
        assert dataset.read_categories(path).tolist() == wanted
    for text in ("1\n2\nthree\n", "1\n5\n5\n", "0\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"line {text.count(chr(10))}"):
            dataset.read_categories(path)


def test_pictures_are_enlarged_point_by_point() -> None:
    small = np.arange(8, dtype=np.float32).reshape(4, 2)
    large = dataset.enlarged(small, 16)
    assert large[:, 0].reshape(4, 4).tolist() == [
        [0, 0, 2, 2],
        [0, 0, 2, 2],
        [4, 4, 6, 6],
        [4, 4, 6, 6],
    ]
    with pytest.raises(ValueError, match="cannot be enlarged to 25"):
        dataset.enlarged(small, 25)
