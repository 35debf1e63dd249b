"""Pack and Unpack: elements to a run of bytes and back, in this machine's representation or the standard's external32.

external32 is big-endian; a C long has 4 bytes, a long double is IEEE binary128, whatever this machine's are.
Source: MPI 4.1, sections 5.2 and 14.5.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverless_mpi.api.datatype import Datatype, type_state
from serverless_mpi.api.datatype_state import TypeState
from serverless_mpi.api.memory import as_bytes
from serverless_mpi.api.types import LONG, UNSIGNED_LONG, WCHAR
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_CONVERSION,
    ERR_TRUNCATE,
    ERR_TYPE,
    ERR_UNSUPPORTED_DATAREP,
    MPIException,
)

# where external32's width is not this machine's
_WIDTHS = {LONG._ob: 4, UNSIGNED_LONG._ob: 4, WCHAR._ob: 2}
_LONG_DOUBLE = np.dtype("g")


def _count(datatype: Datatype, buf: memoryview) -> int:
    layout = type_state(datatype).layout
    if layout.extent <= 0:
        if not buf.nbytes:
            return 0
        raise MPIException(
            ERR_TYPE, f"elements of extent {layout.extent} cannot be counted in a buffer"
        )
    return buf.nbytes // layout.extent


def _room(view: memoryview, position: int, nbytes: int, what: str) -> None:
    if position < 0 or position > view.nbytes:
        raise MPIException(
            ERR_ARG, f"position {position} is outside a buffer of {view.nbytes} bytes"
        )
    if position + nbytes > view.nbytes:
        raise MPIException(
            ERR_TRUNCATE, f"{nbytes} bytes {what} byte {position} of a buffer of {view.nbytes}"
        )


def _checked(datatype: Datatype) -> Datatype:
    datatype.check_committed()
    return datatype


def pack(datatype: Datatype, inbuf: Any, outbuf: Any, position: int) -> int:
    """`Datatype.Pack`."""
    source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
    layout = type_state(_checked(datatype)).layout
    count = _count(datatype, source)
    nbytes = count * layout.size
    _room(target, position, nbytes, "do not fit at")
    target[position : position + nbytes] = layout.pack(source, 0, count)
    return position + nbytes


def unpack(datatype: Datatype, inbuf: Any, position: int, outbuf: Any) -> int:
    """`Datatype.Unpack`."""
    source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
    layout = type_state(_checked(datatype)).layout
    count = _count(datatype, target)
    nbytes = count * layout.size
    _room(source, position, nbytes, "are not there from")
    layout.unpack(source[position : position + nbytes], target, 0, count)
    return position + nbytes


def external_size(datatype: Datatype, datarep: str) -> int:
    """Bytes of one element in external32."""
    if datarep != "external32":
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            f"representation {datarep!r} is not known; there is 'external32'",
        )
    return sum(_width(basic) * many for basic, many in type_state(datatype).basics())


def pack_external(datatype: Datatype, datarep: str, inbuf: Any, outbuf: Any, position: int) -> int:
    """`Datatype.Pack_external`."""
    source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
    count = _count(_checked(datatype), source)
    nbytes = external_size(datatype, datarep) * count
    _room(target, position, nbytes, "do not fit at")
    packed = type_state(datatype).layout.pack(source, 0, count)
    target[position : position + nbytes] = _convert(
        type_state(datatype), packed, count, _encode, native=True
    )
    return position + nbytes


def unpack_external(
    datatype: Datatype, datarep: str, inbuf: Any, position: int, outbuf: Any
) -> int:
    """`Datatype.Unpack_external`."""
    source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
    count = _count(_checked(datatype), target)
    nbytes = external_size(datatype, datarep) * count
    _room(source, position, nbytes, "are not there from")
    packed = _convert(
        type_state(datatype), source[position : position + nbytes], count, _decode, native=False
    )
    type_state(datatype).layout.unpack(memoryview(packed), target, 0, count)
    return position + nbytes


def _width(basic: TypeState) -> int:
    return _WIDTHS.get(basic, basic.layout.size)


def _convert(state: TypeState, data: memoryview, count: int, change: Any, native: bool) -> bytes:
    """Each run of numbers of one kind, changed; elements of one kind are one run."""
    runs = state.basics()
    if len(runs) == 1:
        runs, count = [(runs[0][0], runs[0][1] * count)], 1
    parts, at = [], 0
    for _ in range(count):
        for basic, many in runs:
            nbytes = many * (basic.layout.size if native else _width(basic))
            parts.append(change(basic, data[at : at + nbytes]))
            at += nbytes
    return b"".join(parts)


def _foreign(basic: TypeState) -> np.dtype[Any]:
    base = basic.base
    assert base is not None
    width = _width(basic)
    if base.kind in "SU":
        base = np.dtype(f"u{width}")
    elif width != base.itemsize:
        base = np.dtype(f"{base.kind}{width}")
    foreign: np.dtype[Any] = base.newbyteorder(">")
    return foreign


def _plain(basic: TypeState) -> np.dtype[Any]:
    base = basic.base
    assert base is not None
    return np.dtype(f"u{base.itemsize}") if base.kind in "SU" else base


def _encode(basic: TypeState, data: memoryview) -> bytes:
    if basic.base == _LONG_DOUBLE or basic.base == np.dtype("G"):
        return _to_binary128(np.frombuffer(data, _LONG_DOUBLE))
    numbers = np.frombuffer(data, _plain(basic))
    target = _foreign(basic)
    if basic in _WIDTHS and numbers.size:
        limits = np.iinfo(target)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            raise MPIException(
                ERR_CONVERSION,
                f"a {basic.name} is too large for the {target.itemsize} bytes of external32",
            )
    return numbers.astype(target).tobytes()


def _decode(basic: TypeState, data: memoryview) -> bytes:
    if basic.base == _LONG_DOUBLE or basic.base == np.dtype("G"):
        return _from_binary128(data)
    return np.frombuffer(data, _foreign(basic)).astype(_plain(basic)).tobytes()


def _to_binary128(numbers: np.ndarray[Any, Any]) -> bytes:
    """x86's 80-bit numbers, or whatever long double is here, as IEEE binary128, big-endian: sign and exponent in 16 bits, fraction in 112."""
    if np.finfo(_LONG_DOUBLE).nmant == 112:
        return numbers.astype(_LONG_DOUBLE.newbyteorder(">")).tobytes()
    if np.finfo(_LONG_DOUBLE).nmant != 63:
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            "this machine's long double has no representation in external32",
        )
    words = numbers.view(np.uint64).reshape(
        -1, 2
    )  # the significand with its leading 1, then sign and exponent
    fraction, head = words[:, 0] & np.uint64((1 << 63) - 1), words[:, 1] & np.uint64(0xFFFF)
    high = (head << np.uint64(48)) | (fraction >> np.uint64(15))
    low = fraction << np.uint64(49)
    return np.stack([high, low], axis=1).astype(">u8").tobytes()


def _from_binary128(data: memoryview) -> bytes:
    if np.finfo(_LONG_DOUBLE).nmant == 112:
        return np.frombuffer(data, _LONG_DOUBLE.newbyteorder(">")).astype(_LONG_DOUBLE).tobytes()
    if np.finfo(_LONG_DOUBLE).nmant != 63:
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            "this machine's long double has no representation in external32",
        )
    words = np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
    head = words[:, 0] >> np.uint64(48)
    fraction = ((words[:, 0] & np.uint64((1 << 48) - 1)) << np.uint64(15)) | (
        words[:, 1] >> np.uint64(49)
    )
    leading = np.where(head & np.uint64(0x7FFF), np.uint64(1 << 63), np.uint64(0))
    return np.stack([fraction | leading, head], axis=1).astype(np.uint64).tobytes()
