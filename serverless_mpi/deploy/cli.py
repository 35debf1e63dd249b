"""The command line of smpi, which deploys a stack and manages it.

Only arguments and printed text are here: each command is a function `_NAME` that
calls the other files of this package.  They are imported when a command runs, so
that `smpi --help` does not load boto3.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from serverless_mpi import __version__
from serverless_mpi.aws.figures import to_json
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.launch.base import EXIT_USAGE
from serverless_mpi.launch.output import printable, printable_lines
from serverless_mpi.metering import Prices
from serverless_mpi.stack import bill
from serverless_mpi.stack import layout as names

if TYPE_CHECKING:
    from serverless_mpi.deploy.history import History


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of smpi and its commands."""
    parser = _Parser(
        prog="smpi",
        description="Deploy serverless_mpi to AWS Lambda, and manage the deployed stack.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    where = _Parser(add_help=False, allow_abbrev=False)
    where.add_argument(
        "--stack", metavar="NAME", default="smpi", help="name of the stack (default smpi)"
    )
    where.add_argument(
        "--region", metavar="R", default="", help="AWS region (default: that of your AWS settings)"
    )
    emulator = "use a running AWS emulator instead of AWS"
    where.add_argument("--endpoint", metavar="URL", help=emulator)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *parents: _Parser) -> _Parser:
        parts = parents or (where,)
        return commands.add_parser(
            name, parents=parts, help=text, description=text, allow_abbrev=False
        )

    text = "run a program under a real MPI and on each channel, and forecast it for Lambda"
    command("compare", text, _compare_options())

    _add_deploy_options(command("deploy", "create the stack, or update it"))
    destroy = command("destroy", "remove the stack and everything in it")
    destroy.add_argument("--force", action="store_true", help="destroy it even while jobs run")
    policy = command("policy", "print the IAM policy that a person needs, as JSON")
    who = policy.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--deployer", action="store_true", help="to deploy, to destroy, and to run jobs"
    )
    who.add_argument("--runner", action="store_true", help="to run jobs on a deployed stack")
    policy.add_argument(
        "--account", metavar="ID", default="*", help="account of the stack (default: any)"
    )
    command("doctor", "check credentials, clock, region, quotas and the stack")
    _add_calibrate_options(
        command(
            "calibrate",
            "measure times and rates of AWS on the stack; jobs and forecasts then use them",
        )
    )
    hello = command("hello", "run a test job: ranks on Lambda greet each other")
    hello.add_argument(
        "-n", dest="ranks", metavar="N", default="4", help="number of ranks (default 4)"
    )
    logs = command("logs", "print what the ranks of a job wrote, from the functions' logs")
    logs.add_argument("job", metavar="JOB")
    logs.add_argument("--rank", metavar="R", help="only this rank")
    logs.add_argument("--follow", action="store_true", help="keep printing until the job has ended")
    command("jobs", "list the jobs of the last day")
    cost = command("cost", "print the requests, time and dollars of a job")
    cost.add_argument("job", metavar="JOB")
    cost.add_argument("--json", action="store_true", help="print one line of JSON")
    cost.add_argument(
        "--prices", metavar="FILE", help="price table in the format of the package's prices.json"
    )
    text = "remove the records of jobs from the bucket; with JOB or --all, also stop running jobs"
    clean = command("clean", text)
    clean.add_argument("job", metavar="JOB", nargs="*")
    clean.add_argument("--all", action="store_true", help="stop every running job")
    return parser


def _compare_options() -> _Parser:
    compare = _Parser(add_help=False, allow_abbrev=False)
    compare.add_argument(
        "-n", dest="ranks", metavar="N,N", default="1,2,4", help="numbers of ranks (default 1,2,4)"
    )
    compare.add_argument(
        "--with",
        dest="systems",
        metavar="LIST",
        help="of mpi, direct, hybrid, queue, object, routed and lambda (default: all)",
    )
    compare.add_argument(
        "--repeat", metavar="R", default="3", help="runs of each, of which the median counts"
    )
    compare.add_argument(
        "--timeout", metavar="S", default="300", help="end a run after S seconds (default 300)"
    )
    compare.add_argument(
        "--memory", metavar="MB", default="1769", help="memory of a function in the forecast"
    )
    compare.add_argument("--json", metavar="FILE", help="write the results as JSON; - prints them")
    compare.add_argument("--html", metavar="FILE", help="write a page with plots")
    compare.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    compare.add_argument("--prices", metavar="FILE", help="price table like prices.json")
    compare.add_argument(
        "--figures", metavar="FILE", help="forecast by figures that `smpi calibrate` wrote"
    )
    compare.add_argument(
        "program", metavar="PROGRAM", nargs=argparse.REMAINDER, help="Python program, arguments"
    )
    return compare


