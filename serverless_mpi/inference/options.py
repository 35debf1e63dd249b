"""What can be typed after smpi-infer: commands, options and their defaults.  What they do is `cli`'s."""

from __future__ import annotations

import argparse
from math import inf
from typing import Any, NoReturn

from serverless_mpi import __version__
from serverless_mpi.errors import UsageError

_EPILOG = """\
examples:
  smpi-infer run --images images.tsv                            one worker, here
  smpi-infer run -n 4 --channel queue --report run.html         four, and a page of where the time went
  mpirun -n 4 smpi-infer run                                    the same over a real MPI
  smpi-infer store model/ -n 4 && smpi-infer run --store model/ written once, loaded in parts
  smpi-infer plan --samples 10000                               what would be cheapest, fastest, and the best of both
  smpi-infer serve --store model/ --socket s & smpi-infer query --socket s images.tsv

Each command explains itself: smpi-infer run --help.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _above(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "whole number"
    return number


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


_positive.__name__ = "number"


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = _Parser(
        prog="smpi-infer",
        description="Sparse-network inference over many workers.",
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def command(name: str, told: str, *groups: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=told, description=told[0].upper() + told[1:] + ".", allow_abbrev=False
        )
        for group in groups:
            group(made)
        return made

    one = command(
        "partition",
        "deal the neurons out to parts, and report balance and communication",
        _network,
        _cut,
    )
    one.add_argument(
        "-o", "--output", metavar="FILE", help="write the partition, for `store --partition`"
    )
    one.add_argument("--json", action="store_true", help="print the report as JSON")

    one = command(
        "store", "write a model in parts to a folder or s3://bucket/prefix", _network, _cut, _place
    )
    one.add_argument("store", metavar="PLACE", help="a folder, or s3://bucket/prefix")
    _images(one)
    one.add_argument(
        "--input", metavar="NAME", help="store the images too, in parts, under this name"
    )
    one.add_argument("--make-bucket", action="store_true", help="make the bucket, if it is missing")

    one = command(
        "run", "run images through a model, on as many workers as wanted", _job, _source, _images
    )
    one.add_argument(
        "--output",
        metavar="FILE",
        help="the answer: .json has categories and scores, else categories, one a line",
    )
    one.add_argument(
        "--report",
        metavar="FILE",
        action="append",
        default=[],
        help="what it took: .json, .html (plots) or .txt; may be repeated",
    )
    one.add_argument(
        "--categories",
        metavar="FILE",
        help="the right answer, an image number a line; another one is exit code 1",
    )
    one.add_argument(
        "--check",
        action="store_true",
        help="compare with the serial kernel to the last bit; another answer is exit code 1",
    )
    one.add_argument(
        "--plan",
        choices=("auto",),
        help="take the number of workers, and what else is not given, from `plan`",
    )
    one.add_argument(
        "--batches",
        type=_above(1),
        metavar="B",
        help="cut the samples into B batches (default: as the memory asks)",
    )

    one.add_argument(
        "--accumulate",
        action="store_true",
        help="multiply own rows while others' are on their way: the last bits of the sums then depend on the partition",
    )

    one = command(
        "plan",
        "predict seconds and dollars of every way to run, and name the best",
        _source,
        _images,
    )
    one.add_argument(
        "--platform", metavar="NAME", default="lambda", help="lambda or local (default lambda)"
    )
    one.add_argument(
        "--channel", metavar="NAME", action="append", help="only this channel; may be repeated"
    )
    one.add_argument(
        "--memory", metavar="MB", type=_above(1), help="a worker has no more than this"
    )
    one.add_argument(
        "--max-workers",
        metavar="N",
        type=_above(1),
        default=256,
        help="at most N workers (default 256)",
    )
    one.add_argument(
        "--rate",
        metavar="EDGES",
        type=_positive,
        help="nonzeros x living samples that a vCPU does in a second",
    )
    one.add_argument(
        "--measure",
        action="store_true",
        help="time the kernel here, and run some of the images to see how they thin out",
    )
    one.add_argument(
        "--all", action="store_true", help="print every way, not the best of each kind"
    )
    one.add_argument("--json", action="store_true", help="print as JSON")
    one.add_argument(
        "--prices", metavar="FILE", help="a price table like the package's prices.json"
    )

    one = command("serve", "answer queries with workers that stay warm", _workers, _source)
    one.add_argument(
        "--socket",
        metavar="PATH",
        required=True,
        help="Unix socket to listen on; only its owner may connect",
    )
    one.add_argument(
        "--lanes",
        metavar="K",
        type=_above(1),
        default=2,
        help="queries computed at the same time (default 2)",
    )
    one.add_argument(
        "--queue",
        metavar="K",
        type=_above(1),
        default=16,
        help="queries that may wait; further ones are told so (default 16)",
    )

    one = command("query", "ask a service")
    one.add_argument("--socket", metavar="PATH", required=True, help="of the service")
    one.add_argument("images", metavar="FILE", nargs="*", help="images: files or s3:// URLs")
    one.add_argument(
        "--input",
        metavar="NAME",
        action="append",
        default=[],
        help="images in the service's store; may be repeated",
    )
    one.add_argument("--samples", type=_above(1), metavar="S", help="only the first S images")
    one.add_argument("--json", action="store_true", help="print whole answers, a line of JSON each")
    one.add_argument(
        "--status", action="store_true", help="print what the service has done, as JSON"
    )

    one = command("report", "show what a run took, from its JSON")
    one.add_argument("record", metavar="FILE.json", help="of `run --report FILE.json`")
    one.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=".html (plots), .txt or .json (default: text on the terminal)",
    )
    return whole


def _network(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("the network, unless it is stored")
    group.add_argument(
        "--net",
        default="radix",
        metavar="NET",
        help="radix, the Graph Challenge's; random, weights that do not saturate; or a folder of layers as the challenge has them, "
        "TSV, npz or MatrixMarket (default radix)",
    )
    group.add_argument(
        "--neurons", type=_above(1), default=1024, metavar="N", help="of a layer (default 1024)"
    )
    group.add_argument("--layers", type=_above(1), default=120, metavar="L", help="(default 120)")
    group.add_argument(
        "--bias",
        type=float,
        metavar="B",
        help="of every layer (default: the challenge's; 0 for a random net)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the network, and of what is random in a partition (default 0)",
    )


def _cut(into: argparse.ArgumentParser, ranks: bool = True) -> None:
    group = into.add_argument_group("the partition")
    if ranks:
        group.add_argument(
            "-n",
            dest="ranks",
            type=_above(1),
            metavar="P",
            help="number of parts (default 4, or the file's)",
        )
    group.add_argument(
        "--method",
        metavar="M",
        help="how neurons are dealt out: `smpi-infer partition --method list` names the ways (default greedy; block for a random net, "
        "which has nothing to keep together)",
    )
    group.add_argument("--partition", metavar="FILE", help="of `smpi-infer partition -o FILE`")


def _place(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("where s3:// is")
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="an AWS emulator that runs already; aws for AWS itself, which bills its requests",
    )
    group.add_argument(
        "--region", metavar="R", default="us-east-1", help="AWS region (default us-east-1)"
    )


def _source(into: argparse.ArgumentParser) -> None:
    _network(into)
    _cut(into, ranks=False)
    group = into.add_argument_group("the store")
    group.add_argument(
        "--store",
        metavar="PLACE",
        help="a model that `smpi-infer store` wrote: a folder, or s3://bucket/prefix",
    )
    if not any(action.dest == "endpoint" for action in into._actions):
        _place(into)


def _images(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("the images")
    group.add_argument(
        "--images",
        metavar="FILE",
        help="Graph Challenge TSV, or npz (default: the bundled handwritten digits)",
    )
    group.add_argument("--samples", type=_above(1), metavar="S", help="only the first S")
    if not any(action.dest == "store" and not action.option_strings for action in into._actions):
        group.add_argument(
            "--input", metavar="NAME", help="images that lie in the store under this name"
        )


def _job(into: argparse.ArgumentParser) -> None:
    group = _workers(into)
    group.add_argument(
        "--replicas",
        type=_above(1),
        default=1,
        metavar="R",
        help="each has the whole model, in N / R parts, and 1/R of the samples (default 1)",
    )


def _workers(into: argparse.ArgumentParser) -> Any:
    group = into.add_argument_group(
        "the workers (a process that smpirun or mpirun started is one of theirs)"
    )
    group.add_argument(
        "-n",
        dest="ranks",
        type=_above(1),
        metavar="N",
        help="how many (default: the parts of the store, or 1)",
    )
    group.add_argument("--channel", metavar="NAME", help="how they talk, as smpirun has it")
    group.add_argument(
        "--platform",
        metavar="NAME",
        default="local",
        help="where they run, as smpirun has it (default local)",
    )
    group.add_argument(
        "--memory",
        type=_above(1),
        metavar="MB",
        help="a worker has no more than this; on lambda, its function's memory",
    )
    group.add_argument(
        "--branching", type=_above(1), metavar="B", help="each worker starts B others"
    )
    group.add_argument(
        "--timeout", type=_positive, metavar="S", help="stop after S seconds, with exit code 124"
    )
    group.add_argument(
        "--stats",
        choices=("text", "json", "none"),
        default="none",
        help="smpirun's own table of the whole job's requests",
    )
    group.add_argument(
        "--prices", metavar="FILE", help="a price table like the package's prices.json"
    )
    _place(into)
    return group
