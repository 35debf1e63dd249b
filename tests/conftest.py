"""Servers for tests: an emulator for the whole session, on 127.0.0.1 and a free port, stopped at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from serverless_mpi.launch.emulator import Emulator

# The same examples every time, and no verdict by the clock: a busy machine fails no test.
settings.register_profile(
    "deterministic", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deterministic")


@pytest.fixture(scope="session", autouse=True)
def _no_account() -> Iterator[None]:
    """No test sees an AWS account, a job it may run in, or a proxy before this machine."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("AWS_", "SMPI_", "PMI_", "PMIX_", "OMPI_")):
            patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("no_proxy", "127.0.0.1,localhost")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def ministack_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the embedded emulator."""
    emulator = Emulator(tmp_path_factory.mktemp("ministack"))
    try:
        yield emulator.start()
    finally:
        emulator.stop()


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """URL of moto's server, an independent emulator."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
