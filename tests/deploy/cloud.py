"""Fakes for deploy: a CloudFormation that can be put into any status, and a clock that nobody waits for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from serverless_mpi.deploy.deployment import Pace

NAME = "smpi"


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def pace(self) -> Pace:
        return Pace(2.0, lambda: self.now, self.sleep)


def refusal(code: str, text: str, call: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": text}}, call)


class Exceptions:
    ClientError = ClientError
    NoSuchBucket = type("NoSuchBucket", (Exception,), {})


class Cloud:
    """CloudFormation with one stack.

    An operation takes two looks. `fail` has what the next operations end with: the reason of a
    resource's failure, or None for success. What the real service refuses in a status is refused.
    """

    exceptions = Exceptions
    _UPDATABLE = {
        "CREATE_COMPLETE",
        "UPDATE_COMPLETE",
        "UPDATE_ROLLBACK_COMPLETE",
        "UPDATE_FAILED",
        "IMPORT_COMPLETE",
        "IMPORT_ROLLBACK_COMPLETE",
    }
    # where an operation that is under way when the deploy begins will end
    ENDS = {
        "CREATE_IN_PROGRESS": "CREATE_COMPLETE",
        "ROLLBACK_IN_PROGRESS": "ROLLBACK_COMPLETE",
        "UPDATE_IN_PROGRESS": "UPDATE_COMPLETE",
        "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": "UPDATE_COMPLETE",
        "UPDATE_ROLLBACK_IN_PROGRESS": "UPDATE_ROLLBACK_COMPLETE",
        "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": "UPDATE_ROLLBACK_COMPLETE",
        "DELETE_IN_PROGRESS": "DELETE_COMPLETE",
        "IMPORT_IN_PROGRESS": "IMPORT_COMPLETE",
        "IMPORT_ROLLBACK_IN_PROGRESS": "IMPORT_ROLLBACK_COMPLETE",
    }

    def __init__(self, clock: Clock, status: str = "DELETE_COMPLETE") -> None:
        self.status = status
        self.calls: list[str] = []
        self.fail: list[str | None] = []
        self.fail_continue = False
        self.not_empty: Callable[[], bool] = lambda: False  # whether a deletion fails
        self.events: list[dict[str, Any]] = []  # the oldest first
        clock.on_sleep = self._pass

    def _pass(self) -> None:
        """Time passes: what is under way ends."""
        self.status = self.ENDS.get(self.status, self.status)

    def _note(self, name: str, kind: str, status: str, reason: str = "") -> None:
        self.events.append(
            {
                "EventId": str(len(self.events)),
                "LogicalResourceId": name,
                "ResourceType": kind,
                "ResourceStatus": status,
                "ResourceStatusReason": reason,
            }
        )

    def _begin(self, call: str, body: str | None) -> None:
        self.calls.append(call)
        kind = "CREATE" if call == "create_stack" else "UPDATE"
        self._note(NAME, "AWS::CloudFormation::Stack", f"{kind}_IN_PROGRESS")
        reason = self.fail.pop(0) if self.fail else None
        if reason is None:
            for name, one in json.loads(body or "{}").get("Resources", {}).items():
                self._note(name, one["Type"], "CREATE_COMPLETE")
            self.status = f"{kind}_IN_PROGRESS"
            return
        self._note("Queue1", "AWS::SQS::Queue", "CREATE_FAILED", reason)
        self._note("Queue0", "AWS::SQS::Queue", "CREATE_FAILED", "Resource creation cancelled")
        self.status = "ROLLBACK_IN_PROGRESS" if kind == "CREATE" else "UPDATE_ROLLBACK_IN_PROGRESS"

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        if self.status == "DELETE_COMPLETE":
            raise refusal("ValidationError", f"Stack {NAME} does not exist", "DescribeStacks")
        outputs = [{"OutputKey": "Bucket", "OutputValue": "bucket"}]
        return {"Stacks": [{"StackStatus": self.status, "Outputs": outputs}]}

    def create_stack(self, TemplateBody: str, **_: Any) -> None:
        if self.status != "DELETE_COMPLETE":
            raise refusal("AlreadyExistsException", "it exists", "CreateStack")
        self._begin("create_stack", TemplateBody)

    def update_stack(self, TemplateBody: str | None = None, **_: Any) -> None:
        if self.status not in self._UPDATABLE:
            text = f"Stack is in {self.status} state and can not be updated."
            raise refusal("ValidationError", text, "UpdateStack")
        self._begin("update_stack", TemplateBody)

    def continue_update_rollback(self, StackName: str) -> None:
        assert self.status == "UPDATE_ROLLBACK_FAILED"
        self.calls.append("continue_update_rollback")
        if not self.fail_continue:
            self.status = "UPDATE_ROLLBACK_IN_PROGRESS"

    def delete_stack(self, StackName: str) -> None:
        assert not self.status.endswith("_IN_PROGRESS") or self.status == "REVIEW_IN_PROGRESS"
        self.calls.append("delete_stack")
        self.status = "DELETE_IN_PROGRESS"
        if self.not_empty():
            self._note("Bucket", "AWS::S3::Bucket", "DELETE_FAILED", "The bucket is not empty")
            self.status = "DELETE_FAILED"

    def get_paginator(self, call: str) -> Any:
        assert call == "describe_stack_events"
        return self

    def paginate(self, **_: Any) -> Iterator[dict[str, Any]]:
        newest = self.events[::-1]
        for start in range(0, len(newest), 3):  # a page is short
            yield {"StackEvents": newest[start : start + 3]}


class Bucket:
    """S3 with one bucket; counts uploads."""

    exceptions = Exceptions

    class meta:
        endpoint_url = "https://s3.region.example"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []

    def list_objects_v2(self, Bucket: str, Prefix: str = "") -> dict[str, Any]:
        return {"Contents": [{"Key": key} for key in self.objects if key.startswith(Prefix)]}

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.objects[Key] = Body
        self.puts.append(Key)

    def get_paginator(self, call: str) -> Any:
        return self

    def paginate(self, Bucket: str, Prefix: str = "") -> Iterator[dict[str, Any]]:
        yield self.list_objects_v2(Bucket, Prefix)

    def delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        for one in Delete["Objects"]:
            del self.objects[one["Key"]]
        return {}
