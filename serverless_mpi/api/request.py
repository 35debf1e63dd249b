"""Requests: waiting for operations, and testing them (MPI 4.1, section 3.7).

A `Request` is a handle to a `Pending`: the runtime's operation, and a function that takes its
result once and fills a status. Completing a request takes the result, then makes the handle null (a
persistent request becomes inactive instead), also if the operation failed, whose error is raised.

The upper-case calls return what mpi4py's do; they call the lower-case ones of `Request` itself,
because a program's subclass may override those.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any

from serverless_mpi.api.handle import Handle, forget, name_constant, state_of
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.core.envelope import UNDEFINED
from serverless_mpi.errors import ERR_IN_STATUS, ERR_REQUEST, MPIException
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation, any_done
from serverless_mpi.runtime.process import bridges
from serverless_mpi.signals import uninterrupted

Finish = Callable[[Operation, Status], Any]

# how often a thread looks at requests of several jobs for which it waits
LEAST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.008


class Pending:
    """State of a request.

    Attributes
    ----------
    runtime, operation
        What is waited for; None for an inactive request.
    finish
        Takes the operation's result, once, and fills the status.
    persistent
        Whether it can be started again.
    """

    __slots__ = ("runtime", "operation", "finish")

    def __init__(
        self, runtime: Runtime | None, operation: Operation | None, finish: Finish | None
    ) -> None:
        self.runtime, self.operation, self.finish = runtime, operation, finish

    persistent = False  # whether it can be started again
    needs_status = True  # whether `finish` must be given a status

    def status_of(self, operation: Operation, status: Status) -> None:
        """Fill the status of a finished operation whose result is taken later.

        Parameters
        ----------
        operation
            A finished operation.
        status
            Filled; empty if the operation has failed or was cancelled.
        """
        assert self.finish is not None
        if operation.error is None and not operation.cancelled:
            self.finish(operation, status)
        else:
            fill_empty_status(status)
            status.Set_cancelled(operation.cancelled)

    def cancel(self) -> None:
        """Cancel the operation, if that is still possible."""
        if self.operation is not None and self.runtime is not None:
            self.runtime.cancel(self.operation)


class PendingMessage(Pending):
    """State of the request of a send or a receive; `finish` may be given None for a status."""

    __slots__ = ()
    needs_status = False


class Request(Handle):
    """An operation in progress, or MPI.REQUEST_NULL.

    Waiting for it makes it null. What it received is the value of `wait` and `test`, or is in the
    buffer.
    """

    __module__ = "serverless_mpi.MPI"
    _ob: Pending | None

    def __new__(cls, request: Request | None = None) -> Request:
        return cls._copy(request)  # type: ignore[no-any-return]

    @classmethod
    def _of(cls, runtime: Runtime | None, operation: Operation, finish: Finish) -> Request:
        """Make the request of an operation."""
        self: Request = object.__new__(cls)
        self._ob = Pending(runtime, operation, finish)
        return self

    @classmethod
    def _of_message(
        cls,
        runtime: Runtime | None,
        operation: Operation,
        finish: Callable[[Operation, Status | None], Any],
    ) -> Request:
        """Make the request of a send or a receive."""
        self: Request = object.__new__(cls)
        self._ob = PendingMessage(runtime, operation, finish)
        return self

    @property
    def _operation(self) -> Operation | None:
        """The operation; None if the request is null or inactive."""
        return None if self._ob is None else self._ob.operation

    def _complete(self, status: Status | None) -> Any:
        """Take the result of a finished operation; the request is null or inactive afterwards."""
        pending = self._ob
        if pending is None or pending.operation is None:
            if status is not None:
                fill_empty_status(status)
            return None
        if status is None and pending.needs_status:
            status = Status()
        operation, finish = pending.operation, pending.finish
        assert finish is not None
        if operation.error is not None and operation.suspended:
            raise operation.error  # the request stays as it is
        pending.operation = None
        if not pending.persistent:
            pending.finish = None
            forget(pending)
            self._ob = None
        if operation.error is not None:
            raise operation.error
        if operation.cancelled:
            if status is not None:
                fill_empty_status(status)
                status.Set_cancelled(True)
            return None
        return finish(operation, status)  # type: ignore[arg-type]  # see needs_status

    @uninterrupted
    def _complete_own(self, status: Status | None = None) -> Any:
        """Complete a blocking receive's own request, which programs do not see."""
        pending = self._ob
        operation = self._operation
        if pending is not None and operation is not None and not operation.done:
            assert pending.runtime is not None
            pending.runtime.complete_receive(operation)
        return self._complete(status)

    @uninterrupted
    def _await(self, status: Status | None = None) -> Any:
        """Wait for the request and complete it."""
        pending = self._ob
        if pending is not None and pending.operation is not None and not pending.operation.done:
            _wait((self,), all=True)
        return self._complete(status)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in an event loop: `await comm.irecv()`; see `serverless_mpi.aio`."""
        waiting: Generator[Any, None, Any] = (
            import_module("serverless_mpi.aio").wait(self).__await__()
        )
        return waiting

    def wait(self, status: Status | None = None) -> Any:
        """Wait until the operation is done.

        Parameters
        ----------
        status
            Filled with source, tag, length and error.

        Returns
        -------
        object
            What an object receive received; None for other operations.

        References
        ----------
        MPI 4.1, section 3.7.3.
        """
        return self._await(status)

    @uninterrupted
    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """Return whether the operation is done, and what it received; never waits.

        Parameters
        ----------
        status
            Filled with the status of the operation, if it is done.

        Returns
        -------
        bool, object
            Whether the operation is done, and the received value; (False, None) if it is not done.

        References
        ----------
        MPI 4.1, section 3.7.3.
        """
        if not _test((self,), any_done):
            return False, None
        return True, self._complete(status)

    def get_status(self, status: Status | None = None) -> bool:
        """Return whether the operation is done; the request stays.

        Parameters
        ----------
        status
            Filled with the status of the operation, if it is done.

        References
        ----------
        MPI 4.1, section 3.7.6.
        """
        if not _test((self,), any_done):
            return False
        _peek(self, status)
        return True

    def Wait(self, status: Status | None = None) -> bool:
        """Wait until the operation is done; return True.

        Parameters
        ----------
        status
            Filled with the status of the operation.

        References
        ----------
        MPI 4.1, section 3.7.3.
        """
        self._await(status)  # not self.wait: a program's subclass may have its own
        return True

    def Test(self, status: Status | None = None) -> bool:
        """Return whether the operation is done; if so, the request is null now.

        Parameters
        ----------
        status
            Filled with the status of the operation, if it is done.

        References
        ----------
        MPI 4.1, section 3.7.3.
        """
        return Request.test(self, status)[0]

    def Get_status(self, status: Status | None = None) -> bool:
        """Return whether the operation is done; the request stays.

        Parameters
        ----------
        status
            Filled with the status of the operation, if it is done.

        References
        ----------
        MPI 4.1, section 3.7.6.
        """
        return Request.get_status(self, status)

    def Cancel(self) -> None:
        """Cancel a receive that has not been matched; any other operation goes on.

        Raises
        ------
        MPIException
            ERR_REQUEST: the request is null or inactive.

        References
        ----------
        MPI 4.1, section 3.8.4.
        """
        if self._ob is None or self._ob.operation is None:
            raise MPIException(ERR_REQUEST, "a null or inactive request cannot be cancelled")
        self._ob.cancel()

    def cancel(self) -> None:
        """Cancel, as `Cancel` does."""
        self.Cancel()

    def Free(self) -> None:
        """Release the request; the operation goes on."""
        if self._ob is None:
            raise MPIException(ERR_REQUEST, "a null request cannot be freed")
        forget(self._ob)
        self._ob = None

    # --- several -------------------------------------------------------------

    @classmethod
    @uninterrupted
    def waitall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[Any]:
        """Wait until all operations are done.

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request.

        Returns
        -------
        list
            What each request received.

        Notes
        -----
        Every request is completed, even if one has failed; the first error is raised afterwards.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        _wait(requests, all=True)
        return _complete_each(requests, range(len(requests)), statuses)

    @classmethod
    @uninterrupted
    def testall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Return whether all operations are done, and what each received (None if not).

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request, if all are done.

        Returns
        -------
        bool, list or None
            Whether all are done, and what each request received; (False, None) if not.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        if not _test(requests, _all_done):
            return False, None
        return True, _complete_each(requests, range(len(requests)), statuses)

    @classmethod
    @uninterrupted
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """Wait until one operation is done; return its index (or UNDEFINED) and value.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        Returns
        -------
        int, object
            MPI.UNDEFINED and None if all requests are null or inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        if not any(request._operation is not None for request in requests):
            if status is not None:
                fill_empty_status(status)
            return UNDEFINED, None
        _wait(requests, all=False)
        index = _done(requests)[0]
        return index, requests[index]._complete(status)

    @classmethod
    @uninterrupted
    def testany(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool, Any]:
        """Return the index of a done operation, whether there is one, and its value.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        Returns
        -------
        int, bool, object
            MPI.UNDEFINED, True and None if all requests are null or inactive; MPI.UNDEFINED, False
            and None if no operation is done.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        if not any(request._operation is not None for request in requests):
            if status is not None:
                fill_empty_status(status)
            return UNDEFINED, True, None
        if not _test(requests, any_done):
            return UNDEFINED, False, None
        index = _done(requests)[0]
        return index, True, requests[index]._complete(status)

    @classmethod
    @uninterrupted
    def waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Wait until some operations are done; return their indices and values.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None, list or None
            (None, None) if all requests are null or inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        if not any(request._operation is not None for request in requests):
            return None, None
        _wait(requests, all=False)
        which = _done(requests)
        return which, _complete_each(requests, which, statuses)

    @classmethod
    @uninterrupted
    def testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Return the indices and values of the done operations; (None, None) if all are null.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None, list or None
            Two empty lists if no operation is done; (None, None) if all requests are null or
            inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        if not any(request._operation is not None for request in requests):
            return None, None
        if not _test(requests, any_done):
            return [], []
        which = _done(requests)
        return which, _complete_each(requests, which, statuses)

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Wait until all operations are done; return True.

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        Request.waitall(requests, statuses)
        return True

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Return whether all operations are done; if so, the requests are null now.

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request, if all are done.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        return Request.testall(requests, statuses)[0]

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Status | None = None) -> int:
        """Wait until one operation is done; return its index, or UNDEFINED if all are null.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        return Request.waitany(requests, status)[0]

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        """Return the index of a done operation, and whether there is one.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        Returns
        -------
        int, bool
            MPI.UNDEFINED and True if all requests are null or inactive; MPI.UNDEFINED and False if
            no operation is done.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        return Request.testany(requests, status)[:2]

    @classmethod
    def Waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Wait until some operations are done; return their indices.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None
            None if all requests are null or inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        return Request.waitsome(requests, statuses)[0]

    @classmethod
    def Testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Return the indices of the done operations; None if all requests are null.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None
            Empty if no operation is done; None if all requests are null or inactive.

        References
        ----------
        MPI 4.1, section 3.7.5.
        """
        return Request.testsome(requests, statuses)[0]

    # --- several, without taking the results ----------------------------------

    @classmethod
    def get_status_any(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool]:
        """Return the index of a done operation, and whether there is one; the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        Returns
        -------
        int, bool
            MPI.UNDEFINED and True if all requests are null or inactive; MPI.UNDEFINED and False if
            no operation is done.
        """
        if not any(request._operation is not None for request in requests):
            if status is not None:
                fill_empty_status(status)
            return UNDEFINED, True
        if not _test(requests, any_done):
            return UNDEFINED, False
        index = _done(requests)[0]
        _peek(requests[index], status)
        return index, True

    @classmethod
    def get_status_all(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> bool:
        """Return whether all operations are done; the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request, if all are done.
        """
        if not _test(requests, _all_done):
            return False
        for request, status in zip(requests, _statuses(statuses, len(requests)), strict=True):
            _peek(request, status)
        return True

    @classmethod
    def get_status_some(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Return the indices of the done operations (None if all are null); the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None
            Empty if no operation is done; None if all requests are null or inactive.
        """
        if not any(request._operation is not None for request in requests):
            return None
        _test(requests, any_done)
        which = _done(requests)
        for index, status in zip(which, _statuses(statuses, len(which)), strict=True):
            _peek(requests[index], status)
        return which

    @classmethod
    def Get_status_any(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool]:
        """Return the index of a done operation, and whether there is one; the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        status
            Filled with the status of the operation, if it is done; an empty status if all requests
            are null or inactive.

        Returns
        -------
        int, bool
            MPI.UNDEFINED and True if all requests are null or inactive; MPI.UNDEFINED and False if
            no operation is done.
        """
        return Request.get_status_any(requests, status)

    @classmethod
    def Get_status_all(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> bool:
        """Return whether all operations are done; the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests count as done.
        statuses
            A list, which is filled and extended to one status per request, if all are done.
        """
        return Request.get_status_all(requests, statuses)

    @classmethod
    def Get_status_some(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[int] | None:
        """Return the indices of the done operations (None if all are null); the requests stay.

        Parameters
        ----------
        requests
            Null and inactive requests are ignored.
        statuses
            A list, which is filled and extended to one status per returned index.

        Returns
        -------
        list or None
            Empty if no operation is done; None if all requests are null or inactive.
        """
        return Request.get_status_some(requests, statuses)


def _peek(request: Request, status: Status | None) -> None:
    """Fill the status of a request that is done, without completing it."""
    if status is None:
        return
    pending = request._ob
    if pending is None or pending.operation is None:
        fill_empty_status(status)
        return
    try:
        pending.status_of(pending.operation, status)
    except MPIException as error:
        status.Set_error(error.Get_error_code())


def _statuses(statuses: Sequence[Status] | None, count: int) -> list[Status]:
    """`count` statuses to fill: the caller's as far as they go; a list is extended."""
    if statuses is None:
        return [Status() for _ in range(count)]
    if isinstance(statuses, list):
        statuses += [Status() for _ in range(count - len(statuses))]
    return [*statuses[:count], *(Status() for _ in range(count - len(statuses)))]


def _operations(requests: Sequence[Request]) -> tuple[Runtime | None, list[Operation]]:
    """The runtime and the active operations of requests.

    They may have several runtimes, those of bridges (runtime/process.py); the first is returned.
    """
    operations, runtime = [], None
    for request in requests:
        pending = request._ob
        if pending is not None and pending.operation is not None:
            operations.append(pending.operation)
            runtime = runtime or pending.runtime
    return runtime, operations


def _wait(requests: Sequence[Request], all: bool) -> None:
    """Wait until all, or any, of the operations are done."""
    runtime, operations = _operations(requests)
    if runtime is None:
        return
    if not bridges or len(requests) == 1:
        runtime.wait(operations, all=all)
        return
    # Agents complete the operations of the other runtimes, but do not wake this thread.
    pause = LEAST_PAUSE_S
    while not runtime.wait(operations, all=all, timeout=pause):
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _test(requests: Sequence[Request], over: Callable[[Sequence[Operation]], bool]) -> bool:
    """Make progress once unless the operations are done; whether they are now."""
    runtime, operations = _operations(requests)
    if runtime is None or over(operations):
        return True
    runtime.progress()
    if bridges:
        for pending in map(state_of, requests):
            if pending is not None and pending.runtime not in (None, runtime):
                pending.runtime.progress()
    return over(operations)


def _all_done(operations: Sequence[Operation]) -> bool:
    return all(operation.done for operation in operations)


def _done(requests: Sequence[Request]) -> list[int]:
    """Indices of requests whose operation is done."""
    return [
        i
        for i, request in enumerate(requests)
        if request._operation is not None and request._operation.done
    ]


def _complete_each(
    requests: Sequence[Request], which: Sequence[int], statuses: list[Status] | None
) -> list[Any]:
    """Complete the requests at the indices `which`, all of them even if one fails."""
    results, failed = [], None
    filled: Sequence[Status | None] = (
        [None] * len(which) if statuses is None else _statuses(statuses, len(which))
    )
    for index, status in zip(which, filled, strict=True):
        try:
            results.append(requests[index]._complete(status))
        except MPIException as error:
            if status is not None:
                status.Set_error(error.Get_error_code())
            failed = failed or error
    if failed is not None:
        if len(which) == 1:
            raise failed
        raise MPIException(
            ERR_IN_STATUS, f"one of {len(which)} requests failed: {failed}"
        ) from failed
    return results


# For the modules that start operations. Functions, because mpi4py's Request has no such methods.
request_of = Request._of
request_of_message = Request._of_message
operation_of: Callable[[Request], Operation | None] = attrgetter("_operation")
complete = Request._complete
complete_receive = Request._complete_own

REQUEST_NULL: Request = name_constant(Request(), "REQUEST_NULL")

__all__ = ["REQUEST_NULL", "Request"]
