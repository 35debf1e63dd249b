"""smpi-infer: the command line, and which room each command goes to.  What can be typed is in `options`.

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
from typing import Any

from serverless_mpi.env import ENV_TERMINAL
from serverless_mpi.errors import MPIException, ServerlessMPIError, UsageError
from serverless_mpi.inference.options import parser
from serverless_mpi.job import is_rank
from serverless_mpi.launch.base import EXIT_USAGE


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
        print(
            json.dumps(
                {
                    "parts": cut.parts,
                    "method": cut.method,
                    "rows": found.rows,
                    "pairs": found.pairs,
                    "load": found.load,
                }
            )
        )
        return 0
    print(
        f"{network.name} network of {network.neurons} neurons, {network.layers} layers; {cut.parts} parts, {cut.method}"
    )
    heads = ("", "rows sent a layer", "messages a layer", "load, most / mean")
    numbers: list[tuple[str, Any]] = [("mean", sum), ("least", min), ("most", max)]
    rows = []
    for name, of in numbers:
        own = [
            of(one) / (network.layers if of is sum else 1)
            for one in (found.rows, found.pairs, found.load)
        ]
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
    index = store.write_model(
        place, network, cut, bias=network.bias, name=network.name, progress=progress
    )
    print(
        f"{place.url}: {index.name} network of {index.neurons} neurons, {index.layers} layers, in {index.parts} parts, "
        f"{index.nbytes:,} bytes"
    )
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
            os.environ.setdefault(ENV_TERMINAL, os.ttyname(sys.stderr.fileno()))
        return worker.run(MPI.COMM_WORLD, options)
    sources.check_paths(options)
    return _launched(options, ["run", *arguments], [ENV_TERMINAL])


def _settled(
    options: argparse.Namespace, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
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
        raise UsageError(
            "--check compares the last bit, which --accumulate gives up: leave one of them away"
        )
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
        found = advice.survey(
            work, place, BilledModel(Prices.load(options.prices)), channels=kept, memory_sizes=sizes
        )
        if stored:
            found = [one for one in found if one.way.parts == stored]
        if not found:
            raise UsageError(
                f"no way that `plan` knows has the {stored} parts of {options.store}; leave --plan away"
            )
        best = advice.advise(found, work)
        print(
            f"plan: {best.knee.way.name}, {best.knee.seconds:.3g} s, {best.knee.usd:.3g} dollars: {best.why}",
            file=sys.stderr,
        )
        way = best.knee.way
        memory = way.memory_mb if options.platform == "lambda" else options.memory
        options = argparse.Namespace(
            **{**vars(options), "ranks": way.workers, "replicas": way.replicas, "memory": memory}
        )
        options.channel = options.channel or way.channel
    ranks = options.ranks or (stored or 1) * options.replicas
    parts, left = divmod(ranks, options.replicas)
    if left or not parts:
        raise UsageError(f"{ranks} workers are not {options.replicas} replicas of equal size")
    if stored and parts != stored:
        raise UsageError(
            f"{options.store} is in {stored} parts; {options.replicas} replicas of it take {stored * options.replicas} workers, "
            f"not {ranks}"
        )
    if parts > work.neurons:
        raise UsageError(
            f"{work.neurons} neurons cannot be dealt out to {parts} workers; start at most {work.neurons} a replica"
        )
    limit = options.memory or max(place.memory_sizes) // (
        ranks if options.platform == "local" else 1
    )
    plan.check_memory(work, parts, limit, place.base_mb)
    batches = options.batches or plan.batches(
        work, plan.Deployment(options.replicas, parts, None, limit), place.base_mb
    )
    options = argparse.Namespace(
        **{
            **vars(options),
            "ranks": ranks,
            "batches": batches,
            "channel": options.channel or channels.DEFAULT,
        }
    )
    decided = ["--replicas", str(options.replicas), "--batches", str(batches)]
    if options.memory:
        decided += ["--memory", str(options.memory)]
    return options, [*arguments, *decided]


def _launched(
    options: argparse.Namespace, arguments: Sequence[str], variables: Sequence[str] = ()
) -> int:
    """Run the command in ranks of smpirun, whose exit code is returned."""
    from serverless_mpi.launch import cli

    words = [
        "-n",
        str(options.ranks),
        "--stats",
        options.stats,
        "--platform",
        options.platform,
        "--region",
        options.region,
    ]
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

    named = options.images or options.input
    samples = (
        sources.samples(options) if named or not options.samples else options.samples
    )  # a plan needs no images
    work, _ = sources.describe(options, samples)
    place = plan.place(options.platform)
    if options.measure:
        if options.store:
            raise UsageError("--measure needs the network itself, not a store: leave --store away")
        network = sources.network(options)
        work, rate = measure.measured(
            work, network, sources.images(options, network.neurons), network.bias
        )
        place = replace(place, edges_s=rate)
    if options.rate:
        place = replace(place, edges_s=options.rate)
    model = BilledModel(Prices.load(options.prices))
    found = advice.survey(
        work,
        place,
        model,
        channels=options.channel,
        memory_limit_mb=options.memory or inf,
        max_workers=options.max_workers,
    )
    best = advice.advise(found, work)
    named = {"cheapest": best.cheapest, "fastest": best.fastest, "knee": best.knee}
    if options.json:
        ways = {name: advice.as_dict(one) for name, one in named.items()}
        more = {"all": [advice.as_dict(one) for one in found]} if options.all else {}
        print(
            json.dumps(
                {
                    **ways,
                    "why": best.why,
                    "edges_s": place.edges_s,
                    "living": list(work.living),
                    **more,
                }
            )
        )
        return 0
    others = (
        [(advice.kind(one), one) for one in found] if options.all else advice.best_of_kinds(found)
    )
    print(
        f"{work.neurons:,} neurons, {work.layers:,} layers, {work.samples:,} images; {place.name}, "
        f"{place.edges_s / 1e9:.2g} G living edges/s of a vCPU"
    )
    print(
        report.table(
            ("", *advice.HEADS),
            [(name, *advice.cells(one)) for name, one in [*named.items(), *others]],
        )
    )
    print(f"knee: {best.knee.way.name}: {best.why}")
    return 0


def _serve(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from serverless_mpi.inference import plan, serve, sources

    if options.platform != "local":
        raise UsageError(
            "serve is for this machine: nobody can connect to a function; use `smpi-infer run --platform lambda`"
        )
    if not is_rank(os.environ):
        work, stored = sources.describe(options, 1)
        ranks = options.ranks or stored or 1
        if stored and ranks != stored:
            raise UsageError(
                f"{options.store} is in {stored} parts and takes {stored} workers, not {ranks}"
            )
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
        (path, {"images": path if path.startswith("s3://") else os.path.abspath(path)})
        for path in options.images
    ]
    named += [(name, {"input": name}) for name in options.input]
    if not named:
        raise UsageError(
            "query lacks a file of images, or --input NAME; see smpi-infer query --help"
        )
    if options.samples:
        named = [(name, {**question, "samples": options.samples}) for name, question in named]
    code = 0
    with ThreadPoolExecutor(len(named)) as pool:
        for (name, _), reply in zip(
            named, pool.map(lambda one: serve.ask(options.socket, one[1]), named), strict=True
        ):
            if "error" in reply:
                print(f"smpi-infer: {name}: {reply['error']}", file=sys.stderr, flush=True)
                code = 1
            elif options.json:
                print(json.dumps(reply))
            else:
                shown = " ".join(map(str, reply["categories"][:8]))
                more = " ..." if len(reply["categories"]) > 8 else ""
                print(
                    f"{name}: {len(reply['categories'])} of {reply['images']} images have an active output: {shown}{more}; "
                    f"checksum {reply['checksum']}; {reply['seconds']:.3f} s"
                )
    return code


def _report(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import files, report

    record = report.read(options.record)
    if not options.output:
        print(report.text(record))
        return 0
    report.check_path(options.output)
    data = report.rendered(options.output, record)
    with files.replacing(options.output) as file:
        file.write(data)
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
        return {
            "partition": _partition,
            "store": _store,
            "plan": _plan,
            "query": _query,
            "report": _report,
        }[options.command](options)
    except (ServerlessMPIError, MPIException, ValueError, OSError) as error:
        print(f"smpi-infer: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, (UsageError, ValueError)) else 1


def _parts_of(options: argparse.Namespace) -> int:
    from serverless_mpi.inference import sources, store

    return (
        store.read_partition(options.partition, sources.network(options)).parts
        if options.partition
        else 4
    )
