"""Operations of a window: Put, Get, the accumulates, and their request forms.

An operation becomes a command (core/window.py). On memory that this process reaches it is performed
at once; otherwise it waits in `Epochs` until the target is flushed, the epoch ends, or enough of
them wait. The request forms send at once.

References
----------
MPI 4.1, section 12.3.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

from serverless_mpi.api.buffers import BlockSpec, BufSpec, ContiguousSpec, block
from serverless_mpi.api.datatype import Datatype, type_state
from serverless_mpi.api.layout import too_long
from serverless_mpi.api.op import NO_OP, SUM, Op
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.api.type_tables import of_code
from serverless_mpi.api.win_memory import basic_of, describe, numbers_of
from serverless_mpi.api.win_state import Batch, WinState
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.core.epochs import Access, Sink
from serverless_mpi.core.window import ACCUMULATE, FETCH, GET, PUT, SWAP, Command
from serverless_mpi.errors import (
    ERR_COUNT,
    ERR_DISP,
    ERR_OP,
    ERR_RANK,
    ERR_RMA_RANGE,
    ERR_TYPE,
    MPIException,
)
from serverless_mpi.runtime.operation import Operation

TargetSpec = Any  # as mpi4py.typing has it: a displacement, or [displacement, count, datatype]
_SWAPPED = "iub?"  # NumPy's kinds that Compare_and_swap takes
_NOTHING = memoryview(b"")


class _Place:
    """Where the elements of an operation are in the target's window."""

    __slots__ = ("offset", "nbytes", "layout", "datatype")

    def __init__(
        self, state: WinState, rank: int, target: TargetSpec, count: int, datatype: Datatype
    ) -> None:
        disp = 0
        if target is None:
            pass
        elif hasattr(target, "__index__") and not isinstance(target, (list, tuple)):
            disp = index(target)
        elif isinstance(target, (list, tuple)):
            if len(target) > 3:
                raise ValueError("target: expecting 3 items at most")
            if len(target) >= 1:
                disp = index(target[0])
            if len(target) >= 2:
                count = index(target[1])
            if len(target) >= 3:
                datatype = target[2] if isinstance(target[2], Datatype) else of_code(target[2])
        else:
            raise ValueError("target: expecting integral or list/tuple")
        self._locate(state, rank, disp, count, datatype)

    def _locate(
        self, state: WinState, rank: int, disp: int, count: int, datatype: Datatype
    ) -> None:
        """Check the place, and describe it."""
        datatype.check_committed()
        if count < 0:
            raise MPIException(ERR_COUNT, f"a count of {count} elements at the target is negative")
        layout = type_state(datatype).layout
        self.datatype = datatype
        self.nbytes = count * layout.size
        dynamic = state.exposed.regions is not None
        if disp < 0 and not dynamic:
            raise MPIException(ERR_DISP, f"a displacement of {disp} is negative")
        self.offset = disp if dynamic else disp * state.units[rank]
        low, high = layout.span(count)
        if self.nbytes and not dynamic:
            if self.offset + low < 0 or self.offset + high > state.sizes[rank]:
                raise MPIException(
                    ERR_RMA_RANGE,
                    f"bytes {self.offset + low} to {self.offset + high} are not in the window of"
                    f" rank {rank}, which has {state.sizes[rank]} bytes",
                )
        self.layout = describe(layout, count)


