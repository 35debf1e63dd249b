"""The entry point of smpi-infer: parse the command line, then run the command.

`options` defines the command line, and `commands` runs it. `commands` is imported after the command
line is parsed, since it imports NumPy and the kernel: `--help` and an invalid command line do not
wait for them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.inference.options import parser
from serverless_mpi.launch.base import EXIT_USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smpi-infer.

    Parameters
    ----------
    arguments
        The command and its options; None for those of this process.

    Returns
    -------
    int
        Exit code: 0; 1 for a wrong answer or a failure; 2 for an invalid command line; that of the
        job if `run` or `serve` started one.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parser().parse_args(arguments)
        from serverless_mpi.inference import commands  # see the head of this file

        if options.command in commands.JOBS:
            return commands.JOBS[options.command](options, arguments[1:])
        return commands.COMMANDS[options.command](options)
    except (ServerlessMPIError, MPIException, ValueError, OSError) as error:
        print(f"smpi-infer: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, (UsageError, ValueError)) else 1
