"""Channel routed: its contract over Unix sockets and over links, and links that fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serverless_mpi.channels.routed import RoutedChannel
from serverless_mpi.job import JobSpec
from serverless_mpi.testing import check_channel


class Apart(RoutedChannel):
    """Each rank is on a node of its own, so that frames travel by TCP links and by hybrid."""

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        return super().provision(replace(spec, settings={**spec.settings, "ppn": "1"}))


class Pairs(RoutedChannel):
    """Ranks 0 and 1 share a node, rank 2 is alone."""

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        return super().provision(replace(spec, settings={**spec.settings, "ppn": "2"}))


@pytest.mark.parametrize("kind", [RoutedChannel, Apart, Pairs])
def test_the_contract(kind: type[RoutedChannel], ministack_endpoint: str) -> None:
    check_channel(kind, endpoint=ministack_endpoint)
