"""The contract over every medium: memory, TCP, and queue, object and hybrid on two independent emulators."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from serverless_mpi import channels
from serverless_mpi.aws import control
from serverless_mpi.channels.memory import MemoryChannel
from serverless_mpi.job import JobSpec
from tests.channels.contract import check_channel, provisioned


def check(name: str, endpoint: str | None, without: Sequence[str] = ()) -> None:
    def left(spec: JobSpec) -> list[str]:
        found = [] if endpoint is None else control.leftovers(endpoint, spec.region)
        return [job_id for job_id in found if job_id == spec.job_id]

    with provisioned(channels.load(name), endpoint, left) as make:
        check_channel(make, without)


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


def test_what_provision_names_is_destroyed(tmp_path: Path) -> None:
    Mailboxes.root = tmp_path
    with provisioned(Mailboxes, None, lambda spec: list(tmp_path.iterdir())) as make:
        for channel in make(2):
            channel.close()
        assert list(tmp_path.iterdir())


def test_what_destroy_leaves_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mailboxes, "destroy", lambda spec: None)
    Mailboxes.root = tmp_path
    with (
        pytest.raises(AssertionError, match="destroy left"),
        provisioned(Mailboxes, None, lambda spec: list(tmp_path.iterdir())) as make,
    ):
        for channel in make(2):
            channel.close()


@pytest.mark.parametrize("name", ["memory", "direct"])
def test_without_a_service(name: str) -> None:
    check(name, None)


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_on_ministack(name: str, ministack_endpoint: str) -> None:
    check(name, ministack_endpoint)


@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_on_moto(name: str, moto_endpoint: str) -> None:
    # moto 5.2 loses what is published with a String.Array and a binary attribute to a raw subscription with a
    # filter policy (boto3's own calls show it), so there the fan-out is checked on objects alone
    check(
        name,
        moto_endpoint,
        ()
        if name == "object"
        else ("one_put_reaches_any_subset", "each_reader_of_a_dealt_parcel_gets_its_own"),
    )
