"""A short run of the fuzz targets of inference; `python -m tests.fuzz` runs longer."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.fuzz.targets_inference import TARGETS, mutated, rezipped

RUNS = 250
MOST_BYTES = 80 << 20  # of memory: a bound for blocks and limits, as the inputs are small


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "inference-kernel"])
def test_what_a_stranger_sends_ends_with_a_value_or_a_documented_error(name: str) -> None:
    target, seeds = TARGETS[name]
    chance = np.random.default_rng(len(name))
    inputs = [*seeds, b"", *(mutated(chance, seeds[n % len(seeds)]) for n in range(RUNS))]
    if name.endswith("npz"):
        inputs += [rezipped(bytes([n % 4, n // 4])) for n in range(RUNS)]
    tracemalloc.start()
    try:
        for data in inputs:
            target(data)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
