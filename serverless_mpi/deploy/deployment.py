"""Creation, update and removal of a stack by CloudFormation, from whatever state it is in.

A deploy has two operations. The first creates the stack with its bucket alone, because the
functions' zips must lie somewhere; the second updates it to the whole template. An operation that
fails is rolled back by CloudFormation, and zips of earlier deploys stay until an update has
succeeded, so a stack that worked goes on working.

A deploy may meet a stack in any status: an earlier deploy was interrupted, failed, or is under way.
`NEXT` states for every status of CloudFormation what a deploy does; each action leads to another
status until the stack can be updated. If you add a status, `tests/deploy/test_statuses.py` plays
it.

Time is passed in (`Pace`), so tests do not wait.
"""

from __future__ import annotations

import contextlib
import enum
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from serverless_mpi.aws import control, limits
from serverless_mpi.aws.refusals import advice_on, explained
from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.stack import express
from serverless_mpi.stack import layout as names
from serverless_mpi.stack.bucket import CODE
from serverless_mpi.stack.stack import describe, empty, outputs_of

BODY_BYTES = limits.TEMPLATE_BYTES.value  # a larger template is read from the bucket
# One operation. CloudFormation calls SQS, SNS and Lambda for each resource within their request
# rates, some of 30 per second; 500 resources are created in minutes.
DEPLOY_S = 3600.0
POLL_S, EMULATOR_POLL_S = 2.0, 0.1  # between two looks at a stack that changes
# SQS: "You must wait 60 seconds after deleting a queue before you can create another queue with the
# same name"
# (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteQueue.html)
QUEUE_NAME_S = 65.0
TEMPLATE_KEY = f"{CODE}template.json"


class Next(enum.Enum):
    """What a deploy does with a stack in a certain status."""

    CREATE = "create it"
    UPDATE = "update it"
    WAIT = "wait until the operation ends"
    REPLACE = "delete it and create it again: it never worked, or can no longer be updated"
    CONTINUE = "continue the rollback, which failed"
    STOP = "stop: only the console can repair it"


# Status codes: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/view-stack-events.html
# Stacks that are CREATE_FAILED or DELETE_FAILED have resources; deleting them again is allowed.
NEXT: dict[str, Next] = {
    "REVIEW_IN_PROGRESS": Next.REPLACE,  # a change set that was never executed: waits for a person
    "CREATE_IN_PROGRESS": Next.WAIT,
    "CREATE_COMPLETE": Next.UPDATE,
    "CREATE_FAILED": Next.REPLACE,
    "ROLLBACK_IN_PROGRESS": Next.WAIT,
    "ROLLBACK_COMPLETE": Next.REPLACE,
    "ROLLBACK_FAILED": Next.REPLACE,
    "UPDATE_IN_PROGRESS": Next.WAIT,
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": Next.WAIT,  # it works, but UpdateStack is refused
    "UPDATE_COMPLETE": Next.UPDATE,
    "UPDATE_FAILED": Next.UPDATE,  # of an update without rollback
    "UPDATE_ROLLBACK_IN_PROGRESS": Next.WAIT,
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": Next.WAIT,
    "UPDATE_ROLLBACK_COMPLETE": Next.UPDATE,
    "UPDATE_ROLLBACK_FAILED": Next.CONTINUE,
    "DELETE_IN_PROGRESS": Next.WAIT,
    "DELETE_COMPLETE": Next.CREATE,
    "DELETE_FAILED": Next.REPLACE,
    "IMPORT_IN_PROGRESS": Next.WAIT,
    "IMPORT_COMPLETE": Next.UPDATE,
    "IMPORT_ROLLBACK_IN_PROGRESS": Next.WAIT,
    "IMPORT_ROLLBACK_COMPLETE": Next.UPDATE,
    "IMPORT_ROLLBACK_FAILED": Next.STOP,
}
# Statuses at which a caller stops waiting although the operation goes on: none; or also while
# CloudFormation still removes what an update has replaced.
_ENDED: tuple[str, ...] = ()
_DONE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")


@dataclass(frozen=True)
class Pace:
    """Time, for a deploy; tests have their own."""

    poll_s: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, endpoint: str | None) -> Pace:
        """Return the pace for AWS, or for an emulator.

        Parameters
        ----------
        endpoint
            URL of an emulator; None for AWS.
        """
        return cls(POLL_S if endpoint is None else EMULATOR_POLL_S)


@dataclass(frozen=True)
class Target:
    """What a stack is brought to.

    Attributes
    ----------
    name
        Of the stack; also its tag.
    first, whole
        Templates: with the bucket alone, and with everything.
    code
        Key -> zip: the function's, then the layer's.
    """

    name: str
    first: dict[str, Any]
    whole: dict[str, Any]
    code: dict[str, bytes] = field(repr=False)


