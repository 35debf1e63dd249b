"""Reduction operations: which they are, what types they take, how packed bytes are combined (MPI 4.1, 6.9.2)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from serverless_mpi.api.datatype import Datatype
from serverless_mpi.errors import ERR_OP, ERR_TYPE, MPIException

_Array = np.ndarray[Any, Any]
_Two = Callable[[Any, Any], Any]

_NUMBERS = "iufc"  # NumPy's kinds: b bool, i signed, u unsigned, f float, c complex, S character
_REALS = "iuf"
_LOGICALS = "biu"
_BITS = "biu"


def _truth(function: _Two) -> _Two:
    return lambda a, b: function(a != 0, b != 0).astype(a.dtype)


def _located(better: _Two) -> _Two:
    """MAXLOC and MINLOC on packed (value, index) pairs: the better value, of equal ones the lower index."""

    def combine(a: _Array, b: _Array) -> _Array:
        first = better(a["value"], b["value"]) | ((a["value"] == b["value"]) & (a["index"] <= b["index"]))
        return np.where(first, a, b)

    return combine


def _located_objects(better: _Two) -> _Two:
    def combine(a: Any, b: Any) -> Any:
        (x, i), (y, j) = a, b
        if better(x, y):
            return x, i
        return (y, j) if better(y, x) else (x, min(i, j))

    return combine


class Op:
    """A reduction operation.  Called with two Python objects it combines them."""

    def __new__(cls, op: Op | None = None) -> Op:
        self = super().__new__(cls)
        source = op if op is not None else globals().get("OP_NULL")
        if source is not None:
            self.__dict__.update(source.__dict__)
        return self

    @classmethod
    def _make(
        cls, name: str, arrays: _Two | None, objects: _Two | None, kinds: str = "", pairs: bool = False,
        commute: bool = True, user: Callable[..., Any] | None = None,
    ) -> Op:  # fmt: skip
        self = object.__new__(cls)
        self._name = name
        self._arrays = arrays
        self._objects = objects
        self._kinds = kinds
        self._pairs = pairs
        self._commute = commute
        self._user = user
        self._token = object()
        return self

    @classmethod
    def Create(cls, function: Callable[[Any, Any, Datatype], None], commute: bool = False) -> Op:
        """An operation of the program's own: function(inbuf, inoutbuf, datatype) on memory, in place in `inoutbuf`.

        With commute False operands are combined in rank order.
        """
        if not callable(function):
            raise TypeError("an operation is made of a function")
        return cls._make("", None, lambda a, b: function(a, b, None), commute=commute, user=function)  # type: ignore[arg-type]

    def Free(self) -> None:
        """Give a program's own operation up."""
        if self.is_predefined:
            raise MPIException(ERR_OP, f"{self._name or 'MPI_OP_NULL'} is predefined and cannot be freed")
        self.__dict__.update(OP_NULL.__dict__)

    free = Free

    def Is_commutative(self) -> bool:
        """Whether operands may be combined in any order."""
        return self._commute

    is_commutative = property(Is_commutative, doc="Whether operands may be combined in any order.")
    is_predefined = property(lambda self: self._user is None, doc="Whether it was not made by a program.")
    name = property(lambda self: self._name, doc="Its name; '' for a program's own.")

    def __eq__(self, other: object) -> bool:
        return self._token is other._token if isinstance(other, Op) else NotImplemented

    def __hash__(self) -> int:
        return id(self._token)

    def __bool__(self) -> bool:
        return self._name != "MPI_OP_NULL"

    def __repr__(self) -> str:
        return f"<serverless_mpi.MPI.Op {self._name or 'user'}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._user is not None:
            raise MPIException(ERR_OP, "a program's own operation belongs to its process and cannot be pickled")
        return (_named, (self._name,))

    def __call__(self, x: Any, y: Any) -> Any:
        """x (op) y for Python objects; x is the lower rank's."""
        if self._objects is None:
            raise MPIException(ERR_OP, "the operation is null")
        return self._objects(x, y)

    def Reduce_local(self, inbuf: Any, inoutbuf: Any) -> None:
        """inoutbuf = inbuf (op) inoutbuf, for buffers of this rank alone."""
        from serverless_mpi.api.buffers import Message

        left, right = Message(inbuf, readonly=True), Message(inoutbuf, readonly=False)
        self.check(right.datatype)
        if left.nbytes != right.nbytes:
            raise ValueError(f"message: {left.count} elements to combine with {right.count}")
        right.unpack(self.combine(left.pack(), right.pack(), right.datatype))

    def check(self, datatype: Datatype) -> None:
        """Raise ERR_OP unless the operation takes the datatype (MPI 4.1, table 6.2)."""
        if not self:
            raise MPIException(ERR_OP, "the operation is null")
        if self._user is not None or self._name in ("MPI_REPLACE", "MPI_NO_OP"):
            return
        if hasattr(datatype, "pair"):
            good = self._pairs
        else:
            base = datatype._base
            good = base is not None and base.kind in self._kinds
        if not good:
            raise MPIException(ERR_OP, f"{self._name} is not defined for {datatype.name or 'this derived datatype'}")

    def combine(self, a: memoryview, b: memoryview, datatype: Datatype) -> memoryview:
        """a (op) b of packed elements of `datatype`; a is the lower ranks'.  Neither is changed."""
        if a.nbytes != b.nbytes:
            raise MPIException(
                ERR_TYPE, f"{self._name or 'the operation'} met {a.nbytes} and {b.nbytes} bytes; counts must agree on all ranks"
            )
        if self._user is not None:
            inout = memoryview(bytearray(b))
            self._user(memoryview(bytearray(a)), inout, datatype)
            return inout
        if self._arrays is None:
            raise MPIException(ERR_OP, "the operation is null")
        dtype = getattr(datatype, "pair", None) or datatype.numpy_dtype()
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._arrays(np.frombuffer(a, dtype), np.frombuffer(b, dtype))
        return memoryview(np.ascontiguousarray(result).view(np.uint8).reshape(-1)) if result.size else memoryview(bytearray())


_NAMED: dict[str, Op] = {}


def _named(name: str) -> Op:
    return _NAMED[name]


def _predefined(name: str, *arguments: Any, **more: Any) -> Op:
    made = Op._make(f"MPI_{name}", *arguments, **more)
    return _NAMED.setdefault(made._name, made)


OP_NULL = _predefined("OP_NULL", None, None)
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

__all__ = ["Op", *(name.removeprefix("MPI_") for name in _NAMED)]
