"""The template: valid to CloudFormation's and SAM's own checkers, and no permission beyond the stack."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi.deploy import template
from serverless_mpi.errors import UsageError
from serverless_mpi.launch import aws_lambda
from serverless_mpi.stack.layout import MAX_RANKS, MEMORY_MB, Layout
from tests.harness import ROOT

WHOLE = Layout(memory_mb=(512, 1769), ranks=8, jobs=2)
# what `sam validate` imports and the tests' environment lacks; without dependencies, whose pins are not ours
SAM = (
    "aws-sam-cli",
    "chevron",
    "cookiecutter",
    "aws-sam-translator",
    "aws-lambda-builders",
    "dateparser",
    "tzlocal",
    "ruamel-yaml",
    "tomlkit",
    "watchdog",
    "rich",
    "pyopenssl",
    "binaryornot",
    "python-slugify",
    "arrow",
    "text-unidecode",
    "markdown-it-py",
    "mdurl",
    "pytz",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Templates of each kind."""
    folder = tmp_path_factory.mktemp("templates")
    kinds = {
        "bucket": template.build(WHOLE, only_bucket=True),
        "whole": template.build(WHOLE),
        "snapstart": template.build(
            Layout(ranks=2, jobs=1, arch="arm64", python="3.12", snapstart=True), release="abc"
        ),
        "express": template.build(Layout(ranks=1, jobs=1, express=("use1-az4", "use1-az6"))),
    }
    for name, made in kinds.items():
        (folder / f"{name}.json").write_text(json.dumps(made))
    return sorted(folder.glob("*.json"))


