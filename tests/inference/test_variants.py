"""The engine over every channel and the real MPI, on 1, 2, 3, 5 and 8 ranks: the serial kernel's
bits and categories.
"""

from __future__ import annotations

import pytest

from tests.harness import mpirun, smpirun, under_mpirun

EXPECTED = [
    f"{size} ranks, {way}: right"
    for size in (1, 2, 3, 5, 8)
    for way in ("1 batches, exact", "3 batches, exact", "1 batches, accumulating")
]


@pytest.mark.parametrize("channel", ["direct", "queue", "object", "hybrid"])
def test_every_channel(channel: str) -> None:
    done = smpirun("-n", 8, "--channel", channel, "-m", "tests.inference.variants")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED


@pytest.mark.skipif(
    mpirun() is None, reason="the real MPI is not installed: pip install 'serverless-mpi[mpi]'"
)
def test_the_real_mpi() -> None:
    done = under_mpirun(8, "-m", "tests.inference.variants")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED
