"""The file format of the store: named arrays behind a header, each checked; and where files lie.

File:     magic "SMPISTOR" · version (4 bytes) · length of the header (4) · its BLAKE2b-128 (16) · header, JSON · sections
Section:  an array, C order, little endian, at a multiple of 64 bytes, with a BLAKE2b-128 of its own in the header

Integers are stored in the narrowest type that holds them and come back as they were.  What an array means is
`store`'s.  A file that is cut short, altered, of a later version or of another kind is refused by its name.

The checksums find damage, not intent: a header may be made by anybody, so nothing in it is used before its type and range
are looked at.  A file is read, not mapped: what was verified stays as it was, whatever happens to the file afterwards, and a file
that becomes shorter is an error and no SIGBUS.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import PART_BYTES, S3
from serverless_mpi.aws.workers import Workers
from serverless_mpi.errors import ChannelError, StoreError, UsageError
from serverless_mpi.inference import files
from serverless_mpi.metering import Meter

Array = NDArray[Any]
MAGIC = b"SMPISTOR"
VERSION = 1
ALIGN = 64  # a cache line, and an AVX-512 register
DIGEST_BYTES = 16
_HEAD = struct.Struct(f"<8sII{DIGEST_BYTES}s")
MAX_HEADER_BYTES = 64 << 20
MAX_LENGTH = 1 << 48  # numbers along a dimension
MOST_WIDER = 4  # times: 8 bytes from 2
MULTIPART_BYTES = 64 << 20
AT_ONCE = 8  # requests
CORES = os.cpu_count() or 1
_DTYPE = re.compile(r"[<>|=](?:b1|[iu][1248]|f[248])")
AWS = "aws"  # the endpoint's name for AWS itself


def _digest(data: Any) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def narrow(array: Array) -> Array:
    """Integers of 4 bytes and more in the narrowest unsigned type that holds them; anything else as it is."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 4 or (array.size and array.min() < 0):
        return array
    top = int(array.max(initial=0))
    return array.astype(
        np.uint16 if top < 1 << 16 else np.uint32 if top < 1 << 32 else array.dtype, copy=False
    )


