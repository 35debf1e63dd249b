"""The file format of the store: named arrays behind a header, each with a checksum.

File:     magic "SMPISTOR" · version (4 bytes) · length of the header (4) · BLAKE2b-128 of the header
          (16) · header, JSON · sections
Section:  an array, C order, little endian, at a multiple of 64 bytes; its BLAKE2b-128 is in the header

Integers are stored in the narrowest type that holds them and are restored to the type they had.
What an array means is defined in `store`; where files are kept, in `backends`. A file that is
truncated, altered, of a later version or of another kind is refused with its name.

Checksums find damage, not intent: anybody can make a header with the right checksum, so the type
and range of every value in it are checked before it is used. A file is read, not mapped: what was
verified cannot change afterwards, and a file that is truncated meanwhile is an error, not a SIGBUS.

If you change what a file contains, raise VERSION.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.aws.workers import Workers
from serverless_mpi.errors import StoreError

Array = NDArray[Any]
MAGIC = b"SMPISTOR"
VERSION = 1
ALIGN = 64  # a cache line, and an AVX-512 register
DIGEST_BYTES = 16
_HEAD = struct.Struct(f"<8sII{DIGEST_BYTES}s")
MAX_HEADER_BYTES = 64 << 20
MAX_LENGTH = 1 << 48  # numbers along a dimension
MOST_WIDER = 4  # times: 8 bytes from 2
CORES = os.cpu_count() or 1
_DTYPE = re.compile(r"[<>|=](?:b1|[iu][1248]|f[248])")


def _digest(data: Any) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def narrow(array: Array) -> Array:
    """Integers of 4 bytes and more in the narrowest unsigned type that holds them; anything else as
    it is.
    """
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
    """(facts, arrays) of the file `name`, verified; arrays are views of `data` where their type is
    as stored.

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
            f"{name} has format {version}, of a later serverless_mpi; this one reads up to "
            f"{VERSION}: upgrade it"
        )
    header = data[_HEAD.size : _HEAD.size + length]
    if version < 1 or length > MAX_HEADER_BYTES or header.nbytes < length:
        raise StoreError(f"{name} is cut short, or its header is damaged; write it again")
    if bytes.fromhex(_digest(header)) != digest:
        raise StoreError(
            f"{name} is damaged: its header does not have the checksum it was written with; write "
            "it again"
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
                f"{file} is damaged: its section {self.name!r} does not have the checksum it was "
                "written with; write it again"
            )
        array = (
            np.frombuffer(self.data, self.stored) if self.data.nbytes else np.zeros(0, self.stored)
        )
        return self.name, array.reshape(self.shape).astype(self.wanted, copy=False)


def _sections(file: str, sections: Any, body: memoryview) -> list[_Section]:
    """The sections of a header. Each begins where the one before ends, so that no byte is in two of
    them: all arrays together take at most MOST_WIDER times the file."""
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
