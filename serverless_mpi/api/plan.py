"""What each collective call moves: its arguments checked, made into blobs, and what is done with the blobs that come.

A `Plan` can be started any number of times: once by a blocking or nonblocking
call, at each Start by a persistent one.  Here is also the difference between
a communicator of one group and one of two: whom a root hears (`_peers`), and
who a root is (`_role`).
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
    check_length,
)
from serverless_mpi.api.datatype import Datatype
from serverless_mpi.api.op import Op, combiners_of
from serverless_mpi.api.pickling import decode, encode
from serverless_mpi.collectives.steps import Combine, Elementwise, whole
from serverless_mpi.errors import ERR_BUFFER, ERR_ROOT, MPIException
from serverless_mpi.runtime import Runtime

Block = BlockSpec | ContiguousSpec


class Plan(NamedTuple):
    """A collective call that can be started.

    operation: its row in `collectives.choose`; nbytes: length of a blob where all
    ranks know it, else None; arguments: makes the algorithm's arguments after
    (rank, size), from the buffers as they are then; finish: takes its result.
    """

    operation: str
    nbytes: int | None
    arguments: Callable[[], tuple[Any, ...]]
    finish: Callable[[Any], Any]


def of_objects(op: Callable[[Any, Any], Any]) -> Combine:
    """How pickled operands are combined."""

    def combine(a: memoryview, b: memoryview) -> memoryview:
        return whole(encode(op(decode(a), decode(b))))

    return combine


def _of_elements(op: Op, datatype: Datatype) -> Combine:
    """Return how packed elements of a datatype are combined; kept with the operation, if both are predefined."""
    kept: dict[Any, Combine] = combiners_of(op)
    combine = kept.get(datatype._ob)
    if combine is None:
        op.check(datatype)
        # a function of the user may take the whole buffer for one thing, as a matrix
        grain = max(1, datatype.size) if op.is_predefined else 0
        combine = Elementwise(lambda a, b: op.combine(a, b, datatype), grain)
        if op.is_predefined and datatype.is_predefined:
            kept[datatype._ob] = combine
    return combine


def nothing(_: Any) -> None:
    """The finish of a call without result."""


class Plans:
    """The plans of a communicator's collective buffer calls."""

    _runtime: Runtime
    _context: int
    _rank: int
    _ranks: tuple[int, ...]  # world ranks that the algorithms number: mine, or both groups
    _peers: tuple[
        int, ...
    ]  # world ranks of the group that this rank hears: mine, or the remote one

    def _live(self) -> None: ...

    # --- one group; api/intercomm.py says it for two -------------------------

    def _role(self, root: int) -> tuple[bool, bool]:
        """(whether this rank is the root, whether it is one of those the root hears or speaks to)."""
        self._live()
        if not 0 <= root < len(self._ranks):
            raise MPIException(ERR_ROOT, f"root {root} is outside 0..{len(self._ranks) - 1}")
        return root == self._rank, True

    def _number(self, root: int) -> int | None:
        """The root as the algorithms number it."""
        return root

    def _in_place(self, spec: Any, allowed: bool = True) -> bool:
        """Whether `spec` is IN_PLACE, which None says too where it is allowed."""
        if isinstance(spec, InPlaceType) and not allowed:
            raise MPIException(ERR_BUFFER, "only the root of a collective may give IN_PLACE")
        return allowed and (spec is None or isinstance(spec, InPlaceType))

    # --- moving --------------------------------------------------------------

    def _barrier(self) -> Plan:
        self._live()
        return Plan("barrier", 0, tuple, nothing)

    def _bcast(self, buf: BufSpec, root: int) -> Plan:
        mine, peer = self._role(root)
        place = self._number(root)
        if not (mine or peer):
            return Plan("bcast", None, lambda: (place, None), nothing)
        spec = block(buf, readonly=mine)

        def finish(got: Any) -> None:
            if not mine:
                check_length(got, spec.nbytes, f"root {root}")
                spec.unpack(got)

        return Plan("bcast", spec.nbytes, lambda: (place, spec.pack() if mine else None), finish)

    def _gather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int) -> Plan:
        mine, peer = self._role(root)
        place = self._number(root)
        room = block(recvbuf, readonly=False, blocks=len(self._peers)) if mine else None
        nbytes, give = self._block(sendbuf, room, mine) if peer else (None, None)
        return Plan("gather", nbytes, lambda: (place, give() if give else None), _fill_blocks(room))

    def _gatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int) -> Plan:
        mine, peer = self._role(root)
        place = self._number(root)
        room = VectorSpec(recvbuf, readonly=False, size=len(self._peers)) if mine else None
        _, give = self._block(sendbuf, room, mine) if peer else (None, None)
        return Plan("gather", None, lambda: (place, give() if give else None), _fill_each(room))

    def _scatter(self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int) -> Plan:
        mine, peer = self._role(root)
        return self._scatter_blocks(
            block(sendbuf, readonly=True, blocks=len(self._peers)) if mine else None,
            recvbuf,
            root,
            peer,
        )

    def _scatterv(self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int) -> Plan:
        mine, peer = self._role(root)
        return self._scatter_blocks(
            VectorSpec(sendbuf, readonly=True, size=len(self._peers)) if mine else None,
            recvbuf,
            root,
            peer,
        )

    def _scatter_blocks(
        self, blocks: Block | VectorSpec | None, recvbuf: BufSpec | InPlace, root: int, peer: bool
    ) -> Plan:
        place, size = self._number(root), len(self._peers)
        keep = not peer or self._in_place(recvbuf, blocks is not None)
        room = None if keep else block(recvbuf, readonly=False)
        if room is not None and blocks is not None:
            self._check_apart(blocks, self._rank, room, 0)

        def finish(got: Any) -> None:
            if room is not None:
                blob = whole(got)
                check_length(blob, room.nbytes, f"root {root}")
                room.unpack(blob)

        # the root alone knows the blocks' lengths where they differ, so the choice does not look at them
        def arguments() -> tuple[Any, ...]:
            return place, None if blocks is None else [blocks.pack(rank) for rank in range(size)]

        return Plan("scatter", None, arguments, finish)

    def _allgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> Plan:
        self._live()
        room = block(recvbuf, readonly=False, blocks=len(self._peers))
        nbytes, give = self._block(sendbuf, room, True)
        return Plan("allgather", nbytes, lambda: (give(),), _fill_blocks(room))

    def _allgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> Plan:
        self._live()
        room = VectorSpec(recvbuf, readonly=False, size=len(self._peers))
        _, give = self._block(sendbuf, room, True)
        return Plan("allgather", None, lambda: (give(),), _fill_each(room))

    def _common(self, nbytes: int) -> int | None:
        """`nbytes` if all ranks of the call know it: the two groups of an intercommunicator may give different lengths."""
        return nbytes

    def _block(
        self, sendbuf: BufSpec | InPlace, room: Block | VectorSpec | None, may_be_in_place: bool
    ) -> tuple[int | None, Callable[[], memoryview]]:
        """What this rank gives (its length, if all ranks give as much): its send buffer, or in place its own block."""
        if self._in_place(sendbuf, may_be_in_place) and room is not None:
            return room.nbytes if not isinstance(room, VectorSpec) else None, lambda: room.pack(
                self._rank
            )
        spec = block(sendbuf, readonly=True)
        if room is not None:
            self._check_apart(spec, 0, room, self._rank)
        return self._common(spec.nbytes), spec.pack

    def _check_apart(
        self, give: Block | VectorSpec, from_block: int, room: Block | VectorSpec, to_block: int
    ) -> None:
        """What is sent must not lie where the same is received; between two groups nobody sends to himself."""
        if self._peers is not self._ranks:
            return
        place = give.address(from_block)
        if place is not None and place == room.address(to_block):
            raise MPIException(
                ERR_BUFFER,
                "what is sent and what is received are the same memory; MPI.IN_PLACE is the way to say so",
            )

    def _alltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> Plan:
        self._live()
        size = len(self._peers)
        room = block(recvbuf, readonly=False, blocks=size)
        give = None if self._in_place(sendbuf) else block(sendbuf, readonly=True, blocks=size)
        if give is not None:
            self._check_apart(give, 0, room, 0)
        return Plan(
            "alltoall",
            self._common(room.nbytes),
            lambda: (_blocks(give, room, size),),
            _fill_blocks(room),
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
        room = kind(recvbuf, readonly=False, size=size)
        give = None if self._in_place(sendbuf) else kind(sendbuf, readonly=True, size=size)
        return Plan("alltoall", None, lambda: (_blocks(give, room, size),), _fill_each(room))

    # --- reducing ------------------------------------------------------------

    def _reduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op, root: int
    ) -> Plan:
        mine, peer = self._role(root)
        place = self._number(root)
        room = block(recvbuf, readonly=False) if mine else None
        give = self._operand(sendbuf, room, op) if peer else None
        known = give or room
        combine = None if known is None else _of_elements(op, known.datatype)
        nbytes = None if known is None else self._common(known.nbytes)
        return Plan(
            "reduce", nbytes, lambda: (place, give.pack() if give else None, combine), _fill(room)
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
        room = block(recvbuf, readonly=False)
        give = self._operand(sendbuf, room, op)
        combine = _of_elements(op, give.datatype)
        return Plan(operation, give.nbytes, lambda: (give.pack(), combine), _fill(room))

    def _operand(self, sendbuf: BufSpec | InPlace, room: Block | None, op: Op) -> Block:
        if self._in_place(sendbuf, room is not None) and room is not None:
            return room
        give = block(sendbuf, readonly=True)
        if room is not None:
            _check_same(give.datatype, room.datatype)
            if give.count != room.count:
                raise ValueError(
                    f"mismatch in send count {give.count} and receive count {room.count}"
                )
            _of_elements(op, give.datatype)
            self._check_apart(give, 0, room, 0)
        return give

    def _reduce_scatter_block(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op) -> Plan:
        self._live()
        size = self._get_size()
        if self._in_place(sendbuf):
            give = room = block(recvbuf, readonly=False, blocks=size)
        else:
            room = block(recvbuf, readonly=False)
            give = block(sendbuf, readonly=True, blocks=size)
            _check_same(give.datatype, room.datatype)
            if give.count != room.count:
                raise ValueError(
                    f"mismatch in send count {give.count} and receive count {room.count}"
                )
            _of_elements(op, give.datatype)
            self._check_apart(give, 0, room, 0)
        combine = _of_elements(op, give.datatype)
        return Plan(
            "reduce_scatter",
            None,
            lambda: ([give.pack(rank) for rank in range(size)], combine),
            _fill(room),
        )

    def _reduce_scatter(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, recvcounts: Sequence[int] | None, op: Op
    ) -> Plan:
        self._live()
        size = self._get_size()
        room = block(recvbuf, readonly=False)
        give = room if self._in_place(sendbuf) else block(sendbuf, readonly=True)
        if recvcounts is None:
            if give is room or self._peers is not self._ranks:
                raise TypeError("recvcounts are needed IN_PLACE and on an intercommunicator")
            recvcounts = self._agree(room.count)
        counts = [int(count) for count in recvcounts]
        if len(counts) != size:
            raise ValueError(f"expecting {size} receive counts, got {len(counts)}")
        _check_same(give.datatype, room.datatype)
        if give.count != sum(counts):
            raise ValueError(f"mismatch in send count {give.count} and sum(counts) {sum(counts)}")
        if give is not room and room.count != counts[self._rank]:
            raise ValueError(
                f"mismatch in receive count {room.count} and counts[{self._rank}] {counts[self._rank]}"
            )
        combine = _of_elements(op, give.datatype)
        if give is not room:
            self._check_apart(give, 0, room, 0)
        width = give.datatype.size
        ends = list(itertools.accumulate(counts))

        def arguments() -> tuple[Any, ...]:
            data = give.pack()
            return [
                data[(end - count) * width : end * width]
                for count, end in zip(counts, ends, strict=True)
            ], combine

        return Plan("reduce_scatter", None, arguments, lambda got: room.unpack(whole(got)))

    def _get_size(self) -> int:
        return len(self._ranks)

    def _agree(self, value: Any) -> list[Any]:
        """Every rank's `value`, those of both groups of an intercommunicator, in the order of `_ranks`."""
        raise NotImplementedError


def _check_same(a: Datatype, b: Datatype) -> None:
    if a is not b and a != b:
        raise ValueError("mismatch in send and receive MPI datatypes")


def _blocks(give: Any, room: Any, size: int) -> list[memoryview]:
    """What goes to each rank; in place a copy, because the receive buffer is filled piece by piece."""
    if give is None:
        return [memoryview(bytes(room.pack(rank))) for rank in range(size)]
    return [give.pack(rank) for rank in range(size)]


def _fill_blocks(room: Block | None) -> Callable[[Any], None]:
    def finish(blobs: Any) -> None:
        if room is not None:
            for rank, blob in enumerate(blobs):
                if blob is not None:  # a neighbour that is not there
                    check_length(blob, room.nbytes, f"rank {rank}")
                    room.unpack(blob, rank)

    return finish


def _fill_each(room: VectorSpec | GeneralSpec | None) -> Callable[[Any], None]:
    def finish(blobs: Any) -> None:
        if room is not None:
            for rank, blob in enumerate(blobs):
                if blob is not None:
                    check_length(blob, room.nbytes(rank), f"rank {rank}")
                    room.unpack(blob, rank)

    return finish


def _fill(room: Block | None) -> Callable[[Any], None]:
    def finish(got: Any) -> None:
        if room is not None and got is not None:
            room.unpack(whole(got))

    return finish
