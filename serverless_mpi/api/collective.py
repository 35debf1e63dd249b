"""Collective calls of a communicator, blocking and nonblocking (MPI 4.1, chapter 6).

Each call is a plan (plan.py), which is started once. A blocking call waits for the operation itself
and makes no request. `collectives.choose` picks the algorithm, whose generator the runtime drives.

Object calls (lower case) pickle; no rank knows the lengths of the others' blobs, so the choice
assumes one. Buffer calls (upper case) take buffer specifications (buffers.py). Send buffers are
borrowed until the call has returned, or its request has completed; receive buffers must not be
accessed before. `root` and all counts must be equal on all ranks where MPI demands it: they are not
compared. A block whose length differs from what this rank's arguments give raises ERR_TRUNCATE.

The nonblocking call `Ix` and the persistent call `X_init` (persistent.py) make the same plan as `X`
and take the same arguments: change the three together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
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
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.signals import shield, uninterrupted

MOST_CHOICES = 1024  # kept per communicator: one per operation and length of a blob


class Collective(Plans):
    """The collective calls of a communicator; `Comm` provides context, ranks and runtime."""

    _calls: itertools.count[int]
    _state: Any

    _kind = ""  # prefix of the names of operations: "inter_" between two groups

    def _steps(self, plan: Plan) -> Steps:
        """Make the generator of this rank's part of a call."""
        operation, state = self._kind + plan.operation, self._state
        size = len(state.everyone)
        algorithm: Algorithm = state.choices.get((operation, plan.nbytes)) or self._choose(
            operation, size, plan.nbytes
        )
        arguments = plan.arguments()
        chosen = state.runtime.chosen
        if chosen is not None:
            # for --explain: facts of the call, and the lengths of this rank's blobs. Between two
            # groups a rank that takes no part does not know the length.
            known = None if self._kind else plan.nbytes
            layout = state.nodes if algorithm.placed else self._layout(plan.operation, arguments)
            call = (operation, size, known, algorithm.name, layout)
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
            facts = Facts(size, nbytes, self._runtime.figures, self._state.nodes)
            algorithm = self._runtime.algorithms.get(operation)
            if algorithm is None or not algorithm.condition(facts):
                algorithm = select(operation, facts)
            algorithm = algorithm.on(facts)
            if len(choices) == MOST_CHOICES:
                choices.clear()
            choices[operation, nbytes] = algorithm
        return algorithm

    def _place(self) -> tuple[Any, ...]:
        """The first arguments of an algorithm: this rank, and the ranks of the call."""
        state = self._state
        return state.rank, len(state.everyone)

    def _layout(self, operation: str, arguments: tuple[Any, ...]) -> Layout | None:
        """The layout of a call as this rank knows it; None if any two ranks may communicate."""
        return None

    def _run(self, plan: Plan, context: int, number: int) -> Operation:
        """Start a call under `number`, which is the same on all ranks."""
        return self._runtime.icollective(context, number, self._steps(plan), self._ranks)

    @uninterrupted
    def _start(self, plan: Plan) -> Request:
        """Start a call; the request finishes the plan."""
        running = self._run(plan, self._context, next(self._calls))
        return request_of(self._runtime, running, finishing(plan))

    def _call(self, plan: Plan) -> Any:
        """Start a call and wait for it: a blocking call needs no request."""
        state = self._state
        # shield.enter and leave, written out as in p2p.py
        in_main = get_ident() == shield.main
        if in_main:
            if shield.depth or (shield.installed and not shield.deferred):
                shield.depth += 1
            else:
                shield.enter()
        try:
            running = state.runtime.collective(
                state.context, next(state.calls), self._steps(plan), state.everyone
            )
            if running.error is not None:
                raise running.error
            return plan.finish(running.result)
        finally:
            if in_main:
                shield.depth -= 1

    # --- objects -------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until every rank has called `barrier`.

        References
        ----------
        MPI 4.1, section 6.3.
        """
        self._call(self._barrier())

    Barrier = barrier

    def Ibarrier(self) -> Request:
        """Start `Barrier`; the request completes when every rank has started it."""
        return self._start(self._barrier())

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Broadcast a Python object.

        Parameters
        ----------
        obj
            The object on the root; ignored on other ranks.
        root
            Rank whose object is sent; on an intercommunicator MPI.ROOT, MPI.PROC_NULL or a remote
            rank.

        Returns
        -------
        object
            The root's object: itself on the root, a copy on other ranks.
        """
        mine, peer = self._role(root)
        blob = encode(obj) if mine else None
        place = self._number(root)

        def finish(got: Any) -> Any:
            return decode(got) if peer and not mine else obj if peer else None

        return self._call(Plan("bcast", None, lambda: (place, blob), finish))

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Gather one object from each rank at the root.

        Parameters
        ----------
        sendobj
            This rank's object, which must be picklable.
        root
            Rank that receives; on an intercommunicator MPI.ROOT, MPI.PROC_NULL or a remote rank.

        Returns
        -------
        list or None
            The objects in rank order on the root; None on other ranks.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank.

        References
        ----------
        MPI 4.1, section 6.5.
        """
        _, peer = self._role(root)
        arguments = (self._number(root), encode(sendobj) if peer else None)
        objects: list[Any] | None = self._call(Plan("gather", None, lambda: arguments, decode_list))
        return objects

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """Scatter a sequence of objects from the root.

        Parameters
        ----------
        sendobj
            On the root one object for each rank; None is as many Nones. Ignored on other ranks.
        root
            Rank whose objects are sent.

        Returns
        -------
        object
            The object at this rank's index.

        Raises
        ------
        ValueError
            The sequence does not have one item per rank.
        """
        mine, peer = self._role(root)
        arguments = (self._number(root), encode_each(sendobj, len(self._peers)) if mine else None)
        return self._call(
            Plan("scatter", None, lambda: arguments, _decode_some if peer else nothing)
        )

    def allgather(self, sendobj: Any) -> list[Any]:
        """Gather one object from each rank on all ranks.

        Parameters
        ----------
        sendobj
            This rank's object, which must be picklable.

        Returns
        -------
        list
            The objects in rank order; a copy of this rank's own one too.

        References
        ----------
        MPI 4.1, section 6.7.
        """
        self._live()
        arguments = (encode(sendobj),)
        objects: list[Any] = self._call(Plan("allgather", None, lambda: arguments, decode_list))
        return objects

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Send one object to each rank and receive one from each.

        Parameters
        ----------
        sendobj
            One object for each rank: sendobj[r] goes to rank r.

        Returns
        -------
        list
            The object from each rank, in rank order.
        """
        self._live()
        arguments = (encode_each(sendobj, len(self._peers)),)
        objects: list[Any] = self._call(Plan("alltoall", None, lambda: arguments, decode_list))
        return objects

    def reduce(
        self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM, root: int = 0
    ) -> Any | None:
        """Combine one object from each rank at the root.

        Parameters
        ----------
        sendobj
            This rank's operand.
        op
            A predefined operation, or an associative function of two objects. Operands are combined
            in rank order.
        root
            Rank that receives the result.

        Returns
        -------
        object or None
            The result on the root; None on other ranks.
        """
        _, peer = self._role(root)
        arguments = (self._number(root), encode(sendobj) if peer else None, of_objects(op))
        return self._call(Plan("reduce", None, lambda: arguments, _decode_some))

    def allreduce(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine one object from each rank, with the result on all ranks.

        Parameters
        ----------
        sendobj
            This rank's operand, which must be picklable.
        op
            A predefined operation, or an associative function of two objects. Operands are combined
            in rank order.

        Returns
        -------
        object
            The result, equal on all ranks.

        References
        ----------
        MPI 4.1, section 6.9.6.
        """
        return self._combine("allreduce", sendobj, op)

    def scan(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine the objects of ranks 0 to this one.

        Parameters
        ----------
        sendobj
            This rank's operand, which must be picklable.
        op
            A predefined operation, or an associative function of two objects. Operands are combined
            in rank order.

        Returns
        -------
        object
            The result.

        References
        ----------
        MPI 4.1, section 6.11.1.
        """
        return self._combine("scan", sendobj, op)

    def exscan(self, sendobj: Any, op: Op | Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine the objects of the ranks below this one.

        Parameters
        ----------
        sendobj
            This rank's operand, which must be picklable.
        op
            A predefined operation, or an associative function of two objects. Operands are combined
            in rank order.

        Returns
        -------
        object or None
            The result; None on rank 0.

        References
        ----------
        MPI 4.1, section 6.11.2.
        """
        return self._combine("exscan", sendobj, op)

    def _combine(self, operation: str, sendobj: Any, op: Callable[[Any, Any], Any]) -> Any:
        """A reduction of objects whose result every rank has."""
        self._live()
        arguments = (encode(sendobj), of_objects(op))
        return self._call(Plan(operation, None, lambda: arguments, _decode_some))

    # --- buffers -------------------------------------------------------------

    def Bcast(self, buf: BufSpec, root: int = 0) -> None:
        """Broadcast a buffer.

        Parameters
        ----------
        buf
            Specification of the buffer: read on the root, written on other ranks.
        root
            Rank whose buffer is sent.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the root's data are not as long as this rank's buffer. ERR_ROOT: no such
            rank.

        Notes
        -----
        Between 1 and ceil(log2 P) rounds; `smpirun --explain` prints the algorithm that was chosen.

        References
        ----------
        MPI 4.1, section 6.4.
        """
        self._call(self._bcast(buf, root))

    def Gather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int = 0) -> None:
        """Gather equal blocks at the root.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block; MPI.IN_PLACE on the root if it is in `recvbuf`
            already.
        recvbuf
            On the root a specification of one block for each rank, which are written in rank order;
            None on other ranks.
        root
            Rank that receives.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: a rank's data are not as long as a block. ERR_BUFFER: both buffers are the
            same memory.

        References
        ----------
        MPI 4.1, section 6.5.
        """
        self._call(self._gather(sendbuf, recvbuf, root))

    def Gatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int = 0) -> None:
        """Gather blocks of different lengths at the root.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block; MPI.IN_PLACE on the root if it is in `recvbuf`
            already.
        recvbuf
            On the root a specification with the count and the displacement of each rank's block;
            None on other ranks.
        root
            Rank that receives.

        References
        ----------
        MPI 4.1, section 6.5.
        """
        self._call(self._gatherv(sendbuf, recvbuf, root))

    def Scatter(self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int = 0) -> None:
        """Scatter equal blocks from the root.

        Parameters
        ----------
        sendbuf
            On the root a specification of one block for each rank; None on other ranks.
        recvbuf
            Specification of this rank's block; MPI.IN_PLACE on the root leaves it in `sendbuf`.
        root
            Rank that sends.

        References
        ----------
        MPI 4.1, section 6.6.
        """
        self._call(self._scatter(sendbuf, recvbuf, root))

    def Scatterv(self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int = 0) -> None:
        """Scatter blocks of different lengths from the root.

        Parameters
        ----------
        sendbuf
            On the root a specification with the count and the displacement of each rank's block;
            None on other ranks.
        recvbuf
            Specification of this rank's block; MPI.IN_PLACE on the root leaves it in `sendbuf`.
        root
            Rank that sends.

        References
        ----------
        MPI 4.1, section 6.6.
        """
        self._call(self._scatterv(sendbuf, recvbuf, root))

    def Allgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> None:
        """Gather equal blocks on all ranks.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, or MPI.IN_PLACE if it is in `recvbuf` already.
        recvbuf
            Specification of one block for each rank, which are written in rank order.

        References
        ----------
        MPI 4.1, section 6.7.
        """
        self._call(self._allgather(sendbuf, recvbuf))

    def Allgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> None:
        """Gather blocks of different lengths on all ranks.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, or MPI.IN_PLACE if it is in `recvbuf` already.
        recvbuf
            Specification with the count and the displacement of each rank's block.

        References
        ----------
        MPI 4.1, section 6.7.
        """
        self._call(self._allgatherv(sendbuf, recvbuf))

    def Alltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> None:
        """Send an equal block to each rank and receive one from each.

        Parameters
        ----------
        sendbuf
            Specification of one block for each rank, or MPI.IN_PLACE if the blocks are in
            `recvbuf`, where they are replaced.
        recvbuf
            Specification of one block for each rank, which are written in rank order.

        References
        ----------
        MPI 4.1, section 6.8.
        """
        self._call(self._alltoall(sendbuf, recvbuf))

    def Alltoallv(self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV) -> None:
        """Send a block of its own length to each rank and receive one from each.

        Parameters
        ----------
        sendbuf, recvbuf
            Specifications with the count and the displacement (in elements) of each rank's block;
            `sendbuf` may be MPI.IN_PLACE.

        References
        ----------
        MPI 4.1, section 6.8.
        """
        self._call(self._alltoallv(sendbuf, recvbuf))

    def Alltoallw(self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW) -> None:
        """Send a block of its own length and datatype to each rank and receive one from each.

        Parameters
        ----------
        sendbuf, recvbuf
            Specifications with the count, the displacement (in bytes) and the datatype of each
            rank's block; `sendbuf` may be MPI.IN_PLACE.

        References
        ----------
        MPI 4.1, section 6.8.
        """
        self._call(self._alltoallw(sendbuf, recvbuf))

    def Reduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op = SUM, root: int = 0
    ) -> None:
        """Combine buffers element by element at the root.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand; MPI.IN_PLACE on the root if it is in `recvbuf`.
        recvbuf
            On the root a specification of as many elements of the same datatype; None on other
            ranks.
        op
            Operation; operands are combined in rank order.
        root
            Rank that receives the result.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.

        References
        ----------
        MPI 4.1, section 6.9.
        """
        self._call(self._reduce(sendbuf, recvbuf, op, root))

    def Allreduce(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine buffers element by element, with the result on all ranks.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, or MPI.IN_PLACE if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype.
        op
            Operation; operands are combined in rank order, so the result has the same bits on all
            ranks.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.

        References
        ----------
        MPI 4.1, section 6.9.6.
        """
        self._call(self._allreduce(sendbuf, recvbuf, op))

    def Reduce_scatter_block(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM
    ) -> None:
        """Combine buffers element by element; rank r receives the r-th of equal blocks.

        Parameters
        ----------
        sendbuf
            Specification of one block for each rank, or MPI.IN_PLACE if they are in `recvbuf`.
        recvbuf
            Specification of one block.
        op
            Operation; operands are combined in rank order.

        References
        ----------
        MPI 4.1, section 6.10.1.
        """
        self._call(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Reduce_scatter(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
    ) -> None:
        """Combine buffers element by element; rank r receives recvcounts[r] elements.

        Parameters
        ----------
        sendbuf
            Specification of sum(recvcounts) elements, or MPI.IN_PLACE if they are in `recvbuf`.
        recvbuf
            Specification of this rank's elements.
        recvcounts
            Elements for each rank. By default each rank receives as many as its `recvbuf` holds,
            which costs an allgather.
        op
            Operation; operands are combined in rank order.

        References
        ----------
        MPI 4.1, section 6.10.2.
        """
        self._call(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Scan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine the buffers of ranks 0 to this one, element by element.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, or MPI.IN_PLACE if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype.
        op
            Operation; operands are combined in rank order.

        References
        ----------
        MPI 4.1, section 6.11.1.
        """
        self._call(self._scan(sendbuf, recvbuf, op))

    def Exscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> None:
        """Combine the buffers of the ranks below this one, element by element.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, or MPI.IN_PLACE if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype; that of rank 0 does not change.
        op
            Operation; operands are combined in rank order.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.11.2.
        """
        self._call(self._exscan(sendbuf, recvbuf, op))

    def Ibcast(self, buf: BufSpec, root: int = 0) -> Request:
        """Start `Bcast`.

        Parameters
        ----------
        buf
            Specification of the buffer, borrowed until the request completes: read on the root,
            written on other ranks.
        root
            Rank whose buffer is sent.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_TRUNCATE, from the request: the root's data are not as long
            as this rank's buffer.

        References
        ----------
        MPI 4.1, section 6.12.2.
        """
        return self._start(self._bcast(buf, root))

    def Igather(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB | None, root: int = 0
    ) -> Request:
        """Start `Gather`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            on the root if it is in `recvbuf` already.
        recvbuf
            On the root a specification of one block for each rank, borrowed until the request
            completes; None on other ranks.
        root
            Rank that receives.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from
            the request: a rank's data are not as long as a block.

        References
        ----------
        MPI 4.1, section 6.12.3.
        """
        return self._start(self._gather(sendbuf, recvbuf, root))

    def Igatherv(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV | None, root: int = 0
    ) -> Request:
        """Start `Gatherv`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            on the root if it is in `recvbuf` already.
        recvbuf
            On the root a specification with the count and the displacement (in elements) of each
            rank's block, borrowed until the request completes; None on other ranks.
        root
            Rank that receives.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from
            the request: a rank's data are not as long as its block.

        References
        ----------
        MPI 4.1, section 6.12.3.
        """
        return self._start(self._gatherv(sendbuf, recvbuf, root))

    def Iscatter(
        self, sendbuf: BufSpecB | None, recvbuf: BufSpec | InPlace, root: int = 0
    ) -> Request:
        """Start `Scatter`.

        Parameters
        ----------
        sendbuf
            On the root a specification of one block for each rank, borrowed until the request
            completes; None on other ranks.
        recvbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            on the root leaves it in `sendbuf`.
        root
            Rank that sends.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from
            the request: the root's block is not as long as this rank's.

        References
        ----------
        MPI 4.1, section 6.12.4.
        """
        return self._start(self._scatter(sendbuf, recvbuf, root))

    def Iscatterv(
        self, sendbuf: BufSpecV | None, recvbuf: BufSpec | InPlace, root: int = 0
    ) -> Request:
        """Start `Scatterv`.

        Parameters
        ----------
        sendbuf
            On the root a specification with the count and the displacement (in elements) of each
            rank's block, borrowed until the request completes; None on other ranks.
        recvbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            on the root leaves it in `sendbuf`.
        root
            Rank that sends.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from
            the request: the root's block is not as long as this rank's.

        References
        ----------
        MPI 4.1, section 6.12.4.
        """
        return self._start(self._scatterv(sendbuf, recvbuf, root))

    def Iallgather(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecB) -> Request:
        """Start `Allgather`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            if it is in `recvbuf` already.
        recvbuf
            Specification of one block for each rank, in rank order, borrowed until the request
            completes.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from the request: a rank's
            data are not as long as a block.

        References
        ----------
        MPI 4.1, section 6.12.5.
        """
        return self._start(self._allgather(sendbuf, recvbuf))

    def Iallgatherv(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpecV) -> Request:
        """Start `Allgatherv`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's block, borrowed until the request completes; MPI.IN_PLACE
            if it is in `recvbuf` already.
        recvbuf
            Specification with the count and the displacement (in elements) of each rank's block,
            borrowed until the request completes.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from the request: a rank's
            data are not as long as its block.

        References
        ----------
        MPI 4.1, section 6.12.5.
        """
        return self._start(self._allgatherv(sendbuf, recvbuf))

    def Ialltoall(self, sendbuf: BufSpecB | InPlace, recvbuf: BufSpecB) -> Request:
        """Start `Alltoall`.

        Parameters
        ----------
        sendbuf
            Specification of one block for each rank, borrowed until the request completes;
            MPI.IN_PLACE if the blocks are in `recvbuf`, where they are replaced.
        recvbuf
            Specification of one block for each rank, in rank order, borrowed until the request
            completes.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_BUFFER: both buffers are the same memory. ERR_TRUNCATE, from the request: a rank's
            data are not as long as a block.

        References
        ----------
        MPI 4.1, section 6.12.6.
        """
        return self._start(self._alltoall(sendbuf, recvbuf))

    def Ialltoallv(self, sendbuf: BufSpecV | InPlace, recvbuf: BufSpecV) -> Request:
        """Start `Alltoallv`.

        Parameters
        ----------
        sendbuf, recvbuf
            Specifications with the count and the displacement (in elements) of each rank's block,
            borrowed until the request completes; `sendbuf` may be MPI.IN_PLACE.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_TRUNCATE, from the request: a rank's data are not as long as its block.

        References
        ----------
        MPI 4.1, section 6.12.6.
        """
        return self._start(self._alltoallv(sendbuf, recvbuf))

    def Ialltoallw(self, sendbuf: BufSpecW | InPlace, recvbuf: BufSpecW) -> Request:
        """Start `Alltoallw`.

        Parameters
        ----------
        sendbuf, recvbuf
            Specifications with the count, the displacement (in bytes) and the datatype of each
            rank's block, borrowed until the request completes; `sendbuf` may be MPI.IN_PLACE.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_TRUNCATE, from the request: a rank's data are not as long as its block.

        References
        ----------
        MPI 4.1, section 6.12.6.
        """
        return self._start(self._alltoallw(sendbuf, recvbuf))

    def Ireduce(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec | None, op: Op = SUM, root: int = 0
    ) -> Request:
        """Start `Reduce`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, borrowed until the request completes; MPI.IN_PLACE
            on the root if it is in `recvbuf`.
        recvbuf
            On the root a specification of as many elements of the same datatype, borrowed until the
            request completes; None on other ranks.
        op
            Operation; operands are combined in rank order.
        root
            Rank that receives the result.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_ROOT: no such rank. ERR_OP: the operation does not take the datatype. ERR_BUFFER:
            both buffers are the same memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.12.7.
        """
        return self._start(self._reduce(sendbuf, recvbuf, op, root))

    def Iallreduce(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Allreduce`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, borrowed until the request completes; MPI.IN_PLACE
            if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype, borrowed until the request
            completes.
        op
            Operation; operands are combined in rank order, so the result has the same bits on all
            ranks.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.12.8.
        """
        return self._start(self._allreduce(sendbuf, recvbuf, op))

    def Ireduce_scatter_block(
        self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM
    ) -> Request:
        """Start `Reduce_scatter_block`.

        Parameters
        ----------
        sendbuf
            Specification of one block for each rank, borrowed until the request completes;
            MPI.IN_PLACE if they are in `recvbuf`.
        recvbuf
            Specification of one block, borrowed until the request completes; with MPI.IN_PLACE, of
            one for each rank.
        op
            Operation; operands are combined in rank order.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.12.9.
        """
        return self._start(self._reduce_scatter_block(sendbuf, recvbuf, op))

    def Ireduce_scatter(
        self,
        sendbuf: BufSpec | InPlace,
        recvbuf: BufSpec,
        recvcounts: Sequence[int] | None = None,
        op: Op = SUM,
    ) -> Request:
        """Start `Reduce_scatter`.

        Parameters
        ----------
        sendbuf
            Specification of sum(recvcounts) elements, borrowed until the request completes;
            MPI.IN_PLACE if they are in `recvbuf`.
        recvbuf
            Specification of this rank's elements, borrowed until the request completes.
        recvcounts
            Elements for each rank. By default each rank receives as many as its `recvbuf` holds,
            which costs an allgather that this call waits for.
        op
            Operation; operands are combined in rank order.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match, or `recvcounts` does not have
            one item per rank.
        TypeError
            `recvcounts` is None with MPI.IN_PLACE or on an intercommunicator.

        References
        ----------
        MPI 4.1, section 6.12.10.
        """
        return self._start(self._reduce_scatter(sendbuf, recvbuf, recvcounts, op))

    def Iscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Scan`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, borrowed until the request completes; MPI.IN_PLACE
            if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype, borrowed until the request
            completes.
        op
            Operation; operands are combined in rank order.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.12.11.
        """
        return self._start(self._scan(sendbuf, recvbuf, op))

    def Iexscan(self, sendbuf: BufSpec | InPlace, recvbuf: BufSpec, op: Op = SUM) -> Request:
        """Start `Exscan`.

        Parameters
        ----------
        sendbuf
            Specification of this rank's operand, borrowed until the request completes; MPI.IN_PLACE
            if it is in `recvbuf`.
        recvbuf
            Specification of as many elements of the same datatype, borrowed until the request
            completes; that of rank 0 does not change.
        op
            Operation; operands are combined in rank order.

        Returns
        -------
        Request
            Completes when this rank's part of the call is done.

        Raises
        ------
        MPIException
            ERR_OP: the operation does not take the datatype. ERR_BUFFER: both buffers are the same
            memory.
        ValueError
            The counts or the datatypes of the buffers do not match.

        References
        ----------
        MPI 4.1, section 6.12.12.
        """
        return self._start(self._exscan(sendbuf, recvbuf, op))


def finishing(plan: Plan) -> Callable[[Operation, Status], Any]:
    """Make what a request does when its plan is done: fill the status and take the result.

    Parameters
    ----------
    plan
        The plan that the request has started.

    Returns
    -------
    callable
        A function of the operation and the status to fill, which returns the value of the call. It
        raises what `plan.finish` raises.
    """

    def complete(done: Operation, status: Status) -> Any:
        fill_empty_status(status)
        return plan.finish(done.result)

    return complete


def encode_each(objects: Iterable[Any] | None, count: int) -> list[list[memoryview]]:
    """Pickle `count` objects.

    Parameters
    ----------
    objects
        The objects; large buffers in them are borrowed. None stands for as many Nones.
    count
        Number of objects that are needed: one for each rank.

    Returns
    -------
    list
        A blob for each object, as a list of its pieces.

    Raises
    ------
    ValueError
        There are not `count` objects.
    """
    items = [None] * count if objects is None else list(objects)
    if len(items) != count:
        raise ValueError(f"expecting {count} items, got {len(items)}")
    return [encode(item) for item in items]


def decode_list(blobs: Any) -> list[Any] | None:
    """Unpickle blobs.

    Parameters
    ----------
    blobs
        Blobs in rank order, with None where there is no blob; or None for no list of them. Large
        arrays in the objects are views of the blobs.

    Returns
    -------
    list or None
        The objects, with None where there is no blob; None if there is no list.
    """
    return (
        None if blobs is None else [None if blob is None else decode(whole(blob)) for blob in blobs]
    )


def _decode_some(blob: Any) -> Any:
    return None if blob is None else decode(whole(blob))
