"""Plans: what each collective buffer call moves.

A `Plan` holds a call whose arguments are checked: how to make the algorithm's blobs from the send
buffer, and how to put the resulting blobs into the receive buffer. It can be started any number of
times: once by a blocking or nonblocking call, at each Start by a persistent one. Blobs are packed
when the call starts, not when the plan is made.

What differs between one group and two is in a few methods (`_role`, `_number`, `_in_place`,
`_common`, `_get_size`), which intercomm.py overrides: which ranks the root exchanges blobs with
(`_peers`), and how it is named.

Pitfall: `Plan.nbytes` decides the algorithm, so it may be a number only if every rank of the call
computes the same one; otherwise it is None.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from serverless_mpi.api.buffers import (
    BlockSpec,
    BufSpec,
    BufSpecB,
    BufSpecV,
    BufSpecW,
    ContiguousSpec,
    GeneralSpec,
    InPlace,
    InPlaceType,
    VectorSpec,
    block,
    certainly_apart,
    check_length,
)
from serverless_mpi.api.datatype import Datatype
from serverless_mpi.api.op import Op, elementwise
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.collectives.steps import Combine, whole
from serverless_mpi.errors import ERR_BUFFER, ERR_ROOT, MPIException
from serverless_mpi.runtime import Runtime

Block = BlockSpec | ContiguousSpec


class Plan(NamedTuple):
    """A collective call that can be started.

    Attributes
    ----------
    operation
        Its name in `collectives.choose`.
    nbytes
        Bytes of a blob if all ranks know it, else None.
    arguments
        Makes the algorithm's arguments after (rank, size), from the buffers as they are then.
    finish
        Takes the algorithm's result and makes the value of the call.
    """

    operation: str
    nbytes: int | None
    arguments: Callable[[], tuple[Any, ...]]
    finish: Callable[[Any], Any]


def of_objects(op: Callable[[Any, Any], Any]) -> Combine:
    """Make the combining function of pickled operands.

    Parameters
    ----------
    op
        Function of two objects that returns their combination.
    """

    def combine(a: memoryview, b: memoryview) -> memoryview:
        return whole(encode(op(decode(a), decode(b))))

    return combine


def nothing(_: Any) -> None:
    """Finish a call without a result.

    Parameters
    ----------
    _
        Result of the operation; not used.
    """


class Plans:
    """Plans of a communicator's collective buffer calls."""

    _runtime: Runtime
    _context: int
    _rank: int
    _ranks: tuple[int, ...]  # world ranks that the algorithms number: one group, or both
    # world ranks of the group that this rank exchanges blobs with: its own, or the remote one
    _peers: tuple[int, ...]

    def _live(self) -> None: ...

    # --- one group; intercomm.py overrides these for two -----------------------

    def _role(self, root: int) -> tuple[bool, bool]:
        """Whether this rank is the root, and whether it exchanges blobs with the root."""
        self._live()
        if not 0 <= root < len(self._ranks):
            raise MPIException(ERR_ROOT, f"root {root} is outside 0..{len(self._ranks) - 1}")
        return root == self._rank, True

    def _number(self, root: int) -> int | None:
        """The root as the algorithms number it; None if this rank takes no part."""
        return root

    def _in_place(self, spec: Any, allowed: bool = True) -> bool:
        """Whether `spec` is IN_PLACE; None means it too where it is allowed."""
        if isinstance(spec, InPlaceType) and not allowed:
            raise MPIException(ERR_BUFFER, "only the root of a collective may give IN_PLACE")
        return allowed and (spec is None or isinstance(spec, InPlaceType))

    # --- moving --------------------------------------------------------------

    def _barrier(self) -> Plan:
        self._live()
        return Plan("barrier", 0, tuple, nothing)

    def _bcast(self, buf: BufSpec, root: int) -> Plan:
        is_root, is_peer = self._role(root)
        root_number = self._number(root)
        if not (is_root or is_peer):
            return Plan("bcast", None, lambda: (root_number, None), nothing)
        spec = block(buf, readonly=is_root)

        def finish(result: Any) -> None:
            if not is_root:
                check_length(result, spec.nbytes, f"root {root}")
                spec.unpack(result)

        return Plan(
            "bcast", spec.nbytes, lambda: (root_number, spec.pack() if is_root else None), finish
        )

    def _gather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int) -> Plan:
        is_root, is_peer = self._role(root)
        root_number = self._number(root)
        recv_spec = block(recvbuf, readonly=False, blocks=len(self._peers)) if is_root else None
        nbytes, send_spec = self._block(sendbuf, recv_spec, is_root) if is_peer else (None, None)
        return Plan(
            "gather",
            nbytes,
            lambda: (root_number, send_spec() if send_spec else None),
            _fill_blocks(recv_spec),
        )

    def _gatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int) -> Plan:
        is_root, is_peer = self._role(root)
        root_number = self._number(root)
        recv_spec = VectorSpec(recvbuf, readonly=False, size=len(self._peers)) if is_root else None
        _, send_spec = self._block(sendbuf, recv_spec, is_root) if is_peer else (None, None)
        return Plan(
            "gather",
            None,
            lambda: (root_number, send_spec() if send_spec else None),
            _fill_each(recv_spec),
        )

    def _scatter(self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int) -> Plan:
        is_root, is_peer = self._role(root)
        return self._scatter_blocks(
            block(sendbuf, readonly=True, blocks=len(self._peers)) if is_root else None,
            recvbuf,
            root,
            is_peer,
        )

    def _scatterv(self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int) -> Plan:
        is_root, is_peer = self._role(root)
        return self._scatter_blocks(
            VectorSpec(sendbuf, readonly=True, size=len(self._peers)) if is_root else None,
            recvbuf,
            root,
            is_peer,
        )

    def _scatter_blocks(
        self,
        blocks: Block | VectorSpec | None,
        recvbuf: BufSpec | InPlace,
        root: int,
        is_peer: bool,
    ) -> Plan:
        """The plan of a scatter whose root holds `blocks`."""
        root_number, size = self._number(root), len(self._peers)
        keeps_own = not is_peer or self._in_place(recvbuf, blocks is not None)
        recv_spec = None if keeps_own else block(recvbuf, readonly=False)
        if recv_spec is not None and blocks is not None:
            self._check_apart(blocks, self._rank, recv_spec, 0)

        def finish(result: Any) -> None:
            if recv_spec is not None:
                blob = whole(result)
                check_length(blob, recv_spec.nbytes, f"root {root}")
                recv_spec.unpack(blob)

        # only the root knows the blocks' lengths if they differ, so the choice must not use them
        def arguments() -> tuple[Any, ...]:
            return root_number, None if blocks is None else [
                blocks.pack(rank) for rank in range(size)
            ]

        return Plan("scatter", None, arguments, finish)

    def _allgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> Plan:
        self._live()
        recv_spec = block(recvbuf, readonly=False, blocks=len(self._peers))
        nbytes, send_spec = self._block(sendbuf, recv_spec, True)
        return Plan("allgather", nbytes, lambda: (send_spec(),), _fill_blocks(recv_spec))

    def _allgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> Plan:
        self._live()
        recv_spec = VectorSpec(recvbuf, readonly=False, size=len(self._peers))
        _, send_spec = self._block(sendbuf, recv_spec, True)
        return Plan("allgather", None, lambda: (send_spec(),), _fill_each(recv_spec))

    def _common(self, nbytes: int) -> int | None:
        """`nbytes` if all ranks of the call know it; two groups may have different lengths."""
        return nbytes

    def _block(
        self,
        sendbuf: BufSpec | InPlace,
        recv_spec: Block | VectorSpec | None,
        may_be_in_place: bool,
    ) -> tuple[int | None, Callable[[], memoryview]]:
        """The length of this rank's block, if all ranks have the same, and what packs it.

        In place it is the block in the receive buffer.
        """
        if self._in_place(sendbuf, may_be_in_place) and recv_spec is not None:
            nbytes = None if isinstance(recv_spec, VectorSpec) else recv_spec.nbytes
            return nbytes, lambda: recv_spec.pack(self._rank)
        spec = block(sendbuf, readonly=True)
        if recv_spec is not None:
            self._check_apart(spec, 0, recv_spec, self._rank)
        return self._common(spec.nbytes), spec.pack

    def _check_apart(
        self,
        send_spec: Block | VectorSpec,
        from_block: int,
        recv_spec: Block | VectorSpec,
        to_block: int,
    ) -> None:
        """Raise ERR_BUFFER if a block is sent from the memory where it is received."""
        if certainly_apart(send_spec, recv_spec) or self._peers is not self._ranks:
            return
        address = send_spec.address(from_block)
        if address is not None and address == recv_spec.address(to_block):
            raise MPIException(
                ERR_BUFFER,
                "the send buffer and the receive buffer are the same memory; pass MPI.IN_PLACE"
                " instead",
            )

    def _alltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> Plan:
        self._live()
        size = len(self._peers)
        recv_spec = block(recvbuf, readonly=False, blocks=size)
        send_spec = None if self._in_place(sendbuf) else block(sendbuf, readonly=True, blocks=size)
        if send_spec is not None:
            self._check_apart(send_spec, 0, recv_spec, 0)
        return Plan(
            "alltoall",
            self._common(recv_spec.nbytes),
            lambda: (_blocks(send_spec, recv_spec, size),),
            _fill_blocks(recv_spec),
        )

    def _alltoallv(self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV) -> Plan:
        return self._alltoall_each(VectorSpec, sendbuf, recvbuf)

    def _alltoallw(self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW) -> Plan:
        return self._alltoall_each(GeneralSpec, sendbuf, recvbuf)

    def _alltoall_each(
        self,
        kind: type[VectorSpec] | type[GeneralSpec],
        sendbuf: BufSpecV | BufSpecW | InPlace,
        recvbuf: BufSpecV | BufSpecW,
    ) -> Plan:
        self._live()
        size = len(self._peers)
        recv_spec = kind(recvbuf, readonly=False, size=size)
        send_spec = None if self._in_place(sendbuf) else kind(sendbuf, readonly=True, size=size)
        return Plan(
            "alltoall", None, lambda: (_blocks(send_spec, recv_spec, size),), _fill_each(recv_spec)
        )

    # --- reducing ------------------------------------------------------------

    def _reduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op, root: int
    ) -> Plan:
        is_root, is_peer = self._role(root)
        root_number = self._number(root)
        recv_spec = block(recvbuf, readonly=False) if is_root else None
        send_spec = self._operand(sendbuf, recv_spec, op) if is_peer else None
        operand = send_spec or recv_spec
        combine = None if operand is None else elementwise(op, operand.datatype)
        nbytes = None if operand is None else self._common(operand.nbytes)
        return Plan(
            "reduce",
            nbytes,
            lambda: (root_number, send_spec.pack() if send_spec else None, combine),
            _fill(recv_spec),
        )

    def _allreduce(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op) -> Plan:
        return self._reduce_to_all("allreduce", sendbuf, recvbuf, op)

    def _scan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op) -> Plan:
        return self._reduce_to_all("scan", sendbuf, recvbuf, op)

    def _exscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op) -> Plan:
        return self._reduce_to_all("exscan", sendbuf, recvbuf, op)

    def _reduce_to_all(
        self, operation: str, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op
    ) -> Plan:
        self._live()
        recv_spec = block(recvbuf, readonly=False)
        send_spec = self._operand(sendbuf, recv_spec, op)
        combine = elementwise(op, send_spec.datatype)
        return Plan(
            operation, send_spec.nbytes, lambda: (send_spec.pack(), combine), _fill(recv_spec)
        )

    def _operand(self, sendbuf: BufSpec | InPlace, recv_spec: Block | None, op: Op) -> Block:
        if self._in_place(sendbuf, recv_spec is not None) and recv_spec is not None:
            return recv_spec
        send_spec = block(sendbuf, readonly=True)
        if recv_spec is not None:
            _check_same(send_spec.datatype, recv_spec.datatype)
            if send_spec.count != recv_spec.count:
                raise ValueError(
                    f"mismatch in send count {send_spec.count} and receive count {recv_spec.count}"
                )
            elementwise(op, send_spec.datatype)
            self._check_apart(send_spec, 0, recv_spec, 0)
        return send_spec

    def _reduce_scatter_block(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op) -> Plan:
        self._live()
        size = self._get_size()
        if self._in_place(sendbuf):
            send_spec = recv_spec = block(recvbuf, readonly=False, blocks=size)
        else:
            recv_spec = block(recvbuf, readonly=False)
            send_spec = block(sendbuf, readonly=True, blocks=size)
            _check_same(send_spec.datatype, recv_spec.datatype)
            if send_spec.count != recv_spec.count:
                raise ValueError(
                    f"mismatch in send count {send_spec.count} and receive count {recv_spec.count}"
                )
            elementwise(op, send_spec.datatype)
            self._check_apart(send_spec, 0, recv_spec, 0)
        combine = elementwise(op, send_spec.datatype)
        return Plan(
            "reduce_scatter",
            None,
            lambda: ([send_spec.pack(rank) for rank in range(size)], combine),
            _fill(recv_spec),
        )

    def _reduce_scatter(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, recvcounts: Sequence[int] | None, op: Op
    ) -> Plan:
        self._live()
        size = self._get_size()
        recv_spec = block(recvbuf, readonly=False)
        send_spec = recv_spec if self._in_place(sendbuf) else block(sendbuf, readonly=True)
        if recvcounts is None:
            if send_spec is recv_spec or self._peers is not self._ranks:
                raise TypeError("recvcounts are needed IN_PLACE and on an intercommunicator")
            recvcounts = self._agree(recv_spec.count)
        counts = [int(count) for count in recvcounts]
        if len(counts) != size:
            raise ValueError(f"expecting {size} receive counts, got {len(counts)}")
        _check_same(send_spec.datatype, recv_spec.datatype)
        if send_spec.count != sum(counts):
            raise ValueError(
                f"mismatch in send count {send_spec.count} and sum(counts) {sum(counts)}"
            )
        if send_spec is not recv_spec and recv_spec.count != counts[self._rank]:
            raise ValueError(
                f"mismatch in receive count {recv_spec.count} and counts[{self._rank}]"
                f" {counts[self._rank]}"
            )
        combine = elementwise(op, send_spec.datatype)
        if send_spec is not recv_spec:
            self._check_apart(send_spec, 0, recv_spec, 0)
        width = send_spec.datatype.size
        ends = list(itertools.accumulate(counts))

        def arguments() -> tuple[Any, ...]:
            data = send_spec.pack()
            return [
                data[(end - count) * width : end * width]
                for count, end in zip(counts, ends, strict=True)
            ], combine

        return Plan(
            "reduce_scatter", None, arguments, lambda result: recv_spec.unpack(whole(result))
        )

    def _get_size(self) -> int:
        return len(self._ranks)

    def _agree(self, value: Any) -> list[Any]:
        """Gather `value` from every rank (of both groups), in the order of `_ranks`."""
        raise NotImplementedError


