"""The distributed engine gives the serial kernel's bits, on any number of ranks; its codec is
exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.inference import codec, engine, networks, partition
from serverless_mpi.sparse import SparseRows, serial_forward
from tests.harness import run

NETWORK = networks.randomnet(96, 7, seed=4)
BIAS = -0.15


def images(samples: int = 130) -> Any:
    x = (np.random.default_rng(4).random((96, samples)) > 0.9).astype(np.float32)
    x[:, ::7] = 0  # samples that are dead from the start
    return x


def inferred(
    owners: partition.Partition, network: Any, x: Any, bias: float, **options: Any
) -> tuple[Any, Any, Any]:
    """(the whole output over the living samples, those, statistics by rank) of a job of threads."""

    def body(comm: Any) -> Any:
        parts = partition.build(network, owners, comm.rank)
        return engine.infer(
            comm, parts, np.ascontiguousarray(x[owners.rows(0, comm.rank)]), bias, **options
        )

    results = run(owners.parts, body)
    samples = results[0][1]
    whole = np.empty((owners.neurons, len(samples)), np.float32)
    for rank, (y, living, _) in enumerate(results):
        assert (living == samples).all() and y.dtype == np.float32
        whole[owners.rows(owners.layers, rank)] = y
    return whole, samples, [taken for _, _, taken in results]


def same_as_serial(found: tuple[Any, Any, Any], network: Any, x: Any, bias: float) -> Any:
    whole = serial_forward(list(network), x, bias)
    living = np.flatnonzero((whole != 0).any(axis=0))
    assert (found[1] == living).all()
    assert found[0].tobytes() == whole[:, living].tobytes()
    return living


@pytest.mark.parametrize("method", ["block", "random", "greedy"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_number_of_ranks_gives_the_serial_bits(ranks: int, method: str) -> None:
    x = images()
    found = inferred(partition.make(NETWORK, ranks, method), NETWORK, x, BIAS)
    assert 0 < len(same_as_serial(found, NETWORK, x, BIAS)) < 130  # some die, some live


def test_as_many_ranks_as_a_job_may_have() -> None:
    x = images(20)
    found = inferred(partition.make(NETWORK[:2], 64, "greedy"), NETWORK[:2], x, BIAS)
    same_as_serial(found, NETWORK[:2], x, BIAS)


@pytest.mark.parametrize("batches", [2, 3, 7])
@pytest.mark.parametrize("accumulate", [False, True])
def test_batches_in_flight_together_give_what_one_gives(batches: int, accumulate: bool) -> None:
    x = images()
    owners = partition.make(NETWORK, 3, "greedy")
    one = inferred(owners, NETWORK, x, BIAS, accumulate=accumulate)
    many = inferred(owners, NETWORK, x, BIAS, batches=batches, accumulate=accumulate)
    assert (one[1] == many[1]).all() and one[0].tobytes() == many[0].tobytes()
    assert [one.active_samples for one in one[2][0].layers][:1] == [
        one.active_samples for one in many[2][0].layers
    ][:1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_accumulating_gives_the_bits_of_the_serial_kernel_over_the_same_order_of_entries(
    ranks: int,
) -> None:
    """Own entries first, then each sender's, in the order of the ranks."""
    x = images()
    owners = partition.make(NETWORK, ranks, "random", seed=2)
    ordered = []
    for number, matrix in enumerate(NETWORK):
        row = np.repeat(np.arange(96), 32)
        source = owners.owners[number][matrix.indices].astype(int)
        source[source == owners.owners[number + 1][row]] = -1
        order = np.lexsort((source, row))
        ordered.append(
            SparseRows(matrix.indptr, matrix.indices[order], matrix.all_values()[order], 96)
        )
    found = inferred(owners, NETWORK, x, BIAS, accumulate=True)
    same_as_serial(found, ordered, x, BIAS)
    exact = inferred(owners, NETWORK, x, BIAS)
    assert (found[1] == exact[1]).all()  # the categories are the same either way
    assert ranks == 1 or found[0].tobytes() != exact[0].tobytes()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "x", [images(1), images(2)[:, 1:], np.zeros((96, 5), np.float32), np.zeros((96, 0), np.float32)]
)
def test_one_sample_pruned_samples_and_none(x: Any, accumulate: bool) -> None:
    x = np.ascontiguousarray(x)
    found = inferred(
        partition.make(NETWORK, 3, "greedy"), NETWORK, x, BIAS, batches=2, accumulate=accumulate
    )
    if not accumulate:
        same_as_serial(found, NETWORK, x, BIAS)
    assert found[0].shape == (96, len(found[1]))