class Deployment:
    """Creates, updates and removes one stack.

    Parameters
    ----------
    name, endpoint, region
        Which stack, and where; endpoint: None for AWS.
    say
        Receives a line for each step and each resource.
    pace
        Time; None for the clock of this machine.
    """

    def __init__(
        self,
        name: str,
        endpoint: str | None,
        region: str,
        say: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._region = region
        self._say = say
        self._pace = pace or Pace.of(endpoint)
        self._seen: set[str] = set()  # ids of events that were reported
        with explained(f"look for stack {name}", endpoint, region):
            self._cloud = control.client("cloudformation", endpoint, region)
            self._s3 = control.client("s3", endpoint, region)

    def _description(self) -> dict[str, Any] | None:
        return describe(self._name, self._endpoint, self._region)

    def _status(self) -> str:
        description = self._description()
        return "DELETE_COMPLETE" if description is None else str(description["StackStatus"])

    def deploy(self, target: Target) -> None:
        """Bring the stack to a target, whatever its status is.

        Parameters
        ----------
        target
            Templates and zips.

        Raises
        ------
        UsageError, ChannelError
            AWS refused; the text has its reason and the remedy. A stack that existed before is
            rolled back to what it was.
        """
        with explained(f"deploy stack {self._name}", self._endpoint, self._region):
            if self._prepare() is Next.CREATE:
                self._say("creating the bucket")
                self._apply("create_stack", {"TemplateBody": json.dumps(target.first)}, [], target)
            description = self._description() or {}
            bucket = outputs_of(description)["Bucket"]
            body = self._upload(bucket, target)
            values = dict(
                zip(("CodeBucket", "FunctionKey", "LayerKey"), (bucket, *target.code), strict=True)
            )
            parameters = [{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()]
            for name in express.dropped(description, target.whole):
                self._empty_directory_bucket(name)  # only an empty bucket can be removed
            self._say(f"creating or updating {len(target.whole['Resources'])} resources")
            self._apply("update_stack", body, parameters, target)
            # only now: an update that fails is rolled back to the zips of the last one
            empty(self._s3, bucket, CODE, keep=target.code)

    def _prepare(self) -> Next:
        """Bring the stack to where it can be created or updated; return which of the two."""
        for _ in range(len(NEXT)):  # each action leads on; a loop would be a fault of the table
            status = self._status()
            action = NEXT.get(status, Next.STOP)
            if action in (Next.CREATE, Next.UPDATE):
                return action
            self._say(f"stack {self._name} is {status}: {action.value}")
            if action is Next.WAIT:
                self._wait(_ENDED)
            elif action is Next.REPLACE:
                self.destroy()
            elif action is Next.CONTINUE:
                self._continue_rollback()
            else:
                break
        raise UsageError(
            f"stack {self._name} is {status}, and a deploy cannot go on from there: repair it in"
            " the CloudFormation console, or deploy another one with --stack NAME"
        )

    def _continue_rollback(self) -> None:
        self._cloud.continue_update_rollback(StackName=self._name)
        status = self._wait(_ENDED)
        if NEXT.get(status) is not Next.UPDATE:
            raise UsageError(
                f"stack {self._name} is {status}: {self._reason()};"
                f" run `smpi destroy --stack {self._name}`, then `smpi deploy`"
            )

    def _upload(self, bucket: str, target: Target) -> dict[str, str]:
        """Upload zips and template; return the arguments of UpdateStack that name the template."""
        listed = self._s3.list_objects_v2(Bucket=bucket, Prefix=CODE).get("Contents", ())
        there = {found["Key"] for found in listed}
        for key, data in target.code.items():
            if key not in there:  # a key names its content
                self._say(f"uploading {key} ({len(data) / 1e6:.1f} MB)")
                self._s3.put_object(Bucket=bucket, Key=key, Body=data)
        text = json.dumps(target.whole, separators=(",", ":"))
        if len(text) <= BODY_BYTES:
            return {"TemplateBody": text}
        self._s3.put_object(Bucket=bucket, Key=TEMPLATE_KEY, Body=text.encode())
        # the client knows the host name of the region's partition
        host = self._s3.meta.endpoint_url
        return {"TemplateURL": f"{host}/{bucket}/{TEMPLATE_KEY}"}

    def _apply(
        self, call: str, body: dict[str, str], parameters: list[dict[str, str]], target: Target
    ) -> None:
        """Run one operation to its end; once more if SQS does not give a queue's name away yet."""
        for attempt in range(2):
            status = self._operate(call, body, parameters, target)
            if status in _DONE:
                return
            reason = self._reason()
            deleted = "QueueDeletedRecently" in reason or "60 seconds after deleting" in reason
            if attempt or not deleted or NEXT.get(status) is not Next.UPDATE:
                break
            self._say("a queue of that name was deleted less than 60 s ago: waiting, then again")
            self._pace.sleep(QUEUE_NAME_S)
        advice = advice_on(reason)
        raise ChannelError(
            f"stack {self._name} is {status}: {reason}" + (f"; {advice}" if advice else "")
        )

    def _operate(
        self, call: str, body: dict[str, str], parameters: list[dict[str, str]], target: Target
    ) -> str:
        self._note_events()
        try:
            getattr(self._cloud, call)(
                StackName=self._name,
                Parameters=parameters,
                Capabilities=["CAPABILITY_IAM"],
                Tags=[{"Key": names.TAG, "Value": target.name}],
                **body,
            )
        except self._cloud.exceptions.ClientError as error:
            if "No updates are to be performed" in str(error):
                return "UPDATE_COMPLETE"
            raise
        total = len(json.loads(body["TemplateBody"])["Resources"]) if "TemplateBody" in body else 0
        return self._wait(_DONE, total or len(target.whole["Resources"]))

    def _wait(self, enough: tuple[str, ...], total: int = 0) -> str:
        """Wait until the operation ends, or has one of the statuses in `enough`; return the status.

        Parameters
        ----------
        total
            Number of resources, for the lines of progress; 0 for no such lines.
        """
        deadline = self._pace.now() + DEPLOY_S
        progress = _Progress(self._say, total)
        while True:
            status = self._status()
            if total:
                for event in self._new_events():
                    progress.take(event)
            if status in enough or NEXT.get(status) is not Next.WAIT:
                return status
            if self._pace.now() > deadline:
                raise ChannelError(
                    f"stack {self._name} is still {status} after {DEPLOY_S:.0f} s: its events are"
                    " in the CloudFormation console; `smpi deploy` waits for it and goes on"
                )
            self._pace.sleep(self._pace.poll_s)

    # -- events

    def _events(self) -> Iterator[dict[str, Any]]:
        """Yield the stack's events, the newest first."""
        pages = self._cloud.get_paginator("describe_stack_events").paginate(StackName=self._name)
        return (event for page in pages for event in page["StackEvents"])

    def _note_events(self) -> None:
        """Take the events of earlier operations as reported."""
        if self._status() != "DELETE_COMPLETE":
            self._seen.update(event["EventId"] for event in self._events())

    def _new_events(self) -> list[dict[str, Any]]:
        """Return the events that were not reported yet, the oldest first."""
        if self._status() == "DELETE_COMPLETE":
            return []
        fresh: list[dict[str, Any]] = []
        for event in self._events():
            if event["EventId"] in self._seen:
                break
            fresh.append(event)
        self._seen.update(event["EventId"] for event in fresh)
        return fresh[::-1]

    def _reason(self) -> str:
        """Return the first thing that went wrong in the last operation."""
        reason = "no reason was given"
        for event in self._events():
            status, text = event["ResourceStatus"], event.get("ResourceStatusReason", "")
            if status.endswith("_FAILED") and "cancelled" not in text:
                reason = f"{event['LogicalResourceId']} ({event['ResourceType']}): {text}"
            if event["LogicalResourceId"] == self._name and status in (
                "CREATE_IN_PROGRESS",
                "UPDATE_IN_PROGRESS",
                "DELETE_IN_PROGRESS",
            ):
                break
        return reason

    def _empty_directory_bucket(self, bucket: str) -> None:
        """Delete objects, and abort uploads, without which S3 does not delete such a bucket."""
        with contextlib.suppress(self._s3.exceptions.NoSuchBucket):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
            for one in (upload for page in pages for upload in page.get("Uploads", ())):
                upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
                self._s3.abort_multipart_upload(Bucket=bucket, **upload)
        empty(self._s3, bucket)

    def destroy(self) -> bool:
        """Remove the stack and everything in it; return whether there was one.

        Raises
        ------
        UsageError, ChannelError
            AWS refused; what is left is in the text.
        """
        with explained(f"remove stack {self._name}", self._endpoint, self._region):
            if self._status() == "DELETE_COMPLETE":
                return False
            if NEXT.get(self._status()) is Next.WAIT:  # most operations refuse a deletion meanwhile
                self._say(f"stack {self._name} is {self._status()}: {Next.WAIT.value}")
                self._wait(_ENDED)
            # twice: a rank that still runs may put an object into the bucket that was just emptied
            for _ in range(2):
                status = self._delete()
                if status == "DELETE_COMPLETE":
                    return True
            raise ChannelError(f"stack {self._name} is {status}: {self._reason()}")

    def _delete(self) -> str:
        """Empty the buckets and delete the stack; return the status."""
        description = self._description() or {}
        bucket = outputs_of(description).get("Bucket")
        if bucket is not None:
            self._say(f"emptying bucket {bucket}")
            empty(self._s3, bucket)
        for name in express.of_stack(description).values():
            self._say(f"emptying bucket {name}")
            self._empty_directory_bucket(name)
        self._cloud.delete_stack(StackName=self._name)
        return self._wait(("DELETE_COMPLETE",))


class _Progress:
    """Lines about resources: which are ready, and which failed."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say = say
        self._total = total
        self._ready: set[str] = set()

    def take(self, event: dict[str, Any]) -> None:
        """Report one event of CloudFormation if it is the end of a resource."""
        name, kind = event["LogicalResourceId"], event["ResourceType"]
        status = event["ResourceStatus"]
        if kind == "AWS::CloudFormation::Stack":
            return
        if status.endswith("_FAILED"):
            self._say(f"{name} ({kind}) {status}: {event.get('ResourceStatusReason', '')}")
        elif status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            self._ready.add(name)
            self._say(f"[{len(self._ready):3}/{self._total}] {name} ({kind})")
        elif status == "DELETE_COMPLETE":
            self._say(f"removed {name} ({kind})")
