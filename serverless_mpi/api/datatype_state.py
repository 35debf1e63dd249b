"""What a datatype is, apart from its handles.

`Construction` is what never changes: the layout, the basic types, and how the type was made. Types
that were constructed alike share one. `TypeState` is what one type has of its own: its name,
whether it is committed, its attributes, how many handles refer to it.

References
----------
MPI 4.1, sections 5.1 and 5.1.13 (decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serverless_mpi.api.layout import Layout
from serverless_mpi.core.envelope import UNDEFINED

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
COMBINER_DARRAY = 14
COMBINER_F90_REAL = 15
COMBINER_F90_COMPLEX = 16
COMBINER_F90_INTEGER = 17
COMBINER_RESIZED = 18
COMBINER_HINDEXED_BLOCK = 19
COMBINER_VALUE_INDEX = 20


class Construction:
    """How a datatype was made, and what follows from that; shared, so nothing of it may change.

    Attributes
    ----------
    layout
        Which bytes of memory an element is.
    base
        NumPy's type of the numbers, if all are of one kind.
    combiner
        The constructor.
    parts
        (construction, how many) in type-map order, of a derived type.
    params
        Arguments of the constructor by name, sequences as tuples; the datatypes are not among them.
    integers, counts
        The arguments as `Get_contents` returns them.
    typechar, typestr, code
        Names of the type in the struct module and in NumPy, where it has some.
    pair
        NumPy's type of a predefined (value, index), packed.
    basic
        The predefined type that this is; None for a derived one.
    shared
        Whether equal constructor arguments give this object again.
    """

    __slots__ = (
        "layout",
        "base",
        "combiner",
        "parts",
        "params",
        "integers",
        "counts",
        "typechar",
        "typestr",
        "code",
        "pair",
        "basic",
        "shared",
        "_runs",
    )

    def __init__(
        self,
        layout: Layout,
        base: np.dtype[Any] | None,
        combiner: int,
        parts: Sequence[tuple[Construction, int]] = (),
        params: dict[str, Any] | None = None,
        counts: Sequence[int] = (),
        integers: Sequence[int] = (),
    ) -> None:
        self.layout = layout
        self.base = base
        self.combiner = combiner
        self.parts = parts
        self.params = params or {}
        self.counts = counts
        self.integers = integers
        self.typechar: str | None = None
        self.typestr: str | None = None
        self.code: str | None = None
        self.pair: np.dtype[Any] | None = None
        self.basic: TypeState | None = None
        self.shared = False
        self._runs: list[tuple[TypeState, int]] | None = None

    def runs(self) -> list[tuple[TypeState, int]]:
        """Return (predefined type, how many) of one element, in type-map order.

        Equal neighbours are counted together.
        """
        if self._runs is None:
            runs: list[tuple[TypeState, int]] = []
            if not self.parts:
                assert self.basic is not None
                runs.append((self.basic, 1))
            for of, count in self.parts:
                inner = of.runs()
                repeated = (
                    [(inner[0][0], inner[0][1] * count)] if len(inner) == 1 else inner * count
                )
                for basic, many in repeated:
                    if runs and runs[-1][0] is basic:
                        runs[-1] = (basic, runs[-1][1] + many)
                    elif many:
                        runs.append((basic, many))
            self._runs = runs
        return self._runs


class TypeState:
    """What all handles to one datatype share.

    Parameters
    ----------
    made
        How the type was made.
    types
        The types that it was made of, which may be freed meanwhile.

    Attributes
    ----------
    layout
        That of `made`; here because every buffer call reads it.
    refs
        Handles on which `Free` has to be called.
    constant
        The predefined handle of this type, if it has one.
    attributes
        Values that programs cache on the type; None until the first one.
    """

    # Defaults are in the class: a program may make a type per message, and most types keep them.
    name = ""
    committed = False
    predefined = False
    constant: Any = None
    attributes: dict[int, Any] | None = None
    refs = 1

    def __init__(self, made: Construction, types: Sequence[TypeState] = ()) -> None:
        self.made = made
        self.layout = made.layout
        self.types = types

    @property
    def base(self) -> np.dtype[Any] | None:
        """NumPy's type of the numbers, if all are of one kind."""
        return self.made.base

    @property
    def pair(self) -> np.dtype[Any] | None:
        """NumPy's type of a predefined (value, index), packed."""
        return self.made.pair

    @property
    def combiner(self) -> int:
        """The constructor."""
        return self.made.combiner

    def basics(self) -> list[tuple[TypeState, int]]:
        """Return (predefined type, how many) of one element; see `Construction.runs`."""
        return self.made.runs()

    def count_of(self, nbytes: int) -> int:
        """Return the elements in `nbytes`; UNDEFINED if that is not a whole number.

        Parameters
        ----------
        nbytes
            Bytes of data, such as those of a message.
        """
        size = self.layout.size
        if size == 0:
            return 0 if nbytes == 0 else UNDEFINED
        count, rest = divmod(nbytes, size)
        return UNDEFINED if rest else count

    def elements_of(self, nbytes: int) -> int:
        """Return the basic elements in `nbytes`; UNDEFINED if that is not a whole number.

        Parameters
        ----------
        nbytes
            Bytes of data, such as those of a message.
        """
        size = self.layout.size
        if size == 0:
            return 0 if nbytes == 0 else UNDEFINED
        basics = self.basics()
        whole, rest = divmod(nbytes, size)
        elements = whole * sum(many for _, many in basics)
        for basic, many in basics:
            here = min(many, rest // basic.layout.size)
            elements += here
            rest -= here * basic.layout.size
            if here < many:
                break
        return UNDEFINED if rest else elements

    def bytes_of(self, elements: int) -> int:
        """Return the bytes of so many basic elements.

        Parameters
        ----------
        elements
            Number of basic elements, in type-map order.
        """
        basics = self.basics()
        each = sum(many for _, many in basics)
        if not each:
            return 0
        whole, rest = divmod(elements, each)
        nbytes = whole * self.layout.size
        for basic, many in basics:
            here = min(many, rest)
            nbytes += here * basic.layout.size
            rest -= here
        return nbytes


__all__ = [name for name in list(globals()) if name.startswith("COMBINER_")]
