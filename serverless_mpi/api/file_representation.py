"""Data representations: how numbers are stored in a file.

"native" and "internal" are this machine's bytes. "external32" is big-endian, with the widths of
MPI's table. A program adds others with `Register_datarep`.

The layout of etypes and filetypes is that of memory, with displacements and extents scaled where
the stored width of the numbers differs. That is defined here for types whose numbers are all scaled
alike; others raise ERR_UNSUPPORTED_DATAREP.

References
----------
MPI 4.1, section 14.5.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

from serverless_mpi.api.attributes import reported
from serverless_mpi.api.datatype import Datatype, type_state
from serverless_mpi.api.datatype_state import TypeState
from serverless_mpi.api.file_modes import REPRESENTATIONS
from serverless_mpi.api.handle import handle_of
from serverless_mpi.api.packing import external_of, external_width, native_of
from serverless_mpi.errors import ERR_UNSUPPORTED_DATAREP, MPIException
from serverless_mpi.fileio.pieces import Places


class Representation:
    """The representation of this machine, and what others change.

    Attributes
    ----------
    name
        As given to `Set_view`.
    converts
        Whether stored bytes differ from those in memory.
    """

    converts = False

    def __init__(self, name: str) -> None:
        self.name = name

    def width(self, basic: TypeState) -> int:
        """Return the bytes of a number in the file.

        Parameters
        ----------
        basic
            A predefined type.
        """
        return basic.layout.size

    def _scale(self, state: TypeState) -> Fraction:
        """Stored bytes per byte of memory; ERR_UNSUPPORTED_DATAREP if numbers differ in it."""
        scales = {Fraction(self.width(basic), basic.layout.size) for basic, _ in state.basics()}
        if len(scales) > 1:
            raise MPIException(
                ERR_UNSUPPORTED_DATAREP,
                f"representation {self.name!r} scales the numbers of this datatype differently;"
                " use types of one kind of number",
            )
        return scales.pop() if scales else Fraction(1)

    def size_of(self, datatype: Datatype) -> int:
        """Return the bytes of data of an element in the file.

        Parameters
        ----------
        datatype
            The type.
        """
        state = type_state(datatype)
        if not self.converts:
            return state.layout.size
        return sum(self.width(basic) * many for basic, many in state.basics())

    def places_of(self, datatype: Datatype) -> tuple[Places, int]:
        """Return where the data of an element are in the file, and its extent.

        Parameters
        ----------
        datatype
            The type.
        """
        state = type_state(datatype)
        layout = state.layout
        if not self.converts:
            return layout.pieces, layout.extent
        scale = self._scale(state)
        if scale == 1:
            return layout.pieces, layout.extent
        pieces, extent = layout.pieces * scale.numerator, layout.extent * scale.numerator
        if (pieces % scale.denominator).any() or extent % scale.denominator:
            raise MPIException(
                ERR_UNSUPPORTED_DATAREP,
                f"representation {self.name!r} needs displacements that are multiples of the"
                " numbers' sizes",
            )
        return pieces // scale.denominator, extent // scale.denominator

    def encode(self, datatype: Datatype, count: int, packed: memoryview) -> memoryview:
        """Return packed elements as the file stores them.

        Parameters
        ----------
        datatype, count
            Type and number of the elements.
        packed
            Their bytes; borrowed.
        """
        return packed

    def decode(self, datatype: Datatype, count: int, stored: memoryview) -> memoryview:
        """Return stored elements as packed elements.

        Parameters
        ----------
        datatype, count
            Type of the elements, and their number at most.
        stored
            Bytes of the file; borrowed.
        """
        return stored


class _External(Representation):
    """external32."""

    converts = True

    def width(self, basic: TypeState) -> int:
        return external_width(basic)

    def encode(self, datatype: Datatype, count: int, packed: memoryview) -> memoryview:
        return memoryview(external_of(type_state(datatype), packed, count))

    def decode(self, datatype: Datatype, count: int, stored: memoryview) -> memoryview:
        size = self.size_of(datatype)
        whole = stored.nbytes // size if size else 0
        return memoryview(native_of(type_state(datatype), stored[: whole * size], whole))


class _Registered(Representation):
    """A representation of the program: its functions convert runs of one kind of number."""

    converts = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._read, self._write, self._extent = REPRESENTATIONS[name]

    def width(self, basic: TypeState) -> int:
        return int(reported(self._extent, _datatype(basic)))

    def _each(self, function: Callable[..., Any] | None, datatype: Datatype, data: memoryview,
              stored: bool) -> memoryview:  # fmt: skip
        """Convert all runs of numbers; `stored`: data are the file's."""
        if function is None:
            return data
        state = type_state(datatype)
        runs = state.basics()
        parts, at = [], 0
        while at < data.nbytes:
            for basic, many in runs:
                here, width = basic.layout.size, self.width(basic)
                source, target = (width, here) if stored else (here, width)
                count = min(many, (data.nbytes - at) // source)
                part = bytearray(count * target)
                taken = data[at : at + count * source]
                user, file = (part, taken) if stored else (taken, part)
                reported(partial(function, user, _datatype(basic), count, file, 0))
                parts.append(part)
                at += count * source
                if count < many:
                    return memoryview(b"".join(parts))
        return memoryview(b"".join(parts))

    def encode(self, datatype: Datatype, count: int, packed: memoryview) -> memoryview:
        return self._each(self._write, datatype, packed, stored=False)

    def decode(self, datatype: Datatype, count: int, stored: memoryview) -> memoryview:
        return self._each(self._read, datatype, stored, stored=True)


def _datatype(basic: TypeState) -> Datatype:
    """A handle to a predefined type."""
    return handle_of(Datatype, basic)


_KNOWN: dict[str, Callable[[str], Representation]] = {
    "native": Representation,
    "internal": Representation,
    "external32": _External,
}


def representation(name: str) -> Representation:
    """Return a data representation.

    Parameters
    ----------
    name
        "native", "internal", "external32", or a name that was registered.

    Raises
    ------
    MPIException
        ERR_UNSUPPORTED_DATAREP: there is none of that name.
    """
    made = _KNOWN.get(name) or (_Registered if name in REPRESENTATIONS else None)
    if made is None:
        raise MPIException(
            ERR_UNSUPPORTED_DATAREP,
            f"no data representation is named {name[:40]!r}; use"
            f" {', '.join([*_KNOWN, *REPRESENTATIONS])}, or Register_datarep",
        )
    return made(name)
