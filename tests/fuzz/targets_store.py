"""Targets of inference: files of the store, activations, files of matrices and images."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from hashlib import blake2b
from pathlib import Path

import numpy as np

from serverless_mpi.errors import StoreError
from serverless_mpi.inference import codec, container, dataset, formats
from tests.fuzz.run import Target

_FOLDER = Path(
    tempfile.mkdtemp(prefix="smpi-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
_SHAPE = (6, 40)
_NEURONS = 16


def _containers() -> list[bytes]:
    arrays = {
        "indptr": np.arange(20), "values": np.linspace(0, 1, 30, dtype=np.float32),
        "table": np.arange(70_000, 70_300).reshape(2, -1), "none": np.empty((0, 3), np.int32),
    }  # fmt: skip
    return [b"".join(container.pack("layer", {"neurons": 4}, arrays))]


def _retag_container(data: bytes) -> bytes:
    """The header's checksum, and that of each section, as they should be."""
    head = container._HEAD
    if len(data) < head.size:
        return data
    magic, version, length, _ = head.unpack_from(data)
    header = data[head.size : head.size + length]
    start = container._aligned(head.size + length)
    try:
        facts = json.loads(header)
        for section in facts["sections"]:
            kind, shape, offset = np.dtype(section[1]), section[3], section[4]
            nbytes = kind.itemsize * int(np.prod(shape))
            body = data[start + offset : start + offset + nbytes]
            section[5] = blake2b(body, digest_size=16).hexdigest()
        new = json.dumps(facts, separators=(",", ":")).encode()
        if len(new) <= length:
            header = new.ljust(length)
            data = data[: head.size] + header + data[head.size + length :]
    except Exception:  # then only the header's checksum is right
        pass
    digest = blake2b(header, digest_size=16).digest()
    return head.pack(magic, version, length, digest) + data[head.size :]


def _unpack(data: bytes) -> object:
    return container.unpack("file", memoryview(data), "layer")


def _rows() -> list[bytes]:
    chance = np.random.default_rng(1)
    general = (chance.random(_SHAPE) * (chance.random(_SHAPE) < 0.4)).astype(np.float32)
    few = (chance.integers(0, 3, _SHAPE)).astype(np.float32)
    rows = (general, few, general[[0, 0, 1, 1, 2, 2]], np.full(_SHAPE, 2, np.float32), 0 * general)
    sparse = np.zeros(_SHAPE, np.float32)
    sparse[2, 3] = 1.5
    return [codec.encode(np.ascontiguousarray(one)) for one in (*rows, sparse)]


def _flags() -> list[bytes]:
    return [codec.encode_set(np.arange(40) % 3 == 0), b""]


def _file(suffix: str, data: bytes) -> Path:
    path = _FOLDER / f"input{suffix}"
    path.write_bytes(data)
    return path


_TSV = b"1\t1\t1\n2\t3\t0.5\n3\t16\t-1e3\n"
_MTX = b"%%MatrixMarket matrix coordinate real general\n% words\n4 16 3\n1 1 1\n2 3 0.5\n4 16 1\n"
_PATTERN = b"%%MatrixMarket matrix coordinate pattern general\n4 16 2\n1 1\n4 16\n"


def _npz() -> list[bytes]:
    entries = formats.Entries(
        np.array([0, 1, 3]), np.array([0, 2, 15]), np.ones(3, np.float32), (4, _NEURONS)
    )
    path = _FOLDER / "good.npz"
    formats.write(path, entries)
    packed, images, coo = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(packed, bits=np.packbits(np.eye(_NEURONS, dtype=np.uint8), axis=1))
    np.savez_compressed(images, images=np.eye(_NEURONS, dtype=np.float32))
    np.savez(
        coo,
        format=np.array(b"coo"),
        shape=np.array((4, 16)),
        row=np.array([0]),
        col=np.array([1]),
        data=np.ones(1),
    )
    return [path.read_bytes(), packed.getvalue(), images.getvalue(), coo.getvalue()]


_HEADER = (
    b"(99999999999,)",
    b"(4611686018427387904, 4)",
    b"'|O'",
    b"'<U9'",
    b"PK\x01\x02",
    struct.pack("<I", 0xFFFFFFFF),
)

TARGETS = (
    Target("store", _containers, _unpack, (StoreError,), _retag_container, bytes_per_byte=20),
    Target("activations", _rows, lambda data: codec.decode(data, _SHAPE), (ValueError,), bytes_per_byte=20),
    Target("sample set", _flags, lambda data: codec.decode_set(data, 40), (ValueError,)),
    Target("tsv", lambda: [_TSV], lambda data: formats.read(_file(".tsv", data), None, _NEURONS), (ValueError,), bytes_per_byte=40),
    Target("mtx", lambda: [_MTX, _PATTERN], lambda data: formats.read(_file(".mtx", data), None, None), (ValueError,), bytes_per_byte=40),
    Target("npz", _npz, lambda data: dataset.read_images(_file(".npz", data), _NEURONS), (ValueError,), words=_HEADER, bytes_per_byte=40),
    Target("images tsv", lambda: [_TSV], lambda data: dataset.read_images(_file(".tsv", data), _NEURONS), (ValueError,), bytes_per_byte=40),
)  # fmt: skip
assert os.access(_FOLDER, os.W_OK)
