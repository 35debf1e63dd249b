"""`--version` of each command is the package's version, which is defined once."""

from __future__ import annotations

import importlib.metadata

import pytest

import serverless_mpi
from serverless_mpi.deploy import cli as deploy
from serverless_mpi.inference import cli as inference
from serverless_mpi.launch import cli as launch


@pytest.mark.parametrize(
    ("name", "main"),
    [("smpirun", launch.main), ("smpi", deploy.main), ("smpi-infer", inference.main)],
)
def test_each_command_prints_the_version(
    name: str, main: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])  # type: ignore[operator]
    assert capsys.readouterr().out == f"{name} {serverless_mpi.__version__}\n"


def test_the_installed_package_has_it() -> None:
    assert importlib.metadata.version("serverless-mpi") == serverless_mpi.__version__
