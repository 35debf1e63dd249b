"""S3 Express on the platform: rank 0 chooses the bucket of all ranks, the bill says which, nothing is left in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_mpi.aws import control
from serverless_mpi.aws.s3express import ZONES, zone_of
from serverless_mpi.channels.object import frames_bucket, store_service
from serverless_mpi.deploy import cli, template
from serverless_mpi.deploy.deployment import Deployment
from serverless_mpi.job import EXPRESS_BUCKETS, FRAMES_BUCKET, JobSpec, frames_prefix
from serverless_mpi.launch import aws_lambda, handler
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.stack import bill
from serverless_mpi.stack.express import bucket_name, dropped, of_stack
from serverless_mpi.stack.layout import Layout
from tests.aws.server import Server, reply
from tests.strict.express import ZONE, Express, directory_bucket, plain

KEY = bytes(range(32))
BUCKET = directory_bucket("smpi-123456789012")
BUCKETS = {ZONE: BUCKET, "use1-az5": "smpi-123456789012--use1-az5--x-s3"}


class Context:
    memory_limit_in_mb = 512

    def get_remaining_time_in_millis(self) -> int:
        return 900_000


@pytest.fixture
def express(ministack_endpoint: str) -> Iterator[Express]:
    s3 = control.client("s3", ministack_endpoint, "us-east-1")
    s3.create_bucket(Bucket=plain(BUCKET))
    with Express(ministack_endpoint) as front:
        yield front
    s3.delete_bucket(Bucket=plain(BUCKET))


def started(
    front: Express, zone: str, monkeypatch: pytest.MonkeyPatch, rank: int = 0, **settings: str
) -> tuple[Any, list[Invocation]]:
    """A rank that has started its children in that zone, and what they were given."""
    spec = JobSpec(
        "0011223344556677",
        rank,
        7,
        "object",
        KEY,
        endpoint=front.url,
        settings={"bucket": "general", **settings},
    )
    tasks = (Task("script", ("a.py",), 7, None),)
    made = handler.Function(Invocation(spec, tasks, "f", 2, "http://x/console"), Context(), False)
    events: list[bytes] = []
    made._functions = SimpleNamespace(start=lambda function, event: events.append(event))  # type: ignore[assignment]
    with Server(lambda request: reply(body=json.dumps({"AvailabilityZoneID": zone}).encode())) as s:
        monkeypatch.setenv("AWS_LAMBDA_METADATA_API", s.url.removeprefix("http://"))
        monkeypatch.setenv("AWS_LAMBDA_METADATA_TOKEN", "token")
        made._choose_bucket()
        made._start_children()
    return made, [Invocation.from_event(json.loads(event)) for event in events]


def test_rank_0_chooses_and_every_rank_is_told(
    express: Express, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, children = started(express, ZONE, monkeypatch, express_buckets=json.dumps(BUCKETS))
    assert EXPRESS_BUCKETS == "express_buckets" and len(children) == 2
    for spec in (rank._invocation.spec, *(child.spec for child in children)):
        assert frames_bucket(spec) == BUCKET and store_service(spec) == "s3express"
        assert EXPRESS_BUCKETS not in spec.settings and spec.settings["bucket"] == "general"
    assert rank._storage == {"zone": ZONE, "bucket": BUCKET, "reason": ""}
    assert rank._meter.snapshot()["s3express.CreateSession"]["requests"] == 1
    settings = {FRAMES_BUCKET: BUCKET}
    other, children = started(express, "use1-az1", monkeypatch, rank=1, **settings)
    assert other._storage == {"zone": "use1-az1"}
    assert all(frames_bucket(child.spec) == BUCKET for child in children)


@pytest.mark.parametrize(
    "zone, allowed, reason",
    [
        ("use1-az1", True, "rank 0 ran in zone use1-az1, and S3 Express is deployed in use1-az4, "),
        (ZONE, False, f"{BUCKET} cannot be used: S3EXPRESS refused to create a session"),
        ("use1-az5", True, "cannot be used: S3EXPRESS refused .* HTTP 404 NoSuchBucket"),
        ("", True, "Lambda's metadata endpoint did not state the zone"),
    ],
)
def test_otherwise_all_ranks_use_the_general_bucket(
    zone: str, allowed: bool, reason: str, express: Express, monkeypatch: pytest.MonkeyPatch
) -> None:
    express.allowed = allowed
    rank, children = started(express, zone, monkeypatch, express_buckets=json.dumps(BUCKETS))
    for spec in (rank._invocation.spec, *(child.spec for child in children)):
        assert frames_bucket(spec) == "general" and store_service(spec) == "s3"
    told = bill._storage([{"storage": rank._storage}, {"storage": {"zone": ZONE}}])
    assert told.startswith("frames in bucket general, not in S3 Express: ") and "\n" not in told
    assert re.search(reason, told)


def test_a_stack_without_s3_express_asks_nothing(
    express: Express, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, children = started(express, ZONE, monkeypatch)
    assert rank._storage == {} and not express.calls
    assert all(child.spec.settings == {"bucket": "general"} for child in children)


def test_the_bill_says_where_frames_lay_and_prices_requests_and_bytes() -> None:
    meter = Meter()
    meter.count("s3express", "PUT", 960, 26 << 20, 960)
    meter.count("s3express", "GET", 6869, 180 << 20, 6720)
    facts = {
        "seconds": 1.0,
        "cold": False,
        "init_s": 0.0,
        "peak_mb": 100,
        "platform": {},
        "mpi": {"meter": meter.snapshot()},
    }
    ranks = [
        {**facts, "storage": {"zone": ZONE, "bucket": BUCKET, "reason": ""}},
        {**facts, "mpi": None, "storage": {"zone": "use1-az6"}},
        {},
    ]
    prices = Prices.load()
    summary = bill.summary(ranks, {}, 1024, "x86_64", prices)
    expected = 960 * 1.13e-6 + 6869 * 3e-8 + 26 / 1024 * 0.0032 + 180 / 1024 * 0.0006
    assert summary["requests_usd"] == pytest.approx(expected)
    assert summary["operations"]["s3express.PUT"]["usd"] == pytest.approx(
        960 * 1.13e-6 + 26 / 1024 * 0.0032
    )
    assert (
        "frames in S3 Express, zone use1-az4, in which 1 of 3 ranks ran"
        in bill.render(summary).splitlines()
    )
    assert bill.summary([facts], {}, 1024, "x86_64", prices)["storage"] == ""


@pytest.mark.parametrize(
    "facts, names",
    [
        ({}, ["general", *BUCKETS.values()]),
        ({"storage": {"zone": ZONE, "bucket": BUCKET}}, [BUCKET]),
        ({"storage": {"bucket": "another's"}}, ["general", *BUCKETS.values()]),
    ],
)
def test_frames_are_removed_from_every_bucket_in_which_they_may_lie(
    facts: dict[str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[tuple[str, str]] = []

    def empty(s3: object, bucket: str, prefix: str) -> int:
        emptied.append((bucket, prefix))
        if bucket == "general":
            raise RuntimeError("AWS is not reached")
        return 0

    monkeypatch.setattr(aws_lambda, "empty", empty)
    spec = JobSpec.new(2, "object")
    stack = SimpleNamespace(bucket="general", express=BUCKETS, endpoint=None, region="us-east-1")
    job = SimpleNamespace(
        _plan=SimpleNamespace(channel="object"),
        _stack=stack,
        _s3=None,
        spec=spec,
        _ranks=[SimpleNamespace(facts=facts)],
    )
    aws_lambda.Job._remove_frames(job)  # type: ignore[arg-type]
    prefix = frames_prefix(spec.job_id)
    assert emptied == [(name, prefix) for name in names]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--express", "use1-az1", "--region", "us-east-1"],
            "--express use1-az1: S3 Express One Zone is in the zones use1-az4, use1-az5, use1-az6 of",
        ),
        (
            ["--express", "auto", "--region", "eu-south-2"],
            "--express auto: S3 Express One Zone is not in region eu-south-2",
        ),
        (["--express", "auto", "--endpoint", "http://127.0.0.1:1"], "emulators have no S3 Express"),
    ],
)
def test_a_wrong_zone_is_one_line_before_anything_is_made(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("serverless_mpi.launch.emulator.check_endpoint", lambda url: None)
    monkeypatch.setattr("serverless_mpi.deploy.package.build", lambda *_: 1 / 0)
    assert cli.main(["deploy", *options]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_names_of_the_buckets_fit() -> None:
    for zone in (zone for zones in ZONES.values() for zone in zones):
        name = bucket_name(zone).replace("${AWS::StackName}", "s" * 30)
        name = name.replace("${AWS::AccountId}", "1" * 12)
        assert len(name) <= 63 and zone_of(name) == zone


def test_uploads_are_aborted_before_a_directory_bucket_is_deleted(ministack_endpoint: str) -> None:
    s3 = control.client("s3", ministack_endpoint, "us-east-1")
    deployment = Deployment("s", ministack_endpoint, "us-east-1", print)
    deployment._empty_directory_bucket("smpi-there-is-none")
    s3.create_bucket(Bucket="smpi-uploads")
    for number in range(3):
        s3.create_multipart_upload(Bucket="smpi-uploads", Key=f"f/{number}")
    s3.put_object(Bucket="smpi-uploads", Key="f/object", Body=b"body")
    deployment._empty_directory_bucket("smpi-uploads")
    assert not s3.list_multipart_uploads(Bucket="smpi-uploads").get("Uploads")
    s3.delete_bucket(Bucket="smpi-uploads")


def test_the_buckets_of_a_stack_are_found_in_its_outputs() -> None:
    outputs = [{"OutputKey": "Express", "OutputValue": json.dumps(BUCKETS)}]
    assert of_stack({"Outputs": outputs}) == BUCKETS
    assert of_stack({}) == of_stack({"Outputs": []}) == {}
    one = template.build(Layout(ranks=1, jobs=1, express=(ZONE,)))
    assert dropped({"Outputs": outputs}, one) == [BUCKETS["use1-az5"]]
    none = template.build(Layout(ranks=1, jobs=1))
    assert dropped({"Outputs": outputs}, none) == list(BUCKETS.values())