class Calls:
    """The operations of `Win`, which provides `_window`."""

    @property
    def _window(self) -> WinState:
        raise NotImplementedError

    def _begin(self, rank: int, call: str) -> WinState | None:
        """Check rank and epoch; None for MPI.PROC_NULL."""
        state = self._window
        if rank != PROC_NULL and not 0 <= rank < state.size:
            raise MPIException(
                ERR_RANK, f"the window has no rank {rank}, only 0 to {state.size - 1}"
            )
        with state.lock:
            state.epochs.check(None if rank == PROC_NULL else rank, call)
        return None if rank == PROC_NULL else state

    def _issue(
        self,
        state: WinState,
        rank: int,
        command: Command,
        sink: Sink | None,
        now: bool,
        length: int = 0,
    ) -> Batch | None:
        """Start an operation; `now`: send it at once, and return its batch."""
        state.epochs.used = True  # not before: an operation with wrong arguments is none
        if not command.nbytes:
            return None
        reached = state.reachable.get(rank)
        epochs = state.epochs
        if reached is not None and (rank == state.rank or command.code in (PUT, GET)):
            if epochs.access is not Access.START:
                state.perform(reached, command, sink)
                return None
        with state.lock:
            waiting = epochs.add(rank, command, sink, length)
            if not (now or waiting.full):
                return None
            if epochs.access is Access.START:
                if not now:
                    return None  # Complete sends it, when the target has called Post
                self._await_post(state, rank)
                if rank == state.rank:
                    self._perform_own(state)
                    return None
            return state.send(rank, epochs.take(rank), answer=now)

    def _await_post(self, state: WinState, rank: int) -> None:
        raise NotImplementedError

    def _perform_own(self, state: WinState) -> None:
        raise NotImplementedError

    # --- commands ---------------------------------------------------------------------------------

    def _put(self, origin: BufSpec, rank: int, target: TargetSpec, now: bool) -> Batch | None:
        state = self._begin(rank, "Put")
        if state is None:
            return None
        spec = block(origin, readonly=True)
        place = _Place(state, rank, target, spec.count, spec.datatype)
        _same_length(spec.nbytes, place.nbytes)
        command = Command(PUT, 0, 0, place.offset, place.nbytes, place.layout, spec.pack())
        return self._issue(state, rank, command, None, now)

    def _get(self, origin: BufSpec, rank: int, target: TargetSpec, now: bool) -> Batch | None:
        state = self._begin(rank, "Get")
        if state is None:
            return None
        spec = block(origin, readonly=False)
        place = _Place(state, rank, target, spec.count, spec.datatype)
        _same_length(place.nbytes, spec.nbytes)
        command = Command(GET, 0, 0, place.offset, place.nbytes, place.layout)
        return self._issue(state, rank, command, spec.unpack, now, place.nbytes)

    def _accumulate(
        self, origin: BufSpec, rank: int, target: TargetSpec, op: Op, now: bool
    ) -> Batch | None:
        state = self._begin(rank, "Accumulate")
        if state is None:
            return None
        if op == NO_OP:
            raise MPIException(ERR_OP, "Accumulate does not take MPI.NO_OP; Get_accumulate does")
        spec = block(origin, readonly=True)
        place = _Place(state, rank, target, spec.count, spec.datatype)
        number, basic = numbers_of(op, place.datatype, place.nbytes)
        _same_length(spec.nbytes, place.nbytes)
        command = Command(
            ACCUMULATE, number, basic, place.offset, place.nbytes, place.layout, spec.pack()
        )
        return self._issue(state, rank, command, None, now)

    def _fetch(
        self, origin: BufSpec, result: BufSpec, rank: int, target: TargetSpec, op: Op, now: bool
    ) -> Batch | None:
        state = self._begin(rank, "Get_accumulate")
        if state is None:
            return None
        into = block(result, readonly=False)
        spec = block(origin, readonly=True)
        place = _Place(state, rank, target, spec.count, spec.datatype)
        number, basic = numbers_of(op, place.datatype, place.nbytes)
        _same_length(spec.nbytes, place.nbytes)
        _same_length(place.nbytes, into.nbytes)
        data = _NOTHING if op == NO_OP else spec.pack()
        command = Command(FETCH, number, basic, place.offset, place.nbytes, place.layout, data)
        return self._issue(state, rank, command, into.unpack, now, place.nbytes)

    # --- the calls of programs --------------------------------------------------------------------

    def Put(self, origin: BufSpec, target_rank: int, target: TargetSpec = None) -> None:
        """Write to the target's window.

        Parameters
        ----------
        origin
            Specification of the elements; borrowed until the epoch ends or the target is flushed.
        target_rank
            Rank in the window's group, or MPI.PROC_NULL.
        target
            Displacement in the target's units; or [displacement, count, datatype], of which the
            last two are those of `origin` if they are omitted. None for displacement 0.

        Raises
        ------
        MPIException
            ERR_RMA_SYNC: no epoch permits the access. ERR_RMA_RANGE: the elements exceed the
            window; in a dynamic window the call that completes the operation raises it. ERR_DISP:
            the displacement is negative. ERR_RANK: the group has no such rank.

        Notes
        -----
        Performed at once on this process's own memory; otherwise part of the next request to the
        target.

        References
        ----------
        MPI 4.1, section 12.3.1.
        """
        self._put(origin, target_rank, target, False)

    def Get(self, origin: BufSpec, target_rank: int, target: TargetSpec = None) -> None:
        """Read from the target's window.

        Parameters
        ----------
        origin
            Specification of the elements that are written; borrowed until the epoch ends or the
            target is flushed.
        target_rank, target
            As for `Put`.

        Raises
        ------
        MPIException
            As for `Put`.

        References
        ----------
        MPI 4.1, section 12.3.2.
        """
        self._get(origin, target_rank, target, False)

    def Accumulate(
        self, origin: BufSpec, target_rank: int, target: TargetSpec = None, op: Op = SUM
    ) -> None:
        """Combine elements with those in the target's window, each atomically.

        Parameters
        ----------
        origin
            Specification of the elements; borrowed as for `Put`.
        target_rank, target
            As for `Put`.
        op
            A predefined operation; MPI.REPLACE writes.

        Raises
        ------
        MPIException
            As for `Put`; ERR_OP: the operation is not predefined, or does not take the type.

        References
        ----------
        MPI 4.1, section 12.3.4.
        """
        self._accumulate(origin, target_rank, target, op, False)

    def Get_accumulate(
        self,
        origin: BufSpec,
        result: BufSpec,
        target_rank: int,
        target: TargetSpec = None,
        op: Op = SUM,
    ) -> None:
        """Combine elements as `Accumulate` does, and return what they were before.

        Parameters
        ----------
        origin
            Specification of the elements; borrowed as for `Put`. Not used with MPI.NO_OP.
        result
            Specification of the buffer that gets the old elements; borrowed as for `Get`.
        target_rank, target, op
            As for `Accumulate`; MPI.NO_OP leaves the window as it is.

        Raises
        ------
        MPIException
            As for `Accumulate`.

        References
        ----------
        MPI 4.1, section 12.3.4.
        """
        self._fetch(origin, result, target_rank, target, op, False)

    def Fetch_and_op(
        self, origin: BufSpec, result: BufSpec, target_rank: int, target_disp: int = 0, op: Op = SUM
    ) -> None:
        """Combine one element as `Accumulate` does, and return what it was before.

        Parameters
        ----------
        origin, result
            Specifications of one element of a predefined type; borrowed as for `Get_accumulate`.
        target_rank
            As for `Put`.
        target_disp
            Displacement in the target's units.
        op
            As for `Get_accumulate`.

        Raises
        ------
        MPIException
            As for `Accumulate`.

        References
        ----------
        MPI 4.1, section 12.3.4.
        """
        if target_rank != PROC_NULL:
            first = block(origin, readonly=True)
            _single("origin", first)
            _single("result", block(result, readonly=False), first.datatype)
            _predefined(first.datatype)
        self._fetch(origin, result, target_rank, target_disp, op, False)

    def Compare_and_swap(
        self,
        origin: BufSpec,
        compare: BufSpec,
        result: BufSpec,
        target_rank: int,
        target_disp: int = 0,
    ) -> None:
        """Replace one element if it has the compared value, and return what it was before.

        Parameters
        ----------
        origin, compare
            Specifications of one element of a predefined integer, logical or byte type: the new
            and the compared one.
        result
            Specification of the element that gets the old value; borrowed as for `Get`.
        target_rank, target_disp
            As for `Fetch_and_op`.

        Raises
        ------
        MPIException
            As for `Put`; ERR_TYPE: the elements are of another type.

        References
        ----------
        MPI 4.1, section 12.3.4.
        """
        state = self._begin(target_rank, "Compare_and_swap")
        if state is None:
            return
        new, compared = block(origin, readonly=True), block(compare, readonly=True)
        into = block(result, readonly=False)
        _single("origin", new)
        _single("compare", compared, new.datatype)
        _single("result", into, new.datatype)
        _predefined(new.datatype)
        base = basic_of(new.datatype).base
        if base is None or base.kind not in _SWAPPED + "S":
            raise MPIException(ERR_TYPE, "Compare_and_swap takes an integer, logical or byte type")
        place = _Place(state, target_rank, target_disp, 1, new.datatype)
        data = memoryview(bytes(compared.pack()) + bytes(new.pack()))
        command = Command(SWAP, 0, 0, place.offset, place.nbytes, place.layout, data)
        self._issue(state, target_rank, command, into.unpack, False, place.nbytes)

    def Rput(self, origin: BufSpec, target_rank: int, target: TargetSpec = None) -> Request:
        """Start `Put`, and return a request that is complete when `origin` may be changed.

        Parameters
        ----------
        origin, target_rank, target
            As for `Put`.

        References
        ----------
        MPI 4.1, section 12.3.5.
        """
        return self._request(lambda: self._put(origin, target_rank, target, True))

    def Rget(self, origin: BufSpec, target_rank: int, target: TargetSpec = None) -> Request:
        """Start `Get`, and return a request that is complete when `origin` has the elements.

        Parameters
        ----------
        origin, target_rank, target
            As for `Get`.

        References
        ----------
        MPI 4.1, section 12.3.5.
        """
        return self._request(lambda: self._get(origin, target_rank, target, True))

    def Raccumulate(
        self, origin: BufSpec, target_rank: int, target: TargetSpec = None, op: Op = SUM
    ) -> Request:
        """Start `Accumulate`, and return a request that is complete when `origin` may be changed.

        Parameters
        ----------
        origin, target_rank, target, op
            As for `Accumulate`.

        References
        ----------
        MPI 4.1, section 12.3.5.
        """
        return self._request(lambda: self._accumulate(origin, target_rank, target, op, True))

    def Rget_accumulate(
        self,
        origin: BufSpec,
        result: BufSpec,
        target_rank: int,
        target: TargetSpec = None,
        op: Op = SUM,
    ) -> Request:
        """Start `Get_accumulate`, and return a request that is complete when `result` is filled.

        Parameters
        ----------
        origin, result, target_rank, target, op
            As for `Get_accumulate`.

        References
        ----------
        MPI 4.1, section 12.3.5.
        """
        return self._request(lambda: self._fetch(origin, result, target_rank, target, op, True))

    def _request(self, start: Callable[[], Batch | None]) -> Request:
        """The request of an operation that is sent at once."""
        state = self._window
        batch = start()
        operation = batch.answer if batch is not None else None
        if batch is None or operation is None:
            operation = Operation()
            operation.complete()

        def finish(_: Operation, status: Status) -> None:
            if batch is not None:
                batch.finish()
            fill_empty_status(status)

        return request_of(state.runtime, operation, finish)


def _single(name: str, spec: BlockSpec | ContiguousSpec, datatype: Datatype | None = None) -> None:
    """ValueError unless a specification is of one element, of a datatype."""
    if spec.count != 1:
        raise ValueError(f"{name}: expecting a single element, got {spec.count}")
    if datatype is not None and spec.datatype != datatype:
        raise ValueError(f"mismatch in origin and {name} MPI datatypes")


def _predefined(datatype: Datatype) -> None:
    """ERR_TYPE unless a datatype is predefined."""
    if not datatype.is_predefined:
        raise MPIException(ERR_TYPE, "the call takes one element of a predefined datatype")


def _same_length(nbytes: int, capacity: int) -> None:
    """Raise unless the elements of origin and target have equally many bytes."""
    if nbytes > capacity:
        raise too_long(nbytes, capacity)
    if nbytes < capacity:
        raise MPIException(
            ERR_TYPE,
            f"the origin has {nbytes} bytes and the target {capacity}; both need equal elements",
        )
