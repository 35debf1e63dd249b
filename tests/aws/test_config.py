"""Regions and endpoints are those that botocore finds."""

from __future__ import annotations

import json
from pathlib import Path

import botocore
import pytest

from serverless_mpi.aws import config
from serverless_mpi.aws.config import Config
from serverless_mpi.errors import UsageError

CONFIG = """
# a comment
[default]
region = eu-central-1
[profile plain]
region = ap-south-1
endpoint_url = http://127.0.0.1:1
[profile "with services"]
services = local
[services local]
sqs =
  endpoint_url = http://127.0.0.1:2
s3 =
    endpoint_url = http://127.0.0.1:3
    addressing_style = path
[profile fips]
use_fips_endpoint = true
region = us-west-2
[profile ignoring]
endpoint_url = http://127.0.0.1:1
ignore_configured_endpoint_urls = true
"""
CASES: list[dict[str, str]] = [
    {},
    {"AWS_PROFILE": "plain"},
    {"AWS_PROFILE": "plain", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
    {"AWS_PROFILE": "with services"},
    {"AWS_PROFILE": "fips"},
    {"AWS_PROFILE": "ignoring"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:4"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:4", "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:5"},
    {"AWS_PROFILE": "plain", "AWS_ENDPOINT_URL_SNS": "http://127.0.0.1:6"},
    {"AWS_DEFAULT_REGION": "cn-north-1"},
    {"AWS_DEFAULT_REGION": "us-gov-west-1"},
    {"AWS_DEFAULT_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"},
    {"AWS_DEFAULT_REGION": "eu-west-3", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    {"AWS_DEFAULT_REGION": "cn-north-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    {"AWS_DEFAULT_REGION": "us-iso-east-1"},
    {"AWS_DEFAULT_REGION": "us-isob-east-1"},
]


@pytest.mark.parametrize("environ", CASES, ids=str)
def test_as_botocore(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_of = pytest.importorskip("botocore.session")
    (tmp_path / "config").write_text(CONFIG)
    environ = {
        **environ,
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config = Config(environ)
    session = session_of.Session()
    region = config.region()
    assert region == (session.get_config_variable("region") or "us-east-1")
    for service in ("sqs", "sns", "s3", "sts"):
        client = session.create_client(
            service, region_name=region, aws_access_key_id="x", aws_secret_access_key="x"
        )
        theirs = client.meta.endpoint_url.replace(
            "//s3.amazonaws.com", "//s3.us-east-1.amazonaws.com"
        )  # ours is regional
        assert config.endpoint(service, region) == theirs, service


def test_a_region_is_there_without_any(tmp_path: Path) -> None:
    none = {
        "AWS_CONFIG_FILE": str(tmp_path / "no"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no"),
    }
    assert Config(none).region() == "us-east-1"
    assert (
        Config({**none, "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "x"}).region()
        == "eu-west-1"
    )
    assert Config(none).region("eu-north-1") == "eu-north-1"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nno equals sign\n")
    with pytest.raises(UsageError, match="line 2 of .*config"):
        Config({"AWS_CONFIG_FILE": str(tmp_path / "config")}).profile("default")
    (tmp_path / "config").write_bytes(b"[default]\nregion = \xff\n")
    with pytest.raises(UsageError, match="config is not text in UTF-8 .byte 19"):
        Config({"AWS_CONFIG_FILE": str(tmp_path / "config")}).profile("default")
    (tmp_path / "pem").write_text("no certificate")
    with pytest.raises(UsageError, match="pem is not a bundle"):
        Config({"AWS_CA_BUNDLE": str(tmp_path / "pem"), "AWS_CONFIG_FILE": "/dev/null"}).tls()


def test_the_domains_of_every_region_are_botocores() -> None:
    for partition in json.loads(
        (Path(botocore.__file__).parent / "data" / "partitions.json").read_text()
    )["partitions"]:
        outputs = partition["outputs"]
        for region in partition["regions"]:
            if region.endswith("-global"):  # not a region
                continue
            domains = next(
                domains for start, *domains in config.PARTITIONS if region.startswith(start)
            )
            assert domains == [outputs["dnsSuffix"], outputs["dualStackDnsSuffix"]], region
