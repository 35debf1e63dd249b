"""smpi deploy without AWS: the plan, what ranks may do beyond the stack, and options that cannot be."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

import pytest

from serverless_mpi.deploy import cli, deploying, package, probe, template
from serverless_mpi.deploy import doctor as doctors
from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.stack import stack
from serverless_mpi.stack.layout import Layout

POLICY = "arn:aws:iam::123456789012:policy/team/read-tables"
PACKAGE = package.Package(b"f" * 2**20, b"l" * 2**20, 50 << 20, ())
WHERE = ["--region", "us-east-1"]


def test_a_plan_has_resources_roles_idle_cost_and_time_and_calls_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(package, "build", lambda *_: PACKAGE)
    words = ["deploy", "--dry-run", "--python", "3.14", "--region", "eu-west-1", "--ranks", "210"]
    assert cli.main([*words, "--read-bucket", "tables", "--policy", POLICY]) == 0
    text = capsys.readouterr().out
    whole = template.build(Layout(ranks=210))["Resources"]
    for line in (
        f"{len(whole)} of at most 500 resources:",
        " 210 AWS::SNS::Subscription",
        "   2 AWS::SNS::Topic\n",
        "role RankRole:",
        "sns:Publish on STACK-t-*",
        "s3:GetObject on s3:::tables/*",
        f"managed policy {POLICY}",
        "idle cost: 0.0000 USD per month",
        "until SNS applies its filter policies",
        "nothing was changed",
    ):
        assert line in text
    assert "snapshots" not in text


def test_the_idle_cost_of_snapshots_is_their_memory_for_a_month() -> None:
    layout = Layout(memory_mb=(1024, 2048), snapstart=True)
    lines = list(
        deploying.plan(layout, template.build(layout, release="1"), PACKAGE, Prices.load(), "x")
    )
    usd = 3 * 30 * 86400 * 1.5046e-6  # GB x seconds x price
    assert f"  and {usd:.2f} USD per month for the snapshots of 3.00 GB of functions" in lines


def test_ranks_may_read_a_bucket_that_was_named_and_write_nothing_there() -> None:
    made = template.build(Layout(read_buckets=("tables", "other.data"), policies=(POLICY,)))
    role = made["Resources"]["RankRole"]["Properties"]
    granted = {
        (action, resource["Fn::Sub"].partition(":s3:::")[2])
        for statement in role["Policies"][0]["PolicyDocument"]["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
        if isinstance(resource, dict) and ":s3:::" in str(resource.get("Fn::Sub", ""))
    }
    assert granted == {
        ("s3:ListBucket", "tables"),
        ("s3:ListBucket", "other.data"),
        ("s3:GetObject", "tables/*"),
        ("s3:GetObject", "other.data/*"),
    }
    assert role["ManagedPolicyArns"] == [POLICY]
    report = made["Resources"]["ReportRole"]["Properties"]
    assert "tables" not in json.dumps(report) and "ManagedPolicyArns" not in report
    assert not any(fnmatch.fnmatch("tables-2", resource) for _, resource in granted)


def test_a_stack_states_what_its_ranks_may_read_and_doctor_prints_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = Layout(read_buckets=("tables",), policies=(POLICY,))
    values = {name: one["Value"] for name, one in template.build(layout)["Outputs"].items()}
    outputs = [
        {
            "OutputKey": name,
            "OutputValue": value if isinstance(value, str) else json.dumps({"1": "f"}),
        }
        for name, value in values.items()
    ]
    described = {"StackStatus": "UPDATE_COMPLETE", "Outputs": outputs}
    monkeypatch.setattr(stack, "describe", lambda *_: described)
    found = stack.Stack.find("smpi", None, "us-east-1")
    assert found.read_buckets == ("tables",) and found.policies == (POLICY,)
    monkeypatch.setattr(doctors.pool, "held", lambda stack: {})
    lines = [str(one) for one in doctors._stack("smpi", "http://127.0.0.1:1", "us-east-1")]
    assert any("tables" in line and POLICY in line for line in lines)
    described["Outputs"] = [one for one in outputs if one["OutputKey"] != "ReadBuckets"]
    assert stack.Stack.find("smpi", None, "us-east-1").read_buckets == ()


@pytest.mark.parametrize(
    "words, told",
    [
        (["--read-bucket", "s3://x"], "--read-bucket s3://x: not the name of a bucket"),
        (["--read-bucket", "a/*"], "not the name of a bucket"),
        (["--policy", "ReadOnlyAccess"], "not the ARN of a managed policy"),
        (["--policy", POLICY] * 11, "at most 10 managed policies"),
        (["--memory", "1x"], "--memory 1x: not whole numbers"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", *WHERE, *words]) == 2
    text = capsys.readouterr().err
    assert told in text and text.count("\n") == 1


@pytest.mark.parametrize("region", ["ap-southeast-6", "cn-north-1", "us-gov-west-1"])
def test_a_region_without_snapstart_is_refused_before_anything_is_made(region: str) -> None:
    Layout().check_region(region)
    Layout(snapstart=True).check_region("eu-west-1")
    with pytest.raises(UsageError, match=f"{region} has no SnapStart"):
        Layout(snapstart=True).check_region(region)


def test_a_deploy_is_refused_while_jobs_hold_queues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: dict[str, Any] = {probe.LEASE: {}, "0123456789abcdef": {}}
    monkeypatch.setattr(package, "build", lambda *_: PACKAGE)
    functions = {"Outputs": [{"OutputKey": "Functions", "OutputValue": "{}"}]}
    monkeypatch.setattr(deploying, "describe", lambda *_: functions)
    monkeypatch.setattr(deploying.Stack, "find", lambda *_: None)
    monkeypatch.setattr(deploying.pool, "held", lambda stack: held)
    assert cli.main(["deploy", *WHERE]) == 2
    text = capsys.readouterr().err
    assert "0123456789abcdef" in text and "--force" in text and "deploy," not in text
    assert cli.main(["destroy", *WHERE]) == 1
    assert "smpi clean --all" in capsys.readouterr().err


def test_an_interrupted_deploy_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "build", lambda *_: PACKAGE)
    monkeypatch.setattr(deploying.Deployment, "deploy", interrupt)
    assert cli.main(["deploy", *WHERE, "--force"]) == 130
    assert "`smpi deploy` goes on from there" in capsys.readouterr().err
