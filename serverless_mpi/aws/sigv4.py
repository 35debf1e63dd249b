"""Signature Version 4, with the day's signing key kept.

Source: "Create a signed AWS API request", AWS IAM User Guide.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import quote

from serverless_mpi.aws.credentials import Keys

UNSIGNED = "UNSIGNED-PAYLOAD"  # S3 takes it over TLS, and an emulator always


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


class Signer:
    """Signs the requests of one service in one region."""

    def __init__(self, service: str, region: str) -> None:
        self._service = service
        self._region = region
        self._cached: tuple[str, str, bytes] | None = None  # day, secret, key

    def _key(self, secret: str, day: str) -> bytes:
        cached = self._cached
        if cached is None or cached[:2] != (day, secret):
            key = _hmac(f"AWS4{secret}".encode(), day)
            for part in (self._region, self._service, "aws4_request"):
                key = _hmac(key, part)
            self._cached = cached = (day, secret, key)
        return cached[2]

    def headers(
        self, keys: Keys, method: str, host: str, path: str, query: dict[str, str], headers: dict[str, str],
        payload_hash: str, now: float | None = None,
    ) -> dict[str, str]:  # fmt: skip
        """`headers` with host, date, payload hash and signature.  path is already percent-encoded; now: epoch seconds."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        signed = {
            **{name.lower(): value for name, value in headers.items()},
            "host": host,
            "x-amz-date": stamp,
            "x-amz-content-sha256": payload_hash,
        }
        if keys.token is not None:
            signed["x-amz-security-token"] = keys.token
        names = sorted(signed)
        canonical = "\n".join(
            (
                method,
                path,
                canonical_query(query),
                *(f"{name}:{signed[name]}" for name in names),
                "",
                ";".join(names),
                payload_hash,
            )
        )
        scope = f"{stamp[:8]}/{self._region}/{self._service}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.new(
            self._key(keys.secret, stamp[:8]), f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(), "sha256"
        ).hexdigest()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        return signed


def canonical_query(query: dict[str, str]) -> str:
    """The query string as it is signed and sent."""
    return "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
