"""A deploy is done when every queue receives its own messages and no others, and not before."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.deploy import probe
from serverless_mpi.errors import ChannelError
from serverless_mpi.stack import pool
from serverless_mpi.stack.stack import Stack
from tests.deploy.cloud import Clock, refusal

RANKS = 5


class NoSuchKey(Exception):
    pass


class Services:
    """SNS, SQS and the object of leases; a filter or a queue's policy applies from its own second on.

    What SNS delivers without a filter goes to every queue of the topic; what a queue's policy does
    not allow is lost, as AWS documents it.
    """

    def __init__(self, clock: Clock, filtered: list[float], allowed: list[float]) -> None:
        self.clock = clock
        self.filtered, self.allowed = filtered, allowed
        self.queues: list[list[dict[str, Any]]] = [[] for _ in filtered]
        self.published = 0
        self.leases: bytes | None = None
        self.lease_log: list[Any] = []

        class Exceptions:
            pass

        Exceptions.NoSuchKey = NoSuchKey  # type: ignore[attr-defined]
        self.exceptions = Exceptions

    # SNS
    def publish_batch(self, TopicArn: str, PublishBatchRequestEntries: list[Any]) -> None:
        assert 1 <= len(PublishBatchRequestEntries) <= 10
        for entry in PublishBatchRequestEntries:
            self.published += 1
            (to,) = json.loads(entry["MessageAttributes"]["t"]["StringValue"])
            for slot, queue in enumerate(self.queues):
                wanted = to == str(slot) or self.clock.now < self.filtered[slot]
                if wanted and self.clock.now >= self.allowed[slot]:
                    queue.append({"Body": entry["Message"], "ReceiptHandle": "r"})

    # SQS
    def receive_message(self, QueueUrl: str, **_: Any) -> dict[str, Any]:
        queue = self.queues[int(QueueUrl.rpartition("-")[2])]
        batch, queue[:] = queue[:2], queue[2:]  # a receive returns part of what is there
        return {"Messages": batch} if batch else {}

    def delete_message_batch(self, **_: Any) -> None:
        pass

    # S3
    def get_object(self, **_: Any) -> dict[str, Any]:
        if self.leases is None:
            raise NoSuchKey
        return {"Body": io.BytesIO(self.leases), "ETag": "e"}

    def put_object(self, Body: bytes, **_: Any) -> None:
        self.leases = Body
        self.lease_log.append(json.loads(Body))


class Bench(Stack):
    services: Services

    def client(self, service: str) -> Any:
        return self.services


def stack(services: Services) -> Stack:
    made = Bench(
        "smpi", None, "eu-west-1", "bucket", "1", "3.13", "x86_64", {1769: "f"},
        len(services.filtered), 2, "https://q/smpi-q-0000", "https://q/smpi-c-0000",
        "arn:aws:sns:r:1:smpi-t-0000",
    )  # fmt: skip
    object.__setattr__(made, "services", services)
    return made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 59.0, 300.0, 900.0]), min_size=RANKS, max_size=RANKS),
    st.lists(st.sampled_from([0.0, 1.0, 60.0]), min_size=RANKS, max_size=RANKS),
)
def test_no_slot_is_proven_before_its_filter_and_its_policy_apply(
    filtered: list[float], allowed: list[float]
) -> None:
    clock, lines = Clock(), []
    services = Services(clock, filtered, allowed)
    assert probe.prove(stack(services), lines.append, clock.pace()) == RANKS
    last = max(*filtered, *allowed)
    assert last <= clock.now < last + 2 * probe.PAUSES_S[1]
    assert bool(lines) is (last > 0)
    # a round publishes to what is left, and a decoy
    assert services.published <= (len(lines) + 1) * (RANKS + 1)
    first, *_, end = services.lease_log
    assert first["deploy"]["slots"] == list(range(RANKS)) and not end  # leased, and given back


@pytest.mark.parametrize("kind", ["filtered", "allowed"])
def test_a_slot_that_never_works_ends_the_probe_with_its_number(kind: str) -> None:
    clock = Clock()
    never = [0.0, 0.0, 1e9, 0.0, 1e9]
    services = Services(
        clock, *(never if kind == name else [0.0] * 5 for name in ("filtered", "allowed"))
    )
    with pytest.raises(ChannelError, match=r"2 of 5 queues.*slots 2, 4\).*--channel object"):
        probe.prove(stack(services), lambda line: None, clock.pace())
    assert probe.PROBE_S <= clock.now <= probe.PROBE_S + 2 * probe.PAUSES_S[1]
    assert not json.loads(services.leases or b"")


def test_a_job_keeps_its_queues_and_what_an_earlier_job_left_is_no_fault() -> None:
    clock = Clock()
    services = Services(clock, [0.0] * 3, [0.0] * 3)
    deployed = stack(services)
    pool.take(deployed, "0123456789abcdef", 1, 3600)
    services.queues[0].append({"Body": ".", "ReceiptHandle": "r"})
    services.queues[1].append({"Body": ".", "ReceiptHandle": "r"})
    assert probe.prove(deployed, lambda line: None, clock.pace()) == 2
    assert len(services.queues[0]) == 1  # untouched: the job's
    assert list(pool.held(deployed)) == ["0123456789abcdef"]


def test_what_sns_refuses_is_one_line_with_the_remedy() -> None:
    services = Services(Clock(), [0.0], [0.0])

    def refuse(**_: Any) -> ClientError:
        raise refusal(
            "AuthorizationError", "not authorized to perform: SNS:Publish", "PublishBatch"
        )

    services.publish_batch = refuse  # type: ignore[assignment,method-assign]
    with pytest.raises(Exception, match="did not probe the queues.*smpi policy") as error:
        probe.prove(stack(services), lambda line: None, Clock().pace())
    assert not re.search("\n", str(error.value))
