"""One rank's part of a checkpoint: its state as bytes, and back.

Layout, little endian: 8 bytes of magic, the length of the head (4 bytes), the head (JSON), the tag
of the head (32 bytes), and from the next multiple of 64 the regions, each at a multiple of 64: the
pickle stream (protocol 5), then its out-of-band buffers, which are the arrays. The head has the
identity of the part, and the length and SHA-256 of each region.

Invariants:

- Nothing is unpickled before the tag, the identity and every digest have been compared.
- With a key the tag authenticates the part. Without one it is a checksum, and whoever reads the
  part must know by other means who wrote it (`places.Folder` asks the file system).
- A `Staging` holds one snapshot. Its memory is used again by the next one, so a rank holds one copy
  of its state, however often it saves.

If you change the layout, also change MAGIC.

References
----------
PEP 574, pickle protocol 5 with out-of-band data.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from serverless_mpi.core import tags
from serverless_mpi.errors import CheckpointError

MAGIC = b"SMPICKP1"
_PREFIX = struct.Struct("<8sI")
_TAG_BYTES = 32
_ALIGN = 64
_MOST_HEAD = 64 << 20
_TOUCHED_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class PartIdentity:
    """Which part of which checkpoint the bytes are.

    Attributes
    ----------
    number
        Number of the checkpoint in the log of its place.
    owner
        Random name of the run that wrote it.
    rank, size
        The rank, and how many ranks the checkpoint has.
    step
        The first step that is not part of the state.
    """

    number: int
    owner: str
    rank: int
    size: int
    step: int

    @property
    def name(self) -> str:
        """Name of the file or object."""
        return f"part-{self.number:010d}-{self.owner}-{self.rank:06d}"


def seal(covered: bytes, key: bytes) -> bytes:
    """Return the tag of some bytes: a keyed one, or without a key a checksum.

    Parameters
    ----------
    covered
        The bytes.
    key
        32 bytes, or none.
    """
    if key:
        return tags.make(key, tags.Purpose.CHECKPOINT, covered, _TAG_BYTES)
    return sha256(covered).digest()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def pickled(state: Mapping[str, Any]) -> tuple[bytes, list[memoryview]]:
    """Return the pickle stream of a state, and its out-of-band buffers, which are not copied.

    Parameters
    ----------
    state
        Name -> value.

    Raises
    ------
    CheckpointError
        A value cannot be pickled; the text names it.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(dict(state), 5, buffer_callback=buffers.append)
        return stream, [buffer.raw() for buffer in buffers]
    except Exception as error:  # whatever a __reduce__ of the program raises
        for name, value in state.items():
            try:
                pickle.dumps(value, 5, buffer_callback=lambda _: None)
            except Exception as own:
                raise CheckpointError(
                    f"state[{name!r}] cannot be pickled ({type(own).__name__}: {own}); omit it from"
                    " the state, and make it again when the program starts"
                ) from error
        raise CheckpointError(f"the state cannot be pickled: {error}") from error


def size_of(state: Mapping[str, Any]) -> int:
    """Return the bytes that a snapshot of a state needs.

    Parameters
    ----------
    state
        Name -> value.
    """
    return sum(_aligned(buffer.nbytes) for buffer in pickled(state)[1])


class Staging:
    """Memory for the snapshot that is being saved."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def reserve(self, nbytes: int) -> None:
        """Have memory for a snapshot, and touch it: first use takes 25 times as long as the copy.

        Parameters
        ----------
        nbytes
            Bytes of its buffers.
        """
        if self._memory.nbytes < nbytes:
            self._memory = np.empty(0, np.uint8)  # the old memory is freed first
            self._memory = np.empty(nbytes, np.uint8)
            for start in range(0, nbytes, _TOUCHED_AT_ONCE):  # other threads run in between
                self._memory[start : start + _TOUCHED_AT_ONCE] = 0

    def take(self, state: Mapping[str, Any]) -> list[memoryview]:
        """Copy a state; return its regions, which the next call overwrites.

        Parameters
        ----------
        state
            Name -> value; the program may change it when the call returns.

        Raises
        ------
        CheckpointError
            A value cannot be pickled.
        """
        stream, buffers = pickled(state)
        self.reserve(sum(_aligned(buffer.nbytes) for buffer in buffers))
        regions, start = [memoryview(stream)], 0
        for buffer in buffers:
            end = start + buffer.nbytes
            if buffer.nbytes:
                self._memory[start:end] = np.frombuffer(buffer, np.uint8)
            regions.append(self._memory[start:end].data)
            start = _aligned(end)
        return regions


def encode(
    regions: Sequence[memoryview], identity: PartIdentity, key: bytes = b""
) -> list[memoryview]:
    """Return the bytes of a part, as views to be written one after the other.

    Parameters
    ----------
    regions
        Of `Staging.take`; borrowed.
    identity
        Which part it is.
    key
        32 bytes to authenticate it, or none.
    """
    head = json.dumps(
        {
            **asdict(identity),
            "lengths": [region.nbytes for region in regions],
            "digests": [sha256(region).hexdigest() for region in regions],
        }
    ).encode()
    start = MAGIC + struct.pack("<I", len(head)) + head
    views = [memoryview(start + seal(start, key))]
    at = views[0].nbytes
    for region in regions:
        views += [memoryview(bytes(_aligned(at) - at)), region]
        at = _aligned(at) + region.nbytes
    return [view for view in views if view.nbytes]


def decode(data: memoryview, identity: PartIdentity, key: bytes = b"") -> dict[str, Any]:
    """Return the state in a part.

    Parameters
    ----------
    data
        All bytes of the part, writable; arrays of the state use this memory.
    identity
        Which part it must be.
    key
        The key of `encode`.

    Raises
    ------
    CheckpointError
        The bytes are not that part, or are damaged; nothing has been unpickled.
    """
    head, at = _head(data, key)
    if {name: head.get(name) for name in asdict(identity)} != asdict(identity):
        raise CheckpointError("it is another part")
    regions = []
    for length, digest in zip(head["lengths"], head["digests"], strict=True):
        at = _aligned(at)
        region = data[at : at + length]
        at += length
        if region.nbytes != length or sha256(region).hexdigest() != digest:
            raise CheckpointError("it is damaged: a checksum is wrong")
        regions.append(region)
    try:
        state = pickle.loads(regions[0], buffers=regions[1:])
    except Exception as error:  # a class that no longer exists, or one that does not take its state
        raise CheckpointError(
            f"this program cannot read it ({type(error).__name__}: {error}); run the version of the"
            " program that wrote it"
        ) from error
    return dict(state)


def _head(data: memoryview, key: bytes) -> tuple[dict[str, Any], int]:
    """Return the verified head of a part, and where it ends."""
    try:
        magic, length = _PREFIX.unpack_from(data)
    except struct.error:
        raise CheckpointError("it is damaged: it is cut off") from None
    if magic != MAGIC:
        raise CheckpointError("it is not a checkpoint of this version of serverless_mpi")
    end = _PREFIX.size + length
    if length > _MOST_HEAD or data.nbytes < end + _TAG_BYTES:
        raise CheckpointError("it is damaged: it is cut off")
    tag = bytes(data[end : end + _TAG_BYTES])
    if not tags.same(tag, seal(bytes(data[:end]), key)):
        reason = ", or was written with another key" if key else ""
        raise CheckpointError(f"it is damaged{reason}")
    head: dict[str, Any] = json.loads(bytes(data[_PREFIX.size : end]))
    return head, end + _TAG_BYTES
