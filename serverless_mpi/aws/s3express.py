"""S3 Express One Zone: directory buckets, their sessions, and which one a job uses.

A directory bucket is in one Availability Zone, which its name states
(`base--use1-az4--x-s3`).  Its requests go to a host of its own and are signed with the
keys of a session, which `CreateSession` grants for five minutes.

The rules that differ from other buckets:

- A listing has no order and no StartAfter; a prefix ends with "/"; pages continue with a
  token.
- The session's token is in a header of its own, and `s3express` is the service that signs.
- Only virtual-hosted requests: at an emulator's endpoint the bucket is in the Host header.

All ranks of a job must use one bucket: a reader computes a frame's key, and finds it only
where the writer put it.  So rank 0 chooses (`choose`) before it starts the other ranks, and
names the bucket in their invocations.

Sources: "S3 Express One Zone", Amazon S3 User Guide; CreateSession, ListObjectsV2 and
DeleteObjects, Amazon S3 API Reference; "Using the Lambda metadata endpoint", AWS Lambda
Developer Guide.
"""

from __future__ import annotations

import base64
import calendar
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from urllib.parse import quote, urlsplit

from serverless_mpi.aws.config import Config
from serverless_mpi.aws.connection import Connection, Lost
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.retry import BUDGET_S
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.errors import ServerlessMPIError, UsageError
from serverless_mpi.metering import Meter

SERVICE = "s3express"  # signs the requests, and names them on the meter and in the price table
SESSION_TOKEN = "x-amz-s3session-token"
SESSION_S = 300.0  # how long a session lasts
RENEW_BEFORE_S = 60.0  # a new session is asked for this long before the old one ends
TRIAL_BUDGET_S = 5.0  # of rank 0, for which all ranks wait: there is another bucket
METADATA_TIMEOUT_S = 1.0
METADATA_PATH = "/2026-01-15/metadata/execution-environment"

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-Endpoints.html (2026-11)
ZONES: dict[str, tuple[str, ...]] = {
    "us-east-1": ("use1-az4", "use1-az5", "use1-az6"),
    "us-east-2": ("use2-az1", "use2-az2"),
    "us-west-2": ("usw2-az1", "usw2-az3", "usw2-az4"),
    "ap-south-1": ("aps1-az1", "aps1-az3"),
    "ap-northeast-1": ("apne1-az1", "apne1-az4"),
    "eu-west-1": ("euw1-az1", "euw1-az3"),
    "eu-north-1": ("eun1-az1", "eun1-az2", "eun1-az3"),
}
_NAME = re.compile(r"[a-z0-9-]+--([a-z0-9]+(?:-[a-z0-9]+)*-az[0-9]+)--x-s3")
_NEXT = re.compile(rb"<NextContinuationToken>([^<]+)</NextContinuationToken>")


def zone_of(bucket: str) -> str | None:
    """Return the Availability Zone that the name of a directory bucket states.

    Parameters
    ----------
    bucket
        Name of any bucket.

    Returns
    -------
    str or None
        Id of the zone, as "use1-az4"; None if `bucket` is not a directory bucket.
    """
    named = _NAME.fullmatch(bucket)
    return None if named is None else named.group(1)


def zones(wanted: str, region: str) -> tuple[str, ...]:
    """Return the zones that "auto" or a list of zone ids names in a region.

    Parameters
    ----------
    wanted
        "auto" for every zone of the region, or ids of zones separated by commas.
    region
        AWS region.

    Returns
    -------
    tuple of str
        Ids, each once, in the order of `wanted`.

    Raises
    ------
    UsageError
        The region has no S3 Express, or not in one of these zones.
    """
    known = ZONES.get(region)
    if known is None:
        raise UsageError(
            f"--express {wanted}: S3 Express One Zone is not in region {region};"
            f" it is in {', '.join(ZONES)}"
        )
    if wanted == "auto":
        return known
    named = tuple(dict.fromkeys(wanted.split(",")))
    for zone in named:
        if zone not in known:
            raise UsageError(
                f"--express {zone}: S3 Express One Zone is in the zones {', '.join(known)} of"
                f" {region}; name one of them by its id, or `auto` for all"
            )
    return named


