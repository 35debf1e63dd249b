"""mpi4py's message specifications: which memory, how many, of what type.  Nothing else reads them.

A specification is a buffer (its type and count are found out), or a list:
[buf, type], [buf, count], [buf, count, type], [buf, (count, displacement), type];
for vectors [buf, counts], [buf, counts, displs, type], [buf, (counts, displs), type];
for Alltoallw [buf, counts, displs, types].  Types may be NumPy codes such as 'd'.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from serverless_mpi.api.datatype import BYTE, Datatype, from_numpy
from serverless_mpi.errors import ERR_BUFFER, ERR_COUNT, ERR_TRUNCATE, ERR_TYPE, MPIException


class InPlaceType(int):
    """The type of IN_PLACE."""

    def __repr__(self) -> str:
        return "IN_PLACE"

    def __bool__(self) -> bool:
        return True


class BottomType(int):
    """The type of BOTTOM."""

    def __repr__(self) -> str:
        return "BOTTOM"


IN_PLACE = InPlaceType(-1)
BOTTOM = BottomType(0)

_NO_BYTES = memoryview(bytearray())


def as_bytes(obj: Any, readonly: bool) -> tuple[memoryview, np.dtype[Any] | None]:
    """(bytes of `obj` without a copy, its NumPy type or None for plain bytes).

    Raises
    ------
    MPIException
        ERR_BUFFER: not contiguous, or not writable though it is to be written.
    TypeError
        It has no buffer.
    """
    if obj is None:
        return _NO_BYTES, None
    if isinstance(obj, (bytes, bytearray)):
        view, dtype = memoryview(obj), None
    elif isinstance(obj, np.ndarray) or hasattr(obj, "__array_interface__"):
        view, dtype = _array_bytes(np.asarray(obj))
    elif isinstance(obj, memoryview) or not hasattr(obj, "__dlpack__"):
        view = memoryview(obj)
        if view.format in ("B", "c", None) and view.contiguous:
            view, dtype = (view.cast("B") if view.nbytes else _NO_BYTES), None
        else:
            view, dtype = _array_bytes(np.asarray(view))
    else:
        view, dtype = _array_bytes(np.from_dlpack(obj))
    if not readonly and view.readonly and view.nbytes:
        raise MPIException(ERR_BUFFER, f"the {type(obj).__name__} to receive into is read-only")
    return view, dtype


def _array_bytes(array: np.ndarray[Any, Any]) -> tuple[memoryview, np.dtype[Any]]:
    if array.dtype.hasobject:
        raise MPIException(ERR_TYPE, "an array of Python objects has no bytes to send; use the lower-case call")
    if array.size == 0:
        return _NO_BYTES, array.dtype
    if not array.flags.c_contiguous:
        if not array.flags.f_contiguous:
            raise MPIException(
                ERR_BUFFER, f"an array with strides {array.strides} is not contiguous; send numpy.ascontiguousarray(array)"
            )
        array = array.T
    return memoryview(array.reshape(-1).view(np.uint8)), array.dtype


def _is_spec(spec: Any) -> bool:
    return isinstance(spec, (list, tuple))


def _as_type(datatype: Any, dtype: np.dtype[Any] | None) -> Datatype:
    if isinstance(datatype, str):
        return Datatype.fromcode(datatype)
    if datatype is None:
        return BYTE if dtype is None else from_numpy(dtype)
    if not isinstance(datatype, Datatype):
        raise TypeError(f"message: a datatype or its code is needed, not {type(datatype).__name__}")
    datatype.check_committed()
    return datatype


class _Memory:
    """The bytes of a message's buffer and where they begin; BOTTOM is address 0."""

    def __init__(self, obj: Any, readonly: bool) -> None:
        self.bottom = isinstance(obj, BottomType)
        self.view, self.dtype = (_NO_BYTES, None) if self.bottom else as_bytes(obj, readonly)

    def pack(self, datatype: Datatype, offset: int, count: int) -> memoryview:
        view, offset = self._window(datatype, offset, count)
        return datatype.pack(view, offset, count)

    def unpack(self, data: memoryview, datatype: Datatype, offset: int, count: int) -> None:
        view, offset = self._window(datatype, offset, count)
        datatype.unpack(data, view, offset, count)

    def _window(self, datatype: Datatype, offset: int, count: int) -> tuple[memoryview, int]:
        low, high = datatype.span(count)
        if self.bottom:
            address, length = offset + low, high - low
            window = (ctypes.c_char * length).from_address(address) if length else bytearray()
            return memoryview(window).cast("B"), -low
        if offset + low < 0 or offset + high > self.view.nbytes:
            raise MPIException(
                ERR_BUFFER,
                f"{count} elements at byte {offset} touch bytes {offset + low} to {offset + high} of a buffer of {self.view.nbytes}",
            )
        return self.view, offset