def _add_deploy_options(deploy: argparse.ArgumentParser) -> None:
    deploy.add_argument(
        "--memory",
        metavar="MB[,MB]",
        default=str(names.DEFAULT_MEMORY_MB),
        help=f"one function per size (default {names.DEFAULT_MEMORY_MB}, which gives one virtual"
        " CPU)",
    )
    deploy.add_argument(
        "--arch", metavar="A", default="x86_64", help=f"{' or '.join(names.ARCHS)} (default x86_64)"
    )
    deploy.add_argument(
        "--python",
        metavar="V",
        help=f"{' or '.join(names.PYTHONS)} (default: the newest that is installed here, to compile"
        " byte code)",
    )
    deploy.add_argument(
        "--ranks",
        metavar="N",
        default="64",
        help="most ranks at a time on channels queue and hybrid: one queue per rank"
        " (default 64); unused queues cost nothing",
    )
    deploy.add_argument(
        "--jobs", metavar="N", default="16", help="most jobs at a time (default 16)"
    )
    _add_optional_parts(deploy)


def _add_optional_parts(deploy: argparse.ArgumentParser) -> None:
    """Add what a plain deploy does without."""
    deploy.add_argument(
        "--snapstart",
        action="store_true",
        help="start functions from a snapshot (SnapStart): faster; AWS charges for it",
    )
    deploy.add_argument(
        "--express",
        metavar="AZ|auto",
        help="add a directory bucket of S3 Express in this Availability Zone (use1-az4), or in"
        " every zone of the region that has S3 Express: small objects in milliseconds",
    )
    deploy.add_argument(
        "--wheel",
        metavar="FILE",
        help="wheel of this package for the architecture, if this machine has another one",
    )
    deploy.add_argument(
        "--read-bucket",
        metavar="NAME",
        action="append",
        default=[],
        help="let ranks read and list this bucket of yours; may be repeated",
    )
    deploy.add_argument(
        "--policy",
        metavar="ARN",
        action="append",
        default=[],
        help="give ranks this managed policy, too; may be repeated",
    )
    deploy.add_argument(
        "--dry-run",
        action="store_true",
        help="print resources, roles, idle cost and time; change nothing",
    )
    deploy.add_argument(
        "--force", action="store_true", help="deploy even while jobs run on the stack"
    )
    deploy.add_argument(
        "--emit",
        metavar="DIR",
        help="write the template and the zips to this folder; do not deploy",
    )


