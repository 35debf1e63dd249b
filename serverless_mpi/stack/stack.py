"""Facts of a deployed stack: what a launcher and the commands must know of it.

CloudFormation's outputs are the only record: `template.py` writes them, `Stack.find` reads them.
What they do not state follows from the names (`layout.py`). To add a fact, write an output in
`template._outputs` and read it here; a stack of another version is refused before it is used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.aws import control
from serverless_mpi.aws.refusals import explained
from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.stack import express
from serverless_mpi.stack import layout as names

__all__ = ["Stack", "describe", "empty", "explained", "own_region"]


def own_region(region: str, endpoint: str | None) -> str:
    """Return the region to work in.

    Parameters
    ----------
    region
        What the user asked for; "" for the region of the user's AWS settings.
    endpoint
        URL of an emulator, for which the default is us-east-1; None for AWS.

    Raises
    ------
    UsageError
        No region is set anywhere.
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
    """A stack that exists and is complete.

    Attributes
    ----------
    name, endpoint, region
        Where it is; endpoint: None on AWS.
    bucket
        Of all its jobs.
    version
        Of the package that its functions run.
    python, arch
        Of its functions.
    functions
        Memory in MB -> name with which a function is invoked.
    ranks, jobs
        Number of queues, and of console queues, in the pool.
    queue_url, console_url, topic_arn
        Of number 0; the others differ in the number.
    read_buckets, policies
        What ranks may do beyond the stack: buckets they may read, ARNs of managed policies.
    changed
        When it was created or last updated, in seconds of the epoch.
    express
        Zone -> directory bucket of S3 Express.
    echo_url
        URL that answers a rank with its address; "" in a stack of an earlier version.
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
    read_buckets: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    changed: float = 0.0
    express: dict[str, str] = field(default_factory=dict)
    echo_url: str = ""

    @classmethod
    def find(cls, name: str, endpoint: str | None, region: str) -> Stack:
        """Find the stack of a name.

        Parameters
        ----------
        name
            Name of the stack.
        endpoint
            URL of an emulator; None for AWS.
        region
            AWS region.

        Raises
        ------
        UsageError
            There is none, or it is not complete.
        """
        description = describe(name, endpoint, region)
        if description is None:
            raise UsageError(
                f"there is no stack {name} at {endpoint or f'AWS in {region}'}: create it with"
                f" `smpi deploy --stack {name}`, or name another region with --region"
            )
        outputs = outputs_of(description)
        status = description["StackStatus"]
        if "Functions" not in outputs or not status.endswith(("_COMPLETE", "CLEANUP_IN_PROGRESS")):
            raise UsageError(
                f"stack {name} is not complete ({status}): run `smpi deploy --stack {name}`"
            )
        functions = json.loads(outputs["Functions"])
        return cls(
            name,
            endpoint,
            region,
            outputs["Bucket"],
            outputs["Version"],
            outputs["Python"],
            outputs["Arch"],
            {int(size): function for size, function in functions.items()},
            int(outputs["Ranks"]),
            int(outputs["Jobs"]),
            outputs["QueueUrl"],
            outputs["ConsoleUrl"],
            outputs["TopicArn"],
            # of a stack of an earlier version these are not there
            tuple(json.loads(outputs.get("ReadBuckets", "[]"))),
            tuple(json.loads(outputs.get("Policies", "[]"))),
            _changed(description),
            express.of_stack(description),
            outputs.get("EchoUrl", ""),
        )

    def function(self, memory_mb: int | None) -> tuple[int, str]:
        """Return memory and name of the function to use.

        Parameters
        ----------
        memory_mb
            Its memory in MB; None for the smallest.

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
                f"--memory {size}: stack {self.name} has {known} MB;"
                f" add it with `smpi deploy --memory {every}`"
            )
        return size, self.functions[size]

    def queue(self, slot: int) -> str:
        """Return the URL of a queue of the pool.

        Parameters
        ----------
        slot
            Number of the queue, from 0 to `ranks` - 1.
        """
        return self.queue_url.removesuffix(names.queue_name(self.name, 0)) + names.queue_name(
            self.name, slot
        )

    def console(self, number: int) -> str:
        """Return the URL of a console queue.

        Parameters
        ----------
        number
            Number of the console queue, from 0 to `jobs` - 1.
        """
        return self.console_url.removesuffix(names.console_name(self.name, 0)) + names.console_name(
            self.name, number
        )

    def topics(self) -> list[str]:
        """Return the ARNs of the pool's topics."""
        first = self.topic_arn.removesuffix(names.topic_name(self.name, 0))
        return [
            first + names.topic_name(self.name, number)
            for number in range(-(-self.ranks // names.FILTERS_PER_TOPIC))
        ]

    def client(self, service: str) -> Any:
        """Return a boto3 client for where the stack is.

        Parameters
        ----------
        service
            boto3's name of the service, as "sqs".
        """
        return control.client(service, self.endpoint, self.region)


def _changed(description: dict[str, Any]) -> float:
    """Return when a stack was created or last updated, in seconds of the epoch; 0 if unknown."""
    stamp = description.get("LastUpdatedTime") or description.get("CreationTime")
    return stamp.timestamp() if stamp is not None else 0.0


def describe(name: str, endpoint: str | None, region: str) -> dict[str, Any] | None:
    """Return what CloudFormation states of a stack.

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
    dict or None
        The item of DescribeStacks; None if there is no such stack, or it was deleted.

    Raises
    ------
    UsageError, ChannelError
        CloudFormation refused the request, or cannot be reached.
    """
    with explained(f"look for stack {name}", endpoint, region):
        cloud = control.client("cloudformation", endpoint, region)
        try:
            found: dict[str, Any] = cloud.describe_stacks(StackName=name)["Stacks"][0]
        except cloud.exceptions.ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
        return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def outputs_of(description: dict[str, Any]) -> dict[str, str]:
    """Return the outputs of a stack by name.

    Parameters
    ----------
    description
        What `describe` returned.
    """
    return {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", ())}


def empty(s3: Any, bucket: str, prefix: str = "", keep: Container[str] = ()) -> int:
    """Delete the objects of a bucket.

    Parameters
    ----------
    s3
        boto3's client.
    bucket, prefix
        Which objects; "" for all.
    keep
        Keys that stay.

    Returns
    -------
    int
        Number of deleted objects.

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
