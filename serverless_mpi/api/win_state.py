"""The state that all handles to one window share, and its messages.

A window has a hidden communicator: its context carries requests (`REQUEST`) and answers (`ANSWER`)
as point-to-point messages, and the barriers of fences. Every process serves requests on it
(runtime/serving.py) with a `Target` (core/window.py), unless the window has one process. What this
process does as an origin is in `Epochs` (core/epochs.py).

Answers carry no number: a target answers the batches of one origin in their order, so the next
answer of a target belongs to the oldest batch that waits for one. Hence `lock`: a request is sent
and its answer's receive is posted without another thread in between.

References
----------
MPI 4.1, chapter 12.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serverless_mpi.api.comm import Comm
from serverless_mpi.api.handle import state_of
from serverless_mpi.api.memory import buffer
from serverless_mpi.api.win_memory import Exposed
from serverless_mpi.core.epochs import Epochs, Sink, Waiting
from serverless_mpi.core.window import Answer, Command, Target, decode_answer, encode_request
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.runtime.serving import Message

REQUEST, ANSWER = 1, 2  # tags


class Batch:
    """A request that has been sent, until its results have been taken.

    Attributes
    ----------
    sent : Operation
        Done when the data of the commands may be changed.
    answer : Operation or None
        Receives the answer; None if none was asked for.
    """

    __slots__ = ("sent", "answer", "_sinks")

    def __init__(
        self, sent: Operation, answer: Operation | None, sinks: list[tuple[int, Sink]]
    ) -> None:
        self.sent = sent
        self.answer = answer
        self._sinks = sinks

    @property
    def over(self) -> bool:
        """Whether nothing is left to wait for, or to be taken."""
        answer = self.answer
        return self.sent.done and (answer is None or (answer.done and answer.data is None))

    def finish(self) -> None:
        """Put what was read into the buffers of the program, once; raise the target's error."""
        sinks, self._sinks = self._sinks, []
        if self.sent.error is not None:
            raise self.sent.error
        if self.answer is None:
            return
        if self.answer.error is not None:
            raise self.answer.error
        data, self.answer.data = self.answer.data, None
        if data is None:  # another call was first
            return
        error, rest = decode_answer(data)
        if error is not None:
            raise error
        for nbytes, sink in sinks:
            sink(rest[:nbytes])
            rest = rest[nbytes:]


class WinState:
    """The state of one window.

    Parameters
    ----------
    comm
        The hidden communicator, owned.
    flavor
        MPI.WIN_FLAVOR_CREATE, ...
    memory
        This process's memory; kept while the window lives.
    sizes, units
        Bytes and displacement unit of each rank.
    info
        Hints, copied.

    Attributes
    ----------
    rank
        This process's rank in the window.
    exposed
        This process's memory, as commands see it.
    reachable
        Rank -> memory that this process can reach: its own, and in a shared window everybody's.
    segments
        In a shared window, the memory of each rank.
    lock
        Held while commands are added and sent.
    """

    freed = False
    errhandler: Any = None
    constant: Any = None

    def __init__(
        self,
        comm: Comm,
        flavor: int,
        memory: buffer,
        sizes: Sequence[int],
        units: Sequence[int],
        info: dict[str, str],
        segments: Sequence[memoryview] = (),
    ) -> None:
        state = state_of(comm)
        self.comm = comm
        self.runtime: Runtime = state.runtime
        self.context: int = state.context
        self.ranks: tuple[int, ...] = state.ranks
        self.places: dict[int, int] = state.places
        self.rank: int = state.rank
        self.flavor = flavor
        self.memory = memory
        self.sizes, self.units = sizes, units
        self.info = info
        self.segments = segments
        self.name = state.name = ""
        self.attributes: dict[int, Any] = {}
        self.exposed = Exposed(memory.data)
        self.attached: dict[int, buffer] = {}  # of a dynamic window, by address
        self.reachable = {self.rank: self.exposed}
        self.epochs = Epochs()
        self.target = Target(lambda command: self.exposed.perform(command))
        self.lock = threading.RLock()
        self.batches: dict[int, list[Batch]] = {}  # by target: sent, not finished
        self.unconfirmed: set[int] = set()  # targets of batches without an answer
        # of the epoch that Start began: whether to wait for Post, and from whom it has come
        self.checked = True
        self.awaited: set[int] = set()
        if len(self.ranks) > 1:
            self.runtime.serve(self.context, REQUEST, self._serve)

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.ranks)

    # --- as a target ------------------------------------------------------------------------------

    def _serve(self, source: int, message: memoryview) -> Iterable[Message]:
        """Under the runtime's lock: process a request."""
        return self._addressed(self.target.receive(self.places[source], message))

    def _addressed(self, answers: Iterable[Answer]) -> Iterable[Message]:
        return [(self.ranks[dest], ANSWER, parts) for dest, parts in answers]

    def locally(self, action: Callable[[], Iterable[Answer]]) -> None:
        """Do something with the target of this process while no request is processed.

        Parameters
        ----------
        action
            Returns the answers that it makes due.
        """
        self.runtime.perform(self.context, lambda: self._addressed(action()))

    def perform(self, exposed: Exposed, command: Command, sink: Sink | None) -> None:
        """Perform a command on memory that this process reaches.

        Parameters
        ----------
        exposed
            The memory.
        command
            One on memory.
        sink
            Takes what it reads.
        """

        def act() -> Iterable[Answer]:
            result = exposed.perform(command)
            if sink is not None and result is not None:
                sink(result)
            return ()

        self.locally(act)

    # --- as an origin -----------------------------------------------------------------------------

    def send(self, target: int, waiting: Waiting, *, answer: bool) -> Batch | None:
        """Under `lock`: send the commands for a target.

        Parameters
        ----------
        target
            Its rank, not this process's.
        waiting
            What `Epochs.take` returned.
        answer
            Whether to ask for an answer although nothing is read.

        Returns
        -------
        Batch or None
            None if there is nothing to send or to confirm.
        """
        confirm = answer and (bool(waiting.commands) or target in self.unconfirmed)
        if not waiting.commands and not confirm:
            return None
        confirm = confirm or bool(waiting.sinks)
        world = self.ranks[target]
        parts = encode_request(waiting.commands, confirm)
        sent = self.runtime.isend(self.context, world, REQUEST, parts)
        reply = self.runtime.irecv(self.context, world, ANSWER) if confirm else None
        if confirm:
            self.unconfirmed.discard(target)
        else:
            self.unconfirmed.add(target)
        batch = Batch(sent, reply, waiting.sinks)
        batches = self.batches.setdefault(target, [])
        while batches and batches[0].over and batches[0].sent.error is None:
            batches.pop(0)  # a request of the program has completed it
        batches.append(batch)
        return batch

    def finish(self, targets: Iterable[int]) -> None:
        """Wait for what was sent to targets, and take the results.

        Parameters
        ----------
        targets
            Their ranks.

        Raises
        ------
        MPIException
            The first error of a target; everything is completed nevertheless.
        """
        with self.lock:
            batches = [batch for target in targets for batch in self.batches.pop(target, ())]
        error: BaseException | None = None
        for batch in batches:
            for operation in (batch.sent, batch.answer):
                if operation is not None and not operation.done:
                    self.runtime.wait_for(operation)
            try:
                batch.finish()
            except Exception as first:
                error = error or first
        if error is not None:
            raise error
