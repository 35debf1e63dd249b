"""The command line of smpirun: arguments become a `Plan`, which a launcher runs.

Only the words of the command line are checked here: options, their types and their defaults. The
launcher checks whether an option has an effect on its platform (`Launcher.check`), and everything
about how a job runs.

If you add an option of a job, also add its field to `launch.base.Plan`; the head of that file lists
what else to change.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from serverless_mpi import __version__, channels, launch, plugins
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.launch.base import EXIT_USAGE, Launcher, Plan, Program
from serverless_mpi.launch.habits import Translation, translate, with_value
from serverless_mpi.launch.output import printable, say
from serverless_mpi.launch.profiling import SUFFIXES

if TYPE_CHECKING:
    from serverless_mpi.collectives.choose import Algorithm

STATS = ("text", "json", "none")

_EPILOG = """\
examples:
  smpirun -n 4 prog.py args            4 ranks of a Python program, over an embedded AWS emulator
  smpirun -n 4 --channel direct -m pkg.module
  smpirun -n 1 master.py : -n 3 worker.py
  smpirun -n 2 ./a_program             any executable

exit code:
  0    every rank ended with 0
  N    exit code of the rank that failed first; 128 + S if signal S ended it
  2    the command line is not valid
  124  the job ran longer than --timeout
  125  deadlock: see --deadlock
  130  Ctrl-C

Options of mpiexec (MPICH, Open MPI) are accepted where they have a meaning here; harmless ones are
ignored with a message. SIGQUIT (Ctrl-\\ in a terminal) and SIGUSR1 print every rank's Python stack.

A local job ignores credentials and endpoints of AWS in the environment. Use --endpoint and -x to
name those that it needs.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see smpirun --help")

    def takes_value(self, option: str) -> bool:
        """Return whether a value follows an option."""
        action = self._option_string_actions.get(option)
        return action is not None and action.nargs is None


