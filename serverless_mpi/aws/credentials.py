"""Whose requests these are: keys from the environment, a profile, or the role of a container or machine.

With an emulator's endpoint the keys are dummies: ambient credentials are never sent there.
Sources: "Credentials" in the boto3 documentation; "Task IAM roles" (ECS); "Instance metadata" (EC2).
"""

from __future__ import annotations

import configparser
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from serverless_mpi.errors import UsageError

REFRESH_BEFORE_S = 300.0  # new keys are asked for this long before the old ones end
_METADATA_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Keys:
    """An access key; expires is in seconds of the epoch, None if never."""

    access: str
    secret: str
    token: str | None = None
    expires: float | None = None

    def __repr__(self) -> str:
        return f"Keys({self.access!r}, ...)"


DUMMY = Keys("smpi", "smpi")  # an emulator checks none


class Credentials:
    """Keys that are found at first use and renewed before they end.  Safe for threads."""

    def __init__(
        self, endpoint: str | None, environ: Mapping[str, str] | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Keys | None = DUMMY if endpoint is not None else None

    def get(self) -> Keys:
        """The keys to sign with now.

        Raises
        ------
        UsageError
            None were found; the text names where they may be.
        """
        keys = self._keys
        if keys is None or (keys.expires is not None and self._clock() > keys.expires - REFRESH_BEFORE_S):
            with self._lock:
                self._keys = keys = self._find()
        return keys

    def _find(self) -> Keys:
        for source in (self._from_environment, self._from_profile, self._from_container, self._from_instance):
            keys = source()
            if keys is not None:
                return keys
        raise UsageError(
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role; "
            "or name an emulator with --endpoint"
        )

    def _from_environment(self) -> Keys | None:
        access, secret = self._environ.get("AWS_ACCESS_KEY_ID"), self._environ.get("AWS_SECRET_ACCESS_KEY")
        return Keys(access, secret, self._environ.get("AWS_SESSION_TOKEN")) if access and secret else None

    def _from_profile(self) -> Keys | None:
        path = Path(self._environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
        parser = configparser.RawConfigParser()
        parser.read(path)
        profile = self._environ.get("AWS_PROFILE", "default")
        if not parser.has_option(profile, "aws_access_key_id"):
            return None
        section = parser[profile]
        return Keys(section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token"))

    def _from_container(self) -> Keys | None:
        relative = self._environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = f"http://169.254.170.2{relative}" if relative else self._environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if not url:
            return None
        headers = {}
        token = self._environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        token_file = self._environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        if token_file:
            token = Path(token_file).read_text().strip()
        if token:
            headers["Authorization"] = token
        return _temporary(_fetch(url, headers))

    def _from_instance(self) -> Keys | None:
        if self._environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return None
        base = "http://169.254.169.254/latest"
        try:
            token = _fetch(f"{base}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, "PUT")
            headers = {"X-aws-ec2-metadata-token": token}
            role = _fetch(f"{base}/meta-data/iam/security-credentials/", headers).splitlines()[0]
            return _temporary(_fetch(f"{base}/meta-data/iam/security-credentials/{role}", headers))
        except OSError:  # not on such a machine
            return None


def _fetch(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _temporary(text: str) -> Keys:
    fields = json.loads(text)
    expires = datetime.strptime(fields["Expiration"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return Keys(fields["AccessKeyId"], fields["SecretAccessKey"], fields["Token"], expires.timestamp())