def test_ranks_without_neurons_and_rows_without_entries() -> None:
    matrix = SparseRows([0, 0, 3, 3, 4], [3, 0, 1, 2], [0.5, -1.0, 2.0, 1.0], 4)
    owners = (
        np.array([2, 2, 0, 0], np.uint16),
        np.array([0, 2, 2, 0], np.uint16),
        np.array([2, 0, 0, 2], np.uint16),
    )
    x = np.arange(20, dtype=np.float32).reshape(4, 5)
    for accumulate in (False, True):
        found = inferred(
            partition.Partition(4, 3, "by hand", owners),
            [matrix, matrix],
            x,
            0.0,
            accumulate=accumulate,
        )
        same_as_serial(found, [matrix, matrix], x, 0.0)


def test_statistics_count_what_was_sent() -> None:
    owners = partition.make(NETWORK, 2, "block")
    _, _, taken = inferred(owners, NETWORK, images(), BIAS)
    for one in taken:
        assert len(one.layers) == 7 and all(layer.messages == 1 for layer in one.layers)
        assert one.total().rows == 7 * 48 and one.total().nbytes > one.total().nonzeros > 0
        assert (
            one.layers[0].active_samples == np.count_nonzero((images() != 0).any(axis=0))
            or one.layers[0].active_samples > 0
        )


def test_layers_are_reported_to_the_watcher() -> None:
    seen: list[tuple[int, int]] = []
    owners = partition.make(NETWORK, 1, "block")
    inferred(
        owners,
        NETWORK,
        images(),
        BIAS,
        batches=1,
        watch=lambda batch, layer: seen.append((batch, layer)),
    )
    assert seen == [(0, layer) for layer in range(8)]


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((95, 3), np.float32), "x has 95 rows; this rank owns 96"),
        (np.zeros((96, 3)), "float32"),
        (np.full((96, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_input_that_cannot_be_is_refused(x: Any, message: str) -> None:
    parts = partition.build(NETWORK, partition.make(NETWORK, 1, "block"), 0)
    with pytest.raises(ValueError, match=message):
        run(1, lambda comm: engine.infer(comm, parts, x, BIAS))


def test_a_peer_with_another_partition_is_named() -> None:
    made = [
        partition.make(NETWORK, 2, "block"),
        partition.Partition(96, 2, "by hand", (np.arange(96, dtype=np.uint16) // 60,) * 8),
    ]

    def body(comm: Any) -> Any:
        owners = made[comm.rank]
        parts = partition.build(NETWORK, owners, comm.rank)
        return engine.infer(
            comm, parts, np.ascontiguousarray(images()[owners.rows(0, comm.rank)]), BIAS
        )

    with pytest.raises(ValueError, match="rank . sent a message that does not fit"):
        run(2, body)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(0, 400),
    st.sampled_from(["zero", "constant", "mixed", "rare", "many", "repeated", "floats"]),
    st.integers(0, 2**32),
)
def test_the_codec_is_exact(rows: int, samples: int, kind: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = {
        "zero": [0.0],
        "constant": [0.0, 32.0],
        "mixed": [0.0, 1.5, -3.25, 1e-40, 32.0, -0.0, np.inf],
        "rare": [0.0] * 99 + [7.0],
        "many": np.arange(700) / 16,
        "repeated": [0.0, 2.0, 5.0],
        "floats": chance.random(5000),
    }[kind]
    x = chance.choice(values, (rows, samples)).astype(np.float32)
    if kind == "repeated" and rows:
        x = x[chance.integers(0, rows // 3 + 1, rows)]
    assert codec.decode(codec.encode(x), (rows, samples)).tobytes() == x.tobytes()


def test_bytes_that_are_cut_or_changed_never_crash() -> None:
    chance = np.random.default_rng(7)
    x = (chance.random((6, 90)) * (chance.random((6, 90)) > 0.5)).astype(np.float32)
    for rows in (x, np.repeat(x[:2], 3, axis=0), np.round(x * 8) / 8):
        data = codec.encode(rows)
        for length in range(len(data)):
            with pytest.raises(ValueError, match="not activation rows"):
                codec.decode(data[:length], (6, 90))
        for place in range(len(data)):
            broken = bytearray(data)
            broken[place] ^= 1 << int(chance.integers(8))
            try:
                codec.decode(bytes(broken), (6, 90))
            except ValueError:
                pass


def test_what_is_alike_costs_next_to_nothing() -> None:
    floats = np.random.default_rng(1).random((1, 10000)).astype(np.float32)
    assert len(codec.encode(np.full((64, 10000), 32, np.float32))) < 16
    assert (
        len(codec.encode(np.repeat(floats, 64, axis=0))) < len(codec.encode(floats)) + 100 < 40000
    )
    few = np.random.default_rng(1).choice([0, 1.5, 2], (64, 10000)).astype(np.float32)
    assert len(codec.encode(few)) < few.nbytes / 10


def test_rows_of_another_shape_are_refused() -> None:
    data = codec.encode(np.arange(12, dtype=np.float32).reshape(3, 4))
    for shape in ((2, 4), (30, 5)):
        with pytest.raises(ValueError, match="not activation rows of shape"):
            codec.decode(data, shape)
