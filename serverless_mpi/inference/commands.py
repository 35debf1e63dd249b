"""The commands of smpi-infer, behind the command line that `options` defines.

`run` and `serve` start their own ranks: they make a `launch.base.Plan` and pass it to the launcher
of the platform. The program of that plan is `smpi-infer` again, with the same arguments and the
numbers that were decided here (`Grid.arguments`), so that every rank works with the same numbers.
In a process that is a rank already, of smpirun or of mpirun, they do a rank's work instead.

Pitfall: `MPI` is imported only in a process that does a rank's work. Under mpirun its import
initializes the real MPI, and elsewhere it makes the process a rank.

If you add a command, write a function that takes argparse's namespace, put it into `COMMANDS`, or
into `JOBS` if its ranks need the arguments again, and add its options to `options.parser`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from serverless_mpi import channels, launch
from serverless_mpi.aws.figures import origin
from serverless_mpi.aws.limits import AWS, Figures
from serverless_mpi.env import ENV_TERMINAL
from serverless_mpi.errors import UsageError
from serverless_mpi.inference import (
    advice,
    files,
    measure,
    page,
    partition,
    plan,
    plan_report,
    report,
    serve,
    sources,
    store,
    worker,
)
from serverless_mpi.inference.communicator import Communicator
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.inference.options import RunOptions, ServeOptions, SourceOptions, WorkerOptions
from serverless_mpi.job import is_rank
from serverless_mpi.launch import figures as stack_figures
from serverless_mpi.launch.base import Plan, Program
from serverless_mpi.metering import Prices

MODULE = "serverless_mpi.inference"  # the program of the ranks
DEFAULT_PARTS = 4  # number of parts in `partition` and `store`


# --- partition, store -----------------------------------------------------------------------------


def _partition(options: argparse.Namespace) -> int:

    if options.method == "list":
        print("\n".join(partition.METHODS))
        return 0
    source = SourceOptions.of(options)
    network = sources.network(source)
    cut = sources.cut_of(source, network, options.ranks or _default_parts(source))
    cost = cut.report(network)
    if options.output:
        store.write_partition(options.output, cut, network)
    if options.json:
        facts = {"parts": cut.parts, "method": cut.method}
        print(json.dumps({**facts, "rows": cost.rows, "pairs": cost.pairs, "load": cost.load}))
        return 0
    print(
        f"{network.name} network of {network.neurons} neurons, {network.layers} layers; "
        f"{cut.parts} parts, {cut.method}"
    )
    columns = (cost.rows, cost.pairs, cost.load)
    lines = []
    for name, values in (
        ("mean", [sum(column) / network.layers for column in columns]),
        ("least", [min(column) for column in columns]),
        ("most", [max(column) for column in columns]),
    ):
        lines.append((name, f"{values[0]:,.1f}", f"{values[1]:,.1f}", f"{values[2]:.3f}"))
    lines.append(("all", f"{sum(cost.rows):,}", f"{cost.messages:,}", ""))
    heads = ("", "rows sent per layer", "messages per layer", "load, most / mean")
    print(report.table(heads, lines))
    return 0


def _store(options: argparse.Namespace) -> int:

    source = SourceOptions.of(options)
    network = sources.network(source)
    cut = sources.cut_of(source, network, options.ranks or _default_parts(source))
    target = sources.opened(source, options.store)
    if options.make_bucket:
        target.make()
    on_terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if on_terminal:
            sys.stderr.write(f"\rpart {done} of {total} " if done < total else "\r\033[K")

    images = None
    if options.input:
        # Checked before the model is written: wrong images must not leave half a store.
        images = sources.images(source, network.neurons)
        store.check_images(images, network.neurons)
    index = store.write_model(
        target, network, cut, bias=network.bias, name=network.name, progress=progress
    )
    print(
        f"{target.url}: {index.name} network of {index.neurons} neurons, {index.layers} layers, "
        f"in {index.parts} parts, {index.nbytes:,} bytes"
    )
    if images is not None:
        store.write_inputs(target, index, options.input, images)
        print(f"{target.url}: input {options.input}, {images.shape[1]} images")
    target.close()
    return 0


def _default_parts(source: SourceOptions) -> int:

    if not source.partition:
        return DEFAULT_PARTS
    return store.read_partition(source.partition, sources.network(source)).parts


# --- run, serve -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The numbers of a run, all decided: `ranks` workers make `replicas` replicas of equal parts.

    Attributes
    ----------
    ranks, replicas, batches
        As in `RunOptions`, at least 1.
    memory
        MiB per worker; None for the platform's default.
    channel
        Name of the channel.
    """

    ranks: int
    replicas: int
    batches: int
    memory: int | None
    channel: str

    def arguments(self) -> tuple[str, ...]:
        """Return the arguments that give a rank these numbers; they override earlier ones."""
        memory = ("--memory", str(self.memory)) if self.memory else ()
        return ("--replicas", str(self.replicas), "--batches", str(self.batches), *memory)


