"""What a program imports beside the platform's packages: wheels for the platform, as a zip named by what was asked for."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from serverless_mpi.deploy.package import Target, install, zipped
from serverless_mpi.deploy.stack import Stack
from serverless_mpi.errors import UsageError


def prepare(path: str, stack: Stack) -> tuple[str, Callable[[], bytes]]:
    """Key of the zip for a requirements file, and how to make it if it is not there.

    Raises
    ------
    UsageError
        No such file.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--requirements {path}: {error.strerror}") from error
    folder = str(Path(path).resolve().parent)  # of what it names by a relative path
    digest = hashlib.sha256(
        f"{stack.python}\0{stack.arch}\0{folder}\0".encode() + text
    ).hexdigest()[:32]

    def make() -> bytes:
        sys.stderr.write(
            f"smpirun: fetching wheels of {path} for Python {stack.python} on {stack.arch}\n"
        )
        with tempfile.TemporaryDirectory(prefix="smpi-requirements-") as site:
            install(["-r", path], Target(stack.python, stack.arch), Path(site))
            return zipped(Path(site))

    return f"programs/site-{digest}.zip", make
