"""Imports point inward: which packages and modules each one may import, read with `ast`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "serverless_mpi"
STANDARD_ONLY = ("errors", "env", "job", "core", "collectives", "channels.base")

# Package or module -> the others that it may import.
MAY: dict[str, set[str]] = {
    "__init__": {"calls"},
    "errors": set(),
    "env": set(),
    "job": {"env", "errors"},
    "plugins": {"errors"},
    # the table of AWS facts; its files of figures
    "aws.limits": set(),
    "aws.figures": {"aws.limits", "errors"},
    "metering": {"aws.limits", "errors"},
    "core": {"errors"},
    "channels.base": {"core", "job", "metering"},
    "channels": {"plugins", "channels.base", "core", "aws", "errors", "job", "metering"},
    "aws": {"core", "errors", "metering", "job"},
    "collectives": {"channels.base", "errors"},
    "testing": {
        "plugins",
        "collectives",
        "channels",
        "channels.base",
        "core",
        "job",
        "metering",
        "aws",
        "launch",
        "errors",
    },
    "deadlock": set(),
    "deaths": {"core"},
    "signals": set(),
    "trace": {"core", "signals"},
    "webpage": set(),
    # the part of the profiler that runs in a rank, and the reports that the launcher makes
    "profile.recorder": {"core", "metering", "signals"},
    "profile": {"profile.recorder", "core", "metering", "errors", "webpage"},
    "api.observe": {"signals"},
    "observers": {"api.observe", "core", "env", "metering", "profile.recorder", "trace"},
    "simulation": {
        "plugins",
        "channels",
        "channels.base",
        "collectives",
        "core",
        "aws",
        "metering",
        "errors",
    },
    "explain": {"simulation", "collectives", "metering", "errors"},
    "runtime.operation": {"core", "errors"},
    "runtime.send_queue": {"runtime.operation", "channels.base", "core"},
    "runtime.collective_driver": {"runtime.operation", "runtime.send_queue", "collectives", "core"},
    "runtime.statistics": {"metering"},
    "runtime": {
        "runtime.operation",
        "runtime.send_queue",
        "runtime.collective_driver",
        "runtime.statistics",
        "env",
        "plugins",
        "core",
        "channels",
        "channels.base",
        "collectives",
        "deadlock",
        "deaths",
        "job",
        "metering",
        "errors",
        "trace",
        "observers",
        "signals",
    },
    "processes": {"channels", "core", "env", "errors", "forks", "job"},
    "fileio": {"plugins", "aws", "aws.limits", "errors", "metering"},
    "api": {
        "runtime",
        "runtime.operation",
        "collectives",
        "core",
        "errors",
        "__init__",
        "signals",
        "fileio",
        # dynamic processes
        "processes",
        "deaths",
        "env",
        "job",
    },
    "MPI": {"api", "core", "env", "errors", "job", "observers"},
    "alias": {"__init__"},
    # of the runtime only the meter, for requests to S3
    "checkpoint": {"MPI", "core", "env", "errors", "job", "metering", "aws", "runtime"},
    "forks": set(),
    "futures": {"MPI", "alias", "env", "errors"},
    # it starts smpirun as a process, and imports nothing of it
    "calls": {"MPI", "errors"},
    "pytest_plugin": {"env", "job"},
    "bench": {"MPI", "__init__"},
    "aio": {"MPI", "api", "runtime", "runtime.operation"},
    "launch": {
        "env",
        "plugins",
        "collectives",
        "core",
        "deadlock",
        "deaths",
        "job",
        "channels",
        "channels.base",
        "metering",
        "errors",
        "aws",
        "alias",
        "forks",
        "__init__",
        "trace",
        "explain",
        "profile",
        "stack",
        "launch.handler",
        "launch.aws_lambda",
        "processes",
    },
    # It packs what a program requires as `smpi deploy` packs what the function requires.
    "launch.aws_lambda": {
        "plugins",
        "deadlock",
        "job",
        "channels",
        "metering",
        "errors",
        "aws",
        "__init__",
        "trace",
        "explain",
        "profile",
        "launch",
        "stack",
        "deploy",
    },
    # The function of a deployed stack: it deploys nothing, and boto3 is not imported.
    "launch.handler": {
        "env",
        "launch",
        "launch.rank",
        "launch.sandbox",
        "deadlock",
        "stack",
        "job",
        "metering",
        "errors",
        "aws",
        "channels",
        "__init__",
        "MPI",
        "sparse",
    },
    "launch.function": {"launch", "launch.handler", "launch.sandbox"},
    "launch.rank": {"launch", "launch.sandbox", "job"},
    "launch.sandbox": {"launch", "alias", "env", "errors", "job", "stack"},
    "launch.hello": {"MPI"},
    # what ranks of `smpi calibrate` run: requests of its own, without MPI
    "launch.measure": {"aws", "errors", "job", "metering", "sparse"},
    "stack": {"aws", "core", "errors", "job", "metering"},
    "deploy": {"aws", "metering", "errors", "__init__", "job", "stack"},
    "deploy.calibrate": {"deploy", "launch.measure", "metering", "errors", "stack"},
    "deploy.cli": {
        "deploy",
        "deploy.calibrate",
        "compare",
        "launch",
        "metering",
        "errors",
        "stack",
        "__init__",
    },
    # it starts smpirun as a process, and replays traces on the model of AWS
    "compare.rank": set(),
    "compare": {"simulation", "channels", "launch", "metering", "errors", "webpage"},
    "sparse": {"_spdnn", "env"},
    "inference": {
        "env",
        "sparse",
        "MPI",
        "webpage",
        "channels",
        "channels.base",
        "launch",
        "metering",
        "errors",
        "aws",
        "job",
        "runtime",
        "__init__",
    },
}
# Facts of AWS are a leaf: whatever deals with AWS may read them.
for _package in (
    "aws",
    "channels.base",
    "channels",
    "simulation",
    "explain",
    "launch",
    "launch.aws_lambda",
    "launch.handler",
    "launch.measure",
    "stack",
    "deploy",
    "deploy.calibrate",
    "deploy.cli",
    "compare",
    "sparse",
    "inference",
):
    MAY[_package] |= {"aws.limits", "aws.figures"}


def unit(module: str) -> str:
    """Return the package or module of MAY to which a dotted name below the package belongs."""
    return module if module in MAY else module.split(".")[0]


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, at the top or inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                below = (
                    f"{base}.{alias.name}".removeprefix("serverless_mpi")
                    .strip(".")
                    .replace(".", "/")
                )
                is_module = base.startswith("serverless_mpi") and (
                    (PACKAGE / f"{below}.py").exists() or (PACKAGE / below).is_dir()
                )
                modules.add(f"{base}.{alias.name}" if is_module else base)
    return modules


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inward(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    name = ".".join(relative.parts).removesuffix(".__init__")
    here = unit(name)
    for module in imports(path):
        top, _, below = module.partition(".")
        if top == "serverless_mpi":
            target = unit(below or "__init__")
            assert target == here or target in MAY[here], f"{name} imports {module}"
        elif here in STANDARD_ONLY:
            assert top not in ("numpy", "scipy", "boto3", "botocore", "cffi"), (
                f"{name} imports {module}"
            )


@pytest.mark.parametrize("folder", ["core", "collectives"])
def test_no_clock_thread_socket_or_randomness(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        banned = imports(path) & {
            "time",
            "threading",
            "socket",
            "random",
            "secrets",
            "os",
            "asyncio",
            "selectors",
            "select",
        }
        assert not banned, f"{path.name} imports {banned}"


def test_every_package_is_listed() -> None:
    assert {
        unit(".".join(path.relative_to(PACKAGE).with_suffix("").parts)) for path in FILES
    } <= set(MAY)