def _run(namespace: argparse.Namespace, arguments: Sequence[str]) -> int:

    options = RunOptions.of(namespace)
    rank = is_rank(os.environ)
    decided: tuple[str, ...] = ()
    if not rank:
        _check_run(options)
        grid = _grid(options)
        decided = grid.arguments()
        options = replace(
            options,
            ranks=grid.ranks,
            replicas=grid.replicas,
            batches=grid.batches,
            memory=grid.memory,
            channel=grid.channel,
        )
    terminal = os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else None
    local = options.platform == launch.DEFAULT  # a function has no access to this terminal
    if rank or (options.ranks == 1 and local):
        if terminal:
            os.environ.setdefault(ENV_TERMINAL, terminal)
        return worker.run(_world(), options)
    sources.check_paths(options)
    variables = {ENV_TERMINAL: terminal} if terminal and local else {}
    return _launch(options, ("run", *arguments, *decided), variables)


def _check_run(options: RunOptions) -> None:
    """Raise UsageError if options of `run` contradict each other."""

    for path in options.report:
        report.check_path(path)
    sources.check_effect(options)
    if options.output and options.output.endswith(".csv") and not options.top:
        raise UsageError(
            "--output FILE.csv has the largest outputs of each image: give --top K too"
        )
    for written in (options.output, *options.report):
        files.check_folder(written)
    if options.check and options.accumulate:
        raise UsageError(
            "--check compares the last bits, which --accumulate changes: omit one of them"
        )
    if options.check and options.store:
        raise UsageError("--check needs the network itself, not a store: omit --store")
    if options.input and not options.store:
        raise UsageError("--input names images in a store: give --store too")


def _grid(options: RunOptions) -> Grid:
    """Decide the numbers that the options leave open.

    Raises
    ------
    UsageError
        The numbers do not fit each other or the store, or the memory of a worker is too small; the
        message names the number of parts that would fit.
    """

    work, stored_parts = sources.describe(options, sources.samples(options))
    platform = plan.place(options.platform)
    if options.plan == "auto":
        options = _planned(options, work, platform, stored_parts)
    ranks = options.ranks or (stored_parts or 1) * options.replicas
    parts = _parts(options, ranks, stored_parts, work.neurons)
    # Local workers share the memory of this machine.
    share = ranks if options.platform == launch.DEFAULT else 1
    limit = options.memory or max(platform.memory_sizes) // share
    plan.check_memory(work, parts, limit, platform.base_mb)
    deployment = plan.Deployment(options.replicas, parts, None, limit)
    batches = options.batches or plan.batches(work, deployment, platform.base_mb) or 1
    channel = options.channel or channels.DEFAULT
    return Grid(ranks, options.replicas, batches, options.memory, channel)


