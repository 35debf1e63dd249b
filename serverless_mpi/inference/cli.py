"""smpi-infer: the command line.  Here is only what is typed, and which room it goes to.

`run` and `serve` start their own ranks through smpirun's launcher, with this same command line; in a process that is a
rank already, of smpirun or of mpirun, they do a rank's work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any, NoReturn

from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.job import is_rank
from serverless_mpi.launch.base import EXIT_USAGE

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
        prog="smpi-infer", description="Sparse-network inference over many workers.", epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, told: str, *groups: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".", allow_abbrev=False)
        for group in groups:
            group(made)
        return made

    one = command("partition", "deal the neurons out to parts, and report balance and communication", _network, _cut)
    one.add_argument("-o", "--output", metavar="FILE", help="write the partition, for `store --partition`")
    one.add_argument("--json", action="store_true", help="print the report as JSON")

    one = command("store", "write a model in parts to a folder or s3://bucket/prefix", _network, _cut, _place)
    one.add_argument("store", metavar="PLACE", help="a folder, or s3://bucket/prefix")
    _images(one)
    one.add_argument("--input", metavar="NAME", help="store the images too, in parts, under this name")
    one.add_argument("--make-bucket", action="store_true", help="make the bucket, if it is missing")

    one = command("run", "run images through a model, on as many workers as wanted", _job, _source, _images)
    one.add_argument("--output", metavar="FILE", help="the answer: .json has categories and scores, else categories, one a line")
    one.add_argument("--report", metavar="FILE", action="append", default=[], help="what it took: .json, .html (plots) or .txt; may be repeated")
    one.add_argument("--categories", metavar="FILE", help="the right answer, an image number a line; another one is exit code 1")
    one.add_argument("--check", action="store_true", help="compare with the serial kernel to the last bit; another answer is exit code 1")
    one.add_argument("--plan", choices=("auto",), help="take the number of workers, and what else is not given, from `plan`")
    one.add_argument("--batches", type=_above(1), metavar="B", help="cut the samples into B batches (default: as the memory asks)")

    one.add_argument(
        "--accumulate", action="store_true",
        help="multiply own rows while others' are on their way: the last bits of the sums then depend on the partition",
    )

    one = command("plan", "predict seconds and dollars of every way to run, and name the best", _source, _images)
    one.add_argument("--platform", metavar="NAME", default="lambda", help="lambda or local (default lambda)")
    one.add_argument("--channel", metavar="NAME", action="append", help="only this channel; may be repeated")
    one.add_argument("--memory", metavar="MB", type=_above(1), help="a worker has no more than this")
    one.add_argument("--max-workers", metavar="N", type=_above(1), default=256, help="at most N workers (default 256)")
    one.add_argument("--rate", metavar="EDGES", type=_positive, help="nonzeros x living samples that a vCPU does in a second")
    one.add_argument("--measure", action="store_true", help="time the kernel here, and run some of the images to see how they thin out")
    one.add_argument("--all", action="store_true", help="print every way, not the best of each kind")
    one.add_argument("--json", action="store_true", help="print as JSON")
    one.add_argument("--prices", metavar="FILE", help="a price table like the package's prices.json")

    one = command("serve", "answer queries with workers that stay warm", _workers, _source)
    one.add_argument("--socket", metavar="PATH", required=True, help="Unix socket to listen on; only its owner may connect")
    one.add_argument("--lanes", metavar="K", type=_above(1), default=2, help="queries computed at the same time (default 2)")
    one.add_argument("--queue", metavar="K", type=_above(1), default=16, help="queries that may wait; further ones are told so (default 16)")

    one = command("query", "ask a service")
    one.add_argument("--socket", metavar="PATH", required=True, help="of the service")
    one.add_argument("images", metavar="FILE", nargs="*", help="images: files or s3:// URLs")
    one.add_argument("--input", metavar="NAME", action="append", default=[], help="images in the service's store; may be repeated")
    one.add_argument("--samples", type=_above(1), metavar="S", help="only the first S images")
    one.add_argument("--json", action="store_true", help="print whole answers, a line of JSON each")
    one.add_argument("--status", action="store_true", help="print what the service has done, as JSON")

    one = command("report", "show what a run took, from its JSON")
    one.add_argument("record", metavar="FILE.json", help="of `run --report FILE.json`")
    one.add_argument("-o", "--output", metavar="FILE", help=".html (plots), .txt or .json (default: text on the terminal)")
    return whole


def _network(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("the network, unless it is stored")
    group.add_argument(
        "--net", default="radix", metavar="NET",
        help="radix, the Graph Challenge's; random, weights that do not saturate; or a folder of layers as the challenge has them, "
        "TSV, npz or MatrixMarket (default radix)",
    )
    group.add_argument("--neurons", type=_above(1), default=1024, metavar="N", help="of a layer (default 1024)")
    group.add_argument("--layers", type=_above(1), default=120, metavar="L", help="(default 120)")
    group.add_argument("--bias", type=float, metavar="B", help="of every layer (default: the challenge's; 0 for a random net)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the network, and of what is random in a partition (default 0)")


def _cut(into: argparse.ArgumentParser, ranks: bool = True) -> None:
    group = into.add_argument_group("the partition")
    if ranks:
        group.add_argument("-n", dest="ranks", type=_above(1), metavar="P", help="number of parts (default 4, or the file's)")
    group.add_argument(
        "--method", metavar="M",
        help="how neurons are dealt out: `smpi-infer partition --method list` names the ways (default greedy; block for a random net, "
        "which has nothing to keep together)",
    )
    group.add_argument("--partition", metavar="FILE", help="of `smpi-infer partition -o FILE`")


def _place(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("where s3:// is")
    group.add_argument("--endpoint", metavar="URL", help="an AWS emulator that runs already; aws for AWS itself, which bills its requests")
    group.add_argument("--region", metavar="R", default="us-east-1", help="AWS region (default us-east-1)")


def _source(into: argparse.ArgumentParser) -> None:
    _network(into)
    _cut(into, ranks=False)
    group = into.add_argument_group("the store")
    group.add_argument("--store", metavar="PLACE", help="a model that `smpi-infer store` wrote: a folder, or s3://bucket/prefix")
    if not any(action.dest == "endpoint" for action in into._actions):
        _place(into)


def _images(into: argparse.ArgumentParser) -> None:
    group = into.add_argument_group("the images")
    group.add_argument("--images", metavar="FILE", help="Graph Challenge TSV, or npz (default: scikit-learn's digits)")
    group.add_argument("--samples", type=_above(1), metavar="S", help="only the first S")
    if not any(action.dest == "store" and not action.option_strings for action in into._actions):
        group.add_argument("--input", metavar="NAME", help="images that lie in the store under this name")


def _job(into: argparse.ArgumentParser) -> None:
    group = _workers(into)
    group.add_argument("--replicas", type=_above(1), default=1, metavar="R", help="each has the whole model, in N / R parts, and 1/R of the samples (default 1)")


def _workers(into: argparse.ArgumentParser) -> Any:
    group = into.add_argument_group("the workers (a process that smpirun or mpirun started is one of theirs)")
    group.add_argument("-n", dest="ranks", type=_above(1), metavar="N", help="how many (default: the parts of the store, or 1)")
    group.add_argument("--channel", metavar="NAME", help="how they talk, as smpirun has it")
    group.add_argument("--platform", metavar="NAME", default="local", help="where they run, as smpirun has it (default local)")
    group.add_argument("--memory", type=_above(1), metavar="MB", help="a worker has no more than this; on lambda, its function's memory")
    group.add_argument("--branching", type=_above(1), metavar="B", help="each worker starts B others")
    group.add_argument("--timeout", type=_positive, metavar="S", help="stop after S seconds, with exit code 124")
    group.add_argument("--stats", choices=("text", "json", "none"), default="none", help="smpirun's own table of the whole job's requests")
    group.add_argument("--prices", metavar="FILE", help="a price table like the package's prices.json")
    _place(into)
    return group


# --- commands ---------------------------------------------------------------------------------------------------------


def _partition(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import partition, report, sources, store

    if options.method == "list":
        print("\n".join(partition.METHODS))
        return 0
    network = sources.network(options)
    cut = sources.cut_of(options, network, options.ranks)
    found = cut.report(network)
    if options.output:
        store.write_partition(options.output, cut, network)
    if options.json:
        print(json.dumps({"parts": cut.parts, "method": cut.method, "rows": found.rows, "pairs": found.pairs, "load": found.load}))
        return 0
    print(f"{network.name} network of {network.neurons} neurons, {network.layers} layers; {cut.parts} parts, {cut.method}")
    heads = ("", "rows sent a layer", "messages a layer", "load, most / mean")
    numbers: list[tuple[str, Any]] = [("mean", sum), ("least", min), ("most", max)]
    rows = []
    for name, of in numbers:
        own = [of(one) / (network.layers if of is sum else 1) for one in (found.rows, found.pairs, found.load)]
        rows.append((name, f"{own[0]:,.1f}", f"{own[1]:,.1f}", f"{own[2]:.3f}"))
    rows.append(("all", f"{sum(found.rows):,}", f"{found.messages:,}", ""))
    print(report.table(heads, rows))
    return 0


def _store(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import sources, store

    network = sources.network(options)
    cut = sources.cut_of(options, network, options.ranks)
    place = sources.opened(options, options.store)
    if options.make_bucket:
        place.make()
    shown = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if shown:
            sys.stderr.write(f"\rpart {done} of {total} " if done < total else "\r\033[K")

    images = None
    if options.input:
        images = sources.images(options, network.neurons)
        store.check_images(images, network.neurons)
    index = store.write_model(place, network, cut, bias=network.bias, name=network.name, progress=progress)
    print(f"{place.url}: {index.name} network of {index.neurons} neurons, {index.layers} layers, in {index.parts} parts, {index.nbytes:,} bytes")
    if images is not None:
        store.write_inputs(place, index, options.input, images)
        print(f"{place.url}: input {options.input}, {images.shape[1]} images")
    place.close()
    return 0


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from serverless_mpi.inference import sources, worker

    if not is_rank(os.environ):
        options, arguments = _settled(options, arguments)
    if is_rank(os.environ) or (options.ranks == 1 and options.platform == "local"):
        from serverless_mpi import MPI

        if sys.stderr.isatty():
            os.environ.setdefault(worker.ENV_TERMINAL, os.ttyname(sys.stderr.fileno()))
        return worker.run(MPI.COMM_WORLD, options)
    sources.check_paths(options)
    return _launched(options, ["run", *arguments], [worker.ENV_TERMINAL])


def _settled(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options with what was left open decided, and the arguments that say the same to the ranks.

    Raises
    ------
    UsageError
        A worker's memory would not be enough; the text names the number of parts that would fit.
    """
    from serverless_mpi import channels
    from serverless_mpi.inference import advice, plan, report, sources
    from serverless_mpi.inference.cost import BilledModel
    from serverless_mpi.metering import Prices

    for path in options.report:
        report.check_path(path)
    if options.check and options.accumulate:
        raise UsageError("--check compares the last bit, which --accumulate gives up: leave one of them away")
    if options.check and options.store:
        raise UsageError("--check needs the network itself, not a store: leave --store away")
    if options.input and not options.store:
        raise UsageError("--input names images in a store: give --store too")
    samples = sources.samples(options)
    work, stored = sources.describe(options, samples)
    place = plan.place(options.platform)
    if options.plan == "auto":
        sizes = [options.memory] if options.memory else None
        kept = [options.channel] if options.channel else None
        found = advice.survey(work, place, BilledModel(Prices.load(options.prices)), channels=kept, memory_sizes=sizes)
        if stored:
            found = [one for one in found if one.way.parts == stored]
        if not found:
            raise UsageError(f"no way that `plan` knows has the {stored} parts of {options.store}; leave --plan away")
        best = advice.advise(found, work)
        print(f"plan: {best.knee.way.name}, {best.knee.seconds:.3g} s, {best.knee.usd:.3g} dollars: {best.why}", file=sys.stderr)
        way = best.knee.way
        memory = way.memory_mb if options.platform == "lambda" else options.memory
        options = argparse.Namespace(**{**vars(options), "ranks": way.workers, "replicas": way.replicas, "memory": memory})
        options.channel = options.channel or way.channel
    ranks = options.ranks or (stored or 1) * options.replicas
    parts, left = divmod(ranks, options.replicas)
    if left or not parts:
        raise UsageError(f"{ranks} workers are not {options.replicas} replicas of equal size")
    if stored and parts != stored:
        raise UsageError(f"{options.store} is in {stored} parts; {options.replicas} replicas of it take {stored * options.replicas} workers, not {ranks}")
    if parts > work.neurons:
        raise UsageError(f"{work.neurons} neurons cannot be dealt out to {parts} workers; start at most {work.neurons} a replica")
    limit = options.memory or max(place.memory_sizes) // (ranks if options.platform == "local" else 1)
    plan.check_memory(work, parts, limit, place.base_mb)
    batches = options.batches or plan.batches(work, plan.Way(options.replicas, parts, None, limit), place.base_mb)
    options = argparse.Namespace(**{**vars(options), "ranks": ranks, "batches": batches, "channel": options.channel or channels.DEFAULT})
    decided = ["--replicas", str(options.replicas), "--batches", str(batches)]
    if options.memory:
        decided += ["--memory", str(options.memory)]
    return options, [*arguments, *decided]


