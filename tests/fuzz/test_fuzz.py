"""Each parser of foreign bytes on a few thousand mutated inputs; `python -m tests.fuzz` tries a million."""

from __future__ import annotations

import pytest

from tests.fuzz.run import in_child, load

INPUTS, SECONDS, SEED = 1500, 3.0, 20
TARGETS = load()


@pytest.mark.parametrize("names", [sorted(TARGETS)[start::4] for start in range(4)], ids=str)
def test_every_input_ends_with_a_value_or_the_documented_error(names: list[str]) -> None:
    for name in names:
        report = in_child(name, INPUTS, SECONDS, SEED)
        assert not report.failures, name
        assert report.inputs > 50
