"""Activation rows and sets of samples as bytes, exactly, by whichever of a few forms is measured to be the shortest.

The receiver knows the shape, so it is not in the bytes.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

_ZERO, _CONSTANT, _DICTIONARY, _VALUES = 0, 1, 2, 3
_DEFLATE_LEVEL = 1  # a higher level takes longer than the bytes it saves


def encode(rows: Floats) -> bytes:
    """Activation rows as bytes: nothing if all are 0, one value if all are equal, else a bitmap of the nonzeros and these."""
    nonzero = rows != 0
    if not nonzero.any():
        return bytes([_ZERO])
    bitmap = np.packbits(nonzero).tobytes()
    values = rows[nonzero]
    if (values == values[0]).all():
        kind, body = _CONSTANT, values[:1].tobytes()
    else:
        kind, body = _VALUES, values.tobytes()
    return bytes([kind]) + zlib.compress(bitmap + body, _DEFLATE_LEVEL)


def decode(data: bytes | memoryview, shape: tuple[int, int]) -> Floats:
    """The rows of that shape.

    Raises
    ------
    ValueError
        The bytes are not rows of that shape: the ranks' networks differ.
    """
    data = memoryview(data)
    if data[:1] == bytes([_ZERO]):
        return np.zeros(shape, np.float32)
    plain = zlib.decompress(data[1:])
    count = shape[0] * shape[1]
    width = -(-count // 8)
    bits = np.unpackbits(np.frombuffer(plain[:width], np.uint8), count=count)
    nonzeros = int(bits.sum())
    if len(plain) != width + 4 * (min(1, nonzeros) if data[0] == _CONSTANT else nonzeros):
        raise ValueError(f"{len(data)} bytes are no activation rows of shape {shape}; all ranks must hold the same network")
    nonzero = bits.astype(bool).reshape(shape)
    values = np.frombuffer(plain, np.float32, offset=width)
    rows = np.zeros(shape, np.float32)
    rows[nonzero] = values
    return rows


def encode_set(flags: Flags) -> bytes:
    """A set of samples, one flag each: nothing if all are in it, else a bitmap."""
    return b"" if flags.all() else zlib.compress(np.packbits(flags).tobytes(), _DEFLATE_LEVEL)


def decode_set(data: bytes | memoryview, count: int) -> Flags:
    """The flags of `count` samples; raises ValueError if they are not that many."""
    if not len(data):
        return np.ones(count, np.bool_)
    bitmap = np.frombuffer(zlib.decompress(data), np.uint8)
    if len(bitmap) != -(-count // 8):
        raise ValueError(f"a set of {8 * len(bitmap)} samples came for a batch of {count}; all ranks must run the same batch")
    return np.unpackbits(bitmap, count=count).astype(np.bool_)
