"""Window memory: performs commands on it, and describes target elements for the wire.

`Exposed` is the memory of one target: a run of bytes, or the attached regions of a dynamic window,
whose offsets are addresses. `perform` is what a target does with a command, in its own process, in
an agent thread, or, in a shared window, in the process of the origin.

Elements that are one run of bytes need no description. For others the pieces of an element are sent
(`describe`), and the target makes a layout of them, which it keeps for the next commands.

References
----------
MPI 4.1, sections 12.2 (windows) and 12.3 (operations).
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from serverless_mpi.api import op as ops
from serverless_mpi.api import types
from serverless_mpi.api.addresses import at_address
from serverless_mpi.api.datatype import Datatype, type_state
from serverless_mpi.api.datatype_state import TypeState
from serverless_mpi.api.handle import state_of
from serverless_mpi.api.layout import Layout
from serverless_mpi.api.op import Op
from serverless_mpi.core.window import ACCUMULATE, FETCH, GET, PUT, SWAP, Command
from serverless_mpi.errors import ERR_OP, ERR_RMA_RANGE, ERR_TYPE, MPIException

_DESCRIPTION = struct.Struct("<qq")  # number of elements, extent
_KEPT_LAYOUTS = 128

# Every rank has the same tables, so an index stands for an operation and for a type.
_OPS: list[Op] = [getattr(ops, name) for name in ops.__all__ if name not in ("Op", "OP_NULL")]
_TYPES: list[Datatype] = [
    value
    for value in {
        id(state_of(value)): value
        for name, value in vars(types).items()
        if name in types.__all__ and isinstance(value, Datatype) and value
    }.values()
]
_OP_NUMBERS = {state_of(op): number for number, op in enumerate(_OPS)}
_TYPE_NUMBERS = {state_of(datatype): number for number, datatype in enumerate(_TYPES)}
_MOVES = frozenset(map(state_of, (ops.REPLACE, ops.NO_OP)))  # take every predefined type
_NO_OP = _OP_NUMBERS[state_of(ops.NO_OP)]
_REPLACE = _OP_NUMBERS[state_of(ops.REPLACE)]


def basic_of(datatype: Datatype) -> TypeState:
    """Return the predefined type of which a datatype is made.

    Parameters
    ----------
    datatype
        Datatype of an accumulate.

    Raises
    ------
    MPIException
        ERR_TYPE: it is made of several.
    """
    runs = type_state(datatype).basics()
    if len({id(basic) for basic, _ in runs}) > 1:
        raise MPIException(
            ERR_TYPE, "an accumulate takes datatypes that are made of one predefined type"
        )
    return runs[0][0] if runs else type_state(types.BYTE)


def numbers_of(op: Op, datatype: Datatype, nbytes: int) -> tuple[int, int]:
    """Return the numbers that stand for an operation and a basic type in a command.

    Parameters
    ----------
    op
        A predefined operation.
    datatype
        Datatype of the elements.
    nbytes
        Their packed bytes; without an element, every predefined operation takes every type.

    Raises
    ------
    MPIException
        ERR_OP: the operation is null, a program's own, or does not take the type. ERR_TYPE: the
        datatype is made of several types.
    """
    of = state_of(op)
    if of not in _OP_NUMBERS:
        raise MPIException(ERR_OP, "an accumulate needs a predefined operation")
    basic = basic_of(datatype)
    number = _TYPE_NUMBERS.get(basic)
    if number is None:  # of a Fortran precision
        raise MPIException(ERR_TYPE, f"an accumulate does not take {basic.name or 'this type'}")
    if nbytes and of not in _MOVES:
        op.check(_TYPES[number])
    return _OP_NUMBERS[of], number


def describe(layout: Layout, count: int) -> bytes:
    """Return the description of elements for a command; empty for one run of bytes.

    Parameters
    ----------
    layout, count
        Of the target's elements.
    """
    if layout.is_dense(count):
        return b""
    return _DESCRIPTION.pack(count, layout.extent) + layout.pieces.tobytes()


@lru_cache(_KEPT_LAYOUTS)
def _described(description: bytes) -> tuple[Layout, int]:
    """The layout and number of elements of a description."""
    count, extent = _DESCRIPTION.unpack_from(description)
    pieces = np.frombuffer(description, np.int64, offset=_DESCRIPTION.size).reshape(-1, 2)
    starts, lengths = pieces[:, 0], pieces[:, 1]
    layout = Layout(
        int(lengths.sum()),
        (0, extent),
        (int(starts.min(initial=0)), int((starts + lengths).max(initial=0))),
        1,
        lambda: [(starts, lengths, Layout.run(1, 1))],
    )
    return layout, count


class Exposed:
    """The memory of one target.

    Attributes
    ----------
    regions
        Address -> length of the attached regions of a dynamic window; None for other windows.
    """

    __slots__ = ("_view", "regions")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.regions: dict[int, int] | None = None

    def _part(self, low: int, high: int) -> tuple[memoryview, int]:
        """Memory that has the bytes `low` to `high`, and the offset of its first byte.

        Raises ERR_RMA_RANGE if they are not all in the window.
        """
        if self.regions is None:
            if 0 <= low <= high <= self._view.nbytes:
                return self._view, 0
        else:
            for start, nbytes in self.regions.items():
                if start <= low and high <= start + nbytes:
                    return at_address(start, nbytes), start
            if low == high:
                return self._view[:0], low
        raise MPIException(
            ERR_RMA_RANGE,
            f"bytes {low} to {high} are not in the target's window"
            + (f" of {self._view.nbytes} bytes" if self.regions is None else "; attach them"),
        )

    def perform(self, command: Command) -> memoryview | None:
        """Perform a command, and return what it read, in memory of its own.

        Parameters
        ----------
        command
            One on memory.

        Raises
        ------
        MPIException
            ERR_RMA_RANGE: the elements exceed the window; nothing is changed then.
        """
        if command.layout:
            layout, count = _described(bytes(command.layout))
        else:
            layout, count = Layout.run(command.nbytes, 1), 1
        low, high = layout.span(count)
        view, start = self._part(command.offset + low, command.offset + high)
        offset = command.offset - start
        code, data = command.code, command.data
        if code == PUT:
            layout.unpack(data, view, offset, count)
            return None
        old = layout.pack(view, offset, count)
        if code != ACCUMULATE:
            old = memoryview(bytearray(old))
        if code in (ACCUMULATE, FETCH):
            new = _combined(command, old)
        elif code == SWAP:
            half = data.nbytes // 2
            new = data[half:] if old == data[:half] else None
        else:
            new = None
        if new is not None:
            layout.unpack(new, view, offset, count)
        return old if code in (GET, FETCH, SWAP) else None


def _combined(command: Command, old: memoryview) -> memoryview | None:
    """The new elements of an accumulate; None to leave them as they are."""
    if command.op == _NO_OP:
        return None
    if command.op == _REPLACE:
        return command.data
    return _OPS[command.op].combine(old, command.data, _TYPES[command.basic])