def _planned(
    options: RunOptions, work: plan.Work, platform: plan.Platform, stored_parts: int | None
) -> RunOptions:
    """Return the options with the planner's workers, memory and channel, and print its choice."""

    forecasts = advice.survey(
        work,
        platform,
        BilledModel(Prices.load(options.prices)),
        channels=[options.channel] if options.channel else None,
        memory_sizes=[options.memory] if options.memory else None,
    )
    if stored_parts:
        forecasts = [forecast for forecast in forecasts if forecast.way.parts == stored_parts]
    if not forecasts:
        raise UsageError(
            f"the planner has no deployment with the {stored_parts} parts of {options.store}: "
            "omit --plan"
        )
    best = advice.advise(forecasts, work)
    chosen = best.knee.way
    print(
        f"plan: {chosen.name}, {best.knee.seconds:.3g} s, {best.knee.usd:.3g} dollars: {best.why}",
        file=sys.stderr,
    )
    # A local worker gets the memory it needs; the planner's size is that of a function.
    local = options.platform == launch.DEFAULT
    return replace(
        options,
        ranks=chosen.workers,
        replicas=chosen.replicas,
        memory=options.memory if local else chosen.memory_mb,
        channel=options.channel or chosen.channel,
    )


def _parts(options: RunOptions, ranks: int, stored_parts: int | None, neurons: int) -> int:
    """Return the parts of each replica.

    Raises
    ------
    UsageError
        `ranks` workers do not make equal replicas of the model.
    """
    replicas = options.replicas
    parts, remainder = divmod(ranks, replicas)
    if remainder or not parts:
        raise UsageError(f"{ranks} workers do not make {replicas} replicas of equal size")
    if stored_parts and parts != stored_parts:
        raise UsageError(
            f"{options.store} has {stored_parts} parts; {replicas} replicas of it need "
            f"{stored_parts * replicas} workers, not {ranks}"
        )
    if parts > neurons:
        raise UsageError(
            f"{neurons} neurons cannot be divided among {parts} workers; "
            f"start at most {neurons} per replica"
        )
    return parts


def _serve(namespace: argparse.Namespace, arguments: Sequence[str]) -> int:

    options = ServeOptions.of(namespace)
    if options.platform != launch.DEFAULT:
        raise UsageError(
            "serve runs on this machine only, since clients cannot connect to a function; "
            "use `smpi-infer run --platform lambda`"
        )
    if not is_rank(os.environ):
        sources.check_effect(options)
        work, stored_parts = sources.describe(options, 1)
        ranks = options.ranks or stored_parts or 1
        if stored_parts and ranks != stored_parts:
            raise UsageError(
                f"{options.store} has {stored_parts} parts and needs {stored_parts} workers, "
                f"not {ranks}"
            )
        limit = options.memory or max(plan.place(options.platform).memory_sizes) // ranks
        plan.check_memory(work, ranks, limit)
        options = replace(options, ranks=ranks)
        if ranks > 1:
            return _launch(options, ("serve", *arguments))
    return serve.serve(_world(), options)


def _world() -> Communicator:
    """Return the communicator of all ranks, of this package or of mpi4py."""
    from serverless_mpi import MPI  # see the pitfall in the head of this file

    return MPI.COMM_WORLD


def _launch(
    options: WorkerOptions, command: tuple[str, ...], variables: Mapping[str, str] | None = None
) -> int:
    """Run an smpi-infer command in `options.ranks` ranks; return the exit code of the job."""
    launcher = launch.load(options.platform)
    channel = options.channel or channels.DEFAULT
    channels.load(channel)  # an unknown name is an error of the command line
    program = Program(
        (MODULE, *command), options.ranks or 1, module=True, variables=variables or {}
    )
    # On platforms that do not allocate memory, --memory only limits what a worker itself uses.
    memory_mb = options.memory if "memory_mb" in launcher.honors else None
    job = Plan(
        (program,),
        channel,
        endpoint=None if options.endpoint == "aws" else options.endpoint,
        region=options.region,
        timeout_s=options.timeout,
        stats=options.stats,
        prices=options.prices,
        memory_mb=memory_mb,
        branching=options.branching,
    )
    launcher.check(job, options.platform)
    return launcher().run(job)


