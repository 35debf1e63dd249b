"""Pack and Unpack: from elements to a run of bytes and back.

Packed bytes are in this machine's representation, or in external32, which all machines share: it is
big-endian, a C long has 4 bytes, and a long double is IEEE binary128. Conversion works on runs of
numbers of one kind; where the elements lie in memory is the layout's (layout.py).

References
----------
MPI 4.1, sections 5.2 (Pack) and 14.5.2 (external32).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverless_mpi.api.datatype_state import TypeState
from serverless_mpi.api.layout import Layout
from serverless_mpi.api.memory import as_bytes
from serverless_mpi.api.type_tables import EXTERNAL_BYTES
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_CONVERSION,
    ERR_COUNT,
    ERR_TRUNCATE,
    ERR_TYPE,
    ERR_UNSUPPORTED_DATAREP,
    MPIException,
)

_LONG_DOUBLE = np.dtype("g")


class Packing:
    """The calls of a datatype that pack and unpack. `Datatype` gives what it is."""

    @property
    def _live(self) -> TypeState:
        """The type's state; ERR_TYPE for a null handle."""
        raise NotImplementedError

    def check_committed(self) -> None:
        """Raise ERR_TYPE unless the type may communicate."""
        raise NotImplementedError

    def Pack(self, inbuf: Any, outbuf: Any, position: int, comm: Any) -> int:
        """Pack as many elements as fill `inbuf` into `outbuf`.

        Parameters
        ----------
        inbuf, outbuf
            Buffers; `inbuf` is only read.
        position
            Byte of `outbuf` at which the packed elements begin.
        comm
            The communicator on which they will be sent; every one packs alike.

        Returns
        -------
        int
            The byte after the packed elements.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: they do not fit. ERR_TYPE: the type is not committed.

        References
        ----------
        MPI 4.1, section 5.2.
        """
        comm._live()
        self.check_committed()
        source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
        layout = self._live.layout
        count = _count(layout, source)
        end = _end(target, position, count * layout.size, "do not fit at")
        target[position:end] = layout.pack(source, 0, count)
        return end

    def Unpack(self, inbuf: Any, position: int, outbuf: Any, comm: Any) -> int:
        """Unpack as many elements as fill `outbuf` from byte `position` of `inbuf`.

        Parameters
        ----------
        inbuf, outbuf
            Buffers; `inbuf` is only read.
        position
            Byte of `inbuf` at which the packed elements begin.
        comm
            The communicator on which they were received.

        Returns
        -------
        int
            The byte of `inbuf` after the packed elements.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: `inbuf` ends before them. ERR_TYPE: the type is not committed.
        """
        comm._live()
        self.check_committed()
        source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
        layout = self._live.layout
        count = _count(layout, target)
        end = _end(source, position, count * layout.size, "are not there from")
        layout.unpack(source[position:end], target, 0, count)
        return end

    def Pack_size(self, count: int, comm: Any) -> int:
        """Return the bytes that packed elements take.

        Parameters
        ----------
        count
            Number of elements.
        comm
            A communicator that has not been freed.

        Raises
        ------
        MPIException
            ERR_COUNT: the count is negative.
        """
        _check_count(count)
        comm._live()
        return self._live.layout.size * count

    def Pack_external(self, datarep: str, inbuf: Any, outbuf: Any, position: int) -> int:
        """Pack elements in external32, a representation that all machines share.

        Parameters
        ----------
        datarep
            "external32", the only one.
        inbuf, outbuf, position
            As for `Pack`.

        Returns
        -------
        int
            The byte after the packed elements.

        Raises
        ------
        MPIException
            ERR_UNSUPPORTED_DATAREP: another `datarep`. ERR_CONVERSION: a number is too large for
            its width in external32.
        """
        self.check_committed()
        source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
        state = self._live
        count = _count(state.layout, source)
        end = _end(target, position, _external_bytes(state, datarep) * count, "do not fit at")
        packed = state.layout.pack(source, 0, count)
        target[position:end] = _convert(state, packed, count, _encode, native=True)
        return end

    def Unpack_external(self, datarep: str, inbuf: Any, position: int, outbuf: Any) -> int:
        """Unpack what `Pack_external` packed.

        Parameters
        ----------
        datarep
            "external32", the only one.
        inbuf, position, outbuf
            As for `Unpack`.

        Returns
        -------
        int
            The byte of `inbuf` after the packed elements.
        """
        self.check_committed()
        source, target = as_bytes(inbuf, True)[0], as_bytes(outbuf, False)[0]
        state = self._live
        count = _count(state.layout, target)
        end = _end(source, position, _external_bytes(state, datarep) * count, "are not there from")
        packed = _convert(state, source[position:end], count, _decode, native=False)
        state.layout.unpack(memoryview(packed), target, 0, count)
        return end

    def Pack_external_size(self, datarep: str, count: int) -> int:
        """Return the bytes that `count` elements take in external32.

        Parameters
        ----------
        datarep
            'external32'.
        count
            Number of elements.

        Raises
        ------
        MPIException
            ERR_COUNT: the count is negative. ERR_UNSUPPORTED_DATAREP: `datarep` is another
            representation.
        """
        _check_count(count)
        return _external_bytes(self._live, datarep) * count