# -- types of options: text to value, or an error text for argparse


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _amount(unit: str, *, zero: bool = False) -> Callable[[str], float]:
    """Return a type for finite numbers above 0 of that unit; `zero` allows 0 as well."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf") and not (zero and number == 0):
            least = "0 or more" if zero else "above 0"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} {least}")
        return number

    return parse


def _variable(text: str) -> tuple[str, str | None]:
    """Return the name and value of VAR=value; of VAR alone the value is None."""
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not VAR or VAR=value")
    return name, value if equals else None


def _algorithm(text: str) -> tuple[str, str]:
    operation, equals, name = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OP=NAME, as in bcast=binomial")
    return operation, name


# -- the parser


def build_parser() -> _Parser:
    """Return the parser of one program's part of the command line."""
    parser = _Parser(
        prog="smpirun",
        usage="smpirun [options] [-n N] prog.py [args ...] [: [-n N] prog.py [args ...]] ...",
        description="Run MPI programs whose messages travel through AWS queues and objects.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_program_options(parser.add_argument_group("options of each program"))
    job = parser.add_argument_group("options of the job (before the first program)")
    _add_medium_options(job)
    _add_run_options(job)
    _add_debug_options(job)
    _add_report_options(parser.add_argument_group("reports (before the first program)"))
    _add_lambda_options(
        parser.add_argument_group("options of --platform lambda (`smpi deploy` makes the stack)")
    )
    _add_other_commands(parser.add_argument_group("instead of a job"))
    return parser


def _add_program_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "-np",
        dest="ranks",
        metavar="N",
        type=_positive_int,
        default=1,
        help="number of ranks (default 1)",
    )
    group.add_argument(
        "-x",
        dest="variables",
        metavar="VAR[=V]",
        action="append",
        type=_variable,
        default=[],
        help="export an environment variable to the ranks, with its current value unless =V is"
        " given",
    )
    group.add_argument("--wdir", "-wdir", dest="folder", metavar="DIR", help="working directory")
    group.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        nargs=argparse.REMAINDER,
        help="run a module and its arguments, as python -m does",
    )
    group.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_medium_options(group: argparse._ArgumentGroup) -> None:
    """Add where ranks run and how their messages travel."""
    group.add_argument(
        "--channel",
        metavar="NAME",
        default=channels.AUTO,
        help=f"how messages travel: {', '.join(channels.CHANNELS)}, or {channels.AUTO}:"
        f" {channels.DEFAULT}, and routed with -ppn or --echo (default {channels.AUTO})",
    )
    group.add_argument(
        "--platform",
        metavar="NAME",
        default=launch.DEFAULT,
        help=f"where ranks run: {', '.join(launch.LAUNCHERS)} (default {launch.DEFAULT})",
    )
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="use a running AWS emulator; by default smpirun starts one if the channel needs it",
    )
    group.add_argument(
        "--port",
        metavar="P",
        type=_port,
        help="port of the emulator that smpirun starts (default: a free one)",
    )
    group.add_argument(
        "--host",
        metavar="ADDR",
        help="channels direct and routed: listen on this address by TCP, encrypted (default of"
        " direct: Unix sockets)",
    )
    group.add_argument(
        "-ppn",
        "--ppn",
        metavar="K",
        type=_positive_int,
        help="channel routed: K ranks per node, on lambda per function, reach each other by Unix"
        " sockets, others by links (default: all on one node, on lambda one per function)",
    )
    group.add_argument(
        "--echo",
        metavar="URL",
        help="channel routed: service that answers each rank with the address at which others reach"
        " it (default: the address of --host)",
    )
    group.add_argument("--region", metavar="R", help="AWS region (default us-east-1)")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    """Add how ranks are started, and when the job is stopped."""
    group.add_argument(
        "--no-alias",
        action="store_true",
        help="let `from mpi4py import MPI` find the real mpi4py instead of this package",
    )
    group.add_argument(
        "--branching",
        metavar="B",
        type=_positive_int,
        help="start ranks as a tree: each rank starts B others (default: the launcher starts all;"
        " on lambda a tree whose B depends on -n)",
    )
    group.add_argument(
        "--timeout",
        metavar="S",
        type=_amount("seconds"),
        help="stop the job after S seconds, with exit code 124, and print where each rank was",
    )
    group.add_argument(
        "--deadlock",
        metavar="S",
        type=_amount("seconds", zero=True),
        default=60.0,
        help="stop the job with exit code 125 when every rank has waited for S seconds and no"
        " message is in flight, and print where each waits (default 60; 0: never)",
    )
    group.add_argument(
        "--ft",
        action="store_true",
        help="go on when a rank dies: the other ranks get MPI errors instead (Comm.Shrink, Agree,"
        " Revoke)",
    )
    group.add_argument(
        "--restarts",
        metavar="N",
        type=_natural,
        default=0,
        help="when a signal kills a rank, or the emulator ends, start the job again from its last"
        " checkpoint (serverless_mpi.checkpoint), at most N times (default 0)",
    )
    group.add_argument(
        "--algorithm",
        dest="algorithms",
        metavar="OP=NAME",
        action="append",
        type=_algorithm,
        default=[],
        help="use this algorithm for a collective wherever it can serve the call, as in"
        " bcast=binomial",
    )


def _add_debug_options(group: argparse._ArgumentGroup) -> None:
    """Add what debuggers and other libraries need of a rank."""
    group.add_argument(
        "--torch",
        action="store_true",
        help="set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which PyTorch reads",
    )
    group.add_argument(
        "--debug",
        metavar="RANK",
        type=_natural,
        help="give this rank the terminal, for pdb: its input and output are smpirun's own",
    )
    group.add_argument(
        "--debugpy",
        metavar="PORT",
        type=_port,
        help="let rank R wait for a debugger on port PORT + R, by the package debugpy",
    )


