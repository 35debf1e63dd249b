"""The short form of `python -m tests.restarts`."""

from __future__ import annotations

import pytest

from tests.restarts.__main__ import survive


@pytest.mark.slow
def test_killed_ranks_and_launchers_change_no_bit() -> None:
    outcome = survive("walk", "direct", 3, 5, steps=60, victims=("rank", "rank", "launcher"))
    assert outcome.wrong == 0 and outcome.kills >= 3 and outcome.begun > 1
