"""Credential sources in botocore's order, and renewal; servers are local, the clock is a number."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from serverless_mpi.aws.credentials import DUMMY, RENEW_BEFORE_S, RENEW_PAUSE_S, Credentials
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.errors import UsageError
from tests.aws.server import Reply, Request, Server, reply

HOUR = "2026-11-24T21:00:00Z"
AT_HOUR = 1795554000.0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def files(environ: dict[str, str], config: str = "", credentials: str = "") -> None:
    Path(environ["AWS_CONFIG_FILE"]).write_text(config)
    Path(environ["AWS_SHARED_CREDENTIALS_FILE"]).write_text(credentials)


def get(environ: dict[str, str]) -> Keys:
    return Credentials(None, environ).get()


def refused(environ: dict[str, str], story: str) -> None:
    with pytest.raises(UsageError, match=story):
        get(environ)


def test_an_emulator_never_sees_real_keys() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "real", "AWS_SECRET_ACCESS_KEY": "real"}
    credentials = Credentials("http://127.0.0.1:1", environ)
    assert credentials.get() is DUMMY
    credentials.renew()
    assert credentials.get() is DUMMY


def test_the_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Keys("a", "hidden", "hidden too"))


def test_environment_before_profile(environ: dict[str, str]) -> None:
    files(
        environ,
        credentials="[default]\naws_access_key_id=P\naws_secret_access_key=p\naws_session_token=t\n",
    )
    assert get(environ) == Keys("P", "p", "t")
    environ |= {"AWS_ACCESS_KEY_ID": "E", "AWS_SECRET_ACCESS_KEY": "e"}
    assert get(environ) == Keys("E", "e", None)
    environ["AWS_SESSION_TOKEN"] = "s"
    assert get(environ) == Keys("E", "e", "s")
    del environ["AWS_SECRET_ACCESS_KEY"]
    refused(environ, "only one is set")


def test_a_named_profile_of_either_file(environ: dict[str, str]) -> None:
    files(
        environ,
        "[profile both]\naws_access_key_id=C\naws_secret_access_key=c\n"
        "[profile config]\naws_access_key_id=D\naws_secret_access_key=d\n",
        "[both]\naws_access_key_id=B\naws_secret_access_key=b\n",
    )
    assert get({**environ, "AWS_PROFILE": "both"}) == Keys("B", "b")
    assert get({**environ, "AWS_PROFILE": "config"}) == Keys("D", "d")
    refused({**environ, "AWS_PROFILE": "neither"}, "profile 'neither' is in neither")
    refused(environ, "no AWS credentials; looked in: the environment, a web identity, the profile")


def test_credential_process(environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"

    def says(text: str, code: int = 0) -> None:
        program.write_text(
            f"import sys\nprint({text!r})\nsys.stderr.write('its story')\nsys.exit({code})"
        )

    files(environ, f"[default]\ncredential_process = {sys.executable} '{program}'\n")
    says(
        json.dumps(
            {
                "Version": 1,
                "AccessKeyId": "A",
                "SecretAccessKey": "S",
                "SessionToken": "T",
                "Expiration": HOUR,
            }
        )
    )
    assert get(environ) == Keys("A", "S", "T", AT_HOUR)
    says(json.dumps({"Version": 2}))
    refused(environ, "prints version 2")
    says("no json")
    refused(environ, "did not return a JSON object")
    says(json.dumps({"Version": 1, "AccessKeyId": "A"}))
    refused(environ, "did not return valid keys")
    says("", 3)
    refused(environ, "ended with exit code 3: its story")
    files(environ, "[default]\ncredential_process = /nowhere/at-all\n")
    refused(environ, "did not run")


def sts(form: dict[str, str]) -> Callable[[Request], Reply]:
    """A fake STS that wants exactly `form`."""

    def answer(request: Request) -> Reply:
        asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if {name: asked.get(name) for name in form} != form:
            return reply(
                400,
                f"<Error><Code>ValidationError</Code><Message>{asked}</Message></Error>".encode(),
            )
        return reply(
            body=f"<R><Credentials><AccessKeyId>R</AccessKeyId><SecretAccessKey>r</SecretAccessKey><SessionToken>a&amp;b"
            f"</SessionToken><Expiration>{HOUR}</Expiration></Credentials></R>".encode()
        )

    return answer


def test_assumed_roles(environ: dict[str, str]) -> None:
    files(
        environ,
        """
