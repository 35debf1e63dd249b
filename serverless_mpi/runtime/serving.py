"""Answering requests of other ranks without the help of the program (one-sided communication).

A *service* is a receive from any rank, on one context and tag, that is posted again as soon as a
message has arrived.  Its function runs under the runtime's lock in the thread that received the
message, whichever that is, and what it returns is put by the same thread.  So a request costs no
hand-over between threads.

While there is a service, an *agent* thread receives when no thread of the program does.  A thread
of the program that waits takes over from it (`Progress._pump`), and the agent rests then: it looks
again after `REST_S`, at longer intervals while the program goes on waiting, up to `LONGEST_REST_S`.
So a rank that computes answers at once, except for that time after its last call, and messages
between ranks that communicate all the time do not pass through the agent.

The agent never starts a communication, so the deadlock detection ignores it (deadlock.py), and what
services await is not reported as something that the rank waits for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from serverless_mpi.core.endpoint import Receive
from serverless_mpi.core.envelope import ANY_SOURCE, derive_context
from serverless_mpi.runtime.progress import LONG_POLL_S, Agent, Progress

REST_S = 0.001  # before the agent receives after a call of the program
LONGEST_REST_S = 0.008  # at most, while a thread of the program receives

_RECEIVING = derive_context(0, "receive always")  # nobody sends there

Message = tuple[int, int, Sequence[memoryview]]  # world rank, tag, payload


class Serving(Progress):
    """A `Progress` with services."""

    def serve(
        self, context: int, tag: int, handle: Callable[[int, memoryview], Iterable[Message]]
    ) -> None:
        """Begin a service.

        Parameters
        ----------
        context, tag
            Of the messages that it receives; a context of its own.
        handle
            handle(world rank, payload) is called for each message, under the runtime's lock, and
            returns messages to be sent on the same context, never to this rank.  Their bytes must
            not change any more.  It must not raise, and must not call the runtime.
        """

        def each(receive: Receive) -> None:
            while True:
                assert receive.envelope is not None and receive.data is not None
                self._send_all(context, handle(receive.envelope.source, receive.data))
                if (context, tag) not in self._services:
                    return
                receive = self._services[context, tag] = self._endpoint.post(
                    context, ANY_SOURCE, tag
                )
                if not receive.done:
                    receive.on_done = each
                    return

        with self._inside:
            receive = self._services[context, tag] = self._endpoint.post(context, ANY_SOURCE, tag)
            if receive.done:
                each(receive)
            else:
                receive.on_done = each
            if self._agent is None:
                agent = self._agent = Agent(self._lock)
                agent.thread = threading.Thread(
                    target=self._receive_for_services, args=(agent,), name="smpi-agent", daemon=True
                )
                agent.thread.start()

    def receive_always(self) -> None:
        """Have the agent receive from now on, as if there were a service.

        The put of a long message, or a synchronous send, may last until its reader receives, and
        the reader may be waiting in another runtime of its process.
        """
        if (_RECEIVING, 0) not in self._services:
            self.serve(_RECEIVING, 0, lambda source, payload: ())

    def end_service(self, context: int, tag: int) -> None:
        """End a service; the agent ends with the last one.

        Parameters
        ----------
        context, tag
            As for `serve`.
        """
        agent = None
        with self._inside:
            receive = self._services.pop((context, tag))
            self._endpoint.cancel(receive)
            if not self._services:
                agent, self._agent = self._agent, None
                assert agent is not None
                agent.done = True
                agent.idle.notify()
                if self._pump_waited is agent:
                    self._pump_waited = None
                    self._channel.wake()
        if agent is not None and agent.thread is not None:
            agent.thread.join()

    def perform(self, context: int, action: Callable[[], Iterable[Message]]) -> None:
        """Do what a service does, in this thread: one at a time with all services.

        Parameters
        ----------
        context
            On which the messages are sent that `action` returns.
        action
            As `handle` of `serve`; an exception is raised by this call.
        """
        with self._inside:
            self._send_all(context, action())

    def _send_all(self, context: int, messages: Iterable[Message]) -> None:
        """Under the lock: queue messages to be put by the thread that has the lock."""
        for dest, tag, parts in messages:
            self._endpoint.outbox += self._endpoint.send(
                context, dest, tag, parts, None, time.monotonic()
            )

    def _receive_for_services(self, agent: Agent) -> None:
        """The agent thread: receive while no thread of the program does."""
        seen, rest = -1, REST_S
        with self._lock:
            while not (agent.done or self._failure is not None or self.finalized):
                frames = self._received + self._send_queue.frames
                if self._pumping or agent.yields or frames != seen:
                    rest = min(2 * rest, LONGEST_REST_S) if self._pumping else REST_S
                    agent.yields, seen = False, frames
                    agent.idle.wait(rest)
                    continue
                try:
                    self._pump(LONG_POLL_S, agent)
                except Exception:
                    return  # kept as the rank's failure, which the next call of the program raises
                seen = self._received + self._send_queue.frames
