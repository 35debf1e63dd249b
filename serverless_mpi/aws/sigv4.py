"""Signature Version 4: signs the headers of a request.

The signing key depends on the day only, so it is derived once per day and secret;
the time stamp is formatted once per second.  Both caches are replaced as a whole, so
several threads may sign.

Source: "Create a signed AWS API request", AWS IAM User Guide.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"  # S3 accepts it over TLS, an emulator always
TOKEN = "x-amz-security-token"  # header of the token of temporary keys


@dataclass(frozen=True)
class Keys:
    """An access key.

    Attributes
    ----------
    access, secret
        Id and secret.
    token
        Token of temporary keys; None for others.
    expires
        Seconds since the epoch; None for never.
    token_header
        Header that carries the token: TOKEN, or that of a session of S3 Express.
    """

    access: str
    secret: str
    token: str | None = None
    expires: float | None = None
    token_header: str = TOKEN

    def __repr__(self) -> str:
        return f"Keys({self.access!r}, ...)"


class Signer:
    """Signs the requests of one service in one region.  Thread-safe.

    Attributes
    ----------
    skew_s
        Seconds by which the service's clock is ahead of this machine's.
    """

    def __init__(self, service: str, region: str) -> None:
        self._service = service
        self._region = region
        self._cached: tuple[str, str, bytes] | None = None  # day, secret, key
        self._stamp: tuple[int, str] = (-1, "")  # a second, and its time stamp
        self.skew_s = 0.0

    def _derive(self, secret: str, day: str) -> tuple[str, str, bytes]:
        """Return (day, secret, the signing key of that day)."""
        key = f"AWS4{secret}".encode()
        for part in (day, self._region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return day, secret, key

    def headers(
        self,
        keys: Keys,
        method: str,
        host: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        payload_hash: str,
        now: float | None = None,
    ) -> dict[str, str]:
        """Return `headers` with host, date, payload hash and signature.

        Parameters
        ----------
        keys
            Access key; if it is empty, nothing is signed.
        method, host, path, query
            Of the request; the path is percent-encoded, the query is not.
        headers
            Names in lower case.
        payload_hash
            SHA-256 of the body in hexadecimal digits, or UNSIGNED.
        now
            Seconds since the epoch; None for this machine's clock.
        """
        second = int((time.time() if now is None else now) + self.skew_s)
        written = self._stamp  # read once: another thread may replace it
        if written[0] != second:
            written = (second, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second)))
            self._stamp = written
        stamp = written[1]
        signed = {
            **headers,
            "host": host,
            "x-amz-date": stamp,
            "x-amz-content-sha256": payload_hash,
        }
        if keys.token is not None:
            signed[keys.token_header] = keys.token
        if not keys.access:
            return signed
        names = sorted(signed)
        listed = ";".join(names)
        lines = ""
        for name in names:
            lines += f"{name}:{signed[name]}\n"
        pairs = canonical_query(query) if query else ""
        canonical = f"{method}\n{path}\n{pairs}\n{lines}\n{listed}\n{payload_hash}"
        day = stamp[:8]
        cached = self._cached
        if cached is None or cached[0] != day or cached[1] != keys.secret:
            self._cached = cached = self._derive(keys.secret, day)
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(cached[2], text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope},"
            f" SignedHeaders={listed}, Signature={signature}"
        )
        return signed


def canonical_query(query: Mapping[str, str]) -> str:
    """Return the query string as it is signed and sent.

    Parameters
    ----------
    query
        Names and values, not percent-encoded.

    Returns
    -------
    str
        Percent-encoded pairs, sorted by name; "" for an empty query.
    """
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items()
    )
    return "&".join(f"{name}={value}" for name, value in pairs)
