"""Rules of every service: shapes of requests, and what a role may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from botocore.model import Shape
from botocore.validate import ParamValidator

from tests.strict import iam
from tests.strict.call import Call
from tests.strict.rules import checks
from tests.strict.world import Refusal, World

_CODES = {
    "sqs": "InvalidParameterValue",
    "sns": "InvalidParameter",
    "s3": "InvalidArgument",
    "lambda": "InvalidParameterValueException",
}
_DENIED = {"sns": "AuthorizationError", "lambda": "AccessDeniedException"}
# what a client sends there is billed and slow, not refused: it has a rule of its own
_OWN_RULE = frozenset(("MaxNumberOfMessages", "MaxKeys"))


@checks(
    "request-shape",
    "*.*",
    "AWSSimpleQueueService/latest/APIReference/API_Operations.html",
    "A request has the members of its shape in the service's model, with their types, and no others.",
)
def request_shape(call: Call, world: World) -> None:
    if call.unknown:
        raise Refusal("ValidationError", f"unknown parameters: {', '.join(call.unknown)}")
    shape = call.operation.input_shape
    if shape is not None:
        report = ParamValidator().validate(call.params, shape)
        if report.has_errors():
            raise Refusal("ValidationError", report.generate_report())


@checks(
    "request-limits",
    "sqs.* sns.* s3.* lambda.Invoke cloudformation.*",
    "lambda/latest/api/API_Invoke.html",
    "A member is within the length, range and pattern, and one of the values, that its shape states.",
)
def request_limits(call: Call, world: World) -> None:
    shape = call.operation.input_shape
    for path, value, shape_of_it in _leaves("", call.params, shape) if shape else ():
        bounds = shape_of_it.metadata
        size = value if isinstance(value, int | float) else len(value)
        wrong = "max" in bounds and size > bounds["max"] or "min" in bounds and size < bounds["min"]
        known = getattr(shape_of_it, "enum", None)
        wrong = wrong or bool(known) and value not in known
        pattern = bounds.get("pattern")
        if pattern and isinstance(value, str):
            wrong = wrong or re.search(f"^(?:{pattern})$", value) is None
        if wrong and path.rpartition(".")[2] not in _OWN_RULE:
            code = _CODES.get(call.service, "ValidationError")
            raise Refusal(code, f"{path} is {value!r:.60}, which the model does not allow")


def _leaves(path: str, value: Any, shape: Shape) -> Iterator[tuple[str, Any, Shape]]:
    """Yield (path, value, shape) of each text, number and blob."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}", item, shape.members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for item in value:
            yield from _leaves(f"{path}[]", item, shape.member)
    elif shape.type_name == "map" and isinstance(value, dict):
        for item in value.values():
            yield from _leaves(f"{path}{{}}", item, shape.value)
    elif not isinstance(value, bool | dict | list):
        yield path, value, shape


@checks(
    "iam-role",
    "*.*",
    "IAM/latest/UserGuide/reference_policies_evaluation-logic.html",
    "A function calls what the policy of its role allows, on the resources that it names.",
)
def iam_role(call: Call, world: World) -> bool | None:
    if not call.request.function:
        return False  # the user, who has the policies of docs/deployment.md
    world.calls[call.request.function].add(call.name)
    denied = missing_grants(call, world)
    if denied:
        code = _DENIED.get(call.service, "AccessDenied")
        raise Refusal(code, f"{call.request.function} may not {', '.join(denied)}", 403)
    return None


def missing_grants(call: Call, world: World) -> list[str]:
    """Return the "action on resource" that the role of the calling function does not allow."""
    facts = world.facts_of(call.request.function)
    if facts is None:
        return [f"do anything: no stack has function {call.request.function}"]
    statements = facts.statements[facts.functions[call.request.function]]
    return [
        f"{action} on {resource}"
        for action, resource in iam.needs(call)
        if not iam.allows(statements, action, resource)
    ]