def pack(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[memoryview]:
    """A file's bytes, in pieces.  facts: whatever JSON can say."""
    sections, pieces, offset = [], [], 0
    for name, given in arrays.items():
        array = np.ascontiguousarray(narrow(given))
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = array.reshape(-1).view(np.uint8).data
        sections.append(
            [name, array.dtype.str, given.dtype.str, list(given.shape), offset, _digest(data)]
        )
        pieces += [data, memoryview(bytes(_aligned(data.nbytes) - data.nbytes))]
        offset = _aligned(offset + data.nbytes)
    header = json.dumps(
        {"kind": kind, **facts, "sections": sections, "size": offset}, separators=(",", ":")
    ).encode()
    start = _aligned(_HEAD.size + len(header))
    whole = _HEAD.pack(MAGIC, VERSION, len(header), bytes.fromhex(_digest(header))) + header
    return [memoryview(whole.ljust(start, b" ")), *(piece for piece in pieces if piece.nbytes)]


def unpack(name: str, data: memoryview, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """(facts, arrays) of the file `name`, verified; arrays are views of `data` where their type is as stored.

    Raises
    ------
    StoreError
        The file is no such file, damaged, or of a later version.
    """
    if data.nbytes < _HEAD.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise StoreError(f"{name} is no file of smpi-infer's store")
    _, version, length, digest = _HEAD.unpack_from(data)
    if version > VERSION:
        raise StoreError(
            f"{name} has format {version}, of a later serverless_mpi; this one reads up to {VERSION}: upgrade it"
        )
    header = data[_HEAD.size : _HEAD.size + length]
    if version < 1 or length > MAX_HEADER_BYTES or header.nbytes < length:
        raise StoreError(f"{name} is cut short, or its header is damaged; write it again")
    if bytes.fromhex(_digest(header)) != digest:
        raise StoreError(
            f"{name} is damaged: its header does not have the checksum it was written with; write it again"
        )
    facts = _facts(name, header)
    held = facts.pop("kind")
    if held != kind:
        raise StoreError(f"{name} holds {_short(held)}, not {kind}")
    body = data[_aligned(_HEAD.size + length) :]
    size, sections = facts.pop("size"), facts.pop("sections")
    if body.nbytes != size:
        raise StoreError(
            f"{name} is cut short or altered: {body.nbytes} bytes of {_short(size)}; write it again"
        )
    checked = _sections(name, sections, body)
    pool = Workers(CORES)  # hashing lets other threads run
    try:
        arrays = dict(pool.each(lambda section: section.read(name), checked))
    finally:
        pool.close()
    return facts, arrays


def _short(value: Any) -> str:
    """A value of a header, for an error."""
    text = str(value) if isinstance(value, (str, int)) else type(value).__name__
    return text if len(text) <= 40 else text[:40] + "..."


def _facts(name: str, header: memoryview) -> dict[str, Any]:
    try:
        facts = json.loads(bytes(header))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not {"kind", "sections", "size"} <= facts.keys():
        raise StoreError(f"{name} has no header that smpi-infer wrote; write it again")
    return facts


@dataclass(frozen=True)
class _Section:
    """An array in a file, as the header has it, checked; but for its digest."""

    name: str
    stored: np.dtype[Any]
    wanted: np.dtype[Any]
    shape: tuple[int, ...]
    digest: str
    data: memoryview

    def read(self, file: str) -> tuple[str, Array]:
        """(name, array)."""
        if _digest(self.data) != self.digest:
            raise StoreError(
                f"{file} is damaged: its section {self.name!r} does not have the checksum it was written with; write it again"
            )
        array = (
            np.frombuffer(self.data, self.stored) if self.data.nbytes else np.zeros(0, self.stored)
        )
        return self.name, array.reshape(self.shape).astype(self.wanted, copy=False)


def _sections(file: str, sections: Any, body: memoryview) -> list[_Section]:
    """The sections of a header.  Each begins where the one before ends, so that no byte is in two of them: all arrays together
    take at most MOST_WIDER times the file."""
    made: list[_Section] = []
    start = 0
    for row in sections if isinstance(sections, list) else [None]:
        section = _section(row, body, start)
        if section is None or section.name in [one.name for one in made]:
            raise StoreError(
                f"{file} is damaged: its header has impossible sections; write it again"
            )
        made.append(section)
        start = _aligned(start + section.data.nbytes)
    return made


def _section(row: Any, body: memoryview, start: int) -> _Section | None:
    """None if there can be no such section from `start` on."""
    if not isinstance(row, list) or [type(one) for one in row] != [str, str, str, list, int, str]:
        return None
    name, stored, wanted, shape, offset, digest = row
    whole = all(type(one) is int and 0 <= one < MAX_LENGTH for one in shape) and len(shape) <= 8
    if not whole or not (_DTYPE.fullmatch(stored) and _DTYPE.fullmatch(wanted)):
        return None
    kinds = np.dtype(stored), np.dtype(wanted).newbyteorder("=")
    wider = kinds[0].str in ("<u2", "<u4") and kinds[1].kind in "iu"
    if kinds[0] != kinds[1] and not (wider and kinds[1].itemsize <= MOST_WIDER * kinds[0].itemsize):
        return None
    nbytes = kinds[0].itemsize * math.prod(shape)
    if offset != start or start + nbytes > body.nbytes:
        return None
    return _Section(name, *kinds, tuple(shape), digest, body[start : start + nbytes])


# --- where files lie --------------------------------------------------------------------------------------------------


class Medium(ABC):
    """A folder or a bucket's prefix."""

    url: str

    @abstractmethod
    def put(self, name: str, pieces: Sequence[memoryview]) -> None:
        """Write a file whole: it is there with all its bytes, or as it was before."""

    @abstractmethod
    def get(self, name: str, limit: int | None = None) -> memoryview | None:
        """A file's bytes, which nobody else can change; None if there is none.

        limit: StoreError if there are more; the machine's memory if not given.
        """

    def read(self, name: str, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
        """`unpack` of the file; StoreError if it is missing."""
        data = self.get(name)
        if data is None:
            raise StoreError(f"{self.url} has no {name}")
        return unpack(f"{self.url}/{name}", data, kind)

    def make(self) -> None:
        """Make the folder or the bucket, if it is missing."""

    def close(self) -> None:
        """Let go of connections."""


class Folder(Medium):
    """A folder."""

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


class Bucket(Medium):
    """A prefix in a bucket; large objects go and come in several ranges at the same time.

    endpoint: URL of an emulator, or AWS.
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
                f"no bucket {self._bucket!r} at {self._where}: make it first, or give `smpi-infer store` --make-bucket"
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
            found = self._s3.get(key, 0, PART_BYTES)
            if found is None:
                self._s3.list(key)  # says whether it is the bucket that is missing
                return None
            first, size = found
            if size > (limit or files.machine_bytes()):
                raise StoreError(
                    f"{self.url}/{name} has {size:,} bytes, more than there is memory for it"
                )
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
        from serverless_mpi.aws import control

        try:
            s3 = control.client("s3", None if self._where == AWS else self._where, self._region)
            if self._bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
                where = (
                    {}
                    if self._region == "us-east-1"
                    else {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
                )
                s3.create_bucket(Bucket=self._bucket, **where)
        except Exception as error:  # botocore has no common base of its own and the socket's errors
            raise StoreError(
                f"{self._where} did not make bucket {self._bucket!r}: {error}"
            ) from error

    def close(self) -> None:
        self._pool.close()
        self._client.close()


def medium(
    url: str | Path,
    endpoint: str | None = None,
    region: str = "us-east-1",
    meter: Meter | None = None,
) -> Medium:
    """A folder's path or s3://bucket/prefix, opened.

    endpoint: needed for s3://, an emulator's URL or "aws" for AWS itself: no account is used that was not named.

    Raises
    ------
    UsageError
        The URL is no such place, or names no endpoint.
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
            f"{text}: name where that bucket is: --endpoint URL of an emulator, or --endpoint {AWS} for AWS itself, "
            "which bills its requests"
        )
    return Bucket(bucket, prefix.strip("/"), endpoint, region, meter or Meter())
