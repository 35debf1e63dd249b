"""Settings of AWS's own tools: the profile, the region, endpoints and certificates.

The rule is botocore's: the environment first, then the profile in the configuration files,
then the default.  A test compares the answers with botocore's.

Sources: "Settings reference", AWS SDKs and Tools Reference Guide; "Configuration file",
boto3 documentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from serverless_mpi.errors import UsageError

if TYPE_CHECKING:
    import ssl

DEFAULT_REGION = "us-east-1"
# (prefix of region names, domain of endpoints, of dual-stack endpoints); the first match counts
PARTITIONS: tuple[tuple[str, str, str], ...] = (
    ("cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    ("us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    ("", "amazonaws.com", "api.aws"),
)


class Config:
    """The settings of one environment; the configuration files are read at first use.

    Parameters
    ----------
    environ
        Environment variables; None for those of the process.

    Attributes
    ----------
    environ
        As given.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self._files: tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]] | None = None

    @property
    def profile_name(self) -> str:
        """Name of the profile in use."""
        return (
            self.environ.get("AWS_PROFILE") or self.environ.get("AWS_DEFAULT_PROFILE") or "default"
        )

    def profile(self, name: str) -> dict[str, str] | None:
        """Return the settings of a profile.

        The credentials file takes precedence over the configuration file.

        Parameters
        ----------
        name
            Name of the profile.

        Returns
        -------
        dict or None
            Settings by name, names of nested settings as "outer.inner"; None if there is no such
            profile.

        Raises
        ------
        UsageError
            A configuration file is not valid.
        """
        config, credentials = self._read()
        section = (
            "default"
            if name == "default" and "profile default" not in config
            else f"profile {name}"
        )
        if section not in config and name not in credentials:
            return None
        return {**config.get(section, {}), **credentials.get(name, {})}

    def _own(self) -> dict[str, str]:
        """Return the settings of the profile in use."""
        return self.profile(self.profile_name) or {}

    def _read(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
        if self._files is None:
            config = self.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
            credentials = self.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
            self._files = (_sections(config), _sections(credentials))
        return self._files

    def region(self, explicit: str | None = None) -> str:
        """Return the region to work in.

        Parameters
        ----------
        explicit
            What the user asked for; takes precedence over all settings.
        """
        environ = self.environ
        named = explicit or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        return named or self._own().get("region") or DEFAULT_REGION

    def configured_endpoint(self, service: str) -> str | None:
        """Return the URL of a service that the user has configured.

        Parameters
        ----------
        service
            Endpoint prefix of the service, as "sqs".

        Returns
        -------
        str or None
            The first that is set of AWS_ENDPOINT_URL_SQS (for "sqs"), AWS_ENDPOINT_URL, the
            profile's `services` section and the profile's `endpoint_url`.  None if none is set, or
            if the user's settings ignore configured endpoints.

        Raises
        ------
        UsageError
            A configuration file is not valid.
        """
        if not _true(
            self._setting("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls")
        ):
            own = self._own()
            services = self._read()[0].get(f"services {own.get('services', '')}", {})
            for url in (
                self.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}"),
                self.environ.get("AWS_ENDPOINT_URL"),
                services.get(f"{service}.endpoint_url"),
                own.get("endpoint_url"),
            ):
                if url:
                    return url
        return None

    def endpoint(self, service: str, region: str) -> str:
        """Return the URL of a service, AWS's own unless another is configured.

        Parameters
        ----------
        service
            Endpoint prefix of the service, as "sqs".
        region
            AWS region.
        """
        configured = self.configured_endpoint(service)
        if configured is not None:
            return configured
        domain, dual = _domains(region)
        # In GovCloud every endpoint except that of S3 is a FIPS endpoint.
        always = region.startswith("us-gov-") and service != "s3"
        fips = "" if always else self._fips()
        if self._dual_stack():
            if service == "s3":
                return f"https://s3{fips}.dualstack.{region}.{domain}"
            return f"https://{service}{fips}.{region}.{dual}"
        return f"https://{service}{fips}.{region}.{domain}"

    def zonal_host(self, bucket: str, zone: str, region: str) -> str:
        """Return the host of AWS's endpoint of a directory bucket in an Availability Zone.

        Parameters
        ----------
        bucket
            Name of the directory bucket.
        zone
            Id of its Availability Zone, as "use1-az4".
        region
            AWS region.

        Raises
        ------
        UsageError
            A configuration file is not valid.
        """
        dual = ".dualstack" if self._dual_stack() else ""
        return f"{bucket}.s3express{self._fips()}-{zone}{dual}.{region}.{_domains(region)[0]}"

    def _fips(self) -> str:
        fips = _true(self._setting("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint"))
        return "-fips" if fips else ""

    def _dual_stack(self) -> bool:
        return _true(self._setting("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint"))

    def tls(self) -> ssl.SSLContext:
        """Return the context that verifies a server's certificate and name.

        Raises
        ------
        UsageError
            The configured file is not a bundle of certificates.
        """
        import ssl  # 10 MB and 40 ms, which a rank that uses an emulator does not need

        bundle = (
            self._setting("AWS_CA_BUNDLE", "ca_bundle")
            or self.environ.get("REQUESTS_CA_BUNDLE")
            or None
        )
        try:
            context = ssl.create_default_context(cafile=bundle)
        except OSError as error:
            raise UsageError(
                f"{bundle} is not a bundle of certificates in PEM form: {error}; see AWS_CA_BUNDLE"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _setting(self, variable: str, name: str) -> str:
        """Return a setting of the environment or of the profile; "" if it is not set."""
        return self.environ.get(variable) or self._own().get(name) or ""


def _domains(region: str) -> tuple[str, str]:
    """Return the domains of a region's endpoints and dual-stack endpoints."""
    return next((domain, dual) for start, domain, dual in PARTITIONS if region.startswith(start))


def _true(text: str) -> bool:
    return text.lower() == "true"


def _sections(name: str) -> dict[str, dict[str, str]]:
    """Return a file's sections; a nested setting `inner = x` of `outer =` is "outer.inner"."""
    try:
        text = Path(name).expanduser().read_text()
    except (OSError, RuntimeError):  # no such file, or no home: nothing is configured there
        return {}
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not text in UTF-8 (byte {error.start}): save it as UTF-8, or set the"
            " variable that names the file"
        ) from None
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    outer = ""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        if bare[0] == "[" and "]" in bare:
            title = " ".join(bare[1 : bare.index("]")].replace('"', " ").replace("'", " ").split())
            section, outer = sections.setdefault(title, {}), ""
            continue
        key, equals, value = bare.partition("=")
        if not equals:
            raise UsageError(
                f"line {number} of {name} is neither a [section] nor `name = value`: {bare[:40]!r}"
            )
        key, value = key.strip().lower(), value.split(" #")[0].strip()
        if line[0] in " \t" and outer:
            section[f"{outer}.{key}"] = value
        else:
            section[key] = value
            outer = "" if value else key
    return sections