class Message:
    """One block, or `blocks` equal ones, of a buffer.

    count: elements of one block; nbytes: of one block, packed.
    """

    def __init__(self, spec: Any, readonly: bool, blocks: int = 1) -> None:
        self.in_place = isinstance(spec, InPlaceType)
        obj, count, displacement, datatype = None, None, 0, None
        if _is_spec(spec):
            obj, count, displacement, datatype = _split_spec(spec)
        elif not self.in_place:
            obj = spec
        self._memory = _Memory(obj, readonly)
        self.datatype = _as_type(datatype, self._memory.dtype)
        extent = self.datatype.extent
        self._offset = displacement * extent
        if count is None:
            room = self._memory.view.nbytes - self._offset
            if self._memory.view.nbytes and extent <= 0:
                raise MPIException(ERR_TYPE, f"the count cannot be found out for a datatype of extent {extent}")
            items, rest = divmod(room, extent) if self._memory.view.nbytes else (0, 0)
            if rest and self.datatype.size != self.datatype.extent:
                low, high = self.datatype.span(items + 1)
                items, rest = (items + 1, 0) if high <= room else (items, rest)
            if rest or items < 0:
                raise ValueError(f"message: buffer of {room} bytes is no multiple of the datatype's {extent}")
            if items % blocks:
                raise ValueError(f"message: buffer of {items} elements cannot be cut into {blocks} equal blocks")
            count = items // blocks
        if count < 0:
            raise MPIException(ERR_COUNT, f"a count of {count} is negative")
        self.count = count
        self._step = count * extent
        self.nbytes = count * self.datatype.size

    def pack(self, block: int = 0) -> memoryview:
        """The bytes of a block; a view where they are dense in memory."""
        return self._memory.pack(self.datatype, self._offset + block * self._step, self.count)

    def unpack(self, data: memoryview, block: int = 0) -> None:
        """Put received bytes to their places; ERR_TRUNCATE if they are too many."""
        self._memory.unpack(data, self.datatype, self._offset + block * self._step, self.count)

    def pack_all(self, blocks: int) -> memoryview:
        """The bytes of all blocks together."""
        return self._memory.pack(self.datatype, self._offset, self.count * blocks)

    def landing(self) -> memoryview | None:
        """Memory that a payload can be received into directly, or None where it must be spread."""
        if self._memory.bottom or not self.datatype.is_dense(self.count):
            return None
        view, offset = self._memory._window(self.datatype, self._offset, self.count)
        return view[offset : offset + self.nbytes]


def _split_spec(spec: Sequence[Any]) -> tuple[Any, int | None, int, Any]:
    """(buffer, count or None, displacement in elements, type or None)."""
    if not 1 <= len(spec) <= 4:
        raise ValueError(f"message: expecting 2 to 4 items, got {len(spec)}")
    obj, *rest = spec
    datatype = None
    if rest and (isinstance(rest[-1], (Datatype, str)) or (len(rest) > 1 and rest[-1] is None)):
        datatype = rest.pop()
    count, displacement = None, 0
    if rest:
        first = rest[0]
        if _is_spec(first):
            if not 1 <= len(first) <= 2:
                raise ValueError("message: expecting (count, displacement)")
            count = first[0]
            displacement = first[1] if len(first) == 2 and first[1] is not None else 0
        else:
            count = first
            if len(rest) > 1 and rest[1] is not None:
                displacement = rest[1]
    if len(rest) > 2:
        raise ValueError("message: expecting [buffer, count, displacement, datatype]")
    return obj, None if count is None else _integer(count), _integer(displacement), datatype


def _integer(value: Any) -> int:
    try:
        return int(value.__index__())
    except AttributeError:
        raise TypeError(f"message: an integer is needed, not {type(value).__name__}") from None


