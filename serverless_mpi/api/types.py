"""The predefined datatypes, and which of them belongs to a code, a size, a pair.

`type_tables` is filled here.

References
----------
MPI 4.1, sections 3.2.2 (predefined types) and 19.1.9 (types of a given size).
"""

from __future__ import annotations

import numpy as np

from serverless_mpi.api.datatype import DATATYPE_NULL, Datatype, type_state
from serverless_mpi.api.datatype_state import COMBINER_NAMED, Construction
from serverless_mpi.api.handle import handle_of, name_constant
from serverless_mpi.api.memory import CASTABLE
from serverless_mpi.api.type_constructors import struct
from serverless_mpi.api.type_tables import (
    BY_CLASS,
    BY_CODE,
    EXTERNAL_BYTES,
    OF_CHARACTER,
    PAIRS,
    number,
    predefined,
)

TYPECLASS_REAL = 1
TYPECLASS_INTEGER = 2
TYPECLASS_COMPLEX = 3
TYPECLASS_LOGICAL = 4


def _basic(label: str, kind: str, char: str, code: str = "", name: str = "") -> Datatype:
    """A predefined type of one number.

    Parameters
    ----------
    label
        Name in the module MPI.
    kind
        NumPy's type.
    char
        Character in the struct module.
    code
        What `tocode` returns; the character by default.
    name
        What `Get_name` returns; MPI_<label> by default.
    """
    dtype = np.dtype(kind)
    made = number(dtype)
    made.typechar, made.code = char, code or char
    made.typestr = {"S": "S1", "U": "U1", "b": "b1"}.get(
        dtype.kind
    ) or f"{dtype.kind}{dtype.itemsize}"
    return name_constant(handle_of(Datatype, predefined(name or f"MPI_{label}", made)), label)


def _pair(label: str, first: Datatype, name: str = "") -> Datatype:
    """A value and a C int, as a C struct lays them out."""
    value = first._ob.base
    dtype = np.dtype([("value", value), ("index", "i")], align=True)
    parts = ((first._ob.made, 1), (INT._ob.made, 1))
    fields = struct(tuple(of for of, _ in parts), (1, 1), (0, dtype.fields["index"][1]), True)  # type: ignore[index]
    made = Construction(fields.layout.bounded(0, dtype.itemsize), None, COMBINER_NAMED, parts)
    made.pair = np.dtype([("value", value), ("index", "i")])
    return name_constant(handle_of(Datatype, predefined(name or f"MPI_{label}", made)), label)


