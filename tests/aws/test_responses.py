"""Unexpected responses and messages give an error that names them or a dropped frame."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.aws import connection as wire
from serverless_mpi.aws.http import Busy
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sns import Sns
from serverless_mpi.aws.sqs import BODY, FRAME, Sqs, frames_of
from serverless_mpi.errors import ChannelError
from tests.aws.server import HangUp, Reply, reply
from tests.aws.test_client import QUEUE, Bench

Open = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Open]:
    made: list[Bench] = []

    def make(*replies: Reply, service: str = "sqs", forever: bool = False) -> Bench:
        made.append(Bench(replies, service))
        made[-1].forever = forever
        return made[-1]

    yield make
    for one in made:
        one.close()


def message(value: Any, handle: Any = "h") -> dict[str, Any]:
    return {"ReceiptHandle": handle, "Body": BODY, "MessageAttributes": {FRAME: value}}


GOOD = message({"DataType": "Binary", "BinaryValue": base64.b64encode(b"frame").decode()}, "good")
ODD = [
    message({"DataType": "String", "StringValue": "a text"}),
    message({"DataType": "Binary"}),
    message({"BinaryValue": None}),
    message({"BinaryValue": 7}),
    message({"BinaryValue": ["AAAA"]}),
    message({"BinaryValue": "AAA"}),
    message({"BinaryValue": "ü"}),
    message(None),
    message("text"),
    message([]),
    {"ReceiptHandle": "h", "Body": "another body"},
    {"ReceiptHandle": "h", "MessageAttributes": None},
    {"ReceiptHandle": "h", "MessageAttributes": []},
    {"ReceiptHandle": "h", "MessageAttributes": [FRAME]},
    {"ReceiptHandle": "h", "MessageAttributes": {"other": {}}},
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_message_is_an_empty_frame_and_harms_no_other(odd: Any) -> None:
    received = frames_of([GOOD, odd, GOOD])
    assert [bytes(one.frame or b"") for one in received] == [b"frame", b"", b"frame"]
    assert all(one.frame is not None for one in received)
    assert [one.handle for one in received] == ["good", "h", "good"]


@pytest.mark.parametrize("odd", [None, 3, "text", [], {}, message({}, None), message({}, 3)])
def test_what_has_no_handle_cannot_be_received(odd: Any) -> None:
    assert [one.handle for one in frames_of([odd, GOOD])] == ["good"]


def test_a_message_that_only_wakes_has_no_frame() -> None:
    (received,) = frames_of([{"ReceiptHandle": "h", "Body": BODY}])
    assert received.frame is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("ReceiptHandle", "MessageAttributes", FRAME, "BinaryValue", "Body", "other")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_no_json_raises(messages: list[Any]) -> None:
    received = frames_of([*messages, GOOD])
    assert received[-1].handle == "good" and all(isinstance(one.handle, str) for one in received)


NOT_SQS = [
    b"<html>a captive portal</html>",
    b"[]",
    b'"text"',
    b"null",
    b'{"Messages":',
    b'{"Messages":{"a":1}}',
    b'{"Messages":"text"}',
    b"[" * 100_000,
    b"\x00\x80\xff\xff\xff",  # json would take it for UTF-16
    b"\xff\xfe",
    b'{"Failed":{"Id":"0"}}',
    b'{"Failed":["0"]}',
    b'{"Failed":[{}]}',
    b'{"Failed":[{"Id":"99"}]}',
    b'{"Failed":[{"Id":["0"]}]}',
]


@pytest.mark.parametrize("body", NOT_SQS)
def test_what_is_not_sqs_is_named(bench: Open, body: bytes) -> None:
    calls: list[Callable[[Sqs], object]] = []
    if b"Messages" in body or b"Failed" not in body:
        calls.append(lambda sqs: sqs.receive(QUEUE, 0))
    if b"Messages" not in body or body.endswith(b":"):
        calls += [lambda sqs: sqs.send(QUEUE, [b"f"]), lambda sqs: sqs.delete(QUEUE, ["h"])]
    for call in calls:
        with pytest.raises(ChannelError, match="is that address AWS or an emulator"):
            call(Sqs(bench(reply(body=body)).client))


MEMBER = "<member><Id>%s</Id><SenderFault>false</SenderFault></member>"
NOT_SNS = [
    b"",
    b"{}",
    b"<PublishBatchResponse><PublishBatchResult><Failed><member>",
    (f"<PublishBatchResponse><Failed>{MEMBER % 99}</Failed></PublishBatchResponse>").encode(),
    b"<PublishBatchResponse><Failed><member></member></Failed></PublishBatchResponse>",
]


@pytest.mark.parametrize("body", NOT_SNS)
def test_what_is_not_sns_is_named(bench: Open, body: bytes) -> None:
    with pytest.raises(ChannelError, match="is that address AWS or an emulator"):
        Sns(bench(reply(body=body), service="sns").client).publish("t", [(b"f", (1,))] * 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<ListBucketResult><Contents><Key>p/a</Key></Contents>",
        b"<ListBucketResult><Key>elsewhere</Key></ListBucketResult>",
        b"<ListBucketResult><Key>p/0</Key></ListBucketResult>",  # before where the page begins
        b"<ListBucketResult><Key>p/\xff</Key>",
    ],
)
def test_an_invalid_listing_is_named(bench: Open, body: bytes) -> None:
    with pytest.raises(ChannelError, match="is that address AWS or an emulator"):
        S3(bench(reply(body=body), service="s3").client, "b").list("p/", "p/1")


@pytest.mark.parametrize(
    "kind", ["", "a-b/c", "bytes 0-3/many", "bytes 0-3/²", f"bytes 0-3/{'9' * 5000}"]
)
def test_a_size_that_is_no_number_is_none(bench: Open, kind: str) -> None:
    answer = b"HTTP/1.1 206 x\r\ncontent-length: 4\r\ncontent-range: %b\r\n\r\nbody" % kind.encode(
        "latin-1"
    )
    sizes: list[int] = []

    def into(size: int) -> memoryview:
        sizes.append(size)
        return memoryview(bytearray())

    found = S3(bench(answer, service="s3").client, "b").get("k", 0, 4, into)
    assert found is not None and bytes(found[0]) == b"body" and found[1] < 10**20
    assert sizes == [found[1]]


def test_an_object_that_ends_before_the_range(bench: Open) -> None:
    b = bench(reply(416, content_range="bytes */7"), service="s3")
    assert S3(b.client, "b").get("k", 100, 5) == (memoryview(b""), 7)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 1000,
        b"HTTP/1.1 100 x\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_in_an_error(bench: Open, answer: bytes) -> None:
    b = bench(answer, forever=True)
    with pytest.raises(ChannelError, match="in 8 attempts"):
        Sqs(b.client).send(QUEUE, [b"f"])


def test_a_body_without_end_has_an_end(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1000)
    for answer in (
        HangUp("HTTP/1.0 200 OK\r\n\r\n" + "x" * 2000),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"190\r\n%b\r\n" % (b"x" * 400) * 9,
    ):
        with pytest.raises(ChannelError, match="in 8 attempts.*(longer than|cannot be)"):
            Sqs(bench(answer, forever=True).client).send(QUEUE, [b"f"])


# --- batches of which a part failed -----------------------------------------------------


def entry(name: str, fault: bool = False) -> dict[str, Any]:
    return {"Id": name, "SenderFault": fault, "Code": "InternalError"}


def test_failed_entries_are_sent_again_after_random_pauses_that_grow(bench: Open) -> None:
    half = reply(body=json.dumps({"Failed": [entry("1")]}).encode())
    b = bench(half, half, half, reply(body=b"{}"))
    Sqs(b.client).send(QUEUE, [b"first", b"second"])
    assert len(b.pauses) == 3 and len(set(b.pauses)) == 3
    assert [request.body.count(b'"Id"') for request in b.server.requests] == [2, 1, 1, 1]
    b = bench(half, forever=True)
    with pytest.raises(Busy, match="did not take 1 messages .* within 90 s; the last: .*Internal"):
        Sqs(b.client).send(QUEUE, [b"first", b"second"])
    assert 80 < sum(b.pauses) <= 90


def test_failed_publishes_are_sent_again_after_random_pauses_that_grow(bench: Open) -> None:
    form = "<PublishBatchResponse><Failed>%s</Failed></PublishBatchResponse>"
    two, one = (
        reply(body=(form % "".join(MEMBER % name for name in names)).encode())
        for names in ("12", "2")
    )
    b = bench(two, one, reply(body=b"<PublishResponse></PublishResponse>"), service="sns")
    Sns(b.client).publish("t", [(b"f", (1,))] * 3)
    assert len(b.pauses) == 2
    assert [request.body.count(b".Id=") for request in b.server.requests] == [3, 2, 0]
    b = bench(two, forever=True, service="sns")
    with pytest.raises(Busy, match="did not take 2 messages .* within 90 s"):
        Sns(b.client).publish("t", [(b"f", (1,))] * 3)
    assert 80 < sum(b.pauses) <= 90


def test_deletes_say_what_is_left_and_are_soon_given_up(bench: Open) -> None:
    half = reply(body=json.dumps({"Failed": [entry("1")]}).encode())
    assert Sqs(bench(half).client).delete(QUEUE, ["a", "b", "c"]) == ["b"]
    errors = b"".join(
        b"<Error><Key>%b</Key><Code>%b</Code></Error>" % pair
        for pair in ((b"a&amp;b", b"InternalError"), (b"c", b"NoSuchKey"))
    )
    b = bench(reply(body=b"<DeleteResult>%b</DeleteResult>" % errors), service="s3")
    assert S3(b.client, "b").delete(["a&b", "c", "d"]) == ["a&b"]
    whole = reply(body=b"<Error><Code>InternalError</Code></Error>")
    assert S3(bench(whole, service="s3").client, "b").delete(["a", "b"]) == ["a", "b"]
    for service in ("sqs", "s3"):
        b = bench(reply(503), service=service, forever=True)
        with pytest.raises(Busy):
            if service == "s3":
                S3(b.client, "b").delete(["a"])
            else:
                Sqs(b.client).delete(QUEUE, ["a"])
        assert sum(b.pauses) <= 2


def test_a_poll_that_is_throttled_is_not_repeated_by_the_client(bench: Open) -> None:
    b = bench(reply(503))
    with pytest.raises(Busy):
        Sqs(b.client).receive(QUEUE, 0)
    assert b.pauses == []


def test_an_upload_is_completed_after_a_while(bench: Open) -> None:
    begun = reply(body=b"<R><UploadId>u</UploadId></R>")
    trouble = reply(200, b"<Error><Code>InternalError</Code></Error>")
    b = bench(begun, reply(etag="t"), *[trouble] * 6, reply(), service="s3")
    S3(b.client, "b").put_multipart(
        "k", [[memoryview(b"x")]], lambda call, items: [call(item) for item in items]
    )
    assert len(b.pauses) == 6


def test_an_upload_without_a_tag_is_removed_and_named(bench: Open) -> None:
    begun = reply(body=b"<R><UploadId>u</UploadId></R>")
    b = bench(begun, reply(), reply(403), service="s3")  # nor can it be removed
    with pytest.raises(ChannelError, match="no ETag"):
        S3(b.client, "b").put_multipart(
            "k", [[memoryview(b"x")]], lambda call, items: [call(item) for item in items]
        )
    assert b.server.requests[-1].method == "DELETE"