class VMessage:
    """A block for each of `size` ranks, of its own count and displacement (in elements)."""

    def __init__(self, spec: Any, readonly: bool, size: int) -> None:
        self.in_place = isinstance(spec, InPlaceType)
        obj, counts, displs, datatype = None, None, None, None
        if _is_spec(spec):
            obj, *rest = spec
            if rest and (isinstance(rest[-1], (Datatype, str)) or (len(rest) in (2, 3) and rest[-1] is None)):
                datatype = rest.pop()
            if rest and isinstance(rest[0], tuple) and len(rest) == 1 and len(rest[0]) == 2 and _is_vector(rest[0]):
                counts, displs = rest[0]
            elif rest:
                counts = rest[0]
                displs = rest[1] if len(rest) > 1 else None
            if len(rest) > 2:
                raise ValueError("message: expecting [buffer, counts, displs, datatype]")
        elif not self.in_place:
            obj = spec
        self._memory = _Memory(obj, readonly)
        self.datatype = _as_type(datatype, self._memory.dtype)
        extent = self.datatype.extent
        if counts is None:
            items = self._memory.view.nbytes // extent if extent else 0
            share, more = divmod(items, size)
            counts = [share + (rank < more) for rank in range(size)]
        elif not hasattr(counts, "__len__") and not hasattr(counts, "__iter__"):
            counts = [counts] * size
        self.counts = [_integer(count) for count in counts]
        if displs is None:
            self.displs = [0, *accumulate(self.counts[:-1])]
        elif not hasattr(displs, "__len__"):
            self.displs = [rank * _integer(displs) for rank in range(size)]
        else:
            self.displs = [_integer(displ) for displ in displs]
        if len(self.counts) != size or len(self.displs) != size:
            raise ValueError(
                f"message: {len(self.counts)} counts and {len(self.displs)} displacements for {size} ranks"
            )
        if min(self.counts, default=0) < 0:
            raise MPIException(ERR_COUNT, f"a count of {min(self.counts)} is negative")

    def nbytes(self, rank: int) -> int:
        """Packed bytes of a rank's block."""
        return self.counts[rank] * self.datatype.size

    def pack(self, rank: int) -> memoryview:
        """The bytes of a rank's block."""
        return self._memory.pack(self.datatype, self.displs[rank] * self.datatype.extent, self.counts[rank])

    def unpack(self, data: memoryview, rank: int) -> None:
        """Put the bytes received from a rank to their places; ERR_TRUNCATE if they are too many."""
        self._memory.unpack(data, self.datatype, self.displs[rank] * self.datatype.extent, self.counts[rank])


def _is_vector(pair: tuple[Any, Any]) -> bool:
    return hasattr(pair[0], "__len__") or pair[1] is None or hasattr(pair[1], "__len__")


class WMessage:
    """A block for each of `size` ranks, of its own count, displacement (in bytes) and datatype."""

    def __init__(self, spec: Any, readonly: bool, size: int) -> None:
        self.in_place = isinstance(spec, InPlaceType)
        self.counts: list[int] = []
        self.displs: list[int] = []
        self.datatypes: list[Datatype] = []
        if self.in_place:
            return
        if not _is_spec(spec) or not 2 <= len(spec) <= 4:
            raise ValueError("message: expecting [buffer, counts, displs, datatypes]")
        obj, *rest = spec
        types = rest.pop()
        counts, displs = None, None
        if rest and isinstance(rest[0], tuple) and len(rest) == 1 and len(rest[0]) == 2:
            counts, displs = rest[0]
        elif rest:
            counts, displs = rest[0], rest[1] if len(rest) > 1 else None
        self._memory = _Memory(obj, readonly)
        self.datatypes = [_as_type(one, None) for one in types]
        self.counts = [1] * size if counts is None else [_integer(count) for count in counts]
        self.displs = [0] * size if displs is None else [_integer(displ) for displ in displs]
        if not len(self.counts) == len(self.displs) == len(self.datatypes) == size:
            raise ValueError(f"message: counts, displacements and datatypes must be {size} each")

    def nbytes(self, rank: int) -> int:
        """Packed bytes of a rank's block."""
        return self.counts[rank] * self.datatypes[rank].size

    def pack(self, rank: int) -> memoryview:
        """The bytes of a rank's block."""
        return self._memory.pack(self.datatypes[rank], self.displs[rank], self.counts[rank])

    def unpack(self, data: memoryview, rank: int) -> None:
        """Put the bytes received from a rank to their places; ERR_TRUNCATE if they are too many."""
        self._memory.unpack(data, self.datatypes[rank], self.displs[rank], self.counts[rank])


def check_length(data: memoryview, nbytes: int, who: str) -> None:
    """Raise ERR_TRUNCATE unless a collective's blob has exactly the length that this rank's arguments say."""
    if data.nbytes != nbytes:
        raise MPIException(
            ERR_TRUNCATE, f"{who} gave {data.nbytes} bytes where this rank's arguments say {nbytes}; counts must agree on all ranks"
        )


def Get_address(location: Any) -> int:
    """The address of a buffer's first byte."""
    view, _ = as_bytes(location, readonly=True)
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if view.nbytes else 0


__all__ = ["BOTTOM", "BottomType", "Get_address", "IN_PLACE", "InPlaceType"]
