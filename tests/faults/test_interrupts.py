"""A short form of `python -m tests.faults.interrupts`."""

from __future__ import annotations

import pytest

from tests.faults import interrupts


@pytest.mark.parametrize(("channel", "count"), [("direct", 200), ("hybrid", 40)])
def test_no_message_is_lost_when_handlers_raise(channel: str, count: int) -> None:
    job = interrupts.job(channel, count, seed=7)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(" interrupts, ") == 2
