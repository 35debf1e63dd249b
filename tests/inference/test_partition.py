"""Partitions: one owner per neuron, even load, and no more volume than the paper's."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from serverless_mpi.inference import networks, partition
from serverless_mpi.sparse import SparseRows

METHODS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "hypergraph" and importlib.util.find_spec("mtkahypar") is None,
            reason="pip install 'serverless-mpi[hypergraph]'",
        ),
    )
    for name in partition.METHODS
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [1, 2, 5, 8, 62])
def test_every_neuron_has_an_owner_and_parts_are_even(parts: int, method: str) -> None:
    network = networks.randomnet(96, 3, seed=1)
    made = partition.make(network, parts, method, seed=5)
    assert (made.neurons, made.parts, made.layers, made.method) == (96, parts, 3, method)
    for boundary, owners in enumerate(made.owners):
        assert owners.shape == (96,) and owners.dtype == np.uint16 and owners.max() < parts
        rows = [made.rows(boundary, part) for part in range(parts)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(96))
    assert max(made.report(network).load) <= max(
        1.06, 2 * parts / 96
    )  # 62 parts have one row or two
    again = partition.make(network, parts, method, seed=5)
    assert all((one == other).all() for one, other in zip(made.owners, again.owners, strict=True))


def test_the_report_counts_what_is_sent() -> None:
    """Neurons 0 and 1 are part 0's, 2 and 3 part 1's; 2 reads 0 and 1, 3 reads 1, 0 reads 3."""
    matrix = SparseRows([0, 1, 2, 4, 5], [3, 1, 0, 1, 1], 1.0, 4)
    made = partition.make([matrix], 2, "block")
    report = made.report([matrix])
    assert (
        report.rows == (3,) and report.pairs == (2,) and report.messages == 2
    )  # rows 0 and 1 there, row 3 back
    assert report.nnz == (5,) and report.load == (3 / 2.5,)


@pytest.mark.parametrize("method", METHODS[2:])
def test_no_more_is_sent_than_the_paper_sent(method: str) -> None:
    """FSD-Inference's own partition of this network sends 3,739 rows a layer after layer 6, and
    6,452 messages in all.
    """
    network = networks.radixnet(1024, 120)
    report = partition.make(network, 8, method).report(network)
    assert np.mean(report.rows[6:]) <= 1000
    assert report.messages <= 6452
    assert max(report.load) <= 1.05


@pytest.mark.parametrize("method", METHODS)
def test_more_parts_than_neurons_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match="start at most 64"):
        partition.make(networks.random(64, 2), 65, method)


def test_what_does_not_fit_is_named() -> None:
    network = networks.randomnet(64, 2)
    with pytest.raises(ValueError, match="known methods: block, random, greedy, hypergraph"):
        partition.make(network, 2, "best")
    with pytest.raises(ValueError, match="for 1 layers; the network has 2"):
        partition.build(network, partition.make(network[:1], 2, "block"), 0)
    with pytest.raises(
        ValueError, match="has 64 inputs and 64 outputs; the partition is for 96 and 96"
    ):
        partition.build(network, partition.make(networks.random(96, 2), 2, "block"), 0)
    with pytest.raises(ValueError, match="layer 2 takes 64 inputs, but layer 1 has 3 outputs"):
        partition.make([network[0].rows(0, 3), network[1]], 2)


def test_the_partitioner_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtkahypar", None)
    with pytest.raises(
        ValueError, match=r"pip install 'serverless-mpi\[hypergraph\]'; or use greedy"
    ):
        partition.make(networks.random(64, 1), 2, "hypergraph")


def test_duplicate_rows_are_computed_once_and_sent_once() -> None:
    network = networks.radixnet(1024, 8)
    made = partition.make(network, 8, "greedy")
    for rank in (0, 5):
        parts = partition.build(network, made, rank)
        assert [part.rows for part in parts] == [
            8,
            8,
            8,
            8,
            8,
            4,
            8,
            8,
        ]  # of 128 neurons; in layer 5, class c is a duplicate of c + 32
        assert all(
            (part.row_of_neuron < 8).all() and len(part.row_of_neuron) == 128 for part in parts
        )
        assert max(len(part.send_rows) for part in parts) <= 128 and all(
            len(part.send_rows) <= 56 for part in parts[1:]
        )