class Sessions:
    """Keys of sessions of one directory bucket, renewed before they expire.  Safe for threads.

    Parameters
    ----------
    client
        Sends CreateSession, signed with the keys of the user or role.
    clock
        Monotonic seconds.
    budget_s
        Seconds for which a busy service is asked again.
    """

    def __init__(
        self,
        client: Client,
        clock: Callable[[], float] = time.monotonic,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._client = client
        self._clock = clock
        self._budget_s = budget_s
        self._lock = threading.Lock()
        self._keys: Keys | None = None
        self._renew_at = 0.0
        self._ends_at = 0.0
        client.close()  # keeps no connection: the next session is asked for in minutes

    def get(self) -> Keys:
        """Return the keys of a session that has not expired.

        Raises
        ------
        ChannelError
            S3 refused a session, or cannot be reached, and the last one has expired.
        """
        keys, now = self._keys, self._clock()
        if keys is not None and now < self._renew_at:
            return keys
        # while one thread renews, which a busy service delays, the others use what still serves
        if keys is not None and now < self._ends_at and self._lock.locked():
            return keys
        with self._lock:
            keys = self._keys
            if keys is None or self._clock() >= self._renew_at:
                self._keys = keys = self._renewed(keys)
        return keys

    def renew(self) -> None:
        """Note that S3 says that the session has expired: get another one at the next use."""
        with self._lock:
            self._keys = None

    def _renewed(self, old: Keys | None) -> Keys:
        """Return keys of a new session; the old ones if there is none and they still serve."""
        now = self._clock()
        try:
            keys, lasts_s = self._create()
        except ServerlessMPIError:
            if old is None or now >= self._ends_at:
                raise
            self._renew_at = now + (self._ends_at - now) / 2
            return old
        self._ends_at = now + lasts_s
        self._renew_at = now + max(lasts_s - RENEW_BEFORE_S, lasts_s / 2)
        return keys

    def _create(self) -> tuple[Keys, float]:
        """Return keys of a new session, and the seconds that they last."""
        answer = self._client.request(
            "CreateSession", "GET", "/", {"session": ""}, budget_s=self._budget_s
        )
        if answer.status != 200:
            raise self._client.refused("create a session of the directory bucket", answer)
        text = bytes(answer.body).decode(errors="replace")
        found = {
            name: unescape(value)
            for name, value in re.findall(
                r"<(AccessKeyId|SecretAccessKey|SessionToken|Expiration)>([^<]+)<", text
            )
        }
        if len(found) < 4:
            raise self._client.garbled("create a session", answer.body)
        keys = Keys(
            found["AccessKeyId"],
            found["SecretAccessKey"],
            found["SessionToken"],
            token_header=SESSION_TOKEN,
        )
        return keys, _lasts_s(found["Expiration"], answer.headers.get("date", ""))


def _lasts_s(expiration: str, date: str) -> float:
    """Return the seconds between the answer's date and the end of its session, at most 300.

    Both are times of the service, so this machine's clock does not matter.
    """
    try:
        ends = time.strptime(expiration[:19], "%Y-%m-%dT%H:%M:%S")
        began = time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return SESSION_S
    return min(SESSION_S, max(0.0, float(calendar.timegm(ends) - calendar.timegm(began))))


class DirectoryBucket(S3):
    """The calls of the data path, on one directory bucket.  Thread-safe."""

    def _path(self, key: str = "") -> str:
        """Return the percent-encoded path of an object; the bucket is in the host's name."""
        return f"/{quote(key, safe='-_.~/')}"

    def _checksum(self, body: bytes) -> Mapping[str, str]:
        """Return the header that DeleteObjects requires, as AWS's own SDKs choose it."""
        digest = zlib.crc32(body).to_bytes(4, "big")
        return {"x-amz-checksum-crc32": base64.b64encode(digest).decode()}

    def list(self, prefix: str, after: str = "", budget_s: float = BUDGET_S) -> Sequence[str]:
        """Return up to 1000 keys that begin with a prefix, in no order.

        Parameters
        ----------
        prefix
            Beginning of the keys; ends with "/".
        after
            Must be empty: a listing of a directory bucket has no StartAfter.
        budget_s
            Seconds for which a busy service is asked again.

        Raises
        ------
        ValueError
            `after` is not empty.
        Busy, ChannelError
            As for `S3.list`.
        """
        if after:
            raise ValueError("a listing of a directory bucket cannot begin after a key")
        return self._list(prefix, {}, budget_s)[0]

    def list_all(self, prefix: str, budget_s: float = BUDGET_S) -> Sequence[str]:
        """Return every key that begins with a prefix, in no order.

        Parameters
        ----------
        prefix
            Beginning of the keys; ends with "/".
        budget_s
            Seconds for which a busy service is asked again, for each page.

        Raises
        ------
        Busy, ChannelError
            As for `S3.list_all`; also if S3 repeats a page's continuation token.

        Notes
        -----
        One request per 1000 keys.
        """
        keys, body = self._list(prefix, {}, budget_s)
        seen: set[str] = set()
        while (named := _NEXT.search(body)) is not None:
            token = unescape(named.group(1).decode(errors="replace"))
            if token in seen:  # otherwise the listing would not end
                raise self._client.garbled(f"list {prefix}", body)
            seen.add(token)
            more, body = self._list(prefix, {"continuation-token": token}, budget_s)
            keys = [*keys, *more]
        return keys


def bucket_client(
    bucket: str, region: str, endpoint: str | None, credentials: Credentials, meter: Meter
) -> Client:
    """Return a client of a directory bucket, which signs with its sessions.

    Parameters
    ----------
    bucket
        Name of a directory bucket.
    region
        AWS region.
    endpoint
        URL of an emulator; None for what the user's AWS configuration names, or else AWS's own.
    credentials
        Keys of the user or role, who need the permission s3express:CreateSession.
    meter
        Counts the requests, under the name "s3express".
    """
    url, host = _address(bucket, region, endpoint)
    sessions = Sessions(Client(SERVICE, region, url, credentials, meter, host=host))
    return Client(SERVICE, region, url, sessions, meter, host=host)


def try_session(
    bucket: str, region: str, endpoint: str | None, credentials: Credentials, meter: Meter
) -> None:
    """Create a session of a directory bucket, to check that it can be used.

    Parameters
    ----------
    bucket
        Name of a directory bucket.
    region
        AWS region.
    endpoint
        URL of an emulator; None for what the user's AWS configuration names, or else AWS's own.
    credentials
        Keys of the user or role, who need the permission s3express:CreateSession.
    meter
        Counts the requests, under the name "s3express".

    Raises
    ------
    ServerlessMPIError
        S3 refused a session, was busy for TRIAL_BUDGET_S, or cannot be reached; or there are no
        credentials.  The text has the reason.
    """
    url, host = _address(bucket, region, endpoint)
    client = Client(SERVICE, region, url, credentials, meter, host=host)
    Sessions(client, budget_s=TRIAL_BUDGET_S).get()


def _address(bucket: str, region: str, endpoint: str | None) -> tuple[str, str]:
    """Return the URL to connect to, and the Host header if it is not the URL's host."""
    config = Config()
    configured = endpoint or config.configured_endpoint("s3")
    if configured:
        return configured, f"{bucket}.{urlsplit(configured).netloc}"
    return f"https://{config.zonal_host(bucket, zone_of(bucket) or '', region)}", ""


def own_zone(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the Availability Zone of this function, by Lambda's metadata endpoint.

    Parameters
    ----------
    environ
        Environment variables, which name the endpoint and its token.

    Returns
    -------
    str or None
        Id of the zone; None outside Lambda, or if the endpoint does not state it.
    """
    api, token = environ.get("AWS_LAMBDA_METADATA_API"), environ.get("AWS_LAMBDA_METADATA_TOKEN")
    if not api or not token:
        return None
    head = f"GET {METADATA_PATH} HTTP/1.1\r\nhost: {api}\r\nauthorization: Bearer {token}\r\n\r\n"
    try:
        at = urlsplit(f"//{api}")
        connection = Connection(at.hostname or "", at.port or 80, None, METADATA_TIMEOUT_S)
        try:
            answer = connection.exchange(head.encode("latin-1"), (), "GET")
        finally:
            connection.close()
        zone = json.loads(bytes(answer.body))["AvailabilityZoneID"] if answer.status == 200 else ""
    except (Lost, ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(zone) or None


@dataclass(frozen=True)
class Choice:
    """Where the frames of a job lie.

    Attributes
    ----------
    bucket
        A directory bucket, or the stack's general bucket.
    reason
        Why it is not a directory bucket; "" if it is.
    """

    bucket: str
    reason: str = ""


def choose(
    general: str, express: Mapping[str, str], zone: str | None, probe: Callable[[str], None]
) -> Choice:
    """Choose the bucket of a job's frames; rank 0 does it for all ranks.

    Parameters
    ----------
    general
        The bucket to use otherwise.
    express
        Zone -> directory bucket.
    zone
        Zone of this rank; None if it is not known.
    probe
        Creates a session of a bucket; raises a ServerlessMPIError if that is refused.
    """
    if zone is None:
        return Choice(general, "Lambda's metadata endpoint did not state the zone of rank 0")
    if zone not in express:
        there = ", ".join(sorted(express))
        return Choice(general, f"rank 0 ran in zone {zone}, and S3 Express is deployed in {there}")
    try:
        probe(express[zone])
    except ServerlessMPIError as error:
        return Choice(general, f"{express[zone]} cannot be used: {error}")
    return Choice(express[zone])