PACKED = _basic("PACKED", "u1", "B")
BYTE = _basic("BYTE", "u1", "B")
AINT = _basic("AINT", "i8", "p")
OFFSET = _basic("OFFSET", "i8", "p")
COUNT = _basic("COUNT", "i8", "p")
CHAR = _basic("CHAR", "S1", "c")
WCHAR = _basic("WCHAR", "U1", "U")
SIGNED_CHAR = _basic("SIGNED_CHAR", "b", "b")
SHORT = _basic("SHORT", "h", "h")
INT = _basic("INT", "i", "i")
LONG = _basic("LONG", "l", "l")
LONG_LONG = _basic("LONG_LONG", "q", "q", name="MPI_LONG_LONG_INT")
UNSIGNED_CHAR = _basic("UNSIGNED_CHAR", "B", "B")
UNSIGNED_SHORT = _basic("UNSIGNED_SHORT", "H", "H")
UNSIGNED = _basic("UNSIGNED", "I", "I")
UNSIGNED_LONG = _basic("UNSIGNED_LONG", "L", "L")
UNSIGNED_LONG_LONG = _basic("UNSIGNED_LONG_LONG", "Q", "Q")
FLOAT = _basic("FLOAT", "f", "f")
DOUBLE = _basic("DOUBLE", "d", "d")
LONG_DOUBLE = _basic("LONG_DOUBLE", "g", "g")
C_BOOL = _basic("C_BOOL", "?", "?", "b1")
INT8_T = _basic("INT8_T", "i1", "b", "i1")
INT16_T = _basic("INT16_T", "i2", "h", "i2")
INT32_T = _basic("INT32_T", "i4", "i", "i4")
INT64_T = _basic("INT64_T", "i8", "l", "i8")
UINT8_T = _basic("UINT8_T", "u1", "B", "u1")
UINT16_T = _basic("UINT16_T", "u2", "H", "u2")
UINT32_T = _basic("UINT32_T", "u4", "I", "u4")
UINT64_T = _basic("UINT64_T", "u8", "L", "u8")
FLOAT16_T = _basic("FLOAT16_T", "f2", "e")
FLOAT32_T = FLOAT
FLOAT64_T = DOUBLE
BFLOAT16_T = DATATYPE_NULL
C_COMPLEX = C_FLOAT_COMPLEX = _basic("C_COMPLEX", "F", "F")
C_DOUBLE_COMPLEX = _basic("C_DOUBLE_COMPLEX", "D", "D")
C_LONG_DOUBLE_COMPLEX = _basic("C_LONG_DOUBLE_COMPLEX", "G", "G")
CXX_BOOL = _basic("CXX_BOOL", "?", "?")
CXX_FLOAT_COMPLEX = _basic("CXX_FLOAT_COMPLEX", "F", "F")
CXX_DOUBLE_COMPLEX = _basic("CXX_DOUBLE_COMPLEX", "D", "D")
CXX_LONG_DOUBLE_COMPLEX = _basic("CXX_LONG_DOUBLE_COMPLEX", "G", "G")
SHORT_INT = _pair("SHORT_INT", SHORT)
INT_INT = TWOINT = _pair("INT_INT", INT, "MPI_2INT")
LONG_INT = _pair("LONG_INT", LONG)
FLOAT_INT = _pair("FLOAT_INT", FLOAT)
DOUBLE_INT = _pair("DOUBLE_INT", DOUBLE)
LONG_DOUBLE_INT = _pair("LONG_DOUBLE_INT", LONG_DOUBLE)
CHARACTER = _basic("CHARACTER", "S1", "c")
LOGICAL = _basic("LOGICAL", "i4", "i")
INTEGER = _basic("INTEGER", "i4", "i")
REAL = _basic("REAL", "f4", "f")
DOUBLE_PRECISION = _basic("DOUBLE_PRECISION", "f8", "d")
COMPLEX = _basic("COMPLEX", "c8", "F")
DOUBLE_COMPLEX = _basic("DOUBLE_COMPLEX", "c16", "D")
LOGICAL1 = _basic("LOGICAL1", "?", "?", "b1")
LOGICAL2 = _basic("LOGICAL2", "i2", "h", "i2")
LOGICAL4 = _basic("LOGICAL4", "i4", "i", "i4")
LOGICAL8 = _basic("LOGICAL8", "i8", "l", "i8")
LOGICAL16 = DATATYPE_NULL
INTEGER1 = _basic("INTEGER1", "i1", "b", "i1")
INTEGER2 = _basic("INTEGER2", "i2", "h", "i2")
INTEGER4 = _basic("INTEGER4", "i4", "i", "i4")
INTEGER8 = _basic("INTEGER8", "i8", "l", "i8")
INTEGER16 = DATATYPE_NULL
REAL2 = _basic("REAL2", "f2", "e", "f2")
REAL4 = _basic("REAL4", "f4", "f", "f4")
REAL8 = _basic("REAL8", "f8", "d", "f8")
REAL16 = _basic("REAL16", "g", "g", "f16")
COMPLEX4 = DATATYPE_NULL
COMPLEX8 = _basic("COMPLEX8", "c8", "F", "c8")
COMPLEX16 = _basic("COMPLEX16", "c16", "D", "c16")
COMPLEX32 = _basic("COMPLEX32", "G", "G", "c32")

# the older spellings that mpi4py keeps
UNSIGNED_INT = UNSIGNED
SIGNED_SHORT, SIGNED_INT, SIGNED_LONG, SIGNED_LONG_LONG = SHORT, INT, LONG, LONG_LONG
BOOL = C_BOOL
SINT8_T, SINT16_T, SINT32_T, SINT64_T = INT8_T, INT16_T, INT32_T, INT64_T
F_BOOL, F_INT, F_FLOAT, F_DOUBLE, F_COMPLEX = LOGICAL, INTEGER, REAL, DOUBLE_PRECISION, COMPLEX
F_FLOAT_COMPLEX, F_DOUBLE_COMPLEX = COMPLEX, DOUBLE_COMPLEX

