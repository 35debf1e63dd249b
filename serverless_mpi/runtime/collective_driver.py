"""Runs the generator of a collective: sends what it yields and resumes it with what it waits for.

An algorithm (`collectives/`) is a generator that yields a step, or a list of steps that happen at
once.  The driver resumes it when every `Recv` of them has its data, with that data (None for a
send). It never blocks: `step` runs until the generator needs something that has not arrived, and
the endpoint calls `arrived` under the runtime's lock when it has.  So a nonblocking collective
progresses in whichever call of the rank happens to receive.

The collective is over when its generator returns or raises.  Its number is then retired, so that
late frames of it are dropped, and its operation ends.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from serverless_mpi.collectives.steps import Scatter, Send
from serverless_mpi.core.endpoint import Endpoint, Receive
from serverless_mpi.runtime.operation import Operation
from serverless_mpi.runtime.send_queue import SendQueue

Steps = Generator[Any, Any, Any]


class CollectiveDriver:
    """One collective in progress.  Every method is called under the runtime's lock.

    Parameters
    ----------
    endpoint, send_queue
        Of the rank; frames that the collective sends hold `operation` until they have been put.
    ranged
        Whether a reader of the channel can take a part of what was put.
    operation
        Ends with the collective; its `result` is what the generator returns.
    context, seq
        The communicator, and the number of this collective on it.
    steps
        The generator.
    ranks
        World rank of each rank that the generator names.
    """

    __slots__ = (
        "_endpoint",
        "_send_queue",
        "_ranged",
        "_operation",
        "_context",
        "_seq",
        "_steps",
        "_ranks",
        "_receives",
        "_several",
        "_missing",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        send_queue: SendQueue,
        ranged: bool,
        operation: Operation,
        context: int,
        seq: int,
        steps: Steps,
        ranks: Sequence[int],
    ) -> None:
        self._endpoint = endpoint
        self._send_queue = send_queue
        self._ranged = ranged
        self._operation = operation
        self._context = context
        self._seq = seq
        self._steps = steps
        self._ranks = ranks
        self._receives: list[Receive | None] = []  # of the steps that were yielded last
        self._several = False  # whether they were yielded as a list
        self._missing = 0  # receives that are not done

    def step(self, value: Any = None) -> None:
        """Resume the generator with `value`, and go on until it waits for a rank or ends.

        Parameters
        ----------
        value
            What the generator waited for; None to begin.
        """
        while True:
            try:
                yielded = self._steps.send(value)
            except StopIteration as stop:
                self._operation.result = stop.value
                self._endpoint.retire(self._context, self._seq)
                self._operation.release()
                return
            except Exception as error:  # of the caller's operation or datatype; `wait` raises it
                self._endpoint.retire(self._context, self._seq)
                self._operation.fail(error)
                return
            self._several = isinstance(yielded, (list, tuple))
            self._receives = []
            self._missing = 0
            for step in yielded if self._several else (yielded,):
                # sends and receives are written out here, to save a Python call per step
                receive = None
                if isinstance(step, Send):
                    dests = list(map(self._ranks.__getitem__, step.dests))
                    if dests:
                        frames = self._endpoint.publish(
                            self._context, self._seq, step.slot, dests, step.data
                        )
                        self._send_queue.add(frames, self._operation)
                elif isinstance(step, Scatter):
                    self._scatter(step)
                else:
                    receive = self._endpoint.expect(
                        self._context,
                        self._ranks[step.source],
                        self._seq,
                        step.slot,
                        step.scattered,
                    )
                    if not receive.done:
                        self._missing += 1
                        receive.on_done = self.arrived
                self._receives.append(receive)
            if self._missing:
                return
            value = self._received()

    def arrived(self, receive: Receive) -> None:
        """Take note that a receive is done; the last one resumes the generator.

        Parameters
        ----------
        receive
            One of those that the generator waits for.
        """
        self._missing -= 1
        if not self._missing:
            self.step(self._received())

    @property
    def ranks(self) -> Sequence[int]:
        """World rank of each member."""
        return self._ranks

    def fail(self, error: Exception) -> None:
        """End the collective with an error, whatever it waits for.

        Parameters
        ----------
        error
            Raised by the call that waits.
        """
        if not self._operation.done:
            self._endpoint.drop_steps(self._context, self._seq)
            self._operation.fail(error)
            self._steps.close()

    def _scatter(self, step: Scatter) -> None:
        """Send each reader its own blob."""
        blobs = [(self._ranks[dest], data) for dest, data in step.blobs]
        if blobs:
            frames = self._endpoint.scatter(self._context, self._seq, step.slot, blobs)
            if not self._ranged:
                frames = [single for frame in frames for single in frame.split_per_reader()]
            self._send_queue.add(frames, self._operation)

    def _received(self) -> Any:
        """What the generator is resumed with: data per step, or that of the only step."""
        data = [None if receive is None else receive.data for receive in self._receives]
        return data if self._several else data[0]
