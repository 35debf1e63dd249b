"""The contract of a launcher for platform local; `tests.launch.test_lambda` checks platform lambda."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_mpi.errors import UsageError
from serverless_mpi.testing import check_launcher
from serverless_mpi.testing.launchers import PROMISES


@pytest.mark.parametrize("promise", PROMISES)
def test_local_keeps(promise: str, tmp_path: Path) -> None:
    check_launcher("local", tmp_path, promises=[promise])


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown platform 'moon'; known: local, lambda"):
        check_launcher("moon", tmp_path)
    with pytest.raises(UsageError, match="unknown promise 'eternity'; known: "):
        check_launcher("local", tmp_path, promises=["eternity"])