def test_cfn_lint_finds_nothing(written: list[Path]) -> None:
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "-r",
        "us-east-1",
        "-t",
        *map(str, written),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sam_validates(written: list[Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        str(tmp_path / "sam"),
        *SAM,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index gives no aws-sam-cli: {done.stderr[-200:]}")
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "sam"),
        "HOME": str(tmp_path),
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_CHECK_UPDATES": "0",
    }
    command = [
        sys.executable,
        "-m",
        "samcli",
        "validate",
        "--lint",
        "--region",
        "us-east-1",
        "-t",
        str(written[-1]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0 and "is a valid SAM Template" in done.stdout, (
        done.stdout + done.stderr
    )


def _statements(made: dict[str, Any], role: str) -> list[dict[str, Any]]:
    (policy,) = made["Resources"][role]["Properties"]["Policies"]
    statements: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return statements


@pytest.mark.parametrize("role", ["RankRole", "ReportRole", "EchoRole"])
def test_a_role_may_touch_the_stack_and_nothing_else(role: str) -> None:
    for statement in _statements(template.build(WHOLE), role):
        assert statement["Effect"] == "Allow" and not any(
            "*" in action for action in statement["Action"]
        )
        resources = statement["Resource"]
        for resource in resources if isinstance(resources, list) else [resources]:
            text = json.dumps(resource)
            # a name of the stack, or its bucket: a name has no dash, so no other stack's begins with it
            assert "${AWS::StackName}-" in text or '"Bucket", "Arn"' in text, text


def _pattern(resource: Any) -> str:
    """A resource of the bucket as the pattern of a key, "" for the bucket itself."""
    if resource == {"Fn::GetAtt": ["Bucket", "Arn"]}:
        return ""
    _, (arn, below) = resource["Fn::Join"]
    assert arn == {"Fn::GetAtt": ["Bucket", "Arn"]}
    return str(below).removeprefix("/")


def _may(role: str, action: str, key: str) -> bool:
    return any(
        action in statement["Action"] and fnmatch.fnmatchcase(key, _pattern(resource))
        for statement in _statements(template.build(WHOLE), role)
        if statement["Action"][0].startswith("s3:")
        for resource in statement["Resource"]
    )


JOB = "0123456789abcdef"
CHANGE = ("s3:PutObject", "s3:DeleteObject")


@pytest.mark.parametrize(
    "key, read, write, delete",
    [
        (f"f/{JOB}/r/000001/x", True, True, True),
        (f"jobs/{JOB}/rank/7", True, True, False),
        (f"jobs/{JOB}/trace/7", True, True, False),
        (f"jobs/{JOB}/stop", True, True, False),
        (f"jobs/{JOB}/job.json", False, False, False),
        (f"jobs/{JOB}/end.json", False, False, False),
        (f"stops/{JOB}", False, False, False),
        ("programs/" + "0" * 64 + ".zip", True, False, False),
        ("code/function-0.zip", False, False, False),
        ("code/template.json", False, False, False),
        ("pool.json", False, False, False),
        ("data/net/index.json", True, True, True),
    ],
)
def test_a_rank_writes_frames_and_its_own_end_and_nothing_that_others_run(
    key: str, read: bool, write: bool, delete: bool
) -> None:
    assert _may("RankRole", "s3:GetObject", key) is read
    assert tuple(_may("RankRole", action, key) for action in CHANGE) == (write, delete)
    stop = key.endswith("/stop")
    assert _may("ReportRole", "s3:GetObject", key) is stop
    assert tuple(_may("ReportRole", action, key) for action in CHANGE) == (stop, False)


def test_a_rank_does_to_queues_and_functions_what_its_data_path_calls_and_no_more() -> None:
    """Who may receive from a console could swallow the output of other jobs."""
    granted = {
        (action, json.dumps(resource).partition("${AWS::StackName}-")[2].partition("*")[0])
        for statement in _statements(template.build(WHOLE), "RankRole")
        for action in statement["Action"]
        for resource in (
            statement["Resource"]
            if isinstance(statement["Resource"], list)
            else [statement["Resource"]]
        )
        if not action.startswith(("s3:", "logs:"))
    }
    assert {(action, name.strip('"} -')) for action, name in granted} == {
        ("sqs:SendMessage", "q"),
        ("sqs:ReceiveMessage", "q"),
        ("sqs:DeleteMessage", "q"),
        ("sqs:SendMessage", "c"),
        ("sns:Publish", "t"),
        ("lambda:InvokeFunction", "rank"),
        ("lambda:InvokeFunction", "report"),
        ("lambda:InvokeFunction", "echo"),
        ("lambda:InvokeFunctionUrl", "echo"),
    }


def test_a_functions_address_is_told_to_roles_of_the_account_alone() -> None:
    resources = template.build(WHOLE)["Resources"]
    assert resources["EchoUrl"]["Properties"] == {
        "AuthType": "AWS_IAM",
        "TargetFunctionArn": {"Ref": "Echo"},
    }
    (statement,) = _statements(template.build(WHOLE), "EchoRole")
    assert statement["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert not [kind for kind in resources.values() if kind["Type"] == "AWS::Lambda::Permission"]


def test_one_stack_serves_1000_ranks_in_170_functions() -> None:
    """6 ranks, one per vCPU, in each of the largest functions."""
    most = max(MEMORY_MB)
    made = template.build(Layout(ranks=170, memory_mb=(most,)))
    assert len(made["Resources"]) <= template.MAX_RESOURCES
    assert 170 * aws_lambda.vcpus_of(most) >= 1000


def test_the_policy_of_a_topic_names_that_topic_alone() -> None:
    """SNS: a policy covers one topic, and no pattern; cfn-lint and SAM do not know it."""
    resources = template.build(Layout(ranks=MAX_RANKS))["Resources"]
    topics = [name for name, one in resources.items() if one["Type"] == "AWS::SNS::Topic"]
    covered = []
    for one in resources.values():
        if one["Type"] == "AWS::SNS::TopicPolicy":
            (topic,) = one["Properties"]["Topics"]
            covered.append(topic["Ref"])
            for statement in one["Properties"]["PolicyDocument"]["Statement"]:
                assert statement["Resource"] == topic
    assert covered == topics and len(topics) == 2


def test_subscriptions_wait_for_the_queues_permission() -> None:
    for one in template.build(WHOLE)["Resources"].values():
        if one["Type"] == "AWS::SNS::Subscription":
            assert one["DependsOn"] == ["QueuePolicy"]


def test_a_launcher_waits_for_a_rank_for_longer_than_lambda_keeps_its_event() -> None:
    for one in template.build(WHOLE)["Resources"].values():
        if one["Type"] == "AWS::Lambda::EventInvokeConfig":
            age = one["Properties"]["MaximumEventAgeInSeconds"]
            assert aws_lambda.APPEAR_S > age + 10 and aws_lambda.LATE_S > age + 10


def test_a_layout_with_too_many_resources_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 500"):
        template.build(Layout(ranks=MAX_RANKS, jobs=50))


def test_what_holds_data_is_encrypted_private_and_short_lived() -> None:
    resources = template.build(WHOLE)["Resources"]
    for name, resource in resources.items():
        properties = resource["Properties"]
        if resource["Type"] == "AWS::SQS::Queue":
            assert (
                properties["SqsManagedSseEnabled"] and properties["MessageRetentionPeriod"] <= 3600
            ), name
        if resource["Type"] == "AWS::Logs::LogGroup":
            assert properties["RetentionInDays"] <= 7, name
        if resource["Type"] == "AWS::Lambda::EventInvokeConfig":
            assert (
                properties["MaximumRetryAttempts"] == 0
                and properties["DestinationConfig"]["OnFailure"]
            ), name
    bucket = resources["Bucket"]["Properties"]
    assert (
        all(bucket["PublicAccessBlockConfiguration"].values())
        and len(bucket["PublicAccessBlockConfiguration"]) == 4
    )
    rules = {one["Prefix"]: one for one in bucket["LifecycleConfiguration"]["Rules"]}
    # what a failed update goes back to must be there: code/ has no rule
    assert set(rules) == {"f/", "jobs/", "programs/", "stops/", "data/"}
    assert all(one["ExpirationInDays"] == 1 for one in rules.values())
    policies = {
        resource["Type"]
        for resource in resources.values()
        if "aws:SecureTransport" in json.dumps(resource)
    }
    assert policies == {"AWS::S3::BucketPolicy", "AWS::SQS::QueuePolicy", "AWS::SNS::TopicPolicy"}


def test_every_slot_is_subscribed_to_the_topic_of_its_number() -> None:
    made = template.build(Layout(ranks=MAX_RANKS))
    resources = made["Resources"]
    assert len(resources) <= 500  # CloudFormation's quota
    for slot in range(MAX_RANKS):
        properties = resources[f"Subscription{slot}"]["Properties"]
        assert properties["TopicArn"] == {"Ref": f"Topic{slot // 200}"} and properties[
            "FilterPolicy"
        ] == {"t": [str(slot)]}
        assert (
            properties["Endpoint"] == {"Fn::GetAtt": [f"Queue{slot}", "Arn"]}
            and properties["RawMessageDelivery"]
        )
    assert len(json.dumps(made)) < 1_000_000


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"name": "a-b"}, "lower-case letters and digits"),
        ({"memory_mb": (64,)}, "128 to 10240"),
        ({"memory_mb": ()}, "--memory"),
        ({"ranks": 500}, "channel object needs none"),
        ({"jobs": 0}, "--jobs 0"),
        ({"arch": "mips"}, "known are x86_64, arm64"),
    ],
)
def test_a_layout_that_cannot_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Layout(**wrong)


