"""Emulators for the whole session, and the markers by which `make quick` leaves tests out.

Markers are applied here, from what a test uses, so a new test gets them without a word:

- a fixture whose name ends in `_endpoint`, or one that needs it: `emulator`;
- a call of `smpirun`, `under_mpirun` and the other names of `_CALLS`, in the test, in a fixture of it or
  in a function of tests/ that these call: the markers given there;
- the folders and files of `_PLACES`: the markers given there.

Only what cannot be seen that way (a test that takes long by itself) is marked by hand.

`make test` and `make quick` run in three processes (pytest-xdist), because many tests wait for the
processes that they start. All tests of a file run in the same one, which makes the fixtures of a module
once. A test shares nothing with those of another file but the repository, which it only reads: each
process has its own emulators and its own folder for temporary files (of which the jobs of smpirun are
listed in one), and a server of a test listens on a port that the system gives it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from serverless_mpi.launch.emulator import Emulator

# The same examples every time, and no verdict by the clock: a busy machine fails no test.
settings.register_profile(
    "deterministic", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deterministic")


# Names that start something, and the markers of a test that calls them.
_CALLS: dict[str, tuple[str, ...]] = {
    "smpirun": ("slow",),
    "interrupt": ("slow",),
    "subprocess": ("slow",),
    "Popen": ("slow",),
    "Emulator": ("slow", "emulator"),
    "under_mpirun": ("slow", "mpi"),
    "mpirun": ("mpi",),
}
# Folders and files of tests whose every test has these markers.
_PLACES: dict[str, tuple[str, ...]] = {
    "conformance": ("slow", "mpi", "network"),
    "docs/test_tutorial.py": ("slow", "emulator"),
    "examples": ("slow", "emulator"),
    "faults": ("slow",),
    "inference/test_cli.py": ("slow", "emulator"),
    "inference/test_serve.py": ("slow",),
    "links": ("slow", "emulator", "root"),
    "thirdparty": ("slow", "network"),
}


# The files that take longest. They run first, so that no process ends with one of them alone.
_LONGEST = (
    "test_conformance.py",
    "test_suite.py",
    "test_lambda.py",
    "test_examples.py",
    "test_cli.py",
    "test_commands.py",
    "test_build.py",
    "test_types.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it uses."""
    for item in items:
        for name in _markers(item):
            item.add_marker(name)
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _markers(item: pytest.Item) -> set[str]:
    folder = item.path.parent.name
    found = {*_PLACES.get(folder, ()), *_PLACES.get(f"{folder}/{item.path.name}", ())}
    if any(name.endswith("_endpoint") for name in getattr(item, "fixturenames", ())):
        found.add("emulator")
    names, constants, seen = set[str](), set[object](), set[CodeType]()
    for function in [getattr(item, "function", None), *_fixtures(item)]:
        more_names, more_constants = _used(function, seen)
        names |= more_names
        constants |= more_constants
    for name in names:
        found.update(_CALLS.get(name, ()))
    if "smpirun" in names and not {"direct", "memory"} & constants:
        found.add("emulator")  # of smpirun's default channel
    if any("the real MPI" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
        found.add("mpi")
    return found


def _fixtures(item: pytest.Item) -> list[Any]:
    """The functions of the fixtures of a test. pytest has no public way to ask for them."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.values() if info else ()
    return [found[-1].func for found in definitions if found]


def _used(function: Any, seen: set[CodeType]) -> tuple[set[str], set[object]]:
    """Names and text constants of a function and of the functions of tests/ that it calls."""
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, FunctionType) or function.__code__ in seen:
        return set(), set()
    seen.add(function.__code__)
    codes, names, constants = [function.__code__], set[str](), set[object]()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                codes.append(constant)
            else:
                constants.update(constant if isinstance(constant, tuple) else (constant,))
    for name in list(names):
        called = function.__globals__.get(name)
        if str(getattr(called, "__module__", "")).startswith("tests."):
            more_names, more_constants = _used(called, seen)
            names |= more_names
            constants |= more_constants
    return names, constants


@pytest.fixture(scope="session", autouse=True)
def _no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees an AWS account, a job it may run in, a proxy before this machine, or files of another process."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("AWS_", "SMPI_", "PMI_", "PMIX_", "OMPI_")):
            patch.delenv(name)
    # a shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("no_proxy", "127.0.0.1,localhost")
    # ranks of MPICH poll, and take whole time slices from the ranks that they wait for
    patch.setenv("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
    tmp_path_factory.getbasetemp()  # of pytest, which keeps it: not in the folder that goes
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        # a short name, since paths of Unix sockets have at most 107 bytes
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
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
