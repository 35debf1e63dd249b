"""The contract over every medium: memory, TCP, and queue, object and hybrid on two independent emulators, also with directory buckets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from serverless_mpi.aws import control
from serverless_mpi.aws.credentials import emulator_keys
from serverless_mpi.channels.base import Channel, OutgoingFrame
from serverless_mpi.channels.hybrid import HybridChannel
from serverless_mpi.channels.memory import MemoryChannel
from serverless_mpi.channels.object import ObjectChannel
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import FRAMES_BUCKET, JobSpec
from serverless_mpi.metering import Meter
from serverless_mpi.testing import check_channel
from serverless_mpi.testing.channels import find_leftovers, provisioned
from tests.strict.express import Express, directory_bucket, plain


class Mailboxes(MemoryChannel):
    """A channel whose things have names of their own, which only `provision` tells."""

    root: ClassVar[Path]

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        return {"folder": tempfile.mkdtemp(dir=cls.root)}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        if "folder" in spec.settings:
            shutil.rmtree(spec.settings["folder"], ignore_errors=True)


class Losing(MemoryChannel):
    """Loses every frame of 100 bytes and more that is not alone."""

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        super().put([one for one in parcels if len(parcels) == 1 or one.nbytes < 100])


def test_what_provision_names_is_destroyed(tmp_path: Path) -> None:
    Mailboxes.root = tmp_path
    check_channel(Mailboxes)
    assert not list(tmp_path.iterdir())


def test_what_destroy_leaves_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mailboxes, "destroy", lambda spec: None)
    Mailboxes.root = tmp_path
    with (
        pytest.raises(AssertionError, match=f"Mailboxes: destroy left .*{tmp_path}"),
        provisioned(Mailboxes, None, find_leftovers) as make,
    ):
        for channel in make(2):
            channel.close()


def test_a_lost_frame_is_reported() -> None:
    with pytest.raises(
        AssertionError,
        match="Losing, every_frame_arrives_unchanged: rank 1 got [0-9]+ of 27 frames within 0.5 s",
    ):
        check_channel(Losing, patience_s=0.5)


def test_a_channel_of_services_needs_an_endpoint() -> None:
    with pytest.raises(ServerlessMPIError, match="QueueChannel needs sns, sqs: pass the endpoint"):
        check_channel("queue")


@pytest.mark.parametrize("name", ["memory", "direct"])
def test_without_a_service(name: str) -> None:
    check_channel(name)


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_on_ministack(name: str, ministack_endpoint: str) -> None:
    check_channel(name, endpoint=ministack_endpoint)


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_on_moto(name: str, moto_endpoint: str) -> None:
    # moto 5.2 loses what is published with a String.Array and a binary attribute to a raw subscription with a
    # filter policy (boto3's own calls show it), so there the fan-out is checked on objects alone
    missing: Collection[str] = ()
    if name != "object":
        missing = ("one_put_reaches_any_subset", "each_reader_of_a_scattered_frame_gets_its_own")
    check_channel(name, endpoint=moto_endpoint, skip=missing)


def on_a_directory_bucket(
    kind: type[Channel], front: Express, meters: list[Meter]
) -> type[Channel]:
    """A channel whose jobs have their frames in a directory bucket, as where rank 0 chose one."""
    s3 = control.client("s3", front.emulator, "us-east-1")

    def bucket(spec: JobSpec) -> str:
        return directory_bucket(f"smpi-{spec.job_id}")

    class Made(kind):  # type: ignore[valid-type, misc]
        def __init__(self, spec: JobSpec, meter: Meter) -> None:
            keys = emulator_keys(spec.key)
            front.users.add((keys.access, keys.secret))
            super().__init__(spec, meter)
            meters.append(meter)

        @classmethod
        def provision(cls, spec: JobSpec) -> dict[str, str]:
            s3.create_bucket(Bucket=plain(bucket(spec)))
            return {**super().provision(spec), FRAMES_BUCKET: bucket(spec)}

        @classmethod
        def destroy(cls, spec: JobSpec) -> None:
            super().destroy(spec)
            name = plain(bucket(spec))
            if name in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
                for one in s3.list_objects_v2(Bucket=name).get("Contents", ()):
                    s3.delete_object(Bucket=name, Key=one["Key"])
                s3.delete_bucket(Bucket=name)

    Made.__name__ = kind.__name__
    return Made


@pytest.mark.parametrize("kind", [ObjectChannel, HybridChannel])
def test_on_a_directory_bucket(kind: type[Channel], ministack_endpoint: str) -> None:
    meters: list[Meter] = []
    with Express(ministack_endpoint) as front:
        check_channel(on_a_directory_bucket(kind, front, meters), endpoint=front.url)
        assert {method for method, _ in front.calls} == {"GET", "PUT", "POST"}
    names = {name for meter in meters for name in meter.snapshot()}
    assert {"s3express.CreateSession", "s3express.PUT", "s3express.GET"} <= names
    assert not any(name.startswith("s3.") for name in names)
