"""Reduction operations: their functions, the types they take, and how packed bytes are combined.

Predefined operations combine packed elements with NumPy, and Python objects with a Python function.
A user-defined operation (`Op.Create`) works on memory; it may take its operand as one object, so a
vector is never cut for it (plan.py).

References
----------
MPI 4.1, section 6.9.2.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from serverless_mpi.api.buffers import BlockSpec, BufSpec
from serverless_mpi.api.datatype import Datatype, state_or_none, type_state
from serverless_mpi.api.datatype_state import COMBINER_DUP
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.api.memory import buffer
from serverless_mpi.api.types import BYTE, PACKED
from serverless_mpi.collectives.steps import Combine, Elementwise
from serverless_mpi.errors import ERR_BUFFER, ERR_OP, ERR_TRUNCATE, MPIException

_Array = np.ndarray[Any, Any]
_Two = Callable[[Any, Any], Any]

_NUMBERS = "iufc"  # NumPy's kinds: b bool, i signed, u unsigned, f float, c complex, S character
_REALS = "iuf"
_LOGICALS = "biu"
_BITS = "iu"
_BYTES = (BYTE._ob, PACKED._ob)  # bits are all that is known of them
_DOUBLE = struct.Struct("d")
MOST_USER_OPS = 32  # at a time: mpi4py's limit, which programs may count on


def _truth(function: _Two) -> _Two:
    return lambda a, b: function(a != 0, b != 0).astype(a.dtype)


def _located(better: _Two) -> _Two:
    """MAXLOC and MINLOC on packed (value, index) pairs; of equal values, the lower index."""

    def combine(a: _Array, b: _Array) -> _Array:
        first = better(a["value"], b["value"]) | (
            (a["value"] == b["value"]) & (a["index"] <= b["index"])
        )
        return np.where(first, a, b)

    return combine


def _located_objects(better: _Two) -> _Two:
    def combine(a: Any, b: Any) -> Any:
        (x, i), (y, j) = a, b
        if better(x, y):
            return x, i
        return (y, j) if better(y, x) or j < i else (x, i)

    return combine


class _State:
    """State of an operation.

    kinds: NumPy's kinds that it takes; pairs: whether it takes (value, index).
    """

    def __init__(
        self,
        name: str,
        arrays: _Two | None,
        objects: _Two,
        kinds: str = "",
        pairs: bool = False,
        commute: bool = True,
        user: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.arrays, self.objects, self.kinds, self.pairs, self.commute = (
            name,
            arrays,
            objects,
            kinds,
            pairs,
            commute,
        )
        self.user = user
        self.constant: Op | None = None
        # state of a predefined datatype -> how its elements are combined; see plan.py
        self.combiners: dict[Any, Any] = {}


class Op(Handle):
    """A reduction operation; called with two Python objects, it combines them."""

    __module__ = "serverless_mpi.MPI"
    _function: Callable[..., Any] | None = None  # of the program: what the handle pickles as
    _alive = 0

    def __new__(cls, op: Op | None = None) -> Op:
        self: Op = cls._copy(op)
        if op is not None and op._function is not None:
            self._function = op._function
        return self

    @classmethod
    def Create(cls, function: Callable[[Any, Any, Datatype], None], commute: bool = False) -> Op:
        """Make an operation of a program's own function.

        Parameters
        ----------
        function
            Called as function(inbuf, inoutbuf, datatype); combines both into `inoutbuf`. It must be
            associative.
        commute
            Whether operands may be combined in any order; if not, rank order is kept.

        References
        ----------
        MPI 4.1, section 6.9.5.
        """
        if not callable(function):
            raise TypeError("an operation is made of a function")
        if Op._alive >= MOST_USER_OPS:
            raise RuntimeError(f"{MOST_USER_OPS} operations of the program exist; free one first")
        Op._alive += 1
        untyped: Any = function
        state = _State(
            "", None, lambda a, b: untyped(a, b, None), commute=bool(commute), user=function
        )
        self: Op = cls._of_state(state)
        self._function = function
        return self

    @property
    def _live(self) -> _State:
        if self._ob is None:
            raise MPIException(ERR_OP, "the operation is null or has been freed")
        return self._ob  # type: ignore[no-any-return]

    def Free(self) -> None:
        """Free a user-defined operation."""
        state = self._live
        if state.user is None:
            raise MPIException(ERR_OP, f"{state.name} is predefined and cannot be freed")
        Op._alive -= 1
        forget(state)
        self._ob = self._function = None

    def Is_commutative(self) -> bool:
        """Return whether operands may be combined in any order."""
        return self._live.commute

    is_commutative = property(Is_commutative, doc="Whether operands may be combined in any order.")
    is_predefined = property(
        lambda self: self._ob is None or self._ob.user is None,
        doc="Whether it was not made by a program.",
    )

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._function is not None:
            return type(self).Create, (self._function, self._live.commute)
        return super().__reduce__()

    def __call__(self, x: Any, y: Any, /) -> Any:
        """Return x (op) y for Python objects; x is the operand of the lower rank."""
        if self._ob is None:
            raise ValueError("the operation is null")
        return self._ob.objects(x, y)

    def Reduce_local(self, inbuf: BufSpec, inoutbuf: BufSpec) -> None:
        """Combine two buffers of this process: inoutbuf = inbuf (op) inoutbuf.

        Parameters
        ----------
        inbuf
            Specification of the first operand.
        inoutbuf
            Specification of the second operand, of as many elements of the same type, and of the
            result.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both are the same memory.

        References
        ----------
        MPI 4.1, section 6.9.7.
        """
        left, right = BlockSpec(inbuf, readonly=True), BlockSpec(inoutbuf, readonly=False)
        if left.datatype != right.datatype:
            raise ValueError("mismatch in input and output datatypes")
        if left.count != right.count:
            raise ValueError(f"mismatch in input count {left.count} and output count {right.count}")
        self.check(right.datatype)
        if left.nbytes and left.address() == right.address():
            raise MPIException(ERR_BUFFER, "the input and the output are the same memory")
        right.unpack(self.combine(left.pack(), right.pack(), right.datatype))

    def check(self, datatype: Datatype) -> None:
        """Raise ERR_OP unless the operation takes the datatype (MPI 4.1, table 6.2).

        Parameters
        ----------
        datatype
            Datatype of the elements.
        """
        state = self._live
        if state.user is not None:
            return
        of = type_state(datatype)
        if of.combiner == COMBINER_DUP:
            of = of.types[0]
        if of.pair is not None:
            good = state.pairs
        elif not of.predefined or of.base is None:
            good = False
        else:
            good = of.base.kind in state.kinds and (of not in _BYTES or state.kinds == _BITS)
        if not good:
            raise MPIException(
                ERR_OP, f"{state.name} is not defined for {of.name or 'a derived datatype'}"
            )

    def _elementwise(self, datatype: Datatype) -> Combine:
        """The combining function of packed elements, kept with a predefined operation and type.

        Raises ERR_OP for a null operation, or one that does not take the datatype.
        """
        state, of = self._ob, state_or_none(datatype)
        combine: Combine | None = None if state is None else state.combiners.get(of)
        if combine is None:
            self.check(datatype)
            # a user-defined function may take its operand as one object, such as a matrix
            grain = max(1, datatype.size) if self.is_predefined else 0
            combine = Elementwise(self._of_memory(datatype), grain)
            if self.is_predefined and datatype.is_predefined:
                self._live.combiners[of] = combine
        return combine

    def _of_memory(self, datatype: Datatype) -> Callable[[memoryview, memoryview], memoryview]:
        """`combine` of one datatype, with short ways for what reductions of a few numbers are."""
        state, of = self._live, type_state(datatype)
        arrays, dtype = state.arrays, of.base

        def general(a: memoryview, b: memoryview) -> memoryview:
            return self.combine(a, b, datatype)

        if not isinstance(arrays, np.ufunc) or dtype is None or of.pair is not None:
            return general
        silent = dtype.kind in "biu"  # integers wrap without a warning
        # a sum or product of two doubles has the same bits in Python, at a tenth of the time
        single = state.objects if dtype.char == "d" and arrays in (np.add, np.multiply) else None

        def combine(a: memoryview, b: memoryview) -> memoryview:
            nbytes = a.nbytes
            if nbytes != b.nbytes or not nbytes:
                return self.combine(a, b, datatype)
            if nbytes == _DOUBLE.size and single is not None:
                (x,), (y,) = _DOUBLE.unpack(a), _DOUBLE.unpack(b)
                return memoryview(_DOUBLE.pack(single(x, y)))
            left, right = np.frombuffer(a, dtype), np.frombuffer(b, dtype)
            if silent:
                return arrays(left, right).data.cast("B")  # type: ignore[no-any-return]
            with np.errstate(over="ignore", invalid="ignore"):
                return arrays(left, right).data.cast("B")  # type: ignore[no-any-return]

        return combine

    def combine(self, a: memoryview, b: memoryview, datatype: Datatype) -> memoryview:
        """Return a (op) b of packed elements, a of the lower ranks; neither changes.

        Parameters
        ----------
        a, b
            Packed elements, equally many; `a` is of the lower ranks.
        datatype
            Datatype of the elements.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the operands differ in length. ERR_OP: the operation does not combine
            buffers.
        """
        state = self._live
        if a.nbytes != b.nbytes:
            raise MPIException(
                ERR_TRUNCATE,
                f"{state.name or 'the operation'} met {a.nbytes} and {b.nbytes} bytes;"
                " counts must agree on all ranks",
            )
        if state.user is not None:
            return _combine_memory(state.user, a, b, datatype)
        if state.arrays is None:
            raise MPIException(ERR_OP, f"{state.name} does not combine buffers")
        dtype = type_state(datatype).pair or type_state(datatype).base
        with np.errstate(over="ignore", invalid="ignore"):
            result = state.arrays(np.frombuffer(a, dtype), np.frombuffer(b, dtype))
        return (
            np.ascontiguousarray(result).view(np.uint8).reshape(-1).data
            if result.size
            else memoryview(bytearray())
        )


def _combine_memory(
    function: Callable[..., Any], a: memoryview, b: memoryview, datatype: Datatype
) -> memoryview:
    """A program's function sees the elements as the datatype lays them out in memory."""
    layout = type_state(datatype).layout
    if layout.dense:
        inout = bytearray(b)
        function(buffer.frombuffer(bytearray(a)), buffer.frombuffer(inout), datatype)
        return memoryview(inout)
    count = a.nbytes // layout.size if layout.size else 0
    low, high = layout.span(count)
    room = max(high, count * layout.extent) - min(low, 0)
    left, right = memoryview(bytearray(room)), memoryview(bytearray(room))
    layout.unpack(a, left, -min(low, 0), count)
    layout.unpack(b, right, -min(low, 0), count)
    function(buffer.frombuffer(left), buffer.frombuffer(right), datatype)
    return layout.pack(right, -min(low, 0), count)


