"""S3 Express: sessions, signatures as botocore's, the rules of directory buckets, the choice of a bucket."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_mpi.aws import s3express
from serverless_mpi.aws.config import Config
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.s3express import DirectoryBucket, Sessions
from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.metering import Meter
from tests.aws.server import Reply, Request, Server, reply
from tests.strict.express import Express, directory_bucket, plain

BUCKET = directory_bucket("frames")
LISTING = b"<ListBucketResult></ListBucketResult>"


def session(token: str = "tok/en+=", ends: str = "2026-11-24T20:45:00Z") -> bytes:
    return reply(
        body=(
            f"<CreateSessionResult><Credentials><SessionToken>{token}</SessionToken><SecretAccessKey>sec/ret"
            f"</SecretAccessKey><AccessKeyId>ASIA</AccessKeyId><Expiration>{ends}</Expiration></Credentials>"
            "</CreateSessionResult>"
        ).encode(),
        date="Tue, 24 Nov 2026 20:40:00 GMT",
    )


def opened(url: str, meter: Meter | None = None) -> tuple[Client, DirectoryBucket]:
    client = s3express.bucket_client(
        BUCKET, "us-east-1", url, Credentials(url), Meter() if meter is None else meter
    )
    return client, DirectoryBucket(client, BUCKET)


def botocores(request: Request, monkeypatch: pytest.MonkeyPatch) -> str:
    """What botocore's signer for S3 Express writes for the same request at the same second."""
    from botocore import auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as BotocoreCredentials

    moment = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
    monkeypatch.setattr(auth, "get_current_datetime", lambda remove_tzinfo=True: moment)
    unsigned = ("authorization", "content-length", "x-amz-date", "x-amz-s3session-token", "host")
    headers = {name: value for name, value in request.headers.items() if name not in unsigned}
    made = AWSRequest(
        request.method, f"http://{request.headers['host']}{request.target}", headers, request.body
    )
    signed = request.headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"
    made.context["client_config"] = SimpleNamespace(s3={"payload_signing_enabled": signed})
    if "session" in request.target:
        auth.S3SigV4Auth(BotocoreCredentials("smpi", "smpi"), "s3express", "us-east-1").add_auth(
            made
        )
    else:
        keys = BotocoreCredentials("ASIA", "sec/ret", "tok/en+=")
        auth.S3ExpressAuth(keys, "s3express", "us-east-1", identity_cache=None).add_auth(made)
        assert made.headers["x-amz-s3session-token"] == request.headers["x-amz-s3session-token"]
    return str(made.headers["Authorization"])


