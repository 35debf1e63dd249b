"""Datatypes: the object, its constructors, and its introspection.

A `Datatype` is a handle to a `TypeState` (datatype_state.py). How a type is made of others is in
type_constructors.py, which bytes of memory an element is in layout.py, the predefined types are in
types.py, and packing is in packing.py.

A derived type keeps the states of the types that it is made of, so those may be freed.

Programs may make types for each message, so a constructor is few steps where equal arguments were
given before: integers, one look-up, and two objects.

References
----------
MPI 4.1, chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, index
from typing import Any

from serverless_mpi.api import datatype_state, type_constructors
from serverless_mpi.api.arrays import ORDER_C
from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.datatype_state import (
    COMBINER_F90_COMPLEX,
    COMBINER_F90_INTEGER,
    COMBINER_F90_REAL,
    COMBINER_NAMED,
    COMBINER_STRUCT,
    Construction,
    TypeState,
)
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.api.packing import Packing
from serverless_mpi.api.type_constructors import Key, construct, integers
from serverless_mpi.api.type_tables import f90, of_code, of_size, pair_of
from serverless_mpi.errors import ERR_TYPE, MPIException

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
        state = self._live
        if state.attributes is None:
            state.attributes = {}
        return state.attributes

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
        """Name the type; a name is cut to 127 characters.

        Parameters
        ----------
        name
            New name.

        References
        ----------
        MPI 4.1, section 7.8.
        """
        self._live.name = name[:_MOST_NAME]

    def Get_envelope(self) -> tuple[int, int, int, int, int]:
        """Return how much `Get_contents` returns.

        Returns
        -------
        tuple
            Numbers of integers, addresses, large counts and datatypes, and the combiner.
        """
        state = self._live
        made = state.made
        return len(made.integers), 0, len(made.counts), len(state.types), made.combiner

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
        made = state.made
        if made.combiner == COMBINER_NAMED:
            raise MPIException(ERR_TYPE, "a predefined datatype has no contents")
        return list(made.integers), [], list(made.counts), [_handle(of) for of in state.types]

    def decode(self) -> tuple[Datatype, str, dict[str, Any]]:
        """Return the base type, the combiner's name, and the constructor's arguments by name."""
        state = self._live
        if state.combiner == COMBINER_NAMED:
            return self, "NAMED", {}
        types = [_handle(of) for of in state.types]
        params = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in state.made.params.items()
        }
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
        lambda self: self._live.made.typechar or "V",
        doc="Its character in the struct module; V for several numbers.",
    )
    typestr = property(
        lambda self: self._live.made.typestr or f"V{self._live.layout.extent}",
        doc="Its array-interface string.",
    )

    def tocode(self) -> str:
        """Return the character code or type string.

        Raises
        ------
        ValueError
            The type has none.
        """
        code = None if self._ob is None else self._live.made.code
        if code is None:
            raise ValueError(
                f"the datatype {self.Get_name() or 'made by the program'} has no character code"
            )
        return code

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """Return the predefined type of a character code or type string, such as 'd' or 'f8'.

        Parameters
        ----------
        code
            Character code, or type string as in NumPy.

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
            if state.attributes:
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

    def _of_made(self, made: Construction, of: TypeState) -> Datatype:
        """A handle to a new type that is made of one other."""
        new: Datatype = object.__new__(type(self))
        new._ob = TypeState(made, (of,))
        return new

    def Dup(self) -> Datatype:
        """Return a copy of the type with its attributes; committed if this one is."""
        of = self._live
        new = self._of_made(construct(type_constructors.duplicate, of.made), of)
        new._ob.committed = of.committed
        if of.attributes:
            self._copy_attributes(new)
        return new

    Create_dup = Dup

    def Create_contiguous(self, count: int) -> Datatype:
        """Make a type of consecutive elements.

        Parameters
        ----------
        count
            Number of elements.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        of = self._live
        return self._of_made(construct(type_constructors.contiguous, of.made, index(count)), of)

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
        of = self._live
        made = construct(
            type_constructors.vector, of.made, index(count), index(blocklength), index(stride)
        )
        return self._of_made(made, of)

    def Create_hvector(self, count: int, blocklength: int, stride: int) -> Datatype:
        """Make a type of equally spaced blocks.

        Parameters
        ----------
        count
            Number of blocks.
        blocklength
            Elements of a block.
        stride
            Bytes from the start of a block to the start of the next.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        of = self._live
        made = construct(
            type_constructors.hvector, of.made, index(count), index(blocklength), index(stride)
        )
        return self._of_made(made, of)

    def _of_blocks(
        self,
        constructor: Callable[..., Construction],
        blocklengths: Sequence[int],
        displacements: Sequence[int],
    ) -> Datatype:
        """A type of blocks of different lengths."""
        of = self._live
        lengths, places = integers(blocklengths), integers(displacements)
        if len(lengths) != len(places):
            raise ValueError(f"{len(lengths)} block lengths for {len(places)} displacements")
        return self._of_made(construct(constructor, of.made, lengths, places), of)

    def Create_indexed(self, blocklengths: Sequence[int], displacements: Sequence[int]) -> Datatype:
        """Make a type of blocks of different lengths.

        Parameters
        ----------
        blocklengths
            Elements of each block.
        displacements
            Start of each block, in elements.

        Raises
        ------
        ValueError
            The sequences have different lengths.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        return self._of_blocks(type_constructors.indexed, blocklengths, displacements)

    def Create_hindexed(
        self, blocklengths: Sequence[int], displacements: Sequence[int]
    ) -> Datatype:
        """Make a type of blocks of different lengths.

        Parameters
        ----------
        blocklengths
            Elements of each block.
        displacements
            Start of each block, in bytes.

        Raises
        ------
        ValueError
            The sequences have different lengths.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        return self._of_blocks(type_constructors.hindexed, blocklengths, displacements)

    def Create_indexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """Make a type of blocks of equal length.

        Parameters
        ----------
        blocklength
            Elements of a block.
        displacements
            Start of each block, in elements.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        of = self._live
        length, places = index(blocklength), integers(displacements)
        return self._of_made(
            construct(type_constructors.indexed_block, of.made, length, places), of
        )

    def Create_hindexed_block(self, blocklength: int, displacements: Sequence[int]) -> Datatype:
        """Make a type of blocks of equal length.

        Parameters
        ----------
        blocklength
            Elements of a block.
        displacements
            Start of each block, in bytes.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        of = self._live
        length, places = index(blocklength), integers(displacements)
        return self._of_made(
            construct(type_constructors.hindexed_block, of.made, length, places), of
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

        Raises
        ------
        ValueError
            The sequences have different lengths.

        References
        ----------
        MPI 4.1, section 5.1.2.
        """
        lengths, places = integers(blocklengths), integers(displacements)
        of = [type_state(datatype) for datatype in datatypes]
        if not len(lengths) == len(places) == len(of):
            raise ValueError(
                f"{len(lengths)} block lengths, {len(places)} displacements, {len(of)} datatypes"
            )
        # equal types that were made by two calls count as two
        several = len({state for state, length in zip(of, lengths, strict=True) if length}) > 1
        made = construct(
            type_constructors.struct, tuple([state.made for state in of]), lengths, places, several
        )
        new: Datatype = object.__new__(cls)
        new._ob = TypeState(made, of)
        return new

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

        Raises
        ------
        ValueError
            The sequences have different lengths.
        MPIException
            ERR_COUNT: a negative number. ERR_ARG: the box is not inside the array.

        References
        ----------
        MPI 4.1, section 5.1.3.
        """
        of = self._live
        shape, box, at = integers(sizes), integers(subsizes), integers(starts)
        if not len(shape) == len(box) == len(at):
            raise ValueError(f"{len(shape)} sizes, {len(box)} subsizes, {len(at)} starts")
        made = construct(type_constructors.subarray, of.made, shape, box, at, index(order))
        return self._of_made(made, of)

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

        Raises
        ------
        ValueError
            The sequences have different lengths.
        MPIException
            ERR_RANK: no such rank. ERR_ARG: the distribution does not fit.

        References
        ----------
        MPI 4.1, section 5.1.4.
        """
        of = self._live
        parts = tuple(map(integers, (gsizes, distribs, dargs, psizes)))
        if len(set(map(len, parts))) > 1:
            lengths = [len(part) for part in parts]
            raise ValueError(
                "{} sizes, {} distributions, {} arguments, {} process counts".format(*lengths)
            )
        arguments: list[Key] = [index(size), index(rank), *parts, index(order)]
        return self._of_made(construct(type_constructors.darray, of.made, *arguments), of)

    def Create_resized(self, lb: int, extent: int) -> Datatype:
        """Make a type of the same data with other bounds.

        Parameters
        ----------
        lb
            Lower bound in bytes.
        extent
            Bytes from one element to the next.

        References
        ----------
        MPI 4.1, section 5.1.7.
        """
        of = self._live
        made = construct(type_constructors.resized, of.made, index(lb), index(extent))
        return self._of_made(made, of)

    Resized = Create_resized

    @classmethod
    def Get_value_index(cls, value: Datatype, index: Datatype) -> Datatype:
        """Return the predefined (value, index) pair of two types; null if there is none.

        Parameters
        ----------
        value, index
            Predefined types of the value and of the index.
        """
        return cls(pair_of(value._live, index._live))

    @classmethod
    def Create_f90_integer(cls, r: int) -> Datatype:
        """Return the Fortran integer type of `r` decimal digits.

        Parameters
        ----------
        r
            Decimal digits.

        Raises
        ------
        MPIException
            ERR_OTHER: no type has that precision or range.
        """
        return handle_of(cls, f90(COMBINER_F90_INTEGER, "i", 0, r, {"r": r}))

    @classmethod
    def Create_f90_real(cls, p: int, r: int) -> Datatype:
        """Return the Fortran real type of `p` decimal digits and exponents up to `r`.

        Parameters
        ----------
        p
            Decimal digits; UNDEFINED for any.
        r
            Decimal exponent; UNDEFINED for any.

        Raises
        ------
        MPIException
            ERR_OTHER: no type has that precision or range.
        """
        return handle_of(cls, f90(COMBINER_F90_REAL, "f", p, r, {"p": p, "r": r}))

    @classmethod
    def Create_f90_complex(cls, p: int, r: int) -> Datatype:
        """Return the Fortran complex type of `p` decimal digits and exponents up to `r`.

        Parameters
        ----------
        p
            Decimal digits; UNDEFINED for any.
        r
            Decimal exponent; UNDEFINED for any.

        Raises
        ------
        MPIException
            ERR_OTHER: no type has that precision or range.
        """
        return handle_of(cls, f90(COMBINER_F90_COMPLEX, "c", p, r, {"p": p, "r": r}))

    @classmethod
    def Match_size(cls, typeclass: int, size: int) -> Datatype:
        """Return the Fortran type of a class (MPI.TYPECLASS_INTEGER, ...) and a size in bytes.

        Parameters
        ----------
        typeclass
            TYPECLASS_INTEGER, TYPECLASS_REAL or TYPECLASS_COMPLEX.
        size
            Size in bytes.

        Raises
        ------
        MPIException
            ERR_ARG: there is no such type.
        """
        return cls(of_size(typeclass, size))


def _handle(state: TypeState) -> Datatype:
    """Return a new handle to a constituent, or the handle of a predefined type."""
    if state.constant is not None:
        return state.constant  # type: ignore[no-any-return]
    if not state.predefined:
        state.refs += 1
    return handle_of(Datatype, state)


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
