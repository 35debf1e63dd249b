"""Channel routed: its contract over Unix sockets and over links, and links that fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from serverless_mpi.channels.base import ExpectedFrame
from serverless_mpi.channels.link import Link
from serverless_mpi.channels.routed import QUIET_S, RoutedChannel
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.testing import check_channel
from serverless_mpi.testing.channels import Make, find_leftovers, outgoing, provisioned

PATIENCE_S = 30.0  # only a failure waits as long
ANYTHING = [ExpectedFrame(0, 7, ANY_SOURCE, 0, 0, 0, 0)]


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


@pytest.fixture
def make(ministack_endpoint: str) -> Iterator[Make]:
    with provisioned(Apart, ministack_endpoint, find_leftovers) as make:
        yield make


def collect(channel: RoutedChannel, count: int) -> set[bytes]:
    """Get frames until there are `count` different ones."""
    bodies, deadline = set[bytes](), time.monotonic() + PATIENCE_S
    while len(bodies) < count and time.monotonic() < deadline:
        deliveries = channel.get(1.0, lambda: ANYTHING)
        bodies |= {bytes(delivery.data) for delivery in deliveries}
        channel.ack([delivery.receipt for delivery in deliveries if delivery.receipt is not None])
    return bodies


def until(channel: RoutedChannel, predicate: Callable[[], object]) -> None:
    """Receive until the predicate is true, or the patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while not predicate():
        assert time.monotonic() < deadline
        channel.get(0.01, lambda: ANYTHING)


def link_to(channel: RoutedChannel, rank: int) -> Link:
    until(channel, lambda: channel._peers[rank].links)
    return channel._peers[rank].links[0]


def linked(make: Make, size: int = 2) -> list[RoutedChannel]:
    """Return the channels of a job in which ranks 0 and 1 are linked."""
    channels = [channel for channel in make(size) if isinstance(channel, RoutedChannel)]
    channels[0].put([outgoing(0, (1,), 0, b"first")])
    assert collect(channels[1], 1) == {b"first"}
    for rank in (0, 1):
        link_to(channels[rank], 1 - rank)
    return channels


def rows(channel: RoutedChannel, name: str) -> int:
    return channel.meter.snapshot().get(name, {}).get("requests", 0)


def close(channels: list[RoutedChannel]) -> None:
    for channel in channels:
        channel.close()


def test_the_first_frame_goes_by_hybrid_and_the_next_by_the_link(make: Make) -> None:
    channels = linked(make)
    assert rows(channels[0], "link.put") == 0
    before = rows(channels[0], "sqs.SendMessageBatch")
    frame = outgoing(0, (1,), 1, b"second")
    assert channels[0].at_once(frame.dests)
    channels[0].put([frame])
    assert collect(channels[1], 1) == {b"second"}
    assert rows(channels[0], "link.put") == 1
    assert rows(channels[0], "sqs.SendMessageBatch") == before
    close(channels)


def test_a_link_that_breaks_loses_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = linked(make)
    link = link_to(channels[1], 0)
    monkeypatch.setattr(link, "read", lambda deliver: False)  # as after a damaged record
    bodies = {b"%d" % seq for seq in range(20)}
    channels[0].put([outgoing(0, (1,), int(body), body) for body in sorted(bodies)])
    assert rows(channels[0], "link.put") == 20
    channels[1].get(1.0, lambda: ANYTHING)
    assert not link.alive
    until(channels[0], lambda: not channels[0]._peers[1].links[0].alive)
    assert collect(channels[1], 20) == bodies
    frame = outgoing(0, (1,), 20, b"after it")
    assert not channels[0].at_once(frame.dests)
    channels[0].put([frame])
    assert b"after it" in collect(channels[1], 1)
    assert rows(channels[0], "link.broken") == 1
    close(channels)


@pytest.mark.parametrize(("nbytes", "step"), [(9, "full"), (100_000, "queue")])
def test_a_link_that_breaks_while_a_frame_is_queued_loses_nothing(
    nbytes: int, step: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = linked(make)
    link = link_to(channels[0], 1)

    def breaking(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            link.sock.shutdown(2)  # as a thread that reads may find at any time
            channels[0]._break(link, "broke")
            return method(*arguments)

        return call

    # after the look whether the link lives, and before the frame is kept for the peer
    if step == "queue":
        monkeypatch.setattr(link, "queue", breaking(link.queue))
    else:
        monkeypatch.setattr(type(link), "full", property(breaking(lambda link: False)))
    body = b"x" * nbytes
    channels[0].put([outgoing(0, (1,), 1, body)])
    assert collect(channels[1], 1) == {body}
    close(channels)


def test_a_frame_for_several_ranks_goes_both_ways(make: Make) -> None:
    channels = linked(make, 3)
    channels[0].put([outgoing(0, (1, 2), 1, b"all")])
    assert collect(channels[1], 1) == collect(channels[2], 1) == {b"all"}
    assert rows(channels[0], "link.put") == 1
    close(channels)


def test_an_offer_that_was_seen_has_no_effect(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = linked(make)
    asked: list[int] = []
    monkeypatch.setattr(channels[1]._linker, "connect", lambda rank, address: asked.append(rank))
    channels[1]._accept_offer(0, 1, ("127.0.0.1", 9))
    assert asked == []
    close(channels)


def test_without_the_package_for_encryption_there_are_no_links(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverless_mpi.channels.routed.CAN_SEAL", False)
    channels = [channel for channel in make(2) if isinstance(channel, RoutedChannel)]
    channels[0].put([outgoing(0, (1,), 0, b"by hybrid")])
    assert collect(channels[1], 1) == {b"by hybrid"}
    assert channels[0]._linker.address is None and not channels[0]._peers[1].offered
    close(channels)


def test_a_rank_of_the_same_node_that_vanishes_is_named(ministack_endpoint: str) -> None:
    with provisioned(RoutedChannel, ministack_endpoint, find_leftovers) as make:
        channels = [channel for channel in make(2) if isinstance(channel, RoutedChannel)]
        channels[0].put([outgoing(0, (1,), 0, b"first")])
        assert collect(channels[1], 1) == {b"first"}
        link_to(channels[1], 0).sock.shutdown(2)  # the kernel does this when a process ends
        with pytest.raises(ChannelError, match="rank 1 vanished: its connection to rank 0 broke"):
            until(channels[0], lambda: False)
        for channel in channels:
            channel.close()


def test_a_rank_whose_peers_are_linked_asks_hybrid_only_after_a_silence(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = linked(make)
    asked: list[float] = []
    monkeypatch.setattr(channels[1]._poller, "poll", lambda until, wanted: asked.append(until))
    channels[1]._silent_s = 0.0
    assert channels[1].get(QUIET_S * 0.1, lambda: ANYTHING) == []
    assert asked == [] and channels[1]._silent_s >= QUIET_S * 0.1
    channels[1]._silent_s = QUIET_S
    assert channels[1].get(0.0, lambda: ANYTHING) == []
    assert len(asked) == 1 and channels[1]._silent_s < QUIET_S
    close(channels)
