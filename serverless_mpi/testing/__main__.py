"""python -m serverless_mpi.testing: hold everything that is registered to its contract.

Prints one line per object.  The exit code is 1 if any contract is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from serverless_mpi import plugins
from serverless_mpi.errors import MPIException, ServerlessMPIError
from serverless_mpi.testing.algorithms import check_algorithm, registered

Check = tuple[str, Callable[[], None]]


def _algorithms() -> Iterator[Check]:
    plugins.import_algorithms(plugins.algorithm_modules())
    for algorithm in registered():
        yield f"{algorithm.operation} {algorithm.name}", partial(check_algorithm, algorithm)


SUITES: dict[str, Callable[[], Iterator[Check]]] = {"algorithms": _algorithms}


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
            except (AssertionError, ServerlessMPIError, MPIException) as error:
                broken += 1
                print(f"{title}: BROKEN: {error}", flush=True)
            else:
                print(f"{title}: holds", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
