"""Exact codec of activation rows and sets of samples: the shortest of a few forms, by measurement.

Rows are treated as 32-bit integers, so every float keeps its bits. The forms, tried in this order:

1. All zero: no data. All equal: one value.
2. Duplicate rows: the distinct rows, and for each row the number of its distinct row.
3. Otherwise the positions of the nonzeros (everywhere, a bitmap, or gaps), and the nonzeros: codes
   of a dictionary if few are distinct, else their bytes in order or in four planes of bytes,
   whichever compresses a sample better.

Each section is compressed, unless a sample shows that compression does not pay. Usually only one or
two of the planes of floats compress, so zlib at its lowest level is fast enough.

Invariant: the receiver knows the shape and accepts no section longer than rows of that shape need,
so a few bytes of deflate cannot take more memory than the rows. If you add a form, bound it in
`_open`.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Data = bytes | memoryview

# These numbers are in messages: ranks of one job must agree on them.
_ZERO, _CONSTANT, _REPEATED, _GENERAL = range(4)  # forms of all rows
_EVERYWHERE, _BITMAP, _GAPS = range(3)  # forms of the positions of nonzeros
_ONE, _CODES, _PLAIN, _PLANES = range(4)  # forms of the nonzeros
_RAW, _ZLIB = range(2)  # forms of a section

_SECTIONS = {_ONE: 1, _CODES: 2, _PLAIN: 1, _PLANES: 4}  # form of nonzeros -> sections
_SECTION = struct.Struct("<BI")  # head of a section: form, bytes that follow
_DICTIONARY = 256  # most distinct numbers: a code is a byte
_SAMPLE = 1 << 14  # bytes of a section that are compressed for a decision
_WORTH = 0.97  # a compressed section must be shorter than this share of its length
_LEVEL = 1  # of zlib; a higher level takes longer than the transfer of the bytes it saves


def encode(rows: Floats) -> bytes:
    """Encode activation rows.

    Parameters
    ----------
    rows
        (rows, samples) float32, C-contiguous.

    Returns
    -------
    bytes
        The coded rows, without the shape: the receiver must know it.
    """
    return _encode(rows.view(np.uint32))


def decode(data: Data, shape: tuple[int, int]) -> Floats:
    """Decode activation rows.

    Parameters
    ----------
    data
        What `encode` returned.
    shape
        (rows, samples).

    Returns
    -------
    ndarray
        float32 of that shape, with the bits that were encoded.

    Raises
    ------
    ValueError
        The bytes are not rows of that shape.
    """
    try:
        return _decode(memoryview(data), shape).view(np.float32)
    except (struct.error, ValueError, IndexError, TypeError, zlib.error) as error:
        raise ValueError(
            f"{len(data)} bytes are not activation rows of shape {shape} ({error})"
        ) from error


def _encode(bits: Bits) -> bytes:
    """Encode rows in the first form that applies; distinct rows are encoded recursively."""
    first = int(bits.flat[0]) if bits.size else 0
    if (bits == first).all():
        return bytes([_ZERO]) if not first else struct.pack("<BI", _CONSTANT, first)
    heads, which = _distinct(bits)
    if len(heads) == len(bits):
        return bytes([_GENERAL]) + _general(bits)
    index = _section(which.astype(np.uint16 if len(heads) <= 1 << 16 else np.uint32).tobytes())
    return struct.pack("<BI", _REPEATED, len(heads)) + index + _encode(bits[heads])


def _decode(data: memoryview, shape: tuple[int, int]) -> Bits:
    """Decode rows of any form."""
    distinct, which = shape[0], None
    # A loop and not a recursion: bytes of a peer may be nested deeper than the call stack permits.
    while data[0] == _REPEATED:
        heads = struct.unpack_from("<I", data, 1)[0]
        packed, data = _open(data[5:], 4 * distinct)
        index = np.frombuffer(packed, np.uint16 if heads <= 1 << 16 else np.uint32)
        if len(index) != distinct or heads >= distinct or (index >= heads).any():
            raise ValueError(f"{len(index)} rows, {heads} of them distinct")
        distinct, which = heads, index if which is None else index[which]
    bits = _distinct_rows(data, (distinct, shape[1]))
    return bits if which is None else bits[which]


def _distinct_rows(data: memoryview, shape: tuple[int, int]) -> Bits:
    """Decode rows that are not in the form with duplicates."""
    kind = data[0]
    if kind in (_ZERO, _CONSTANT):
        return np.full(
            shape, struct.unpack_from("<I", data, 1)[0] if kind == _CONSTANT else 0, np.uint32
        )
    if kind != _GENERAL:
        raise ValueError(f"unknown form {kind}")
    return _read_general(data[1:], shape)


def encode_set(flags: Flags) -> bytes:
    """Encode a set of samples.

    Parameters
    ----------
    flags
        (samples,) bool: whether a sample is in the set.

    Returns
    -------
    bytes
        b"" for the set of all samples, else a bitmap, perhaps compressed.
    """
    return b"" if flags.all() else _section(np.packbits(flags).tobytes())


def decode_set(data: Data, count: int) -> Flags:
    """Decode a set of samples.

    Parameters
    ----------
    data
        What `encode_set` returned.
    count
        Number of samples.

    Returns
    -------
    ndarray
        (count,) bool.

    Raises
    ------
    ValueError
        The bytes are not a set, or a set of another number of samples.
    """
    if not len(data):
        return np.ones(count, np.bool_)
    try:
        bitmap = np.frombuffer(_open(memoryview(data), len(data) + -(-count // 8))[0], np.uint8)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"{len(data)} bytes are not a set of samples ({error})") from error
    if len(bitmap) != -(-count // 8):
        raise ValueError(
            f"a set of {8 * len(bitmap)} samples arrived for a batch of {count}; all ranks must "
            "run the same batch"
        )
    return np.unpackbits(bitmap, count=count).astype(np.bool_)


# --- rows -----------------------------------------------------------------------------------------


def _distinct(bits: Bits) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each kind, ascending, and for each row the number of its kind.

    Rows with equal keys are compared in full; a later row that differs from the first one with its
    key starts a kind of its own, so a duplicate may be missed, but no row is changed.
    """
    # About 64 columns distinguish most rows.
    probe = np.ascontiguousarray(bits[:, :: max(1, bits.shape[1] // 64)])
    seen: dict[bytes, int] = {}
    heads: list[int] = []
    which = np.empty(len(bits), np.int64)
    for row, key in enumerate(probe):
        known = seen.get(key.tobytes())
        if known is None or not np.array_equal(bits[heads[known]], bits[row]):
            known = len(heads)
            seen[key.tobytes()] = known
            heads.append(row)
        which[row] = known
    return np.array(heads, np.int64), which


def _general(bits: Bits) -> bytes:
    """Encode rows as the positions of their nonzeros and the nonzeros."""
    nonzero = bits != 0
    values = bits[nonzero]
    if len(values) == bits.size:
        where, places = _EVERYWHERE, b""
    elif len(values) * 16 < bits.size:  # most gaps take one or two bytes, fewer than the bitmap
        where, places = _GAPS, _gaps(np.flatnonzero(nonzero))
    else:
        where, places = _BITMAP, np.packbits(nonzero).tobytes()
    form, sections = _numbers(values)
    return (
        struct.pack("<BBI", where, form, len(values))
        + _section(places)
        + b"".join(map(_section, sections))
    )


def _read_general(data: memoryview, shape: tuple[int, int]) -> Bits:
    """Decode the result of `_general`."""
    where, form, count = struct.unpack_from("<BBI", data)
    size = shape[0] * shape[1]
    if count > size:
        raise ValueError(f"{count} numbers")
    places, data = _open(data[6:], 8 * size + 1)
    sections = []
    for _ in range(_SECTIONS.get(form, 0)):
        section, data = _open(data, 4 * max(count, _DICTIONARY))
        sections.append(section)
    if data.nbytes:
        raise ValueError(f"{data.nbytes} bytes too many")
    values = _read_numbers(form, sections, count)
    if where == _EVERYWHERE:
        return values.reshape(shape)
    rows = np.zeros(size, np.uint32)
    if where == _GAPS:
        rows[_read_gaps(places, count, size)] = values
    else:
        if len(places) != -(-size // 8):
            raise ValueError(f"a bitmap of {8 * len(places)}")
        rows[np.unpackbits(np.frombuffer(places, np.uint8), count=size).view(np.bool_)] = values
    return rows.reshape(shape)


def _gaps(at: NDArray[np.int64]) -> bytes:
    """Encode ascending positions: the width of their differences in bytes, then these."""
    gaps = np.diff(at, prepend=-1) - 1
    most = int(gaps.max())
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 8
    return bytes([width]) + gaps.astype(f"<u{width}").tobytes()


def _read_gaps(data: Data, count: int, size: int) -> NDArray[np.int64]:
    if data[0] not in (1, 2, 8):
        raise ValueError(f"gaps of {data[0]} bytes")
    gaps = np.frombuffer(data, f"<u{data[0]}", offset=1) if len(data) > 1 else np.zeros(0, np.uint8)
    if len(gaps) and gaps.max() >= size:
        raise ValueError("a gap beyond the end")
    at: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(at) != count or (count and at[-1] >= size):
        raise ValueError(f"{len(at)} places")
    return at


def _numbers(values: Bits) -> tuple[int, list[bytes]]:
    """Return the form and the sections of numbers."""
    stride = max(1, len(values) // 1024)
    few = len(values) < 2 * _DICTIONARY or len(np.unique(values[::stride])) <= _DICTIONARY
    if few:
        words, codes = np.unique(values, return_inverse=True)
        if len(words) == 1:
            return _ONE, [words.tobytes()]
        if len(words) <= min(_DICTIONARY, len(values) // 2):
            return _CODES, [words.tobytes(), codes.astype(np.uint8).tobytes()]
    sample = values[: _SAMPLE // 4]
    planes = [plane.tobytes() for plane in sample.view(np.uint8).reshape(-1, 4).T]
    if sum(len(zlib.compress(plane, _LEVEL)) for plane in planes) < len(
        zlib.compress(sample.tobytes(), _LEVEL)
    ):
        return _PLANES, [plane.tobytes() for plane in values.view(np.uint8).reshape(-1, 4).T]
    return _PLAIN, [values.tobytes()]


def _read_numbers(form: int, sections: list[memoryview], count: int) -> Bits:
    if form == _ONE:
        return np.full(count, np.frombuffer(sections[0], np.uint32)[0], np.uint32)
    if form == _CODES:
        values: Bits = np.frombuffer(sections[0], np.uint32)[np.frombuffer(sections[1], np.uint8)]
    elif form == _PLAIN:
        values = np.frombuffer(sections[0], np.uint32)
    elif form == _PLANES:
        planes = np.stack([np.frombuffer(section, np.uint8) for section in sections], axis=1)
        values = np.ascontiguousarray(planes).view(np.uint32).reshape(-1)
    else:
        raise ValueError(f"unknown form {form} of numbers")
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers")
    return values


# --- sections -------------------------------------------------------------------------------------


def _section(data: bytes) -> bytes:
    """Return a section of a message: its head and its bytes, compressed if that pays."""
    middle = len(data) // 2
    sample = data if len(data) <= _SAMPLE else data[middle : middle + _SAMPLE // 4]
    packed = zlib.compress(sample, _LEVEL)
    if len(packed) >= _WORTH * len(sample):
        return _SECTION.pack(_RAW, len(data)) + data
    if sample is not data:
        packed = zlib.compress(data, _LEVEL)
    return _SECTION.pack(_ZLIB, len(packed)) + packed


def _open(data: memoryview, most: int) -> tuple[memoryview, memoryview]:
    """Return the bytes of a section, at most `most` of them, and the data after the section."""
    how, length = _SECTION.unpack_from(data)
    end = _SECTION.size + length
    if how not in (_RAW, _ZLIB) or end > data.nbytes:
        raise ValueError("a damaged section")
    body = data[_SECTION.size : end]
    if how == _ZLIB:
        stream = zlib.decompressobj()
        body = memoryview(stream.decompress(body, most + 1))
        if body.nbytes <= most and not (stream.eof and not stream.unused_data):
            raise ValueError("a damaged section")
    if body.nbytes > most:
        raise ValueError(f"a section of more than {most} bytes")
    return body, data[end:]
