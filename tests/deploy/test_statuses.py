"""A deploy goes on from every status of CloudFormation, reports progress, and says what would help."""

from __future__ import annotations

import json

import botocore.session
import pytest

from serverless_mpi.aws import control, refusals
from serverless_mpi.deploy import deployment, template
from serverless_mpi.deploy.deployment import DEPLOY_S, NEXT, Deployment, Next, Target
from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.stack.layout import Layout
from tests.deploy.cloud import NAME, Bucket, Clock, Cloud

LAYOUT = Layout(ranks=2, jobs=1)
TARGET = Target(
    NAME,
    template.build(LAYOUT, only_bucket=True),
    template.build(LAYOUT),
    {"code/function-1.zip": b"f", "code/layer-1.zip": b"l"},
)
STATUSES: list[str] = (
    botocore.session.get_session().get_service_model("cloudformation").shape_for("StackStatus").enum
)


# what a deploy calls, by what it does with the status that it meets once nothing is under way
CALLS = {
    Next.CREATE: ["create_stack", "update_stack"],
    Next.UPDATE: ["update_stack"],
    Next.REPLACE: ["delete_stack", "create_stack", "update_stack"],
    Next.CONTINUE: ["continue_update_rollback", "update_stack"],
}


class Bench:
    """A deployment in front of fakes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: str = "DELETE_COMPLETE") -> None:
        self.clock = Clock()
        self.cloud, self.s3 = Cloud(self.clock, status), Bucket()
        clients = {"cloudformation": self.cloud, "s3": self.s3}
        monkeypatch.setattr(control, "client", lambda service, *_: clients[service])
        self.lines: list[str] = []

    def _deployment(self) -> Deployment:
        return Deployment(NAME, None, "eu-west-1", self.lines.append, self.clock.pace())

    def deploy(self, target: Target = TARGET) -> None:
        self._deployment().deploy(target)

    def destroy(self) -> bool:
        return self._deployment().destroy()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_the_table_has_every_status() -> None:
    assert sorted(NEXT) == sorted(STATUSES)


@pytest.mark.parametrize("status", STATUSES)
def test_a_deploy_goes_on_from_every_status(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    bench = Bench(monkeypatch, status)
    if NEXT[status] is Next.STOP:
        with pytest.raises(UsageError, match=f"is {status}.*--stack NAME"):
            bench.deploy()
        assert not bench.cloud.calls
        return
    bench.deploy()
    assert bench.cloud.status == "UPDATE_COMPLETE"
    # a stack that worked is never deleted
    after = CALLS[NEXT[Cloud.ENDS.get(status, status)]]
    assert bench.cloud.calls == after


def test_a_rollback_that_cannot_be_continued_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, "UPDATE_ROLLBACK_FAILED")
    bench.cloud.fail_continue = True
    with pytest.raises(UsageError, match="smpi destroy --stack smpi"):
        bench.deploy()


def test_each_resource_is_reported_once_as_it_gets_ready(bench: Bench) -> None:
    bench.deploy()
    ready = [line for line in bench.lines if line.startswith("[")]
    resources = TARGET.whole["Resources"]
    names = [line.split("] ")[1].split(" (")[0] for line in ready]
    first = list(TARGET.first["Resources"])
    assert names == first + list(resources)
    assert ready[-1].startswith(f"[{len(resources):3}/{len(resources)}] ")


def test_zips_that_are_there_are_not_uploaded_and_old_ones_go_last(bench: Bench) -> None:
    bench.deploy()
    bench.s3.objects["code/function-0.zip"] = b"old"
    bench.s3.puts.clear()
    bench.deploy()
    assert not bench.s3.puts and sorted(bench.s3.objects) == sorted(TARGET.code)
    bench.s3.objects["code/function-0.zip"] = b"old"
    bench.cloud.fail = ["no"]
    with pytest.raises(ChannelError, match=r"Queue1 \(AWS::SQS::Queue\): no"):
        bench.deploy()
    assert "code/function-0.zip" in bench.s3.objects  # the rollback reads it


def test_a_queue_name_that_is_not_free_yet_is_waited_for_once(bench: Bench) -> None:
    reason = "You must wait 60 seconds after deleting a queue (QueueDeletedRecently)"
    bench.cloud.fail = [None, reason, None]
    bench.deploy()
    assert bench.cloud.status == "UPDATE_COMPLETE" and bench.clock.now >= 60
    bench.cloud.fail = [reason, reason]
    with pytest.raises(ChannelError, match="again in a minute"):
        bench.deploy()


@pytest.mark.parametrize("status", [one for one in STATUSES if NEXT[one] is not Next.CREATE])
def test_a_stack_in_any_status_is_removed(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    bench = Bench(monkeypatch, status)
    assert bench.destroy()
    assert bench.cloud.status == "DELETE_COMPLETE"
    assert bench.destroy() is False


def test_a_bucket_that_a_rank_fills_meanwhile_is_emptied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, "UPDATE_COMPLETE")
    late = iter([True, False])
    bench.cloud.not_empty = lambda: next(late)
    assert bench.destroy() and bench.cloud.calls == ["delete_stack"] * 2
    bench.cloud.status = "UPDATE_COMPLETE"
    bench.cloud.not_empty = lambda: True
    with pytest.raises(ChannelError, match="DELETE_FAILED: Bucket .*is not empty"):
        bench.destroy()


def test_a_large_template_is_read_from_the_bucket_at_the_regions_own_host(bench: Bench) -> None:
    layout = Layout(ranks=210)
    large = Target(NAME, TARGET.first, template.build(layout), TARGET.code)
    bodies: list[dict[str, object]] = []
    bench.cloud.update_stack = lambda **given: bodies.append(given)  # type: ignore[method-assign]
    bench.deploy(large)
    assert len(json.dumps(large.whole)) > deployment.BODY_BYTES
    (given,) = bodies
    assert given["TemplateURL"] == f"{bench.s3.meta.endpoint_url}/bucket/code/template.json"
    assert "TemplateBody" not in given and "code/template.json" in bench.s3.puts


def test_an_operation_that_does_not_end_is_left_after_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, "UPDATE_IN_PROGRESS")
    bench.clock.on_sleep = lambda: None
    with pytest.raises(ChannelError, match="still UPDATE_IN_PROGRESS.*goes on"):
        bench.deploy()
    assert DEPLOY_S <= bench.clock.now < DEPLOY_S + 10


@pytest.mark.parametrize(
    "reason, advice",
    [
        ("MemorySize value failed to satisfy constraint: Member must have value less than or equal to 3008", "3,008 MB per function"),
        ("User: arn:aws:iam::1:user/x is not authorized to perform: sns:CreateTopic", "smpi policy --deployer"),
        ("Error occurred while GetObject. S3 Error Code: NoSuchKey.", "uploads it"),
        ("smpi-q-0001 already exists", "another --stack NAME"),
        ("Value python3.14 at 'runtime' failed to satisfy constraint", "--python 3.13"),
        ("SnapStart is not supported in this region", "without --snapstart"),
        ("Rate exceeded (Service: Sns, Status Code: 400)", "again in some minutes"),
        ("Topic limit exceeded: quota", "Service Quotas"),
    ],
)  # fmt: skip
def test_what_would_help_against_a_failure(bench: Bench, reason: str, advice: str) -> None:
    bench.cloud.fail = [None, reason]
    with pytest.raises(ChannelError) as error:
        bench.deploy()
    assert reason in str(error.value) and advice in str(error.value)
    assert "\n" not in str(error.value)


def test_every_advice_is_one_line() -> None:
    of_services = [text for table in refusals.ADVICE_OF.values() for text in table.values()]
    on_reasons = [advice for _, advice in refusals.ADVICE_ON]
    for text in (*refusals.ADVICE.values(), *of_services, *on_reasons):
        assert "\n" not in text and not text.endswith(".")
