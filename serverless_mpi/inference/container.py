"""The file format of the store: named arrays behind a header, each with a checksum.

    file:     magic "SMPISTOR" | version (4 bytes) | length of the header (4)
              | BLAKE2b-128 of the header (16) | header (JSON) | sections
    section:  an array in C order, little endian, at a multiple of 64 bytes;
              its BLAKE2b-128 is in the header

Integers are stored in the narrowest type that holds them, and restored to their former type.
`store` defines the meaning of the arrays, and `backends` where files are kept. A file that is
truncated, altered, of a later version or of another kind is refused with its name.

Checksums find damage, not intent: anyone can make a header with the right checksum, so the type and
range of each of its values are checked before use. A file is read, not mapped: verified bytes
cannot change afterwards, and a file that is truncated meanwhile is an error, not a SIGBUS.

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
MAX_LENGTH = 1 << 48  # largest extent of a dimension
MOST_WIDER = 4  # largest ratio of a restored array to the stored one: 8 bytes from 2
CORES = os.cpu_count() or 1
_DTYPE = re.compile(r"[<>|=](?:b1|[iu][1248]|f[248])")


def _digest(data: memoryview | bytes) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def narrow(array: Array) -> Array:
    """Return an array in the narrowest unsigned type that holds its integers.

    Parameters
    ----------
    array
        Any array.

    Returns
    -------
    ndarray
        The array itself if it has other numbers, a negative one, or fewer than 4 bytes each.
    """
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 4 or (array.size and array.min() < 0):
        return array
    top = int(array.max(initial=0))
    return array.astype(
        np.uint16 if top < 1 << 16 else np.uint32 if top < 1 << 32 else array.dtype, copy=False
    )


def pack(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[memoryview]:
    """Return the bytes of a file.

    Parameters
    ----------
    kind
        What the file holds, as "a partition"; `unpack` compares it.
    facts
        JSON values by name.
    arrays
        Arrays by name; borrowed while the result is in use.

    Returns
    -------
    list of memoryview
        The bytes, in order.
    """
    sections, pieces, offset = [], [], 0
    for name, given in arrays.items():
        array = np.ascontiguousarray(narrow(given))
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        # The type before `narrow` is stored as well, so that `unpack` can restore it.
        data = array.reshape(-1).view(np.uint8).data
        sections.append(
            [name, array.dtype.str, given.dtype.str, list(given.shape), offset, _digest(data)]
        )
        pieces += [data, memoryview(bytes(_aligned(data.nbytes) - data.nbytes))]
        offset = _aligned(offset + data.nbytes)
    header = json.dumps(
        {"kind": kind, **facts, "sections": sections, "size": offset}, separators=(",", ":")
    ).encode()
    # Padding of spaces aligns the first section, and with it all others.
    start = _aligned(_HEAD.size + len(header))
    whole = _HEAD.pack(MAGIC, VERSION, len(header), bytes.fromhex(_digest(header))) + header
    return [memoryview(whole.ljust(start, b" ")), *(piece for piece in pieces if piece.nbytes)]


def unpack(name: str, data: memoryview, kind: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Verify a file and return its contents.

    Parameters
    ----------
    name
        Name of the file, for error texts.
    data
        Its bytes.
    kind
        What it must hold.

    Returns
    -------
    facts : dict
        JSON values by name.
    arrays : dict
        Arrays by name; views of `data`, unless their type is wider than it is stored.

    Raises
    ------
    StoreError
        It is not a file in this format, damaged, of a later version, or of another kind.
    """
    if data.nbytes < _HEAD.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise StoreError(f"{name} is not a file of smpi-infer's store")
    _, version, length, digest = _HEAD.unpack_from(data)
    if version > VERSION:
        raise StoreError(
            f"{name} has format {version}, of a later version of serverless_mpi; this version "
            f"reads formats up to {VERSION}: upgrade it"
        )
    header = data[_HEAD.size : _HEAD.size + length]
    if version < 1 or length > MAX_HEADER_BYTES or header.nbytes < length:
        raise StoreError(f"{name} is cut short, or its header is damaged; write it again")
    if bytes.fromhex(_digest(header)) != digest:
        raise StoreError(
            f"{name} is damaged: its header does not match its checksum; write it again"
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
    pool = Workers(CORES)  # hashing releases the GIL
    try:
        arrays = dict(pool.each(lambda section: section.read(name), checked))
    finally:
        pool.close()
    return facts, arrays


def _short(value: object) -> str:
    """Return a value of a header for an error text."""
    text = str(value) if isinstance(value, (str, int)) else type(value).__name__
    return text if len(text) <= 40 else text[:40] + "..."


def _facts(name: str, header: memoryview) -> dict[str, Any]:
    try:
        facts = json.loads(bytes(header))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not {"kind", "sections", "size"} <= facts.keys():
        raise StoreError(f"{name} is damaged: its header is not valid; write it again")
    return facts


@dataclass(frozen=True)
class _Section:
    """An array in a file; everything is checked except its digest, which `read` verifies."""

    name: str
    stored: np.dtype[Any]
    wanted: np.dtype[Any]
    shape: tuple[int, ...]
    digest: str
    data: memoryview

    def read(self, file: str) -> tuple[str, Array]:
        """Return the name and the array; raise StoreError if its digest is wrong."""
        if _digest(self.data) != self.digest:
            raise StoreError(
                f"{file} is damaged: its section {self.name!r} does not match its checksum; "
                "write it again"
            )
        array = (
            np.frombuffer(self.data, self.stored) if self.data.nbytes else np.zeros(0, self.stored)
        )
        return self.name, array.reshape(self.shape).astype(self.wanted, copy=False)


def _sections(file: str, sections: object, body: memoryview) -> list[_Section]:
    """Check the sections of a header.

    Each begins where the one before ends, so no byte is in two of them, and all arrays together
    take at most MOST_WIDER times the size of the file.
    """
    checked: list[_Section] = []
    start = 0
    for row in sections if isinstance(sections, list) else [None]:
        section = _section(row, body, start)
        if section is None or section.name in [earlier.name for earlier in checked]:
            raise StoreError(
                f"{file} is damaged: its header has impossible sections; write it again"
            )
        checked.append(section)
        start = _aligned(start + section.data.nbytes)
    return checked


def _section(row: object, body: memoryview, start: int) -> _Section | None:
    """Return a section of a header that begins at `start`; None if its row is not valid."""
    types = [str, str, str, list, int, str]
    if not isinstance(row, list) or [type(value) for value in row] != types:
        return None
    name, stored, wanted, shape, offset, digest = row
    possible = all(type(size) is int and 0 <= size < MAX_LENGTH for size in shape)
    if not possible or len(shape) > 8:
        return None
    if not (_DTYPE.fullmatch(stored) and _DTYPE.fullmatch(wanted)):
        return None
    kinds = np.dtype(stored), np.dtype(wanted).newbyteorder("=")
    wider = kinds[0].str in ("<u2", "<u4") and kinds[1].kind in "iu"
    if kinds[0] != kinds[1] and not (wider and kinds[1].itemsize <= MOST_WIDER * kinds[0].itemsize):
        return None
    nbytes = kinds[0].itemsize * math.prod(shape)
    if offset != start or start + nbytes > body.nbytes:
        return None
    return _Section(name, *kinds, tuple(shape), digest, body[start : start + nbytes])
