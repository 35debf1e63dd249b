"""Datatypes: the object, its constructors and what it tells of itself (MPI 4.1, chapter 5).

What a type is is in datatype_state.py, where its bytes are in layout.py, parts of arrays in arrays.py, the predefined types in types.py,
packing in packing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from serverless_mpi.api import datatype_state
from serverless_mpi.api.arrays import ORDER_C, indices_of_rank, part_of_array
from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.datatype_state import (
    COMBINER_CONTIGUOUS,
    COMBINER_DARRAY,
    COMBINER_DUP,
    COMBINER_F90_COMPLEX,
    COMBINER_F90_INTEGER,
    COMBINER_F90_REAL,
    COMBINER_HINDEXED,
    COMBINER_HINDEXED_BLOCK,
    COMBINER_HVECTOR,
    COMBINER_INDEXED,
    COMBINER_INDEXED_BLOCK,
    COMBINER_NAMED,
    COMBINER_RESIZED,
    COMBINER_STRUCT,
    COMBINER_SUBARRAY,
    COMBINER_VECTOR,
    TypeState,
)
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.api.layout import Block, Layout
from serverless_mpi.api.packing import Packing
from serverless_mpi.api.type_tables import f90, of_code, of_size, pair_of
from serverless_mpi.errors import ERR_ARG, ERR_COUNT, ERR_RANK, ERR_TYPE, MPIException

_COMBINERS = {
    getattr(datatype_state, name): name.removeprefix("COMBINER_") for name in datatype_state.__all__
}
_MOST_NAME = 127


class Datatype(Handle, Attributed, Packing):
    """An MPI datatype.

    size: bytes of data; lb, ub, extent: bytes an element spans in an array of them; a derived type must be committed before it
    communicates.
    """

    __module__ = "serverless_mpi.MPI"
    _ob: Any

    def __new__(cls, datatype: Datatype | None = None) -> Datatype:
        return cls._copy(datatype)  # type: ignore[no-any-return]

    @property
    def _live(self) -> TypeState:
        state = self._ob
        if state is None or not state.refs:
            raise MPIException(ERR_TYPE, "the datatype is null or has been freed")
        return state  # type: ignore[no-any-return]

    def _attribute_table(self) -> dict[int, Any]:
        return self._live.attributes

    # --- facts ---------------------------------------------------------------

    def Get_size(self) -> int:
        """Bytes of data in one element."""
        return self._live.layout.size

    def Get_extent(self) -> tuple[int, int]:
        """(lower bound, extent) in bytes."""
        layout = self._live.layout
        return layout.lb, layout.extent

    def Get_true_extent(self) -> tuple[int, int]:
        """(true lower bound, true extent) in bytes: of the data alone."""
        layout = self._live.layout
        return layout.true_lb, layout.true_ub - layout.true_lb

    def Get_name(self) -> str:
        """The type's name."""
        return "MPI_DATATYPE_NULL" if self._ob is None else self._live.name

    def Set_name(self, name: str) -> None:
        """Name the type."""
        self._live.name = name[:_MOST_NAME]

    def Get_envelope(self) -> tuple[int, int, int, int, int]:
        """(integers, addresses, large counts, datatypes, combiner): how much `Get_contents` gives."""
        state = self._live
        return len(state.integers), 0, len(state.counts), len(state.types), state.combiner

    def Get_contents(self) -> tuple[list[int], list[int], list[int], list[Datatype]]:
        """(integers, addresses, large counts, datatypes) of the constructor call; derived datatypes are to be freed."""
        state = self._live
        if state.combiner == COMBINER_NAMED:
            raise MPIException(ERR_TYPE, "a predefined datatype has no contents")
        return list(state.integers), [], list(state.counts), [_handle(of) for of in state.types]

    def decode(self) -> tuple[Datatype, str, dict[str, Any]]:
        """(the datatype it was made of, the combiner's name, the constructor's arguments by name)."""
        state = self._live
        if state.combiner == COMBINER_NAMED:
            return self, "NAMED", {}
        types = [_handle(of) for of in state.types]
        params = dict(state.params)
        if state.combiner == COMBINER_STRUCT:
            params["datatypes"] = types
        one = len(types) == 1 and state.combiner != COMBINER_STRUCT
        return types[0] if one else DATATYPE_NULL, _COMBINERS[state.combiner], params

    def _combiner(self) -> int:
        return COMBINER_NAMED if self._ob is None else self._live.combiner

    size = property(Get_size, doc="Bytes of data in one element.")
    extent = property(
        lambda self: self._live.layout.extent, doc="Bytes from one element to the next."
    )
    lb = property(lambda self: self._live.layout.lb, doc="Lower bound in bytes.")
    ub = property(lambda self: self._live.layout.ub, doc="Upper bound in bytes.")
    true_extent = property(lambda self: self.Get_true_extent()[1], doc="Bytes that the data span.")
    true_lb = property(
        lambda self: self._live.layout.true_lb, doc="Where the data begin, in bytes."
    )
    true_ub = property(lambda self: self._live.layout.true_ub, doc="Where the data end, in bytes.")
    name = property(Get_name, Set_name, doc="The type's name.")
    envelope = property(Get_envelope, doc="See Get_envelope.")
    contents = property(Get_contents, doc="See Get_contents.")
    combiner = property(_combiner, doc="The constructor that made it.")
    is_named = property(
        lambda self: self._combiner() == COMBINER_NAMED, doc="Whether MPI gives it a name."
    )
    is_predefined = property(
        lambda self: self._ob is None or self._ob.predefined,
        doc="Whether it was not made by a program.",
    )
    typechar = property(
        lambda self: self._live.typechar or "V",
        doc="Its character in the struct module; V for several numbers.",
    )
    typestr = property(
        lambda self: self._live.typestr or f"V{self._live.layout.extent}",
        doc="Its array-interface string.",
    )

    def tocode(self) -> str:
        """The character code or type string.

        Raises
        ------
        ValueError
            It has none.
        """
        code = None if self._ob is None else self._live.code
        if code is None:
            raise ValueError(
                f"the datatype {self.Get_name() or 'made by the program'} has no character code"
            )
        return code

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """The predefined type of a character code or type string, such as 'd' or 'f8'."""
        try:
            return cls(of_code(code))
        except (KeyError, BufferError):
            raise ValueError(f"there is no datatype of code {code!r}") from None

    # --- life ----------------------------------------------------------------

    def Commit(self) -> Datatype:
        """Make the type ready for communication: its index plan is made here."""
        state = self._live
        if not state.committed:
            state.layout.compile()
            state.committed = True
        return self

    def Free(self) -> None:
        """Give the type up; types made from it stay."""
        state = self._live
        if state.predefined:
            raise MPIException(ERR_TYPE, f"{state.name} is predefined and cannot be freed")
        if state.refs == 1:
            self._delete_attributes()
            forget(state)
        state.refs -= 1
        self._ob = None

    def free(self) -> None:
        """Free it, unless it is null or a constant; a copy of a predefined one becomes null."""
        if self._ob is not None and self._ob.predefined and self is not self._ob.constant:
            self._ob = None
        else:
            super().free()

    def check_committed(self) -> None:
        """Raise ERR_TYPE unless the type may communicate."""
        if not self._live.committed:
            raise MPIException(ERR_TYPE, "the datatype has not been committed; call Commit() first")

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._constant() is not None:
            return super().__reduce__()
        base, combiner, params = self.decode()
        return _datatype_create, (base, combiner, params, True)

    # --- constructors --------------------------------------------------------

    def _derive(
        self,
        combiner: int,
        layout: Layout,
        count: int,
        params: dict[str, Any],
        counts: Sequence[Any] = (),
        integers: Sequence[int] = (),
    ) -> Datatype:
        """A type of `count` elements of this one."""
        of = self._live
        state = TypeState(layout, of.base, combiner, [(of, count)])
        state.params, state.types = params, [of]
        state.counts = [int(value) for value in counts]
        state.integers = list(integers)
        return type(self)._of_state(state)  # type: ignore[no-any-return]

    def _blocks(
        self,
        combiner: int,
        displacements: Sequence[int],
        blocklengths: Sequence[int],
        params: dict[str, Any],
        counts: Sequence[Any],
    ) -> Datatype:
        """A type of blocks of this one's elements at byte displacements."""
        if len(blocklengths) != len(displacements):
            raise ValueError(
                f"{len(blocklengths)} block lengths for {len(displacements)} displacements"
            )
        if any(length < 0 for length in blocklengths):
            raise MPIException(ERR_COUNT, f"a block of {min(blocklengths)} elements")
        layout, total = self._live.layout, sum(blocklengths)
        extremes = [(d, c, layout) for d, c in zip(displacements, blocklengths, strict=True)]

        def blocks() -> list[Block]:
            return [(displacements, blocklengths, layout)]

        return self._derive(
            combiner, Layout.of_blocks(extremes, total * layout.size, blocks), total, params, counts
        )

    def Dup(self) -> Datatype:
        """A copy of the type, committed if this is, with its attributes."""
        of = self._live
        state = TypeState(of.layout, of.base, COMBINER_DUP, [(of, 1)])
        state.types, state.committed, state.pair = [of], of.committed, of.pair
        state.typechar, state.typestr, state.code = of.typechar, of.typestr, of.code
        new = type(self)._of_state(state)
        self._copy_attributes(new)
        return new  # type: ignore[no-any-return]

    Create_dup = Dup

    def Create_contiguous(self, count: int) -> Datatype:
        """`count` elements, one after the other."""
        _positive(count)
        return self._blocks(COMBINER_CONTIGUOUS, [0], [count], {"count": count}, [count])

    def Create_vector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """`count` blocks of `blocklength` elements, `stride` elements from start to start."""
        return self._strided(
            COMBINER_VECTOR, count, blocklength, stride, stride * self._live.layout.extent
        )

    def Create_hvector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """The same with `stride` in bytes."""
        return self._strided(COMBINER_HVECTOR, count, blocklength, stride, stride)

    def _strided(
        self, combiner: int, count: int, blocklength: int, stride: int, step: int
    ) -> Datatype:
        _positive(count)
        _positive(blocklength)
        layout = self._live.layout
        ends = (0, (count - 1) * step) if count else ()
        total = count * blocklength
        made = Layout.of_blocks(
            [(at, blocklength, layout) for at in ends],
            total * layout.size,
            lambda: [(np.arange(count) * step, np.full(count, blocklength), layout)],
        )
        params = {"count": count, "blocklength": blocklength, "stride": stride}
        return self._derive(combiner, made, total, params, [count, blocklength, stride])

    def Create_indexed(self, blocklengths: Sequence[int], displacements: Sequence[int]) -> Datatype:
        """Blocks of any length at any displacement, in elements."""
        extent = self._live.layout.extent
        return self._indexed(
            COMBINER_INDEXED, blocklengths, displacements, [d * extent for d in displacements]
        )

    def Create_hindexed(
        self, blocklengths: Sequence[int], displacements: Sequence[int]
    ) -> Datatype:
        """The same with displacements in bytes."""
        return self._indexed(COMBINER_HINDEXED, blocklengths, displacements, list(displacements))

    def _indexed(
        self,
        combiner: int,
        blocklengths: Sequence[int],
        displacements: Sequence[int],
        at: list[int],
    ) -> Datatype:
        params = {"blocklengths": list(blocklengths), "displacements": list(displacements)}
        return self._blocks(
            combiner, at, list(blocklengths), params, [len(at), *blocklengths, *displacements]
        )

    def Create_indexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """Blocks of one length at any displacement, in elements."""
        extent = self._live.layout.extent
        return self._indexed_block(
            COMBINER_INDEXED_BLOCK, blocklength, displacements, [d * extent for d in displacements]
        )

    def Create_hindexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """The same with displacements in bytes."""
        return self._indexed_block(
            COMBINER_HINDEXED_BLOCK, blocklength, displacements, list(displacements)
        )

    def _indexed_block(
        self, combiner: int, blocklength: int, displacements: Sequence[int], at: list[int]
    ) -> Datatype:
        params = {"blocklength": blocklength, "displacements": list(displacements)}
        return self._blocks(
            combiner, at, [blocklength] * len(at), params, [len(at), blocklength, *displacements]
        )

    @classmethod
    def Create_struct(
        cls,
        blocklengths: Sequence[int],
        displacements: Sequence[int],
        datatypes: Sequence[Datatype],
    ) -> Datatype:
        """Blocks of any type at byte displacements; blocks of several types are padded to their alignment, as a C struct is."""
        if not len(blocklengths) == len(displacements) == len(datatypes):
            raise ValueError(
                f"{len(blocklengths)} block lengths, {len(displacements)} displacements, {len(datatypes)} datatypes"
            )
        if any(length < 0 for length in blocklengths):
            raise MPIException(ERR_COUNT, f"a block of {min(blocklengths)} elements")
        of = [datatype._live for datatype in datatypes]
        every = [
            (d, c, one.layout) for d, c, one in zip(displacements, blocklengths, of, strict=True)
        ]
        size = sum(c * layout.size for _, c, layout in every)
        made = Layout.of_blocks(
            every, size, lambda: [((d,), (c,), layout) for d, c, layout in every]
        )
        used = {id(one) for one, c in zip(of, blocklengths, strict=True) if c}
        rest = made.extent % made.align
        if len(used) > 1 and rest:
            made.ub += made.align - rest
        bases = {one.base for one in of}
        state = TypeState(
            made,
            bases.pop() if len(bases) == 1 else None,
            COMBINER_STRUCT,
            list(zip(of, blocklengths, strict=True)),
        )
        state.types = of
        state.counts = [len(of), *blocklengths, *displacements]
        state.params = {"blocklengths": list(blocklengths), "displacements": list(displacements)}
        return cls._of_state(state)  # type: ignore[no-any-return]

    def Create_subarray(
        self,
        sizes: Sequence[int],
        subsizes: Sequence[int],
        starts: Sequence[int],
        order: int = ORDER_C,
    ) -> Datatype:
        """The box of shape `subsizes` at `starts` in an array of shape `sizes`, whose extent it has."""
        if not len(sizes) == len(subsizes) == len(starts):
            raise ValueError(f"{len(sizes)} sizes, {len(subsizes)} subsizes, {len(starts)} starts")
        if any(value < 0 for value in (*subsizes, *starts)):
            raise MPIException(
                ERR_COUNT,
                f"box {list(subsizes)} at {list(starts)}: a length or a start is negative",
            )
        if any(n < 1 or s + b > n for n, b, s in zip(sizes, subsizes, starts, strict=True)):
            raise MPIException(
                ERR_ARG, f"box {list(subsizes)} at {list(starts)} is not inside {list(sizes)}"
            )
        params = {
            "sizes": list(sizes),
            "subsizes": list(subsizes),
            "starts": list(starts),
            "order": order,
        }
        owned = [range(s, s + b) for s, b in zip(starts, subsizes, strict=True)]
        made, total = part_of_array(self._live.layout, sizes, owned, order)
        return self._derive(
            COMBINER_SUBARRAY,
            made,
            total,
            params,
            [*sizes, *subsizes, *starts],
            [len(sizes), order],
        )

    def Create_darray(
        self,
        size: int,
        rank: int,
        gsizes: Sequence[int],
        distribs: Sequence[int],
        dargs: Sequence[int],
        psizes: Sequence[int],
        order: int = ORDER_C,
    ) -> Datatype:
        """Rank `rank`'s part of an array of shape `gsizes`, dealt out to a grid of processes of shape `psizes` (row-major)."""
        if not len(gsizes) == len(distribs) == len(dargs) == len(psizes):
            raise ValueError(
                f"{len(gsizes)} sizes, {len(distribs)} distributions, {len(dargs)} arguments, {len(psizes)} process counts"
            )
        if not 0 <= rank < size:
            raise MPIException(ERR_RANK, f"rank {rank} is outside 0..{size - 1}")
        owned = indices_of_rank(size, rank, gsizes, distribs, dargs, psizes)
        params = {
            "size": size,
            "rank": rank,
            "gsizes": list(gsizes),
            "distribs": list(distribs),
            "dargs": list(dargs),
            "psizes": list(psizes),
            "order": order,
        }
        integers = [size, rank, len(gsizes), *distribs, *dargs, *psizes, order]
        made, total = part_of_array(self._live.layout, gsizes, owned, order)
        return self._derive(COMBINER_DARRAY, made, total, params, gsizes, integers)

    def Create_resized(self, lb: int, extent: int) -> Datatype:
        """The same data with another lower bound and extent, in bytes."""
        params = {"lb": lb, "extent": extent}
        return self._derive(
            COMBINER_RESIZED, self._live.layout.bounded(lb, lb + extent), 1, params, [lb, extent]
        )

    Resized = Create_resized

    @classmethod
    def Get_value_index(cls, value: Datatype, index: Datatype) -> Datatype:
        """The predefined pair of two predefined types, for MINLOC and MAXLOC; DATATYPE_NULL if there is none."""
        return cls(pair_of(value._live, index._live))

    @classmethod
    def Create_f90_integer(cls, r: int) -> Datatype:
        """The integer of `r` decimal digits."""
        return handle_of(cls, f90(COMBINER_F90_INTEGER, "i", 0, r, {"r": r}))

    @classmethod
    def Create_f90_real(cls, p: int, r: int) -> Datatype:
        """The real number of `p` decimal digits and exponents up to `r`."""
        return handle_of(cls, f90(COMBINER_F90_REAL, "f", p, r, {"p": p, "r": r}))

    @classmethod
    def Create_f90_complex(cls, p: int, r: int) -> Datatype:
        """The complex number of two such."""
        return handle_of(cls, f90(COMBINER_F90_COMPLEX, "c", p, r, {"p": p, "r": r}))

    @classmethod
    def Match_size(cls, typeclass: int, size: int) -> Datatype:
        """The Fortran type of a class (TYPECLASS_INTEGER, ..) and size in bytes."""
        return cls(of_size(typeclass, size))