def _add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tag-output",
        "-l",
        action="store_true",
        help="begin each line of output with its rank: [3] ...",
    )
    group.add_argument(
        "--outfile",
        metavar="PATTERN",
        help="write the standard output of each rank to a file; %%r in its path is the rank",
    )
    group.add_argument(
        "--errfile",
        metavar="PATTERN",
        help="write the standard error of each rank to a file; %%r in its path is the rank",
    )
    group.add_argument(
        "--stats",
        metavar="|".join(STATS),
        choices=STATS,
        help="print requests, bytes and dollars at the end: a table on standard error, or one line"
        " of JSON, the last of standard output (default: text if standard error is a terminal,"
        " else none)",
    )
    group.add_argument(
        "--prices", metavar="FILE", help="price table in the format of the package's prices.json"
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="print at the end which algorithm each collective used, and what it cost",
    )
    group.add_argument(
        "--figures",
        metavar="FILE",
        help="choose, --explain and --simulate by these figures of AWS: a file that `smpi"
        " calibrate --output` wrote, or the word stack for those of the deployed stack (default: on"
        " lambda the stack's if it has some, else the package's)",
    )
    group.add_argument(
        "--profile",
        metavar="FILE",
        nargs="?",
        help="print at the end where time, messages and dollars went, by line of the program; FILE"
        " (.html, .json or .txt) gets it too",
    )
    group.add_argument(
        "--trace",
        metavar="FILE",
        help="write what each rank did when, for Perfetto or chrome://tracing",
    )


def _add_lambda_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stack", metavar="NAME", default="smpi", help="deployed stack (default smpi)"
    )
    group.add_argument(
        "--memory",
        metavar="MB",
        type=_positive_int,
        help="memory of each rank, one of the deployed sizes (default: the smallest)",
    )
    group.add_argument(
        "--budget",
        metavar="USD",
        type=_amount("dollars"),
        help="ask before starting a job that might cost more; refuse it if there is no terminal",
    )
    group.add_argument(
        "--requirements",
        metavar="FILE",
        help="packages that the program imports besides numpy, in pip's format; wheels only",
    )


def _add_other_commands(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--simulate",
        action="store_true",
        help="print what collectives of N ranks cost, without running them:"
        " --simulate -n 1000 allreduce:8MB barrier",
    )
    group.add_argument(
        "--latency",
        metavar="NAME",
        default="aws",
        help="with --simulate: figures of aws (default), express (S3 Express) or emulator",
    )
    group.add_argument(
        "--cleanup",
        action="store_true",
        help="remove what jobs left behind whose smpirun was killed (with --endpoint: also"
        " everything there that no running job of yours uses)",
    )


# -- from arguments to a plan

_PROGRAM_OPTIONS = {"ranks", "variables", "folder", "module", "program"}


def _with_profile(arguments: Sequence[str], parser: _Parser) -> list[str]:
    """Give --profile its value, which may be omitted."""
    return with_value(arguments, parser.takes_value, "--profile", SUFFIXES)


def _parse(arguments: Sequence[str]) -> list[argparse.Namespace]:
    """Return the options of each program; the first has those of the job.

    Raises
    ------
    UsageError
        An option is not valid, or one of the job comes after the first program.
    """
    parser = build_parser()
    segments: list[list[str]] = [[]]
    for argument in _with_profile(arguments, parser):
        if argument == ":":
            segments.append([])
        else:
            segments[-1].append(argument)
    # Every program has the whole parser, so that an option of the job after the first program is
    # reported as misplaced and not as unknown.
    parsed = [parser.parse_args(segment) for segment in segments]
    for later in parsed[1:]:
        for name, value in vars(later).items():
            if name not in _PROGRAM_OPTIONS and value != parser.get_default(name):
                raise UsageError(
                    f"--{name.replace('_', '-')} applies to the whole job:"
                    " put it before the first program"
                )
    return parsed


def _forced(choices: Mapping[str, str]) -> Mapping[str, Algorithm]:
    """Return operation -> algorithm of names; extensions are registered first."""
    from serverless_mpi.collectives import choose  # most jobs choose none, and start without

    plugins.import_algorithms(plugins.algorithm_modules())
    return choose.forced(choices)


