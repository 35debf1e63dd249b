"""Persistent requests: a call fixed once and started any number of times (MPI 4.1, sections 3.9 and 6.13)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.buffers import BufSpec, BufSpecB, BufSpecV, BufSpecW, InPlace
from serverless_mpi.api.collective import Collective, finishing
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.op import SUM, Op
from serverless_mpi.api.p2p import PointToPoint
from serverless_mpi.api.plan import Plan
from serverless_mpi.api.request import Pending, Request, request_of
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, derive_context
from serverless_mpi.errors import ERR_REQUEST, MPIException
from serverless_mpi.signals import uninterrupted


class Repeat(Pending):
    """What all handles to one persistent request share: how it is started, and what runs now (or nothing).

    start: begins it once more; the request it gives runs out in this one.
    """

    def __init__(self, start: Callable[[], Request]) -> None:
        super().__init__(None, None, None)
        self.start = start

    persistent = True

    def begin(self) -> None:
        """Start it.

        Raises
        ------
        MPIException
            ERR_REQUEST: it has been started and not waited for.
        """
        if self.operation is not None:
            raise MPIException(
                ERR_REQUEST,
                "the persistent request is active; wait for it before it is started again",
            )
        pending = self.start()._ob
        assert pending is not None
        self.runtime, self.operation, self.finish = (
            pending.runtime,
            pending.operation,
            pending.finish,
        )


class Prequest(Request):
    """A persistent request.  Waiting makes it inactive, not null; `Free` makes it null."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, request: Request | None = None) -> Prequest:
        if request and not isinstance(request, Prequest):
            raise TypeError("expecting a Prequest or a null request")
        return cls._copy(request)  # type: ignore[no-any-return]

    @classmethod
    def _repeating(cls, repeat: Repeat) -> Prequest:
        return cls._of_state(repeat)  # type: ignore[no-any-return]

    def _live(self) -> Repeat:
        if not isinstance(self._ob, Repeat):
            raise MPIException(ERR_REQUEST, "the persistent request is null")
        return self._ob

    @uninterrupted
    def Start(self) -> None:
        """Start it once more."""
        self._live().begin()

    @classmethod
    def Startall(cls, requests: list[Prequest]) -> None:
        """Start all."""
        for request in requests:
            request.Start()

    # --- partitioned; `Partitioned` makes such requests ----------------------

    def _partitions(self) -> Any:
        repeat = self._live()
        if not hasattr(repeat, "ready"):
            raise MPIException(ERR_REQUEST, "the request is not partitioned")
        return repeat

    @uninterrupted
    def Pready(self, partition: int) -> None:
        """Partition `partition` of a started send may go."""
        self._partitions().ready(partition)

    def Pready_range(self, partition_low: int, partition_high: int) -> None:
        """Those from `partition_low` to `partition_high`, both included."""
        for partition in range(partition_low, partition_high + 1):
            self.Pready(partition)

    def Pready_list(self, partitions: Sequence[int]) -> None:
        """Those of a list."""
        for partition in partitions:
            self.Pready(partition)

    def Parrived(self, partition: int) -> bool:
        """Whether partition `partition` of a receive is in the buffer; True for one that is not active."""
        return bool(self._partitions().arrived(partition))