def test_the_image_installs_what_the_layer_has() -> None:
    text = (ROOT / "serverless_mpi" / "deploy" / "Dockerfile").read_text()
    assert template.HANDLER in text and "public.ecr.aws/lambda/python" in text


def test_directory_buckets_are_named_by_zone_and_expire_and_grant_sessions_to_ranks_alone() -> None:
    made = template.build(Layout(ranks=1, jobs=1, express=("use1-az4", "use1-az6")))
    resources = made["Resources"]
    assert json.loads(made["Outputs"]["Express"]["Value"]["Fn::Sub"]) == {
        zone: f"${{AWS::StackName}}-${{AWS::AccountId}}--{zone}--x-s3"
        for zone in ("use1-az4", "use1-az6")
    }
    for number, zone in enumerate(("use1-az4", "use1-az6")):
        bucket = resources[f"Express{number}"]["Properties"]
        assert bucket["LocationName"] == zone
        assert bucket["BucketName"]["Fn::Sub"].endswith(f"--{zone}--x-s3")
        (rule,) = bucket["LifecycleConfiguration"]["Rules"]
        assert rule["Prefix"] == "f/" and rule["ExpirationInDays"] == 1
        policy = resources[f"Express{number}Policy"]["Properties"]["PolicyDocument"]
        assert policy["Statement"][0]["Principal"] == {"Service": "lifecycle.s3.amazonaws.com"}
    granted = {
        role: [
            statement["Resource"]
            for statement in resources[role]["Properties"]["Policies"][0]["PolicyDocument"][
                "Statement"
            ]
            if statement["Action"] == ["s3express:CreateSession"]
        ]
        for role in ("RankRole", "ReportRole")
    }
    arns = [{"Fn::GetAtt": [f"Express{number}", "Arn"]} for number in range(2)]
    assert granted == {"RankRole": [arns], "ReportRole": []}
    assert "Express" not in template.build(WHOLE)["Outputs"]
