"""Buffer specifications, as in mpi4py: which memory, how many elements, of what type.

Only this module interprets them. The parsed forms are `BlockSpec` (one block, or equal ones),
`ContiguousSpec` (the same, of a contiguous array: the fast path), `VectorSpec` (a block for each
rank) and `GeneralSpec` (with a datatype for each rank). All borrow the program's memory.

A specification is a buffer (its type and count are found out), or a list or tuple:
[buf, type], [buf, count], [buf, (count, displacement)], [buf, count, type], [buf, (count,
displacement), type], [buf, count, displacement, type]; for vectors the same with counts and
displacements of all ranks; for Alltoallw [buf, types], [buf, (counts, displs), types], [buf,
counts, displs, types].  Types may
be codes such
as 'd'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, SupportsIndex, TypeAlias

import numpy as np

from serverless_mpi.api.datatype import Datatype, state_or_none
from serverless_mpi.api.layout import Layout, too_long
from serverless_mpi.api.memory import (
    IN_PLACE,
    BottomType,
    InPlaceType,
    address_of,
    as_bytes,
    at_address,
    numbers,
)
from serverless_mpi.api.type_tables import OF_CHARACTER, of_code
from serverless_mpi.api.types import BYTE
from serverless_mpi.errors import ERR_BUFFER, ERR_COUNT, ERR_TRUNCATE, ERR_TYPE, MPIException


class SupportsBuffer(Protocol):
    """An object with the buffer protocol: bytes, bytearray, array.array, a NumPy array."""

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int, /) -> memoryview:
            """Return a view of its memory."""


class SupportsDLPack(Protocol):
    """An array that other libraries read by DLPack."""

    def __dlpack__(self, /, *, stream: Any = None) -> object:
        """Return a capsule with its memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the kind and the number of its device."""


class SupportsCudaArray(Protocol):
    """An array with the CUDA Array Interface, in memory that the host can read."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The description of its memory."""


# What programs may give for a buffer, as mpi4py.typing names it. The head of this module says what
# each form means. A list may have the items of any of the tuples.
Buffer: TypeAlias = SupportsBuffer | SupportsDLPack | SupportsCudaArray
Bottom: TypeAlias = BottomType | None
InPlace: TypeAlias = InPlaceType | None
Count: TypeAlias = SupportsIndex
Counts: TypeAlias = Sequence[SupportsIndex]
TypeSpec: TypeAlias = Datatype | str
# one block
BufSpec: TypeAlias = (
    Buffer
    | tuple[Buffer, Count]
    | tuple[Buffer, TypeSpec]
    | tuple[Buffer, Count, TypeSpec]
    | tuple[Bottom, Count, Datatype]
    | list[Any]
)
# equal blocks, one for each rank
BufSpecB: TypeAlias = (
    Buffer
    | tuple[Buffer, Count]
    | tuple[Buffer, TypeSpec]
    | tuple[Buffer, Count, TypeSpec]
    | list[Any]
)
# a block for each rank, of its own length and displacement
BufSpecV: TypeAlias = (
    Buffer
    | tuple[Buffer, Counts]
    | tuple[Buffer, tuple[Counts, Counts]]
    | tuple[Buffer, TypeSpec]
    | tuple[Buffer, Counts, TypeSpec]
    | tuple[Buffer, tuple[Counts, Counts], TypeSpec]
    | tuple[Buffer, Counts, Counts, TypeSpec]
    | tuple[Bottom, tuple[Counts, Counts], Datatype]
    | tuple[Bottom, Counts, Counts, Datatype]
    | list[Any]
)
# a block for each rank, of its own length, displacement and datatype
BufSpecW: TypeAlias = (
    tuple[Buffer, Sequence[Datatype]]
    | tuple[Buffer, tuple[Counts, Counts], Sequence[Datatype]]
    | tuple[Buffer, Counts, Counts, Sequence[Datatype]]
    | tuple[Bottom, tuple[Counts, Counts], Sequence[Datatype]]
    | tuple[Bottom, Counts, Counts, Sequence[Datatype]]
    | list[Any]
)