def _add_calibrate_options(calibrate: argparse.ArgumentParser) -> None:
    calibrate.add_argument(
        "-n", dest="ranks", metavar="N", default="4", help="number of ranks (default 4)"
    )
    calibrate.add_argument(
        "--memory",
        metavar="MB",
        help="memory of each rank, one of the deployed sizes (default: the nearest to a vCPU's)",
    )
    calibrate.add_argument(
        "--rounds", metavar="K", default="20", help="requests of each kind (default 20)"
    )
    calibrate.add_argument(
        "--yes", action="store_true", help="start without asking whether the price is accepted"
    )
    calibrate.add_argument("--output", metavar="FILE", help="also write the figures to a file")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smpi and return its exit code; errors are printed to standard error.

    Parameters
    ----------
    arguments
        Arguments of the command line, without the program's name; None for those of the process.

    Returns
    -------
    int
        What the command returned; EXIT_USAGE for an error of the user, 1 for any other; 130 after
        Ctrl-C, 141 if the reader of the output has closed it.
    """
    try:
        options = build_parser().parse_args(arguments)
        if getattr(options, "endpoint", None) is not None:
            from serverless_mpi.launch.emulator import check_endpoint

            check_endpoint(options.endpoint)
        done: int = globals()[f"_{options.command}"](options)
        return done
    except (ServerlessMPIError, MPIException) as error:
        _say(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _say(text: str) -> None:
    print(printable(f"smpi: {text}"), file=sys.stderr, flush=True)


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text}: not a whole number") from None


def _deploy(options: argparse.Namespace) -> int:
    from serverless_mpi.deploy import deploying

    return deploying.deploy(options, _say)


def _policy(options: argparse.Namespace) -> int:
    from serverless_mpi.deploy import policies

    make = policies.deployer if options.deployer else policies.runner
    print(json.dumps(make(options.stack, options.region or "*", options.account), indent=1))
    return 0


def _destroy(options: argparse.Namespace) -> int:
    from serverless_mpi.deploy import deploying

    return deploying.destroy(options, _say)


def _history(options: argparse.Namespace) -> History:
    from serverless_mpi.deploy import history

    return history.of_stack(options.stack, options.endpoint, options.region)


def _doctor(options: argparse.Namespace) -> int:
    from serverless_mpi.deploy import doctor
    from serverless_mpi.stack.stack import own_region

    wrong = False
    for finding in doctor.examine(
        options.stack, options.endpoint, own_region(options.region, options.endpoint)
    ):
        print(printable_lines(str(finding)), flush=True)
        wrong = wrong or finding.good is False
    return 1 if wrong else 0


def _calibrate(options: argparse.Namespace) -> int:
    from serverless_mpi.deploy import calibrate
    from serverless_mpi.stack import stack, stored_figures

    region = stack.own_region(options.region, options.endpoint)
    made = calibrate.Calibration.of(
        stack.Stack.find(options.stack, options.endpoint, region),
        _number(options.ranks, "-n"),
        None if options.memory is None else _number(options.memory, "--memory"),
        _number(options.rounds, "--rounds"),
        Prices.load(),
    )
    if options.output is not None and not Path(options.output).absolute().parent.is_dir():
        raise UsageError(f"--output {options.output}: its folder does not exist")
    _say(made.price)
    if not options.yes and not _accepted():
        raise UsageError("not started; --yes accepts the price")
    figures, times = made.run()
    for line in calibrate.table(figures, times):
        print(printable(line))
    stored_figures.write(made.stack, figures)
    if options.output is not None:
        try:
            Path(options.output).write_text(to_json(figures) + "\n")
        except OSError as error:
            raise UsageError(f"--output {options.output}: {error.strerror}") from error
    _say(f"stored with stack {options.stack}: jobs on it, and --figures stack, use these figures")
    return 0


def _accepted() -> bool:
    """Ask for consent, where there is a terminal to ask at."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    sys.stderr.write("smpi: start it? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _hello(options: argparse.Namespace) -> int:
    from serverless_mpi.launch import cli

    words = [
        "--platform",
        "lambda",
        "--stack",
        options.stack,
        "-n",
        options.ranks,
        "--stats",
        "text",
    ]
    words += ["--region", options.region] if options.region else []
    words += ["--endpoint", options.endpoint] if options.endpoint else []
    return cli.main([*words, "-m", "serverless_mpi.launch.hello"])


def _logs(options: argparse.Namespace) -> int:
    rank = None if options.rank is None else _number(options.rank, "--rank")
    for line in _history(options).logs(options.job, rank, options.follow):
        print(printable(line), flush=True)
    return 0


def _jobs(options: argparse.Namespace) -> int:
    jobs = _history(options).jobs()
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.start["began"]))
        start, programs = job.start, " : ".join(job.start["program"])
        print(
            printable(
                f"{job.job_id}  {began}  -n {start['size']} {start['channel']}"
                f" {start['memory_mb']} MB  {programs}"
            )
        )
        for line in job.state.splitlines():
            print(printable(f"    {line}"))
    if not jobs:
        _say(f"stack {options.stack} ran no job in the last day")
    return 0


def _cost(options: argparse.Namespace) -> int:

    found = _history(options).bill(options.job, Prices.load(options.prices))
    print(json.dumps(found) if options.json else printable_lines(bill.render(found)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from serverless_mpi.compare import command

    return command.run(options)


def _clean(options: argparse.Namespace) -> int:
    history = _history(options)
    wanted = [history.job(job_id) for job_id in options.job] or history.jobs()
    left = 0
    for job in wanted:
        ended = job.end is not None or job.state.startswith("all ranks ended")
        if not ended and not options.job and not options.all and "it runs" in job.state:
            _say(f"job {job.job_id}: {job.state}; `smpi clean {job.job_id}` stops it")
            left += 1
            continue
        stopped = history.stop(job.job_id)
        count = history.forget(job.job_id)
        _say(
            f"job {job.job_id}: "
            + ("" if ended else "stopped; " if stopped else "asked to stop; ")
            + f"{count} objects removed"
        )
    if not wanted:
        _say("there is nothing to clean")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
