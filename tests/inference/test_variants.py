"""The engine over every channel and the real MPI: the serial kernel's bits and categories."""

from __future__ import annotations

import pytest

from tests.harness import mpirun, smpirun, under_mpirun

SIZES = (1, 2, 3, 5, 8)
CLOUD_SIZES = (3, 8)


def expected(sizes: tuple[int, ...]) -> list[str]:
    return [
        f"{size} ranks, {way}: right"
        for size in sizes
        for way in ("1 batches, exact", "3 batches, exact", "1 batches, accumulating")
    ]


@pytest.mark.parametrize(
    "channel, sizes",
    [("direct", SIZES), ("queue", CLOUD_SIZES), ("object", CLOUD_SIZES), ("hybrid", CLOUD_SIZES)],
)
def test_every_channel(channel: str, sizes: tuple[int, ...]) -> None:
    done = smpirun("-n", 8, "--channel", channel, "-m", "tests.inference.variants", *sizes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(sizes)


@pytest.mark.skipif(
    mpirun() is None, reason="the real MPI is not installed: pip install 'serverless-mpi[mpi]'"
)
def test_the_real_mpi() -> None:
    done = under_mpirun(8, "-m", "tests.inference.variants")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(SIZES)