# codes of the struct module, of NumPy and of the array interface -> datatype, as mpi4py maps them
_typedict: dict[str, Datatype] = {
    "?": C_BOOL,
    "b": SIGNED_CHAR,
    "h": SHORT,
    "i": INT,
    "l": LONG,
    "q": LONG_LONG,
    "B": UNSIGNED_CHAR,
    "H": UNSIGNED_SHORT,
    "I": UNSIGNED,
    "L": UNSIGNED_LONG,
    "Q": UNSIGNED_LONG_LONG,
    "e": FLOAT16_T,
    "f": FLOAT,
    "d": DOUBLE,
    "g": LONG_DOUBLE,
    "Zf": C_COMPLEX,
    "Zd": C_DOUBLE_COMPLEX,
    "Zg": C_LONG_DOUBLE_COMPLEX,
    "F": C_COMPLEX,
    "D": C_DOUBLE_COMPLEX,
    "G": C_LONG_DOUBLE_COMPLEX,
    "b1": C_BOOL,
    "i1": INT8_T,
    "i2": INT16_T,
    "i4": INT32_T,
    "i8": INT64_T,
    "u1": UINT8_T,
    "u2": UINT16_T,
    "u4": UINT32_T,
    "u8": UINT64_T,
    "f2": FLOAT16_T,
    "f4": FLOAT,
    "f8": DOUBLE,
    "c8": C_COMPLEX,
    "c16": C_DOUBLE_COMPLEX,
    "n": COUNT,
    "N": UNSIGNED_LONG,
    "p": AINT,
    "P": UNSIGNED_LONG,
    "c": CHAR,
    "a": CHAR,
    "S": CHAR,
    "S1": CHAR,
    "s": CHAR,
    "1s": CHAR,
    "U": WCHAR,
    "U1": WCHAR,
    "u": UINT16_T,
    "1u": UINT16_T,
    "w": WCHAR,
    "1w": WCHAR,
    "M": INT64_T,
    "M8": INT64_T,
    "m": INT64_T,
    "m8": INT64_T,
}
_wide = np.dtype("g").itemsize
_typedict |= {f"f{_wide}": LONG_DOUBLE, f"c{2 * _wide}": C_LONG_DOUBLE_COMPLEX}
_typedict_c: dict[str, Datatype] = {
    code: _typedict[code]
    for code in (
        "?",
        *"bhilqBHILQfdgFDG",
        "b1",
        "i1",
        "i2",
        "i4",
        "i8",
        "u1",
        "u2",
        "u4",
        "u8",
        "f2",
        "f4",
        "f8",
        f"f{_wide}",
        "c8",
        "c16",
        f"c{2 * _wide}",
    )
}
_typedict_f: dict[str, Datatype] = {
    "l": LOGICAL,
    "i": INTEGER,
    "r": REAL,
    "s": REAL,
    "d": DOUBLE_PRECISION,
    "c": COMPLEX,
    "z": DOUBLE_COMPLEX,
    "l1": LOGICAL1,
    "l2": LOGICAL2,
    "l4": LOGICAL4,
    "l8": LOGICAL8,
    "i1": INTEGER1,
    "i2": INTEGER2,
    "i4": INTEGER4,
    "i8": INTEGER8,
    "r2": REAL2,
    "r4": REAL4,
    "r8": REAL8,
    "r16": REAL16,
    "c8": COMPLEX8,
    "c16": COMPLEX16,
    "c32": COMPLEX32,
}

PAIRS |= {
    (value._ob, INT._ob): pair
    for value, pair in (
        (SHORT, SHORT_INT),
        (INT, INT_INT),
        (LONG, LONG_INT),
        (FLOAT, FLOAT_INT),
        (DOUBLE, DOUBLE_INT),
        (LONG_DOUBLE, LONG_DOUBLE_INT),
    )
}
BY_CLASS |= {
    TYPECLASS_LOGICAL: (LOGICAL1, LOGICAL2, LOGICAL4, LOGICAL8),
    TYPECLASS_INTEGER: (INTEGER1, INTEGER2, INTEGER4, INTEGER8),
    TYPECLASS_REAL: (REAL2, REAL4, REAL8, REAL16),
    TYPECLASS_COMPLEX: (COMPLEX8, COMPLEX16, COMPLEX32),
}
BY_CODE |= _typedict
OF_CHARACTER |= {char: _typedict[char] for char in CASTABLE}
EXTERNAL_BYTES |= {LONG._ob: 4, UNSIGNED_LONG._ob: 4, WCHAR._ob: 2}


def _typecode(datatype: Datatype) -> str | None:
    """Return what `tocode` returns, or None."""
    return None if not datatype else type_state(datatype).made.code


def _typealign(datatype: Datatype) -> int | None:
    """Return the alignment in bytes; None of a null or derived type."""
    return (
        None
        if not datatype or not type_state(datatype).predefined
        else type_state(datatype).layout.align
    )


__all__ = ["_typealign", "_typecode", "_typedict", "_typedict_c", "_typedict_f"] + [
    name
    for name, value in list(globals().items())
    if name.isupper()
    and name[0] != "_"
    and isinstance(value, (Datatype, int))
    and not name.startswith(("COMBINER_", "ERR_", "UNDEFINED"))
]