# --- plan -----------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> int:
    source = SourceOptions.of(options)
    sources.check_effect(source)
    # A forecast needs no images: their number is counted only if --samples does not give it.
    count_images = source.images or source.input or not source.samples
    samples = sources.samples(source) if count_images else source.samples
    work, _ = sources.describe(source, samples or 1)
    figures = _figures(options) or AWS
    source_of_figures = origin(figures)
    if options.measure:
        if source.store:
            raise UsageError("--measure needs the network itself, not a store: omit --store")
        network = sources.network(source)
        if network.endings is not None:
            raise UsageError("--measure knows the challenge's layers only: give --rate instead")
        images = sources.images(source, network.neurons)
        work, rate = measure.measured(work, network, images, network.bias)
        figures = figures.exactly(kernel_per_s=rate)
    if options.rate:
        figures = figures.exactly(kernel_per_s=options.rate)
    platform = plan.place(options.platform, figures)
    model = BilledModel(Prices.load(options.prices))
    forecasts = advice.survey(
        work,
        platform,
        model,
        channels=options.channel,
        memory_limit_mb=options.memory or inf,
        max_workers=options.max_workers,
    )
    answer = plan_report.PlanReport(work, platform, model, forecasts, source_of_figures)
    print(answer.json(options.all) if options.json else answer.text(options.all))
    return 0


def _figures(options: argparse.Namespace) -> Figures | None:
    """Return the figures that --figures names, a file or those of a stack."""
    endpoint = None if options.endpoint == "aws" else options.endpoint
    # a file may be of any region: the forecast is of none
    region = options.region if options.figures == stack_figures.STACK else ""
    return stack_figures.chosen(options.figures, options.stack, endpoint, region)


# --- query, report --------------------------------------------------------------------------------


def _query(options: argparse.Namespace) -> int:

    if options.status:
        print(json.dumps(serve.ask(options.socket, {"status": True})))
        return 0
    # The service may have another working directory, so it gets absolute paths.
    queries: list[tuple[str, dict[str, Any]]] = [
        (path, {"images": path if path.startswith("s3://") else os.path.abspath(path)})
        for path in options.images
    ]
    queries += [(name, {"input": name}) for name in options.input]
    if not queries:
        raise UsageError(
            "query needs a file of images, or --input NAME; see smpi-infer query --help"
        )
    if options.samples:
        queries = [(name, {**query, "samples": options.samples}) for name, query in queries]
    code = 0
    with ThreadPoolExecutor(len(queries)) as pool:
        replies = pool.map(lambda query: serve.ask(options.socket, query[1]), queries)
        for (name, _), reply in zip(queries, replies, strict=True):
            if "error" in reply:
                print(f"smpi-infer: {name}: {reply['error']}", file=sys.stderr, flush=True)
                code = 1
            elif options.json:
                print(json.dumps(reply))
            else:
                print(f"{name}: {_summary(reply)}")
    return code


def _summary(reply: Mapping[str, Any]) -> str:
    categories = reply["categories"]
    first = " ".join(map(str, categories[:8])) + (" ..." if len(categories) > 8 else "")
    return (
        f"{len(categories)} of {reply['images']} images have an active output: {first}; "
        f"checksum {reply['checksum']}; {reply['seconds']:.3f} s"
    )


def _report(options: argparse.Namespace) -> int:

    record = report.read(options.record)
    if not options.output:
        print(report.text(record))
        return 0
    report.check_path(options.output)
    data = page.rendered(options.output, record)
    with files.replacing(options.output) as file:
        file.write(data)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "partition": _partition,
    "store": _store,
    "plan": _plan,
    "query": _query,
    "report": _report,
}
# Commands whose ranks get the same arguments again.
JOBS: dict[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {"run": _run, "serve": _serve}
