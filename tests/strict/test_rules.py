"""Each rule of the table, broken on purpose by raw requests: the layer catches it.

A case of a check sends a call that is refused, with the code of AWS.  A case of an acting
rule is a client that relies on what AWS does not promise, and shows that it is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from serverless_mpi.aws import s3express
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.deploy import template
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import Meter
from serverless_mpi.stack.layout import Layout
from tests.strict import stacks
from tests.strict.call import Answer, Request
from tests.strict.express import Express, directory_bucket, plain
from tests.strict.layer import Front
from tests.strict.rules import RULES
from tests.strict.rules_functions import EVENT_BYTES
from tests.strict.rules_messages import FILTERS_PER_TOPIC, SNS_BYTES, SQS_BYTES
from tests.strict.world import (
    ACCOUNT,
    REGION,
    FakeClock,
    Settings,
    Subscription,
    authorization,
    queue_arn,
)

FORM = {"content-type": "application/x-www-form-urlencoded"}
ALLOW_ALL = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage"}


class Bench:
    """The layer in front of an emulator, with a clock that the test moves."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.settings = Settings()
        self.clock = FakeClock()
        self.front = Front(endpoint, self.settings, self.clock, on_purpose=True)
        self.world = self.front.world
        self.name = name  # of queues, topics, buckets: one per rule
        self.forwarded: list[Request] = []

    def __enter__(self) -> Bench:
        self.front.__enter__()
        inner = self.world.forward

        def forward(request: Request) -> Answer:
            self.forwarded.append(request)
            return inner(request)

        self.world.forward = forward
        parts = urlsplit(self.front.url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        return self

    def __exit__(self, *error: Any) -> None:
        self._connection.close()
        self.front.__exit__(*error)

    def http(
        self, service: str, method: str, target: str, body: bytes = b"", **headers: str
    ) -> Answer:
        """Send a raw request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, target, body, {**authorization(service), **named})
        answer = self._connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, answer.read(), found)

    def sqs(self, action: str, **fields: Any) -> Answer:
        """Call SQS."""
        body = json.dumps(fields).encode()
        return self.http("sqs", "POST", "/", body, x_amz_target=f"AmazonSQS.{action}")

    def form(self, service: str, action: str, **fields: Any) -> Answer:
        """Call SNS or CloudFormation."""
        version = {"sns": "2010-03-31", "cloudformation": "2010-05-15"}[service]
        flat = {"Action": action, "Version": version, **fields}
        body = urlencode(flat).encode()
        return self.http(service, "POST", "/", body, content_type=FORM["content-type"])

    def queue(self, name: str | None = None) -> str:
        """Create a queue; return its URL."""
        answer = self.sqs("CreateQueue", QueueName=name or self.name)
        return str(json.loads(answer.body)["QueueUrl"])

    def topic(self, *queues: str) -> str:
        """Create a topic with subscriptions that deliver; return its ARN."""
        answer = self.form("sns", "CreateTopic", Name=self.name)
        arn = answer.body.decode().partition("<TopicArn>")[2].partition("<")[0]
        for queue in queues:
            policy = {"Statement": [{**ALLOW_ALL, "Resource": queue_arn(queue)}]}
            self.sqs(
                "SetQueueAttributes", QueueUrl=queue, Attributes={"Policy": json.dumps(policy)}
            )
            self.subscribe(arn, queue)
        self.clock.advance(900)
        return arn

    def subscribe(self, topic: str, queue: str, policy: str = '{"t":["1"]}') -> Answer:
        """Subscribe a queue with a filter policy."""
        return self.form(
            "sns",
            "Subscribe",
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=queue_arn(queue),
            **{
                "Attributes.entry.1.key": "FilterPolicy",
                "Attributes.entry.1.value": policy,
                "Attributes.entry.2.key": "RawMessageDelivery",
                "Attributes.entry.2.value": "true",
            },
        )

    def publish(self, topic: str, message: str = "x", array: str = '["1"]', **more: Any) -> Answer:
        """Publish a message for reader 1."""
        return self.form(
            "sns",
            "Publish",
            TopicArn=topic,
            Message=message,
            **{
                "MessageAttributes.entry.1.Name": "t",
                "MessageAttributes.entry.1.Value.DataType": "String.Array",
                "MessageAttributes.entry.1.Value.StringValue": array,
            },
            **more,
        )

    def send(self, queue: str, *bodies: str, **more: Any) -> Answer:
        """Send a batch."""
        entries = [{"Id": f"{n}", "MessageBody": body, **more} for n, body in enumerate(bodies)]
        return self.sqs("SendMessageBatch", QueueUrl=queue, Entries=entries)

    def receive(self, queue: str, **more: Any) -> list[dict[str, Any]]:
        """Receive up to 10 messages."""
        answer = self.sqs("ReceiveMessage", QueueUrl=queue, MaxNumberOfMessages=10, **more)
        return list(json.loads(answer.body or b"{}").get("Messages") or ())

    def drain(self, queue: str) -> list[str]:
        """Return the bodies of all messages, in the order of their arrival."""
        found: list[str] = []
        while messages := self.receive(queue):
            found += [one["Body"] for one in messages]
            for one in messages:
                self.sqs("DeleteMessage", QueueUrl=queue, ReceiptHandle=one["ReceiptHandle"])
        return found

    def bucket(self) -> str:
        """Create a bucket; return its path."""
        assert self.http("s3", "PUT", f"/{self.name}").status == 200
        return f"/{self.name}"

    def function(self, **more: Any) -> str:
        """Create a function that returns at once."""
        code = BytesIO()
        with zipfile.ZipFile(code, "w") as packed:
            packed.writestr("a.py", "def handler(event, context):\n    return 1\n")
        fields = {
            "FunctionName": self.name,
            "Runtime": "python3.12",
            "Handler": "a.handler",
            "Role": f"arn:aws:iam::{ACCOUNT}:role/r",
            "Code": {"ZipFile": base64.b64encode(code.getvalue()).decode()},
            **more,
        }
        answer = self.http("lambda", "POST", "/2015-03-31/functions", json.dumps(fields).encode())
        assert answer.status == 201, answer.body
        return self.name

    def invoke(self, function: str, payload: bytes = b"{}", kind: str = "Event") -> Answer:
        """Invoke a function."""
        target = f"/2015-03-31/functions/{function}/invocations"
        return self.http("lambda", "POST", target, payload, x_amz_invocation_type=kind)

    def invoked(self) -> int:
        """Return how many invocations the emulator was asked for."""
        return sum("/invocations" in one.target for one in self.forwarded)

    def stack(self, resources: dict[str, Any], action: str = "CreateStack", **more: Any) -> Answer:
        """Create or update the stack."""
        text = json.dumps({"Resources": resources})
        return self.form("cloudformation", action, StackName=self.name, TemplateBody=text, **more)

    def refused(self, answer: Answer, code: str, status: int = 400) -> None:
        """Check that a request was refused by the rule of this bench."""
        where = answer.body.decode() + answer.headers.get("x-amzn-errortype", "")
        assert answer.status == status and code in where, (answer.status, where)
        assert self.world.broken[self.name_of_rule], self.world.refusals

    def wrong(self, caught: bool) -> None:
        """Check that an acting rule has shown a client to be wrong."""
        rule = self.name_of_rule
        assert caught and self.world.exercised[rule], rule
        self.world.broken[rule] += 1

    name_of_rule = ""


QUEUE = {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "strict-stack-queue"}}
Case = Callable[[Bench], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def register(made: Case) -> Case:
        CASES[name] = made
        return made

    return register


@pytest.fixture
def bench(strict_endpoint: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    name = request.node.callspec.params["name"]
    made = Bench(strict_endpoint, f"strict-{name}")
    made.name_of_rule = name
    with made:
        yield made


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_client_that_breaks_it_is_caught(name: str, bench: Bench) -> None:
    CASES[name](bench)


def test_the_table_is_whole() -> None:
    assert set(CASES) == set(RULES)
    for rule in RULES.values():
        assert (rule.check is None) != (rule.act is None) or not rule.calls
        assert rule.statement.endswith(".") and rule.source.startswith("https://docs.aws.")


# --- every service ---------------------------------------------------------------------------


@case("request-shape")
def _(b: Bench) -> None:
    queue = b.queue()
    b.refused(b.sqs("ReceiveMessage", QueueUrl=queue, Wait=3), "ValidationError")
    b.refused(b.sqs("ReceiveMessage", QueueUrl=queue, WaitTimeSeconds="3"), "ValidationError")
    b.refused(b.sqs("ReceiveMessage"), "ValidationError")
    b.refused(b.sqs("Receive"), "MalformedRequest")
    b.refused(b.form("sns", "Publish", Message="x", Topic="y"), "ValidationError")
    b.refused(b.http("s3", "GET", "/b?list-type=2&count=3"), "ValidationError")


@case("request-limits")
def _(b: Bench) -> None:
    answer = b.invoke("f", kind="Later")
    b.refused(answer, "InvalidParameterValueException")
    assert b"InvalidParameterValueException" not in answer.body  # it is in a header, as on AWS
    answer = b.form("cloudformation", "CreateStack", StackName="a", TemplateBody="")
    b.refused(answer, "ValidationError")


@case("iam-role")
def _(b: Bench) -> None:
    text = json.dumps(template.build(Layout("smpi", (512,), ranks=4, jobs=2)))
    facts = stacks.facts("smpi", text, {}, lambda logical: "smpi-bucket")
    for role in facts.functions.values():
        facts.statements[role] = stacks.statements(
            "smpi", facts.template, role, {}, lambda logical: "smpi-bucket"
        )
    b.world.stacks["smpi"] = facts

    def ask(function: str, service: str, method: str, target: str, **fields: Any) -> Answer:
        headers, body = dict(authorization(service)), b""
        if service == "sqs":
            headers["x-amz-target"] = f"AmazonSQS.{fields.pop('action')}"
            body = json.dumps(fields).encode()
        return b.front.layer.exchange(Request(method, target, headers, body, function))

    granted = b.http("s3", "PUT", "/smpi-bucket").status
    assert granted == 200
    assert ask("smpi-rank-512", "s3", "GET", "/smpi-bucket/f/1/x").status == 404
    for function, method, target in (
        ("smpi-rank-512", "GET", "/smpi-bucket/pool.json"),
        ("smpi-rank-512", "PUT", "/smpi-bucket/code/function.zip"),
        ("smpi-rank-512", "GET", "/other-bucket/f/1/x"),
        ("smpi-report", "GET", "/smpi-bucket/f/1/x"),
        ("other", "GET", "/smpi-bucket/f/1/x"),
    ):
        b.refused(ask(function, "s3", method, target), "AccessDenied", 403)
    url = b.queue("smpi-c-0001")
    for function, action in (("smpi-rank-512", "ReceiveMessage"), ("smpi-report", "DeleteQueue")):
        answer = ask(function, "sqs", "POST", "/", action=action, QueueUrl=url)
        b.refused(answer, "AccessDenied", 403)


# --- SQS and SNS -----------------------------------------------------------------------------


@case("batch-entries")
def _(b: Bench) -> None:
    queue = b.queue()
    b.refused(b.send(queue, *["x"] * 11), "TooManyEntriesInBatchRequest")
    b.refused(b.send(queue), "EmptyBatchRequest")


@case("batch-ids")
def _(b: Bench) -> None:
    queue = b.queue()
    b.refused(b.send(queue, "x", "y", Id="same"), "BatchEntryIdsNotDistinct")
    b.refused(b.send(queue, "x", Id="not/allowed"), "InvalidBatchEntryId")


@case("message-bytes")
def _(b: Bench) -> None:
    queue, topic = b.queue(), b.topic()
    b.refused(b.send(queue, *["x" * (SQS_BYTES // 2)] * 2, "x"), "BatchRequestTooLong")
    value = base64.b64encode(bytes(SQS_BYTES - 7)).decode()  # "f", "Binary", "." are counted, too
    attributes = {"f": {"DataType": "Binary", "BinaryValue": value}}
    b.refused(b.send(queue, ".", MessageAttributes=attributes), "BatchRequestTooLong")
    b.refused(b.publish(topic, "x" * (SNS_BYTES - 16)), "InvalidParameterValue")


@case("message-characters")
def _(b: Bench) -> None:
    queue = b.queue()
    b.refused(b.send(queue, "\x07"), "InvalidMessageContents")
    b.refused(b.send(queue, ""), "InvalidMessageContents")
    b.refused(b.publish(b.topic(), "\ufffe"), "InvalidParameter")


@case("message-attributes")
def _(b: Bench) -> None:
    queue = b.queue()
    for table in (
        {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(11)},
        {"a": {"DataType": "String", "StringValue": ""}},
        {"AWS.a": {"DataType": "String", "StringValue": "x"}},
        {"a": {"DataType": "Boolean", "StringValue": "x"}},
    ):
        b.refused(b.send(queue, "x", MessageAttributes=table), "InvalidParameterValue")


@case("sns-string-array")
def _(b: Bench) -> None:
    topic = b.topic()
    b.refused(b.publish(topic, array="1,2"), "InvalidParameter")
    b.refused(b.publish(topic, array="[[1]]"), "InvalidParameter")


@case("sqs-receive")
def _(b: Bench) -> None:
    queue = b.queue()
    for wrong in ({"WaitTimeSeconds": 21}, {"MaxNumberOfMessages": 11}, {"VisibilityTimeout": -1}):
        b.refused(b.sqs("ReceiveMessage", QueueUrl=queue, **wrong), "InvalidParameterValue")


@case("sqs-in-flight")
def _(b: Bench) -> None:
    b.settings.in_flight = 2
    queue = b.queue()
    b.send(queue, "x", "y", "z")
    first = b.receive(queue)
    b.refused(b.sqs("ReceiveMessage", QueueUrl=queue), "OverLimit", 403)
    for one in first:
        b.sqs("DeleteMessage", QueueUrl=queue, ReceiptHandle=one["ReceiptHandle"])
    assert b.sqs("ReceiveMessage", QueueUrl=queue).status == 200


@case("sqs-queue-name")
def _(b: Bench) -> None:
    b.refused(b.sqs("CreateQueue", QueueName="a.b"), "InvalidParameterValue")
    b.refused(b.sqs("CreateQueue", QueueName="a" * 81), "InvalidParameterValue")


@case("sqs-same-name")
def _(b: Bench) -> None:
    b.sqs("DeleteQueue", QueueUrl=b.queue())
    b.clock.advance(59)
    b.refused(b.sqs("CreateQueue", QueueName=b.name), "QueueDeletedRecently")
    b.clock.advance(1)
    assert b.queue().endswith(b.name)


@case("sns-filters")
def _(b: Bench) -> None:
    queue = b.queue()
    topic = b.topic()
    known = [Subscription(queue_arn(queue), 0.0)] * FILTERS_PER_TOPIC
    b.world.filters[topic] = known
    b.refused(b.subscribe(topic, queue), "FilterPolicyLimitExceeded", 403)


@case("sns-topic-policy")
def _(b: Bench) -> None:
    topic = b.topic()
    for resource in (f"arn:aws:sns:{REGION}:{ACCOUNT}:smpi-t-*", [topic, topic + "1"], "*"):
        policy = {"Statement": [{**ALLOW_ALL, "Action": "sns:Publish", "Resource": resource}]}
        more = {"AttributeName": "Policy", "AttributeValue": json.dumps(policy)}
        answer = b.form("sns", "SetTopicAttributes", TopicArn=topic, **more)
        b.refused(answer, "must apply to a single resource")


@case("sns-filter-delay")
def _(b: Bench) -> None:
    queue = b.queue()
    topic = b.topic(queue)
    other = b.queue(f"{b.name}-2")
    b.subscribe(topic, other)
    assert b.publish(topic).status == 200
    b.wrong(b.drain(queue) == [])  # a client that publishes at once loses messages
    b.clock.advance(900)
    b.topic(other)
    assert b.publish(topic).status == 200 and b.drain(queue) == ["x"]


@case("sns-queue-policy")
def _(b: Bench) -> None:
    queue = b.queue()
    topic = b.topic(queue)
    arn = queue_arn(queue)
    for policy in (
        {"Statement": [{**ALLOW_ALL, "Resource": arn + "x"}]},
        {
            "Statement": [
                {
                    **ALLOW_ALL,
                    "Resource": arn,
                    "Condition": {"ArnEquals": {"aws:SourceArn": topic + "x"}},
                }
            ]
        },
    ):
        text = json.dumps(policy)
        b.sqs("SetQueueAttributes", QueueUrl=queue, Attributes={"Policy": text})
        b.clock.advance(60)
        assert b.publish(topic).status == 200
        b.wrong(b.drain(queue) == [])
    b.topic(queue)
    assert b.publish(topic).status == 200 and b.drain(queue)


@case("sns-quota")
def _(b: Bench) -> None:
    b.settings.published_per_s = 3
    topic = b.topic()
    for _ in range(3):
        assert b.publish(topic).status == 200
    b.refused(b.publish(topic), "Throttled", 429)
    b.clock.advance(0.34)
    assert b.publish(topic).status == 200


@case("entry-failures")
def _(b: Bench) -> None:
    b.settings.failing_entries = 0.5
    queue = b.queue()
    answer = b.send(queue, *map(str, range(10)))
    failed = [one["Id"] for one in json.loads(answer.body)["Failed"]]
    taken = sorted(map(str, set(range(10)) - set(map(int, failed))))
    b.settings.failing_entries = 0.0
    b.wrong(answer.status == 200 and 0 < len(failed) < 10 and sorted(b.drain(queue)) == taken)


@case("at-least-once")
def _(b: Bench) -> None:
    b.settings.duplicates = 1.0
    queue = b.queue()
    topic = b.topic(queue)
    b.send(queue, "x")
    b.publish(topic, "y")
    b.wrong(sorted(b.drain(queue)) == ["x", "x", "y", "y"])


@case("any-order")
def _(b: Bench) -> None:
    b.settings.reordered = True
    queue = b.queue()
    sent = list("0123456789")
    b.send(queue, *sent)
    arrived = b.drain(queue)
    b.wrong(arrived != sent and sorted(arrived) == sent)


@case("short-polls")
def _(b: Bench) -> None:
    b.settings.short_polls = 1.0
    queue = b.queue()
    b.send(queue, "x")
    b.wrong(b.receive(queue) == [] and len(b.receive(queue, WaitTimeSeconds=1)) == 1)


@case("visibility")
def _(b: Bench) -> None:
    b.settings.reappearing = 1.0
    queue = b.queue()
    b.send(queue, "x")
    (first,), (again,) = b.receive(queue), b.receive(queue)
    b.wrong(first["MessageId"] == again["MessageId"])
    b.settings.reappearing = 0.0
    assert len(b.receive(queue)) == 1 and b.receive(queue) == []


@case("stale-handle")
def _(b: Bench) -> None:
    b.settings.reappearing = 1.0
    queue = b.queue()
    b.send(queue, "x")
    (first,), (second,) = b.receive(queue), b.receive(queue)
    handles = [one["ReceiptHandle"] for one in (first, second)]
    stale = b.sqs("DeleteMessage", QueueUrl=queue, ReceiptHandle=handles[0])
    entry = {"Id": "0", "ReceiptHandle": handles[0]}
    batch = b.sqs("DeleteMessageBatch", QueueUrl=queue, Entries=[entry])
    assert json.loads(batch.body)["Successful"] == [{"Id": "0"}]
    b.wrong(stale.status == 200 and len(b.receive(queue)) == 1)  # it is still there


@case("publish-batch")
def _(b: Bench) -> None:
    queue = b.queue()
    topic = b.topic(queue)
    fields: dict[str, str] = {}
    for number, reader in enumerate("1213", 1):
        entry = f"PublishBatchRequestEntries.member.{number}"
        fields[f"{entry}.Id"] = f"{number}"
        fields[f"{entry}.Message"] = f"{number}"
        fields[f"{entry}.MessageAttributes.entry.1.Name"] = "t"
        fields[f"{entry}.MessageAttributes.entry.1.Value.DataType"] = "String.Array"
        fields[f"{entry}.MessageAttributes.entry.1.Value.StringValue"] = f'["{reader}"]'
    answer = b.form("sns", "PublishBatch", TopicArn=topic, **fields)
    assert answer.body.count(b"<member>") == 4
    b.wrong(sorted(b.drain(queue)) == ["1", "3"])  # each is filtered by its own attributes


# --- S3 --------------------------------------------------------------------------------------


@case("s3-write-rate")
def _(b: Bench) -> None:
    b.settings.s3_writes_per_s = 2
    path = b.bucket()
    assert [b.http("s3", "PUT", f"{path}/{n}", b"x").status for n in range(2)] == [200, 200]
    b.refused(b.http("s3", "PUT", f"{path}/3", b"x"), "SlowDown", 503)
    assert b.http("s3", "GET", f"{path}/1").status == 200  # which has a rate of its own


@case("s3-read-rate")
def _(b: Bench) -> None:
    b.settings.s3_reads_per_s = 2
    path = b.bucket()
    assert [b.http("s3", "GET", f"{path}/{n}").status for n in range(2)] == [404, 404]
    b.refused(b.http("s3", "GET", f"{path}/3"), "SlowDown", 503)
    b.clock.advance(0.5)
    assert b.http("s3", "GET", f"{path}/3").status == 404


@case("s3-key")
def _(b: Bench) -> None:
    b.refused(b.http("s3", "PUT", f"{b.bucket()}/{'k' * 1025}", b"x"), "KeyTooLongError")


@case("s3-length")
def _(b: Bench) -> None:
    b.bucket()
    request = Request("PUT", f"/{b.name}/k", authorization("s3"), b"x")
    b.refused(b.front.layer.exchange(request), "MissingContentLength", 411)


@case("s3-parts")
def _(b: Bench) -> None:
    path = f"{b.bucket()}/k"
    begun = b.http("s3", "POST", f"{path}?uploads").body.decode()
    upload = begun.partition("<UploadId>")[2].partition("<")[0]
    tags = []
    for number in (1, 2):
        target = f"{path}?partNumber={number}&uploadId={upload}"
        tags.append(b.http("s3", "PUT", target, b"x" * 100).headers["etag"])

    def complete(*numbers: int) -> Answer:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tags[number - 1]}</ETag></Part>"
            for number in numbers
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return b.http("s3", "POST", f"{path}?uploadId={upload}", body)

    b.refused(complete(1, 2), "EntityTooSmall")
    b.refused(complete(2, 1), "InvalidPartOrder")
    answer = b.http("s3", "PUT", f"{path}?partNumber=10001&uploadId={upload}", b"x")
    b.refused(answer, "InvalidArgument")


def _deletion(keys: list[str]) -> tuple[bytes, str]:
    objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    body = f"<Delete>{objects}</Delete>".encode()
    return body, base64.b64encode(hashlib.md5(body).digest()).decode()


@case("s3-delete")
def _(b: Bench) -> None:
    path = b.bucket()
    body, md5 = _deletion([f"{n}" for n in range(1001)])
    b.refused(b.http("s3", "POST", f"{path}?delete", body, content_md5=md5), "MalformedXML")
    body, _ = _deletion(["k"])
    b.refused(b.http("s3", "POST", f"{path}?delete", body), "InvalidRequest")


@case("s3-listing")
def _(b: Bench) -> None:
    path = b.bucket()
    for number in range(3):
        b.http("s3", "PUT", f"{path}/{number}", b"x")
    answer = b.http("s3", "GET", f"{path}?list-type=2&max-keys=2000&start-after=0")
    assert answer.body.count(b"<Key>") == 2
    b.wrong("max-keys=1000" in b.forwarded[-1].target)


@case("s3-missing")
def _(b: Bench) -> None:
    path = b.bucket()
    assert b.http("s3", "GET", f"{path}/k").status == 404
    text = json.dumps(template.build(Layout("smpi", (512,), ranks=4, jobs=2)))
    facts = stacks.facts("smpi", text, {}, lambda logical: b.name)
    b.world.stacks["smpi"] = facts
    role = facts.functions["smpi-rank-512"]
    grant = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{b.name}/*"}
    facts.statements[role] = [grant]
    request = Request("GET", f"{path}/k", authorization("s3"), b"", "smpi-rank-512")
    b.wrong(b.front.layer.exchange(request).status == 403)
    listing = {**grant, "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{b.name}"}
    facts.statements[role] = [grant, listing]
    assert b.front.layer.exchange(request).status == 404


@case("s3-conditional")
def _(b: Bench) -> None:
    path = f"{b.bucket()}/k"

    def write() -> int:
        return b.http("s3", "PUT", path, b"x", if_none_match="*").status

    b.world.writing.add(path[1:])  # another write is under way
    conflict = write()
    b.world.writing.clear()
    b.wrong([conflict, write(), write()] == [409, 200, 412])


@case("s3-delete-failures")
def _(b: Bench) -> None:
    path = b.bucket()
    keys = [f"{n}" for n in range(10)]
    for key in keys:
        b.http("s3", "PUT", f"{path}/{key}", b"x")
    b.settings.failing_entries = 0.5
    body, md5 = _deletion(keys)
    answer = b.http("s3", "POST", f"{path}?delete", body, content_md5=md5)
    left = b.http("s3", "GET", f"{path}?list-type=2").body.count(b"<Key>")
    b.wrong(answer.status == 200 and answer.body.count(b"<Error>") == left and 0 < left < 10)


@case("s3-completion")
def _(b: Bench) -> None:
    b.settings.failing_completions = 1.0
    path = f"{b.bucket()}/k"
    begun = b.http("s3", "POST", f"{path}?uploads").body.decode()
    upload = begun.partition("<UploadId>")[2].partition("<")[0]
    tag = b.http("s3", "PUT", f"{path}?partNumber=1&uploadId={upload}", b"x").headers["etag"]
    body = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{tag}</ETag></Part></CompleteMultipartUpload>"
    ).encode()
    answer = b.http("s3", "POST", f"{path}?uploadId={upload}", body)
    b.wrong(answer.status == 200 and b"<Error>" in answer.body)
    assert b.http("s3", "GET", path).status == 404


# --- Lambda ----------------------------------------------------------------------------------


@case("lambda-payload")
def _(b: Bench) -> None:
    event = b'"' + b"x" * EVENT_BYTES + b'"'
    b.refused(b.invoke("f", event), "RequestTooLargeException", 413)
    answer = b.invoke("f", b'"' + b"x" * (6 << 20) + b'"', "RequestResponse")
    b.refused(answer, "RequestTooLargeException", 413)


@case("lambda-throttle")
def _(b: Bench) -> None:
    b.settings.environments = 0.9  # less than one: an environment takes seconds to start
    answer = b.invoke(b.function(), kind="RequestResponse")
    b.refused(answer, "TooManyRequestsException", 429)
    assert not b.invoked()


@case("lambda-repeated")
def _(b: Bench) -> None:
    b.settings.repeated_events = 1.0
    assert b.invoke(b.function()).status == 202
    b.wrong(b.invoked() == 2)


def _rank_stack(b: Bench, **events: Any) -> str:
    """Create a function that a stack with these settings of its events is known to have."""
    b.function()
    resources = {
        "Rank": {
            "Type": "AWS::Lambda::Function",
            "Properties": {"FunctionName": b.name, "Role": {"Fn::GetAtt": ["Role", "Arn"]}},
        },
        "Events": {
            "Type": "AWS::Lambda::EventInvokeConfig",
            "Properties": {"FunctionName": {"Ref": "Rank"}, **events},
        },
    }
    text = json.dumps({"Resources": resources})
    b.world.stacks[b.name] = stacks.facts(b.name, text, {}, str)
    return b.name


@case("lambda-retries")
def _(b: Bench) -> None:
    function = _rank_stack(b)
    b.invoke(function)
    b.wrong(b.invoked() == 3)
    b.world.stacks[b.name].retries[b.name] = 0
    b.invoke(function)
    assert b.invoked() == 4


@case("lambda-events")
def _(b: Bench) -> None:
    b.settings.environments = b.settings.environments_per_s = 1
    function = _rank_stack(
        b,
        MaximumRetryAttempts=0,
        MaximumEventAgeInSeconds=60,
        DestinationConfig={"OnFailure": {"Destination": f"arn:aws:lambda:x:0:function:{b.name}"}},
    )
    assert b.invoke(function).status == b.invoke(function).status == b.invoke(function).status
    assert b.invoked() == 1  # the others were taken, and wait
    b.clock.advance(60)
    late = [json.loads(one.body) for one in b.forwarded if "/invocations" in one.target]
    b.wrong(len(late) == 3 and any("requestContext" not in one for one in late[1:]))
    b.settings.environments_per_s = 0.0001
    b.invoke(function)
    b.invoke(function)
    b.clock.advance(61)
    record = json.loads(b.forwarded[-1].body)
    assert record["requestContext"]["condition"] == "EventAgeExceeded"
    assert record["requestPayload"] == {}


# --- CloudFormation --------------------------------------------------------------------------


@case("stack-body")
def _(b: Bench) -> None:
    padded = {"Q": {**QUEUE, "Metadata": {"a": "x" * 51_200}}}
    b.refused(b.stack(padded), "ValidationError")
    path = b.bucket()
    text = json.dumps({"Resources": {"Q": {**QUEUE, "Metadata": {"a": "x" * 1_000_000}}}})
    b.http("s3", "PUT", f"{path}/t", text.encode())
    url = f"http://127.0.0.1{path}/t"
    answer = b.form("cloudformation", "CreateStack", StackName=b.name, TemplateURL=url)
    b.refused(answer, "ValidationError")


@case("stack-size")
def _(b: Bench) -> None:
    queue = {"Type": "AWS::SQS::Queue"}
    b.refused(b.stack({f"Q{number}": queue for number in range(501)}), "ValidationError")


@case("stack-capabilities")
def _(b: Bench) -> None:
    role = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {}}}
    b.refused(b.stack({"Role": role}), "InsufficientCapabilitiesException")
    named = {"Type": "AWS::IAM::Role", "Properties": {"RoleName": "r"}}
    answer = b.stack({"Role": named}, **{"Capabilities.member.1": "CAPABILITY_IAM"})
    b.refused(answer, "InsufficientCapabilitiesException")


BAD_POLICY = {
    "Type": "AWS::SNS::TopicPolicy",
    "Properties": {
        "Topics": [{"Ref": "T"}],
        "PolicyDocument": {
            "Statement": [{"Resource": {"Fn::Sub": "arn:aws:sns:${AWS::Region}:1:smpi-t-*"}}]
        },
    },
}


@case("stack-state")
def _(b: Bench) -> None:
    assert b.stack({"T": {"Type": "AWS::SNS::Topic"}, "P": BAD_POLICY}).status == 200
    b.refused(b.stack({"Q": QUEUE}, "UpdateStack"), "ValidationError")


@case("stack-failures")
def _(b: Bench) -> None:
    def described(action: str) -> str:
        return b.form("cloudformation", action, StackName=b.name).body.decode()

    b.stack({"T": {"Type": "AWS::SNS::Topic"}, "P": BAD_POLICY})
    b.wrong("<StackStatus>ROLLBACK_COMPLETE<" in described("DescribeStacks"))
    assert "must apply to a single resource" in described("DescribeStackEvents")
    b.form("cloudformation", "DeleteStack", StackName=b.name)
    b.stack({"Q": QUEUE})
    assert "<StackStatus>CREATE_COMPLETE<" in described("DescribeStacks")
    b.form("cloudformation", "DeleteStack", StackName=b.name)
    b.stack({"Q": QUEUE})  # within 60 s of the deletion of its queue
    assert "QueueDeletedRecently" in described("DescribeStackEvents")
    b.form("cloudformation", "DeleteStack", StackName=b.name)
    b.clock.advance(60)
    b.stack({"Q": QUEUE})
    assert "<StackStatus>CREATE_COMPLETE<" in described("DescribeStacks")
    b.settings.new_account = True
    role = {"Fn::GetAtt": ["Role", "Arn"]}
    properties = {"FunctionName": "f", "MemorySize": 4096, "Role": role}
    large = {"F": {"Type": "AWS::Lambda::Function", "Properties": properties}}
    b.stack({"Q": QUEUE, **large}, "UpdateStack")
    assert "<StackStatus>UPDATE_ROLLBACK_COMPLETE<" in described("DescribeStacks")
    assert "less than or equal to 3008" in described("DescribeStackEvents")


# --- directory buckets -----------------------------------------------------------------------


class Directory:
    """A directory bucket behind the layer, and this package's client of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.bucket = directory_bucket(bench.name)
        assert bench.http("s3", "PUT", f"/{plain(self.bucket)}").status == 200
        self.express = Express(bench.front.url, world=bench.world)

    def __enter__(self) -> Directory:
        url = self.express.__enter__().url
        self.client: Client = s3express.bucket_client(
            self.bucket, REGION, url, Credentials(url), Meter()
        )
        self.store = s3express.DirectoryBucket(self.client, self.bucket)
        self.store.put("f/a", (memoryview(b"a"),))
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self.express.__exit__(*error)

    def request(self, method: str, path: str, code: str, **more: Any) -> None:
        """Send a request that is well signed; it must be refused by the rule of the bench."""
        answer = self.client.request("LIST", method, path, budget_s=0.0, **more)
        found = Answer(answer.status, bytes(answer.body), {})
        self.bench.refused(found, code, answer.status)

    def changed(self, changes: dict[str, str]) -> None:
        """Put with headers that are changed after they were signed; that must be refused."""
        signer = self.client._signer
        whole = signer.headers
        signer.headers = lambda *args, **more: {**whole(*args, **more), **changes}  # type: ignore[method-assign]
        try:
            with pytest.raises(ChannelError, match="HTTP 40"):
                self.store.put("f/b", (memoryview(b"b"),))
        finally:
            signer.headers = whole  # type: ignore[method-assign]
        assert self.bench.world.broken[self.bench.name_of_rule]


@case("express-session")
def _(b: Bench) -> None:
    with Directory(b) as there:
        there.changed({"x-amz-s3session-token": "of-nobody"})
        there.changed({"x-amz-security-token": "of-a-role"})


@case("express-session-life")
def _(b: Bench) -> None:
    with Directory(b) as there:
        there.express.expire()
        there.store.put("f/c", (memoryview(b"c"),))  # the client gets another session
        assert b.world.broken[b.name_of_rule] == 1


@case("express-signature")
def _(b: Bench) -> None:
    with Directory(b) as there:
        there.changed({"x-amz-content-sha256": "0" * 64})
        there.changed({"authorization": "none"})


@case("express-list")
def _(b: Bench) -> None:
    with Directory(b) as there:
        query = {"list-type": "2", "prefix": "f"}
        there.request("GET", "/", "InvalidRequest", query=query)
        there.request("GET", "/", "NotImplemented", query={**query, "start-after": "f/a"})


@case("express-list-order")
def _(b: Bench) -> None:
    with Directory(b) as there:
        keys = [f"f/o/{number:02d}" for number in range(8)]
        for key in keys:
            there.store.put(key, (memoryview(b"o"),))
        found = list(there.store.list_all("f/o/"))
        b.wrong(found != keys and sorted(found) == keys)


@case("express-checksum")
def _(b: Bench) -> None:
    with Directory(b) as there:
        body = b"<Delete><Object><Key>f/a</Key></Object></Delete>"
        there.request("POST", "/", "InvalidRequest", query={"delete": ""}, body=body)
        md5 = base64.b64encode(hashlib.md5(b"x").digest()).decode()
        headers = {"content-md5": md5}
        there.request("PUT", "/f/b", "InvalidRequest", headers=headers, body=b"x")


@case("express-parts")
def _(b: Bench) -> None:
    with Directory(b) as there:
        part = "<Part><PartNumber>2</PartNumber><ETag>e</ETag></Part>"
        body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
        there.request("POST", "/f/b", "InvalidPartOrder", query={"uploadId": "u"}, body=body)
