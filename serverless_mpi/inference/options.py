"""The command line of smpi-infer: its commands, and their options as records with defaults.

`parser` defines the command line; `commands` runs the commands. Code behind the command line
receives a frozen record (`SourceOptions`, `RunOptions`, `ServeOptions`) and not argparse's
namespace, so that mypy checks every name and a caller can make one without a command line. Each
default is written once, in the record; `parser` reads it from there.

If you add an option that a worker needs, add a field of the same name to the record of its command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import NoReturn, TypeVar

from serverless_mpi import __version__
from serverless_mpi.errors import UsageError

_EPILOG = """\
examples:
  smpi-infer run --images images.tsv                     one worker in this process
  smpi-infer run -n 4 --channel queue --report run.html  four workers, and a page with plots
  mpirun -n 4 smpi-infer run                             four workers under a real MPI
  smpi-infer store model/ -n 4                           write a model in four parts ...
  smpi-infer run --store model/                          ... and run it, each worker loads its part
  smpi-infer plan --samples 10000                        the cheapest and the fastest way to run
  smpi-infer serve --store model/ --socket s &           keep workers warm ...
  smpi-infer query --socket s images.tsv                 ... and send them images

smpi-infer COMMAND --help lists the options of a command.
"""

PRICES_HELP = "price table, in the format of the package's prices.json (default: that file)"
Options = TypeVar("Options", bound="SourceOptions")


@dataclass(frozen=True)
class SourceOptions:
    """The model, the partition and the images of a command.

    Attributes
    ----------
    net, neurons, layers, bias, seed
        The network, unless `store` is given; `bias` None: the network's own.
    method, partition
        How neurons are assigned to parts: a method's name, or a file.
    store, endpoint, region
        The stored model, and the S3 service of s3:// URLs.
    images, samples, input
        A file or s3:// URL; how many of its images (None: all); a stored input.
    memory
        Memory of a worker in MiB; None for the platform's largest.
    """

    net: str = "radix"
    neurons: int = 1024
    layers: int = 120
    bias: float | None = None
    seed: int = 0
    method: str | None = None
    partition: str | None = None
    store: str | None = None
    endpoint: str | None = None
    region: str = "us-east-1"
    images: str | None = None
    samples: int | None = None
    input: str | None = None
    memory: int | None = None

    @classmethod
    def of(cls: type[Options], namespace: argparse.Namespace) -> Options:
        """Return the record of parsed arguments.

        Parameters
        ----------
        namespace
            What `parser` returned; options that the command lacks get their default.
        """
        given = vars(namespace)
        return cls(
            **{field.name: given[field.name] for field in fields(cls) if field.name in given}
        )


@dataclass(frozen=True)
class WorkerOptions(SourceOptions):
    """The workers of a job: number, channel, platform and limits.

    Attributes
    ----------
    ranks
        Number of workers; None: the parts of the store, or 1.
    channel, platform, branching, stats, prices
        As in smpirun.
    timeout
        Seconds after which the job is stopped; None for never.
    """

    ranks: int | None = None
    channel: str | None = None
    platform: str = "local"
    branching: int | None = None
    timeout: float | None = None
    stats: str = "none"
    prices: str | None = None


@dataclass(frozen=True)
class RunOptions(WorkerOptions):
    """`smpi-infer run`.

    Attributes
    ----------
    replicas
        Copies of the model, each with an equal share of the workers and of the samples.
    batches
        Number of batches that a replica's samples are cut into; None: as the memory requires.
    accumulate
        Multiply own rows while those of other ranks are in transit.
    plan
        "auto" if the planner chooses the numbers that are not given.
    output, report
        Files for the answer and for reports.
    categories, check
        Compare the answer with a file, or with the serial kernel.
    top
        How many of the largest activations of each image the answer has.
    merge
        "auto" to compute equal samples once, where a search finds some; or "off".
    """

    replicas: int = 1
    batches: int | None = None
    accumulate: bool = False
    plan: str | None = None
    output: str | None = None
    report: Sequence[str] = ()
    categories: str | None = None
    check: bool = False
    top: int = 0
    merge: str = "off"

    @property
    def whole(self) -> bool:
        """Whether the output of every neuron is written."""
        return self.output is not None and self.output.endswith(".npy")


@dataclass(frozen=True)
class ServeOptions(WorkerOptions):
    """`smpi-infer serve`.

    Attributes
    ----------
    socket
        Path of the Unix socket.
    lanes
        Number of queries that are computed concurrently.
    queue
        Number of queries that may wait.
    top
        How many of the largest activations of each active image an answer has.
    """

    socket: str = ""
    lanes: int = 2
    queue: int = 16
    top: int = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number"  # argparse names the type in "invalid ... value"
    return number


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


_positive.__name__ = "number"


def parser() -> argparse.ArgumentParser:
    """Return the parser of `smpi-infer` with all its commands."""
    top = _Parser(
        prog="smpi-infer",
        description="Inference with sparse deep neural networks on many workers.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for name, summary, add_options in (
        ("partition", "assign neurons to parts, and report balance and traffic", _add_partition),
        ("store", "write a model in parts to a folder or s3://bucket/prefix", _add_store),
        ("run", "run images through a model on one or more workers", _add_run),
        ("plan", "predict time and cost of each deployment, and name the best", _add_plan),
        ("serve", "answer queries with workers that stay warm", _add_serve),
        ("query", "send images to a running service", _add_query),
        ("report", "show the report of a run from its JSON file", _add_report),
    ):
        description = summary[0].upper() + summary[1:] + "."
        add_options(
            commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        )
    return top


# --- commands -------------------------------------------------------------------------------------


def _add_partition(command: argparse.ArgumentParser) -> None:
    _add_network(command)
    _add_cut(command, ranks=True)
    command.add_argument(
        "-o", "--output", metavar="FILE", help="write the partition, for `store --partition`"
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_store(command: argparse.ArgumentParser) -> None:
    _add_network(command)
    _add_cut(command, ranks=True)
    _add_s3(command)
    command.add_argument("store", metavar="STORE", help="a folder, or s3://bucket/prefix")
    _add_images(command)
    command.add_argument(
        "--input", metavar="NAME", help="also store the images in parts, under this name"
    )
    command.add_argument(
        "--make-bucket", action="store_true", help="create the bucket if it does not exist"
    )


def _add_run(command: argparse.ArgumentParser) -> None:
    _add_workers(command).add_argument(
        "--replicas",
        type=_at_least(1),
        default=RunOptions.replicas,
        metavar="R",
        help="copies of the model: each has N / R workers and 1/R of the samples "
        "(default %(default)s)",
    )
    _add_source(command)
    _add_images(command, stored=True)
    _add_answer(command)
    command.add_argument(
        "--report",
        metavar="FILE",
        action="append",
        default=[],
        help="write times, traffic and cost: .json, .html (with plots) or .txt; may be repeated",
    )
    command.add_argument(
        "--categories",
        metavar="FILE",
        help="the expected answer, one image number per line; exit with code 1 if it differs",
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="compare the answer with the serial kernel's to the last bit; "
        "exit with code 1 if it differs",
    )
    command.add_argument(
        "--merge",
        choices=("auto", "off"),
        default=RunOptions.merge,
        help="auto: search for samples whose activations have become equal, and compute them once, "
        "with the same bits; pays in deep networks that saturate (default %(default)s)",
    )
    command.add_argument(
        "--plan",
        choices=("auto",),
        help="let the planner choose the number of workers and whatever else is not given",
    )
    command.add_argument(
        "--batches",
        type=_at_least(1),
        metavar="B",
        help="cut the samples into B batches (default: as few as fit the memory)",
    )
    command.add_argument(
        "--accumulate",
        action="store_true",
        help="multiply own rows while others are in transit; "
        "the last bits of the sums then depend on the partition",
    )


def _add_answer(command: argparse.ArgumentParser) -> None:
    """Add what the answer of a run has, and its file."""
    command.add_argument(
        "--output",
        metavar="FILE",
        help="write the answer: categories and scores to .json, the --top activations of every "
        "image to .csv, all outputs to .npy, else one category per line",
    )
    command.add_argument(
        "--top",
        type=_at_least(1),
        default=RunOptions.top,
        metavar="K",
        help="also print and write the K largest outputs of each image; neurons count from 0",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_source(command)
    _add_images(command, stored=True)
    command.add_argument(
        "--platform", metavar="NAME", default="lambda", help="lambda or local (default %(default)s)"
    )
    command.add_argument(
        "--channel", metavar="NAME", action="append", help="only this channel; may be repeated"
    )
    command.add_argument(
        "--memory", metavar="MB", type=_at_least(1), help="memory limit of a worker"
    )
    command.add_argument(
        "--max-workers",
        metavar="N",
        type=_at_least(1),
        default=256,
        help="at most N workers (default %(default)s)",
    )
    command.add_argument(
        "--rate",
        metavar="EDGES",
        type=_positive,
        help="speed of a vCPU, in nonzeros x active samples per second",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure that speed here, and with some of the images how many samples stay active",
    )
    command.add_argument(
        "--figures",
        metavar="FILE",
        help="figures of AWS instead of the package's: a file that `smpi calibrate --output` wrote,"
        " or the word stack for those of the deployed stack",
    )
    command.add_argument(
        "--stack",
        metavar="NAME",
        default="smpi",
        help="the stack of --figures stack (default %(default)s)",
    )
    command.add_argument(
        "--all", action="store_true", help="print every deployment, not only the best of each kind"
    )
    command.add_argument("--json", action="store_true", help="print as JSON")
    command.add_argument("--prices", metavar="FILE", help=PRICES_HELP)


def _add_serve(command: argparse.ArgumentParser) -> None:
    _add_workers(command)
    _add_source(command)
    command.add_argument(
        "--socket",
        metavar="PATH",
        required=True,
        help="Unix socket to listen on; only its owner can connect",
    )
    command.add_argument(
        "--lanes",
        metavar="K",
        type=_at_least(1),
        default=ServeOptions.lanes,
        help="queries computed at the same time (default %(default)s)",
    )
    command.add_argument(
        "--queue",
        metavar="K",
        type=_at_least(1),
        default=ServeOptions.queue,
        help="queries that may wait; further ones are refused (default %(default)s)",
    )
    command.add_argument(
        "--top",
        type=_at_least(1),
        default=ServeOptions.top,
        metavar="K",
        help="answers also have the K largest outputs of each active image",
    )


def _add_query(command: argparse.ArgumentParser) -> None:
    command.add_argument("--socket", metavar="PATH", required=True, help="socket of the service")
    command.add_argument("images", metavar="FILE", nargs="*", help="images: files or s3:// URLs")
    command.add_argument(
        "--input",
        metavar="NAME",
        action="append",
        default=[],
        help="images in the service's store; may be repeated",
    )
    command.add_argument(
        "--samples", type=_at_least(1), metavar="S", help="only the first S images"
    )
    command.add_argument(
        "--json", action="store_true", help="print complete answers, one JSON object per line"
    )
    command.add_argument(
        "--status", action="store_true", help="print the counters of the service as JSON"
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "record", metavar="FILE.json", help="report written by `run --report FILE.json`"
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write it as .html (with plots), .txt or .json (default: print text)",
    )


# --- groups of options that several commands share ------------------------------------------------


def _add_network(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("network (unless a store is given)")
    group.add_argument(
        "--net",
        default=SourceOptions.net,
        metavar="NET",
        help="radix: the Graph Challenge's network; random: random weights that do not saturate; "
        "a folder of layer files as in the challenge: TSV, npz or MatrixMarket; or a folder with "
        "model.json, which names a matrix, bias and activation for each layer "
        "(default %(default)s)",
    )
    group.add_argument(
        "--neurons",
        type=_at_least(1),
        default=SourceOptions.neurons,
        metavar="N",
        help="neurons per layer (default %(default)s)",
    )
    group.add_argument(
        "--layers",
        type=_at_least(1),
        default=SourceOptions.layers,
        metavar="L",
        help="number of layers (default %(default)s)",
    )
    group.add_argument(
        "--bias",
        type=float,
        metavar="B",
        help="bias of every layer (default: the challenge's; 0 for --net random)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=SourceOptions.seed,
        metavar="S",
        help="seed of random networks and partitions (default %(default)s)",
    )


def _add_cut(command: argparse.ArgumentParser, *, ranks: bool) -> None:
    group = command.add_argument_group("partition")
    if ranks:
        group.add_argument(
            "-n",
            dest="ranks",
            type=_at_least(1),
            metavar="P",
            help="number of parts (default 4, or that of --partition)",
        )
    group.add_argument(
        "--method",
        metavar="M",
        help="how neurons are assigned to parts; `smpi-infer partition --method list` lists the "
        "methods (default greedy; block for --net random, which has no locality to preserve)",
    )
    group.add_argument(
        "--partition", metavar="FILE", help="partition written by `smpi-infer partition -o FILE`"
    )


def _add_s3(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("service behind s3:// URLs")
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="a running AWS emulator, or `aws` for AWS itself, which bills its requests",
    )
    group.add_argument(
        "--region",
        metavar="R",
        default=SourceOptions.region,
        help="AWS region (default %(default)s)",
    )


def _add_source(command: argparse.ArgumentParser) -> None:
    """Add network, partition, store, and the service of the store."""
    _add_network(command)
    _add_cut(command, ranks=False)
    command.add_argument_group("store").add_argument(
        "--store",
        metavar="STORE",
        help="a model written by `smpi-infer store`: a folder, or s3://bucket/prefix",
    )
    _add_s3(command)


def _add_images(command: argparse.ArgumentParser, *, stored: bool = False) -> None:
    group = command.add_argument_group("images")
    group.add_argument(
        "--images",
        metavar="FILE",
        help="Graph Challenge TSV, or npz; a file or s3:// URL "
        "(default: the bundled handwritten digits)",
    )
    group.add_argument("--samples", type=_at_least(1), metavar="S", help="only the first S images")
    if stored:
        group.add_argument(
            "--input", metavar="NAME", help="images stored by `smpi-infer store --input NAME`"
        )


def _add_workers(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of workers, and return their group."""
    group = command.add_argument_group(
        "workers (a process started by smpirun or mpirun is one of its workers)"
    )
    group.add_argument(
        "-n",
        dest="ranks",
        type=_at_least(1),
        metavar="N",
        help="number of workers (default: the parts of the store, or 1)",
    )
    group.add_argument("--channel", metavar="NAME", help="channel between workers, as in smpirun")
    group.add_argument(
        "--platform",
        metavar="NAME",
        default=WorkerOptions.platform,
        help="where workers run, as in smpirun (default %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=_at_least(1),
        metavar="MB",
        help="memory limit of a worker; on lambda, the memory of its function",
    )
    group.add_argument(
        "--branching",
        type=_at_least(1),
        metavar="B",
        help="start workers as a tree: each starts B others",
    )
    group.add_argument(
        "--timeout", type=_positive, metavar="S", help="stop after S seconds, with exit code 124"
    )
    group.add_argument(
        "--stats",
        choices=("text", "json", "none"),
        default=WorkerOptions.stats,
        help="print smpirun's table of all requests (default %(default)s)",
    )
    group.add_argument("--prices", metavar="FILE", help=PRICES_HELP)
    return group
