"""Persistent requests: calls that are set up once and started any number of times.

A persistent point-to-point request repeats the nonblocking call; a persistent collective repeats
its plan (plan.py), in a context of its own, so that its starts need not be ordered with other
calls. Buffers are read and written between Start and completion.

References
----------
MPI 4.1, sections 3.9 and 6.13.
"""

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
    """State of a persistent request.

    start: starts the call once more and returns its request, whose operation this one then waits
    for.
    """

    def __init__(self, start: Callable[[], Request]) -> None:
        super().__init__(None, None, None)
        self.start = start

    persistent = True

    def begin(self) -> None:
        """Start the call.

        Raises
        ------
        MPIException
            ERR_REQUEST: it is active.
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
    """A persistent request. Completing it makes it inactive; `Free` makes it null."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, request: Request | None = None) -> Prequest:
        if request and not isinstance(request, Prequest):
            raise TypeError("expecting a Prequest or a null request")
        return cls._copy(request)  # type: ignore[no-any-return]

    @classmethod
    def _repeating(cls, repeat: Repeat) -> Prequest:
        """Make the request of a call."""
        return cls._of_state(repeat)  # type: ignore[no-any-return]

    def _live(self) -> Repeat:
        """State of the request; ERR_REQUEST for a null handle."""
        if not isinstance(self._ob, Repeat):
            raise MPIException(ERR_REQUEST, "the persistent request is null")
        return self._ob

    @uninterrupted
    def Start(self) -> None:
        """Start the call.

        Raises
        ------
        MPIException
            ERR_REQUEST: the request is null, or active.
        """
        self._live().begin()

    @classmethod
    def Startall(cls, requests: list[Prequest]) -> None:
        """Start the calls of all requests.

        Parameters
        ----------
        requests
            Inactive persistent requests, started in this order.

        Raises
        ------
        MPIException
            ERR_REQUEST: a request is null, or active.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        for request in requests:
            request.Start()

    # --- partitioned; `Partitioned` makes such requests ----------------------

    def _partitions(self) -> Any:
        """State of a partitioned request; ERR_REQUEST for any other."""
        repeat = self._live()
        if not hasattr(repeat, "ready"):
            raise MPIException(ERR_REQUEST, "the request is not partitioned")
        return repeat

    @uninterrupted
    def Pready(self, partition: int) -> None:
        """Mark a partition of a started send as ready, which sends it.

        Parameters
        ----------
        partition
            Index of the partition.

        Raises
        ------
        MPIException
            ERR_REQUEST: the send has not been started. ERR_ARG: the partition is ready already.

        References
        ----------
        MPI 4.1, section 4.2.2.
        """
        self._partitions().ready(partition)

    def Pready_range(self, partition_low: int, partition_high: int) -> None:
        """Mark the partitions from `partition_low` to `partition_high`, included, as ready.

        Parameters
        ----------
        partition_low, partition_high
            Indices of the first and the last partition.
        """
        for partition in range(partition_low, partition_high + 1):
            self.Pready(partition)

    def Pready_list(self, partitions: Sequence[int]) -> None:
        """Mark the partitions of a list as ready.

        Parameters
        ----------
        partitions
            Indices of the partitions.
        """
        for partition in partitions:
            self.Pready(partition)

    def Parrived(self, partition: int) -> bool:
        """Return whether a partition has been received; True if the request is inactive.

        Parameters
        ----------
        partition
            Index of the partition.

        Raises
        ------
        MPIException
            ERR_REQUEST: the request is null, not partitioned, or a send. ERR_OTHER: there is no
            such partition.
        """
        return bool(self._partitions().arrived(partition))


class Persistent(PointToPoint, Collective):
    """The persistent calls of a communicator."""

    _requests: itertools.count[int]  # numbers the persistent collectives

    def _prepare(self, plan: Plan) -> Prequest:
        """A collective's request.

        Initialized in one order by all ranks, it has a context of its own, so that they may start
        several in any order.
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
        """Make a persistent request of `Send`.

        Parameters
        ----------
        buf, dest, tag
            As in `Send`. The buffer is borrowed until the request is freed.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        return self._send_init(self.Isend, buf, dest, tag)

    def Bsend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent request of `Bsend`.

        Parameters
        ----------
        buf, dest, tag
            As in `Bsend`. The buffer is borrowed until the request is freed.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        return self._send_init(self.Ibsend, buf, dest, tag)

    def Ssend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent request of `Ssend`.

        Parameters
        ----------
        buf, dest, tag
            As in `Ssend`. The buffer is borrowed until the request is freed.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        return self._send_init(self.Issend, buf, dest, tag)

    def Rsend_init(self, buf: BufSpec, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent request of `Rsend`.

        Parameters
        ----------
        buf, dest, tag
            As in `Rsend`. The buffer is borrowed until the request is freed.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        return self._send_init(self.Irsend, buf, dest, tag)

    def Recv_init(self, buf: BufSpec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Prequest:
        """Make a persistent request of `Recv`.

        Parameters
        ----------
        buf, source, tag
            As in `Recv`. The buffer is borrowed until the request is freed.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.9.
        """
        self._check_recv(source, tag)
        return Prequest._repeating(Repeat(lambda: self.Irecv(buf, source, tag)))

    def _send_init(
        self, start: Callable[[Any, int, int], Request], buf: BufSpec, dest: int, tag: int
    ) -> Prequest:
        self._check_send(dest, tag)
        return Prequest._repeating(Repeat(lambda: start(buf, dest, tag)))

    # --- collectives ---------------------------------------------------------

    def Barrier_init(self, info: Info = INFO_NULL) -> Prequest:
        """Make a persistent request of `Barrier`.

        Parameters
        ----------
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._barrier())

    def Bcast_init(self, buf: BufSpec, root: int = 0, info: Info = INFO_NULL) -> Prequest:
        """Make a persistent request of `Bcast`.

        Parameters
        ----------
        buf, root
            As in `Bcast`. The buffer is borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._bcast(buf, root))

    def Gather_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpecB | None,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Gather`.

        Parameters
        ----------
        sendbuf, recvbuf, root
            As in `Gather`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._gather(sendbuf, recvbuf, root))

    def Gatherv_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpecV | None,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Gatherv`.

        Parameters
        ----------
        sendbuf, recvbuf, root
            As in `Gatherv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._gatherv(sendbuf, recvbuf, root))

    def Scatter_init(
        self,
        sendbuf: BufSpecB | None,
        recvbuf: BufSpec | InPlace,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Scatter`.

        Parameters
        ----------
        sendbuf, recvbuf, root
            As in `Scatter`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._scatter(sendbuf, recvbuf, root))

    def Scatterv_init(
        self,
        sendbuf: BufSpecV | None,
        recvbuf: BufSpec | InPlace,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Scatterv`.

        Parameters
        ----------
        sendbuf, recvbuf, root
            As in `Scatterv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._scatterv(sendbuf, recvbuf, root))

    def Allgather_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Allgather`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Allgather`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._allgather(sendbuf, recvbuf))

    def Allgatherv_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Allgatherv`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Allgatherv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._allgatherv(sendbuf, recvbuf))

    def Alltoall_init(
        self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Alltoall`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Alltoall`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._alltoall(sendbuf, recvbuf))

    def Alltoallv_init(
        self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Alltoallv`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Alltoallv`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._alltoallv(sendbuf, recvbuf))

    def Alltoallw_init(
        self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Alltoallw`.

        Parameters
        ----------
        sendbuf, recvbuf
            As in `Alltoallw`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._alltoallw(sendbuf, recvbuf))

    def Reduce_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec | None,
        op: Op = SUM,
        root: int = 0,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Reduce`.

        Parameters
        ----------
        sendbuf, recvbuf, op, root
            As in `Reduce`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._reduce(sendbuf, recvbuf, op, root))

    def Allreduce_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Allreduce`.

        Parameters
        ----------
        sendbuf, recvbuf, op
            As in `Allreduce`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._allreduce(sendbuf, recvbuf, op))

    def Reduce_scatter_block_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Reduce_scatter_block`.

        Parameters
        ----------
        sendbuf, recvbuf, op
            As in `Reduce_scatter_block`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Reduce_scatter_init(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of `Reduce_scatter`.

        Parameters
        ----------
        sendbuf, recvbuf, recvcounts, op
            As in `Reduce_scatter`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Scan_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Scan`.

        Parameters
        ----------
        sendbuf, recvbuf, op
            As in `Scan`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._scan(sendbuf, recvbuf, op))

    def Exscan_init(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of `Exscan`.

        Parameters
        ----------
        sendbuf, recvbuf, op
            As in `Exscan`. The buffers are borrowed until the request is freed.
        info
            Not used.

        Returns
        -------
        Prequest
            An inactive request; each `Start` starts the call once.
        """
        return self._prepare(self._exscan(sendbuf, recvbuf, op))


__all__ = ["Prequest"]