class Persistent(PointToPoint, Collective):
    """The persistent calls of a communicator."""

    _requests: itertools.count[int]  # numbers the persistent collectives

    def _prepare(self, plan: Plan) -> Prequest:
        """A collective's request.

        Initialized in one order by all ranks, it has a context of its own, so that they may start several in any order.
        """
        context = derive_context(self._context, "persistent", next(self._requests))
        starts = itertools.count()

        def start() -> Request:
            return request_of(
                self._runtime, self._run(plan, context, next(starts)), finishing(plan)
            )

        repeat = Repeat(start)
        self._runtime.own(repeat, context)
        return Prequest._repeating(repeat)

    # --- point-to-point ------------------------------------------------------

    def Send_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """`Send`, to be started any number of times."""
        return self._send_init(self.Isend, buf, dest, tag)

    def Bsend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """`Bsend`, to be started any number of times."""
        return self._send_init(self.Ibsend, buf, dest, tag)

    def Ssend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """`Ssend`, to be started any number of times."""
        return self._send_init(self.Issend, buf, dest, tag)

    def Rsend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """`Rsend`, to be started any number of times."""
        return self._send_init(self.Irsend, buf, dest, tag)

    def Recv_init(self, buf: BufSpec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Prequest:
        """`Recv`, to be started any number of times."""
        self._check_recv(source, tag)
        return Prequest._repeating(Repeat(lambda: self.Irecv(buf, source, tag)))

    def _send_init(
        self, start: Callable[[Any, int, int], Request], buf: BufSpec, dest: int, tag: int
    ) -> Prequest:
        self._check_send(dest, tag)
        return Prequest._repeating(Repeat(lambda: start(buf, dest, tag)))

    # --- collectives ---------------------------------------------------------

    def Barrier_init(self, info: Info = INFO_NULL) -> Prequest:
        """`Barrier`, to be started any number of times."""
        return self._prepare(self._barrier())

    def Bcast_init(self, buf: BufSpec, root: int = 0, info: Info = INFO_NULL) -> Prequest:
        """`Bcast`, to be started any number of times."""
        return self._prepare(self._bcast(buf, root))

    def Gather_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpecB | None,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Gather`, to be started any number of times."""
        return self._prepare(self._gather(sendbuf, recvbuf, root))

    def Gatherv_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpecV | None,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Gatherv`, to be started any number of times."""
        return self._prepare(self._gatherv(sendbuf, recvbuf, root))

    def Scatter_init(
        self,
        sendbuf: BufSpecB | None,
        recvbuf: BufSpec | InPlace,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Scatter`, to be started any number of times."""
        return self._prepare(self._scatter(sendbuf, recvbuf, root))

    def Scatterv_init(
        self,
        sendbuf: BufSpecV | None,
        recvbuf: BufSpec | InPlace,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Scatterv`, to be started any number of times."""
        return self._prepare(self._scatterv(sendbuf, recvbuf, root))

    def Allgather_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """`Allgather`, to be started any number of times."""
        return self._prepare(self._allgather(sendbuf, recvbuf))

    def Allgatherv_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """`Allgatherv`, to be started any number of times."""
        return self._prepare(self._allgatherv(sendbuf, recvbuf))

    def Alltoall_init(
        self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """`Alltoall`, to be started any number of times."""
        return self._prepare(self._alltoall(sendbuf, recvbuf))

    def Alltoallv_init(
        self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """`Alltoallv`, to be started any number of times."""
        return self._prepare(self._alltoallv(sendbuf, recvbuf))

    def Alltoallw_init(
        self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW, info: Info = INFO_NULL
    ) -> Prequest:
        """`Alltoallw`, to be started any number of times."""
        return self._prepare(self._alltoallw(sendbuf, recvbuf))

    def Reduce_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec | None,
        op: Op = SUM,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Reduce`, to be started any number of times."""
        return self._prepare(self._reduce(sendbuf, recvbuf, op, root))

    def Allreduce_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """`Allreduce`, to be started any number of times."""
        return self._prepare(self._allreduce(sendbuf, recvbuf, op))

    def Reduce_scatter_block_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """`Reduce_scatter_block`, to be started any number of times."""
        return self._prepare(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Reduce_scatter_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """`Reduce_scatter`, to be started any number of times."""
        return self._prepare(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Scan_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """`Scan`, to be started any number of times."""
        return self._prepare(self._scan(sendbuf, recvbuf, op))

    def Exscan_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """`Exscan`, to be started any number of times."""
        return self._prepare(self._exscan(sendbuf, recvbuf, op))


__all__ = ["Prequest"]
