"""`python -m serverless_mpi.testing`: check everything that is registered against its contract.

Prints one line per object: "holds", "BROKEN" with the reason, or "skipped" with the
reason.  The exit code is 1 if any contract is broken.

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
from pathlib import Path

from serverless_mpi import channels, launch, plugins
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.launch.emulator import SERVICES, Emulator
from serverless_mpi.testing.algorithms import check_algorithm, registered
from serverless_mpi.testing.channels import check_channel
from serverless_mpi.testing.launchers import check_launcher

LAMBDA_PATIENCE_S = 60.0  # an emulator starts its functions one after the other

Check = tuple[str, Callable[[], None]]


class Skipped(Exception):
    """An object cannot be checked here; the text says what would make it possible."""


def _algorithms(options: argparse.Namespace) -> Iterator[Check]:
    plugins.import_algorithms(plugins.algorithm_modules())
    for algorithm in registered():
        yield f"{algorithm.operation} {algorithm.name}", partial(check_algorithm, algorithm)


def _channels(options: argparse.Namespace) -> Iterator[Check]:
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


def _launchers(options: argparse.Namespace) -> Iterator[Check]:
    for name in plugins.names(plugins.LAUNCHERS, launch.LAUNCHERS):
        yield f"platform {name}", partial(_check_launcher, name, options)


def _check_launcher(name: str, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="check-launcher-") as workdir:
        if name != "lambda":
            check_launcher(name, Path(workdir))
            return
        if options.endpoint is None:
            raise Skipped("needs --endpoint, an AWS emulator with a stack of `smpi deploy`")
        job_options = ("--channel", "queue", "--endpoint", options.endpoint)
        check_launcher(
            name,
            Path(workdir),
            options=(*job_options, "--stack", options.stack),
            stdin=False,
            patience_s=LAMBDA_PATIENCE_S,
        )


SUITES: dict[str, Callable[[argparse.Namespace], Iterator[Check]]] = {
    "algorithms": _algorithms,
    "channels": _channels,
    "launchers": _launchers,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites that the options name, or all of them.

    Parameters
    ----------
    arguments
        Command line; that of the process by default.

    Returns
    -------
    int
        Exit code: 1 if any contract is broken.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serverless_mpi.testing",
        description="Check everything that is registered, extensions included, against its"
        " contract.",
    )
    for name in SUITES:
        parser.add_argument(f"--{name}", action="store_true", help=f"check {name} (default: all)")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="check only names with this text"
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="an AWS emulator with a stack, to check platform lambda"
    )
    parser.add_argument(
        "--stack", metavar="NAME", default="smpi", help="stack of the emulator (default smpi)"
    )
    options = parser.parse_args(arguments)
    broken = 0
    for name in [name for name in SUITES if getattr(options, name)] or list(SUITES):
        for title, check in SUITES[name](options):
            if options.only not in title:
                continue
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
