"""Backends of a store: a folder, or a prefix of an S3 bucket.

A backend writes a file atomically and reads it into memory of its own. `store` names the files, and
`container` defines their format; neither depends on where they are kept.

No AWS account is used unless the caller names it: an s3:// URL needs an endpoint, which is the URL
of an emulator, or `AWS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import PART_BYTES, S3
from serverless_mpi.aws.workers import Workers
from serverless_mpi.errors import ChannelError, StoreError, UsageError
from serverless_mpi.inference import files
from serverless_mpi.inference.container import Array, unpack
from serverless_mpi.metering import Meter

AWS = "aws"  # the endpoint's name for AWS itself
MULTIPART_BYTES = 64 << 20  # larger objects are uploaded in parts
AT_ONCE = 8  # concurrent requests for one object


class Backend(ABC):
    """A folder or a prefix of a bucket; `url` names it in messages."""

    url: str

    @abstractmethod
    def put(self, name: str, pieces: Sequence[memoryview]) -> None:
        """Write a file atomically: afterwards it has all these bytes, or is as it was before.

        Parameters
        ----------
        name
            File name, without a folder.
        pieces
            The contents, in order; borrowed for the call.

        Raises
        ------
        StoreError
            The backend does not accept it.
        """

    @abstractmethod
    def get(self, name: str, limit: int | None = None) -> memoryview | None:
        """Read a file.

        Parameters
        ----------
        name
            File name, without a folder.
        limit
            Largest size in bytes; None for the machine's memory.

        Returns
        -------
        memoryview or None
            Its bytes, in memory that only the caller refers to; None if there is no such file.

        Raises
        ------
        StoreError
            The file is larger, or cannot be read.
        """

    def read(self, name: str, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """Read and verify a file in the format of `container`.

        Parameters
        ----------
        name
            File name, without a folder.
        kind
            What the file must hold, as in `container.pack`.

        Returns
        -------
        tuple
            Its facts and its arrays.

        Raises
        ------
        StoreError
            The file is missing, damaged, or of another kind.
        """
        data = self.get(name)
        if data is None:
            raise StoreError(f"{self.url} has no {name}")
        return unpack(f"{self.url}/{name}", data, kind)

    def make(self) -> None:
        """Create the bucket if it does not exist; a folder is created by `put`."""

    def close(self) -> None:
        """Close connections."""


class Folder(Backend):
    """A folder of this machine.

    Parameters
    ----------
    path
        The folder; `put` creates it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.url = str(path)

    def put(self, name: str, pieces: Sequence[memoryview]) -> None:
        path = self._path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as file:
                for piece in pieces:
                    file.write(piece)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error

    def get(self, name: str, limit: int | None = None) -> memoryview | None:
        path = self._path / name
        try:
            with files.opened(path, limit) as source:
                return memoryview(source.file.read(source.size))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a folder, a device, or NUL in the name
            raise StoreError(str(error)) from error


class Bucket(Backend):
    """A prefix of an S3 bucket; large objects are transferred in several ranges at the same time.

    Parameters
    ----------
    bucket, prefix
        Name of the bucket, and prefix of object keys.
    endpoint
        URL of an emulator, or AWS.
    region
        AWS region.
    meter
        Counts the requests.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str, region: str, meter: Meter) -> None:
        address = None if endpoint == AWS else endpoint
        self._client = Client("s3", region, address, Credentials(address), meter)
        self.meter = meter
        self._s3 = S3(self._client, bucket)
        self._pool = Workers(AT_ONCE)
        self._bucket, self._prefix, self._where, self._region = bucket, prefix, endpoint, region
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")

    def _refuse(self, error: ChannelError) -> StoreError:
        if "NoSuchBucket" in str(error):
            return StoreError(
                f"no bucket {self._bucket!r} at {self._where}: create it first, or use `smpi-infer "
                "store --make-bucket`"
            )
        return StoreError(str(error))

    def put(self, name: str, pieces: Sequence[memoryview]) -> None:
        try:
            if sum(piece.nbytes for piece in pieces) <= MULTIPART_BYTES:
                self._s3.put(self._key(name), pieces)
            else:
                whole = memoryview(b"".join(pieces))
                parts = [
                    (whole[start : start + PART_BYTES],)
                    for start in range(0, whole.nbytes, PART_BYTES)
                ]
                self._s3.put_multipart(self._key(name), parts, self._pool.each)
        except ChannelError as error:
            raise self._refuse(error) from error

    def get(self, name: str, limit: int | None = None) -> memoryview | None:
        key = self._key(name)
        try:
            # The first range also returns the size; most files need no second request.
            head = self._s3.get(key, 0, PART_BYTES)
            if head is None:
                self._s3.list(key)  # raises if the bucket does not exist
                return None
            first, size = head
            if size > (limit or files.machine_bytes()):
                raise StoreError(f"{self.url}/{name} has {size:,} bytes; that exceeds the memory")
            if first.nbytes == size:
                return first
            whole = memoryview(bytearray(size))
            whole[: first.nbytes] = first

            def fetch(start: int) -> None:
                into = whole[start : start + PART_BYTES]
                part = self._s3.get(key, start, into.nbytes, into)
                if part is None or part[0].nbytes != into.nbytes:
                    raise StoreError(f"{self.url}/{name} was altered while it was read")
                if part[0].obj is not whole.obj:
                    into[:] = part[0]

            self._pool.each(fetch, range(first.nbytes, size, PART_BYTES))
            return whole.toreadonly()
        except ChannelError as error:
            raise self._refuse(error) from error

    def make(self) -> None:
        from serverless_mpi.aws import control  # imports boto3, which `put` and `get` do not need

        try:
            s3 = control.client("s3", None if self._where == AWS else self._where, self._region)
            if self._bucket not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
                where = (
                    {}
                    if self._region == "us-east-1"
                    else {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
                )
                s3.create_bucket(Bucket=self._bucket, **where)
        except Exception as error:  # botocore's errors and those of sockets have no common base
            raise StoreError(
                f"{self._where} did not create bucket {self._bucket!r}: {error}"
            ) from error

    def close(self) -> None:
        self._pool.close()
        self._client.close()


def open_backend(
    url: str | Path,
    endpoint: str | None = None,
    region: str = "us-east-1",
    meter: Meter | None = None,
) -> Backend:
    """Open a backend.

    Parameters
    ----------
    url
        Path of a folder, or s3://bucket/prefix.
    endpoint
        For s3://: URL of an emulator, or "aws" for AWS itself.
    region
        AWS region.
    meter
        Counts the requests; None for a meter of its own.

    Returns
    -------
    Backend
        The caller closes it.

    Raises
    ------
    UsageError
        The URL is not of these kinds, or an s3:// URL comes without an endpoint.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Folder(text)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise UsageError(f"{text} is neither a folder nor s3://bucket/prefix")
    if endpoint is None:
        raise UsageError(
            f"{text}: name where that bucket is: --endpoint URL of an emulator, or --endpoint "
            f"{AWS} for AWS itself, "
            "which bills its requests"
        )
    return Bucket(bucket, prefix.strip("/"), endpoint, region, meter or Meter())