_NO_BYTES = memoryview(bytearray())


def _integer(value: Any) -> int:
    """An index as an int; TypeError for anything else."""
    try:
        return int(value.__index__())
    except AttributeError:
        raise TypeError(f"message: an integer is needed, not {type(value).__name__}") from None


def _is_integer(value: Any) -> bool:
    """Whether `value` is one number: a 0-d array is, an array of one element is not."""
    return hasattr(value, "__index__") and not (hasattr(value, "__len__") and np.ndim(value))


def _integers(values: Any, size: int) -> list[int]:
    """`size` integers; ValueError for another number of them."""
    numbers = [_integer(value) for value in values]
    if len(numbers) != size:
        raise ValueError(f"message: expecting {size} items, got {len(numbers)}")
    return numbers


def _split(spec: Any, pairs: tuple[type[Any], ...]) -> tuple[Any, Any, Any, Any]:
    """Split a specification into buffer, counts, displacements and type; None for what it omits."""
    if isinstance(spec, np.ndarray):
        return spec, None, None, None
    if not isinstance(spec, (list, tuple)):
        if spec is None or isinstance(spec, (BottomType, InPlaceType)):
            raise TypeError(f"message: expecting buffer or list/tuple, not {spec!r}")
        return spec, None, None, None
    number = len(spec)
    if number == 4:
        buf, count, displacement, datatype = spec
        return buf, count, displacement, datatype
    if number == 3:
        buf, count, datatype = spec
    elif number == 2:
        buf, count = spec
        datatype = None
        if isinstance(count, (Datatype, str)):
            count, datatype = None, count
    else:
        raise ValueError(f"message: expecting 2 to 4 items, got {number}")
    if isinstance(count, pairs):
        pair: Any = count
        count, displacement = pair
        return buf, count, displacement, datatype
    return buf, count, None, datatype


class _Memory:
    """A buffer's bytes and its datatype, given or inferred; BOTTOM is address 0."""

    __slots__ = ("bottom", "view", "datatype", "layout", "given")

    def __init__(self, obj: Any, datatype: Any, readonly: bool) -> None:
        self.bottom = isinstance(obj, BottomType)
        self.given = self.bottom or obj is not None
        self.view, code = (_NO_BYTES, None) if self.bottom else as_bytes(obj, readonly)
        if datatype is None:
            datatype = BYTE if code is None else of_code(code)
        elif not isinstance(datatype, Datatype):
            datatype = of_code(datatype)
        self.datatype: Datatype = datatype
        self.layout: Layout | None = None if datatype._ob is None else datatype._ob.layout

    def extent(self, what: str) -> int:
        """Extent of the datatype; ValueError if it cannot count elements."""
        if self.layout is None:
            raise ValueError(f"message: cannot {what}, datatype is null")
        if self.layout.extent <= 0:
            raise ValueError(f"message: cannot {what}, datatype extent {self.layout.extent}")
        return self.layout.extent

    def number(self, length: int) -> int:
        """Number of elements in `length` bytes."""
        extent = self.extent("infer count")
        count, rest = divmod(length, extent)
        if rest:
            raise ValueError(
                f"message: cannot infer count, buffer length {length} is not a multiple of"
                f" datatype extent {extent}"
            )
        return count

    def check(self, count: int, readonly: bool) -> Layout:
        """Return the layout; ERR_TYPE unless the datatype may communicate `count` elements."""
        self.datatype.check_committed()
        layout = self.layout
        assert layout is not None
        if not readonly and not layout.dense and layout.overlaps(count):
            raise MPIException(
                ERR_TYPE, "a datatype that has a byte of memory twice cannot be received into"
            )
        return layout

    def address(self, offset: int) -> int:
        """Address of the byte at `offset`."""
        return (0 if self.bottom else address_of(self.view)) + offset

    def window(self, layout: Layout, offset: int, count: int) -> tuple[memoryview, int]:
        """Memory and offset of `count` elements; ERR_BUFFER if they exceed the buffer."""
        low, high = layout.span(count)
        if self.bottom:
            return at_address(offset + low, high - low), -low
        if offset + low < 0 or offset + high > self.view.nbytes:
            raise MPIException(
                ERR_BUFFER,
                f"{count} elements at byte {offset} touch bytes {offset + low} to {offset + high}"
                f" of a buffer of {self.view.nbytes}",
            )
        return self.view, offset

    def pack(self, layout: Layout, offset: int, count: int) -> memoryview:
        """Bytes of `count` elements at `offset`; a view if they are dense."""
        if not count:
            return _NO_BYTES
        view, offset = self.window(layout, offset, count)
        return layout.pack(view, offset, count)

    def unpack(self, data: memoryview, layout: Layout, offset: int, count: int) -> None:
        """Put packed bytes into `count` elements at `offset`."""
        if not count and not data.nbytes:
            return
        view, offset = self.window(layout, offset, count)
        layout.unpack(data, view, offset, count)


