"""Signed questions to a stack's function URL: which address does this rank have?

The URL accepts keys of the stack's ranks only (AuthType AWS_IAM), so nobody else can
make the account pay for answers.

Source: "Control access to Lambda function URLs", AWS Lambda Developer Guide.
"""

from __future__ import annotations

from hashlib import sha256
from urllib.parse import urlsplit

from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.sigv4 import Signer
from serverless_mpi.job import JobSpec

SIGNED = "echo_signed"  # setting: the URL of `echo` is a stack's, and wants a signature


def headers(spec: JobSpec) -> dict[str, str]:
    """Return the headers of the question.

    Parameters
    ----------
    spec
        The job; its setting `echo` is the URL.

    Returns
    -------
    dict[str, str]
        None but for the setting `SIGNED`.

    Raises
    ------
    ChannelError
        This process has no keys.
    """
    if SIGNED not in spec.settings:
        return {}
    parts = urlsplit(spec.settings["echo"])
    keys = Credentials(spec.endpoint).get()
    signer = Signer("lambda", spec.region)
    nothing = sha256(b"").hexdigest()
    return signer.headers(keys, "GET", parts.netloc, parts.path or "/", {}, {}, nothing)