_PREDEFINED: list[str] = []


def _predefined(label: str, *arguments: Any, **more: Any) -> Op:
    _PREDEFINED.append(label)
    return name_constant(handle_of(Op, _State(f"MPI_{label}", *arguments, **more)), label)


# The combining function of packed elements of a datatype, for plan.py.
elementwise: Callable[[Op, Datatype], Combine] = Op._elementwise

OP_NULL: Op = name_constant(Op(), "OP_NULL")
MAX = _predefined("MAX", np.maximum, lambda x, y: y if y > x else x, _REALS)
MIN = _predefined("MIN", np.minimum, lambda x, y: y if y < x else x, _REALS)
SUM = _predefined("SUM", np.add, operator.add, _NUMBERS)
PROD = _predefined("PROD", np.multiply, operator.mul, _NUMBERS)
LAND = _predefined("LAND", _truth(np.logical_and), lambda x, y: bool(x) & bool(y), _LOGICALS)
BAND = _predefined("BAND", np.bitwise_and, operator.and_, _BITS)
LOR = _predefined("LOR", _truth(np.logical_or), lambda x, y: bool(x) | bool(y), _LOGICALS)
BOR = _predefined("BOR", np.bitwise_or, operator.or_, _BITS)
LXOR = _predefined("LXOR", _truth(np.logical_xor), lambda x, y: bool(x) ^ bool(y), _LOGICALS)
BXOR = _predefined("BXOR", np.bitwise_xor, operator.xor, _BITS)
MAXLOC = _predefined("MAXLOC", _located(np.greater), _located_objects(operator.gt), pairs=True)
MINLOC = _predefined("MINLOC", _located(np.less), _located_objects(operator.lt), pairs=True)
REPLACE = _predefined("REPLACE", lambda a, b: b, lambda x, y: y, commute=False)
NO_OP = _predefined("NO_OP", lambda a, b: a, lambda x, y: x, commute=False)

__all__ = ["OP_NULL", "Op", *_PREDEFINED]