class BlockSpec:
    """One block, or `blocks` equal ones, of a buffer.

    Attributes
    ----------
    count
        Elements of one block.
    nbytes
        Packed bytes of one block.
    datatype
        Type of the elements.
    """

    __slots__ = ("count", "nbytes", "datatype", "_memory", "_layout", "_offset", "_step")

    def __init__(self, spec: Any, readonly: bool, blocks: int = 1) -> None:
        obj, count, displacement, datatype = _split(spec, (list, tuple))
        memory = self._memory = _Memory(obj, datatype, readonly)
        self.datatype = memory.datatype
        length, self._offset = memory.view.nbytes, 0
        if displacement is not None:
            displacement = _integer(displacement)
            if displacement < 0:
                raise ValueError(f"message: negative displacement {displacement}")
            if displacement:
                extent = memory.extent("handle displacement")
                self._offset = displacement * extent
                length -= self._offset
                if length < 0 and not memory.bottom:
                    raise ValueError(
                        f"message: displacement {displacement} out of bounds, there are"
                        f" {memory.view.nbytes // extent} entries"
                    )
        if count is not None:
            self.count = _integer(count)
            if self.count < 0:
                raise ValueError(f"message: negative count {self.count}")
            if self.count and not memory.given:
                raise ValueError(f"message: buffer is None but count is {self.count}")
        elif length > 0:
            self.count, rest = divmod(memory.number(length), max(blocks, 1))
            if rest:
                raise ValueError(
                    f"message: cannot infer count, the number of entries is not a multiple of the"
                    f" {blocks} blocks"
                )
        else:
            self.count = 0
        layout = self._layout = memory.check(self.count, readonly)
        self._step = self.count * layout.extent
        self.nbytes = self.count * layout.size

    def pack(self, block: int = 0) -> memoryview:
        """Return the bytes of a block.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        memoryview
            A view, borrowed from the buffer, if the elements are dense in memory; else a copy.

        Raises
        ------
        MPIException
            ERR_BUFFER: the elements exceed the buffer.
        """
        return self._memory.pack(self._layout, self._offset + block * self._step, self.count)

    def unpack(self, data: memoryview, block: int = 0) -> None:
        """Put received bytes into a block.

        Parameters
        ----------
        data
            Packed bytes, at most `nbytes`; copied.
        block
            Index of the block.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the data are too long. ERR_TYPE: the elements are not dense, and the data
            end inside a number. ERR_BUFFER: the elements exceed the buffer. Nothing is changed
            then.
        """
        self._memory.unpack(data, self._layout, self._offset + block * self._step, self.count)

    def address(self, block: int = 0) -> int | None:
        """Return the address of a block; None if it has no bytes.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        int or None
            Address of the block's displacement in memory; at MPI.BOTTOM the displacement itself.
        """
        return self._memory.address(self._offset + block * self._step) if self.nbytes else None

    def landing(self) -> memoryview | None:
        """Return memory that can receive a payload directly; None if it has to be unpacked."""
        if not self.count or not self._layout.is_dense(self.count):
            return None
        view, offset = self._memory.window(self._layout, self._offset, self.count)
        return view[offset : offset + self.nbytes]


