"""Credentials of requests to AWS: looked up in `SOURCES`, in botocore's order.

The rules:

- With an endpoint that is not AWS's, credentials of the environment are never sent. The secret key
  for the launcher's own emulator is derived from the job's key, so that the emulator serves only
  this job; other emulators do not check keys.
- Temporary keys are renewed RENEW_BEFORE_S before they expire. If a renewal fails, the old keys are
  used until they expire.

If you add a source, write a method that returns None where it is not configured and raises
UsageError where it is configured and cannot work, and add it to `SOURCES`.

References
----------
"Credentials", boto3 documentation; "Container credential provider" and "IMDS credential provider",
AWS SDKs and Tools Reference Guide; "Sourcing credentials with an external process", AWS CLI User
Guide.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
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

RENEW_BEFORE_S = 900.0  # keys are renewed this long before they expire
RENEW_PAUSE_S = 60.0  # between attempts, if a renewal fails while the old keys are valid
PROCESS_TIMEOUT_S = 60.0
CONTAINER = "http://169.254.170.2"
INSTANCE = "http://169.254.169.254"
INSTANCE_TOKEN_S = 21600
ROLE_S = 3600  # duration of an assumed role if the profile has no duration_seconds
# Hosts that may provide a container's credentials by plain HTTP, besides loopback (ECS, EKS).
CONTAINER_HOSTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")

SECRET_BYTES = 32  # of an emulator's secret access key
DUMMY = Keys("smpi", "smpi")  # for emulators that do not check keys
_EXPORT = (
    "`aws configure export-credentials --profile {name} --format env` prints keys to set instead"
)


def emulator_keys(job_key: bytes) -> Keys:
    """Return the access key of a job for the emulator that its launcher starts.

    Parameters
    ----------
    job_key
        Key of the job, 32 bytes.
    """
    secret = make(job_key, Purpose.EMULATOR, b"", SECRET_BYTES).hex()
    return Keys(DUMMY.access, secret)


class Credentials:
    """Keys that are looked up at first use and renewed before they expire. Thread-safe.

    Parameters
    ----------
    endpoint
        URL of a server for which only `fixed` may be used, such as an emulator; None for AWS.
    environ
        Environment variables; None for those of the process.
    clock
        Returns seconds since the epoch.
    fixed
        Keys for `endpoint`.
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
        """Return valid keys, after a lookup or a renewal if one is due.

        Raises
        ------
        UsageError
            No source has keys, or a source is configured wrongly; the text names it.
        """
        keys = self._keys
        if keys is None or (keys.expires is not None and self._clock() >= self._renew_at):
            with self._lock:
                keys = self._keys
                if keys is None or (keys.expires is not None and self._clock() >= self._renew_at):
                    self._keys = keys = self._renewed(keys)
        return keys

    def renew(self) -> None:
        """Discard the keys, since a service reports that they have expired."""
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
            # Keys may be valid for less than RENEW_BEFORE_S; they are renewed after half that time,
            # not at every request.
            self._renew_at = max(keys.expires - RENEW_BEFORE_S, (now + keys.expires) / 2)
        return keys

    def _find(self) -> Keys:
        for _, source in SOURCES:
            keys = source(self)
            if keys is not None:
                return keys
        raise UsageError(
            f"no AWS credentials; looked in: {', '.join(name for name, _ in SOURCES)}. Set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use a role; or name"
            " an emulator with --endpoint"
        )

    # --- the sources ---------------------------------------------------------

    def from_environment(self) -> Keys | None:
        """Return the keys of environment variables, None if they are not set."""
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

    def from_web_identity(self) -> Keys | None:
        """Return the keys of the role that a token file permits to assume, None without one."""
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

    def from_profile(self) -> Keys | None:
        """Return the keys of the profile in use, None if there is no such profile."""
        name = self._config.profile_name
        if self._config.profile(name) is None:
            if name != "default":
                raise UsageError(
                    f"profile {name!r} is in neither of the AWS configuration files;"
                    " see `aws configure list-profiles`"
                )
            return None
        return self._profile(name, ())

    def _profile(self, name: str, through: Sequence[str]) -> Keys | None:
        """Return the keys of a profile; `through` are the profiles that refer to it."""
        profile = self._config.profile(name)
        if profile is None:
            raise UsageError(
                f"profile {through[-1]!r} names source_profile {name!r}, which does not exist"
            )
        if name in through:
            if "aws_access_key_id" not in profile:
                raise UsageError(
                    f"the profiles {' -> '.join((*through, name))} refer to each other in a circle"
                )
        elif "role_arn" in profile:
            return self._role(name, profile, through)
        if "sso_session" in profile or "sso_start_url" in profile:
            raise UsageError(
                f"profile {name!r} signs in by SSO, which serverless_mpi does not support; "
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
        """Return the keys of a role that a profile assumes."""
        if "mfa_serial" in profile:
            raise UsageError(
                f"profile {name!r} needs a code from the device {profile['mfa_serial']}; "
                + _EXPORT.format(name=name)
            )
        role, session = profile["role_arn"], profile.get("role_session_name")
        if "web_identity_token_file" in profile:
            return self._web_identity(profile["web_identity_token_file"], role, session)
        keys = self._keys_to_assume(name, profile, through)
        form = {"RoleArn": role, "RoleSessionName": session or "serverless-mpi"}
        form["DurationSeconds"] = profile.get("duration_seconds", str(ROLE_S))
        if "external_id" in profile:
            form["ExternalId"] = profile["external_id"]
        return self._sts("AssumeRole", form, keys)

    def _keys_to_assume(
        self, name: str, profile: Mapping[str, str], through: Sequence[str]
    ) -> Keys:
        """Return the keys with which a profile assumes its role."""
        keys: Keys | None
        if "source_profile" in profile:
            keys = self._profile(profile["source_profile"], (*through, name))
            origin = f"source_profile {profile['source_profile']!r}"
        elif "credential_source" in profile:
            known = {
                "Environment": self.from_environment,
                "EcsContainer": self.from_container,
                "Ec2InstanceMetadata": self.from_instance,
            }
            source = known.get(profile["credential_source"])
            if source is None:
                raise UsageError(
                    f"credential_source of profile {name!r} is not one of {', '.join(known)}"
                )
            keys = source()
            origin = f"credential_source {profile['credential_source']}"
        else:
            raise UsageError(
                f"profile {name!r} has a role_arn and neither source_profile nor credential_source"
            )
        if keys is None:
            raise UsageError(
                f"profile {name!r} assumes {profile['role_arn']}, but its {origin} has no keys"
            )
        return keys

    def _sts(self, action: str, form: Mapping[str, str], keys: Keys) -> Keys:
        """Return the temporary keys that STS gives for a request signed with `keys`."""
        from serverless_mpi.aws.http import Client  # imports this module

        region = self._config.region()
        endpoint = self._config.endpoint("sts", region)
        signer = Credentials(endpoint, self._environ, self._clock, fixed=keys)
        client: Client = Client("sts", region, endpoint, signer, Meter())
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

    def from_container(self) -> Keys | None:
        """Return the keys of the container's role (ECS, EKS), None outside such a container."""
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
                f"AWS_CONTAINER_CREDENTIALS_FULL_URI is {url}, which is neither HTTPS nor an"
                " address"
                " of this machine"
            )
        token_file = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        token = (
            _text_of(token_file) if token_file else environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        )
        try:
            text = self._fetch(url, {"authorization": token} if token else {})
        except Lost as error:
            raise UsageError(
                f"the container's credentials cannot be read from {url}: {error}"
            ) from error
        return _temporary(_fields(text, url), "Token", url)

    def from_instance(self) -> Keys | None:
        """Return the keys of the EC2 instance's role, None outside EC2 or without a role."""
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
        except Lost:  # this machine is not an instance, or has no role
            return None
        return _temporary(_fields(text, base), "Token", base)

    def _fetch(self, url: str, headers: Mapping[str, str], method: str = "GET") -> str:
        """Return the text at a URL; raise Lost if the server does not answer with status 200."""
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
    ("the environment", Credentials.from_environment),
    ("a web identity", Credentials.from_web_identity),
    ("the profile", Credentials.from_profile),
    ("the container's role", Credentials.from_container),
    ("the instance's role", Credentials.from_instance),
)


