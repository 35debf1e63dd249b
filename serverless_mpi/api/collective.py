"""Collective calls of a communicator, blocking and nonblocking (MPI 4.1, chapter 6).

Each call is a plan (plan.py) that is started once; the blocking form waits for
it.  What moves is decided by `collectives.choose` and done by the generators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serverless_mpi.api.buffers import BufSpec, BufSpecB, BufSpecV, BufSpecW, InPlace
from serverless_mpi.api.op import SUM, Op
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.plan import Plan, Plans, nothing, of_objects
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.collectives.choose import Algorithm, Facts, select
from serverless_mpi.collectives.operations import OPERATIONS, Layout
from serverless_mpi.collectives.steps import Steps, whole
from serverless_mpi.operation import Operation
from serverless_mpi.signals import uninterrupted

MOST_CHOICES = 1024  # that a communicator keeps: one for each operation and length that it met


class Collective(Plans):
    """What all ranks of a communicator call together.  `Comm` gives the context, the ranks and the runtime."""

    _calls: itertools.count[int]
    _state: Any

    _kind = ""  # before the name of an operation in the table

    def _steps(self, plan: Plan) -> Steps:
        """This rank's part of a call."""
        operation, size = self._kind + plan.operation, len(self._ranks)
        algorithm = self._choose(operation, size, plan.nbytes)
        arguments = plan.arguments()
        chosen = self._runtime.chosen
        if (
            chosen is not None
        ):  # for --explain: what else ranks know of the call, and the lengths of what they give
            known = (
                None if self._kind else plan.nbytes
            )  # between two groups some ranks have no part, and do not know it
            call = (operation, size, known, algorithm.name, self._layout(plan.operation, arguments))
            lengths = OPERATIONS[operation].blob_lengths(arguments)
            calls, blobs, nbytes = chosen.get(call, (0, 0, 0))
            chosen[call] = (calls + 1, blobs + len(lengths), nbytes + sum(lengths))
        steps: Steps = algorithm.generator(*self._place(), *arguments)
        return steps

    def _choose(self, operation: str, size: int, nbytes: int | None) -> Algorithm:
        """Return the algorithm of a call; every rank of the call chooses the same one."""
        choices: dict[Any, Algorithm] = self._state.choices
        algorithm = choices.get((operation, nbytes))
        if algorithm is None:
            facts = Facts(size, nbytes, self._runtime.figures)
            algorithm = self._runtime.algorithms.get(operation)
            if algorithm is None or not algorithm.condition(facts):
                algorithm = select(operation, facts)
            if len(choices) == MOST_CHOICES:
                choices.clear()
            choices[operation, nbytes] = algorithm
        return algorithm

    def _place(self) -> tuple[Any, ...]:
        """What an algorithm is told first: who this rank is, and among whom."""
        return self._rank, len(self._ranks)

    def _layout(self, operation: str, arguments: tuple[Any, ...]) -> Layout | None:
        """Who speaks to whom, as far as this rank knows, where it is not simply every rank to every other."""
        return None

    def _run(self, plan: Plan, context: int, number: int) -> Operation:
        """Start a call under a number that all ranks give it."""
        return self._runtime.icollective(context, number, self._steps(plan), self._ranks)

    @uninterrupted
    def _start(self, plan: Plan) -> Request:
        running = self._run(plan, self._context, next(self._calls))
        return request_of(self._runtime, running, finishing(plan))

    @uninterrupted
    def _call(self, plan: Plan) -> Any:
        """Start a call and wait for it: a blocking call needs no request."""
        running = self._run(plan, self._context, next(self._calls))
        if not running.done:
            self._runtime.wait((running,), all=True)
        if running.error is not None:
            raise running.error
        return plan.finish(running.result)

    # --- objects -------------------------------------------------------------

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._call(self._barrier())

    Barrier = barrier

    def Ibarrier(self) -> Request:
        """Start `Barrier`."""
        return self._start(self._barrier())

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """The root's object, on every rank."""
        mine, peer = self._role(root)
        blob = encode(obj) if mine else None
        place = self._number(root)

        def finish(got: Any) -> Any:
            return decode(got) if peer and not mine else obj if peer else None

        return self._call(Plan("bcast", None, lambda: (place, blob), finish))

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """The list of all ranks' objects on the root, None elsewhere."""
        _, peer = self._role(root)
        arguments = (self._number(root), encode(sendobj) if peer else None)
        objects: list[Any] | None = self._call(Plan("gather", None, lambda: arguments, decode_list))
        return objects

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """The root's sendobj[rank]."""
        mine, peer = self._role(root)
        arguments = (self._number(root), encode_each(sendobj, len(self._peers)) if mine else None)
        return self._call(
            Plan("scatter", None, lambda: arguments, _decode_some if peer else nothing)
        )

    def allgather(self, sendobj: Any) -> list[Any]:
        """The list of all ranks' objects."""
        self._live()
        arguments = (encode(sendobj),)
        objects: list[Any] = self._call(Plan("allgather", None, lambda: arguments, decode_list))
        return objects

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """What each rank had for this one: sendobj[r] goes to rank r."""
        self._live()
        arguments = (encode_each(sendobj, len(self._peers)),)
        objects: list[Any] = self._call(Plan("alltoall", None, lambda: arguments, decode_list))
        return objects

    def reduce(
        self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM, root: int = 0
    ) -> Any | None:
        """All ranks' objects combined in rank order, on the root; None elsewhere."""
        _, peer = self._role(root)
        arguments = (self._number(root), encode(sendobj) if peer else None, of_objects(op))
        return self._call(Plan("reduce", None, lambda: arguments, _decode_some))

    def allreduce(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """All ranks' objects combined in rank order, everywhere."""
        return self._combine("allreduce", sendobj, op)

    def scan(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of ranks 0 to this one combined."""
        return self._combine("scan", sendobj, op)

    def exscan(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of the ranks below this one combined; None on rank 0."""
        return self._combine("exscan", sendobj, op)

    def _combine(self, operation: str, sendobj: Any, op: Callable[[Any, Any], Any]) -> Any:
        self._live()
        arguments = (encode(sendobj), of_objects(op))
        return self._call(Plan(operation, None, lambda: arguments, _decode_some))

    # --- buffers -------------------------------------------------------------

    def Bcast(self, buf: BufSpec, root: int = 0) -> None:
        """Give the root's buffer to every rank's."""
        self._call(self._bcast(buf, root))

    def Gather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int = 0) -> None:
        """Collect every rank's block in the root's buffer."""
        self._call(self._gather(sendbuf, recvbuf, root))

    def Gatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int = 0) -> None:
        """Collect blocks of any lengths in places of the root's buffer."""
        self._call(self._gatherv(sendbuf, recvbuf, root))

    def Scatter(self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int = 0) -> None:
        """Give each rank its block of the root's buffer."""
        self._call(self._scatter(sendbuf, recvbuf, root))

    def Scatterv(self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int = 0) -> None:
        """Give each rank its block, of any length and place, of the root's buffer."""
        self._call(self._scatterv(sendbuf, recvbuf, root))

    def Allgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> None:
        """Collect every rank's block in every rank's buffer."""
        self._call(self._allgather(sendbuf, recvbuf))

    def Allgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> None:
        """Collect blocks of any lengths in places of every rank's buffer."""
        self._call(self._allgatherv(sendbuf, recvbuf))

    def Alltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> None:
        """Give block r of this rank's buffer to rank r."""
        self._call(self._alltoall(sendbuf, recvbuf))

    def Alltoallv(self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV) -> None:
        """Give each rank its block, of any length and place."""
        self._call(self._alltoallv(sendbuf, recvbuf))

    def Alltoallw(self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW) -> None:
        """Give each rank its block, of any length, place and datatype."""
        self._call(self._alltoallw(sendbuf, recvbuf))

    def Reduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op = SUM, root: int = 0
    ) -> None:
        """Combine all ranks' buffers, element by element, into the root's."""
        self._call(self._reduce(sendbuf, recvbuf, op, root))

    def Allreduce(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine all ranks' buffers into every rank's."""
        self._call(self._allreduce(sendbuf, recvbuf, op))

    def Reduce_scatter_block(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM
    ) -> None:
        """Combine all ranks' buffers; rank r gets the r-th of equal blocks."""
        self._call(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Reduce_scatter(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
    ) -> None:
        """Combine all ranks' buffers; rank r gets recvcounts[r] elements of the result."""
        self._call(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Scan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine the buffers of ranks 0 to this one."""
        self._call(self._scan(sendbuf, recvbuf, op))

    def Exscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine the buffers of the ranks below this one; rank 0's receive buffer stays."""
        self._call(self._exscan(sendbuf, recvbuf, op))

    def Ibcast(self, buf: BufSpec, root: int = 0) -> Request:
        """Start `Bcast`."""
        return self._start(self._bcast(buf, root))

    def Igather(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int = 0
    ) -> Request:
        """Start `Gather`."""
        return self._start(self._gather(sendbuf, recvbuf, root))

    def Igatherv(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int = 0
    ) -> Request:
        """Start `Gatherv`."""
        return self._start(self._gatherv(sendbuf, recvbuf, root))

    def Iscatter(
        self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int = 0
    ) -> Request:
        """Start `Scatter`."""
        return self._start(self._scatter(sendbuf, recvbuf, root))

    def Iscatterv(
        self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int = 0
    ) -> Request:
        """Start `Scatterv`."""
        return self._start(self._scatterv(sendbuf, recvbuf, root))

    def Iallgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> Request:
        """Start `Allgather`."""
        return self._start(self._allgather(sendbuf, recvbuf))

    def Iallgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> Request:
        """Start `Allgatherv`."""
        return self._start(self._allgatherv(sendbuf, recvbuf))

    def Ialltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> Request:
        """Start `Alltoall`."""
        return self._start(self._alltoall(sendbuf, recvbuf))

    def Ialltoallv(self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV) -> Request:
        """Start `Alltoallv`."""
        return self._start(self._alltoallv(sendbuf, recvbuf))

    def Ialltoallw(self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW) -> Request:
        """Start `Alltoallw`."""
        return self._start(self._alltoallw(sendbuf, recvbuf))

    def Ireduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op = SUM, root: int = 0
    ) -> Request:
        """Start `Reduce`."""
        return self._start(self._reduce(sendbuf, recvbuf, op, root))

    def Iallreduce(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Allreduce`."""
        return self._start(self._allreduce(sendbuf, recvbuf, op))

    def Ireduce_scatter_block(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM
    ) -> Request:
        """Start `Reduce_scatter_block`."""
        return self._start(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Ireduce_scatter(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
    ) -> Request:
        """Start `Reduce_scatter`."""
        return self._start(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Iscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Scan`."""
        return self._start(self._scan(sendbuf, recvbuf, op))

    def Iexscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Exscan`."""
        return self._start(self._exscan(sendbuf, recvbuf, op))


def finishing(plan: Plan) -> Callable[[Operation, Status], Any]:
    """What a request does with a plan's result."""

    def complete(done: Operation, status: Status) -> Any:
        fill_empty_status(status)
        return plan.finish(done.result)

    return complete


def encode_each(objects: Iterable[Any] | None, count: int) -> list[list[memoryview]]:
    """The blobs of `count` objects; None is as many Nones."""
    items = [None] * count if objects is None else list(objects)
    if len(items) != count:
        raise ValueError(f"expecting {count} items, got {len(items)}")
    return [encode(item) for item in items]


def decode_list(blobs: Any) -> list[Any] | None:
    """The objects of blobs, None for those that are not there."""
    return (
        None if blobs is None else [None if blob is None else decode(whole(blob)) for blob in blobs]
    )


def _decode_some(blob: Any) -> Any:
    return None if blob is None else decode(whole(blob))