class ContiguousSpec:
    """A `BlockSpec` of a C-contiguous array of numbers in native byte order.

    Its bytes are the message, so nothing of the datatype has to be looked at. `block` makes it and
    fills the slots itself: a constructor would be one more Python call.
    """

    __slots__ = ("count", "nbytes", "datatype", "view")

    count: int
    nbytes: int
    datatype: Datatype
    view: memoryview

    def pack(self, block: int = 0) -> memoryview:
        """Return the bytes of a block, borrowed from the array.

        Parameters
        ----------
        block
            Index of the block.
        """
        nbytes = self.nbytes
        if nbytes == self.view.nbytes:  # one block
            return self.view
        return self.view[block * nbytes : (block + 1) * nbytes]

    def unpack(self, data: memoryview, block: int = 0) -> None:
        """Copy received bytes into a block.

        Parameters
        ----------
        data
            The bytes, at most `nbytes`; copied.
        block
            Index of the block.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the data are too long; nothing is changed then.
        """
        nbytes = data.nbytes
        if nbytes > self.nbytes:
            raise too_long(nbytes, self.nbytes)
        start = block * self.nbytes
        self.view[start : start + nbytes] = data

    def pack_all(self, blocks: int) -> memoryview:
        """Return the bytes of all blocks together, borrowed from the array.

        Parameters
        ----------
        blocks
            Number of blocks, counted from the first.
        """
        return self.view[: blocks * self.nbytes]

    def address(self, block: int = 0) -> int | None:
        """Return the address of a block; None if it has no bytes.

        Parameters
        ----------
        block
            Index of the block.
        """
        if not self.nbytes:
            return None
        return address_of(self.view) + block * self.nbytes

    def landing(self) -> memoryview | None:
        """Return the memory that can receive a payload directly."""
        return self.view[: self.nbytes] if self.count else None


def block(spec: Any, readonly: bool, blocks: int = 1) -> BlockSpec | ContiguousSpec:
    """Parse a specification of one block, or of equal ones.

    Parameters
    ----------
    spec
        A buffer specification; the memory is borrowed.
    readonly
        Whether the memory is only read.
    blocks
        Number of equal blocks in the buffer.

    Raises
    ------
    ValueError, TypeError
        The specification is not valid.
    MPIException
        ERR_TYPE: the datatype is not committed, or cannot be received into.
    """
    view = numbers(spec, readonly)
    if view is None:
        return BlockSpec(spec, readonly, blocks)
    nbytes = view.nbytes
    count = nbytes // view.itemsize
    if blocks > 1:
        if count % blocks:
            return BlockSpec(spec, readonly, blocks)
        count //= blocks
        nbytes //= blocks
    parsed = ContiguousSpec.__new__(ContiguousSpec)
    parsed.count = count
    parsed.nbytes = nbytes
    parsed.datatype = OF_CHARACTER[view.format]
    parsed.view = view.cast("B")
    return parsed


def certainly_apart(a: object, b: object) -> bool:
    """Return whether two specifications are of different arrays that own their memory.

    Parameters
    ----------
    a, b
        Specifications of this module; only two of `ContiguousSpec` are compared.

    Returns
    -------
    bool
        False means that they may share memory, not that they do.
    """
    if type(a) is not ContiguousSpec or type(b) is not ContiguousSpec:
        return False
    one, other = a.view.obj, b.view.obj
    return (
        one is not other
        and getattr(one, "base", None) is None
        and getattr(other, "base", None) is None
    )