def test_every_request_is_signed_as_botocore_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Reply:
        if request.target == "/?session=":
            return session()
        return reply(body=LISTING) if request.target.startswith("/?list") else reply(body=b"body")

    with Server(answer) as server:
        client, s3 = opened(server.url)
        s3.put("f/a key+ü", (memoryview(b"parts"), memoryview(b"unsigned")))
        assert s3.create("f/signed", b"body")
        s3.get("f/a key+ü", 3, 5)
        s3.list_all("f/0011/")
        s3.delete(["f/a key+ü", "f/b"])
        client.close()
    kinds = [request.method for request in server.requests]
    assert kinds == ["GET", "PUT", "PUT", "GET", "GET", "POST"]
    host = f"{BUCKET}.{server.url.removeprefix('http://')}"
    for request in server.requests:
        assert request.headers["host"] == host and "x-amz-security-token" not in request.headers
        signature = botocores(request, monkeypatch)
        assert request.headers["authorization"] == signature
    assert server.requests[1].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_USE_FIPS_ENDPOINT": "true"},
    ],
)
def test_the_zonal_endpoint_is_botocores(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    hosts: list[str] = []

    class Stop(Exception):
        pass

    def stop(request: Any, **_: Any) -> None:
        hosts.append(request.url)
        raise Stop

    client = boto3.client(
        "s3", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.meta.events.register("before-send.s3", stop)
    bucket = "smpi-123456789012--euw1-az3--x-s3"
    with pytest.raises(Stop):
        client.create_session(Bucket=bucket)
    own = Config({**environ, "AWS_CONFIG_FILE": "/", "AWS_SHARED_CREDENTIALS_FILE": "/"})
    assert hosts == [f"https://{own.zonal_host(bucket, 'euw1-az3', 'eu-west-1')}/?session"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sessions(url: str, clock: Clock) -> Sessions:
    client = Client("s3express", "us-east-1", url, Credentials(url), Meter(), host=f"{BUCKET}.x")
    return Sessions(client, clock)


def test_a_session_is_kept_for_four_minutes_and_asked_for_once_by_all_threads() -> None:
    answers = [session("one"), session("two"), reply(403), session("three")]
    clock = Clock()
    with Server(lambda request: answers.pop(0)) as server:
        kept = sessions(server.url, clock)
        threads = [threading.Thread(target=kept.get) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept.get().token == "one" and len(server.requests) == 1
        clock.now += 239.0
        assert kept.get().token == "one" and len(server.requests) == 1
        clock.now += 2.0
        assert kept.get().token == "two" and len(server.requests) == 2
        clock.now += 241.0  # a renewal is refused while the session still serves
        assert kept.get().token == "two" and len(server.requests) == 3
        assert kept.get().token == "two" and len(server.requests) == 3
        clock.now += 58.0
        assert kept.get().token == "three"


def test_threads_use_a_session_that_still_serves_while_one_renews_it() -> None:
    asked, answered = threading.Event(), threading.Event()
    clock = Clock()

    def answer(request: Request) -> Reply:
        if len(server.requests) == 1:
            return session("one")
        asked.set()
        answered.wait(30.0)
        return session("two")

    with Server(answer) as server:
        kept = sessions(server.url, clock)
        kept.get()
        clock.now += 250.0
        renewing = threading.Thread(target=kept.get)
        renewing.start()
        assert asked.wait(30.0)
        assert kept.get().token == "one"
        answered.set()
        renewing.join()
        assert kept.get().token == "two" and len(server.requests) == 2


def test_a_session_that_cannot_be_renewed_in_time_is_an_error() -> None:
    answers = [session(), reply(403, b"<Error><Code>AccessDenied</Code></Error>")]
    clock = Clock()
    with Server(lambda request: answers.pop(0)) as server:
        kept = sessions(server.url, clock)
        kept.get()
        clock.now += 301.0
        with pytest.raises(ChannelError, match="s3express:CreateSession") as failed:
            kept.get()
        assert "\n" not in str(failed.value)


@pytest.mark.parametrize("body", [b"", b"<html>", b"<SessionToken>t</SessionToken>"])
def test_what_is_not_a_session_is_named(body: bytes) -> None:
    with (
        Server(lambda request: reply(body=body)) as server,
        pytest.raises(ChannelError, match="is that address AWS or an emulator"),
    ):
        sessions(server.url, Clock()).get()


@pytest.fixture
def express(ministack_endpoint: str) -> Iterator[Express]:
    buckets = [plain(BUCKET)]

    def control(method: str, path: str) -> None:
        urllib.request.urlopen(
            urllib.request.Request(f"{ministack_endpoint}/{path}", method=method)
        ).close()

    for bucket in buckets:
        control("PUT", bucket)
    with Express(ministack_endpoint) as front:
        yield front
    s3 = S3(
        Client("s3", "us-east-1", ministack_endpoint, Credentials(ministack_endpoint), Meter()),
        buckets[0],
    )
    s3.delete(s3.list_all(""))
    control("DELETE", buckets[0])


def test_the_calls_of_the_data_path_obey_a_directory_bucket(express: Express) -> None:
    meter = Meter()
    client, s3 = opened(express.url, meter)
    keys = [f"f/j/{number:02d}" for number in range(8)]
    for key in keys:
        s3.put(key, (memoryview(key.encode()),))
    listed = s3.list_all("f/j/")
    assert sorted(listed) == keys and list(listed) != keys
    assert meter.snapshot()["s3express.LIST"]["requests"] == 3
    found = s3.get(keys[2], 2, 2)
    assert found is not None and bytes(found[0]) == b"j/" and found[1] == 6
    assert s3.create("f/j/new", b"mine") and not s3.create("f/j/new", b"another")
    assert s3.delete(keys) == [] and list(s3.list_all("f/j/")) == ["f/j/new"]
    assert s3.get(keys[0]) is None
    with pytest.raises(ChannelError, match="InvalidRequest"):
        s3.list_all("f/j")  # a prefix must end with "/"
    with pytest.raises(ValueError, match="cannot begin after"):
        s3.list("f/j/", "f/j/02")
    part = memoryview(bytes(5 << 20))
    s3.put_multipart("f/j/long", [(part,), (part[:9],)], lambda call, items: list(map(call, items)))
    found = s3.get("f/j/long", 5 << 20, 100)
    assert found is not None and found[0].nbytes == 9 and found[1] == (5 << 20) + 9
    assert meter.snapshot()["s3express.CreateSession"]["requests"] == 1
    client.close()


def test_a_session_that_expired_early_is_renewed(express: Express) -> None:
    client, s3 = opened(express.url)
    s3.put("f/a", (memoryview(b"a"),))
    express.expire()
    assert s3.get("f/a") is not None
    assert [target for _, target in express.calls].count("/?session=") == 2
    client.close()


@pytest.mark.parametrize(
    "change",
    [
        {"x-amz-security-token": "token"},
        {"x-amz-s3session-token": "another"},
        {"x-amz-content-sha256": "0" * 64},
        {"authorization": "none"},
    ],
)
def test_the_front_refuses_what_breaks_a_rule(
    change: dict[str, str], express: Express, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, s3 = opened(express.url)
    signer = client._signer
    whole = signer.headers
    s3.put("f/a", (memoryview(b"a"),))
    monkeypatch.setattr(signer, "headers", lambda *args, **more: {**whole(*args, **more), **change})
    with pytest.raises(ChannelError, match="HTTP 40"):
        s3.put("f/b", (memoryview(b"b"),))
    client.close()


def test_names_of_directory_buckets() -> None:
    assert s3express.zone_of("smpi-123456789012--use1-az4--x-s3") == "use1-az4"
    assert s3express.zone_of("base--usw2-lax1-az1--x-s3") == "usw2-lax1-az1"
    for other in ("smpi-0011223344556677", "a--x-s3", "use1-az4--x-s3", "a--use1-az4--x-s3x"):
        assert s3express.zone_of(other) is None


def test_zones() -> None:
    assert s3express.zones("auto", "eu-west-1") == ("euw1-az1", "euw1-az3")
    assert s3express.zones("use1-az6,use1-az4,use1-az6", "us-east-1") == ("use1-az6", "use1-az4")
    with pytest.raises(UsageError, match="S3 Express One Zone is not in region eu-south-2; it is"):
        s3express.zones("auto", "eu-south-2")
    for wrong in ("use1-az1", "us-east-1a", "", "auto,use1-az4"):
        with pytest.raises(UsageError, match="zones use1-az4, use1-az5, use1-az6 of us-east-1;"):
            s3express.zones(wrong, "us-east-1")


@pytest.mark.parametrize(
    "answer, zone",
    [
        (reply(body=b'{"AvailabilityZoneID": "use1-az4"}'), "use1-az4"),
        (reply(body=b'{"AvailabilityZoneID": ""}'), None),
        (reply(body=b"[]"), None),
        (reply(body=b"[" * 100_000), None),
        (reply(body=b"{}"), None),
        (reply(body=b"\xff"), None),
        (reply(403), None),
        (b"", None),
    ],
)
def test_a_rank_learns_its_zone(answer: bytes, zone: str | None) -> None:
    with Server(lambda request: answer) as server:
        environ = {
            "AWS_LAMBDA_METADATA_API": server.url.removeprefix("http://"),
            "AWS_LAMBDA_METADATA_TOKEN": "secret",
        }
        if not answer:
            server.__exit__()  # nobody listens
            assert s3express.own_zone(environ) is None
            server.__enter__()
            return
        assert s3express.own_zone(environ) == zone
        (request,) = server.requests
    assert request.target == "/2026-01-15/metadata/execution-environment"
    assert request.headers["authorization"] == "Bearer secret"


def test_outside_of_lambda_there_is_no_zone() -> None:
    assert s3express.own_zone({}) is None


def test_rank_0_chooses_the_bucket_of_its_zone_or_the_general_one() -> None:
    express = {"use1-az4": BUCKET, "use1-az5": "b--use1-az5--x-s3"}
    probed: list[str] = []
    chosen = s3express.choose("general", express, "use1-az4", probed.append)
    assert chosen == s3express.Choice(BUCKET) and probed == [BUCKET]
    elsewhere = s3express.choose("general", express, "use1-az1", probed.append)
    assert elsewhere.bucket == "general" and len(probed) == 1
    assert (
        elsewhere.reason
        == "rank 0 ran in zone use1-az1, and S3 Express is deployed in use1-az4, use1-az5"
    )
    unknown = s3express.choose("general", express, None, probed.append)
    assert unknown.bucket == "general" and "did not state the zone" in unknown.reason

    def denied(bucket: str) -> None:
        raise ChannelError("HTTP 403 AccessDenied")

    refused = s3express.choose("general", express, "use1-az4", denied)
    assert refused.bucket == "general" and "cannot be used: HTTP 403" in refused.reason
