"""What a datatype is, apart from its handles: its layout, its basic types, how it was made (MPI 4.1, sections 5.1 and 5.1.11)."""

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


class TypeState:
    """What all handles to one datatype share.

    base: NumPy's type of the numbers, where they are of one kind; parts: (type, how many) in type-map order, of a derived type;
    integers, counts, types: the constructor's arguments as `Get_contents` gives them; params: by name, as `decode` gives them;
    typechar, typestr, code: of the struct module and NumPy, where there are some; refs: handles that `Free` has to be called on.
    """

    __slots__ = (
        "layout",
        "base",
        "parts",
        "name",
        "combiner",
        "integers",
        "counts",
        "types",
        "params",
        "committed",
        "refs",
        "attributes",
        "constant",
        "predefined",
        "typechar",
        "typestr",
        "code",
        "pair",
        "runs",
    )

    def __init__(
        self,
        layout: Layout,
        base: np.dtype[Any] | None,
        combiner: int,
        parts: Sequence[tuple[TypeState, int]] = (),
    ) -> None:
        self.layout, self.base, self.combiner, self.parts = layout, base, combiner, parts
        self.name = ""
        self.integers: list[int] = []
        self.counts: list[int] = []
        self.types: list[TypeState] = []
        self.params: dict[str, Any] = {}
        self.predefined = self.committed = False
        self.refs = 1
        self.attributes: dict[int, Any] = {}
        self.constant: Any = None
        self.typechar: str | None = None
        self.typestr: str | None = None
        self.code: str | None = None
        self.pair: np.dtype[Any] | None = None  # of a predefined (value, index), packed
        self.runs: list[tuple[TypeState, int]] | None = None

    def basics(self) -> list[tuple[TypeState, int]]:
        """(predefined type, how many) of one element, in type-map order; equal neighbours counted together."""
        if self.runs is None:
            runs: list[tuple[TypeState, int]] = []
            for of, count in self.parts or [(self, 1)]:
                inner = [(of, 1)] if of is self else of.basics()
                repeated = (
                    [(inner[0][0], inner[0][1] * count)] if len(inner) == 1 else inner * count
                )
                for basic, many in repeated:
                    if runs and runs[-1][0] is basic:
                        runs[-1] = (basic, runs[-1][1] + many)
                    elif many:
                        runs.append((basic, many))
            self.runs = runs
        return self.runs

    def count_of(self, nbytes: int) -> int:
        """Elements in so many bytes; UNDEFINED if that is no whole number."""
        size = self.layout.size
        if size == 0:
            return 0 if nbytes == 0 else UNDEFINED
        count, rest = divmod(nbytes, size)
        return UNDEFINED if rest else count

    def elements_of(self, nbytes: int) -> int:
        """Basic elements in so many bytes; UNDEFINED if that is no whole number."""
        size = self.layout.size
        if size == 0:
            return 0 if nbytes == 0 else UNDEFINED
        basics = self.basics()
        whole, rest = divmod(nbytes, size)
        found = whole * sum(many for _, many in basics)
        for basic, many in basics:
            here = min(many, rest // basic.layout.size)
            found += here
            rest -= here * basic.layout.size
            if here < many:
                break
        return UNDEFINED if rest else found

    def bytes_of(self, elements: int) -> int:
        """Bytes of so many basic elements."""
        basics = self.basics()
        each = sum(many for _, many in basics)
        if not each:
            return 0
        whole, rest = divmod(elements, each)
        found = whole * self.layout.size
        for basic, many in basics:
            here = min(many, rest)
            found += here * basic.layout.size
            rest -= here
        return found


__all__ = [name for name in list(globals()) if name.startswith("COMBINER_")]
