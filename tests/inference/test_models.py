"""Models of general layers from files: through the store, `run` and its outputs; bad ones end with one
line, before anything runs.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse as scipy_sparse

from serverless_mpi.errors import StoreError
from serverless_mpi.inference import models, partition, store, worker
from serverless_mpi.inference.backends import Folder
from serverless_mpi.inference.cli import main
from serverless_mpi.sparse import Activation, serial_run
from tests.inference import general

LAYERS = [
    {"weights": "w1.npz", "activation": "relu", "limit": 4, "bias": 0.25, "bias_on": "nonzeros"},
    {"weights": "w2.npy", "activation": "gelu", "bias": "b2.npy"},
    {"weights": "w3.mtx", "transposed": True, "activation": "softmax", "bias": [0.5] * 10},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from scipy import io

    rng = np.random.default_rng(0)
    sparse = scipy_sparse.random(50, 64, 0.2, "csr", np.float32, 1, rng.standard_normal)
    scipy_sparse.save_npz(tmp_path / "w1.npz", sparse)
    np.save(tmp_path / "w2.npy", rng.standard_normal((20, 50)).astype(np.float32))
    np.save(tmp_path / "b2.npy", rng.standard_normal(20))
    last = scipy_sparse.random(20, 10, 0.5, "coo", np.float64, 1, rng.standard_normal)
    io.mmwrite(tmp_path / "w3.mtx", last)
    np.savez(tmp_path / "x.npz", images=general.images(0, 64, 30).T)
    describe(tmp_path, LAYERS)
    return tmp_path


def describe(folder: Path, layers: Any) -> None:
    (folder / "model.json").write_text(json.dumps({"layers": layers}))


def test_a_model_is_read_as_it_is_described(folder: Path) -> None:
    network = models.read_model(folder)
    assert [(w.n_rows, w.n_cols) for w in network] == [(50, 64), (20, 50), (10, 20)]
    assert network.endings is not None
    assert [ending.describe() for ending in network.endings] == [
        "one bias on nonzeros, relu up to 4",
        "bias, gelu",
        "bias, softmax",
    ]


def test_run_writes_what_the_serial_kernel_computes(folder: Path, capsys: Any) -> None:
    arguments = ["run", "--net", str(folder), "--images", str(folder / "x.npz"), "--top", "3"]
    for suffix in ("npy", "csv", "json"):
        assert main([*arguments, "--check", "--output", str(folder / f"o.{suffix}")]) == 0
    assert "the same to the last bit" in capsys.readouterr().out
    network = models.read_model(folder)
    x = np.ascontiguousarray(np.load(folder / "x.npz")["images"].T)
    assert network.endings is not None
    expected = serial_run(list(network), network.endings, x)
    whole = np.load(folder / "o.npy")
    assert whole.dtype == np.float32 and whole.T.tobytes() == expected.tobytes()
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-6)
    with open(folder / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    order = np.argsort(-whole, axis=1, kind="stable")[:, :3]
    assert [int(row["neuron"]) for row in rows] == order.ravel().tolist()
    scores = np.array([row["score"] for row in rows], np.float32)
    assert (scores == np.take_along_axis(whole, order, 1).ravel()).all()
    assert json.loads((folder / "o.json").read_text())["top"]["neurons"] == order.tolist()


def test_a_stored_model_has_its_endings(folder: Path) -> None:
    network = models.read_model(folder)
    cut = partition.make(network, 3, "greedy")
    index = store.write_model(Folder(folder / "m"), network, cut, bias=0.0)
    assert store.read_index(Folder(folder / "m")) is not None and index.general
    for rank in range(3):
        loaded = store.load_part(Folder(folder / "m"), index, rank)
        for part, made in zip(loaded, partition.build(network, cut, rank), strict=True):
            assert part.ending is not None and made.ending is not None
            assert part.ending.describe() == made.ending.describe()
            assert part.ending.bias.tobytes() == made.ending.bias.tobytes()
            assert part.weights.values is not None and made.weights.values is not None
            assert part.weights.values.tobytes() == made.weights.values.tobytes()
    store.write_partition(folder / "p", cut, network)
    again = store.read_partition(folder / "p", network)
    assert [owners.tolist() for owners in again.owners] == [o.tolist() for o in cut.owners]
    describe(folder, [*LAYERS[:2], {**LAYERS[2], "bias": [0.25] * 10}])
    with pytest.raises(StoreError, match="of another model"):
        store.read_partition(folder / "p", models.read_model(folder))


def test_ranks_run_a_stored_model(folder: Path, capfd: Any) -> None:
    x, m = str(folder / "x.npz"), str(folder / "m")
    assert main(["store", m, "-n", "2", "--net", str(folder)]) == 0
    arguments = ["--images", x, "--channel", "direct", "--output"]
    assert main(["run", "--store", m, *arguments, str(folder / "two.npy")]) == 0
    assert main(["run", "--net", str(folder), *arguments, str(folder / "one.npy")]) == 0
    assert (folder / "two.npy").read_bytes() == (folder / "one.npy").read_bytes()


@pytest.mark.parametrize(
    ("number", "change", "text"),
    [
        (
            1,
            {"weights": "w3.mtx"},
            r"layer 2 \(w3.mtx\) takes 10 inputs.*layer 1 \(w1.npz\) has 50",
        ),
        (1, {"activation": "softmax"}, "layer 2: softmax is only possible in the last layer"),
        (1, {"activation": "swish"}, "layer 2: unknown activation 'swish'; known: none, relu"),
        (1, {"kind": 1}, "layer 2: unknown key 'kind'; known keys: weights"),
        (1, {"bias": [1.0, 2.0]}, "layer 2: a bias of 2 numbers for 20 outputs"),
        (1, {"bias": ["1"]}, "layer 2: bias must be a list of numbers"),
        (1, {"bias": [float("nan")]}, "layer 2: .*NaN"),
        (1, {"limit": 3}, "layer 2: limit has no effect with activation gelu"),
        (1, {"weights": "../w2.npy"}, "layer 2: '../w2.npy' is not the name of a file"),
        (1, {"weights": "none.npy"}, "layer 2: none.npy is missing"),
        (1, {"weights": 5}, "layer 2: weights is a int"),
        (1, {"transposed": 1}, "layer 2: transposed is a int"),
        (0, {"limit": -1}, "layer 1: the limit of a ReLU must be at least 0"),
    ],
)
def test_a_bad_model_ends_with_one_line(
    folder: Path, capsys: Any, number: int, change: Any, text: str
) -> None:
    layers = [dict(layer) for layer in LAYERS]
    layers[number] = {**layers[number], **change}
    describe(folder, layers)
    assert main(["run", "--net", str(folder), "--images", str(folder / "x.npz")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(text, error)


@pytest.mark.parametrize("cut", [10, 100, 1000])
def test_a_dense_matrix_that_claims_more_than_it_holds_is_refused(
    folder: Path, capsys: Any, cut: int
) -> None:
    whole = (folder / "w2.npy").read_bytes()
    (folder / "w2.npy").write_bytes(whole[:cut])
    assert main(["run", "--net", str(folder), "--images", str(folder / "x.npz")]) == 2
    error = capsys.readouterr().err
    assert "w2.npy" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--neurons", "64"], "--neurons has no effect with --net"),
        (["--bias", "1"], "--bias has no effect with --net"),
        (["--store", "m"], "--net has no effect with --store m"),
        (["--output", "o.csv"], "give --top K"),
        (["--output", "none/o.json"], "the folder none does not exist"),
        (["--report", "none/o.html"], "the folder none does not exist"),
    ],
)
def test_an_option_without_effect_and_an_impossible_output_are_refused(
    folder: Path, capsys: Any, options: list[str], text: str
) -> None:
    arguments = ["run", "--net", str(folder), "--images", str(folder / "x.npz"), *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_largest_activations_do_not_depend_on_the_cut() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, (12, 40)).astype(np.float32)  # many are equal
    expected = np.argsort(-y, axis=0, kind="stable")[:5]
    scores, neurons = worker.largest(y, np.arange(12), 5)
    assert (neurons == expected).all() and (scores == np.take_along_axis(y, expected, 0)).all()
    halves = [
        worker.largest(y[rows], rows, 5) for rows in (np.arange(1, 12, 2), np.arange(0, 12, 2))
    ]
    joined = [np.concatenate([half[item] for half in halves]) for item in (0, 1)]
    assert (worker.largest(joined[0], joined[1], 5)[1] == expected).all()
    assert worker.largest(y, np.arange(12), 0)[0].shape == (0, 40)
    assert Activation.SOFTMAX.label == "softmax"
