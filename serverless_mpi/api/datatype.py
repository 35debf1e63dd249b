"""Datatypes: what bytes of memory an element is made of, compiled once to a NumPy index plan.

A contiguous layout is packed as a view, without a copy; any other is gathered
by one `numpy.take` over the largest unit that divides all its pieces.
Source: MPI 4.1, chapter 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np

from serverless_mpi.errors import ERR_ARG, ERR_COUNT, ERR_TRUNCATE, ERR_TYPE, MPIException

ORDER_C = 56
ORDER_FORTRAN = 57

COMBINER_NAMED = 1
COMBINER_DUP = 2
COMBINER_CONTIGUOUS = 3
COMBINER_VECTOR = 4
COMBINER_HVECTOR = 6
COMBINER_INDEXED = 7
COMBINER_HINDEXED = 9
COMBINER_INDEXED_BLOCK = 10
COMBINER_STRUCT = 12
COMBINER_SUBARRAY = 13
COMBINER_RESIZED = 18
COMBINER_HINDEXED_BLOCK = 19

Pieces = np.ndarray[Any, np.dtype[np.int64]]  # (k, 2): displacement and length in bytes, in type-map order


class Datatype:
    """An MPI datatype.

    size: bytes of data; lb, ub, extent: bytes an element spans in an array of
    them; a derived type must be committed before it communicates.
    """

    def __new__(cls, datatype: Datatype | None = None) -> Datatype:
        self = super().__new__(cls)
        if datatype is None:
            datatype = DATATYPE_NULL if "DATATYPE_NULL" in globals() else None
        if datatype is not None:
            self.__dict__.update(datatype.__dict__)
        return self

    @classmethod
    def _make(
        cls, pieces: Pieces, lb: int, ub: int, base: np.dtype[Any] | None, name: str = "",
        combiner: int = COMBINER_NAMED, contents: tuple[list[int], list[int], list[Datatype]] = ([], [], []),
        typechar: str = "",
    ) -> Datatype:  # fmt: skip
        self = object.__new__(cls)
        self._pieces = _merge(pieces)
        self._lb = int(lb)
        self._ub = int(ub)
        self._size = int(self._pieces[:, 1].sum()) if len(self._pieces) else 0
        self._base = base
        self._name = name
        self._combiner = combiner
        self._contents = contents
        self._typechar = typechar
        self._committed = combiner == COMBINER_NAMED
        self._freed = False
        self._plan: tuple[int, np.ndarray[Any, Any]] | None = None
        self._dense = len(self._pieces) == 1 and self._pieces[0, 0] == 0 and self._size == self._ub - self._lb and lb == 0
        return self

    # --- facts ---------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Datatype):
            return NotImplemented
        return self._pieces is other._pieces and self._name == other._name and self._freed == other._freed

    def __hash__(self) -> int:
        return id(self._pieces)

    def __bool__(self) -> bool:
        return not self._freed and self._name != "MPI_DATATYPE_NULL"

    def __repr__(self) -> str:
        return f"<serverless_mpi.MPI.Datatype {self._name or 'derived'}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._combiner == COMBINER_NAMED:
            return (_named, (self._name,))
        raise MPIException(ERR_TYPE, "a derived datatype belongs to its process and cannot be pickled")

    def Get_size(self) -> int:
        """Bytes of data in one element."""
        self._check()
        return self._size

    def Get_extent(self) -> tuple[int, int]:
        """(lower bound, extent) in bytes."""
        self._check()
        return self._lb, self._ub - self._lb

    def Get_true_extent(self) -> tuple[int, int]:
        """(true lower bound, true extent) in bytes: of the data alone."""
        self._check()
        if not len(self._pieces):
            return 0, 0
        low = int(self._pieces[:, 0].min())
        return low, int((self._pieces[:, 0] + self._pieces[:, 1]).max()) - low

    def Get_name(self) -> str:
        """The type's name."""
        return self._name

    def Set_name(self, name: str) -> None:
        """Name the type."""
        self._name = name

    size = property(Get_size, doc="Bytes of data in one element.")
    extent = property(lambda self: self.Get_extent()[1], doc="Bytes from one element to the next.")
    lb = property(lambda self: self._lb, doc="Lower bound in bytes.")
    ub = property(lambda self: self._ub, doc="Upper bound in bytes.")
    true_extent = property(lambda self: self.Get_true_extent()[1], doc="Bytes that the data span.")
    true_lb = property(lambda self: self.Get_true_extent()[0], doc="Where the data begin, in bytes.")
    true_ub = property(lambda self: sum(self.Get_true_extent()), doc="Where the data end, in bytes.")
    name = property(Get_name, Set_name, doc="The type's name.")
    is_predefined = property(lambda self: self._combiner == COMBINER_NAMED, doc="Whether it was not made by a program.")
    is_named = is_predefined
    combiner = property(lambda self: self._combiner, doc="The constructor that made it.")
    typechar = property(lambda self: self._typechar or "V", doc="Its character in the struct module.")
    typestr = property(lambda self: self._typestr(), doc="Its array-interface string.")

    def _typestr(self) -> str:
        return f"V{self._size}" if self._base is None else str(self._base.str)[1:]

    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type of the numbers it is made of.

        Raises
        ------
        MPIException
            ERR_TYPE: it is made of several kinds, or of bytes that are no number.
        """
        if self._base is None:
            raise MPIException(ERR_TYPE, f"datatype {self._name or 'derived'} is not made of one kind of number")
        return self._base

    def tocode(self) -> str:
        """The NumPy character code."""
        return self.numpy_dtype().str[1:]

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """The predefined type of a NumPy character code, such as 'f8'."""
        return from_numpy(np.dtype(code))

    def Get_envelope(self) -> tuple[int, int, int, int, int]:
        """(integers, addresses, large counts, datatypes, combiner) of the constructor call."""
        self._check()
        integers, addresses, types = self._contents
        return len(integers), len(addresses), 0, len(types), self._combiner

    def Get_contents(self) -> tuple[list[int], list[int], list[int], list[Datatype]]:
        """The arguments of the constructor call."""
        if self._combiner == COMBINER_NAMED:
            raise MPIException(ERR_TYPE, "a predefined datatype has no contents")
        integers, addresses, types = self._contents
        return list(integers), list(addresses), [], list(types)

    envelope = property(Get_envelope, doc="See Get_envelope.")
    contents = property(Get_contents, doc="See Get_contents.")

    # --- life ----------------------------------------------------------------

    def Commit(self) -> Datatype:
        """Make the type ready for communication."""
        self._check()
        self._committed = True
        return self

    def Free(self) -> None:
        """Give the type up; types made from it stay."""
        self._check()
        if self._combiner == COMBINER_NAMED:
            raise MPIException(ERR_TYPE, f"{self._name} is predefined and cannot be freed")
        self._freed = True

    free = Free

    def _check(self) -> None:
        if not self:
            raise MPIException(ERR_TYPE, "the datatype is null or has been freed")

    def check_committed(self) -> None:
        """Raise ERR_TYPE unless the type may communicate."""
        self._check()
        if not self._committed:
            raise MPIException(ERR_TYPE, "the datatype has not been committed; call Commit() first")

    # --- constructors --------------------------------------------------------

    def _derive(
        self, displacements: Any, counts: Any, combiner: int, integers: list[int], addresses: list[int]
    ) -> Datatype:
        """Blocks of `counts[i]` elements of this type at byte `displacements[i]`."""
        self._check()
        displacements = np.asarray(displacements, np.int64).reshape(-1)
        counts = np.asarray(counts, np.int64).reshape(-1)
        if len(displacements) != len(counts) or (counts < 0).any():
            raise MPIException(ERR_COUNT, "block lengths must be as many as displacements, and none negative")
        extent = self._ub - self._lb
        starts = np.repeat(displacements, counts) + extent * _ramps(counts)
        full = counts > 0
        low = min((int(d + self._lb + min(0, extent * (c - 1))) for d, c in zip(displacements[full], counts[full])), default=0)
        high = max((int(d + self._ub + max(0, extent * (c - 1))) for d, c in zip(displacements[full], counts[full])), default=0)
        return Datatype._make(
            _spread(self._pieces, starts), low, high, self._base, "", combiner, (integers, addresses, [self]), self._typechar
        )

    def Dup(self) -> Datatype:
        """A copy of the type, committed if this is."""
        self._check()
        new = Datatype._make(
            self._pieces, self._lb, self._ub, self._base, self._name, COMBINER_DUP, ([], [], [self]), self._typechar
        )
        new._committed = self._committed
        return new

    def Create_contiguous(self, count: int) -> Datatype:
        """`count` elements, one after the other."""
        _positive(count)
        return self._derive([0], [count], COMBINER_CONTIGUOUS, [count], [])

    def Create_vector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """`count` blocks of `blocklength` elements, `stride` elements from start to start."""
        _positive(count)
        steps = np.arange(count) * stride * (self._ub - self._lb)
        return self._derive(steps, [blocklength] * count, COMBINER_VECTOR, [count, blocklength, stride], [])

    def Create_hvector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """The same with `stride` in bytes."""
        _positive(count)
        return self._derive(
            np.arange(count) * stride, [blocklength] * count, COMBINER_HVECTOR, [count, blocklength], [stride]
        )

    def Create_indexed(self, blocklengths: Sequence[int], displacements: Sequence[int]) -> Datatype:
        """Blocks of any length at any displacement, in elements."""
        scaled = np.asarray(displacements, np.int64) * (self._ub - self._lb)
        integers = [len(blocklengths), *blocklengths, *displacements]
        return self._derive(scaled, blocklengths, COMBINER_INDEXED, integers, [])

    def Create_hindexed(self, blocklengths: Sequence[int], displacements: Sequence[int]) -> Datatype:
        """The same with displacements in bytes."""
        integers = [len(blocklengths), *blocklengths]
        return self._derive(displacements, blocklengths, COMBINER_HINDEXED, integers, list(displacements))

    def Create_indexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """Blocks of one length at any displacement, in elements."""
        scaled = np.asarray(displacements, np.int64) * (self._ub - self._lb)
        count = len(displacements)
        return self._derive(
            scaled, [blocklength] * count, COMBINER_INDEXED_BLOCK, [count, blocklength, *displacements], []
        )

    def Create_hindexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """The same with displacements in bytes."""
        count = len(displacements)
        return self._derive(
            displacements, [blocklength] * count, COMBINER_HINDEXED_BLOCK, [count, blocklength], list(displacements)
        )

    @classmethod
    def Create_struct(
        cls, blocklengths: Sequence[int], displacements: Sequence[int], datatypes: Sequence[Datatype]
    ) -> Datatype:
        """Blocks of any type at byte displacements."""
        if not len(blocklengths) == len(displacements) == len(datatypes):
            raise MPIException(ERR_ARG, "block lengths, displacements and datatypes must be equally many")
        fields = [
            type_._derive([d], [c], COMBINER_STRUCT, [], [])
            for c, d, type_ in zip(blocklengths, displacements, datatypes, strict=True)
        ]
        full = [field for field in fields if field._size or field._ub != field._lb]
        bases = {field._base for field in fields}
        return Datatype._make(
            np.concatenate([field._pieces for field in fields]) if fields else np.empty((0, 2), np.int64),
            min((field._lb for field in full), default=0), max((field._ub for field in full), default=0),
            bases.pop() if len(bases) == 1 else None, "", COMBINER_STRUCT,
            ([len(blocklengths), *blocklengths], list(displacements), list(datatypes)),
        )  # fmt: skip

    def Create_subarray(
        self, sizes: Sequence[int], subsizes: Sequence[int], starts: Sequence[int], order: int = ORDER_C
    ) -> Datatype:
        """The box of shape `subsizes` at `starts` in an array of shape `sizes`, whose extent it has."""
        if not len(sizes) == len(subsizes) == len(starts):
            raise MPIException(ERR_ARG, "sizes, subsizes and starts must be equally long")
        if any(n < 1 or b < 0 or s < 0 or s + b > n for n, b, s in zip(sizes, subsizes, starts, strict=True)):
            raise MPIException(ERR_ARG, f"box {list(subsizes)} at {list(starts)} is not inside {list(sizes)}")
        index = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes, order="C" if order == ORDER_C else "F")
        box = index[tuple(slice(s, s + b) for s, b in zip(starts, subsizes, strict=True))]
        extent = self._ub - self._lb
        flat = np.sort(box.reshape(-1)) * extent
        integers = [len(sizes), *sizes, *subsizes, *starts, order]
        new = self._derive(flat, np.ones(len(flat), np.int64), COMBINER_SUBARRAY, integers, [])
        return new._bounded(0, extent * index.size)

    def Create_resized(self, lb: int, extent: int) -> Datatype:
        """The same data with another lower bound and extent, in bytes."""
        self._check()
        new = Datatype._make(
            self._pieces, lb, lb + extent, self._base, "", COMBINER_RESIZED, ([], [lb, extent], [self]), self._typechar
        )
        return new

    def _bounded(self, lb: int, ub: int) -> Datatype:
        return Datatype._make(self._pieces, lb, ub, self._base, self._name, self._combiner, self._contents, self._typechar)

    # --- packing -------------------------------------------------------------

    def span(self, count: int) -> tuple[int, int]:
        """First and last byte (exclusive) that `count` elements touch, relative to their address."""
        if count == 0 or not len(self._pieces):
            return 0, 0
        low, length = self.Get_true_extent()
        last = (count - 1) * (self._ub - self._lb)
        return low + min(0, last), low + length + max(0, last)

    def is_dense(self, count: int) -> bool:
        """Whether `count` elements are one run of bytes from their address on."""
        return self._dense or self._size == 0 or (count == 1 and len(self._pieces) == 1 and self._pieces[0, 0] == 0)

    def pack(self, buf: memoryview, offset: int, count: int) -> memoryview:
        """The bytes of `count` elements at byte `offset` of `buf`: a view if they are dense, else a copy."""
        if self.is_dense(count):
            return buf[offset : offset + count * self._size]
        unit, index = self._index(offset, count)
        return memoryview(np.take(_units(buf, unit), index)).cast("B")

    def unpack(self, data: memoryview, buf: memoryview, offset: int, count: int) -> None:
        """Put packed `data` (whole elements, or fewer than `count`) to its places.

        Raises
        ------
        MPIException
            ERR_TRUNCATE if `data` is longer than `count` elements; nothing is changed then.
        """
        room = count * self._size
        if data.nbytes > room:
            raise MPIException(ERR_TRUNCATE, f"a message of {data.nbytes} bytes does not fit in {room} bytes")
        if self.is_dense(count):
            buf[offset : offset + data.nbytes] = data
            return
        if data.nbytes == 0:
            return
        elements = -(-data.nbytes // self._size)
        unit, index = self._index(offset, elements)
        if data.nbytes % unit:
            raise MPIException(ERR_TYPE, f"a message of {data.nbytes} bytes ends inside a number of the datatype")
        _units(buf, unit)[index[: data.nbytes // unit]] = np.frombuffer(data, f"V{unit}")

    def _index(self, offset: int, count: int) -> tuple[int, np.ndarray[Any, Any]]:
        """(unit in bytes, positions in that unit) of `count` elements at byte `offset`."""
        if self._plan is None:
            unit = 0
            for number in (*self._pieces.reshape(-1).tolist(), self._ub - self._lb):
                unit = gcd(unit, int(number))
            unit = gcd(unit, 16)  # wider units gain nothing
            self._plan = unit, np.concatenate(
                [np.arange(start, start + length, unit) for start, length in self._pieces.tolist()]
            )
        unit, within = self._plan
        if offset % unit:
            unit = gcd(unit, offset)
            within = np.concatenate([np.arange(s, s + n, unit) for s, n in self._pieces.tolist()])
        starts = offset + np.arange(count, dtype=np.int64) * (self._ub - self._lb)
        return unit, ((starts[:, None] + within[None, :]).reshape(-1)) // unit


def _units(buf: memoryview, unit: int) -> np.ndarray[Any, Any]:
    whole = buf.nbytes // unit
    return np.frombuffer(buf[: whole * unit], f"V{unit}")


def _merge(pieces: Pieces) -> Pieces:
    """Join pieces that follow each other in memory and in order."""
    pieces = pieces[pieces[:, 1] > 0]
    if len(pieces) < 2:
        return np.array(pieces)
    joins = pieces[1:, 0] == pieces[:-1, 0] + pieces[:-1, 1]
    group = np.concatenate([[0], np.cumsum(~joins)])
    first = np.concatenate([[True], ~joins])
    return np.stack([pieces[first, 0], np.bincount(group, pieces[:, 1]).astype(np.int64)], axis=1)


def _spread(pieces: Pieces, starts: np.ndarray[Any, Any]) -> Pieces:
    """`pieces` repeated at each of `starts`."""
    moved = np.broadcast_to(pieces, (len(starts), *pieces.shape)).copy()
    moved[:, :, 0] += starts[:, None]
    return moved.reshape(-1, 2)


def _ramps(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0, 1, .., c-1 for each c of `counts`, concatenated."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _positive(count: int) -> None:
    if count < 0:
        raise MPIException(ERR_COUNT, f"a count of {count} is negative")


# --- the predefined types ----------------------------------------------------

_NAMED: dict[str, Datatype] = {}
_BY_DTYPE: dict[str, Datatype] = {}


def _named(name: str) -> Datatype:
    return _NAMED[name]


def _basic(name: str, code: str, typechar: str) -> Datatype:
    dtype = np.dtype(code)
    pieces = np.array([[0, dtype.itemsize]], np.int64)
    made = Datatype._make(pieces, 0, dtype.itemsize, dtype, f"MPI_{name}", typechar=typechar)
    return _NAMED.setdefault(made._name, made)


def _pair(name: str, first: str) -> Datatype:
    """A value and a C int, as a C struct lays them out."""
    dtype = np.dtype([("value", first), ("index", "i")], align=True)
    width = np.dtype(first).itemsize
    index = dtype.fields["index"][1]  # type: ignore[index]
    pieces = np.array([[0, width], [index, 4]], np.int64)
    made = Datatype._make(pieces, 0, dtype.itemsize, None, f"MPI_{name}")
    made.pair = np.dtype([("value", first), ("index", "i")])  # type: ignore[attr-defined]  # packed
    return _NAMED.setdefault(made._name, made)


DATATYPE_NULL = Datatype._make(np.empty((0, 2), np.int64), 0, 0, None, "MPI_DATATYPE_NULL")
_NAMED["MPI_DATATYPE_NULL"] = DATATYPE_NULL
PACKED = _basic("PACKED", "u1", "B")
BYTE = _basic("BYTE", "u1", "B")
AINT = _basic("AINT", "i8", "p")
OFFSET = _basic("OFFSET", "i8", "q")
COUNT = _basic("COUNT", "i8", "q")
CHAR = _basic("CHAR", "S1", "c")
WCHAR = _basic("WCHAR", "U1", "u")
SIGNED_CHAR = _basic("SIGNED_CHAR", "b", "b")
SHORT = _basic("SHORT", "h", "h")
INT = _basic("INT", "i", "i")
LONG = _basic("LONG", "l", "l")
LONG_LONG = _basic("LONG_LONG", "q", "q")
UNSIGNED_CHAR = _basic("UNSIGNED_CHAR", "B", "B")
UNSIGNED_SHORT = _basic("UNSIGNED_SHORT", "H", "H")
UNSIGNED = _basic("UNSIGNED", "I", "I")
UNSIGNED_LONG = _basic("UNSIGNED_LONG", "L", "L")
UNSIGNED_LONG_LONG = _basic("UNSIGNED_LONG_LONG", "Q", "Q")
FLOAT = _basic("FLOAT", "f", "f")
DOUBLE = _basic("DOUBLE", "d", "d")
LONG_DOUBLE = _basic("LONG_DOUBLE", "g", "g")
C_BOOL = _basic("C_BOOL", "?", "?")
INT8_T = _basic("INT8_T", "i1", "b")
INT16_T = _basic("INT16_T", "i2", "h")
INT32_T = _basic("INT32_T", "i4", "i")
INT64_T = _basic("INT64_T", "i8", "l")
UINT8_T = _basic("UINT8_T", "u1", "B")
UINT16_T = _basic("UINT16_T", "u2", "H")
UINT32_T = _basic("UINT32_T", "u4", "I")
UINT64_T = _basic("UINT64_T", "u8", "L")
C_FLOAT_COMPLEX = _basic("C_FLOAT_COMPLEX", "F", "F")
C_DOUBLE_COMPLEX = _basic("C_DOUBLE_COMPLEX", "D", "D")
C_LONG_DOUBLE_COMPLEX = _basic("C_LONG_DOUBLE_COMPLEX", "G", "G")
CXX_BOOL = _basic("CXX_BOOL", "?", "?")
CXX_FLOAT_COMPLEX = _basic("CXX_FLOAT_COMPLEX", "F", "F")
CXX_DOUBLE_COMPLEX = _basic("CXX_DOUBLE_COMPLEX", "D", "D")
CXX_LONG_DOUBLE_COMPLEX = _basic("CXX_LONG_DOUBLE_COMPLEX", "G", "G")
SHORT_INT = _pair("SHORT_INT", "h")
INT_INT = TWOINT = _pair("2INT", "i")
LONG_INT = _pair("LONG_INT", "l")
FLOAT_INT = _pair("FLOAT_INT", "f")
DOUBLE_INT = _pair("DOUBLE_INT", "d")
LONG_DOUBLE_INT = _pair("LONG_DOUBLE_INT", "g")
CHARACTER = _basic("CHARACTER", "S1", "c")
LOGICAL = _basic("LOGICAL", "i4", "i")
INTEGER = _basic("INTEGER", "i4", "i")
REAL = _basic("REAL", "f4", "f")
DOUBLE_PRECISION = _basic("DOUBLE_PRECISION", "f8", "d")
COMPLEX = _basic("COMPLEX", "c8", "F")
DOUBLE_COMPLEX = _basic("DOUBLE_COMPLEX", "c16", "D")
LOGICAL1 = _basic("LOGICAL1", "i1", "b")
LOGICAL2 = _basic("LOGICAL2", "i2", "h")
LOGICAL4 = _basic("LOGICAL4", "i4", "i")
LOGICAL8 = _basic("LOGICAL8", "i8", "l")
INTEGER1 = _basic("INTEGER1", "i1", "b")
INTEGER2 = _basic("INTEGER2", "i2", "h")
INTEGER4 = _basic("INTEGER4", "i4", "i")
INTEGER8 = _basic("INTEGER8", "i8", "l")
REAL4 = _basic("REAL4", "f4", "f")
REAL8 = _basic("REAL8", "f8", "d")
REAL16 = _basic("REAL16", "g", "g")
COMPLEX8 = _basic("COMPLEX8", "c8", "F")
COMPLEX16 = _basic("COMPLEX16", "c16", "D")
COMPLEX32 = _basic("COMPLEX32", "G", "G")

# the older spellings that mpi4py keeps
UNSIGNED_INT = UNSIGNED
SIGNED_SHORT, SIGNED_INT, SIGNED_LONG, SIGNED_LONG_LONG = SHORT, INT, LONG, LONG_LONG
BOOL = C_BOOL
SINT8_T, SINT16_T, SINT32_T, SINT64_T = INT8_T, INT16_T, INT32_T, INT64_T
F_BOOL, F_INT, F_FLOAT, F_DOUBLE, F_COMPLEX = LOGICAL, INTEGER, REAL, DOUBLE_PRECISION, COMPLEX
F_FLOAT_COMPLEX, F_DOUBLE_COMPLEX = COMPLEX, DOUBLE_COMPLEX
C_COMPLEX = C_FLOAT_COMPLEX
COMPLEX4 = DATATYPE_NULL
REAL2 = DATATYPE_NULL
INTEGER16 = DATATYPE_NULL
LOGICAL16 = DATATYPE_NULL

# one predefined type for each NumPy type that an array may have
for _type in (
    C_BOOL, CHAR, SIGNED_CHAR, UNSIGNED_CHAR, SHORT, UNSIGNED_SHORT, INT, UNSIGNED, LONG, UNSIGNED_LONG, LONG_LONG,
    UNSIGNED_LONG_LONG, FLOAT, DOUBLE, LONG_DOUBLE, C_FLOAT_COMPLEX, C_DOUBLE_COMPLEX, C_LONG_DOUBLE_COMPLEX, WCHAR,
):  # fmt: skip
    _BY_DTYPE.setdefault(_type.numpy_dtype().char, _type)
    _BY_DTYPE.setdefault(_type.numpy_dtype().str, _type)


def from_numpy(dtype: np.dtype[Any]) -> Datatype:
    """The predefined type of a NumPy type in native byte order.

    Raises
    ------
    MPIException
        ERR_TYPE: there is none (objects, structures, foreign byte order).
    """
    found = _BY_DTYPE.get(dtype.char) if dtype.isnative else None
    found = found or _BY_DTYPE.get(dtype.str)
    if found is None or found._size != dtype.itemsize:
        raise MPIException(ERR_TYPE, f"no MPI datatype for NumPy's {dtype}; give one explicitly, as [array, datatype]")
    return found


__all__ = [
    name
    for name, value in list(globals().items())
    if isinstance(value, (Datatype, int)) and name.isupper() and not name.startswith(("_", "ERR_"))
] + ["Datatype"]
