"""smpirun: what its words mean.  What is done with them is the launchers'."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from serverless_mpi import channels, launch
from serverless_mpi.errors import ServerlessMPIError, UsageError
from serverless_mpi.launch.base import EXIT_USAGE, Plan, Program

EPILOG = """The first failing rank's exit code is smpirun's; 124 is a time-out, 128 + n the end by signal n.
Several programs, as in `smpirun -n 1 a.py : -n 3 b.py`, share one COMM_WORLD."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see smpirun --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="smpirun", description="Run an mpi4py program on N ranks, without servers.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    say = parser.add_argument
    say("-n", "-np", dest="ranks", metavar="N", default="1", help="number of ranks (default 1)")
    say("--channel", default=channels.DEFAULT, help=f"{', '.join(channels.CHANNELS)} (default {channels.DEFAULT})")
    say("--platform", default=launch.DEFAULT, help=f"{', '.join(launch.LAUNCHERS)} (default {launch.DEFAULT})")
    say("-x", dest="variables", metavar="VAR[=VALUE]", action="append", default=[], help="give the ranks a variable")
    say("--wdir", metavar="FOLDER", help="working directory of the ranks")
    say("--tag-output", action="store_true", help="begin each line of output with its rank")
    say("--timeout", metavar="SECONDS", help="stop the job after that time, with exit code 124")
    say("--stats", choices=("text", "json", "none"), default="none", help="requests and dollars at the end: a table on "
        "standard error, or a line of JSON on standard output")  # fmt: skip
    say("--prices", metavar="FILE", help="a price table like the package's prices.json")
    say("--region", default="us-east-1", help="AWS region (default us-east-1)")
    say("--endpoint", metavar="URL", help="use the AWS emulator that runs there instead of an own one")
    say("--port", metavar="PORT", help="port of the own emulator (default: a free one)")
    say("--host", metavar="ADDRESS", help="address on which ranks of channel direct listen (default 127.0.0.1)")
    say("--no-alias", dest="alias", action="store_false", help="leave `import mpi4py` alone")
    say("--cleanup", action="store_true", help="remove what dead jobs left behind, and end")
    say("-m", dest="module", action="store_true", help="the program is a module, as after `python -m`")
    say("program", nargs=argparse.REMAINDER, metavar="program ...", help="a .py file or an executable, and its arguments")
    return parser


def _whole(text: str, name: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} {text}: a whole number of at least {least} is needed")
    return number


def _program(options: argparse.Namespace) -> Program:
    argv = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not argv:
        raise UsageError("no program: name a .py file or an executable, as in `smpirun -n 4 prog.py`")
    variables = {}
    for text in options.variables:
        name, equals, value = text.partition("=")
        if not equals and name not in os.environ:
            raise UsageError(f"-x {name}: it is not set here; give -x {name}=VALUE")
        variables[name] = value if equals else os.environ[name]
    return Program(tuple(argv), _whole(options.ranks, "-n", 1), options.module, variables, options.wdir)


def plan_of(words: Sequence[str]) -> tuple[argparse.Namespace, Plan | None]:
    """(the options, what to run; None where only --cleanup is asked for).

    Raises
    ------
    UsageError
        The words make no sense; the text says what would.
    """
    parts: list[list[str]] = [[]]
    for word in words:
        if word == ":":
            parts.append([])
        else:
            parts[-1].append(word)
    parsed = [_parser().parse_args(part) for part in parts]
    first = parsed[0]
    if first.cleanup:
        return first, None
    channels.load(first.channel)
    seconds = None
    if first.timeout is not None:
        try:
            seconds = float(first.timeout)
        except ValueError:
            seconds = 0.0
        if not seconds > 0:
            raise UsageError(f"--timeout {first.timeout}: a number of seconds above 0 is needed")
    plan = Plan(
        programs=tuple(_program(options) for options in parsed),
        channel=first.channel,
        endpoint=first.endpoint,
        port=None if first.port is None else _whole(first.port, "--port", 1),
        host=first.host,
        region=first.region,
        alias=first.alias,
        tag_output=first.tag_output,
        timeout_s=seconds,
        stats=first.stats,
        prices=first.prices,
    )
    return first, plan


def main(words: Sequence[str] | None = None) -> int:
    """smpirun's entry point; returns the exit code."""
    try:
        options, plan = plan_of(sys.argv[1:] if words is None else words)
        launcher = launch.load(options.platform)()
        if plan is None:
            for line in launcher.cleanup(options.endpoint, options.region):
                print(f"removed {line}")
            return 0
        return launcher.run(plan)
    except ServerlessMPIError as error:
        print(f"smpirun: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