def _from_process(name: str, command: str) -> Keys:
    """Return the keys that an external program prints (`credential_process`)."""
    import shlex  # the two take 5 ms at the start of a rank, and few profiles need them
    import subprocess

    origin = f"credential_process of profile {name!r}"
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{origin} did not run: {error}") from error
    if done.returncode:
        raise UsageError(
            f"{origin} ended with exit code {done.returncode}: {done.stderr.strip()[:200]}"
        )
    fields = _fields(done.stdout, origin)
    if fields.get("Version") != 1:
        raise UsageError(
            f"{origin} prints version {fields.get('Version')!r} of its format; version 1 is needed"
        )
    return _temporary(fields, "SessionToken", origin)


def _temporary(fields: Mapping[str, object], token: str, origin: str) -> Keys:
    """Return keys from the fields of a response; `token` names the field of the session token."""
    try:
        expires = fields.get("Expiration")
        return Keys(
            str(fields["AccessKeyId"]),
            str(fields["SecretAccessKey"]),
            str(fields[token]) if fields.get(token) else None,
            None if expires is None else _epoch(str(expires)),
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"{origin} did not return valid keys: {error!r}") from error


def _epoch(text: str) -> float:
    """Return the seconds of the epoch of a time in ISO 8601; Python 3.10 cannot parse the Z."""
    moment = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _fields(text: str, origin: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{origin} did not return a JSON object, but {text[:60]!r}")
    return fields


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise UsageError(f"the token file {file} cannot be read: {error.strerror}") from error


def _near(host: str) -> bool:
    """Return whether a host may provide credentials by plain HTTP."""
    try:
        return (
            host == "localhost" or host in CONTAINER_HOSTS or ipaddress.ip_address(host).is_loopback
        )
    except ValueError:
        return False