def _check_same(a: Datatype, b: Datatype) -> None:
    """Raise ValueError unless both datatypes are the same."""
    if a is not b and a != b:
        raise ValueError("mismatch in send and receive MPI datatypes")


def _blocks(send_spec: Any, recv_spec: Any, size: int) -> list[memoryview]:
    """The blob for each rank; in place copies, because the receive buffer is overwritten."""
    if send_spec is None:
        return [memoryview(bytes(recv_spec.pack(rank))) for rank in range(size)]
    return [send_spec.pack(rank) for rank in range(size)]


def _fill_blocks(recv_spec: Block | None) -> Callable[[Any], None]:
    """What unpacks a blob of each rank into equal blocks."""

    def finish(blobs: Any) -> None:
        if recv_spec is not None:
            for rank, blob in enumerate(blobs):
                if blob is not None:  # no neighbour beyond a border
                    if blob.nbytes != recv_spec.nbytes:
                        check_length(blob, recv_spec.nbytes, f"rank {rank}")
                    recv_spec.unpack(blob, rank)

    return finish


def _fill_each(recv_spec: VectorSpec | GeneralSpec | None) -> Callable[[Any], None]:
    """What unpacks a blob of each rank into the rank's block."""

    def finish(blobs: Any) -> None:
        if recv_spec is not None:
            for rank, blob in enumerate(blobs):
                if blob is not None:
                    check_length(blob, recv_spec.nbytes(rank), f"rank {rank}")
                    recv_spec.unpack(blob, rank)

    return finish


def _fill(recv_spec: Block | None) -> Callable[[Any], None]:
    """What unpacks one blob, if there is a receive buffer."""

    def finish(result: Any) -> None:
        if recv_spec is not None and result is not None:
            recv_spec.unpack(whole(result))

    return finish
