"""What `smpi policy` prints permits every call of a deploy and of a run, on no other stack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi.aws import control
from serverless_mpi.deploy import cli, policies, template
from serverless_mpi.launch import cli as launch
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.stack.layout import Layout
from tests.launch.lambda_stack import SERVICES
from tests.strict.iam import allows

REGION, ACCOUNT, NAME = "us-east-1", "000000000000", "person"
Call = tuple[str, str, dict[str, Any]]  # service, operation, parameters

# operation -> (action, where the resource is) if the action has another name or the resource is odd
_ACTIONS = {
    "s3.ListObjectsV2": "s3:ListBucket",
    "s3.ListBuckets": "s3:ListAllMyBuckets",
    "s3.DeleteObjects": "s3:DeleteObject",
    "sqs.DeleteMessageBatch": "sqs:DeleteMessage",
    "sns.PublishBatch": "sns:Publish",
    "lambda.Invoke": "lambda:InvokeFunction",
    "service-quotas.ListServiceQuotas": "servicequotas:ListServiceQuotas",
    "service-quotas.ListAWSDefaultServiceQuotas": "servicequotas:ListAWSDefaultServiceQuotas",
}


def action_of(call: Call) -> str:
    service, operation, _ = call
    return _ACTIONS.get(f"{service}.{operation}", f"{service}:{operation}")


def resources_of(call: Call) -> list[str]:
    """Return the ARNs that AWS evaluates for a call."""
    service, operation, given = call

    def arn(name: str) -> str:
        return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{name}"

    if service == "s3" and "Bucket" in given:
        keys = [one["Key"] for one in given.get("Delete", {}).get("Objects", ())]
        keys += [given["Key"]] if "Key" in given else []
        bucket = f"arn:aws:s3:::{given['Bucket']}"
        return [f"{bucket}/{key}" for key in keys] or [bucket]
    if "QueueUrl" in given:
        return [arn(given["QueueUrl"].rpartition("/")[2])]
    if "TopicArn" in given:
        return [given["TopicArn"]]
    if "StackName" in given:
        return [arn(f"stack/{given['StackName']}/1234")]
    if "FunctionName" in given:
        return [arn(f"function:{given['FunctionName']}")]
    if "logGroupName" in given:
        return [arn(f"log-group:{given['logGroupName']}:*")]
    return ["*"]


def permits(policy: policies.Policy, action: str, resource: str) -> bool:
    statements = [each for each in policy["Statement"] if isinstance(each, dict)]
    return allows(statements, action, resource)


def refused(policy: policies.Policy, calls: list[Call]) -> set[tuple[str, str]]:
    """Return what the policy does not permit of the calls."""
    return {
        (action_of(call), resource)
        for call in calls
        for resource in resources_of(call)
        if not permits(policy, action_of(call), resource)
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of a boto3 client of the package."""
    seen: list[Call] = []
    make = control.client

    def recording(service: str, *where: Any) -> Any:
        client = make(service, *where)

        def record(params: dict[str, Any], model: Any, **_: Any) -> None:
            seen.append((service, model.name, dict(params)))

        client.meta.events.register("provide-client-params.*.*", record)
        return client

    monkeypatch.setattr(control, "client", recording)
    return seen


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Emulator(tmp_path_factory.mktemp("ministack"), services=SERVICES) as emulator:
        yield emulator.url


