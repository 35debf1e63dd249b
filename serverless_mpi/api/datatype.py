"""Datatypes: the object, its constructors, and its introspection (MPI 4.1, chapter 5).

A `Datatype` is a handle to a `TypeState` (datatype_state.py). Where the bytes of an element are is
in layout.py, parts of arrays are in arrays.py, the predefined types in types.py, packing in
packing.py.

A derived type keeps the states of the types that it is made from, so those may be freed. To add a
constructor: compute the layout, call `_derive` with its combiner and arguments, and `decode` and
`Get_contents` follow.
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

    A derived type must be committed before it communicates.

    Attributes
    ----------
    size
        Bytes of data in one element.
    lb, ub, extent
        Bounds of an element, and the bytes from one element to the next.
    """

    __module__ = "serverless_mpi.MPI"
    _ob: Any

    def __new__(cls, datatype: Datatype | None = None) -> Datatype:
        return cls._copy(datatype)  # type: ignore[no-any-return]

    @property
    def _live(self) -> TypeState:
        """State of the type; ERR_TYPE for a null or freed handle."""
        state = self._ob
        if state is None or not state.refs:
            raise MPIException(ERR_TYPE, "the datatype is null or has been freed")
        return state  # type: ignore[no-any-return]

    def _attribute_table(self) -> dict[int, Any]:
        return self._live.attributes

    # --- facts ---------------------------------------------------------------

    def Get_size(self) -> int:
        """Return the bytes of data in one element."""
        return self._live.layout.size

    def Get_extent(self) -> tuple[int, int]:
        """Return the lower bound and the extent, in bytes."""
        layout = self._live.layout
        return layout.lb, layout.extent

    def Get_true_extent(self) -> tuple[int, int]:
        """Return the true lower bound and the true extent, of the data alone, in bytes."""
        layout = self._live.layout
        return layout.true_lb, layout.true_ub - layout.true_lb

    def Get_name(self) -> str:
        """Return the name of the type."""
        return "MPI_DATATYPE_NULL" if self._ob is None else self._live.name

    def Set_name(self, name: str) -> None:
        """Name the type; a name is cut to 127 characters."""
        self._live.name = name[:_MOST_NAME]

    def Get_envelope(self) -> tuple[int, int, int, int, int]:
        """Return how much `Get_contents` returns.

        Returns
        -------
        tuple
            Numbers of integers, addresses, large counts and datatypes, and the combiner.
        """
        state = self._live
        return len(state.integers), 0, len(state.counts), len(state.types), state.combiner

    def Get_contents(self) -> tuple[list[int], list[int], list[int], list[Datatype]]:
        """Return the arguments of the constructor.

        Returns
        -------
        tuple
            Lists of integers, addresses, large counts and datatypes. The derived ones among the
            datatypes are new handles, to be freed.

        Raises
        ------
        MPIException
            ERR_TYPE: the type is predefined.
        """
        state = self._live
        if state.combiner == COMBINER_NAMED:
            raise MPIException(ERR_TYPE, "a predefined datatype has no contents")
        return list(state.integers), [], list(state.counts), [_handle(of) for of in state.types]

    def decode(self) -> tuple[Datatype, str, dict[str, Any]]:
        """Return the base type, the combiner's name, and the constructor's arguments by name."""
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
        """Return the character code or type string.

        Raises
        ------
        ValueError
            The type has none.
        """
        code = None if self._ob is None else self._live.code
        if code is None:
            raise ValueError(
                f"the datatype {self.Get_name() or 'made by the program'} has no character code"
            )
        return code

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """Return the predefined type of a character code or type string, such as 'd' or 'f8'.

        Raises
        ------
        ValueError
            No type has that code.
        """
        try:
            return cls(of_code(code))
        except (KeyError, BufferError):
            raise ValueError(f"there is no datatype of code {code!r}") from None

    # --- life ----------------------------------------------------------------

    def Commit(self) -> Datatype:
        """Make the type ready for communication; compiles its layout. Return the type."""
        state = self._live
        if not state.committed:
            state.layout.compile()
            state.committed = True
        return self

    def Free(self) -> None:
        """Free the type; types that were made from it stay."""
        state = self._live
        if state.predefined:
            raise MPIException(ERR_TYPE, f"{state.name} is predefined and cannot be freed")
        if state.refs == 1:
            self._delete_attributes()
            forget(state)
        state.refs -= 1
        self._ob = None

    def free(self) -> None:
        """Free the type; constants stay, a copy of a constant becomes null."""
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
        """Return a copy of the type with its attributes; committed if this one is."""
        of = self._live
        state = TypeState(of.layout, of.base, COMBINER_DUP, [(of, 1)])
        state.types, state.committed, state.pair = [of], of.committed, of.pair
        state.typechar, state.typestr, state.code = of.typechar, of.typestr, of.code
        new = type(self)._of_state(state)
        self._copy_attributes(new)
        return new  # type: ignore[no-any-return]

    Create_dup = Dup

    def Create_contiguous(self, count: int) -> Datatype:
        """Make a type of `count` consecutive elements."""
        _positive(count)
        return self._blocks(COMBINER_CONTIGUOUS, [0], [count], {"count": count}, [count])

    def Create_vector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """Make a type of equally spaced blocks.

        Parameters
        ----------
        count
            Number of blocks.
        blocklength
            Elements of a block.
        stride
            Elements from the start of a block to the start of the next.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        return self._strided(
            COMBINER_VECTOR, count, blocklength, stride, stride * self._live.layout.extent
        )

    def Create_hvector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """Make a type of equally spaced blocks; `stride` is in bytes."""
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
        """Make a type of blocks of different lengths; displacements are in elements."""
        extent = self._live.layout.extent
        return self._indexed(
            COMBINER_INDEXED, blocklengths, displacements, [d * extent for d in displacements]
        )

    def Create_hindexed(
        self, blocklengths: Sequence[int], displacements: Sequence[int]
    ) -> Datatype:
        """Make a type of blocks of different lengths; displacements are in bytes."""
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
        """Make a type of blocks of equal length; displacements are in elements."""
        extent = self._live.layout.extent
        return self._indexed_block(
            COMBINER_INDEXED_BLOCK, blocklength, displacements, [d * extent for d in displacements]
        )

    def Create_hindexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """Make a type of blocks of equal length; displacements are in bytes."""
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
        """Make a type of blocks of different types.

        Parameters
        ----------
        blocklengths
            Elements of each block.
        displacements
            Byte at which each block begins.
        datatypes
            Type of each block. Different types pad the extent to their alignment, as in a C struct.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        if not len(blocklengths) == len(displacements) == len(datatypes):
            raise ValueError(
                f"{len(blocklengths)} block lengths, {len(displacements)} displacements,"
                f" {len(datatypes)} datatypes"
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
        """Make a type of a box in an array; its extent is that of the array.

        Parameters
        ----------
        sizes
            Shape of the array.
        subsizes
            Shape of the box.
        starts
            Index of the box's first element.
        order
            MPI.ORDER_C or MPI.ORDER_FORTRAN.

        References
        ----------
        MPI 4.1, section 5.1.3.
        """
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
        """Make a type of one rank's part of an array that is distributed over a grid of processes.

        Parameters
        ----------
        size, rank
            Number of processes, and the rank whose part it is.
        gsizes
            Shape of the array.
        distribs, dargs
            Distribution of each dimension (MPI.DISTRIBUTE_BLOCK, ...) and its argument.
        psizes
            Shape of the grid of processes, whose ranks are in row-major order.
        order
            MPI.ORDER_C or MPI.ORDER_FORTRAN.

        References
        ----------
        MPI 4.1, section 5.1.4.
        """
        if not len(gsizes) == len(distribs) == len(dargs) == len(psizes):
            raise ValueError(
                f"{len(gsizes)} sizes, {len(distribs)} distributions, {len(dargs)} arguments,"
                f" {len(psizes)} process counts"
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
        """Make a type of the same data with another lower bound and extent, in bytes."""
        params = {"lb": lb, "extent": extent}
        return self._derive(
            COMBINER_RESIZED, self._live.layout.bounded(lb, lb + extent), 1, params, [lb, extent]
        )

    Resized = Create_resized

    @classmethod
    def Get_value_index(cls, value: Datatype, index: Datatype) -> Datatype:
        """Return the predefined (value, index) pair of two types; null if there is none."""
        return cls(pair_of(value._live, index._live))

    @classmethod
    def Create_f90_integer(cls, r: int) -> Datatype:
        """Return the Fortran integer type of `r` decimal digits."""
        return handle_of(cls, f90(COMBINER_F90_INTEGER, "i", 0, r, {"r": r}))

    @classmethod
    def Create_f90_real(cls, p: int, r: int) -> Datatype:
        """Return the Fortran real type of `p` decimal digits and exponents up to `r`."""
        return handle_of(cls, f90(COMBINER_F90_REAL, "f", p, r, {"p": p, "r": r}))

    @classmethod
    def Create_f90_complex(cls, p: int, r: int) -> Datatype:
        """Return the Fortran complex type of `p` decimal digits and exponents up to `r`."""
        return handle_of(cls, f90(COMBINER_F90_COMPLEX, "c", p, r, {"p": p, "r": r}))

    @classmethod
    def Match_size(cls, typeclass: int, size: int) -> Datatype:
        """Return the Fortran type of a class (MPI.TYPECLASS_INTEGER, ...) and a size in bytes."""
        return cls(of_size(typeclass, size))


def _handle(state: TypeState) -> Datatype:
    """Return a new handle to a constituent, or the handle of a predefined type."""
    if state.constant is not None:
        return state.constant  # type: ignore[no-any-return]
    if not state.predefined:
        state.refs += 1
    return handle_of(Datatype, state)


def _positive(count: int) -> None:
    """Raise ERR_COUNT for a negative count."""
    if count < 0:
        raise MPIException(ERR_COUNT, f"a count of {count} is negative")


def _datatype_create(
    datatype: Datatype, combiner: str, params: dict[str, Any], free: bool = False
) -> Datatype:
    """Return the committed type of a constructor; `free` frees the types that it is made from."""
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
    """Return `datatype.decode()`; mpi4py.util.dtlib calls it."""
    return datatype.decode()


# What a datatype is, for the modules that pack, count and reduce; ERR_TYPE for a null handle.
type_state: Callable[[Datatype], TypeState] = attrgetter("_live")
state_or_none: Callable[[Datatype], TypeState | None] = attrgetter("_ob")

DATATYPE_NULL: Datatype = name_constant(Datatype(), "DATATYPE_NULL")

__all__ = ["DATATYPE_NULL", "Datatype", "_datatype_create", "_datatype_decode"]
