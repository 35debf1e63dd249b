"""Equal samples are computed once, with the same bits: in the kernel's interface, by the engine on any
number of ranks, over channels; and a damaged message is blamed on its sender.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.inference import dataset, networks, partition
from serverless_mpi.inference.cli import main
from serverless_mpi.inference.engine import _Batch
from serverless_mpi.sparse import Activation, Panels, equal, forward, forward_distinct
from serverless_mpi.sparse.equal import Schedule, originals
from tests.inference import general
from tests.inference.test_engine import inferred
from tests.inference.test_layers import inferred as inferred_general
from tests.inference.test_layers import serial

LAYERS = 24  # after which most of the digits are equal


@pytest.fixture(scope="module")
def radix() -> Any:
    return networks.radixnet(1024, LAYERS), np.ascontiguousarray(dataset.digits(1024)[:, :300])


@given(st.integers(0, 1 << 16), st.integers(0, 100), st.integers(0, 20), st.integers(1, 6))
def test_originals_are_the_first_equal_samples(
    seed: int, samples: int, rows: int, kinds: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, kinds)).astype(np.float32)[:, rng.integers(0, kinds, samples)]
    x = np.ascontiguousarray(x)
    if samples:
        x[:, 0] = -0.0  # not the bits of 0
    expected = [
        next(first for first in range(samples) if x[:, first].tobytes() == column.tobytes())
        for column in x.T
    ]
    assert originals(Panels.of(x)).tolist() == expected


def test_one_call_for_a_network_has_the_bits_of_forward(radix: Any) -> None:
    _, x = radix
    network = networks.radixnet(1024, 70)  # deep enough for the probe to find some
    assert equal._pays(network, x, -0.3, 32.0, 1) and not equal._pays(network[:4], x, -0.3, 32.0, 1)
    for images in (x, x[:, :1], x[:, :0], networks_input(network)):
        images = np.ascontiguousarray(images)
        expected, samples = forward(network, images, -0.3)
        found, kept = forward_distinct(network, images, -0.3)
        assert kept.tolist() == samples.tolist() and found.tobytes() == expected.tobytes()


def networks_input(network: Any) -> Any:
    return np.zeros((network[0].n_cols, 50), np.float32)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"batches": 2}, {"accumulate": True}])
def test_merged_samples_have_the_bits_of_all(radix: Any, ranks: int, options: Any) -> None:
    network, x = radix
    owners = partition.make(network, ranks, "greedy")
    plain = inferred(owners, network, x, -0.3, **options)
    merged = inferred(owners, network, x, -0.3, merge=True, **options)
    assert plain[1].tolist() == merged[1].tolist()
    assert plain[0].tobytes() == merged[0].tobytes()
    assert {statistics.merged for statistics in plain[2]} == {0}
    counts = {statistics.merged for statistics in merged[2]}
    assert len(counts) == 1 and counts.pop() > 100  # equal on all ranks
    last = [statistics.layers[-1] for statistics in merged[2]]
    assert all(layer.active_samples < 200 for layer in last)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 20), st.data(), st.integers(1, 4))
def test_general_layers_merge_too(seed: int, data: Any, ranks: int) -> None:
    kinds = [data.draw(st.sampled_from(list(Activation)[:-1])) for _ in range(8)]
    kinds[-1] = data.draw(st.sampled_from(list(Activation)))
    network = general.network(seed, [20, 3, 30, 2, 9, 4, 1, 12, 5], kinds)
    x = general.images(seed, 20, 83)
    found = inferred_general(network, x, ranks, "greedy", merge=True)
    assert found.tobytes() == serial(network, x).tobytes()


def test_a_network_without_equal_samples_is_searched_rarely() -> None:
    for exchanged, most in ((False, 2), (True, 2)):
        schedule, searches = Schedule(exchanged=exchanged), 0
        for layer in range(1, 121):
            if schedule.due(layer):
                schedule.searched(layer, 1000, 1000)
                searches += 1
        assert searches <= most


def test_searches_end_when_nothing_is_left_to_merge() -> None:
    schedule = Schedule()
    schedule.searched(8, 1000, 500)
    assert schedule.next_search(100) == 12 and schedule.next_search(9) == 9
    schedule.searched(12, 500, 20)  # less than a panel
    assert schedule.complete and schedule.next_search(100) == 100


def test_a_peers_damaged_message_names_it() -> None:
    class Alone:
        rank, size = 0, 1

    batch = _Batch(Alone(), np.ones((2, 9), np.float32), 0, 1, False, True)  # type: ignore[arg-type]
    for message in (b"", b"\1\0\0\0\0", b"\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="rank 1 sent a message that does not fit"):
            batch.equal_on(1, message)


def test_run_merges_and_says_so(capfd: Any) -> None:
    arguments = ["run", "--layers", "20", "--samples", "200"]
    texts = []
    for more in (["-n", "2", "--channel", "direct", "--merge", "auto"], []):
        assert main([*arguments, "--check", *more]) == 0
        texts.append(capfd.readouterr())
    assert "the same to the last bit" in texts[0].out and texts[0].out == texts[1].out
    assert "samples became equal to others" in texts[0].err
    assert "became equal" not in texts[1].err
