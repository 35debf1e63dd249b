"""One deployed stack for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serverless_mpi.launch.emulator import Emulator
from tests.launch.lambda_stack import SERVICES, Deployed, smpi


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A stack of 4 queues and 2 consoles, named `other`, at an emulator of its own."""
    with Emulator(tmp_path_factory.mktemp("ministack"), services=SERVICES) as emulator:
        done = smpi(
            "deploy", "--endpoint", emulator.url, "--stack", "other", "--ranks", 4, "--jobs", 2
        )
        assert done.returncode == 0, done.stderr
        yield Deployed(emulator.url, "other")
