"""The contract over every medium: memory, TCP, and queue, object and hybrid on two independent emulators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serverless_mpi import channels
from serverless_mpi.aws import control
from serverless_mpi.channels.base import Channel
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from tests.channels.contract import check_channel


def check(name: str, endpoint: str | None, without: Sequence[str] = ()) -> None:
    kind = channels.load(name)
    specs: list[JobSpec] = []

    def make(size: int) -> list[Channel]:
        spec = JobSpec.new(size, name, endpoint=endpoint)
        specs.append(spec)
        spec = replace(spec, settings=kind.provision(spec))
        return [kind(spec.with_rank(rank), Meter()) for rank in range(size)]

    try:
        check_channel(make, without)
    finally:
        for spec in specs:
            kind.destroy(spec)
            kind.destroy(spec)  # again does nothing
    if endpoint is not None:
        assert not {spec.job_id for spec in specs} & set(control.leftovers(endpoint, "us-east-1"))


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
