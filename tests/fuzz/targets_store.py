"""Files of the store with valid checksums, so that the fuzzer reaches the code behind the check."""

from __future__ import annotations

import json
from hashlib import blake2b

import numpy as np

from serverless_mpi.errors import StoreError
from serverless_mpi.inference import container
from tests.fuzz.run import Target


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


TARGETS = (
    Target("store", _containers, _unpack, (StoreError,), _retag_container, bytes_constant=4 << 20),
)
