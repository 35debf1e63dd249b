"""The channel contract, a deploy and jobs on Lambda through the strict layer, with every adversity.

Nothing that the package sends may break a rule, and nothing that AWS may do at any time
may lose, change or repeat a message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from serverless_mpi import channels
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.channels import queue
from serverless_mpi.channels.base import Channel
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from serverless_mpi.testing import check_channel
from serverless_mpi.testing.channels import CHECKS
from tests.channels.test_contract import on_a_directory_bucket
from tests.harness import GIVE_UP_S
from tests.launch.lambda_stack import Deployed, smpi
from tests.strict.call import Request
from tests.strict.express import Express
from tests.strict.layer import Front
from tests.strict.rules_objects import LEAST_PART_BYTES
from tests.strict.world import ADVERSE, RealClock, authorization


def patient(name: str, clock: RealClock) -> type[Channel]:
    """Return a channel that waits after `provision` until what it changed applies."""
    kind = channels.load(name)

    class Patient(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def provision(cls, spec: JobSpec) -> dict[str, str]:
            settings: dict[str, str] = kind.provision(spec)
            clock.ahead += 900
            return settings

    return Patient


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_the_contract_of_a_channel(
    name: str, strict_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "EMULATOR_TOPIC_ENTRIES", 10)  # as on AWS; the layer splits batches
    clock = RealClock()
    settings = replace(ADVERSE, filter_s=900, policy_s=60)
    with Front(strict_endpoint, settings, clock) as front:
        check_channel(patient(name, clock), endpoint=front.url)
        assert not front.world.refusals_but("sns-quota", "s3-write-rate", "s3-read-rate")
        done = front.world.exercised
        if name != "object":
            assert done["at-least-once"] and done["visibility"] and done["sns-quota"]
        if name != "queue":
            assert done["s3-missing"] or done["s3-listing"]


@pytest.mark.parametrize("name", ["object", "hybrid"])
def test_the_contract_on_a_directory_bucket(name: str, strict_endpoint: str) -> None:
    clock = RealClock()
    with (
        Front(strict_endpoint, replace(ADVERSE, filter_s=900, policy_s=60), clock) as front,
        Express(front.url, world=front.world) as express,
    ):
        made = on_a_directory_bucket(patient(name, clock), express, [])
        check_channel(made, endpoint=express.url)
        assert not front.world.refusals_but("sns-quota", "s3-write-rate", "s3-read-rate")
        assert front.world.exercised["express-session"] > 5
        assert front.world.exercised["express-signature"] > 5


def test_an_upload_in_parts(strict_endpoint: str) -> None:
    with Front(strict_endpoint, ADVERSE) as front:
        front.world.forward(Request("PUT", "/strict-parts", authorization("s3"), b""))
        client = Client("s3", "us-east-1", front.url, Credentials(front.url), Meter())
        store = S3(client, "strict-parts")
        parts = [memoryview(bytes(LEAST_PART_BYTES)), memoryview(b"end")]
        for key in "abc":
            store.put_multipart(key, [[part] for part in parts], lambda put, n: list(map(put, n)))
            stored = store.get(key)
            assert stored is not None and stored[1] == LEAST_PART_BYTES + 3
        client.close()
        assert front.world.exercised["s3-completion"] and not front.world.refusals


def test_a_channel_that_is_used_before_its_filters_apply_loses_messages(
    strict_endpoint: str,
) -> None:
    """The contract suite sees what the layer does: without the wait it fails."""
    others = [one.__name__ for one in CHECKS if one.__name__ != "one_put_reaches_any_subset"]
    with Front(strict_endpoint, replace(ADVERSE, filter_s=900), on_purpose=True) as front:
        with pytest.raises(AssertionError, match="rank 1 got 0 of 2 frames|rank 1 got 1 of 2"):
            check_channel("queue", endpoint=front.url, patience_s=0.3, skip=others)
        assert front.world.exercised["sns-filter-delay"]


@pytest.fixture(scope="module")
def front(strict_endpoint: str) -> Iterator[Front]:
    """The layer in front of a stack that `smpi deploy` made through it, and `smpi destroy` removes."""
    clock = RealClock()
    with Front(strict_endpoint, ADVERSE, clock) as made:
        done = smpi("deploy", "--endpoint", made.url, "--ranks", 4, "--memory", 512)
        assert done.returncode == 0, done.stderr
        clock.ahead += ADVERSE.filter_s
        yield made
        done = smpi("destroy", "--endpoint", made.url)
        assert done.returncode == 0, done.stderr
        refusals = made.world.refusals_but("sns-quota", "s3-write-rate", "s3-read-rate")
        assert not refusals, refusals
        assert not made.world.broken["iam-role"] and made.world.exercised["iam-role"] > 50
        assert made.world.exercised["stack-capabilities"]


def test_an_event_that_became_too_old_ends_the_job(front: Front) -> None:
    """The report function reports it to the launcher, with only its own role."""
    world = front.world
    usual, (facts,) = world.settings, world.stacks.values()
    ages = dict(facts.ages)
    # one environment for rank 0, and an age of 1 s instead of 60 s
    world.settings = replace(usual, environments=1, environments_per_s=1e-9, repeated_events=0.0)
    facts.ages.update(dict.fromkeys(ages, 1.0))
    try:
        done = Deployed(front.url).run("-n", 2, "examples/hello.py")
    finally:
        world.settings = usual
        facts.ages.update(ages)
    assert done.returncode == 1 and "was throttled" in done.stderr, done.stderr
    deadline = time.monotonic() + GIVE_UP_S  # the function goes on after the launcher has heard it
    while "s3.PutObject" not in world.calls["smpi-report"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert world.calls["smpi-report"] >= {"s3.PutObject", "sqs.SendMessageBatch"}


@pytest.mark.parametrize("channel", ["hybrid", "object"])
def test_a_job_on_lambda(channel: str, front: Front) -> None:
    done = Deployed(front.url).run("-n", 3, "--channel", channel, "examples/sample_sort.py")
    assert done.returncode == 0 and "numbers sorted on 3 ranks" in done.stdout, done.stderr
    assert front.world.exercised["lambda-payload"]
