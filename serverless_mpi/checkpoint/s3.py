"""A prefix of a bucket as a place of checkpoints.

Who may write to a bucket is decided by policies that this program cannot see. So records and parts
are authenticated with a secret key, and nothing without a right tag is unpickled. The key is
SMPI_CHECKPOINT_KEY, or else a file of the user, which the first rank makes when it is first needed.

A part is one PUT, which is there whole or not at all and leaves nothing when it is cut off. A
record is a PUT with If-None-Match, which S3 accepts from one writer.

References
----------
"Conditional writes", Amazon S3 User Guide.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from serverless_mpi.aws.config import Config
from serverless_mpi.aws.credentials import Credentials, emulator_keys
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import MAX_DELETED, S3
from serverless_mpi.checkpoint.places import Place
from serverless_mpi.env import ENV_CHECKPOINT_KEY
from serverless_mpi.errors import ChannelError, CheckpointError, UsageError
from serverless_mpi.job import KEY_BYTES, current_spec
from serverless_mpi.metering import Meter
from serverless_mpi.runtime import process

SCHEME = "s3://"
MOST_BYTES = 5 << 30  # of one PUT
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def is_name(root: str) -> bool:
    """Return whether a text names a prefix of a bucket, and not a folder.

    Parameters
    ----------
    root
        As the program gave it.
    """
    return root.startswith(SCHEME)


def key() -> bytes:
    """Return the user's key of checkpoints in buckets; make it if there is none.

    Raises
    ------
    CheckpointError
        It is not valid, cannot be written, or others could read it.
    """
    given = os.environ.get(ENV_CHECKPOINT_KEY)
    if given is not None:
        return _parsed(given, ENV_CHECKPOINT_KEY)
    home = os.environ.get("XDG_CONFIG_HOME")
    path = Path(home or Path.home() / ".config") / "serverless_mpi" / "checkpoint.key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
        if not path.exists():
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w") as file:
                file.write(os.urandom(KEY_BYTES).hex())
            try:
                with contextlib.suppress(FileExistsError):  # another job has just made it
                    os.link(draft, path)
            finally:
                draft.unlink()
        with open(path) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CheckpointError(f"others can read {path}; chmod 600 {path}")
            return _parsed(file.read(), str(path))
    except OSError as error:
        raise CheckpointError(
            f"the key of checkpoints cannot be kept in {path}: {error.strerror}; set"
            f" {ENV_CHECKPOINT_KEY} to {2 * KEY_BYTES} random hexadecimal digits"
        ) from error


def _parsed(text: str, source: str) -> bytes:
    found = re.fullmatch(r"[0-9a-fA-F]{64}", text.strip())
    if found is None:
        raise CheckpointError(f"{source} is not {2 * KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(found.group())


class Prefix(Place):
    """A prefix of a bucket.

    Parameters
    ----------
    title
        s3://bucket/prefix.

    Raises
    ------
    CheckpointError
        The name is not of that form.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        bucket, _, prefix = title.removeprefix(SCHEME).partition("/")
        spec = current_spec(os.environ)
        if not _BUCKET.fullmatch(bucket):
            raise CheckpointError(f"{title} is not of the form s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/"
        if spec is None:
            endpoint, region, credentials = None, Config().region(), Credentials(None)
        else:
            endpoint, region = spec.endpoint, spec.region
            credentials = Credentials(endpoint, fixed=emulator_keys(spec.key))
        meter = Meter() if process.current is None else process.current.meter
        self._client = Client("s3", region, endpoint, credentials, meter)
        self._s3 = S3(self._client, bucket)

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn errors of requests into CheckpointError."""
        try:
            yield
        except (ChannelError, UsageError) as error:
            raise CheckpointError(f"cannot {verb} {self.title}: {error}") from error

    def names(self) -> list[str]:
        with self._explained("list"):
            keys = self._s3.list_all(self._prefix)
        return [key.removeprefix(self._prefix) for key in keys]

    def read(self, name: str) -> memoryview | None:
        with self._explained("read"):
            found = self._s3.get(self._prefix + name)
        return None if found is None else memoryview(bytearray(found[0]))

    def write(self, name: str, views: Sequence[memoryview]) -> None:
        nbytes = sum(view.nbytes for view in views)
        if nbytes > MOST_BYTES:
            raise CheckpointError(
                f"the state has {nbytes} bytes, and an object of {self.title} at most {MOST_BYTES};"
                " use more ranks, or a folder"
            )
        with self._explained("write to"):
            self._s3.put(self._prefix + name, views)

    def create(self, name: str, data: bytes) -> bool:
        with self._explained("write to"):
            return self._s3.create(self._prefix + name, data)

    def remove(self, names: Sequence[str]) -> None:
        with self._explained("remove objects of"):
            for first in range(0, len(names), MAX_DELETED):
                keys = [self._prefix + name for name in names[first : first + MAX_DELETED]]
                self._s3.delete(keys)

    def clear(self) -> None:
        self.remove(self.names())