def _handle(state: TypeState) -> Datatype:
    """A new handle to a constituent; a predefined type's own handle."""
    if state.constant is not None:
        return state.constant  # type: ignore[no-any-return]
    if not state.predefined:
        state.refs += 1
    return handle_of(Datatype, state)


def _positive(count: int) -> None:
    if count < 0:
        raise MPIException(ERR_COUNT, f"a count of {count} is negative")


def _datatype_create(
    datatype: Datatype, combiner: str, params: dict[str, Any], free: bool = False
) -> Datatype:
    """The type of a constructor's name and arguments, committed; with `free` the types it is made of are freed."""
    kind = datatype if datatype else Datatype
    factory: Callable[..., Datatype] = getattr(kind, f"Create_{combiner.lower()}")
    new = factory(**params).Commit()
    if free:
        for of in params.get("datatypes", [datatype]):
            if of and not of.is_predefined:
                of.Free()
    return new


def _datatype_decode(
    datatype: Datatype, mark: bool = False
) -> tuple[Datatype, str, dict[str, Any]]:
    """`datatype.decode()`."""
    return datatype.decode()


# What a datatype is, for the modules that pack, count and reduce; ERR_TYPE for a null handle.
type_state: Callable[[Datatype], TypeState] = attrgetter("_live")

DATATYPE_NULL: Datatype = name_constant(Datatype(), "DATATYPE_NULL")

__all__ = ["DATATYPE_NULL", "Datatype", "_datatype_create", "_datatype_decode"]
