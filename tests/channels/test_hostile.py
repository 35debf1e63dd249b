"""Messages and objects that somebody else put: each is dropped, counted and deleted, and none ends a rank."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_mpi.aws import control
from serverless_mpi.channels import object
from serverless_mpi.channels.base import (
    SCATTERED,
    SHARED,
    Delivery,
    ExpectedFrame,
    FrameName,
    OutgoingFrame,
)
from serverless_mpi.channels.hybrid import HybridChannel, Place, locate_frame, reference
from serverless_mpi.channels.queue import QueueChannel
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec, frames_prefix
from serverless_mpi.runtime import Runtime
from tests.channels.fakes import Cloud, cloud, ranks
from tests.channels.test_cleanup import AtOnce
from tests.harness import on_each

__all__ = ["cloud"]

OWN = FrameName(0, 7, 0, 1, 0, 0, 0).key()
SHARED_KEY = FrameName(2, 7, 0, SHARED, 3, 0, 0).key()


def table(*rows: tuple[int, int], count: int | None = None) -> bytes:
    head = struct.pack("<I", len(rows) if count is None else count)
    return head + b"".join(struct.pack("<IQ", *row) for row in rows)


def test_references_of_this_package_are_followed() -> None:
    frame = OutgoingFrame((1,), FrameName(0, 7, 0, 1, 0, 0, 0), (memoryview(b"x"),))
    magic, text = reference(frame)
    assert locate_frame(magic, memoryview(text), 1) == Place(OWN, 0, None, 0)
    scattered = OutgoingFrame(
        (1, 2),
        FrameName(2, 7, 0, SCATTERED, 3, 0, 0),
        (),
        ((memoryview(b"ab"),), (memoryview(b"c"),)),
    )
    magic, text = reference(scattered)
    assert locate_frame(magic, memoryview(text), 2) == Place(SHARED_KEY, 4 + 24 + 2, 1, 4 + 24 + 3)
    alone = [reference(one) for one in scattered.split_per_reader()]
    assert locate_frame(*_viewed(alone[1]), 2) == Place(f"{SHARED_KEY}.000002", 0, None, 0)


def _viewed(made: tuple[bytes, bytes]) -> tuple[bytes, memoryview]:
    return made[0], memoryview(made[1])


PLAIN, DEALT = b"sR", b"sD"
ODD = [
    (PLAIN, b""),
    (PLAIN, b"\xff\xfe"),
    (PLAIN, OWN.replace("r/000001", "r/000002").encode()),  # another rank's
    (PLAIN, OWN.replace("r/000001", "r/1").encode()),
    (PLAIN, b"a/000000/000001/000000"),
    (PLAIN, b"../" + OWN.encode()),
    (PLAIN, OWN.encode() + b"?versionId=1"),
    (PLAIN, OWN.encode() + b"\n"),
    (PLAIN, OWN.encode() * 100),
    (DEALT, b""),
    (DEALT, b"abc"),
    (DEALT, table(count=1) + SHARED_KEY.encode()[:11]),
    (DEALT, table((1, 5), count=0xFFFFFFFF) + SHARED_KEY.encode()),
    (DEALT, table((1, 2**63)) + SHARED_KEY.encode()),
    (DEALT, table((0, 2**63), (1, 2**63)) + SHARED_KEY.encode()),
    (DEALT, table((1, 0)) + SHARED_KEY.encode()),
    (DEALT, table((2, 5)) + SHARED_KEY.encode()),  # not for this rank
    (DEALT, table((1, 5)) + OWN.replace("r/000001", "r/000002").encode()),
    (DEALT, table((1, 5)) + b"\xff"),
]


@pytest.mark.parametrize("magic, text", ODD)
def test_odd_references_name_nothing(magic: bytes, text: bytes) -> None:
    assert locate_frame(magic, memoryview(text), 1) is None


@given(st.sampled_from((PLAIN, DEALT)), st.binary(max_size=120), st.integers(0, 3))
def test_no_reference_raises(magic: bytes, text: bytes, rank: int) -> None:
    locate_frame(magic, memoryview(text), rank)
    locate_frame(magic, memoryview(table((rank, 9)) + text), rank)


def test_a_rank_neither_reads_nor_deletes_what_is_anothers(cloud: Cloud) -> None:
    """A reference for rank 1 that somebody sends to rank 2."""
    a, b, c = ranks("hybrid", 3)
    frame = OutgoingFrame((1,), FrameName(0, 7, 0, 1, 0, 0, 0), (memoryview(bytes(1 << 20)),))
    a.put([frame])
    (sent,) = cloud.queues["1"]
    cloud.queues["2"].append(bytearray(sent))
    (got,) = c.get(0.0, list)
    assert not got.data.nbytes
    c.ack([got.receipt])
    c.close()
    assert cloud.deleted == 1 and len(cloud.objects) == 1  # the message
    (got,) = b.get(0.0, list)
    assert got.data.nbytes == 1 << 20
    b.ack([got.receipt])
    for channel in (a, b):
        channel.close()
    assert not cloud.objects


def read(channel: Any, name: FrameName) -> list[Delivery]:
    got: list[Delivery] = channel.get(0.0, lambda: [ExpectedFrame(*name)])
    channel.ack([one.receipt for one in got if one.receipt is not None])
    return got


NAMES = [FrameName(0, 7, 0, 1, 0, 0, 0), FrameName(2, 7, 0, SHARED, 3, 0, 0)]
NAMES.append(NAMES[1]._replace(dest=SCATTERED))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",
        table((1, 5)),
        table((1, 5)) + b"1234",
        table((1, 5)) + b"123456",
        table((1, 5), count=0xFFFFFFFF) + b"12345",
        table((1, 2**63)) + b"12345",
        table((0, 2**64 - 1), (1, 2**64 - 1)),
        table(*[(9, 0)] * 6000),
    ],
)
def test_objects_of_a_wrong_length(cloud: Cloud, name: FrameName, body: bytes) -> None:
    (reader,) = ranks("object", 2)[1:]
    cloud.store(frames_prefix(reader.spec.job_id) + name.key(), body)
    (got,) = read(reader, name)
    assert got.data.nbytes == (0 if name.dest == SCATTERED else len(body))
    reader.close()
    assert len(cloud.objects) == (1 if name.dest < 0 else 0)  # what is this rank's alone is deleted


def test_a_shared_object_that_is_no_frame_is_not_asked_for_without_a_pause(cloud: Cloud) -> None:
    (reader,) = ranks("object", 2)[1:]
    good, bad = (NAMES[1]._replace(seq=seq) for seq in range(2))
    for name in (good, bad):
        cloud.store(frames_prefix(reader.spec.job_id) + name.key(), b"something else")
    pauses: list[float] = []
    reader._woken.wait = lambda pause: pauses.append(pause)
    for name in (good, bad, bad, bad):  # the frame of `good` was taken, that of `bad` is refused
        reader.get(30.0, lambda name=name: [ExpectedFrame(*name)])
    limit = object.EMULATOR_PAUSES_S.limit
    assert pauses == [0.0, 0.0, limit, limit]
    reader.close()


def test_a_shared_object_that_stays_no_frame_ends_the_rank(cloud: Cloud) -> None:
    (reader,) = ranks("object", 2)[1:]
    name = NAMES[1]
    cloud.store(frames_prefix(reader.spec.job_id) + name.key(), b"something else")
    reader._woken.wait = lambda pause: False
    for _ in range(object.MOST_READS):
        assert len(reader.get(30.0, lambda: [ExpectedFrame(*name)])) == 1
    with pytest.raises(ChannelError, match="was read 5 times and is not a frame of this job"):
        reader.get(30.0, lambda: [ExpectedFrame(*name)])
    reader.close()


def test_a_shared_object_that_was_damaged_on_its_way_once_ends_nothing(cloud: Cloud) -> None:
    (reader,) = ranks("object", 2)[1:]
    reader._woken.wait = lambda pause: False
    for seq in range(2 * object.MOST_READS):  # each is read twice, and taken the second time
        name = NAMES[1]._replace(seq=seq)
        cloud.store(frames_prefix(reader.spec.job_id) + name.key(), b"something else")
        for _ in range(2):
            assert len(reader.get(30.0, lambda name=name: [ExpectedFrame(*name)])) == 1
    reader.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=100), count=st.integers(0, 4), rows=st.binary(max_size=48))
def test_no_object_raises(cloud: Cloud, body: bytes, count: int, rows: bytes) -> None:
    (reader,) = ranks("object", 2)[1:]
    for name in NAMES:
        cloud.store(
            frames_prefix(reader.spec.job_id) + name.key(), struct.pack("<I", count) + rows + body
        )
        read(reader, name)
    reader.close()


@pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
def test_a_long_object_that_changes_while_it_is_read(
    cloud: Cloud, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object, "PART_BYTES", 1000)
    monkeypatch.setattr(object, "Workers", AtOnce)
    (reader,) = ranks("object", 2)[1:]
    key = frames_prefix(reader.spec.job_id) + OWN
    cloud.store(key, bytes(5000))
    asked = 0

    def ask(action: str, name: str) -> None:
        nonlocal asked
        asked += action == "get"
        if asked == 2 and change == "gone":
            cloud.objects.pop(key, None)
        elif asked == 2:
            cloud.objects[key] = bytes(3000 if change == "shorter" else 9000)

    cloud.trouble = ask
    got = read(reader, NAMES[0])
    assert [one.data.nbytes for one in got] == [5000 if change == "longer" else 0]
    reader.close()


def test_an_object_that_is_longer_than_a_frame(cloud: Cloud, monkeypatch: Any) -> None:
    monkeypatch.setattr(object, "MAX_FRAME_BYTES", 4000)
    monkeypatch.setattr(object, "PART_BYTES", 1000)
    (reader,) = ranks("object", 2)[1:]
    cloud.store(frames_prefix(reader.spec.job_id) + OWN, bytes(5000))
    (got,) = read(reader, NAMES[0])
    assert got.data.nbytes == 0
    reader.close()


def send_odd_messages(sqs: Any, queue: str) -> int:
    """Send what anybody with sqs:SendMessage can; how many there are that are dropped."""
    attributes: list[Any] = [
        {"f": {"DataType": "String", "StringValue": "a text"}},
        {"f": {"DataType": "Number", "StringValue": "7"}},
        {"f": {"DataType": "Binary", "BinaryValue": b"not a frame"}},
        {"f": {"DataType": "Binary", "BinaryValue": PLAIN + bytes(16) + OWN.encode()}},
        {"f": {"DataType": "Binary", "BinaryValue": DEALT + bytes(90)}},
        {"f": {"DataType": "Binary", "BinaryValue": b"sM" + bytes(200)}},
        {"other": {"DataType": "String", "StringValue": "text"}},
        {},
    ]
    for one in attributes:
        sqs.send_message(QueueUrl=queue, MessageBody="a body", MessageAttributes=one)
    return len(attributes)


@pytest.mark.parametrize("kind", [QueueChannel, HybridChannel])
def test_a_job_goes_on_among_odd_messages(
    kind: Callable[..., Any], ministack_endpoint: str
) -> None:
    name = "queue" if kind is QueueChannel else "hybrid"
    spec = JobSpec.new(2, name, endpoint=ministack_endpoint)
    spec = replace(spec, settings=kind.provision(spec))  # type: ignore[attr-defined]
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(2)]
    sqs = control.client("sqs", ministack_endpoint, "us-east-1")
    queue = runtimes[1]._channel._queues if name == "queue" else runtimes[1]._channel._queue._queues  # type: ignore[attr-defined]
    odd: list[int] = []

    def body(comm: Any) -> None:
        for round_number in range(3):
            if comm.rank == 0:
                odd.append(send_odd_messages(sqs, queue[1]))
                comm.send("right", 1)
            else:
                assert comm.recv() == "right"
            assert comm.allreduce(round_number) == 2 * round_number

    try:
        on_each(runtimes, body)
        for runtime in runtimes:
            runtime.finalize()
        assert runtimes[1]._endpoint.dropped == sum(odd) and runtimes[0]._endpoint.dropped == 0
        left = sqs.get_queue_attributes(
            QueueUrl=queue[1],
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )["Attributes"]
        assert set(left.values()) == {"0"}  # none of them comes back
    finally:
        kind.destroy(spec)  # type: ignore[attr-defined]
