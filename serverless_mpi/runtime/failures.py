"""Fault tolerance of one rank: failure notices, revocation and agreement.

`FaultTolerantRuntime` is a `Runtime` whose calls know of ranks that have failed and communicators
that have been revoked. A rank has one from its start with `smpirun --ft`. Otherwise its runtime
becomes one (`activate` changes its class) when it first revokes or agrees, or when a message of
another rank that does arrives. So a program that uses none of it executes nothing of this file.

Messages of the fault tolerance are point-to-point messages in `CONTEXT_FAULTS`, for which a receive
per source is always posted; they are handled in whichever call of the rank receives them.

Rules:

- Only a failure notice (deaths.py) makes a rank *failed*. A broken connection alone does not,
  except in a bridge between two jobs.
- A rank that ended with exit code 0 has *ended*, too: it takes no part in agreements. It has not
  failed, because messages that it sent may still be on their way.
- When a rank fails, `_end_waits` ends what waits for it: receives from it, synchronous sends to it,
  and every collective of which it is a member. All members get the notice, so none of them waits
  for another one that has given up. A receive from any source is suspended until the failure is
  acknowledged.
- A call checks before it starts, and again after it has registered what it waits for, because a
  notice may come in between.
- In a job with notices each rank that learns of a revocation passes it on, so it reaches all
  members although the rank that revoked may die meanwhile.

References
----------
MPI 5.0, and the specification of User Level Failure Mitigation (fault-tolerance.org).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, cast

from serverless_mpi.core.agreement import Agreement, Message, Value
from serverless_mpi.core.delivery import Incoming
from serverless_mpi.core.endpoint import Receive
from serverless_mpi.core.envelope import ANY_SOURCE, CONTEXT_FAULTS
from serverless_mpi.deaths import BY_CONNECTIONS, NOTICES, mark_abort, read_notices
from serverless_mpi.errors import (
    ERR_PROC_FAILED,
    ERR_PROC_FAILED_PENDING,
    ERR_REVOKED,
    MPIException,
    ServerlessMPIError,
)
from serverless_mpi.job import JobSpec
from serverless_mpi.runtime.collective_driver import CollectiveDriver, Steps
from serverless_mpi.runtime.operation import Operation, Payload
from serverless_mpi.runtime.runtime import Runtime

MOST_AGREEMENTS = 1024  # kept for members that have not been told of a decision

AgreementName = tuple[int, int]  # context, number of the agreement


class Failures:
    """What a rank knows of failures.  Read it without the lock, change it under the lock.

    Attributes
    ----------
    failed : list of int
        World ranks that have failed, in the order of their notices.
    ended : set of int
        World ranks that have ended, failed or not.
    revoked : set of int
        Contexts of revoked communicators.
    acknowledged : dict
        Context -> world ranks whose failure was acknowledged there.
    """

    def __init__(self) -> None:
        self.failed: list[int] = []
        self.ended: set[int] = set()
        self.revoked: set[int] = set()
        self.acknowledged: dict[int, frozenset[int]] = {}

    def error(self, context: int, ranks: Container[int]) -> MPIException | None:
        """Return why an operation cannot succeed; None if nothing is known against it.

        Parameters
        ----------
        context
            Of the communicator.
        ranks
            World ranks that the operation needs.

        Returns
        -------
        MPIException or None
            ERR_REVOKED or ERR_PROC_FAILED.
        """
        if context in self.revoked:
            return MPIException(ERR_REVOKED, "the communicator has been revoked; use Shrink")
        for rank in self.failed:
            if rank in ranks:
                return failed(rank)
        return None


def failed(rank: int, pending: bool = False) -> MPIException:
    """Return the error of an operation that needs a failed rank.

    Parameters
    ----------
    rank
        World rank.
    pending
        Whether the operation goes on when the failure has been acknowledged.
    """
    if pending:
        return MPIException(
            ERR_PROC_FAILED_PENDING,
            f"rank {rank} of the job, which might be the sender, has failed; call Ack_failed to"
            " go on without it",
        )
    return MPIException(ERR_PROC_FAILED, f"rank {rank} of the job has failed")


class _Refused:
    """What `_look` finds instead of a message."""

    def __init__(self, error: MPIException) -> None:
        self.error = error


class FaultTolerantRuntime(Runtime):
    """A rank that goes on when others fail; see the head of the file."""

    failures: Failures
    _agreements: OrderedDict[AgreementName, tuple[Agreement, Operation]]
    _early: dict[AgreementName, list[tuple[int, Message]]]

    def begin(self) -> None:
        """Begin to receive the messages of other ranks; under the lock, or before any call."""
        self._endpoint.on_faults = None
        self.failures = Failures()
        self._agreements = OrderedDict()
        self._early = {}  # messages of agreements that this rank has not joined
        for rank in range(self.size):
            if rank != self.rank:
                self._listen(rank)

    def watch(self, path: str) -> None:
        """Process the launcher's notices in a thread.

        Parameters
        ----------
        path
            Of this rank's pipe, see deaths.py.
        """

        def run() -> None:
            try:
                for rank, died in read_notices(path, self.spec.key):
                    self.rank_ended(rank, died=died)
            except (ServerlessMPIError, OSError):  # finalized, or the channel has failed
                pass

        threading.Thread(target=run, name="smpi-deaths", daemon=True).start()

    def watch_connections(self) -> None:
        """Process the ends of connections in a thread: those of a bridge are notices."""
        ends: SimpleQueue[tuple[int, bool]] = SimpleQueue()

        def connect() -> None:
            self._channel.watch_peers(lambda rank, died: ends.put((rank, died)))

        def run() -> None:
            try:
                while True:
                    rank, died = ends.get()
                    self.rank_ended(rank, died=died)
            except ServerlessMPIError:  # finalized, or the channel has failed
                pass

        for target in (run, connect):
            threading.Thread(target=target, name="smpi-deaths", daemon=True).start()

    def abort(self, code: int, reason: str = "") -> NoReturn:
        if self.spec.stats_dir is not None and not self._forked:
            mark_abort(Path(self.spec.stats_dir), self.rank)
        super().abort(code, reason)

    # --- messages ---------------------------------------------------------------------------------

    def _listen(self, source: int) -> None:
        while True:
            receive = self._endpoint.post(CONTEXT_FAULTS, source, 0)
            if not receive.done:
                receive.on_done = partial(self._arrived, source)
                return
            self._take(source, receive)

    def _arrived(self, source: int, receive: Receive) -> None:
        self._take(source, receive)
        self._listen(source)

    def _take(self, source: int, receive: Receive) -> None:
        assert receive.data is not None
        what, context, *fields = json.loads(bytes(receive.data))
        if what == "revoke":
            # without notices no rank dies, and a member may have finalized already
            self._revoke(context, fields[0] if NOTICES in self.spec.settings else ())
            return
        name, message = (context, fields[0]), Message.from_json(fields[1])
        if name in self._agreements:
            self._agreements[name][0].receive(source, message)
            self._settle(name)
        else:
            self._early.setdefault(name, []).append((source, message))

    def _tell(self, dest: int, *fields: object) -> None:
        """Queue a message to another rank."""
        if dest not in self.failures.ended:
            body = memoryview(json.dumps(fields).encode())
            frames = self._endpoint.send(CONTEXT_FAULTS, dest, 0, (body,))
            self._send_queue.add(frames, None)

    # --- failures ---------------------------------------------------------------------------------

    def rank_ended(self, rank: int, died: bool) -> None:
        """Process a failure notice.

        Parameters
        ----------
        rank
            World rank that has ended; it must not act any more.
        died
            False: it ended with exit code 0.
        """
        with self._inside:
            failures = self.failures
            failures.ended.add(rank)
            if died and rank not in failures.failed:
                failures.failed.append(rank)
                for receive in self._endpoint.drop_incomplete(rank):
                    receive.fail(failed(rank))
                self._end_waits()
            for name, (agreement, _) in list(self._agreements.items()):
                agreement.member_ended(rank)
                self._settle(name)

    def _end_waits(self) -> None:
        """End everything that waits for failed ranks, or on revoked communicators."""
        endpoint, error_of = self._endpoint, self.failures.error
        for receive in endpoint.posted():
            context, source, _ = receive.pattern
            if context == CONTEXT_FAULTS:
                continue
            error = error_of(context, (source,))
            if error is not None:
                endpoint.cancel(receive)
                receive.fail(error)
            elif source == ANY_SOURCE:
                rank = self._unacknowledged(context)
                operation = getattr(receive.on_done, "__self__", None)
                if rank is not None and isinstance(operation, Operation):
                    operation.suspend(failed(rank, pending=True))
        for context, dest, on_matched in endpoint.drop_synchronous(
            lambda context, dest: error_of(context, (dest,)) is not None
        ):
            error = error_of(context, (dest,))
            assert error is not None
            cast(Operation, on_matched.__self__).fail(error)  # type: ignore[attr-defined]
        for context, receive in endpoint.expected():
            driver = getattr(receive.on_done, "__self__", None)
            if isinstance(driver, CollectiveDriver):
                error = error_of(context, driver.ranks)
                if error is not None:
                    driver.fail(error)

    def _unacknowledged(self, context: int) -> int | None:
        """A failed member of a communicator that was not acknowledged there, or None."""
        reference = self._owners.get(context)
        state = None if reference is None else reference()
        peers = getattr(state, "peers", ())
        known = self.failures.acknowledged.get(context, frozenset())
        return next(
            (rank for rank in self.failures.failed if rank in peers and rank not in known), None
        )

    def acknowledge(self, context: int, ranks: Sequence[int]) -> None:
        """Acknowledge failures: receives from any source of the communicator go on without them.

        Parameters
        ----------
        context
            Of the communicator.
        ranks
            World ranks that have failed.
        """
        with self._inside:
            known = self.failures.acknowledged
            known[context] = known.get(context, frozenset()).union(ranks)
            if self._unacknowledged(context) is None:
                for receive in self._endpoint.posted():
                    operation = getattr(receive.on_done, "__self__", None)
                    if receive.pattern[0] == context and isinstance(operation, Operation):
                        operation.resume()

    def _registered(self, operation: Operation) -> Operation:
        """Look again whether an operation can succeed, now that a notice would end it."""
        failures = self.failures
        if not operation.done and (failures.failed or failures.revoked):
            with self._inside:
                self._end_waits()
        return operation

    # --- revocation -------------------------------------------------------------------------------

    def own(self, owner: object, context: int) -> None:
        super().own(owner, context)
        if context in self.failures.revoked:
            cast(Any, owner).revoke()

    def revoke(self, context: int, members: Sequence[int]) -> None:
        """Revoke a communicator on all of its members.

        Parameters
        ----------
        context
            Of the communicator.
        members
            World ranks, of both groups.
        """
        with self._inside:
            self._revoke(context, members)

    def _revoke(self, context: int, members: Sequence[int]) -> None:
        if context in self.failures.revoked:
            return
        self.failures.revoked.add(context)
        reference = self._owners.get(context)
        state = None if reference is None else reference()
        if state is not None:
            state.revoke()
        for member in members:
            if member != self.rank:
                self._tell(member, "revoke", context, list(members))
        self._end_waits()

    # --- agreement --------------------------------------------------------------------------------

    def iagree(self, context: int, seq: int, members: Sequence[int], flag: int) -> Operation:
        """Start an agreement.

        Parameters
        ----------
        context
            Of the communicator; it may have been revoked.
        seq
            Number of this agreement on its communicator, the same on every member.
        members
            World ranks, of both groups.
        flag
            Contribution of this rank.

        Returns
        -------
        Operation
            Its `result` is the `Value` that was agreed on.
        """
        operation = Operation()
        name = (context, seq)
        with self._inside:
            failures = self.failures
            ended = failures.ended.intersection(members)
            known = failures.acknowledged.get(context, frozenset())
            value = Value(flag, frozenset(ended), known | (ended - set(failures.failed)))
            agreement = Agreement(
                self.rank,
                members,
                value,
                failures.ended,
                lambda dest, message: self._tell(dest, "agree", *name, message.to_json()),
            )
            self._agreements[name] = agreement, operation
            for source, message in self._early.pop(name, ()):
                agreement.receive(source, message)
            self._settle(name)
            while len(self._agreements) > MOST_AGREEMENTS:
                self._agreements.popitem(last=False)
        return operation

    def _settle(self, name: AgreementName) -> None:
        agreement, operation = self._agreements[name]
        if agreement.decided is not None and not operation.done:
            operation.result = agreement.decided
            operation.complete()

    # --- the calls of a rank ----------------------------------------------------------------------

    def _refusal(self, context: int, ranks: Container[int]) -> Operation | None:
        """A failed operation if it cannot succeed; None if nothing is known against it."""
        error = self.failures.error(context, ranks)
        if error is None:
            return None
        operation = Operation()
        operation.fail(error)
        return operation

    def isend(
        self,
        context: int,
        dest: int,
        tag: int,
        data: Sequence[memoryview],
        *,
        sync: bool = False,
        payload: Payload = Payload.BORROWED,
    ) -> Operation:
        refused = self._refusal(context, (dest,))
        if refused is not None:
            return refused
        return self._registered(super().isend(context, dest, tag, data, sync=sync, payload=payload))

    def send(
        self, context: int, dest: int, tag: int, data: Sequence[memoryview], *, sync: bool = False
    ) -> None:
        error = self.failures.error(context, (dest,))
        if error is not None:
            raise error
        super().send(context, dest, tag, data, sync=sync)

    def irecv(
        self, context: int, source: int, tag: int, into: memoryview | None = None
    ) -> Operation:
        return self._registered(super().irecv(context, source, tag, into))

    def irecv_matched(self, message: Incoming, into: memoryview | None = None) -> Operation:
        return self._registered(super().irecv_matched(message, into))

    def recv(self, context: int, source: int, tag: int, into: memoryview | None = None) -> Receive:
        operation = self.irecv(context, source, tag, into)
        assert operation.receive is not None
        self.complete_receive(operation)
        if operation.error is not None:
            raise operation.error
        return operation.receive

    def complete_receive(self, operation: Operation) -> None:
        super().complete_receive(operation)
        error = operation.error
        if isinstance(error, MPIException) and error.ob_mpi == ERR_PROC_FAILED_PENDING:
            # a blocking call does not leave a receive behind
            with self._inside:
                assert operation.receive is not None
                self._endpoint.cancel(operation.receive)
                operation.error = MPIException(ERR_PROC_FAILED, error.message)

    def _look(
        self, look: Callable[[], object], pattern: tuple[int, int, int], block: bool
    ) -> object:
        context, source, _ = pattern

        def look_or_refuse() -> object:
            result = look()
            if result is not None:
                return result
            error = self.failures.error(context, (source,))
            if error is None and source == ANY_SOURCE:
                rank = self._unacknowledged(context)
                error = None if rank is None else failed(rank)
            return None if error is None else _Refused(error)

        result = super()._look(look_or_refuse, pattern, block)
        if isinstance(result, _Refused):
            raise result.error
        return result

    def icollective(self, context: int, seq: int, steps: Steps, ranks: Sequence[int]) -> Operation:
        refused = self._refusal(context, ranks)
        if refused is not None:
            steps.close()
            return refused
        return self._registered(super().icollective(context, seq, steps, ranks))

    def collective(self, context: int, seq: int, steps: Steps, ranks: Sequence[int]) -> Operation:
        operation = self.icollective(context, seq, steps, ranks)
        self.wait_for(operation)
        return operation


_activation = threading.Lock()


def activate(runtime: Runtime) -> FaultTolerantRuntime:
    """Return a runtime as one that is fault tolerant; its class changes if it is not yet.

    Parameters
    ----------
    runtime
        Of this process.
    """
    if not isinstance(runtime, FaultTolerantRuntime):
        with _activation, runtime.entered():
            if not isinstance(runtime, FaultTolerantRuntime):
                _convert(runtime)
    return cast(FaultTolerantRuntime, runtime)


def _convert(runtime: Runtime) -> None:
    """Change the class of a runtime; under its lock."""
    runtime.__class__ = FaultTolerantRuntime
    cast(FaultTolerantRuntime, runtime).begin()


def start(spec: JobSpec) -> Runtime:
    """Return the runtime of a rank.

    Parameters
    ----------
    spec
        The rank. With the setting `notices` its launcher reports ranks that end.
    """
    path = spec.settings.get(NOTICES)
    if path is None:
        runtime = Runtime(spec)
        runtime.when_faults(partial(_convert, runtime))
        return runtime
    tolerant = FaultTolerantRuntime(spec)
    tolerant.begin()
    if path == BY_CONNECTIONS:
        tolerant.watch_connections()
    else:
        tolerant.watch(path.format(rank=spec.rank))
    return tolerant
