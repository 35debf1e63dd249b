"""Connections, retries and errors of the lean client, against a scripted server; no test waits."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from serverless_mpi.aws import http
from serverless_mpi.aws.connection import ANSWER_TIMEOUT_S, Connection, Lost
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.retry import (
    AGAIN,
    ATTEMPTS,
    BUDGET_S,
    MAX_PAUSE_S,
    REPEATABLE,
    Event,
    longest_pause_s,
)
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sns import Sns
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import Meter
from tests.aws.server import HangUp, Reply, Request, Server, reply
from tests.harness import GIVE_UP_S

QUEUE = "http://127.0.0.1/0/q"
DONE = reply(body=b'{"Successful":[{"Id":"0"}]}')


class Bench:
    """A server that answers from a list, a client to it, and the pauses the client made."""

    def __init__(self, replies: Sequence[Reply], service: str = "sqs") -> None:
        self._left = list(replies)
        self.forever = False  # the last reply is given again and again
        self.server = Server(self._next)
        self.server.__enter__()
        self.meter = Meter()
        self.pauses: list[float] = []
        self.now = 1000.0  # of a clock that only pauses move
        chance = random.Random(5)
        self.client = Client(
            service,
            "us-east-1",
            self.server.url,
            Credentials(self.server.url),
            self.meter,
            self._sleep,
            chance.uniform,
            lambda: self.now,
        )

    def _sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause

    def _next(self, request: Request) -> Reply:
        return self._left.pop(0) if len(self._left) > 1 or not self.forever else self._left[0]

    def count(self, name: str) -> int:
        return self.meter.snapshot()[name]["requests"]

    def close(self) -> None:
        self.client.close()
        self.server.__exit__()


Open = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Open]:
    made: list[Bench] = []

    def make(*replies: Reply, service: str = "sqs") -> Bench:
        made.append(Bench(replies, service))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_connection_is_kept(bench: Open) -> None:
    b = bench(DONE, DONE, DONE)
    for _ in range(3):
        Sqs(b.client).send(QUEUE, [b"frame"])
    assert [request.connection for request in b.server.requests] == [0, 0, 0]
    assert b.count("sqs.SendMessageBatch") == 3 and b.pauses == []


def test_a_kept_connection_that_was_closed_is_replaced_at_once(bench: Open) -> None:
    b = bench(DONE, HangUp(), DONE)
    Sqs(b.client).send(QUEUE, [b"frame"])
    Sqs(b.client).send(QUEUE, [b"frame"])
    assert [request.connection for request in b.server.requests] == [0, 0, 1]
    assert b.pauses == []
    assert b.count("sqs.SendMessageBatch") == 3  # every attempt is on the bill


def test_an_idle_connection_is_looked_at_first(
    bench: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.0)
    b = bench(reply(connection="keep-alive"), DONE)
    b.client.request("DeleteMessageBatch", "POST", "/")
    b.server.hang_up()
    deadline = time.monotonic() + 30
    while not b.client._idle[0].stale() and time.monotonic() < deadline:
        pass
    b.client.request(
        "CompleteMultipartUpload", "POST", "/"
    )  # may not be sent twice, and need not be
    assert [request.connection for request in b.server.requests] == [0, 1]


@pytest.mark.parametrize(
    "trouble",
    [
        reply(503),
        reply(500),
        reply(502),
        reply(429),
        reply(400, b'{"__type":"com.amazonaws.sqs#RequestThrottled"}'),
        reply(403, b"<Error><Code>RequestLimitExceeded</Code></Error>"),
        HangUp(),
        HangUp("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"),
        HangUp("SSH-2.0-OpenSSH\r\n\r\n"),
    ],
)
def test_trouble_is_tried_again_after_a_random_pause(bench: Open, trouble: Reply) -> None:
    b = bench(trouble, trouble, trouble, DONE)
    Sqs(b.client).send(QUEUE, [b"frame"])
    assert b.count("sqs.SendMessageBatch") == 4 == len(b.server.requests)
    chance = random.Random(5)
    assert b.pauses == [chance.uniform(0, longest_pause_s(attempt)) for attempt in (1, 2, 3)]
    assert len({request.body for request in b.server.requests}) == 1


def test_pauses_grow_to_a_limit() -> None:
    assert [longest_pause_s(n) for n in (1, 2, 3)] == [0.05, 0.1, 0.2] and longest_pause_s(
        20
    ) == MAX_PAUSE_S


SLOW_DOWN = reply(503, b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>")


@pytest.mark.parametrize("trouble", [SLOW_DOWN, reply(500), reply(429)])
def test_a_busy_service_has_a_time_to_recover(bench: Open, trouble: Reply) -> None:
    b = bench(trouble)
    b.forever = True
    with pytest.raises(Busy, match=r"attempts within 90 s; the last: .*HTTP") as caught:
        Sqs(b.client).send(QUEUE, [b"frame"])
    assert caught.value.retryable
    assert BUDGET_S - MAX_PAUSE_S < sum(b.pauses) <= BUDGET_S
    assert b.count("sqs.SendMessageBatch") == len(b.pauses) + 1 > ATTEMPTS


def test_a_minute_of_throttling_is_survived(bench: Open) -> None:
    b = bench(SLOW_DOWN)
    b.forever = True
    answer = b._next
    b.server.answer = lambda request: DONE if b.now > 1060 else answer(request)
    Sqs(b.client).send(QUEUE, [b"frame"])
    assert b.now > 1060


def test_a_connection_that_died_is_noticed_soon_after_the_end_of_a_poll(bench: Open) -> None:
    b = bench(reply(body=b"{}"))
    asked = []
    request = b.client.request
    b.client.request = lambda *words, **more: (  # type: ignore[method-assign]
        asked.append((more["answer_s"], json.loads(more["body"]))) or request(*words, **more)  # type: ignore[func-returns-value]
    )
    Sqs(b.client).receive(QUEUE, 20)
    ((answer_s, fields),) = asked
    assert answer_s == 25 and "VisibilityTimeout" not in fields  # it is the queue's


def test_a_longest_wait_is_of_one_request() -> None:
    silent = threading.Event()
    answers = [lambda: silent.wait(GIVE_UP_S), lambda: None]

    def answer(request: Request) -> Reply:
        answers.pop(0)()
        return DONE

    with Server(answer) as server:
        address = server.url.removeprefix("http://").split(":")
        connection = Connection(address[0], int(address[1]))
        with pytest.raises(Lost, match="no answer within 0.05 s"):
            connection.exchange(b"GET / HTTP/1.1\r\n\r\n", [], "GET", timeout_s=0.05)
        silent.set()
        connection = Connection(address[0], int(address[1]))
        connection.exchange(b"GET / HTTP/1.1\r\n\r\n", [], "GET", timeout_s=GIVE_UP_S)
        assert connection._timeout_s == GIVE_UP_S
        connection._wait_for(connection._longest_s)
        assert connection._timeout_s == ANSWER_TIMEOUT_S
        connection.close()


def test_nobody_listens() -> None:
    with Server(lambda request: b"") as server:
        pass
    client = Client(
        "sqs", "us-east-1", server.url, Credentials(server.url), Meter(), lambda pause: None
    )
    with pytest.raises(ChannelError, match="ConnectionRefusedError"):
        Sqs(client).send(QUEUE, [b"frame"])
    assert client.meter.snapshot()["sqs.SendMessageBatch"]["requests"] == ATTEMPTS


@pytest.mark.parametrize("trouble", [HangUp(), reply(500)])
def test_what_may_not_be_done_twice_is_not_sent_twice(bench: Open, trouble: Reply) -> None:
    b = bench(trouble, DONE)
    if isinstance(trouble, HangUp):
        with pytest.raises(ChannelError, match="may have been done"):
            b.client.request("CreateQueue", "POST", "/")
    else:
        assert b.client.request("CreateQueue", "POST", "/").status == 500
    assert len(b.server.requests) == 1


def test_what_was_certainly_not_done_is_sent_again_whatever_it_is(bench: Open) -> None:
    b = bench(reply(503), DONE)
    assert b.client.request("CreateQueue", "POST", "/").status == 200


def test_the_tables_are_whole() -> None:
    assert set(AGAIN) == set(Event)
    assert "s3.CompleteMultipartUpload" not in REPEATABLE and all(REPEATABLE.values())


def test_a_clock_that_is_wrong_is_corrected_once(bench: Open) -> None:
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7200))
    skewed = reply(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>", date=ahead)
    b = bench(skewed, DONE, service="s3")
    b.client.request("PUT", "PUT", "/b/k")
    first, second = (request.headers["x-amz-date"] for request in b.server.requests)
    began, corrected = (
        time.mktime(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) for stamp in (first, second)
    )
    assert 7190 < corrected - began < 7260
    b = bench(skewed, skewed, service="s3")
    with pytest.raises(ChannelError, match="clock is wrong"):
        S3(b.client, "b").put("k", [memoryview(b"x")])
    assert len(b.server.requests) == 2


def test_keys_that_ended_are_renewed_once(tmp_path: Path) -> None:
    keys = tmp_path / "credentials"
    keys.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = s\n")

    def answer(request: Request) -> Reply:
        keys.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = s\n")
        good = "Credential=NEW/" in request.headers["authorization"]
        return (
            DONE if good else reply(403, b'{"__type":"#ExpiredToken","message":"The token ended"}')
        )

    with Server(answer) as server:
        environ = {"AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_CONFIG_FILE": "/dev/null"}
        client = Client(
            "sqs", "us-east-1", server.url, Credentials(None, environ), Meter(), lambda pause: None
        )
        Sqs(client).send(QUEUE, [b"frame"])
        assert len(server.requests) == 2
        client.close()


@pytest.mark.parametrize(
    "service, status, body, story",
    [
        (
            "sqs",
            400,
            b'{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no queue"}',
            "no queue; the job's queue is gone",
        ),
        (
            "sqs",
            403,
            b'{"__type":"#InvalidClientTokenId","message":"bad"}',
            "does not know the access key",
        ),
        (
            "sns",
            404,
            b"<ErrorResponse><Error><Code>NotFound</Code><Message>no topic</Message></Error></ErrorResponse>",
            "topic is gone",
        ),
        (
            "sns",
            403,
            b"<ErrorResponse><Error><Code>AuthorizationError</Code></Error></ErrorResponse>",
            "lack the permission",
        ),
        (
            "s3",
            404,
            b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>",
            "bucket is gone",
        ),
        (
            "s3",
            301,
            b"<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>",
            "is in region eu-west-1",
        ),
        (
            "s3",
            400,
            b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong; "
            b"expecting 'ap-south-1'</Message><Region>ap-south-1</Region></Error>",
            "is in region ap-south-1",
        ),
        (
            "s3",
            403,
            b"<Error><Code>SignatureDoesNotMatch</Code></Error>",
            "secret key does not belong",
        ),
        ("s3", 418, b"a teapot", "HTTP 418.*a teapot"),
    ],
)
def test_a_refusal_says_what_would_work(
    bench: Open, service: str, status: int, body: bytes, story: str
) -> None:
    b = bench(
        reply(status, body, **({"x_amz_bucket_region": "eu-west-1"} if status == 301 else {})),
        service=service,
    )
    calls: dict[str, Callable[[], object]] = {
        "sqs": lambda: Sqs(b.client).send(QUEUE, [b"f"]),
        "sns": lambda: Sns(b.client).publish("arn", [(b"f", (1, 2))]),
        "s3": lambda: S3(b.client, "bucket").put("k", [memoryview(b"x")]),
    }
    with pytest.raises(ChannelError, match=f"{service.upper()} refused to .*{story}"):
        calls[service]()
    assert len(b.server.requests) == 1 and b.pauses == []


def test_a_failed_entry_of_a_batch_is_sent_again_alone(bench: Open) -> None:
    half = b'{"Successful":[{"Id":"0"}],"Failed":[{"Id":"1","SenderFault":false,"Code":"InternalError"}]}'
    b = bench(reply(body=half), DONE)
    Sqs(b.client).send(QUEUE, [b"first", b"second"])
    assert b.server.requests[1].body.count(b'"Id"') == 1
    blamed = reply(
        body=b'{"Failed":[{"Id":"0","SenderFault":true,"Code":"InvalidMessageContents"}]}'
    )
    with pytest.raises(ChannelError, match="InvalidMessageContents"):
        Sqs(bench(blamed).client).send(QUEUE, [b"f"])


@pytest.mark.parametrize(
    "answer, body",
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n2\r\nef\r\n0\r\nT: x\r\n\r\n",
            b"abcdef",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab", b"ab"),
    ],
)
def test_every_form_of_an_answer(bench: Open, answer: bytes, body: bytes) -> None:
    b = bench(answer, DONE)
    assert bytes(b.client.request("GET", "GET", "/").body) == body
    b.client.request("GET", "GET", "/")
    assert b.server.requests[1].connection == (1 if b"close" in answer else 0)


def test_a_body_that_ends_with_its_connection(bench: Open) -> None:
    b = bench(HangUp("HTTP/1.0 200 OK\r\n\r\nall of it"), service="s3")
    assert bytes(b.client.request("GET", "GET", "/").body) == b"all of it"


def test_a_large_body_goes_straight_into_its_memory(bench: Open) -> None:
    content = random.Random(1).randbytes(3 << 20)
    b = bench(
        reply(body=content, content_range=f"bytes 0-9/{len(content)}"),
        reply(404),
        reply(416),
        service="s3",
    )
    into = memoryview(bytearray(len(content) + 5))
    found = S3(b.client, "b").get("k", 0, len(content), into)
    assert (
        found is not None
        and found[0].obj is into.obj
        and found[0] == content
        and found[1] == len(content)
    )
    assert b.server.requests[0].headers["range"] == f"bytes=0-{len(content) - 1}"
    assert S3(b.client, "b").get("k") is None
    assert S3(b.client, "b").get("k", 0, 5) == (memoryview(b""), 0)


def test_parts_of_a_body_are_sent_as_they_are(bench: Open) -> None:
    b = bench(reply(), service="s3")
    parts = [memoryview(random.Random(n).randbytes(100_000)) for n in range(3)]
    S3(b.client, "b").put("a key/with ü", parts)
    assert b.server.requests[0].body == b"".join(parts)
    assert b.server.requests[0].target == "/b/a%20key/with%20%C3%BC"


def test_a_line_break_in_a_header_is_refused(bench: Open) -> None:
    b = bench()
    with pytest.raises(ChannelError, match="line break"):
        b.client.request("GET", "GET", "/", headers={"range": "bytes=0-1\r\nx-evil: 1"})


def upload(b: Bench) -> None:
    parts = [[memoryview(b"a" * 4), memoryview(b"a" * 6)], [memoryview(b"b" * 5)]]
    S3(b.client, "b").put_multipart("k", parts, lambda call, items: [call(item) for item in items])


BEGUN = reply(
    body=b"<InitiateMultipartUploadResult><UploadId>u&amp;1</UploadId></InitiateMultipartUploadResult>"
)
PART = reply(etag='"tag"')


def test_a_multipart_upload(bench: Open) -> None:
    b = bench(BEGUN, PART, PART, reply(), service="s3")
    upload(b)
    assert [request.target for request in b.server.requests] == [
        "/b/k?uploads=",
        "/b/k?partNumber=1&uploadId=u%261",
        "/b/k?partNumber=2&uploadId=u%261",
        "/b/k?uploadId=u%261",
    ]
    row = b.meter.snapshot()["s3.PUT"]
    assert (row["requests"], row["nbytes"], row["messages"]) == (4, 15, 1)


NO_BUCKET = reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
NO_KEY = reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
CONFLICT = reply(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")


def test_a_bucket_that_does_not_exist_is_not_an_object_that_is_not_there_yet(bench: Open) -> None:
    s3 = S3(bench(NO_KEY, NO_BUCKET, service="s3").client, "b")
    assert s3.get("k") is None
    with pytest.raises(ChannelError, match="the job's bucket is gone"):
        s3.get("k")


@pytest.mark.parametrize(
    "replies, created, puts",
    [
        ((CONFLICT, reply(body=b"theirs")), False, 1),  # another rank wrote it
        ((CONFLICT, reply(body=b"mine")), True, 1),  # the attempt whose answer was lost
        ((CONFLICT, NO_KEY, CONFLICT, NO_KEY, reply()), True, 3),
        ((CONFLICT, NO_KEY, reply(412), reply(body=b"theirs")), False, 2),
    ],
)
def test_a_conflict_is_looked_at_after_a_random_pause(
    bench: Open, replies: Sequence[Reply], created: bool, puts: int
) -> None:
    b = bench(*replies, service="s3")
    assert S3(b.client, "b").create("stop", b"mine") is created
    assert b.count("s3.PUT") == puts and len(b.pauses) == replies.count(CONFLICT)
    assert all(0.0 < pause <= longest_pause_s(number + 1) for number, pause in enumerate(b.pauses))


def test_an_upload_that_fails_is_removed(bench: Open) -> None:
    b = bench(
        BEGUN,
        PART,
        reply(403, b"<Error><Code>AccessDenied</Code></Error>"),
        reply(204),
        service="s3",
    )
    with pytest.raises(ChannelError, match="AccessDenied"):
        upload(b)
    assert (b.server.requests[-1].method, b.server.requests[-1].target) == (
        "DELETE",
        "/b/k?uploadId=u%261",
    )


@pytest.mark.parametrize(
    "trouble", [HangUp(), reply(200, b"<Error><Code>InternalError</Code></Error>")]
)
def test_a_completion_nobody_heard_of_is_looked_for(bench: Open, trouble: Reply) -> None:
    gone = reply(404, b"<Error><Code>NoSuchUpload</Code></Error>")
    there = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n"  # to a HEAD, so without a body
    b = bench(BEGUN, PART, PART, trouble, gone, there, service="s3")
    upload(b)
    assert b.server.requests[-1].method == "HEAD"


def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    bundle = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle)
    with Server(lambda request: DONE, tls=context) as server:
        pauses: list[float] = []
        stranger = Client(
            "sqs", "us-east-1", server.url, Credentials(server.url), Meter(), pauses.append
        )
        with pytest.raises(ChannelError, match="not trusted.*AWS_CA_BUNDLE"):
            Sqs(stranger).send(QUEUE, [b"f"])
        assert pauses == [] and server.requests == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        client = Client(
            "sqs", "us-east-1", server.url, Credentials(server.url), Meter(), pauses.append
        )
        for length in (10, 200_000):  # joined with its head, and on its own
            Sqs(client).send(QUEUE, [b"f" * length])
        assert [request.connection for request in server.requests] == [0, 0]
        client.close()
        other_name = server.url.replace("127.0.0.1", "localhost")
        other = Client(
            "sqs", "us-east-1", other_name, Credentials(other_name), Meter(), pauses.append
        )
        with pytest.raises(
            ChannelError, match="not trusted"
        ):  # the certificate is not for that name
            Sqs(other).send(QUEUE, [b"f"])


def _certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "bundle.pem"
    encoding = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )
    return path
