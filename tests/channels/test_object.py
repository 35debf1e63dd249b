"""object: long objects in ranges, each digested as it comes; what is deleted is forgotten."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from serverless_mpi.aws.s3 import PART_BYTES
from serverless_mpi.channels.base import SHARED, ExpectedFrame, FrameName, OutgoingFrame
from serverless_mpi.channels.object import (
    AWS_PAUSES_S,
    MAX_FRAME_BYTES,
    MULTIPART_BYTES,
    ObjectChannel,
    Store,
    TreeHash,
    listed_above,
)
from serverless_mpi.core.endpoint import Endpoint
from serverless_mpi.core.wire import HEADER_BYTES, LEAF_BYTES, digests
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter, Prices
from tests.aws.server import HangUp, Reply, Server, reply
from tests.channels.fakes import Cloud, busy, cloud, job
from tests.channels.fakes import ranks as fake_ranks

__all__ = ["cloud"]

GIVE_UP_S = 60.0  # only reached by a failure


@pytest.fixture
def ranks(ministack_endpoint: str) -> Iterator[list[ObjectChannel]]:
    spec = JobSpec.new(2, "object", endpoint=ministack_endpoint)
    spec = replace(spec, settings=ObjectChannel.provision(spec))
    channels = [ObjectChannel(spec.with_rank(rank), Meter()) for rank in range(2)]
    yield channels
    for channel in channels:
        channel.close()
    ObjectChannel.destroy(spec)


def wanted(frame: OutgoingFrame) -> ExpectedFrame:
    return ExpectedFrame(*frame.name)


@pytest.mark.parametrize(
    "nbytes, puts, gets",
    [
        (PART_BYTES, 1, 1),
        (PART_BYTES + 1, 1, 2),
        (2 * PART_BYTES + LEAF_BYTES + 1, 1, 3),
        (MULTIPART_BYTES, 7, 5),
    ],
)
def test_a_long_frame(ranks: list[ObjectChannel], nbytes: int, puts: int, gets: int) -> None:
    a, b = ranks
    block = random.Random(nbytes).randbytes(1 << 20)
    body = (block * (nbytes // len(block) + 1))[:nbytes]
    ends = [
        Endpoint(rank, bytes.fromhex(a.spec.job_id), a.spec.key, a.limits.max_frame_bytes, 1 << 31)
        for rank in range(2)
    ]
    (frame,) = ends[0].send(7, 1, 3, [memoryview(body)])
    a.put([frame])
    (delivery,) = b.get(GIVE_UP_S, lambda: [wanted(frame)])
    assert delivery.data.nbytes == HEADER_BYTES + nbytes
    assert len(delivery.leaves) == (-(-nbytes // LEAF_BYTES) if gets > 1 else 0)
    receive = ends[1].post(7, 0, 3)
    ends[1].receive(delivery.data, 0.0, delivery.leaves)
    assert receive.done and receive.data == body and ends[1].dropped == 0
    assert a.meter.snapshot()["s3.PUT"]["requests"] == puts
    assert b.meter.snapshot()["s3.GET"]["requests"] == gets
    delivery.data[HEADER_BYTES + nbytes - 1] ^= (
        1  # after the digests were taken: the core goes by what the channel saw
    )
    ends[1].receive(delivery.data, 0.0)
    assert ends[1].dropped == 1


def test_keys_are_forgotten_when_they_are_deleted(
    ranks: list[ObjectChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverless_mpi.channels.object.MAX_DELETED", 2)
    a, b = ranks
    for seq in range(4):
        frame = OutgoingFrame((1,), FrameName(0, 7, 0, 1, seq, 0, 0), (memoryview(b"%d" % seq),))
        a.put([frame])
        (delivery,) = b.get(GIVE_UP_S, lambda: [wanted(frame)])
        b.ack([delivery.receipt])
    b.close()
    assert not b._acknowledged


def test_leaves_are_digested_as_they_come_also_of_a_second_attempt() -> None:
    body = bytearray(random.Random(3).randbytes(3 * LEAF_BYTES + 5))
    part = memoryview(body)
    leaves = TreeHash(part)
    body[:LEAF_BYTES] = bytes(LEAF_BYTES)  # what a first attempt brought that broke off
    for filled in (0, LEAF_BYTES + 9):
        leaves.update(filled)
    body[:LEAF_BYTES] = bytes(range(256)) * (LEAF_BYTES // 256)
    for filled in (0, 2 * LEAF_BYTES, 3 * LEAF_BYTES + 1, 3 * LEAF_BYTES + 5):
        leaves.update(filled)
    assert leaves.digests() == digests((part,))
    assert TreeHash(part).digests() == digests((part,))
    assert TreeHash(part[:0]).digests() == []


@pytest.mark.parametrize("chunked", [False, True])
def test_what_a_broken_attempt_brought_is_not_digested(
    chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer has other bytes, of which the first report may be as long as all that the first attempt had."""
    monkeypatch.setattr("serverless_mpi.channels.object.LEAF_BYTES", 1000)
    monkeypatch.setattr("serverless_mpi.core.wire.LEAF_BYTES", 1000)
    first, second = bytes(300_000), random.Random(4).randbytes(300_000)
    broken = reply(body=first)[:-20_000].decode("latin-1")
    whole = reply(body=second)
    if chunked:  # such a body does not come in the memory that was named
        head = b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n"
        whole = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(second), second)
    answers: list[Reply] = [HangUp(broken), whole]
    with Server(lambda request: answers.pop(0)) as server:
        spec = JobSpec.new(1, "object", endpoint=server.url, settings={"bucket": "b"})
        store = Store(spec, Meter(), MAX_FRAME_BYTES)
        part = memoryview(bytearray(300_000))
        leaves = TreeHash(part)
        store._fetch("k", 0, part, leaves.update)
        assert part == second and leaves.digests() == digests((part,))
        store._client.close()
    assert not answers


