"""smpirun: the command line, made into a plan.

Here is only what is typed: options, their defaults and what is wrong with
them. How a job runs is the launcher's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from serverless_mpi import __version__, channels, launch, plugins
from serverless_mpi.collectives import choose
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.launch.base import EXIT_USAGE, Plan, Program
from serverless_mpi.launch.output import printable, say

STATS = ("text", "json", "none")

_EPILOG = """\
examples:
  smpirun -n 4 prog.py args            four ranks of a Python program, over an embedded AWS emulator
  smpirun -n 4 --channel direct -m pkg.module
  smpirun -n 1 master.py : -n 3 worker.py
  smpirun -n 2 ./a_program             any executable

Exit code: 0 if every rank ended with 0, else that of the rank that failed
first (128 + n if signal n ended it), 124 after --timeout, 125 after a deadlock, 2 if the command
line cannot work. Credentials and endpoints of AWS in the environment are
ignored; --endpoint and -x name what shall be used.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see smpirun --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smpirun",
        usage="smpirun [-n N] [options] prog.py [args ...] [: [-n N] prog.py [args ...]] ...",
        description="Run MPI programs over queues and objects.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    each = parser.add_argument_group("of each program")
    each.add_argument("-n", "-np", dest="ranks", metavar="N", help="number of ranks (default 1)")
    each.add_argument(
        "-x",
        dest="variables",
        metavar="VAR[=V]",
        action="append",
        default=[],
        help="give the ranks a variable; its value is yours",
    )
    each.add_argument("--wdir", "-wdir", dest="folder", metavar="D", help="working directory")
    each.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        nargs=argparse.REMAINDER,
        help="run a module, as python -m does",
    )
    each.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    whole = parser.add_argument_group("of the job (before the first program)")
    whole.add_argument(
        "--channel",
        metavar="NAME",
        help=f"{', '.join(channels.CHANNELS)} (default {channels.DEFAULT})",
    )
    whole.add_argument(
        "--platform",
        metavar="NAME",
        help=f"{', '.join(launch.LAUNCHERS)} (default {launch.DEFAULT})",
    )
    whole.add_argument("--endpoint", metavar="URL", help="an AWS emulator that runs already")
    whole.add_argument(
        "--port", metavar="P", help="port of the emulator that is started (default: a free one)"
    )
    whole.add_argument(
        "--host",
        metavar="ADDR",
        help="channel direct: the address to listen on by TCP (default: Unix sockets of this machine)",
    )
    whole.add_argument("--region", metavar="R", help="AWS region (default us-east-1)")
    whole.add_argument(
        "--no-alias", action="store_true", help="`from mpi4py import MPI` means the real mpi4py"
    )
    whole.add_argument(
        "--tag-output",
        "-l",
        action="store_true",
        help="begin each line of output with its rank: [3] ...",
    )
    whole.add_argument(
        "--branching",
        metavar="B",
        help="start ranks as a tree: each starts B others when it begins (default: none; on lambda chosen from -n)",
    )
    whole.add_argument(
        "--timeout", metavar="S", help="stop the job after S seconds, with exit code 124"
    )
    whole.add_argument(
        "--deadlock",
        metavar="S",
        help="when every rank has waited for S seconds and nothing is in flight, say where, and end with exit code 125"
        " (default 60; 0: never)",
    )
    whole.add_argument(
        "--stats",
        metavar="|".join(STATS),
        help="requests, bytes and dollars at the end: a table on stderr, or one line of JSON, the last of stdout"
        " (default: text where stderr is a terminal, else none)",
    )
    whole.add_argument(
        "--prices", metavar="FILE", help="a price table like the package's prices.json"
    )
    cloud = parser.add_argument_group(
        "of the job, with --platform lambda (`smpi deploy` makes the stack)"
    )
    cloud.add_argument("--stack", metavar="NAME", help="the deployed stack (default smpi)")
    cloud.add_argument(
        "--memory",
        metavar="MB",
        help="memory of each rank: one of the sizes that were deployed (default: the least)",
    )
    cloud.add_argument(
        "--budget",
        metavar="USD",
        help="ask, or refuse, before a job that might cost more is started",
    )
    cloud.add_argument(
        "--requirements",
        metavar="FILE",
        help="what the program imports beside numpy, as pip reads it; wheels only",
    )
    whole.add_argument(
        "--explain",
        action="store_true",
        help="say at the end which algorithm each collective took, and its cost",
    )
    whole.add_argument(
        "--algorithm",
        dest="algorithms",
        metavar="OP=NAME",
        action="append",
        default=[],
        help="use this algorithm for a collective where it can serve the call, as in: bcast=binomial",
    )
    whole.add_argument(
        "--simulate",
        action="store_true",
        help="no job: what collectives of N ranks take, as in: --simulate -n 1000 allreduce:8MB barrier",
    )
    whole.add_argument("--latency", metavar="NAME", help="with --simulate: aws (default), emulator")
    whole.add_argument(
        "--trace",
        metavar="FILE",
        help="write what each rank did when, for Perfetto or chrome://tracing",
    )
    whole.add_argument(
        "--cleanup",
        action="store_true",
        help="remove what dead jobs left behind (with --endpoint: all that no job of yours uses there), and end",
    )
    return parser


