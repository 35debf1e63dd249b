"""What `smpi deploy` does: layout, package, template, then a plan, files, or the stack itself.

The order matters. Everything that can be wrong here is checked before AWS is asked for anything;
leases are checked before anything changes; the pool is probed last, and only then is the stack said
to be ready.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serverless_mpi import __version__
from serverless_mpi.deploy import package, probe, template
from serverless_mpi.deploy.deployment import Deployment, Target
from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.stack import express, pool
from serverless_mpi.stack import layout as names
from serverless_mpi.stack.layout import Layout
from serverless_mpi.stack.stack import Stack, describe, outputs_of, own_region

Say = Callable[[str], None]
MONTH_S = 30 * 86400.0


def deploy(options: argparse.Namespace, say: Say) -> int:
    """Deploy as the options of the command line state; return the exit code.

    Parameters
    ----------
    options
        Options of `smpi deploy`, as `cli.build_parser` parses them.
    say
        Receives a line for each step, for people.

    Raises
    ------
    UsageError, ChannelError
        An option is wrong, jobs run, or AWS refused.
    """
    runtime = _runtime(options)
    region = ""
    if options.express or not options.emit:
        region = own_region(options.region, options.endpoint)
    layout = layout_of(options, runtime, region)
    layout.check_region(region)
    say(f"packing for Python {runtime.python} on {runtime.arch}")
    built = package.build(runtime, options.wheel)
    for note in built.notes:
        say(f"note: {note}")
    code = built.objects()
    release = hashlib.sha256(" ".join(code).encode()).hexdigest()[:16]  # of both zips
    whole = template.build(layout, release=release)
    if options.dry_run:
        print("\n".join(plan(layout, whole, built, Prices.load(), region)))
        return 0
    say(f"{built.unpacked_bytes / 1e6:.0f} MB unpacked, of {package.UNPACKED_BYTES / 1e6:.0f}")
    if options.emit:
        print(emit(Path(options.emit), whole, code, layout))
        return 0
    # an update changes the functions of jobs that run
    jobs = [] if options.force else running_jobs(options.stack, options.endpoint, region)
    if jobs:
        raise UsageError(
            f"jobs hold queues of stack {options.stack}: {', '.join(jobs)}; wait for them, stop"
            " them with `smpi clean --all`, or ignore them with --force"
        )
    first = template.build(layout, only_bucket=True)
    try:
        Deployment(options.stack, options.endpoint, region, say).deploy(
            Target(layout.name, first, whole, code)
        )
        say("probing: one message to each queue")
        proven = probe.prove(Stack.find(options.stack, options.endpoint, region), say)
    except KeyboardInterrupt:
        say(
            "interrupted; CloudFormation ends what it has begun, and `smpi deploy` goes on from"
            " there"
        )
        raise
    if proven < layout.ranks:
        say(f"note: {layout.ranks - proven} queues belong to running jobs and were not probed")
    say(f"stack {options.stack} is ready: smpirun --platform lambda -n 4 prog.py")
    return 0


def _runtime(options: argparse.Namespace) -> package.Target:
    here = package.Target.of_this_interpreter()
    if options.endpoint is not None:  # an emulator runs functions with this interpreter
        return here
    python = options.python or _python()
    if python not in names.PYTHONS:
        raise UsageError(f"--python {python}: known are {', '.join(names.PYTHONS)}")
    return package.Target(python, options.arch)


def _python() -> str:
    """Return the newest runtime whose byte code can be compiled here: cold starts are faster."""
    here = (version for version in reversed(names.PYTHONS) if package.interpreter(version))
    return next(here, Layout.python)


def layout_of(options: argparse.Namespace, runtime: package.Target, region: str = "") -> Layout:
    """Return the layout that the options state.

    Parameters
    ----------
    options
        Options of `smpi deploy`.
    runtime
        What will run the functions: its Python version and architecture.
    region
        AWS region; used only with option --express.

    Raises
    ------
    UsageError
        A value is not a number, or out of range.
    """
    return Layout(
        options.stack,
        numbers(options.memory, "--memory"),
        numbers(options.ranks, "--ranks")[0],
        numbers(options.jobs, "--jobs")[0],
        runtime.python,
        runtime.arch,
        options.snapstart,
        tuple(options.read_bucket),
        tuple(options.policy),
        express.zones(options.express, region, options.endpoint),
    )


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the whole numbers of an option, each once, ascending.

    Parameters
    ----------
    text
        Value of the option: whole numbers separated by commas.
    option
        Name of the option, for the error.

    Raises
    ------
    UsageError
        The text is not a list of whole numbers.
    """
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise UsageError(f"{option} {text}: not whole numbers separated by commas") from None


def running_jobs(name: str, endpoint: str | None, region: str) -> list[str]:
    """Return the ids of the jobs that hold queues of a stack.

    Parameters
    ----------
    name
        Name of the stack.
    endpoint
        URL of an emulator; None for AWS.
    region
        AWS region.

    Returns
    -------
    list of str
        Ids of jobs; empty if there is no such stack, or it is not complete.
    """
    description = describe(name, endpoint, region)
    if description is None or "Functions" not in outputs_of(description):
        return []
    try:
        stack = Stack.find(name, endpoint, region)
    except UsageError:  # not complete: nothing runs there
        return []
    return [job for job in pool.held(stack) if job != probe.LEASE]