def _launched(options: argparse.Namespace, arguments: Sequence[str], variables: Sequence[str] = ()) -> int:
    """Run the command in ranks of smpirun, whose exit code is returned."""
    from serverless_mpi.launch import cli

    words = ["-n", str(options.ranks), "--stats", options.stats, "--platform", options.platform, "--region", options.region]
    if options.endpoint and options.endpoint != "aws":
        words += ["--endpoint", options.endpoint]
    for name in ("channel", "branching", "timeout", "prices"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    if options.platform == "lambda" and options.memory:
        words += ["--memory", str(options.memory)]
    if options.platform == "local" and sys.stderr.isatty():
        words += ["-x", f"{variables[0]}={os.ttyname(sys.stderr.fileno())}"] if variables else []
    return cli.main([*words, "-m", "serverless_mpi.inference", *arguments])


def _plan(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import advice, measure, plan, report, sources
    from serverless_mpi.inference.cost import BilledModel
    from serverless_mpi.metering import Prices

    samples = sources.samples(options)
    work, _ = sources.describe(options, samples)
    place = plan.place(options.platform)
    if options.measure:
        if options.store:
            raise UsageError("--measure needs the network itself, not a store: leave --store away")
        network = sources.network(options)
        work, rate = measure.measured(work, network, sources.images(options, network.neurons), network.bias)
        place = replace(place, edges_s=rate)
    if options.rate:
        place = replace(place, edges_s=options.rate)
    model = BilledModel(Prices.load(options.prices))
    found = advice.survey(
        work, place, model, channels=options.channel, memory_limit_mb=options.memory or inf, max_workers=options.max_workers
    )
    best = advice.advise(found, work)
    named = {"cheapest": best.cheapest, "fastest": best.fastest, "knee": best.knee}
    if options.json:
        ways = {name: advice.as_dict(one) for name, one in named.items()}
        more = {"all": [advice.as_dict(one) for one in found]} if options.all else {}
        print(json.dumps({**ways, "why": best.why, "edges_s": place.edges_s, "living": list(work.living), **more}))
        return 0
    others = [(advice.kind(one), one) for one in found] if options.all else advice.best_of_kinds(found)
    print(f"{work.neurons:,} neurons, {work.layers:,} layers, {work.samples:,} images; {place.name}, {place.edges_s / 1e9:.2g} G living edges/s of a vCPU")
    print(report.table(("", *advice.HEADS), [(name, *advice.cells(one)) for name, one in [*named.items(), *others]]))
    print(f"knee: {best.knee.way.name}: {best.why}")
    return 0


def _serve(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from serverless_mpi.inference import plan, serve, sources

    if options.platform != "local":
        raise UsageError("serve is for this machine: nobody can connect to a function; use `smpi-infer run --platform lambda`")
    if not is_rank(os.environ):
        work, stored = sources.describe(options, 1)
        ranks = options.ranks or stored or 1
        if stored and ranks != stored:
            raise UsageError(f"{options.store} is in {stored} parts and takes {stored} workers, not {ranks}")
        limit = options.memory or max(plan.place("local").memory_sizes) // ranks
        plan.check_memory(work, ranks, limit)
        options.ranks = ranks
        if ranks > 1:
            return _launched(options, ["serve", *arguments])
    from serverless_mpi import MPI

    return serve.serve(MPI.COMM_WORLD, options)


def _query(options: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from serverless_mpi.inference import serve

    if options.status:
        print(json.dumps(serve.ask(options.socket, {"status": True})))
        return 0
    named: list[tuple[str, dict[str, Any]]] = [
        (path, {"images": path if path.startswith("s3://") else os.path.abspath(path)}) for path in options.images
    ]
    named += [(name, {"input": name}) for name in options.input]
    if not named:
        raise UsageError("query lacks a file of images, or --input NAME; see smpi-infer query --help")
    if options.samples:
        named = [(name, {**question, "samples": options.samples}) for name, question in named]
    code = 0
    with ThreadPoolExecutor(len(named)) as pool:
        for (name, _), reply in zip(named, pool.map(lambda one: serve.ask(options.socket, one[1]), named), strict=True):
            if "error" in reply:
                print(f"smpi-infer: {name}: {reply['error']}", file=sys.stderr, flush=True)
                code = 1
            elif options.json:
                print(json.dumps(reply))
            else:
                shown = " ".join(map(str, reply["categories"][:8]))
                more = " ..." if len(reply["categories"]) > 8 else ""
                print(f"{name}: {len(reply['categories'])} of {reply['images']} images have an active output: {shown}{more}; checksum {reply['checksum']}; {reply['seconds']:.3f} s")
    return code


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from serverless_mpi.inference import report

    record = report.read(options.record)
    if not options.output:
        print(report.text(record))
        return 0
    report.check_path(options.output)
    Path(options.output).write_bytes(report.rendered(options.output, record))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smpi-infer; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parser().parse_args(arguments)
        if options.command in ("partition", "store") and options.ranks is None:
            options.ranks = _parts_of(options)
        if options.command == "run":
            return _run(options, arguments[1:])
        if options.command == "serve":
            return _serve(options, arguments[1:])
        return {"partition": _partition, "store": _store, "plan": _plan, "query": _query, "report": _report}[options.command](options)
    except (ServerlessMPIError, MPIException, ValueError, OSError) as error:
        print(f"smpi-infer: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, (UsageError, ValueError)) else 1


def _parts_of(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import sources, store

    return store.read_partition(options.partition, sources.network(options)).parts if options.partition else 4
