"""python -m serverless_mpi.testing: hold everything that is registered to its contract.

Prints one line per object: "holds", "BROKEN" and why, or "skipped" and why.  The
exit code is 1 if any contract is broken.

A suite yields the checks of its objects.  A check raises `Skipped` if it cannot
run here: a channel that needs AWS services runs on the embedded emulator, if
that is installed and has them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from serverless_mpi import channels, plugins
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.launch.emulator import SERVICES, Emulator
from serverless_mpi.testing.algorithms import check_algorithm, registered
from serverless_mpi.testing.channels import check_channel

Check = tuple[str, Callable[[], None]]


class Skipped(Exception):
    """A check that cannot run here; the text is the reason."""


def _algorithms() -> Iterator[Check]:
    plugins.import_algorithms(plugins.algorithm_modules())
    for algorithm in registered():
        yield f"{algorithm.operation} {algorithm.name}", partial(check_algorithm, algorithm)


def _channels() -> Iterator[Check]:
    """Yield a check per registered channel; those that need services share an emulator."""
    with _SharedEmulator() as emulator:
        for name in channels.names():
            yield f"channel {name}", partial(_check_channel, name, emulator)


def _check_channel(name: str, emulator: _SharedEmulator) -> None:
    services = channels.load(name).services
    check_channel(name, endpoint=emulator.endpoint(services) if services else None)


class _SharedEmulator:
    """An emulator that starts at first use."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._endpoint: str | None = None

    def __enter__(self) -> _SharedEmulator:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def endpoint(self, services: frozenset[str]) -> str:
        """Return its URL.

        Raises
        ------
        Skipped
            It is not installed, or lacks a service.
        """
        if missing := services - set(SERVICES):
            raise Skipped(f"the embedded emulator lacks {', '.join(sorted(missing))}")
        if self._endpoint is None:
            folder = self._undo.enter_context(tempfile.TemporaryDirectory())
            emulator = Emulator(folder)
            try:
                self._endpoint = emulator.start()
            except UsageError as error:
                raise Skipped(str(error)) from error
            self._undo.callback(emulator.stop)
        return self._endpoint


SUITES: dict[str, Callable[[], Iterator[Check]]] = {
    "algorithms": _algorithms,
    "channels": _channels,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites that are named, or all; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serverless_mpi.testing",
        description="Hold everything that is registered, extensions included, to its contract.",
    )
    for name in SUITES:
        parser.add_argument(f"--{name}", action="store_true", help=f"check {name} (default: all)")
    options = vars(parser.parse_args(arguments))
    broken = 0
    for name in [name for name in SUITES if options[name]] or list(SUITES):
        for title, check in SUITES[name]():
            try:
                check()
            except Skipped as reason:
                print(f"{title}: skipped: {reason}", flush=True)
            except (AssertionError, ServerlessMPIError, MPIException) as error:
                broken += 1
                print(f"{title}: BROKEN: {error}", flush=True)
            else:
                print(f"{title}: holds", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
