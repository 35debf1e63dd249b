"""Deployed stacks: find, create, update and remove them by CloudFormation.

`explained` turns boto3's errors into errors of this package that name the remedy.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.aws import control, limits
from serverless_mpi.deploy import express
from serverless_mpi.deploy import layout as names
from serverless_mpi.deploy.layout import Layout
from serverless_mpi.errors import ChannelError, ServerlessMPIError, UsageError
from serverless_mpi.stack.bucket import CODE

POLL_S = 2.0  # between two looks at a stack that is being made, on AWS
EMULATOR_POLL_S = 0.1
BODY_BYTES = limits.TEMPLATE_BYTES.value  # a larger one is read from the bucket
DEPLOY_S = 900.0
_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOTokenLoadError",
)
_REFUSED = (
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "AuthFailure",
)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


@contextlib.contextmanager
def explained(what: str, endpoint: str | None, region: str) -> Iterator[None]:
    """What AWS refuses inside is an error that says what was tried and what would help.

    Raises
    ------
    UsageError
        Credentials, permissions or the region are at fault.
    ChannelError
        Anything else that AWS or the way to it did.
    """
    where = endpoint or f"AWS in {region}"
    try:
        yield
    except ServerlessMPIError:
        raise
    except Exception as error:
        kind = type(error).__name__
        code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
        if kind in _CREDENTIALS:
            raise UsageError(
                f"no AWS credentials to {what} ({error}): run `aws configure` or `aws sso login`, or set AWS_PROFILE;"
                " or name an emulator with --endpoint"
            ) from error
        if code in _EXPIRED or kind == "UnauthorizedSSOTokenError":
            raise UsageError(
                f"the AWS credentials have expired: run `aws sso login`, or get new keys ({error})"
            ) from error
        if code in _REFUSED:
            raise UsageError(
                f"AWS does not accept these credentials, or the clock is wrong (check with smpi doctor): {error}"
            ) from error
        if code in _DENIED:
            raise UsageError(f"these AWS credentials do not permit to {what}: {error}") from error
        if kind in (
            "EndpointConnectionError",
            "ConnectTimeoutError",
            "ConnectionClosedError",
            "InvalidRegionError",
        ):
            raise UsageError(
                f"cannot reach {where} to {what}: {error}; check the region and the network"
            ) from error
        raise ChannelError(f"{where} did not {what}: {error}") from error


def own_region(region: str, endpoint: str | None) -> str:
    """`region`, or what the user's AWS settings name, or us-east-1 of an emulator.

    Raises
    ------
    UsageError
        None is named anywhere.
    """
    if region:
        return region
    if endpoint is not None:
        return "us-east-1"
    import boto3

    with explained("find the region", endpoint, "?"):
        found = boto3.Session().region_name
    if not found:
        raise UsageError("no AWS region: set one with --region, AWS_REGION or `aws configure`")
    return str(found)


@dataclass(frozen=True)
class Stack:
    """A stack that is there.

    name, endpoint, region: where; bucket: of all jobs; version: of the package it runs; python, arch: of its
    functions; functions: memory in MB -> name with which it is invoked; ranks, jobs: size of the pool;
    changed: when it was made or last updated, in seconds of the epoch.
    """

    name: str
    endpoint: str | None
    region: str
    bucket: str
    version: str
    python: str
    arch: str
    functions: dict[int, str]
    ranks: int
    jobs: int
    queue_url: str
    console_url: str
    topic_arn: str
    express: dict[str, str] = field(default_factory=dict)  # zone -> directory bucket
    changed: float = 0.0

    @classmethod
    def find(cls, name: str, endpoint: str | None, region: str) -> Stack:
        """The stack of that name.

        Raises
        ------
        UsageError
            There is none, or it is not whole.
        """
        found = describe(name, endpoint, region)
        if found is None:
            raise UsageError(
                f"there is no stack {name} at {endpoint or f'AWS in {region}'}: create it with `smpi deploy --stack {name}`, or name another region with --region"
            )
        outputs = {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs") or ()}
        if "Functions" not in outputs or not found["StackStatus"].endswith(
            ("_COMPLETE", "CLEANUP_IN_PROGRESS")
        ):
            raise UsageError(
                f"stack {name} is not complete ({found['StackStatus']}): run `smpi deploy --stack {name}`"
            )
        return cls(
            name,
            endpoint,
            region,
            outputs["Bucket"],
            outputs["Version"],
            outputs["Python"],
            outputs["Arch"],
            {int(size): function for size, function in json.loads(outputs["Functions"]).items()},
            int(outputs["Ranks"]),
            int(outputs["Jobs"]),
            outputs["QueueUrl"],
            outputs["ConsoleUrl"],
            outputs["TopicArn"],
            express.of_stack(found),
            (found.get("LastUpdatedTime") or found["CreationTime"]).timestamp(),
        )

    def function(self, memory_mb: int | None) -> tuple[int, str]:
        """Memory and name of the function to use.

        Raises
        ------
        UsageError
            That size was not deployed.
        """
        size = min(self.functions) if memory_mb is None else memory_mb
        if size not in self.functions:
            known = ", ".join(map(str, sorted(self.functions)))
            every = ",".join(map(str, sorted({*self.functions, size})))
            raise UsageError(
                f"--memory {size}: stack {self.name} has {known} MB; add it with `smpi deploy --memory {every}`"
            )
        return size, self.functions[size]

    def queue(self, slot: int) -> str:
        """URL of a queue of the pool."""
        return self.queue_url.removesuffix(names.queue_name(self.name, 0)) + names.queue_name(
            self.name, slot
        )

    def console(self, number: int) -> str:
        """URL of a console queue."""
        return self.console_url.removesuffix(names.console_name(self.name, 0)) + names.console_name(
            self.name, number
        )

    def topics(self) -> list[str]:
        """ARNs of the pool's topics."""
        first = self.topic_arn.removesuffix(names.topic_name(self.name, 0))
        return [
            first + names.topic_name(self.name, number)
            for number in range(-(-self.ranks // names.FILTERS_PER_TOPIC))
        ]

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return control.client(service, self.endpoint, self.region)


def describe(name: str, endpoint: str | None, region: str) -> dict[str, Any] | None:
    """What CloudFormation knows of a stack, or None."""
    with explained(f"look for stack {name}", endpoint, region):
        cloud = control.client("cloudformation", endpoint, region)
        try:
            found: dict[str, Any] = cloud.describe_stacks(StackName=name)["Stacks"][0]
        except cloud.exceptions.ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
        return None if found["StackStatus"] == "DELETE_COMPLETE" else found


class Deployment:
    """Makes, changes and removes one stack; `say` gets a line for each step."""

    def __init__(
        self, name: str, endpoint: str | None, region: str, say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._region = region
        self._say = say
        self._poll_s = POLL_S if endpoint is None else EMULATOR_POLL_S

    def _client(self, service: str) -> Any:
        return control.client(service, self._endpoint, self._region)

    def deploy(
        self, layout: Layout, first: dict[str, Any], whole: dict[str, Any], code: dict[str, bytes]
    ) -> None:
        """Bring the stack to `whole`; `first` has the bucket alone; code: key -> zip, in the order FunctionKey, LayerKey.

        Raises
        ------
        UsageError, ChannelError
            AWS refused; the text has its reason.  A stack that was there before is as it was.
        """
        with explained(f"deploy stack {self._name}", self._endpoint, self._region):
            there = describe(self._name, self._endpoint, self._region)
            if there is not None and there["StackStatus"].endswith("_IN_PROGRESS"):
                self._say(f"waiting for what is under way ({there['StackStatus']})")
                self._wait()
                there = describe(self._name, self._endpoint, self._region)
            if there is not None and there["StackStatus"] == "UPDATE_ROLLBACK_FAILED":
                raise UsageError(
                    f"stack {self._name} is UPDATE_ROLLBACK_FAILED, which cannot be updated:"
                    f" run `smpi destroy --stack {self._name}`, then `smpi deploy`"
                )
            if there is not None and there["StackStatus"] in (
                "ROLLBACK_COMPLETE",
                "ROLLBACK_FAILED",
                "CREATE_FAILED",
                "DELETE_FAILED",
            ):
                self._say(f"removing what an earlier attempt left ({there['StackStatus']})")
                self.destroy()
                there = None
            if there is None:
                self._say("making the bucket")
                self._apply("create_stack", {"TemplateBody": json.dumps(first)}, [], layout)
            bucket = self._output("Bucket")
            s3 = self._client("s3")
            for key, data in code.items():
                self._say(f"uploading {key} ({len(data) / 1e6:.1f} MB)")
                s3.put_object(Bucket=bucket, Key=key, Body=data)
            text = json.dumps(whole, separators=(",", ":"))
            body = {"TemplateBody": text}
            if len(text) > BODY_BYTES:
                s3.put_object(Bucket=bucket, Key="code/template.json", Body=text.encode())
                host = self._endpoint or f"https://s3.{self._region}.amazonaws.com"
                body = {"TemplateURL": f"{host}/{bucket}/code/template.json"}
            values = dict(
                zip(("CodeBucket", "FunctionKey", "LayerKey"), (bucket, *code), strict=True)
            )
            for zone, name in express.of_stack(there or {}).items():
                if zone not in layout.express:  # only an empty bucket can be removed
                    self._empty_directory_bucket(name)
            self._say(f"making {len(whole['Resources'])} resources")
            self._apply(
                "update_stack",
                body,
                [{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()],
                layout,
            )
            # only now: an update that fails is rolled back to the zips of the last one
            empty(s3, bucket, CODE, keep=code)

    def _apply(
        self, call: str, body: dict[str, str], parameters: list[dict[str, str]], layout: Layout
    ) -> None:
        cloud = self._client("cloudformation")
        tags = [{"Key": names.TAG, "Value": layout.name}]
        try:
            getattr(cloud, call)(
                StackName=self._name,
                Parameters=parameters,
                Capabilities=["CAPABILITY_IAM"],
                Tags=tags,
                **body,
            )
        except cloud.exceptions.ClientError as error:
            if "No updates are to be performed" in str(error):
                return
            raise
        status = self._wait()
        if status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            raise ChannelError(f"stack {self._name} is {status}: {self._reason(cloud)}")

    def _wait(self) -> str:
        deadline = time.monotonic() + DEPLOY_S
        while time.monotonic() < deadline:
            found = describe(self._name, self._endpoint, self._region)
            status = "DELETE_COMPLETE" if found is None else str(found["StackStatus"])
            if (
                not status.endswith("IN_PROGRESS")
                or status == "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"
            ):
                return status.replace("_CLEANUP_IN_PROGRESS", "")
            time.sleep(self._poll_s)
        raise ChannelError(
            f"stack {self._name} was not ready after {DEPLOY_S:.0f} s; its events are in the CloudFormation console"
        )

    def _reason(self, cloud: Any) -> str:
        """The first thing that went wrong in the last operation."""
        failed = "no reason was given"
        pages = cloud.get_paginator("describe_stack_events").paginate(StackName=self._name)
        for event in (event for page in pages for event in page["StackEvents"]):  # newest first
            status, reason = event["ResourceStatus"], event.get("ResourceStatusReason", "")
            if status.endswith("_FAILED") and "cancelled" not in reason:
                failed = f"{event['LogicalResourceId']} ({event['ResourceType']}): {reason}"
            if event["LogicalResourceId"] == self._name and status in (
                "CREATE_IN_PROGRESS",
                "UPDATE_IN_PROGRESS",
            ):
                break
        return failed

    def _empty_directory_bucket(self, bucket: str) -> None:
        """Delete objects, and abort uploads, without which S3 does not delete such a bucket."""
        s3 = self._client("s3")
        with contextlib.suppress(s3.exceptions.NoSuchBucket):
            for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
                for one in page.get("Uploads", ()):
                    upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
                    s3.abort_multipart_upload(Bucket=bucket, **upload)
        empty(s3, bucket)

    def _output(self, name: str) -> str:
        found = describe(self._name, self._endpoint, self._region) or {}
        return next(
            str(one["OutputValue"]) for one in found.get("Outputs", ()) if one["OutputKey"] == name
        )

    def destroy(self) -> bool:
        """Remove the stack and everything in it; whether there was one.

        Raises
        ------
        UsageError, ChannelError
            AWS refused; what is left is in the text.
        """
        with explained(f"remove stack {self._name}", self._endpoint, self._region):
            found = describe(self._name, self._endpoint, self._region)
            if found is None:
                return False
            bucket = next(
                (
                    one["OutputValue"]
                    for one in found.get("Outputs") or ()
                    if one["OutputKey"] == "Bucket"
                ),
                None,
            )
            if bucket is not None:
                self._say(f"emptying bucket {bucket}")
                empty(self._client("s3"), bucket)
            for name in express.of_stack(found).values():
                self._say(f"emptying bucket {name}")
                self._empty_directory_bucket(name)
            self._client("cloudformation").delete_stack(StackName=self._name)
            status = self._wait()
            if status != "DELETE_COMPLETE":
                raise ChannelError(
                    f"stack {self._name} is {status}: {self._reason(self._client('cloudformation'))}"
                )
            return True


def empty(s3: Any, bucket: str, prefix: str = "", keep: Container[str] = ()) -> int:
    """Delete a bucket's objects below `prefix` but those to `keep`; how many there were.

    Raises
    ------
    ChannelError
        S3 did not delete one of them.
    """
    count = 0
    with contextlib.suppress(s3.exceptions.NoSuchBucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found = [one["Key"] for one in page.get("Contents", ())]
            keys = [key for key in found if key not in keep]
            for key, code in control.delete_objects(s3.delete_objects, bucket, keys).items():
                raise ChannelError(f"S3 did not delete {key} of bucket {bucket}: {code}")
            count += len(keys)
    return count