def _external_bytes(state: TypeState, datarep: str) -> int:
    """Bytes of one element in external32; ERR_UNSUPPORTED_DATAREP for another representation."""
    if datarep != "external32":
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            f"representation {datarep!r} is not supported; use 'external32'",
        )
    return sum(_width(basic) * many for basic, many in state.basics())


def _check_count(count: int) -> None:
    if count < 0:
        raise MPIException(ERR_COUNT, f"a count of {count} is negative")


def _count(layout: Layout, buf: memoryview) -> int:
    """Elements that fit in a buffer."""
    if layout.extent <= 0:
        if not buf.nbytes:
            return 0
        raise MPIException(
            ERR_TYPE, f"elements of extent {layout.extent} cannot be counted in a buffer"
        )
    return buf.nbytes // layout.extent


def _end(view: memoryview, position: int, nbytes: int, what: str) -> int:
    """The byte after `nbytes` at `position`; ERR_TRUNCATE if the buffer ends before it."""
    if position < 0 or position > view.nbytes:
        raise MPIException(
            ERR_ARG, f"position {position} is outside a buffer of {view.nbytes} bytes"
        )
    if position + nbytes > view.nbytes:
        raise MPIException(
            ERR_TRUNCATE, f"{nbytes} bytes {what} byte {position} of a buffer of {view.nbytes}"
        )
    return position + nbytes


def _width(basic: TypeState) -> int:
    """Bytes of a number in external32."""
    return EXTERNAL_BYTES.get(basic, basic.layout.size)


def _convert(state: TypeState, data: memoryview, count: int, change: Any, native: bool) -> bytes:
    """Packed elements with `change` applied to each run of numbers of one kind.

    `native`: `data` is in this machine's representation, and not in external32.
    """
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
    """NumPy's type of a number in external32."""
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
    """NumPy's type of a number here; characters are unsigned integers."""
    base = basic.base
    assert base is not None
    return np.dtype(f"u{base.itemsize}") if base.kind in "SU" else base


def _encode(basic: TypeState, data: memoryview) -> bytes:
    """Numbers of this machine in external32; ERR_CONVERSION if one is too large."""
    if basic.base == _LONG_DOUBLE or basic.base == np.dtype("G"):
        return _to_binary128(np.frombuffer(data, _LONG_DOUBLE))
    numbers = np.frombuffer(data, _plain(basic))
    target = _foreign(basic)
    if basic in EXTERNAL_BYTES and numbers.size:
        limits = np.iinfo(target)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            raise MPIException(
                ERR_CONVERSION,
                f"a {basic.name} is too large for the {target.itemsize} bytes of external32",
            )
    return numbers.astype(target).tobytes()


def _decode(basic: TypeState, data: memoryview) -> bytes:
    """Numbers in external32 as this machine's."""
    if basic.base == _LONG_DOUBLE or basic.base == np.dtype("G"):
        return _from_binary128(data)
    return np.frombuffer(data, _foreign(basic)).astype(_plain(basic)).tobytes()


def _to_binary128(numbers: np.ndarray[Any, Any]) -> bytes:
    """Long doubles of this machine as IEEE binary128, big-endian.

    binary128 has sign and exponent in 16 bits and the fraction in 112; x86's 80-bit numbers store
    the leading 1 of the significand.
    """
    if np.finfo(_LONG_DOUBLE).nmant == 112:
        return numbers.astype(_LONG_DOUBLE.newbyteorder(">")).tobytes()
    if np.finfo(_LONG_DOUBLE).nmant != 63:
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            "this machine's long double has no representation in external32",
        )
    # the significand with its leading 1, then sign and exponent
    words = numbers.view(np.uint64).reshape(-1, 2)
    fraction, head = words[:, 0] & np.uint64((1 << 63) - 1), words[:, 1] & np.uint64(0xFFFF)
    high = (head << np.uint64(48)) | (fraction >> np.uint64(15))
    low = fraction << np.uint64(49)
    return np.stack([high, low], axis=1).astype(">u8").tobytes()


def _from_binary128(data: memoryview) -> bytes:
    """The reverse of `_to_binary128`."""
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


# for data representations of files
external_width = _width


def external_of(state: TypeState, packed: memoryview, count: int) -> bytes:
    """Return packed elements in external32.

    Parameters
    ----------
    state, count
        Type and number of the elements.
    packed
        Their bytes in this machine's representation.

    Raises
    ------
    MPIException
        ERR_CONVERSION: a number is too large for its width in external32.
    """
    return _convert(state, packed, count, _encode, native=True)


def native_of(state: TypeState, stored: memoryview, count: int) -> bytes:
    """Return packed elements of this machine.

    Parameters
    ----------
    state, count
        Type and number of the elements.
    stored
        Their bytes in external32.
    """
    return _convert(state, stored, count, _decode, native=False)
