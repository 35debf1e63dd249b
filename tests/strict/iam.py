"""Whether a role's policy allows a call: the part of IAM's evaluation that the package's roles use.

The rule: an explicit Deny refuses, an Allow allows, anything else refuses.  A condition
whose operator is not known here fails the test instead of being guessed.

Source: "Policy evaluation logic", IAM User Guide,
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html;
actions and resources: "Actions, resources, and condition keys for AWS services", Service
Authorization Reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tests.strict.call import Call
from tests.strict.world import ACCOUNT, REGION, queue_arn

_S3 = {
    "HeadObject": "GetObject",
    "UploadPart": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListObjectsV2": "ListBucket",
    "ListObjects": "ListBucket",
    "HeadBucket": "ListBucket",
    "DeleteObjects": "DeleteObject",
}
_BATCHES = ("SendMessageBatch", "DeleteMessageBatch", "PublishBatch")


def needs(call: Call) -> list[tuple[str, str]]:
    """Return the (action, resource) pairs that a call needs."""
    params = call.params
    if call.service == "sqs":
        return [(f"sqs:{_single(call.action)}", queue_arn(str(params.get("QueueUrl", ""))))]
    if call.service == "sns":
        return [(f"sns:{_single(call.action)}", str(params.get("TopicArn", "")))]
    if call.service == "lambda":
        name = str(params.get("FunctionName", ""))
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
        if params.get("Qualifier"):
            arn += f":{params['Qualifier']}"
        action = "InvokeFunction" if call.action == "Invoke" else call.action
        return [(f"lambda:{action}", arn)]
    if call.service != "s3":
        return [(f"{call.service}:{call.action}", "*")]
    action = f"s3:{_S3.get(call.action, call.action)}"
    bucket = f"arn:aws:s3:::{params.get('Bucket', '')}"
    if call.action == "DeleteObjects":
        return [(action, f"{bucket}/{one['Key']}") for one in params["Delete"]["Objects"]]
    return [(action, f"{bucket}/{params['Key']}" if "Key" in params else bucket)]


def _single(action: str) -> str:
    return action.removesuffix("Batch") if action in _BATCHES else action


def allows(statements: Iterable[Mapping[str, Any]], action: str, resource: str) -> bool:
    """Return whether statements of one policy allow an action on a resource."""
    allowed = False
    for statement in statements:
        if not _any(statement["Action"], action, fold=True):
            continue
        if not _any(statement["Resource"], resource) or not _holds(statement.get("Condition")):
            continue
        if statement["Effect"] == "Deny":
            return False
        allowed = True
    return allowed


def _any(patterns: str | list[str], text: str, fold: bool = False) -> bool:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, text, re.IGNORECASE if fold else 0):
            return True
    return False


def _holds(condition: Mapping[str, Mapping[str, Any]] | None) -> bool:
    """Return whether a condition holds; requests count as sent over TLS, as all are on AWS."""
    for operator, keys in (condition or {}).items():
        for key, value in keys.items():
            if (operator, key) != ("Bool", "aws:SecureTransport"):
                raise AssertionError(f"tests/strict/iam.py does not know {operator} on {key}")
            if str(value).lower() != "true":
                return False
    return True
