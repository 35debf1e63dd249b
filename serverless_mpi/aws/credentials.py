"""Whose requests these are: `SOURCES`, in botocore's order.

With an endpoint that is not AWS's, ambient credentials are never sent: the secret key there is derived from the job's
key, so that the launcher's own emulator serves nobody else; another emulator checks none.  Keys that end are renewed
before; while a renewal fails, the old ones serve as long as they are good.
Sources: "Credentials" in the boto3 documentation; "Container credential provider" and "IMDS credential provider",
AWS SDKs and Tools Reference Guide; "Sourcing credentials with an external process".
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from serverless_mpi.aws.config import Config
from serverless_mpi.aws.connection import Connection, Lost
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.core.tags import Purpose, make
from serverless_mpi.errors import ServerlessMPIError, UsageError
from serverless_mpi.metering import Meter

if TYPE_CHECKING:
    from serverless_mpi.aws.http import Client

RENEW_BEFORE_S = 900.0  # new keys are asked for this long before the old ones end
RENEW_PAUSE_S = 60.0  # after a renewal that failed while the old keys are still good
PROCESS_TIMEOUT_S = 60.0
CONTAINER = "http://169.254.170.2"
INSTANCE = "http://169.254.169.254"
INSTANCE_TOKEN_S = 21600
ROLE_S = 3600  # what AssumeRole grants unless the profile says duration_seconds
# besides loopback and https, where a container's credentials may come from (ECS, EKS)
CONTAINER_HOSTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")

SECRET_BYTES = 32  # of an emulator's secret access key
DUMMY = Keys("smpi", "smpi")  # an emulator that the user started checks none
_EXPORT = (
    "`aws configure export-credentials --profile {name} --format env` prints keys to set instead"
)


def emulator_keys(job_key: bytes) -> Keys:
    """The keys of a job at an emulator that the launcher started for it."""
    secret = make(job_key, Purpose.EMULATOR, b"", SECRET_BYTES).hex()
    return Keys(DUMMY.access, secret)


class Credentials:
    """Keys that are found at first use and renewed before they end.  Safe for threads.

    endpoint: an emulator's URL, where `fixed` are the keys; clock: seconds of the epoch.
    """

    def __init__(
        self,
        endpoint: str | None,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        fixed: Keys = DUMMY,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._config = Config(environ)
        self._clock = clock
        self._lock = threading.Lock()
        self._fixed = endpoint is not None
        self._keys: Keys | None = fixed if self._fixed else None
        self._renew_at = float("inf")

    def get(self) -> Keys:
        """The keys to sign with now.

        Raises
        ------
        UsageError
            None were found; the text names where they may be, or what is wrong where they should be.
        """
        keys = self._keys
        if keys is None or (keys.expires is not None and self._clock() >= self._renew_at):
            with self._lock:
                keys = self._keys
                if keys is None or (keys.expires is not None and self._clock() >= self._renew_at):
                    self._keys = keys = self._renewed(keys)
        return keys

    def renew(self) -> None:
        """The service says that the keys have ended: find new ones at the next use."""
        with self._lock:
            if not self._fixed:
                self._config = Config(self._environ)  # files may have changed
                self._keys = None

    def _renewed(self, old: Keys | None) -> Keys:
        now = self._clock()
        try:
            keys = self._find()
        except ServerlessMPIError:
            if old is None or old.expires is None or old.expires <= now:
                raise
            self._renew_at = now + RENEW_PAUSE_S
            return old
        if keys.expires is not None:
            # keys that are shorter than RENEW_BEFORE_S are not asked for anew at every request
            self._renew_at = max(keys.expires - RENEW_BEFORE_S, (now + keys.expires) / 2)
        return keys

    def _find(self) -> Keys:
        for _, source in SOURCES:
            keys = source(self)
            if keys is not None:
                return keys
        raise UsageError(
            f"no AWS credentials; looked in: {', '.join(name for name, _ in SOURCES)}. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role; or name an emulator with --endpoint"
        )

    # --- the sources ---------------------------------------------------------

    def _from_environment(self) -> Keys | None:
        access, secret = (
            self._environ.get("AWS_ACCESS_KEY_ID"),
            self._environ.get("AWS_SECRET_ACCESS_KEY"),
        )
        if bool(access) != bool(secret):
            raise UsageError(
                "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set: set both or none"
            )
        return (
            Keys(access, secret, self._environ.get("AWS_SESSION_TOKEN") or None)
            if access and secret
            else None
        )

    def _from_web_identity(self) -> Keys | None:
        environ = self._environ
        file, role = environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environ.get("AWS_ROLE_ARN")
        return (
            self._web_identity(file, role, environ.get("AWS_ROLE_SESSION_NAME"))
            if file and role
            else None
        )

    def _web_identity(self, file: str, role: str, session: str | None) -> Keys:
        form = {
            "RoleArn": role,
            "RoleSessionName": session or "serverless-mpi",
            "WebIdentityToken": _text_of(file),
        }
        return self._sts("AssumeRoleWithWebIdentity", form, Keys("", ""))

    def _from_profile(self) -> Keys | None:
        name = self._config.profile_name
        if self._config.profile(name) is None:
            if name != "default":
                raise UsageError(
                    f"profile {name!r} is in neither of the AWS configuration files; see `aws configure list-profiles`"
                )
            return None
        return self._profile(name, ())

    def _profile(self, name: str, through: Sequence[str]) -> Keys | None:
        """The keys of a profile; through: the profiles that led to it."""
        profile = self._config.profile(name)
        if profile is None:
            raise UsageError(
                f"profile {through[-1]!r} names source_profile {name!r}, which does not exist"
            )
        if name in through:
            if "aws_access_key_id" not in profile:
                raise UsageError(
                    f"the profiles {' -> '.join((*through, name))} go round in a circle"
                )
        elif "role_arn" in profile:
            return self._role(name, profile, through)
        if "sso_session" in profile or "sso_start_url" in profile:
            raise UsageError(
                f"profile {name!r} signs in by SSO, which data connections cannot; "
                + _EXPORT.format(name=name)
            )
        access, secret = profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")
        if access and secret:
            return Keys(access, secret, profile.get("aws_session_token") or None)
        if "credential_process" in profile:
            return _from_process(name, profile["credential_process"])
        if access or secret:
            raise UsageError(
                f"profile {name!r} has only one of aws_access_key_id and aws_secret_access_key"
            )
        return None

    def _role(self, name: str, profile: Mapping[str, str], through: Sequence[str]) -> Keys:
        """The keys of a role that a profile assumes."""
        if "mfa_serial" in profile:
            raise UsageError(
                f"profile {name!r} needs a code of {profile['mfa_serial']}; "
                + _EXPORT.format(name=name)
            )
        role, session = profile["role_arn"], profile.get("role_session_name")
        if "web_identity_token_file" in profile:
            return self._web_identity(profile["web_identity_token_file"], role, session)
        keys: Keys | None
        if "source_profile" in profile:
            keys = self._profile(profile["source_profile"], (*through, name))
        elif "credential_source" in profile:
            known = {
                "Environment": self._from_environment,
                "EcsContainer": self._from_container,
                "Ec2InstanceMetadata": self._from_instance,
            }
            source = known.get(profile["credential_source"])
            if source is None:
                raise UsageError(
                    f"credential_source of profile {name!r} is none of {', '.join(known)}"
                )
            keys = source()
        else:
            raise UsageError(
                f"profile {name!r} has a role_arn and neither source_profile nor credential_source"
            )
        if keys is None:
            raise UsageError(
                f"profile {name!r} assumes {role}, but where it says that the keys for that are, there are none"
            )
        form = {"RoleArn": role, "RoleSessionName": session or "serverless-mpi"}
        form["DurationSeconds"] = profile.get("duration_seconds", str(ROLE_S))
        if "external_id" in profile:
            form["ExternalId"] = profile["external_id"]
        return self._sts("AssumeRole", form, keys)

    def _sts(self, action: str, form: Mapping[str, str], keys: Keys) -> Keys:
        from serverless_mpi.aws.http import Client  # which needs this file

        region = self._config.region()
        fixed = Credentials(None, self._environ, self._clock)
        fixed._keys = keys
        client: Client = Client("sts", region, self._config.endpoint("sts", region), fixed, Meter())
        form = {"Action": action, "Version": "2011-06-15", **form}
        body = urlencode(form)
        try:
            answer = client.request(
                action,
                "POST",
                "/",
                headers={"content-type": "application/x-www-form-urlencoded; charset=utf-8"},
                body=body.encode(),
            )
        finally:
            client.close()
        text = bytes(answer.body).decode(errors="replace")
        fields = {name: unescape(value) for name, value in re.findall(r"<(\w+)>([^<]*)</\1>", text)}
        if answer.status != 200 or "SecretAccessKey" not in fields:
            raise UsageError(str(client.refused(f"give the keys of {form['RoleArn']}", answer)))
        return _temporary(fields, "SessionToken", "STS")

    def _from_container(self) -> Keys | None:
        environ = self._environ
        relative = environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = (
            f"{CONTAINER}{relative}"
            if relative
            else environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        )
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme != "https" and not _near(parts.hostname or ""):
            raise UsageError(
                f"AWS_CONTAINER_CREDENTIALS_FULL_URI names {url}, which is neither https nor on this machine"
            )
        token_file = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        token = (
            _text_of(token_file) if token_file else environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        )
        try:
            text = self._fetch(url, {"authorization": token} if token else {})
        except Lost as error:
            raise UsageError(
                f"the container's credentials at {url} cannot be had: {error}"
            ) from error
        return _temporary(_fields(text, url), "Token", url)

    def _from_instance(self) -> Keys | None:
        environ = self._environ
        if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return None
        base = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", INSTANCE).rstrip("/") + "/latest"
        try:
            token = self._fetch(
                f"{base}/api/token",
                {"x-aws-ec2-metadata-token-ttl-seconds": str(INSTANCE_TOKEN_S)},
                "PUT",
            )
            headers = {"x-aws-ec2-metadata-token": token}
            roles = self._fetch(f"{base}/meta-data/iam/security-credentials/", headers).split()
            if not roles:
                return None
            text = self._fetch(f"{base}/meta-data/iam/security-credentials/{roles[0]}", headers)
        except Lost:  # not on such a machine, or it has no role
            return None
        return _temporary(_fields(text, base), "Token", base)

    def _fetch(self, url: str, headers: Mapping[str, str], method: str = "GET") -> str:
        """The text at `url`; Lost if there is none."""
        parts = urlsplit(url)
        tls = self._config.tls() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"host": parts.netloc, "content-length": "0", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        timeout_s = float(self._environ.get("AWS_METADATA_SERVICE_TIMEOUT", "1"))
        connection = Connection(parts.hostname or "", port, tls, timeout_s)
        try:
            answer = connection.exchange(
                f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"), (), method, None
            )
        finally:
            connection.close()
        text = bytes(answer.body).decode(errors="replace")
        if answer.status != 200:
            raise Lost(True, ValueError(f"{url} answered {answer.status} {text[:100]}"))
        return text


SOURCES: tuple[tuple[str, Callable[[Credentials], Keys | None]], ...] = (
    ("the environment", Credentials._from_environment),
    ("a web identity", Credentials._from_web_identity),
    ("the profile", Credentials._from_profile),
    ("the container's role", Credentials._from_container),
    ("the instance's role", Credentials._from_instance),
)


def _from_process(name: str, command: str) -> Keys:
    """What an external program prints (`credential_process`)."""
    import shlex
    import subprocess

    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"credential_process of profile {name!r} did not run: {error}") from error
    if done.returncode:
        raise UsageError(
            f"credential_process of profile {name!r} ended with {done.returncode}: {done.stderr.strip()[:200]}"
        )
    fields = _fields(done.stdout, f"credential_process of profile {name!r}")
    if fields.get("Version") != 1:
        raise UsageError(
            f"credential_process of profile {name!r} speaks version {fields.get('Version')!r}, not 1"
        )
    return _temporary(fields, "SessionToken", f"credential_process of profile {name!r}")


def _temporary(fields: Mapping[str, object], token: str, origin: str) -> Keys:
    try:
        expires = fields.get("Expiration")
        return Keys(
            str(fields["AccessKeyId"]),
            str(fields["SecretAccessKey"]),
            str(fields[token]) if fields.get(token) else None,
            None if expires is None else _epoch(str(expires)),
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"{origin} did not give keys: {error!r}") from error


def _epoch(text: str) -> float:
    from datetime import datetime, timezone

    moment = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _fields(text: str, origin: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{origin} did not give a JSON object, but {text[:60]!r}")
    return fields


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise UsageError(f"the token file {file} cannot be read: {error.strerror}") from error


def _near(host: str) -> bool:
    import ipaddress

    try:
        return (
            host == "localhost" or host in CONTAINER_HOSTS or ipaddress.ip_address(host).is_loopback
        )
    except ValueError:
        return False
