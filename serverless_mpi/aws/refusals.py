"""What a service's refusal says, and what would work.

S3 and SNS answer in XML, SQS in JSON; all give a code, and the tables give advice for the codes that people meet.
Sources: the error lists of the Amazon S3, SNS and SQS API References; "Common error codes", IAM.
"""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from serverless_mpi.aws.connection import Answer
from serverless_mpi.errors import ChannelError

_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_ENOUGH = 4096  # an error document is shorter

_NO_KEY = "AWS does not know the access key: see which one is used with `aws configure list`"
_FORBIDDEN = "the keys lack the permission: add the action to the role's or user's policy"
_EXPIRED = (
    "the credentials have ended: renew them (`aws sso login`, or new keys in the environment)"
)
_CLOCK = "this machine's clock is wrong, even after a correction by the service's: set it (`chronyc makestep`)"
_KEY = "the secret key does not belong to the access key, or a proxy changed the request"

ADVICE: dict[str, str] = {
    "InvalidAccessKeyId": _NO_KEY,
    "InvalidClientTokenId": _NO_KEY,
    "UnrecognizedClientException": _NO_KEY,
    "AccessDenied": _FORBIDDEN,
    "AccessDeniedException": _FORBIDDEN,
    "AuthorizationError": _FORBIDDEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestInTheFuture": _CLOCK,
    "SignatureDoesNotMatch": _KEY,
    "InvalidSignatureException": _KEY,
}
ADVICE_OF: dict[str, dict[str, str]] = {
    "sqs": {
        "QueueDoesNotExist": "the job's queue is gone, or in another region: start the job again",
        "AWS.SimpleQueueService.NonExistentQueue": "the job's queue is gone, or in another region: start the job again",
        "OverLimit": "120,000 messages of this queue are received and not deleted: receive in fewer ranks",
    },
    "sns": {
        "NotFound": "the job's topic is gone, or in another region: start the job again",
        "KMSAccessDenied": "the keys may not use the topic's encryption key",
    },
    "s3express": {
        "NoSuchBucket": "the stack's directory bucket is gone: run `smpi deploy --express auto`",
        "AccessDenied": "the keys lack the permission s3express:CreateSession of this bucket",
    },
    "s3": {
        "NoSuchBucket": "the job's bucket is gone: start the job again",
        "EntityTooSmall": "a part of a multipart upload is below 5 MiB: a fault of this package",
        "PermanentRedirect": "the bucket is in region {region}: set AWS_REGION to it, or start with --region",
        "TemporaryRedirect": "the bucket is in region {region}, and its name is not known everywhere yet: try again in an hour",
        "AuthorizationHeaderMalformed": "the bucket is in region {region}: set AWS_REGION to it, or start with --region",
        "IllegalLocationConstraintException": "the bucket is in another region than the endpoint: set AWS_REGION to it",
    },
}


def code_of(answer: Answer) -> tuple[str, str]:
    """(code, message) of an error answer, each in one line; ("", the text) where it has none."""
    code, message = _code_of(answer)
    return " ".join(code.split()), " ".join(message.split())


def _code_of(answer: Answer) -> tuple[str, str]:
    text = bytes(answer.body[:_ENOUGH]).decode(errors="replace")
    if text.lstrip().startswith("{"):
        try:
            fields: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError):
            return "", text[:300]
        name = str(fields.get("__type") or fields.get("code") or "").rpartition("#")[2]
        return name.partition(":")[0], str(fields.get("message") or fields.get("Message") or "")
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return (
        unescape(code.group(1)) if code else "",
        unescape(message.group(1)) if message else text[:300],
    )


def refused(service: str, what: str, answer: Answer) -> ChannelError:
    """The error for an answer that is not what was asked for."""
    code, message = code_of(answer)
    if not code and answer.status in (301, 307):
        code = "PermanentRedirect"
    advice = ADVICE_OF.get(service, {}).get(code) or ADVICE.get(code) or ""
    if "{region}" in advice:
        text = bytes(answer.body[:_ENOUGH]).decode(errors="replace")
        named = re.search(r"<Region>([^<]*)</Region>|expecting '([^']*)'", text)
        region = (
            answer.headers.get("x-amz-bucket-region")
            or (named and (named.group(1) or named.group(2)))
            or "another"
        )
        advice = advice.format(region=region)
    story = f"HTTP {answer.status} {code} {message}".strip()
    return ChannelError(
        f"{service.upper()} refused to {what}: {story}" + (f"; {advice}" if advice else "")
    )