def _algorithms(choices: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return operation -> name of its algorithm; UsageError for an unknown name."""
    algorithms = dict(choices)
    if algorithms:
        _forced(algorithms)
    return algorithms


def _program(options: argparse.Namespace, environ: Mapping[str, str]) -> Program:
    variables = {}
    for name, value in options.variables:
        if value is None and name not in environ:
            raise UsageError(
                f"-x {name}: the environment has no such variable; -x {name}=value sets one"
            )
        variables[name] = environ[name] if value is None else value
    argv = tuple(options.program if options.module is None else options.module)
    if not argv:
        missing = "a program" if options.module is None else "the name of a module after -m"
        raise UsageError(f"the command line lacks {missing}, as in: smpirun -n 4 prog.py")
    return Program(argv, options.ranks, options.module is not None, variables, options.folder)


def _stats(asked: str | None, launcher: type[Launcher]) -> str:
    """Return how to print statistics; a table by default if a person reads standard error."""
    if asked is not None:
        return asked
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return "text" if is_terminal and "stats" in launcher.honors else "none"


def plan(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Plan, str]:
    """Translate a command line into a job.

    Parameters
    ----------
    arguments
        Arguments of smpirun, without its name.
    environ
        Environment, from which -x exports variables.

    Returns
    -------
    tuple of Plan and str
        The job, and the name of its platform.

    Raises
    ------
    UsageError
        The command line is not valid, or asks for something that has no effect on the platform.
    """
    job, *_ = parsed = _parse(arguments)
    channel = channels.chosen(job.channel, [job.ppn, job.echo])
    channels.load(channel)
    launcher = launch.load(job.platform)
    job_plan = Plan(
        tuple(_program(options, environ) for options in parsed),
        channel,
        endpoint=job.endpoint,
        port=job.port,
        host=job.host,
        ppn=job.ppn,
        echo=job.echo,
        region=job.region or launcher.region,
        alias=not job.no_alias,
        tag_output=job.tag_output,
        outfile=job.outfile,
        errfile=job.errfile,
        torch=job.torch,
        debug=job.debug,
        debugpy=job.debugpy,
        timeout_s=job.timeout,
        deadlock_s=job.deadlock,
        ft=job.ft,
        restarts=job.restarts,
        stats=_stats(job.stats, launcher),
        prices=job.prices,
        explain=job.explain,
        figures=job.figures,
        algorithms=_algorithms(job.algorithms),
        trace=job.trace,
        profile=job.profile,
        stack=job.stack,
        memory_mb=job.memory,
        branching=job.branching,
        budget_usd=job.budget,
        requirements=job.requirements,
    )
    launcher.check(job_plan, job.platform)
    return job_plan, job.platform


def _announce(line: Translation, job_plan: Plan, platform: str) -> None:
    """Print what of mpiexec's options has no effect, and the map of ranks if it was asked for."""
    if line.ignored and not line.quiet:
        say(f"without effect here: {', '.join(line.ignored)}")
    if line.display_map:
        first = 0
        lines = []
        for program in job_plan.programs:
            last = first + program.ranks - 1
            ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
            lines.append(f"{ranks}: {' '.join(program.argv)}")
            first = last + 1
        packs = "" if job_plan.ppn is None else f", {job_plan.ppn} per node"
        say(f"{job_plan.size} ranks on platform {platform}{packs}", *lines)


# -- the commands


def _simulate(options: argparse.Namespace) -> int:
    from serverless_mpi import explain, metering  # a job does not need the simulation
    from serverless_mpi.launch import figures

    prices = metering.Prices.load(options.prices)
    algorithms = _forced(dict(options.algorithms))
    given = figures.chosen(options.figures, options.stack, options.endpoint, options.region or "")
    region = options.region or (given.region if given is not None else "") or "us-east-1"
    for line in explain.simulate(
        options.program,
        options.ranks,
        channels.chosen(options.channel, [options.ppn, options.echo]),
        options.latency,
        region,
        prices,
        algorithms,
        given,
        options.ppn,
    ):
        print(line, flush=True)
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    launcher = launch.load(options.platform)()
    for line in launcher.cleanup(options.endpoint, options.region or "us-east-1"):
        print(printable(f"smpirun: {line}"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smpirun.

    Parameters
    ----------
    arguments
        Command line; that of the process by default.

    Returns
    -------
    int
        Exit code, as `smpirun --help` lists them.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = build_parser()
        line = translate(_with_profile(arguments, parser), parser.takes_value)
        arguments = line.arguments
        options = _parse(arguments)[0]
        if options.cleanup:
            return _cleanup(options)
        if options.simulate:
            return _simulate(options)
        job_plan, platform = plan(arguments, os.environ)
        _announce(line, job_plan, platform)
        return launch.load(platform)().run(job_plan)
    except (ServerlessMPIError, MPIException) as error:
        say(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
