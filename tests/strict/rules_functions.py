"""Rules of Lambda and CloudFormation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from tests.strict import stacks
from tests.strict.call import Answer, Call, Request
from tests.strict.rules import Proceed, acts, checks
from tests.strict.rules_messages import names_one_topic, recently_deleted
from tests.strict.world import Refusal, StackFacts, Subscription, World, authorization

EVENT_BYTES = 1 << 20
SYNC_BYTES = 6 << 20
RETRY_S = 1.0  # first pause of an event that was throttled; it doubles, up to:
MAX_RETRY_S = 300.0
BODY_BYTES = 51_200
URL_BYTES = 1_000_000
RESOURCES, PARAMETERS, OUTPUTS = 500, 200, 200
ROLE_CHARACTERS = 10_240
NEW_ACCOUNT_MB = 3_008
SEVERAL_TOPICS = "Invalid parameter: Policy statement must apply to a single resource!"
_LAMBDA = "lambda/latest/dg/"
_CLOUD = "AWSCloudFormation/latest/UserGuide/"
_STACKS = "cloudformation.CreateStack cloudformation.UpdateStack"


# --- Lambda ----------------------------------------------------------------------------------


@checks(
    "lambda-payload",
    "lambda.Invoke",
    _LAMBDA + "gettingstarted-limits.html",
    "A payload has at most 6 MB if the answer is waited for, and 1 MB as an event.",
)
def lambda_payload(call: Call, world: World) -> None:
    limit = EVENT_BYTES if call.params.get("InvocationType") == "Event" else SYNC_BYTES
    size = len(call.params.get("Payload", b""))
    if size > limit:
        text = f"{size} byte payload is too large for the invocation type (limit {limit} bytes)"
        raise Refusal("RequestTooLargeException", text, 413)


def _admitted(call: Call, world: World) -> bool:
    """Return whether the function may have one more environment now."""
    settings, name = world.settings, f"ramp {call.params['FunctionName']}"
    return world.admits(name, settings.environments_per_s, burst=settings.environments)


@checks(
    "lambda-throttle",
    "lambda.Invoke",
    _LAMBDA + "scaling-behavior.html",
    "A function gets 1,000 new environments per 10 s; an invocation that finds none is answered with 429.",
)
def lambda_throttle(call: Call, world: World) -> bool | None:
    if call.params.get("InvocationType", "RequestResponse") != "RequestResponse":
        return False  # lambda-events
    if not _admitted(call, world):
        raise Refusal("TooManyRequestsException", "Rate Exceeded.", 429)
    return None


@acts(
    "lambda-repeated",
    "lambda.Invoke",
    _LAMBDA + "invocation-async-error-handling.html",
    "An event may be given to the function more than once.",
)
def lambda_repeated(call: Call, world: World, proceed: Proceed) -> Answer:
    answer = proceed(call)
    if call.params.get("InvocationType") == "Event" and world.strikes(
        "lambda-repeated", world.settings.repeated_events
    ):
        world.count("lambda-repeated")
        proceed(call)
    return answer


@acts(
    "lambda-retries",
    "lambda.Invoke",
    _LAMBDA + "invocation-async-error-handling.html",
    "An event whose function fails is tried twice more, unless MaximumRetryAttempts is less.",
)
def lambda_retries(call: Call, world: World, proceed: Proceed) -> Answer:
    """As if the attempts had failed: a function without a limit is invoked three times."""
    answer = proceed(call)
    if call.params.get("InvocationType") != "Event":
        return answer
    name = call.params["FunctionName"]
    facts = world.facts_of(name)
    if facts is not None and name not in facts.reports.values():
        world.count("lambda-retries")
        for _ in range(facts.retries.get(name, 2)):
            proceed(call)
    return answer


@acts(
    "lambda-events",
    "lambda.Invoke",
    _LAMBDA + "invocation-async-error-handling.html",
    "An event is answered with 202, and waits for a free environment until its age, 6 hours by default, is over;"
    " its record then goes to the destination for failures.",
)
def lambda_events(call: Call, world: World, proceed: Proceed) -> Answer:
    if call.params.get("InvocationType") != "Event":
        return proceed(call)
    if _admitted(call, world):
        return proceed(call)
    world.count("lambda-events")
    name = call.params["FunctionName"]
    facts = world.facts_of(name) or StackFacts({})
    give_up = world.clock.now() + facts.ages.get(name, 21_600.0)

    def again(pause: float) -> None:
        if _admitted(call, world):
            proceed(call)
        elif world.clock.now() + pause > give_up:
            _report(call, facts.reports.get(name), world)
        else:
            world.clock.after(pause, lambda: again(min(MAX_RETRY_S, 2 * pause)))

    world.clock.after(RETRY_S, lambda: again(2 * RETRY_S))
    return Answer(202)


def _report(call: Call, destination: str | None, world: World) -> None:
    """Give the record of an event that was too old to the destination for failures."""
    if destination is None:
        return
    record = {
        "version": "1.0",
        "requestContext": {"condition": "EventAgeExceeded", "approximateInvokeCount": 0},
        "requestPayload": json.loads(call.params["Payload"]),
    }
    world.forward(
        replace(
            call.request,
            target=f"/2015-03-31/functions/{destination}/invocations",
            body=json.dumps(record).encode(),
        )
    )


# --- CloudFormation --------------------------------------------------------------------------


def template_of(call: Call, world: World) -> str | None:
    """Return the text of the template of a call; None if it keeps the one before."""
    if "TemplateBody" in call.params:
        return str(call.params["TemplateBody"])
    if "TemplateURL" not in call.params:
        return None
    parts = urlsplit(call.params["TemplateURL"])
    headers = {"host": parts.netloc, **authorization("s3")}
    return world.forward(Request("GET", parts.path, headers, b"")).body.decode()


@checks(
    "stack-body",
    _STACKS,
    _CLOUD + "cloudformation-limits.html",
    "A template has at most 51,200 bytes in a request, and 1 MB in a bucket.",
)
def stack_body(call: Call, world: World) -> None:
    text = template_of(call, world) or ""
    limit = BODY_BYTES if "TemplateBody" in call.params else URL_BYTES
    if len(text.encode()) > limit:
        raise Refusal("ValidationError", f"the template is longer than {limit} bytes")


@checks(
    "stack-size",
    _STACKS,
    _CLOUD + "cloudformation-limits.html",
    "A template has at most 500 resources, 200 parameters and 200 outputs.",
)
def stack_size(call: Call, world: World) -> bool | None:
    text = template_of(call, world)
    if text is None:
        return False
    template = json.loads(text)
    for part, limit in (("Resources", RESOURCES), ("Parameters", PARAMETERS), ("Outputs", OUTPUTS)):
        if len(template.get(part, ())) > limit:
            raise Refusal("ValidationError", f"the template has more than {limit} {part}")
    return None


@checks(
    "stack-capabilities",
    _STACKS,
    "AWSCloudFormation/latest/APIReference/API_CreateStack.html",
    "A template with IAM resources needs CAPABILITY_IAM, and CAPABILITY_NAMED_IAM if they have names.",
)
def stack_capabilities(call: Call, world: World) -> bool | None:
    text = template_of(call, world)
    roles = [one for one in _resources(text) if one["Type"].startswith("AWS::IAM::")]
    if not roles:
        return False
    named = any("RoleName" in role.get("Properties", {}) for role in roles)
    given = set(call.params.get("Capabilities", ()))
    needed = {"CAPABILITY_NAMED_IAM"} if named else {"CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"}
    if not given & needed:
        raise Refusal("InsufficientCapabilitiesException", f"Requires capabilities: {needed}")
    return None


def _resources(text: str | None) -> Iterator[dict[str, Any]]:
    yield from json.loads(text).get("Resources", {}).values() if text else ()


@checks(
    "stack-state",
    "cloudformation.UpdateStack",
    _CLOUD + "troubleshooting.html",
    "A stack whose creation failed, or whose rollback failed, cannot be updated.",
)
def stack_state(call: Call, world: World) -> None:
    name = call.params["StackName"]
    if name in world.doomed and name not in world.stacks:
        raise Refusal("ValidationError", f"Stack:{name} is in ROLLBACK_COMPLETE state")


@acts(
    "stack-failures",
    "cloudformation.*Stack*",
    _CLOUD + "stack-failure-options.html",
    "A resource that a service refuses fails its stack, which is rolled back: topic policies of several topics,"
    " names of queues deleted in the last 60 s, roles above 10,240 characters, memory above 3,008 MB in a new account.",
)
def stack_failures(call: Call, world: World, proceed: Proceed) -> Answer:
    name = str(call.params.get("StackName", ""))
    if call.action in ("CreateStack", "UpdateStack"):
        return _apply(call, name, world, proceed)
    if call.action == "DeleteStack":
        world.doomed.pop(name, None)
        gone = world.stacks.pop(name, None)
        if gone is not None:
            now = world.clock.now()
            world.deleted_queues.update(dict.fromkeys(gone.queues, now))
        return proceed(call)
    if name not in world.doomed or call.action not in ("DescribeStacks", "DescribeStackEvents"):
        return proceed(call)
    return _describe_failure(call, name, world, proceed)


def _apply(call: Call, name: str, world: World, proceed: Proceed) -> Answer:
    text = template_of(call, world)
    if text is None:
        return proceed(call)
    parameters = {
        one["ParameterKey"]: one["ParameterValue"] for one in call.params.get("Parameters", ())
    }

    def physical(logical: str) -> str:
        query = f"Action=DescribeStackResource&Version=2010-05-15&StackName={name}"
        body = f"{query}&LogicalResourceId={logical}".encode()
        form = {"content-type": "application/x-www-form-urlencoded"}
        headers = {**call.request.headers, **authorization("cloudformation"), **form}
        answer = world.forward(Request("POST", "/", headers, body)).body.decode()
        found = re.search(r"<PhysicalResourceId>([^<]*)<", answer)
        return found[1] if found else logical

    facts = stacks.facts(name, text, parameters, physical)
    before = world.stacks.get(name)
    new_queues = set(facts.queues) - set(before.queues if before else ())
    trouble = _trouble(facts, recently_deleted(new_queues, world), world)
    world.count("stack-failures")
    if trouble is not None:
        world.doomed[name] = trouble
        world.refusals.append(f"stack-failures: {trouble}")
        result = f"<StackId>arn:aws:cloudformation:us-east-1:0:stack/{name}/0</StackId>"
        kind = call.action
        text = f"<{kind}Response><{kind}Result>{result}</{kind}Result></{kind}Response>"
        return Answer(200, text.encode(), {"content-type": "text/xml"})
    world.doomed.pop(name, None)
    answer = proceed(call)
    if answer.status == 200:
        _remember(name, facts, before, parameters, physical, world)
    return answer


def _remember(
    name: str,
    facts: StackFacts,
    before: StackFacts | None,
    parameters: dict[str, str],
    physical: Any,
    world: World,
) -> None:
    """Note what a stack has from now on."""
    now = world.clock.now()
    with world.lock:
        world.stacks[name] = facts
        if before is not None:
            gone = set(before.queues) - set(facts.queues)
            world.deleted_queues.update(dict.fromkeys(gone, now))
        known = set(before.subscriptions if before else ())
        for topic, queue in set(facts.subscriptions) - known:
            world.filters.setdefault(topic, []).append(Subscription(queue, now))
        for queue, text in facts.policies.items():
            if world.queue_policies.get(queue, ("", 0.0))[0] != text:
                world.queue_policies[queue] = (text, now)
    for role in set(facts.functions.values()):
        facts.statements[role] = stacks.statements(name, facts.template, role, parameters, physical)


def _trouble(facts: StackFacts, taken: list[str], world: World) -> tuple[str, str] | None:
    """Return (logical name, reason) of the first resource that would fail."""
    for logical, resource in facts.template["Resources"].items():
        kind, properties = resource["Type"], resource.get("Properties", {})
        if kind == "AWS::SNS::TopicPolicy":
            for statement in properties["PolicyDocument"]["Statement"]:
                one = statement.get("Resource")
                if not (isinstance(one, dict) and "Ref" in one) and not names_one_topic(one):
                    return logical, SEVERAL_TOPICS
            if len(properties["Topics"]) != 1:
                return logical, SEVERAL_TOPICS
            world.count("sns-topic-policy")
        if kind == "AWS::SQS::Queue" and taken:
            return (
                logical,
                "You must wait 60 seconds after deleting a queue before you can create another with"
                " the same name. (Code: AWS.SimpleQueueService.QueueDeletedRecently)",
            )
        if kind == "AWS::IAM::Role" and len(json.dumps(properties["Policies"])) > ROLE_CHARACTERS:
            return logical, "Maximum policy size of 10240 bytes exceeded for role"
        if kind == "AWS::Lambda::Function" and world.settings.new_account:
            if properties.get("MemorySize", 128) > NEW_ACCOUNT_MB:
                return (
                    logical,
                    "'MemorySize' value failed to satisfy constraint: Member must have value less"
                    f" than or equal to {NEW_ACCOUNT_MB}",
                )
    return None


def _describe_failure(call: Call, name: str, world: World, proceed: Proceed) -> Answer:
    """Answer as for a stack that was rolled back."""
    logical, reason = world.doomed[name]
    exists = name in world.stacks
    status = "UPDATE_ROLLBACK_COMPLETE" if exists else "ROLLBACK_COMPLETE"
    kind = call.action
    if kind == "DescribeStacks":
        if exists:
            answer = proceed(call)
            body = re.sub(
                rb"<StackStatus>[^<]*<", f"<StackStatus>{status}<".encode(), answer.body, count=1
            )
            return replace(answer, body=body)
        stack = (
            f"<StackName>{name}</StackName><StackStatus>{status}</StackStatus>"
            "<CreationTime>2026-01-01T00:00:00Z</CreationTime>"
        )
        result = f"<Stacks><member>{stack}</member></Stacks>"
    else:
        events = (
            (name, "AWS::CloudFormation::Stack", status, ""),
            (logical, "AWS::Resource", "CREATE_FAILED", reason),
            (name, "AWS::CloudFormation::Stack", "UPDATE_IN_PROGRESS", "User Initiated"),
        )
        members = "".join(
            f"<member><EventId>{number}</EventId><StackName>{name}</StackName><StackId>0</StackId>"
            f"<LogicalResourceId>{which}</LogicalResourceId><ResourceType>{what}</ResourceType>"
            f"<ResourceStatus>{how}</ResourceStatus><ResourceStatusReason>{why}"
            "</ResourceStatusReason><Timestamp>2026-01-01T00:00:00Z</Timestamp></member>"
            for number, (which, what, how, why) in enumerate(events)
        )
        result = f"<StackEvents>{members}</StackEvents>"
    text = f"<{kind}Response><{kind}Result>{result}</{kind}Result></{kind}Response>"
    return Answer(200, text.encode(), {"content-type": "text/xml"})
