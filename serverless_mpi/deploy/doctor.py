"""Checks of what a job needs: one line per check, each with its remedy."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serverless_mpi import __version__
from serverless_mpi.aws import control, limits
from serverless_mpi.aws.limits import AWS
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.stack import pool, stored_figures
from serverless_mpi.stack.stack import Stack, explained

# AWS refuses requests that are 5 to 15 minutes off; a fifth of what is safe is worth a word
SKEW_S = 60.0
SLOW_MS = 300.0
CONCURRENCY = limits.LAMBDA_CONCURRENCY.value


@dataclass(frozen=True)
class Finding:
    """good: None if it could not be found out."""

    good: bool | None
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "ok   ", False: "WRONG", None: "?    "}[self.good]
        return f"{mark} {self.what}" + (f" -- {self.remedy}" if self.remedy else "")


def examine(name: str, endpoint: str | None, region: str) -> Iterator[Finding]:
    """Yield every check, in an order in which the first that is wrong explains those after it.

    Parameters
    ----------
    name
        Name of the stack.
    endpoint
        URL of an emulator; None for AWS.
    region
        AWS region.

    Yields
    ------
    Finding
        One for each check. Without credentials that work, none after those.
    """
    where = endpoint or f"AWS in {region}"
    yield Finding(True, f"serverless_mpi {__version__}, region {region}, {where}")
    identity: dict[str, Any] = {}

    def who() -> str:
        identity.update(control.client("sts", endpoint, region).get_caller_identity())
        return f"credentials of {identity.get('Arn')}"

    yield _tried("credentials", endpoint, region, who)
    if not identity:
        return
    yield _clock(identity)
    for service, call in (
        ("s3", "list_buckets"),
        ("sqs", "list_queues"),
        ("sns", "list_topics"),
        ("logs", "describe_log_groups"),
    ):
        yield _reached(service, call, endpoint, region)
    yield _concurrency(endpoint, region)
    yield _publish_rate(endpoint, region)
    yield from _stack(name, endpoint, region)


def _tried(what: str, endpoint: str | None, region: str, call: Callable[[], str]) -> Finding:
    try:
        with explained(f"look at {what}", endpoint, region):
            return Finding(True, call())
    except ServerlessMPIError as error:
        return Finding(False, what, str(error))


def _clock(answer: dict[str, Any]) -> Finding:
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not text:
        return Finding(None, "clock: the answer has no date")
    skew = time.time() - email.utils.parsedate_to_datetime(text).timestamp()
    if abs(skew) > SKEW_S:
        return Finding(
            False,
            f"clock: {skew:+.0f} s off",
            "set it, as with `chronyc makestep`: AWS refuses what is signed minutes off",
        )
    return Finding(True, f"clock: {abs(skew):.0f} s off at most")


def _reached(service: str, call: str, endpoint: str | None, region: str) -> Finding:
    def reach() -> str:
        client = control.client(service, endpoint, region)
        getattr(client, call)()
        began = time.monotonic()
        getattr(client, call)()
        taken = (time.monotonic() - began) * 1000
        far = (
            f"; from a nearer region it would be less than {SLOW_MS:.0f}" if taken > SLOW_MS else ""
        )
        return f"{service}: reached, {taken:.0f} ms a request{far}"

    return _tried(service, endpoint, region, reach)


def _concurrency(endpoint: str | None, region: str) -> Finding:
    limits: list[int] = []

    def ask() -> str:
        limits.append(
            int(
                control.client("lambda", endpoint, region).get_account_settings()["AccountLimit"][
                    "UnreservedConcurrentExecutions"
                ]
            )
        )
        return f"lambda: {limits[0]} concurrent executions, so as many ranks at a time"

    found = _tried("lambda", endpoint, region, ask)
    if limits and limits[0] < CONCURRENCY:
        return Finding(True, found.what, f"for more, ask in Service Quotas: L-B99A9384 in {region}")
    return found


# The first may leave out quotas that have their default value.
QUOTA_CALLS = ("list_service_quotas", "list_aws_default_service_quotas")


def _publish_rate(endpoint: str | None, region: str) -> Finding:
    """The quota of SNS, which differs by region: the account's, the default, or the table's."""
    reason = "Service Quotas names none"
    for call in QUOTA_CALLS:
        try:
            with explained("look at SNS quotas", endpoint, region):
                rates = _publish_quotas(endpoint, region, call)
        except ServerlessMPIError as error:
            reason = str(error).partition(": ")[2][:120]
            continue
        if rates:
            return Finding(True, "sns: " + ", ".join(rates))
    return Finding(
        True,
        f"sns: {limits.publishes_per_s(region):,} messages published per second, by default"
        f" ({reason})",
        "it limits channel queue; ask for more in Service Quotas",
    )


def _publish_quotas(endpoint: str | None, region: str, call: str) -> list[str]:
    """Names and values of quotas of publishing."""
    quotas = control.client("service-quotas", endpoint, region)
    pages = quotas.get_paginator(call).paginate(ServiceCode="sns")
    return [
        f"{one['QuotaName']} {one['Value']:g}"
        for page in pages
        for one in page["Quotas"]
        if "publish" in one["QuotaName"].lower()
    ]


def _figures(stack: Stack) -> Finding:
    """Whether figures were measured on the stack, and hold for it."""
    remedy = f"`smpi calibrate --stack {stack.name}` measures them"
    try:
        found = stored_figures.read(stack)
    except ServerlessMPIError as error:
        return Finding(False, f"figures: {error}", remedy)
    if found is None:
        return Finding(True, "figures: the package's own, none measured on this stack", remedy)
    if (reason := stored_figures.trouble(stack, found)) is not None:
        return Finding(False, f"figures are not used: {reason}")
    unusual = [
        f"{name} {figure.value:.3g} {figure.unit} ({known.low:.3g} to {known.high:.3g})"
        for (name, figure), (_, known) in zip(found.items(), AWS.items(), strict=True)
        if not known.low <= figure.value <= known.high
    ]
    outside = f"; outside of the package's range: {', '.join(unusual)}" if unusual else ""
    return Finding(True, f"figures: measured {found.measured}{outside}")


def _stack(name: str, endpoint: str | None, region: str) -> Iterator[Finding]:
    try:
        stack = Stack.find(name, endpoint, region)
    except ServerlessMPIError as error:
        yield Finding(False, f"stack {name}", str(error))
        return
    if stack.version != __version__:
        yield Finding(
            False,
            f"stack {name} runs serverless_mpi {stack.version}",
            f"`smpi deploy --stack {name}`",
        )
    sizes = ", ".join(map(str, sorted(stack.functions)))
    yield Finding(
        True,
        f"stack {name}: functions of {sizes} MB, Python {stack.python} on {stack.arch};"
        f" {stack.ranks} queues, {stack.jobs} jobs",
    )
    if stack.read_buckets or stack.policies:
        more = ", ".join((*stack.read_buckets, *stack.policies))
        yield Finding(True, f"ranks may also read or have: {more}")
    held = pool.held(stack)
    yield Finding(
        True,
        f"leases: {len(held)} jobs, {sum(len(one['slots']) for one in held.values())} queues",
        "`smpi jobs` lists them" if held else "",
    )

    yield _figures(stack)

    def ping() -> str:
        function, _, alias = stack.functions[min(stack.functions)].partition(":")
        more = {"Qualifier": alias} if alias else {}
        began = time.monotonic()
        answer = stack.client("lambda").invoke(
            FunctionName=function, Payload=b'{"ping": 1}', **more
        )
        said = json.loads(answer["Payload"].read())
        if "FunctionError" in answer:
            raise ServerlessMPIError(
                f"function {function} failed: {said.get('errorMessage')}; run `smpi deploy` to"
                " replace it"
            )
        kernel = (
            "with the C kernel"
            if said["kernel"]
            else "WITHOUT the C kernel: no sparse inference (smpi deploy --wheel)"
        )
        return (
            f"function {function} answers in {time.monotonic() - began:.2f} s:"
            f" Python {said['python']}, NumPy {said['numpy']}, {kernel}"
        )

    yield _tried("the function", endpoint, region, ping)
