"""Partitioned communication: one message whose partitions are sent as they become ready.

The n-th Psend_init to a rank under a tag and that rank's n-th Precv_init from this rank under the
same tag form a pair. Its context is derived from just that, so the two need no message to agree. A
start of the sender sends a head with the number of partitions (tag 0) and a message per partition
(tag partition + 1). The receiver may cut the message differently: then it collects the packed
message, and a partition of its own has arrived when all sender partitions that it overlaps have.

References
----------
MPI 4.1, chapter 4.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from serverless_mpi.api.buffers import BlockSpec, BufSpec
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.p2p import PointToPoint
from serverless_mpi.api.persistent import Prequest, Repeat
from serverless_mpi.api.request import Request, request_of
from serverless_mpi.api.status import Status, fill_empty_status, fill_null_status, fill_status
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL, derive_context
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_OTHER,
    ERR_RANK,
    ERR_REQUEST,
    ERR_TAG,
    ERR_TRUNCATE,
    MPIException,
)
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation

_HEAD = struct.Struct("<I")  # the sender's number of partitions


class _Send(Repeat):
    """State of a partitioned send."""

    def __init__(
        self, runtime: Runtime, context: int, dest: int | None, spec: BlockSpec, partitions: int
    ) -> None:
        super().__init__(self._begin)
        self._runtime, self._context, self._dest, self._spec = runtime, context, dest, spec
        self.partitions = partitions
        self._left: set[int] = set()
        self._lock = threading.Lock()

    def _begin(self) -> Request:
        """Send the head; the operation is done when all partitions are sent."""
        self._left = set(range(self.partitions))
        self._all = Operation(self.partitions + 1)
        self._put(0, memoryview(_HEAD.pack(self.partitions)))
        return request_of(self._runtime, self._all, lambda _, status: fill_empty_status(status))

    def ready(self, partition: int) -> None:
        """Send a partition."""
        _check(partition, self.partitions)
        with self._lock:
            if self.operation is None:
                raise MPIException(
                    ERR_REQUEST,
                    f"partition {partition} is ready, but the send has not been started",
                )
            if partition not in self._left:
                raise MPIException(
                    ERR_ARG, f"partition {partition} has been marked as ready already"
                )
            self._left.remove(partition)
        self._put(partition + 1, self._spec.pack(partition))

    def _put(self, tag: int, data: memoryview) -> None:
        """Send one message of the pair."""
        everything = self._all
        if self._dest is None:
            everything.release()
        else:
            self._runtime.isend(self._context, self._dest, tag, (data,)).add_done_callback(
                lambda put: _count(put, everything)
            )

    def arrived(self, partition: int) -> bool:
        """Raise ERR_REQUEST: this is a send."""
        raise MPIException(ERR_REQUEST, "Parrived is for a receive; this is a partitioned send")


def _count(put: Operation, everything: Operation) -> None:
    """Count a finished put, or its error, towards the whole send."""
    if put.error is not None:
        everything.fail(put.error)
    else:
        everything.release()


class _Receive(Repeat):
    """State of a partitioned receive, whose partitions may differ from the sender's."""

    def __init__(
        self, runtime: Runtime, context: int, source: int | None, spec: BlockSpec, partitions: int
    ) -> None:
        super().__init__(self._begin)
        self._runtime, self._context, self._source, self._spec = runtime, context, source, spec
        self.partitions = partitions
        self._here: set[int] = set()  # this side's partitions that are in the buffer

    def _begin(self) -> Request:
        """Start receiving the head and the partitions."""
        self._here = set()
        self._came: set[int] = set()  # the sender's
        self._pieces = 0
        self._scratch: memoryview | None = None  # the packed message where the two cuts differ
        if self._source is None:
            operation = Operation(0)
            operation.complete()
            self._here = set(range(self.partitions))
        else:
            operation = self._runtime.irecv_parts(
                self._context, self._source, self._head, self._piece
            )
        return request_of(self._runtime, operation, self._filled)

    def _filled(self, operation: Operation, status: Status) -> None:
        """Fill the status."""
        if self._source is None:
            fill_null_status(status)
        else:
            fill_status(status, self.rank, self.tag, self.partitions * self._spec.nbytes)

    def _head(self, data: memoryview) -> int:
        """Take the head; return the number of messages that follow."""
        (self._pieces,) = _HEAD.unpack(data)
        return int(self._pieces)

    def _piece(self, piece: int, data: memoryview) -> None:
        """Take a partition of the sender's."""
        spec, total = self._spec, self._spec.nbytes * self.partitions
        if data.nbytes * self._pieces != total:
            raise MPIException(
                ERR_TRUNCATE,
                f"the sender's {self._pieces} partitions of {data.nbytes} bytes are not the"
                f" {total} bytes of this receive",
            )
        self._came.add(piece)
        if self._pieces == self.partitions:
            spec.unpack(data, piece)
            self._here.add(piece)
            return
        if self._scratch is None:
            self._scratch = memoryview(bytearray(total))
        self._scratch[piece * data.nbytes : (piece + 1) * data.nbytes] = data
        for own in range(self.partitions):
            first = own * self._pieces // self.partitions
            last = -(-(own + 1) * self._pieces // self.partitions)
            if own not in self._here and self._came.issuperset(range(first, last)):
                spec.unpack(self._scratch[own * spec.nbytes : (own + 1) * spec.nbytes], own)
                self._here.add(own)

    def arrived(self, partition: int) -> bool:
        """Return whether a partition is in the buffer."""
        _check(partition, self.partitions)
        if self.operation is None or partition in self._here:
            return True
        self._runtime.progress()
        if self.operation.error is not None:
            raise self.operation.error
        return partition in self._here

    def ready(self, partition: int) -> None:
        """Raise ERR_REQUEST: this is a receive."""
        raise MPIException(ERR_REQUEST, "Pready is for a send; this is a partitioned receive")

    rank = PROC_NULL
    tag = 0


def _check(partition: int, partitions: int) -> None:
    if not 0 <= partition < partitions:
        raise MPIException(ERR_OTHER, f"partition {partition} is outside 0..{partitions - 1}")


class Partitioned(PointToPoint):
    """The partitioned calls of a communicator."""

    _pairs: Callable[[tuple[str, int, int]], int]  # counts the initializations under a key

    def Psend_init(
        self, buf: BufSpec, partitions: int, dest: int, tag: int = 0, info: Info = INFO_NULL
    ) -> Prequest:
        """Make a persistent request of a partitioned send.

        Parameters
        ----------
        buf
            Specification of `partitions` equal blocks. A block must not change from its `Pready`
            until the request completes.
        partitions
            Number of partitions, at least 1.
        dest, tag
            As in `Send`.
        info
            Not used.

        References
        ----------
        MPI 4.1, section 4.2.1.
        """
        self._check_send(dest, tag)
        _positive(partitions)
        spec = BlockSpec(None if dest == PROC_NULL else buf, readonly=True, blocks=partitions)
        world = None if dest == PROC_NULL else self._peers[dest]
        context = self._pair(self._runtime.rank, world, tag, "to")
        send = _Send(self._runtime, context, world, spec, partitions)
        self._own(send, context, world)
        return Prequest._repeating(send)

    def Precv_init(
        self,
        buf: BufSpec,
        partitions: int,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        info: Info = INFO_NULL,
    ) -> Prequest:
        """Make a persistent request of a partitioned receive.

        Parameters
        ----------
        buf
            Specification of `partitions` equal blocks. A block may be read once `Parrived` returns
            True.
        partitions
            Number of partitions; it may differ from the sender's.
        source, tag
            As in `Recv`, without wildcards.
        info
            Not used.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: a wildcard.
        """
        _positive(partitions)
        self._check_recv(source, tag)
        if source == ANY_SOURCE or tag == ANY_TAG:
            wild = ERR_RANK if source == ANY_SOURCE else ERR_TAG
            raise MPIException(
                wild, "a partitioned receive needs a source and a tag, not a wildcard"
            )
        spec = BlockSpec(None if source == PROC_NULL else buf, readonly=False, blocks=partitions)
        world = None if source == PROC_NULL else self._peers[source]
        receive = _Receive(
            self._runtime,
            self._pair(world, self._runtime.rank, tag, "from"),
            world,
            spec,
            partitions,
        )
        receive.rank, receive.tag = source, tag
        self._own(receive, receive._context, world)
        return Prequest._repeating(receive)

    def _own(self, request: Repeat, context: int, peer: int | None) -> None:
        """Keep the context: by the request, or by the communicator if both ends are here."""
        runtime = self._runtime
        runtime.own(self._state if peer == runtime.rank else request, context)

    def _pair(self, source: int | None, dest: int | None, tag: int, end: str) -> int:
        """The context of a pair, which both ends derive."""
        if source is None or dest is None:
            return 0
        number = self._pairs((end, source if end == "from" else dest, tag))
        return derive_context(self._context, "partitioned", source, dest, tag, number)


def _positive(partitions: int) -> None:
    if partitions < 1:
        raise MPIException(ERR_ARG, f"a message needs at least 1 partition, not {partitions}")