_OF_EACH = {"ranks", "variables", "folder", "module", "program"}


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: not a whole number") from None


def _above_0(text: str, option: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UsageError(f"{option} {text}: not a number of {unit} above 0")
    return number


def _algorithms(given: Sequence[str]) -> dict[str, str]:
    """Return operation -> name of its algorithm; extensions are registered first."""
    plugins.import_algorithms(plugins.algorithm_modules())
    chosen = {}
    for text in given:
        operation, equals, name = text.partition("=")
        if not equals:
            raise UsageError(f"--algorithm {text}: it takes OP=NAME, as in bcast=binomial")
        chosen[operation] = name
    choose.forced(chosen)
    return chosen


def _program(options: argparse.Namespace, environ: Mapping[str, str]) -> Program:
    ranks = 1 if options.ranks is None else _number(options.ranks, "-n")
    if ranks < 1:
        raise UsageError(f"-n {ranks}: a job needs at least 1 rank")
    variables = {}
    for given in options.variables:
        name, equals, value = given.partition("=")
        if not name:
            raise UsageError(f"-x {given}: it takes VAR or VAR=value")
        if not equals and name not in environ:
            raise UsageError(
                f"-x {name}: no such variable in the environment; -x {name}=value gives it one"
            )
        variables[name] = value if equals else environ[name]
    argv = tuple(options.program if options.module is None else options.module)
    if not argv:
        what = "a program" if options.module is None else "the name of a module after -m"
        raise UsageError(f"the command line lacks {what}, as in: smpirun -n 4 prog.py")
    return Program(argv, ranks, options.module is not None, variables, options.folder)


def plan(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Plan, str]:
    """The job that `arguments` ask for, and the platform it is to run on.

    Raises
    ------
    UsageError
        They ask for none that could run.
    """
    segments: list[list[str]] = [[]]
    for argument in arguments:
        if argument == ":":
            segments.append([])
        else:
            segments[-1].append(argument)
    parser = _parser()
    parsed = [parser.parse_args(segment) for segment in segments]
    job = parsed[0]
    for later in parsed[1:]:
        for name, value in vars(later).items():
            if name not in _OF_EACH and value:
                raise UsageError(
                    f"--{name.replace('_', '-')} is of the whole job: put it before the first program"
                )
    channel = job.channel or channels.DEFAULT
    channels.load(channel)
    platform = job.platform or launch.DEFAULT
    launcher = launch.load(platform)
    quiet = "stats" not in launcher.honors or sys.stderr is None or not sys.stderr.isatty()
    stats = job.stats or ("none" if quiet else "text")
    if stats not in STATS:
        raise UsageError(f"--stats {stats}: known are {', '.join(STATS)}")
    timeout = None if job.timeout is None else _above_0(job.timeout, "--timeout", "seconds")
    deadlock = (
        60.0
        if job.deadlock is None
        else 0.0
        if job.deadlock == "0"
        else _above_0(job.deadlock, "--deadlock", "seconds")
    )
    branching = None if job.branching is None else _number(job.branching, "--branching")
    if branching is not None and branching < 1:
        raise UsageError(f"--branching {branching}: a rank starts at least 1 other")
    port = None if job.port is None else _number(job.port, "--port")
    if port is not None and not 0 < port < 1 << 16:
        raise UsageError(f"--port {port}: a port is in 1..65535")
    made = Plan(
        tuple(_program(options, environ) for options in parsed),
        channel,
        endpoint=job.endpoint,
        port=port,
        host=job.host,
        algorithms=_algorithms(job.algorithms),
        region=job.region or launcher.region,
        alias=not job.no_alias,
        tag_output=job.tag_output,
        timeout_s=timeout,
        deadlock_s=deadlock,
        stats=stats,
        prices=job.prices,
        explain=job.explain,
        trace=job.trace,
        stack=job.stack or "smpi",
        memory_mb=None if job.memory is None else _number(job.memory, "--memory"),
        branching=branching,
        budget_usd=None if job.budget is None else _above_0(job.budget, "--budget", "dollars"),
        requirements=job.requirements,
    )
    launcher.check(made, platform)
    return made, platform


def _simulate(options: argparse.Namespace) -> int:
    from serverless_mpi import explain, metering

    prices = metering.Prices.load(options.prices)
    ranks = 1 if options.ranks is None else _number(options.ranks, "-n")
    if ranks < 1:
        raise UsageError(f"-n {ranks}: a job needs at least 1 rank")
    channel, latency = options.channel or channels.DEFAULT, options.latency or "aws"
    algorithms = choose.forced(_algorithms(options.algorithms))
    region = options.region or "us-east-1"
    for line in explain.simulate(
        options.program, ranks, channel, latency, region, prices, algorithms
    ):
        print(line, flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smpirun; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        first = arguments[: arguments.index(":")] if ":" in arguments else arguments
        options = _parser().parse_args(first)
        if options.cleanup:
            platform = options.platform or launch.DEFAULT
            for line in launch.load(platform)().cleanup(
                options.endpoint, options.region or "us-east-1"
            ):
                print(printable(f"smpirun: {line}"))
            return 0
        if options.simulate:
            return _simulate(options)
        made, platform = plan(arguments, os.environ)
        return launch.load(platform)().run(made)
    except (ServerlessMPIError, MPIException) as error:
        say(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