def contiguous(spec: Any, readonly: bool) -> memoryview | None:
    """Return the bytes that a specification of one block covers, if that takes no datatype.

    That is contiguous numbers, alone or with a committed dense datatype and, optionally, a count.

    Parameters
    ----------
    spec
        A buffer specification; the memory is borrowed.
    readonly
        Whether the memory is only read.

    Returns
    -------
    memoryview or None
        A view of format "B". None for anything else, faulty specifications included: `BlockSpec`
        parses it.
    """
    if type(spec) is not list and type(spec) is not tuple:
        view = numbers(spec, readonly)
        return None if view is None else view.cast("B")
    if len(spec) == 3:
        buf, count, datatype = spec
        view = numbers(buf, readonly) if type(count) is int and count > 0 else None
    elif len(spec) == 2:
        buf, datatype = spec
        count, view = 0, numbers(buf, readonly)
    else:
        return None
    if view is None or type(datatype) is not Datatype:
        return None
    state = state_or_none(datatype)
    if state is None or not (state.predefined or state.committed) or not state.layout.dense:
        return None
    size = state.layout.size
    nbytes = count * size or view.nbytes
    if not size or nbytes > view.nbytes or nbytes % size:
        return None
    return view.cast("B")[:nbytes]


class VectorSpec:
    """A block for each of `size` ranks, with its own count and displacement (in elements)."""

    __slots__ = ("counts", "displs", "datatype", "_memory", "_layout")

    def __init__(self, spec: Any, readonly: bool, size: int) -> None:
        obj, counts, displs, datatype = _split(spec, (tuple,))
        memory = self._memory = _Memory(obj, datatype, readonly)
        self.datatype = memory.datatype
        if counts is None:
            share, more = (
                divmod(memory.number(memory.view.nbytes), size)
                if memory.view.nbytes and size
                else (0, 0)
            )
            self.counts = [share + (rank < more) for rank in range(size)]
        elif _is_integer(counts):
            self.counts = [_integer(counts)] * size
        else:
            self.counts = _integers(counts, size)
        if displs is None:
            self.displs = [0, *accumulate(self.counts[:-1])][:size]
        elif _is_integer(displs):
            self.displs = [rank * _integer(displs) for rank in range(size)]
        else:
            self.displs = _integers(displs, size)
        if min(self.counts, default=0) < 0:
            raise MPIException(ERR_COUNT, f"a count of {min(self.counts)} is negative")
        self._layout = memory.check(max(self.counts, default=0), readonly)

    def nbytes(self, rank: int) -> int:
        """Return the packed bytes of a rank's block.

        Parameters
        ----------
        rank
            Index of the block: a rank, or the number of a neighbour.
        """
        return self.counts[rank] * self._layout.size

    def address(self, rank: int) -> int | None:
        """Return the address of a rank's block; None if it has no bytes.

        Parameters
        ----------
        rank
            Index of the block: a rank, or the number of a neighbour.

        Returns
        -------
        int or None
            Address of the block's displacement in memory; at MPI.BOTTOM the displacement itself, in
            bytes.
        """
        return (
            self._memory.address(self.displs[rank] * self._layout.extent)
            if self.nbytes(rank)
            else None
        )

    def pack(self, rank: int) -> memoryview:
        """Return the bytes of a rank's block.

        Parameters
        ----------
        rank
            Index of the block: a rank, or the number of a neighbour.

        Returns
        -------
        memoryview
            A view, borrowed from the buffer, if the elements are dense in memory; else a copy.

        Raises
        ------
        MPIException
            ERR_BUFFER: the elements exceed the buffer.
        """
        return self._memory.pack(
            self._layout, self.displs[rank] * self._layout.extent, self.counts[rank]
        )

    def unpack(self, data: memoryview, rank: int) -> None:
        """Put the bytes received from a rank into its block.

        Parameters
        ----------
        data
            Packed bytes, at most `nbytes(rank)`; copied.
        rank
            Index of the block: a rank, or the number of a neighbour.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the data are too long. ERR_TYPE: the elements are not dense, and the data
            end inside a number. ERR_BUFFER: the elements exceed the buffer. Nothing is changed
            then.
        """
        self._memory.unpack(
            data, self._layout, self.displs[rank] * self._layout.extent, self.counts[rank]
        )


