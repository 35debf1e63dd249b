"""Collective calls of a communicator: validation, and objects and buffers to and from blobs (MPI 4.1, chapter 6).

Each call is started once, by its nonblocking form; the blocking one waits for
it.  What moves is decided by `collectives.choose` and done by the generators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.buffers import IN_PLACE, InPlaceType, VMessage, WMessage, check_length
from serverless_mpi.api.buffers import Message as Spec
from serverless_mpi.api.datatype import Datatype
from serverless_mpi.api.op import SUM, Op
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.api.request import Request
from serverless_mpi.api.status import Status
from serverless_mpi.collectives.choose import Facts, select
from serverless_mpi.collectives.steps import Combine, Elementwise, whole
from serverless_mpi.errors import ERR_BUFFER, ERR_ROOT, MPIException
from serverless_mpi.runtime import Operation, Runtime


def _of_objects(op: Callable[[Any, Any], Any]) -> Combine:
    def combine(a: memoryview, b: memoryview) -> memoryview:
        return whole(encode(op(decode(a), decode(b))))

    return combine


def _of_elements(op: Op, datatype: Datatype) -> Combine:
    op.check(datatype)
    # a function of the user may take the whole buffer for one thing, as a matrix
    grain = max(1, datatype.size) if op.is_predefined else 0
    return Elementwise(lambda a, b: op.combine(a, b, datatype), grain)


def _is_in_place(spec: Any) -> bool:
    return isinstance(spec, InPlaceType)


class Collective:
    """What all ranks of a communicator call together.  `Comm` gives the context, the ranks and the runtime."""

    _runtime: Runtime
    _context: int
    _ranks: tuple[int, ...]
    _rank: int
    _calls: itertools.count[int]

    def _live(self) -> None: ...

    def _start(self, operation: str, nbytes: int | None, arguments: tuple[Any, ...], finish: Callable[[Any], Any]) -> Request:
        size = len(self._ranks)
        algorithm = select(operation, Facts(size, nbytes, self._runtime.figures))
        steps = algorithm(self._rank, size, *arguments)
        running = self._runtime.icollective(self._context, next(self._calls), steps, self._ranks)

        def complete(done: Operation, status: Status) -> Any:
            status._fill_empty()
            return finish(done.result)

        return Request._of(self._runtime, running, complete)

    def _check_root(self, root: int) -> bool:
        self._live()
        if not 0 <= root < len(self._ranks):
            raise MPIException(ERR_ROOT, f"root {root} is outside 0..{len(self._ranks) - 1}")
        return root == self._rank

    # --- objects -------------------------------------------------------------

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self.Ibarrier().wait()

    Barrier = barrier

    def Ibarrier(self) -> Request:
        """Start a barrier."""
        self._live()
        return self._start("barrier", 0, (), lambda _: None)

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """The root's object, on every rank."""
        mine = self._check_root(root)
        blob = encode(obj) if mine else None
        return self._start("bcast", None, (root, blob), lambda got: obj if mine else decode(got)).wait()

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """The list of all ranks' objects on the root, None elsewhere."""
        self._check_root(root)
        return self._start("gather", None, (root, encode(sendobj)), _decode_list).wait()

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """The root's sendobj[rank]."""
        blobs = None
        if self._check_root(root):
            blobs = self._encode_each(sendobj)
        return self._start("scatter", None, (root, blobs), lambda got: decode(whole(got))).wait()

    def allgather(self, sendobj: Any) -> list[Any]:
        """The list of all ranks' objects."""
        self._live()
        return self._start("allgather", None, (encode(sendobj),), _decode_list).wait()

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """What each rank had for this one: sendobj[r] goes to rank r."""
        self._live()
        return self._start("alltoall", None, (self._encode_each(sendobj),), _decode_list).wait()

    def _encode_each(self, objects: Sequence[Any] | None) -> list[list[memoryview]]:
        items = None if objects is None else list(objects)
        if items is None or len(items) != len(self._ranks):
            count = "None" if items is None else f"{len(items)} items"
            raise ValueError(f"expecting {len(self._ranks)} items, one a rank, got {count}")
        return [encode(item) for item in items]

    def reduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM, root: int = 0) -> Any:
        """All ranks' objects combined in rank order, on the root; None elsewhere."""
        self._check_root(root)
        arguments = (root, encode(sendobj), _of_objects(op))
        return self._start("reduce", None, arguments, _decode_some).wait()

    def allreduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """All ranks' objects combined in rank order, everywhere."""
        self._live()
        return self._start("allreduce", None, (encode(sendobj), _of_objects(op)), _decode_some).wait()

    def scan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of ranks 0 to this one combined."""
        self._live()
        return self._start("scan", None, (encode(sendobj), _of_objects(op)), _decode_some).wait()

    def exscan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of the ranks below this one combined; None on rank 0."""
        self._live()
        return self._start("exscan", None, (encode(sendobj), _of_objects(op)), _decode_some).wait()

    # --- buffers: moving -----------------------------------------------------

    def Ibcast(self, buf: Any, root: int = 0) -> Request:
        """Start giving the root's buffer to every rank's."""
        mine = self._check_root(root)
        spec = Spec(buf, readonly=mine)

        def finish(got: Any) -> None:
            if not mine:
                check_length(got, spec.nbytes, f"root {root}")
                spec.unpack(got)

        return self._start("bcast", spec.nbytes, (root, spec.pack() if mine else None), finish)

    def Igather(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Start collecting every rank's block in the root's buffer."""
        mine = self._check_root(root)
        room = Spec(recvbuf, readonly=False, blocks=len(self._ranks)) if mine else None
        data = self._block(sendbuf, room, mine)
        return self._start("gather", data.nbytes, (root, data), self._fill_blocks(room))

    def Igatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """The same with blocks of their own lengths and places."""
        mine = self._check_root(root)
        room = VMessage(recvbuf, readonly=False, size=len(self._ranks)) if mine else None
        data = self._block(sendbuf, room, mine)
        return self._start("gather", None, (root, data), self._fill_each(room))

    def Iscatter(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """Start giving each rank its block of the root's buffer."""
        mine = self._check_root(root)
        return self._scatter(Spec(sendbuf, readonly=True, blocks=len(self._ranks)) if mine else None, recvbuf, root)

    def Iscatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> Request:
        """The same with blocks of their own lengths and places."""
        mine = self._check_root(root)
        return self._scatter(VMessage(sendbuf, readonly=True, size=len(self._ranks)) if mine else None, recvbuf, root)

    def _scatter(self, blocks: Spec | VMessage | None, recvbuf: Any, root: int) -> Request:
        keep = _is_in_place(recvbuf)
        if keep and root != self._rank:
            raise MPIException(ERR_BUFFER, "only the root of a scatter may receive IN_PLACE")
        room = None if keep else Spec(recvbuf, readonly=False)
        blobs = None if blocks is None else [blocks.pack(rank) for rank in range(len(self._ranks))]

        def finish(got: Any) -> None:
            if room is not None:
                blob = whole(got)
                check_length(blob, room.nbytes, f"root {root}")
                room.unpack(blob)

        # the root alone knows the blocks' lengths where they differ, so the choice does not look at them
        return self._start("scatter", None, (root, blobs), finish)

    def Iallgather(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Start collecting every rank's block in every rank's buffer."""
        self._live()
        room = Spec(recvbuf, readonly=False, blocks=len(self._ranks))
        data = self._block(sendbuf, room, True)
        return self._start("allgather", data.nbytes, (data,), self._fill_blocks(room))

    def Iallgatherv(self, sendbuf: Any, recvbuf: Any) -> Request:
        """The same with blocks of their own lengths and places."""
        self._live()
        room = VMessage(recvbuf, readonly=False, size=len(self._ranks))
        data = self._block(sendbuf, room, True)
        return self._start("allgather", None, (data,), self._fill_each(room))

    def _block(self, sendbuf: Any, room: Spec | VMessage | None, may_be_in_place: bool) -> memoryview:
        """What this rank gives: its send buffer, or in place its own block of the receive buffer."""
        if _is_in_place(sendbuf):
            if not may_be_in_place or room is None:
                raise MPIException(ERR_BUFFER, "only the root may send IN_PLACE")
            return room.pack(self._rank)
        return Spec(sendbuf, readonly=True).pack()

    def _fill_blocks(self, room: Spec | None) -> Callable[[Any], None]:
        def finish(blobs: Any) -> None:
            if room is not None:
                for rank, blob in enumerate(blobs):
                    check_length(blob, room.nbytes, f"rank {rank}")
                    room.unpack(blob, rank)

        return finish

    def _fill_each(self, room: VMessage | WMessage | None) -> Callable[[Any], None]:
        def finish(blobs: Any) -> None:
            if room is not None:
                for rank, blob in enumerate(blobs):
                    check_length(blob, room.nbytes(rank), f"rank {rank}")
                    room.unpack(blob, rank)

        return finish

    def Ialltoall(self, sendbuf: Any, recvbuf: Any) -> Request:
        """Start giving block r of this rank's buffer to rank r."""
        self._live()
        size = len(self._ranks)
        room = Spec(recvbuf, readonly=False, blocks=size)
        if _is_in_place(sendbuf):
            blobs = [memoryview(bytes(room.pack(rank))) for rank in range(size)]
        else:
            give = Spec(sendbuf, readonly=True, blocks=size)
            blobs = [give.pack(rank) for rank in range(size)]
        return self._start("alltoall", room.nbytes, (blobs,), self._fill_blocks(room))

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> Request:
        """The same with blocks of their own lengths and places."""
        self._live()
        return self._alltoall_each(VMessage, sendbuf, recvbuf)

    def Ialltoallw(self, sendbuf: Any, recvbuf: Any) -> Request:
        """The same with datatypes of their own."""
        self._live()
        return self._alltoall_each(WMessage, sendbuf, recvbuf)

    def _alltoall_each(self, kind: type[VMessage] | type[WMessage], sendbuf: Any, recvbuf: Any) -> Request:
        size = len(self._ranks)
        room = kind(recvbuf, readonly=False, size=size)
        give = None if _is_in_place(sendbuf) else kind(sendbuf, readonly=True, size=size)
        blobs = [memoryview(bytes(room.pack(rank))) if give is None else give.pack(rank) for rank in range(size)]
        return self._start("alltoall", None, (blobs,), self._fill_each(room))

    # --- buffers: reducing ---------------------------------------------------

    def Ireduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM, root: int = 0) -> Request:
        """Start combining all ranks' buffers, element by element, into the root's."""
        mine = self._check_root(root)
        room = Spec(recvbuf, readonly=False) if mine else None
        give = self._operand(sendbuf, room)
        return self._start("reduce", give.nbytes, (root, give.pack(), _of_elements(op, give.datatype)), _fill(room))

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Start combining all ranks' buffers into every rank's."""
        return self._reduce_to_all("allreduce", sendbuf, recvbuf, op)

    def Iscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Start combining the buffers of ranks 0 to this one."""
        return self._reduce_to_all("scan", sendbuf, recvbuf, op)

    def Iexscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Start combining the buffers of the ranks below this one; rank 0's receive buffer stays."""
        return self._reduce_to_all("exscan", sendbuf, recvbuf, op)

    def _reduce_to_all(self, operation: str, sendbuf: Any, recvbuf: Any, op: Op) -> Request:
        self._live()
        room = Spec(recvbuf, readonly=False)
        give = self._operand(sendbuf, room)
        return self._start(operation, give.nbytes, (give.pack(), _of_elements(op, give.datatype)), _fill(room))

    def _operand(self, sendbuf: Any, room: Spec | None) -> Spec:
        if _is_in_place(sendbuf):
            if room is None:
                raise MPIException(ERR_BUFFER, "only the root of a reduce may send IN_PLACE")
            return room
        give = Spec(sendbuf, readonly=True)
        if room is not None and room.nbytes != give.nbytes:
            raise ValueError(f"message: {give.count} elements to reduce, room for {room.count}")
        return give

    def Ireduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> Request:
        """Start combining all ranks' buffers; rank r gets the r-th of equal blocks."""
        self._live()
        size = len(self._ranks)
        if _is_in_place(sendbuf):
            give = Spec(recvbuf, readonly=False, blocks=size)
            room = give
        else:
            give = Spec(sendbuf, readonly=True, blocks=size)
            room = Spec(recvbuf, readonly=False)
            if room.nbytes != give.nbytes:
                raise ValueError(f"message: blocks of {give.count} elements, room for {room.count}")
        blobs = [give.pack(rank) for rank in range(size)]
        return self._start("reduce_scatter", None, (blobs, _of_elements(op, give.datatype)), _fill(room))

    def Ireduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: Op = SUM
    ) -> Request:
        """Start combining all ranks' buffers; rank r gets recvcounts[r] elements of the result."""
        self._live()
        size = len(self._ranks)
        if recvcounts is None:
            if _is_in_place(sendbuf):
                return self.Ireduce_scatter_block(IN_PLACE, recvbuf, op)
            recvcounts = self.allgather(Spec(recvbuf, readonly=False).count)  # type: ignore[attr-defined]
        source = recvbuf if _is_in_place(sendbuf) else sendbuf
        whole_spec = Spec(source, readonly=True)
        counts = [int(count) for count in recvcounts]
        if len(counts) != size or sum(counts) != whole_spec.count:
            raise ValueError(f"message: {len(counts)} counts of {sum(counts)} elements for {size} ranks and {whole_spec.count}")
        width, data = whole_spec.datatype.size, whole_spec.pack()
        ends = list(itertools.accumulate(counts))
        blobs = [data[(end - count) * width : end * width] for count, end in zip(counts, ends, strict=True)]
        room = Spec(recvbuf, readonly=False)
        combine = _of_elements(op, whole_spec.datatype)
        return self._start("reduce_scatter", None, (blobs, combine), lambda got: room.unpack(whole(got)))

    # --- buffers: blocking forms ---------------------------------------------

    def Bcast(self, buf: Any, root: int = 0) -> None:
        """Give the root's buffer to every rank's."""
        self.Ibcast(buf, root).wait()

    def Gather(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """Collect every rank's block in the root's buffer."""
        self.Igather(sendbuf, recvbuf, root).wait()

    def Gatherv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """The same with blocks of their own lengths and places."""
        self.Igatherv(sendbuf, recvbuf, root).wait()

    def Scatter(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """Give each rank its block of the root's buffer."""
        self.Iscatter(sendbuf, recvbuf, root).wait()

    def Scatterv(self, sendbuf: Any, recvbuf: Any, root: int = 0) -> None:
        """The same with blocks of their own lengths and places."""
        self.Iscatterv(sendbuf, recvbuf, root).wait()

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        """Collect every rank's block in every rank's buffer."""
        self.Iallgather(sendbuf, recvbuf).wait()

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
        """The same with blocks of their own lengths and places."""
        self.Iallgatherv(sendbuf, recvbuf).wait()

    def Alltoall(self, sendbuf: Any, recvbuf: Any) -> None:
        """Give block r of this rank's buffer to rank r."""
        self.Ialltoall(sendbuf, recvbuf).wait()

    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None:
        """The same with blocks of their own lengths and places."""
        self.Ialltoallv(sendbuf, recvbuf).wait()

    def Alltoallw(self, sendbuf: Any, recvbuf: Any) -> None:
        """The same with datatypes of their own."""
        self.Ialltoallw(sendbuf, recvbuf).wait()

    def Reduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM, root: int = 0) -> None:
        """Combine all ranks' buffers, element by element, into the root's."""
        self.Ireduce(sendbuf, recvbuf, op, root).wait()

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Combine all ranks' buffers into every rank's."""
        self.Iallreduce(sendbuf, recvbuf, op).wait()

    def Scan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Combine the buffers of ranks 0 to this one."""
        self.Iscan(sendbuf, recvbuf, op).wait()

    def Exscan(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Combine the buffers of the ranks below this one; rank 0's receive buffer stays."""
        self.Iexscan(sendbuf, recvbuf, op).wait()

    def Reduce_scatter_block(self, sendbuf: Any, recvbuf: Any, op: Op = SUM) -> None:
        """Combine all ranks' buffers; rank r gets the r-th of equal blocks."""
        self.Ireduce_scatter_block(sendbuf, recvbuf, op).wait()

    def Reduce_scatter(
        self, sendbuf: Any, recvbuf: Any, recvcounts: Sequence[int] | None = None, op: Op = SUM
    ) -> None:
        """Combine all ranks' buffers; rank r gets recvcounts[r] elements of the result."""
        self.Ireduce_scatter(sendbuf, recvbuf, recvcounts, op).wait()


def _decode_list(blobs: Any) -> list[Any] | None:
    return None if blobs is None else [decode(blob) for blob in blobs]


def _decode_some(blob: Any) -> Any:
    return None if blob is None else decode(whole(blob))


def _fill(room: Spec | None) -> Callable[[Any], None]:
    def finish(got: Any) -> None:
        if room is not None and got is not None:
            room.unpack(whole(got))

    return finish
