"""An emulator with all services that a stack takes, for the tests of the strict layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serverless_mpi.launch.emulator import Emulator
from tests.launch.lambda_stack import SERVICES


@pytest.fixture(scope="package")
def strict_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded emulator."""
    emulator = Emulator(tmp_path_factory.mktemp("strict"), services=SERVICES)
    try:
        yield emulator.start()
    finally:
        emulator.stop()
