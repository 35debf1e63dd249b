"""The signer computes what botocore computes, for any request."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serverless_mpi.aws.sigv4 import Keys, Signer, canonical_query

botocore_auth = pytest.importorskip("botocore.auth")
MOMENT = datetime(2026, 11, 24, 20, 40, 1, tzinfo=timezone.utc)
words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


def botocores(
    service: str,
    keys: Keys,
    method: str,
    url: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
    monkeypatch: Any,
) -> str:
    from botocore import auth, compat
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    where = auth if hasattr(auth, "get_current_datetime") else None
    if where is not None:
        monkeypatch.setattr(
            auth, "get_current_datetime", lambda remove_tzinfo=True: MOMENT.replace(tzinfo=None)
        )
    else:  # older botocore

        class Clock(datetime):
            @classmethod
            def utcnow(cls) -> datetime:
                return MOMENT.replace(tzinfo=None)

        monkeypatch.setattr(compat.datetime, "datetime", Clock)
    kind = auth.S3SigV4Auth if service == "s3" else auth.SigV4Auth
    target = url + (f"?{canonical_query(query)}" if query else "")
    request = AWSRequest(method=method, url=target, headers=dict(headers), data=body)
    request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
    request.context["payload_signing_enabled"] = True
    kind(Credentials(keys.access, keys.secret, keys.token), service, "eu-west-1").add_auth(request)
    return str(request.headers["Authorization"])


@given(
    service=st.sampled_from(["sqs", "sns", "s3", "sts"]),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    token=st.none() | words,
    query=st.dictionaries(words, st.text(max_size=8), max_size=3),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "x-amz-target", "range", "content-md5"]), words, max_size=3
    ),
    body=st.binary(max_size=100),
)
@example(
    "s3", "GET", None, {"0": "", "00": ""}, {}, b""
)  # names are sorted before "=" is put behind them
def test_it_signs_as_botocore(
    service: str,
    method: str,
    token: str | None,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    keys = Keys("AKID", "secret/+key", token)
    with pytest.MonkeyPatch.context() as monkeypatch:
        url = "https://host.example/bucket/a%20key"
        expected = botocores(service, keys, method, url, query, headers, body, monkeypatch)
        if service == "s3":
            path = "/bucket/a%20key"
        else:
            path = "/bucket/a%2520key"  # every service but S3 encodes the path once more; the data path uses "/" only
        got = Signer(service, "eu-west-1").headers(
            keys,
            method,
            "host.example",
            path,
            query,
            headers,
            hashlib.sha256(body).hexdigest(),
            MOMENT.timestamp(),
        )
    assert got["authorization"] == expected


def test_the_key_is_made_anew_for_a_new_day_or_secret() -> None:
    signer = Signer("sqs", "eu-west-1")

    def sign(signer: Signer, secret: str, now: float) -> str:
        return signer.headers(Keys("a", secret), "GET", "h", "/", {}, {}, "x", now)["authorization"]

    for secret, now in (("one", 0.0), ("one", 86400.0), ("two", 86400.0), ("one", 0.5)):
        assert sign(signer, secret, now) == sign(Signer("sqs", "eu-west-1"), secret, now)