def emit(folder: Path, whole: dict[str, Any], code: dict[str, bytes], layout: Layout) -> str:
    """Write the template and the zips; return what to do with them.

    The zips are named by content: CloudFormation sees that code has changed by its name alone.

    Parameters
    ----------
    folder
        Folder that gets the files; it is created if it does not exist.
    whole
        The whole template.
    code
        Key -> zip: the function's, then the layer's.
    layout
        Layout of the stack; its name is part of the commands.

    Returns
    -------
    str
        Lines with the commands that deploy the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.json").write_text(json.dumps(whole, indent=1) + "\n")
    zips = [key.rpartition("/")[2] for key in code]
    for name, data in zip(zips, code.values(), strict=True):
        (folder / name).write_bytes(data)
    copies = " && ".join(f"aws s3 cp {folder}/{name} s3://BUCKET/" for name in zips)
    return (
        f"{folder} has template.json, {zips[0]} and {zips[1]};"
        " with a bucket of yours in the stack's region:\n"
        f"  {copies}\n"
        f"  aws cloudformation deploy --template-file {folder}/template.json"
        f" --stack-name {layout.name} --capabilities CAPABILITY_IAM --s3-bucket BUCKET"
        f" --parameter-overrides CodeBucket=BUCKET FunctionKey={zips[0]} LayerKey={zips[1]}"
    )


def destroy(options: argparse.Namespace, say: Say) -> int:
    """Remove the stack as the options of the command line state.

    Parameters
    ----------
    options
        Options of `smpi destroy`, as `cli.build_parser` parses them.
    say
        Receives a line for each step, for people.

    Returns
    -------
    int
        Exit code: 1 if jobs hold queues of the stack, else 0.

    Raises
    ------
    UsageError, ChannelError
        AWS refused.
    """
    region = own_region(options.region, options.endpoint)
    jobs = [] if options.force else running_jobs(options.stack, options.endpoint, region)
    if jobs:
        say(
            f"jobs hold queues of stack {options.stack}: {', '.join(jobs)}; stop them with"
            " `smpi clean --all`, or ignore them with --force"
        )
        return 1
    if Deployment(options.stack, options.endpoint, region, say).destroy():
        say(f"stack {options.stack} is destroyed: nothing of it is left, so it costs nothing")
    else:
        say(f"there is no stack {options.stack} in {region}")
    return 0


# -- the plan


def plan(
    layout: Layout, whole: dict[str, Any], built: package.Package, prices: Prices, region: str
) -> Iterator[str]:
    """Yield the lines of a plan: resources, roles, package, idle cost, time.

    Parameters
    ----------
    layout
        Layout of the stack.
    whole
        Its whole template.
    built
        The two zips.
    prices
        Price table, for the idle cost.
    region
        AWS region; "" if it is not known.
    """
    kinds = Counter(one["Type"] for one in whole["Resources"].values())
    where = region or "a region of yours"
    yield (
        f"stack {layout.name} in {where}: serverless_mpi {__version__},"
        f" Python {layout.python} on {layout.arch}"
    )
    yield f"{sum(kinds.values())} of at most {template.MAX_RESOURCES} resources:"
    yield from (f"  {count:4} {kind}" for kind, count in sorted(kinds.items()))
    for name, resource in sorted(whole["Resources"].items()):
        if resource["Type"] == "AWS::IAM::Role":
            yield f"role {name}:"
            yield from _role_lines(resource["Properties"])
    yield (
        f"package: {(len(built.function) + len(built.layer)) / 1e6:.1f} MB,"
        f" unpacked {built.unpacked_bytes / 1e6:.0f} of {package.UNPACKED_BYTES / 1e6:.0f} MB"
    )
    yield from _idle_lines(layout, len(built.function) + len(built.layer), prices)
    yield (
        "time: CloudFormation takes minutes, more with more --ranks; then each queue is probed,"
        f" for up to {probe.PROBE_S / 60:.0f} minutes, until SNS applies its filter policies"
    )
    yield "nothing was changed"


def _role_lines(properties: dict[str, Any]) -> Iterator[str]:
    for policy in properties["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            resources = statement["Resource"]
            texts = resources if isinstance(resources, list) else [resources]
            yield f"  {', '.join(statement['Action'])} on {', '.join(map(_resource, texts))}"
    yield from (f"  managed policy {arn}" for arn in properties.get("ManagedPolicyArns", ()))


def _resource(value: dict[str, Any]) -> str:
    """Return a resource of a statement in short: the part of the ARN that differs."""
    if "Fn::Sub" in value:
        return str(value["Fn::Sub"]).replace("${AWS::StackName}", "STACK").rpartition("}:")[2]
    if "Fn::Join" in value:
        return "BUCKET" + str(value["Fn::Join"][1][1])
    return "BUCKET"


def _idle_lines(layout: Layout, code_bytes: int, prices: Prices) -> Iterator[str]:
    storage = code_bytes / 2**30 * prices.usd_of.get("s3.GB-month", 0.0)
    yield f"idle cost: {storage:.4f} USD per month for the zips in the bucket"
    if layout.snapstart:
        gigabytes = sum(layout.memory_mb) / 1024
        cache = gigabytes * MONTH_S * prices.usd_of.get("snapstart.cached-GB-second", 0.0)
        yield (
            f"  and {cache:.2f} USD per month for the snapshots of {gigabytes:.2f} GB of functions"
        )
    yield f"  prices of {prices.region}, {prices.dated}"