def test_a_deploy_and_a_run_need_no_more_than_their_policies(
    endpoint: str, calls: list[Call], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ["--stack", NAME, "--region", REGION, "--endpoint", endpoint]
    deployer = policies.deployer(NAME, REGION, ACCOUNT)
    runner = policies.runner(NAME, REGION, ACCOUNT)
    assert cli.main(["deploy", *where, "--ranks", "2", "--jobs", "1"]) == 0
    assert {"CreateStack", "UpdateStack", "PublishBatch"} <= {call[1] for call in calls}
    assert not refused(deployer, calls)
    assert ("cloudformation:CreateStack", calls_to("CreateStack", calls)) in refused(runner, calls)

    calls.clear()
    prog = tmp_path / "prog.py"
    prog.write_text("from mpi4py import MPI\nprint(MPI.COMM_WORLD.allreduce(1))\n")
    words = ["--platform", "lambda", *where, "-n", "2", "--trace", str(tmp_path / "t.json")]
    assert launch.main([*words, str(prog)]) == 0
    assert capfd.readouterr().out == "2\n2\n"
    assert cli.main(["jobs", *where]) == 0
    job = capfd.readouterr().out.split()[0]
    for command in (["logs", job], ["cost", job], ["doctor"], ["clean", job]):
        assert cli.main([command[0], *where, *command[1:]]) == 0, capfd.readouterr()
    assert {"Invoke", "ReceiveMessage", "FilterLogEvents"} <= {call[1] for call in calls}
    assert not refused(runner, calls) and not refused(deployer, calls)

    calls.clear()
    assert cli.main(["destroy", *where]) == 0
    assert not refused(deployer, calls)
    assert refused(runner, calls)


def calls_to(operation: str, calls: list[Call]) -> str:
    return next(resources_of(call)[0] for call in calls if call[1] == operation)


@pytest.mark.parametrize("snapstart", [False, True])
def test_the_deployer_may_make_every_kind_of_resource(snapstart: bool) -> None:
    layout = Layout(snapstart=snapstart, express=("use1-az4",) if snapstart else ())
    kinds = {one["Type"] for one in template.build(layout, release="1")["Resources"].values()}
    assert kinds <= set(policies.OF_RESOURCES)
    if snapstart:
        assert kinds == set(policies.OF_RESOURCES)


def test_names_of_the_template_are_within_the_policy() -> None:
    deployer = policies.deployer(NAME, REGION, ACCOUNT)
    text = json.dumps(template.build(Layout(), release="1")).replace("${AWS::StackName}", NAME)
    for pattern, action, arn in (
        (r'"QueueName": \{"Fn::Sub": "([^"]*)"', "sqs:CreateQueue", "sqs:{}:{}:{}"),
        (r'"TopicName": \{"Fn::Sub": "([^"]*)"', "sns:CreateTopic", "sns:{}:{}:{}"),
        (r'"FunctionName": \{"Fn::Sub": "([^"]*)"', "lambda:CreateFunction", "lambda:{}:{}:function:{}"),
        (r'"LayerName": \{"Fn::Sub": "([^"]*)"', "lambda:PublishLayerVersion", "lambda:{}:{}:layer:{}"),
        (r'"LogGroupName": \{"Fn::Sub": "([^"]*)"', "logs:CreateLogGroup", "logs:{}:{}:log-group:{}"),
    ):  # fmt: skip
        found = re.findall(pattern, text)
        assert found
        for name in found:
            own = "arn:aws:" + arn.format(REGION, ACCOUNT, name)
            assert permits(deployer, action, own), own
            other = own.replace(NAME, "other")
            assert not permits(deployer, action, other), other


@pytest.mark.parametrize("make", [policies.deployer, policies.runner])
def test_a_policy_fits_into_a_managed_policy_and_grants_nothing_by_wildcard(make: Any) -> None:
    policy = make("a" * 30, "ap-southeast-2", "123456789012")
    # "Managed policies: 6,144 characters", without white space (IAM quotas)
    assert len(re.sub(r"\s", "", json.dumps(policy))) <= 6144
    for statement in policy["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        if statement["Resource"] == ["*"]:
            reads = ("Get", "List", "Describe")
            assert all(one.partition(":")[2].startswith(reads) for one in statement["Action"])


def test_who_runs_jobs_cannot_replace_what_the_functions_run() -> None:
    bucket = f"arn:aws:s3:::{NAME}-bucket-1x"
    runner, deployer = (
        make(NAME, REGION, ACCOUNT) for make in (policies.runner, policies.deployer)
    )
    for key, may in (("code/function-0.zip", False), ("data/x", True), ("pool.json", True)):
        assert permits(runner, "s3:PutObject", f"{bucket}/{key}") is may
        assert permits(deployer, "s3:PutObject", f"{bucket}/{key}")


def test_policy_is_json_of_one_of_two_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policy", "--runner", "--region", "eu-west-1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == policies.runner("smpi", "eu-west-1", "*")
    assert cli.main(["policy"]) == 2
