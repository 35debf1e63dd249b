"""Which predefined datatype belongs to a code, a size, a pair: tables that types.py fills.

`Datatype` looks types up by code, size and precision, but the types are made after the class, in
types.py. So the tables are below both: types.py fills them when it is imported, and datatype.py and
packing.py read them. `serverless_mpi.MPI` imports all three.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverless_mpi.api.addresses import native
from serverless_mpi.api.datatype_state import (
    COMBINER_F90_COMPLEX,
    COMBINER_NAMED,
    Construction,
    TypeState,
)
from serverless_mpi.api.layout import Layout
from serverless_mpi.core.envelope import UNDEFINED
from serverless_mpi.errors import ERR_ARG, ERR_OTHER, MPIException

# code of the struct module, of NumPy or of the array interface -> handle
BY_CODE: dict[str, Any] = {}
# NumPy's character of a number in native byte order -> handle
OF_CHARACTER: dict[str, Any] = {}
# (type of the value, type of the index) -> handle of the pair
PAIRS: dict[tuple[TypeState, TypeState], Any] = {}
# class (TYPECLASS_REAL, ...) -> handles by rising size
BY_CLASS: dict[int, tuple[Any, ...]] = {}
# predefined type -> bytes in external32, where they are not this machine's
EXTERNAL_BYTES: dict[TypeState, int] = {}

_f90_types: dict[tuple[int, int, int], TypeState] = {}


def predefined(name: str, made: Construction) -> TypeState:
    """Make a predefined type of a construction that nothing else uses.

    Parameters
    ----------
    name
        Name of the datatype.
    made
        The construction, which becomes shared; its basic type is the new one.
    """
    state = TypeState(made)
    made.basic, made.shared = state, True
    state.name = name
    state.predefined = state.committed = True
    return state


def number(
    dtype: np.dtype[Any], combiner: int = COMBINER_NAMED, params: dict[str, int] | None = None
) -> Construction:
    """Return the construction of a number that is laid out as `dtype`.

    Parameters
    ----------
    dtype
        NumPy's type.
    combiner, params
        The constructor and its arguments, of a Fortran type of a precision.
    """
    layout = Layout.run(dtype.itemsize, dtype.alignment)
    integers = tuple(params.values()) if params else ()
    return Construction(layout, dtype, combiner, params=params, integers=integers)


def of_code(code: str) -> Any:
    """Return the datatype of a code.

    Parameters
    ----------
    code
        Format of an element, as in the buffer protocol.

    Raises
    ------
    KeyError
        No datatype has this code.
    BufferError
        The code is of the other byte order.
    """
    datatype = BY_CODE.get(code)
    if datatype is None:
        datatype = BY_CODE.get(native(code) if code else code)
    if datatype is None:
        raise KeyError(
            f"no datatype has the format {code!r}; give one explicitly, as [buffer, datatype]"
        )
    return datatype


def pair_of(value: TypeState, index: TypeState) -> Any:
    """Return the predefined pair of two types, or None.

    Parameters
    ----------
    value, index
        Types of the value and of the index.
    """
    return PAIRS.get((value, index))


def of_size(typeclass: int, size: int) -> Any:
    """Return the Fortran type of a class and a size.

    Parameters
    ----------
    typeclass
        Class of the type.
    size
        Size in bytes.

    Raises
    ------
    MPIException
        ERR_ARG: there is no such type.
    """
    for datatype in BY_CLASS.get(typeclass, ()):
        if datatype.Get_size() == size:
            return datatype
    raise MPIException(ERR_ARG, f"no datatype has class {typeclass} and {size} bytes")


def f90(combiner: int, kind: str, p: int, r: int, params: dict[str, int]) -> TypeState:
    """Return the smallest Fortran type of a precision; equal arguments give the same type.

    Parameters
    ----------
    kind
        NumPy's kind: "i", "f" or "c".
    p, r
        Decimal digits and decimal exponent; of an integer `r` is the number of digits.
    params
        The arguments as `Datatype.decode` returns them.
    """
    known = _f90_types.get((combiner, p, r))
    if known is not None:
        return known
    digits, span = (0 if value == UNDEFINED else value for value in (p, r))
    if kind == "i":
        candidates = [
            (np.dtype(code), 0, digits)
            for code, digits in (("i1", 2), ("i2", 4), ("i4", 9), ("i8", 18))
        ]
    else:
        candidates = [
            (np.dtype(code), np.finfo(code).precision, int(np.log10(np.finfo(code).max)))
            for code in ("f4", "f8", "g")
        ]
    for dtype, most_digits, most_span in candidates:
        if digits <= most_digits and span <= most_span:
            itemsize = dtype.itemsize * (2 if combiner == COMBINER_F90_COMPLEX else 1)
            like: Construction = of_code(f"{kind}{itemsize}")._ob.made
            assert like.base is not None
            made = number(like.base, combiner, params)
            made.typechar, made.typestr, made.code = like.typechar, like.typestr, like.typestr
            return _f90_types.setdefault((combiner, p, r), predefined("", made))
    raise MPIException(ERR_OTHER, f"no datatype has {p} digits and range {r}")