class GeneralSpec:
    """A block for each of `size` ranks: its count, displacement (in bytes) and datatype."""

    __slots__ = ("counts", "displs", "datatypes", "_memory", "_layouts")

    def __init__(self, spec: Any, readonly: bool, size: int) -> None:
        counts = displs = None
        if not isinstance(spec, (list, tuple)) or not 2 <= len(spec) <= 4:
            raise ValueError("message: expecting 2 to 4 items: [buffer, counts, displs, datatypes]")
        if len(spec) == 2:
            obj, types = spec
        elif len(spec) == 3:
            obj, (counts, displs), types = spec
        else:
            obj, counts, displs, types = spec
        if isinstance(obj, BottomType) and (counts is None or displs is None):
            raise ValueError("message: BOTTOM requires counts and displs")
        self._memory = _Memory(obj, BYTE, readonly)
        if counts is None and displs is None:
            self.counts, self.displs = [1] * size, [0] * size
        else:
            self.counts, self.displs = _integers(counts, size), _integers(displs, size)
        self.datatypes: list[Datatype] = list(types)
        if len(self.datatypes) != size:
            raise ValueError(f"message: expecting {size} items, got {len(self.datatypes)}")
        self._layouts: list[Layout] = []
        for datatype, count in zip(self.datatypes, self.counts, strict=True):
            if not isinstance(datatype, Datatype):
                raise TypeError(f"message: a datatype is needed, not {type(datatype).__name__}")
            if count < 0:
                raise MPIException(ERR_COUNT, f"a count of {count} is negative")
            datatype.check_committed()
            self._layouts.append(datatype._ob.layout)

    def nbytes(self, rank: int) -> int:
        """Return the packed bytes of a rank's block.

        Parameters
        ----------
        rank
            Index of the block: a rank, or the number of a neighbour.
        """
        return self.counts[rank] * self._layouts[rank].size

    def pack(self, rank: int) -> memoryview:
        """Return the bytes of a rank's block.

        Parameters
        ----------
        rank
            Index of the block: a rank, or the number of a neighbour.

        Returns
        -------
        memoryview
            A view, borrowed from the buffer, if the elements are dense in memory; else a copy.

        Raises
        ------
        MPIException
            ERR_BUFFER: the elements exceed the buffer.
        """
        return self._memory.pack(self._layouts[rank], self.displs[rank], self.counts[rank])

    def unpack(self, data: memoryview, rank: int) -> None:
        """Put the bytes received from a rank into its block.

        Parameters
        ----------
        data
            Packed bytes, at most `nbytes(rank)`; copied.
        rank
            Index of the block: a rank, or the number of a neighbour.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the data are too long. ERR_TYPE: the elements are not dense, and the data
            end inside a number. ERR_BUFFER: the elements exceed the buffer. Nothing is changed
            then.
        """
        self._memory.unpack(data, self._layouts[rank], self.displs[rank], self.counts[rank])


def check_length(data: memoryview, nbytes: int, who: str) -> None:
    """Check that a blob is as long as this rank's arguments state.

    Parameters
    ----------
    data
        The blob.
    nbytes
        Length that it should have, in bytes.
    who
        Sender, for the error: "rank 3", "root 0".

    Raises
    ------
    MPIException
        ERR_TRUNCATE: the blob is shorter or longer.
    """
    if data.nbytes != nbytes:
        raise MPIException(
            ERR_TRUNCATE,
            f"{who} sent {data.nbytes} bytes, but this rank's arguments give {nbytes};"
            " counts must agree on all ranks",
        )


__all__ = [
    "ContiguousSpec",
    "IN_PLACE",
    "InPlaceType",
    "BlockSpec",
    "VectorSpec",
    "GeneralSpec",
    "block",
    "check_length",
]
