"""What a refusal means, and what would help: the one table of advice.

Three kinds of text arrive here: the answers of the data path (S3 and SNS in XML, SQS in JSON,
Lambda with the code in a header), the exceptions of boto3 (by the service's code, or by the
exception's own name), and the reasons that CloudFormation gives for a resource that it could not
create. Each has its table: ADVICE_OF by service, ADVICE for every service and exception, ADVICE_ON
for reasons.

`refused` makes the error of the data path, `explained` that of everything else. Both write one
line: who did not do what, the service's own text, and the advice.

References
----------
The error lists of the Amazon S3, SNS and SQS API References; "Common error types", IAM.
CloudFormation's reasons quote the services.
"""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
from collections.abc import Iterator
from html import unescape
from typing import Any

from serverless_mpi.aws.connection import Answer
from serverless_mpi.errors import ChannelError, ServerlessMPIError, UsageError

_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_ENOUGH = 4096  # an error document is shorter
_TEXT_CHARACTERS = 400  # of a text that is quoted

_NO_KEY = "AWS does not know the access key: see which one is used with `aws configure list`"
_FORBIDDEN = (
    "the keys lack the permission: add the action to the role's or user's policy"
    " (`smpi policy` prints what is needed)"
)
_EXPIRED = (
    "the credentials have ended: renew them (`aws sso login`, or new keys in the environment)"
)
_CLOCK = (
    "this machine's clock is wrong, even after a correction by the service's: set it"
    " (`chronyc makestep`)"
)
_NO_KEYS = (
    "there are no AWS credentials here: run `aws configure` or `aws sso login`, or set AWS_PROFILE;"
    " or name an emulator with --endpoint"
)
_UNREACHABLE = "check the region, the endpoint and the network"
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
    "AuthFailure": _NO_KEY,
    "UnauthorizedOperation": _FORBIDDEN,
    "403": _FORBIDDEN,  # of a request without a body, such as HEAD
    # exceptions of botocore, by name
    "NoCredentialsError": _NO_KEYS,
    "PartialCredentialsError": _NO_KEYS,
    "ProfileNotFound": _NO_KEYS,
    "TokenRetrievalError": _EXPIRED,
    "SSOTokenLoadError": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
    "EndpointConnectionError": _UNREACHABLE,
    "ConnectTimeoutError": _UNREACHABLE,
    "ConnectionClosedError": _UNREACHABLE,
    "InvalidRegionError": _UNREACHABLE,
}
_NO_QUEUE = "the job's queue is gone, or in another region: start the job again"
_ELSEWHERE = "the bucket is in region {region}: set AWS_REGION to it, or start with --region"
ADVICE_OF: dict[str, dict[str, str]] = {
    "sqs": {
        "QueueDoesNotExist": _NO_QUEUE,
        "AWS.SimpleQueueService.NonExistentQueue": _NO_QUEUE,
        "OverLimit": "120,000 messages of this queue are received and not deleted:"
        " receive in fewer ranks",
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
        "AccessDenied": "the keys lack the permission: `smpi deploy --read-bucket NAME` lets the"
        " ranks of a stack read a bucket of yours",
        "EntityTooSmall": "a part of a multipart upload is below 5 MiB: a fault of this package",
        "PermanentRedirect": _ELSEWHERE,
        "TemporaryRedirect": "the bucket is in region {region}, and its name is not known"
        " everywhere yet: try again in an hour",
        "AuthorizationHeaderMalformed": _ELSEWHERE,
        "IllegalLocationConstraintException": "the bucket is in another region than the endpoint:"
        " set AWS_REGION to it",
    },
}