def outgoing(source: int, dest: int, seq: int = 0) -> OutgoingFrame:
    name = FrameName(2, 7, source, dest, seq, 0, 0)
    return OutgoingFrame((0,), name, (memoryview(b"%d" % source),))


@pytest.mark.parametrize("dest", [0, SHARED])
def test_many_awaited_keys_are_listed_and_only_those_that_exist_are_read(
    dest: int, cloud: Cloud
) -> None:
    most = listed_above(Prices.load(), "s3")
    assert most == 12
    spec = job("object", 40)
    reader = ObjectChannel(spec, Meter())
    asked: list[str] = []
    cloud.trouble = lambda action, name: asked.append(action)
    for number in (most, most + 1):
        awaited = [wanted(outgoing(source, dest)) for source in range(1, number + 1)]
        asked.clear()
        assert reader.get(0.0, lambda awaited=awaited: awaited) == []
        assert asked == (["get"] * most if number == most else ["list"])
    for source, seq in ((3, 0), (9, 0), (5, 1)):  # the third is of the next collective
        writer = ObjectChannel(spec.with_rank(source), Meter())
        writer.put([outgoing(source, dest, seq)])
        writer.close()
    asked.clear()
    got = reader.get(0.0, lambda: awaited)
    assert asked == ["list", "get", "get"] and [bytes(one.data) for one in got] == [b"3", b"9"]
    reader.close()


def test_a_listing_that_finds_the_service_busy_has_found_nothing_yet(cloud: Cloud) -> None:
    (reader,) = fake_ranks("object", 1)
    awaited = [wanted(outgoing(source, SHARED)) for source in range(1, 20)]
    alone = outgoing(3, 0)
    writer = ObjectChannel(job("object", 4).with_rank(3), Meter())
    writer._store.prefix = reader._store.prefix
    writer.put([alone])
    writer.close()
    cloud.trouble = lambda action, name: busy(action, name) if action == "list" else None
    (got,) = reader.get(GIVE_UP_S, lambda: [*awaited, wanted(alone)])
    assert bytes(got.data) == b"3"
    assert reader.get(0.0, lambda: awaited) == []
    assert reader._patience.troubles == 1
    reader.close()


def test_pauses_grow_to_an_eighth_of_the_wait() -> None:
    pause, waited, pauses = AWS_PAUSES_S.first, 0.0, []
    while waited < 60.0:
        pauses.append((waited, pause))
        waited += pause
        pause = AWS_PAUSES_S.after(pause, waited)
    assert pauses[0][1] == 0.01 and pauses[-1][1] == AWS_PAUSES_S.longest == 1.0
    assert all(pause <= max(AWS_PAUSES_S.limit, waited / 8) for waited, pause in pauses)
    assert len(pauses) < 80  # with a pause of at most 0.2 s it would be 300 looks