[profile one]
role_arn = arn:one
source_profile = base
external_id = x/1
[profile two]
role_arn = arn:two
source_profile = one
[profile env]
role_arn = arn:one
credential_source = Environment
[profile mfa]
role_arn = arn:one
source_profile = base
mfa_serial = arn:mfa
[profile circle]
role_arn = arn:one
source_profile = circle2
[profile circle2]
role_arn = arn:one
source_profile = circle
[profile nowhere]
role_arn = arn:one
source_profile = missing
[profile nothing]
role_arn = arn:one
[profile odd]
role_arn = arn:one
credential_source = Moon
[profile sso]
sso_session = s
""",
        "[base]\naws_access_key_id=B\naws_secret_access_key=b\n",
    )
    with Server(
        sts(
            {
                "Action": "AssumeRole",
                "RoleArn": "arn:one",
                "ExternalId": "x/1",
                "DurationSeconds": "3600",
            }
        )
    ) as server:
        environ["AWS_ENDPOINT_URL_STS"] = server.url
        assert get({**environ, "AWS_PROFILE": "one"}) == Keys("R", "r", "a&b", AT_HOUR)
        assert "Credential=B/" in server.requests[0].headers["authorization"]
        refused({**environ, "AWS_PROFILE": "two"}, "ValidationError")  # the fake knows arn:one only
        assert "Credential=R/" in server.requests[-1].headers["authorization"]
    with Server(sts({"Action": "AssumeRole"})) as server:
        environ["AWS_ENDPOINT_URL_STS"] = server.url
        for profile, story in {
            "mfa": "needs a code from the device arn:mfa.*export-credentials --profile mfa",
            "circle": "circle -> circle2 -> circle refer",
            "nowhere": "'nowhere' names source_profile 'missing'",
            "nothing": "neither source_profile nor credential_source",
            "odd": "not one of Environment, EcsContainer, Ec2InstanceMetadata",
            "env": "only one is set",
            "sso": "SSO.*export-credentials --profile sso",
        }.items():
            refused(
                {**environ, "AWS_PROFILE": profile, "AWS_ACCESS_KEY_ID": "E"}
                if profile == "env"
                else {**environ, "AWS_PROFILE": profile},
                story,
            )
        assert server.requests == []


def test_a_web_identity(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("web token\n")
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "WebIdentityToken": "web token",
        "RoleSessionName": "me",
    }
    with Server(sts(form)) as server:
        environ |= {
            "AWS_ENDPOINT_URL_STS": server.url,
            "AWS_ROLE_ARN": "arn:web",
            "AWS_ROLE_SESSION_NAME": "me",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        }
        assert get(environ) == Keys("R", "r", "a&b", AT_HOUR)
        assert "authorization" not in server.requests[0].headers
        refused(
            {**environ, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none")},
            "token file .*none cannot be read",
        )


TEMPORARY = json.dumps(
    {"AccessKeyId": "C", "SecretAccessKey": "c", "Token": "t", "Expiration": HOUR}
).encode()


def test_a_container(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from the file")

    def answer(request: Request) -> Reply:
        good = (
            request.headers.get("authorization") == "from the file"
            and request.target == "/creds?id=1"
        )
        return reply(body=TEMPORARY) if good else reply(403, b"who?")

    with Server(answer) as server:
        environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = server.url + "/creds?id=1"
        refused(environ, "cannot be read from .*answered 403 who")
        environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = "stale"
        environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = str(tmp_path / "token")
        assert get(environ) == Keys("C", "c", "t", AT_HOUR)
    environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = "http://example.org/creds"
    refused(environ, "neither HTTPS nor an address of this machine")


def test_an_instance(environ: dict[str, str]) -> None:
    del environ["AWS_EC2_METADATA_DISABLED"]
    steps: list[Reply] = []

    def answer(request: Request) -> Reply:
        if (
            request.method == "PUT"
            and request.headers["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        ):
            return reply(body=b"session")
        if request.headers.get("x-aws-ec2-metadata-token") != "session":
            return reply(401)
        if request.target.endswith("/security-credentials/"):
            return reply(body=b"my-role")
        return steps.pop(0)

    with Server(answer) as server:
        environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = server.url + "/"
        steps[:] = [reply(body=TEMPORARY)]
        assert get(environ) == Keys("C", "c", "t", AT_HOUR)
        assert server.requests[-1].target == "/latest/meta-data/iam/security-credentials/my-role"
        steps[:] = [reply(404)]
        refused(environ, "no AWS credentials")
    refused(environ, "no AWS credentials")  # nobody is there


class Clock:
    """Seconds of the epoch, set by the test."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_keys_are_renewed_before_they_end(environ: dict[str, str]) -> None:
    answers = [("1", HOUR), ("2", "2026-11-24T22:00:00Z")]
    broken = False

    def answer(request: Request) -> Reply:
        if broken:
            return reply(500)
        access, ends = answers[0]
        keys = {"AccessKeyId": access, "SecretAccessKey": "s", "Token": "t", "Expiration": ends}
        return reply(body=json.dumps(keys).encode())

    with Server(answer) as server:
        environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = server.url
        clock = Clock(AT_HOUR - 3600)
        credentials = Credentials(None, environ, clock)
        assert credentials.get().access == "1"
        clock.now = AT_HOUR - RENEW_BEFORE_S - 1
        assert credentials.get().access == "1" and len(server.requests) == 1
        clock.now = AT_HOUR - RENEW_BEFORE_S
        broken = True
        assert (
            credentials.get().access == "1" and len(server.requests) == 2
        )  # still good, so it serves
        assert (
            credentials.get().access == "1" and len(server.requests) == 2
        )  # and is not asked for at every request
        clock.now += RENEW_PAUSE_S
        broken = False
        answers.pop(0)
        assert credentials.get().access == "2" and len(server.requests) == 3
        broken = True
        clock.now = AT_HOUR + 3600
        with pytest.raises(UsageError, match="cannot be read from"):
            credentials.get()


def test_short_keys_are_not_asked_for_at_every_request(environ: dict[str, str]) -> None:
    with Server(lambda request: reply(body=TEMPORARY)) as server:
        environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = server.url
        credentials = Credentials(None, environ, Clock(AT_HOUR - 100))
        assert credentials.get() == credentials.get() and len(server.requests) == 1