# What CloudFormation reports of a resource: a pattern of the reason, and what would help.
ADVICE_ON: tuple[tuple[str, str], ...] = (
    (
        r"QueueDeletedRecently|wait 60 seconds after deleting",
        "SQS gives the name of a deleted queue away after 60 s: run `smpi deploy` again in a"
        " minute",
    ),
    (
        r"MemorySize.*less than or equal to 3008",
        "a new account has at most 3,008 MB per function: deploy with --memory 3008 or less, or ask"
        " AWS Support for more",
    ),
    (
        r"ReservedConcurrentExecutions|UnreservedConcurrentExecution",
        "the account's quota of concurrent executions is too low: request more in Service Quotas"
        " (L-B99A9384)",
    ),
    (
        r"[Nn]ot authorized to perform|AccessDenied|is not authorized",
        "the keys lack a permission: `smpi policy --deployer` prints what a deploy needs",
    ),
    (
        r"NoSuchKey|GetObject. S3 Error",
        "the function's zip is not in the bucket: run `smpi deploy` again, which uploads it",
    ),
    (
        r"SnapStart.*not (supported|available|enabled)|Unsupported.*SnapStart",
        "SnapStart is not available there: deploy without --snapstart, or in another region",
    ),
    (
        r"runtime parameter of python\S+ is not supported|Value python\S+ at 'runtime'",
        "the region does not have that Python version yet: deploy with --python 3.13",
    ),
    (
        r"already exists",
        "something with that name is in the account and not in the stack, perhaps of a stack that"
        " was deleted with its resources kept: delete it, or use another --stack NAME",
    ),
    (
        r"[Ll]imit [Ee]xceeded|LimitExceeded|TooMany|quota",
        "a quota of the account is used up: remove other stacks, or request more in Service Quotas",
    ),
    (
        r"Throttling|Rate exceeded",
        "AWS throttled the requests of the account: run `smpi deploy` again in some minutes",
    ),
)
# What the user, and nobody else, can correct: a UsageError.
_OF_THE_USER = frozenset({_NO_KEYS, _NO_KEY, _FORBIDDEN, _EXPIRED, _CLOCK, _KEY, _UNREACHABLE})


def advice_on(reason: str) -> str:
    """Return what would help against a reason of CloudFormation.

    Parameters
    ----------
    reason
        Text that CloudFormation, or a service that it called, gives.

    Returns
    -------
    str
        Advice of the first pattern in `ADVICE_ON` that matches; "" if none does.
    """
    return next((advice for pattern, advice in ADVICE_ON if re.search(pattern, reason)), "")


@contextlib.contextmanager
def explained(what: str, endpoint: str | None, region: str) -> Iterator[None]:
    """Turn what boto3 raises inside into one line with the remedy.

    Parameters
    ----------
    what
        What is tried, after "did not": "lease queues".
    endpoint, region
        Where, for the text.

    Raises
    ------
    UsageError
        Credentials, permissions, the clock, the region or the network are at fault.
    ChannelError
        Anything else that AWS or the way to it did.
    """
    try:
        yield
    except ServerlessMPIError:
        raise
    except Exception as error:  # botocore has no common base of its own and the socket's errors
        code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
        text = textwrap.shorten(str(error), _TEXT_CHARACTERS)
        advice = ADVICE.get(code) or ADVICE.get(type(error).__name__) or advice_on(text)
        kind = UsageError if advice in _OF_THE_USER else ChannelError
        raise kind(
            f"{endpoint or f'AWS in {region}'} did not {what}: {text}"
            + (f"; {advice}" if advice else "")
        ) from error


def code_of(answer: Answer) -> tuple[str, str]:
    """Return code and message of an error answer.

    Parameters
    ----------
    answer
        An answer in XML or JSON, or one with the code in a header.

    Returns
    -------
    code, message : str
        Each in one line.  The code is "" if the answer states none; without a message in XML, the
        beginning of the body takes its place.
    """
    code, message = _code_of(answer)
    if not code:  # Lambda's REST-JSON: "TooManyRequestsException:http://..."
        code = answer.headers.get("x-amzn-errortype", "").partition(":")[0]
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
    """Return the error for an answer that refuses a request.

    Parameters
    ----------
    service
        Name of boto3's client.
    what
        What was tried, after "refused to".
    answer
        The last answer.
    """
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
        f"{service.upper()} refused to {what}: {story}" + (f"; {advice}" if advice else ""),
        code=code or str(answer.status),
    )
