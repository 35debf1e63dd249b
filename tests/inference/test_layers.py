"""General layers: any shape, bias and activation have the serial bits on any number of ranks, and the
numbers of a reference in double precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse as scipy_sparse
from scipy.special import erfc, expit, softmax

from serverless_mpi.inference import engine, networks, partition
from serverless_mpi.sparse import Activation, Ending, SparseRows, serial_run
from tests.harness import run
from tests.inference import general

INNER = [kind for kind in Activation if kind != Activation.SOFTMAX]


def inferred(network: Any, x: Any, ranks: int, method: str, **options: Any) -> Any:
    """The whole output of a job of threads, over all samples."""
    owners = partition.make(network, ranks, method)

    def body(comm: Any) -> Any:
        parts = partition.build(network, owners, comm.rank)
        for before, part in zip([None, *parts], parts):
            part.check(ranks, before.rows if before else part.own)
        own = np.ascontiguousarray(x[owners.rows(0, comm.rank)])
        return engine.infer(comm, parts, own, 0.0, **options)

    whole = np.zeros((owners.sizes[-1], x.shape[1]), np.float32)
    for rank, (y, samples, _) in enumerate(run(ranks, body)):
        whole[np.ix_(owners.rows(owners.layers, rank), samples)] = y
    return whole


def serial(network: Any, x: Any) -> Any:
    return serial_run(list(network), network.endings, x)


def reference(network: Any, x: Any) -> Any:
    """The output in double precision, by SciPy."""
    y = x.astype(float)
    for matrix, ending in zip(network, network.endings):
        weights = scipy_sparse.csr_matrix(
            (matrix.all_values().astype(float), matrix.indices, matrix.indptr),
            (matrix.n_rows, matrix.n_cols),
        )
        z = weights @ y
        bias = ending.bias.astype(float).reshape(-1, 1) if len(ending.bias) else 0.0
        z = z + np.where(z != 0, bias, 0.0) if ending.on_nonzeros else z + bias
        y = {
            Activation.NONE: lambda z: z,
            Activation.RELU: lambda z, limit=ending.limit: np.clip(z, 0, limit),
            Activation.LEAKY_RELU: lambda z, slope=ending.slope: np.where(z < 0, slope * z, z),
            Activation.SIGMOID: expit,
            Activation.TANH: np.tanh,
            Activation.GELU: lambda z: z * 0.5 * erfc(-z / np.sqrt(2)),
            Activation.SOFTMAX: lambda z: softmax(z, axis=0),
        }[ending.activation](z)
    return y


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.data(),
    st.integers(1, 5),
    st.sampled_from(["block", "random", "greedy"]),
    st.booleans(),
)
def test_any_shapes_and_activations_have_the_serial_bits(
    seed: int, sizes: list[int], data: Any, ranks: int, method: str, last_is_softmax: bool
) -> None:
    kinds = [data.draw(st.sampled_from(INNER)) for _ in sizes[1:]]
    if last_is_softmax:
        kinds[-1] = Activation.SOFTMAX
    network = general.network(seed, sizes, kinds)
    x = general.images(seed, sizes[0], 67)
    expected = serial(network, x)
    found = inferred(network, x, min(ranks, sizes[0]), method, batches=1 + seed % 2)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", list(Activation))
@pytest.mark.parametrize("method", ["greedy", "hypergraph"])
def test_each_activation_has_the_numbers_of_double_precision(kind: Any, method: str) -> None:
    if method == "hypergraph":
        pytest.importorskip("mtkahypar")
    network = general.network(3, [50, 70, 20, 33], [Activation.TANH, Activation.SIGMOID, kind])
    x = general.images(3, 50, 45)
    found = inferred(network, x, 3, method)
    assert found.tobytes() == serial(network, x).tobytes()
    np.testing.assert_allclose(found, reference(network, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("ranks", [1, 4])
def test_accumulating_has_the_numbers_of_double_precision(ranks: int) -> None:
    kinds = [Activation.RELU, Activation.SIGMOID, Activation.GELU]
    network = general.network(5, [50, 70, 20, 33], kinds)
    x = general.images(5, 50, 45)
    found = inferred(network, x, ranks, "random", accumulate=True)
    np.testing.assert_allclose(found, reference(network, x), rtol=2e-5, atol=2e-6)


def test_more_ranks_than_a_layer_has_neurons() -> None:
    network = general.network(
        7, [30, 3, 1, 40], [Activation.RELU, Activation.TANH, Activation.NONE]
    )
    x = general.images(7, 30, 20)
    for method in partition.METHODS:
        if method != "hypergraph":
            assert inferred(network, x, 6, method).tobytes() == serial(network, x).tobytes()


def test_rows_that_differ_in_their_bias_are_not_duplicates() -> None:
    ones = SparseRows(np.arange(5) * 2, np.tile([0, 1], 4), 1.0, 2)
    bias = np.array([1, 2, 1, 2], np.float32)
    network = networks.Network(
        2, 1, 0.0, lambda: iter([ones]), endings=[Ending(Activation.NONE, bias)]
    )
    (part,) = partition.build(network, partition.make(network, 1), 0)
    assert part.rows == 2 and part.ending is not None and part.ending.bias.tolist() == [1, 2]
    assert inferred(network, np.ones((2, 3), np.float32), 1, "block")[:, 0].tolist() == [3, 4, 3, 4]


def test_a_layer_that_does_not_fit_its_neighbour_names_both() -> None:
    rng = np.random.default_rng(0)
    matrices = [general.matrix(rng, 5, 4, 1.0), general.matrix(rng, 3, 6, 1.0)]
    network = networks.Network(4, 2, 0.0, lambda: iter(matrices))
    with pytest.raises(ValueError, match="layer 2 takes 6 inputs, but layer 1 has 5 outputs"):
        partition.make(network, 2)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"bias": np.array([np.nan])}, "NaN"),
        ({"bias": np.zeros((2, 2))}, "a number or a vector"),
        ({"limit": -1.0}, "limit"),
        ({"slope": np.inf}, "slope"),
    ],
)
def test_an_impossible_ending_is_refused(wrong: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Ending(Activation.RELU, **wrong)
