"""Requests: waiting for and testing what goes on (MPI 4.1, section 3.7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.status import Status
from serverless_mpi.core.envelope import UNDEFINED
from serverless_mpi.errors import ERR_IN_STATUS, ERR_REQUEST, MPIException
from serverless_mpi.runtime import Operation, Runtime, any_done

Finish = Callable[[Operation, Status], Any]


class Request:
    """A communication under way, or nothing (REQUEST_NULL).

    It becomes null when it is waited for; what it received is the value of
    `wait` and `test`, or is in the buffer.
    """

    def __new__(cls, request: Request | None = None) -> Request:
        self = super().__new__(cls)
        self._runtime = None if request is None else request._runtime
        self._operation = None if request is None else request._operation
        self._finish = None if request is None else request._finish
        return self

    _runtime: Runtime | None
    _operation: Operation | None
    _finish: Finish | None

    @classmethod
    def _of(cls, runtime: Runtime, operation: Operation, finish: Finish) -> Request:
        self = cls()
        self._runtime, self._operation, self._finish = runtime, operation, finish
        return self

    def __bool__(self) -> bool:
        return self._operation is not None

    def __eq__(self, other: object) -> bool:
        return self._operation is other._operation if isinstance(other, Request) else NotImplemented

    def __hash__(self) -> int:
        return id(self._operation)

    def _complete(self, status: Status | None) -> Any:
        """Take the result of a finished operation; the request is null after it, whatever happens."""
        operation, finish = self._operation, self._finish
        status = Status() if status is None else status
        if operation is None or finish is None:
            status._fill_empty()
            return None
        self._operation = self._finish = None
        if operation.error is not None:
            raise operation.error
        if operation.cancelled:
            status._fill_empty()
            status.Set_cancelled(True)
            return None
        return finish(operation, status)

    def wait(self, status: Status | None = None) -> Any:
        """Wait; the received object, if it was a receive of one."""
        if self._operation is not None and self._runtime is not None:
            self._runtime.wait((self._operation,))
        return self._complete(status)

    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """(whether it is done, the received object)."""
        if not _test((self,), any_done):
            return False, None
        return True, self._complete(status)

    def get_status(self, status: Status | None = None) -> bool:
        """Whether it is done; the request stays."""
        return bool(_test((self,), any_done))

    def Wait(self, status: Status | None = None) -> bool:
        """Wait; True."""
        self.wait(status)
        return True

    def Test(self, status: Status | None = None) -> bool:
        """Whether it is done; if so it is null now."""
        return self.test(status)[0]

    def Get_status(self, status: Status | None = None) -> bool:
        """Whether it is done; the request stays."""
        return self.get_status(status)

    def Cancel(self) -> None:
        """Withdraw a receive that nothing has matched; anything else goes on to its end."""
        if self._operation is None or self._runtime is None:
            raise MPIException(ERR_REQUEST, "a null request cannot be cancelled")
        self._runtime.cancel(self._operation)

    cancel = Cancel

    def Free(self) -> None:
        """Let the communication go on without being asked for."""
        if self._operation is None:
            raise MPIException(ERR_REQUEST, "a null request cannot be freed")
        self._operation = self._finish = None

    free = Free

    # --- several -------------------------------------------------------------

    @classmethod
    def waitall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> list[Any]:
        """Wait for all; their objects."""
        _wait(requests, all=True)
        return _complete_each(requests, range(len(requests)), statuses)

    @classmethod
    def testall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> tuple[bool, list[Any] | None]:
        """(whether all are done, their objects)."""
        if not _test(requests, _all_done):
            return False, None
        return True, _complete_each(requests, range(len(requests)), statuses)

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """(which is done, its object); (UNDEFINED, None) if all are null."""
        if not any(requests):
            if status is not None:
                status._fill_empty()
            return UNDEFINED, None
        _wait(requests, all=False)
        index = _done(requests)[0]
        return index, requests[index]._complete(status)

    @classmethod
    def testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool, Any]:
        """(which is done, whether one is, its object)."""
        if not any(requests):
            if status is not None:
                status._fill_empty()
            return UNDEFINED, True, None
        if not _test(requests, any_done):
            return UNDEFINED, False, None
        index = _done(requests)[0]
        return index, True, requests[index]._complete(status)

    @classmethod
    def waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """(which are done, their objects), at least one; (None, None) if all are null."""
        if not any(requests):
            return None, None
        _wait(requests, all=False)
        which = _done(requests)
        return which, _complete_each(requests, which, statuses)

    @classmethod
    def testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """(which are done, their objects), maybe none; (None, None) if all are null."""
        if not any(requests):
            return None, None
        if not _test(requests, any_done):
            return [], []
        which = _done(requests)
        return which, _complete_each(requests, which, statuses)

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Wait for all; True."""
        cls.waitall(requests, statuses)
        return True

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> bool:
        """Whether all are done; if so they are null now."""
        return cls.testall(requests, statuses)[0]

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Status | None = None) -> int:
        """Which is done; UNDEFINED if all are null."""
        return cls.waitany(requests, status)[0]

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        """(which is done, whether one is)."""
        return cls.testany(requests, status)[:2]

    @classmethod
    def Waitsome(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> list[int] | None:
        """Which are done, at least one; None if all are null."""
        return cls.waitsome(requests, statuses)[0]

    @classmethod
    def Testsome(cls, requests: Sequence[Request], statuses: list[Status] | None = None) -> list[int] | None:
        """Which are done, maybe none; None if all are null."""
        return cls.testsome(requests, statuses)[0]


def _operations(requests: Sequence[Request]) -> tuple[Runtime | None, list[Operation]]:
    live = [request for request in requests if request._operation is not None]
    runtime = live[0]._runtime if live else None
    return runtime, [request._operation for request in live if request._operation is not None]


def _wait(requests: Sequence[Request], all: bool) -> None:
    runtime, operations = _operations(requests)
    if runtime is not None:
        runtime.wait(operations, all=all)


def _test(requests: Sequence[Request], over: Callable[[Sequence[Operation]], bool]) -> bool:
    runtime, operations = _operations(requests)
    if runtime is None or over(operations):
        return True
    runtime.progress()
    return over(operations)


def _all_done(operations: Sequence[Operation]) -> bool:
    return all(operation.done for operation in operations)


def _done(requests: Sequence[Request]) -> list[int]:
    return [i for i, request in enumerate(requests) if request._operation is not None and request._operation.done]


def _complete_each(requests: Sequence[Request], which: Sequence[int], statuses: list[Status] | None) -> list[Any]:
    """Complete the requests `which`; every one of them is, even if one has failed."""
    results, failed = [], None
    for place, index in enumerate(which):
        if statuses is not None and place >= len(statuses):
            statuses.append(Status())
        status = Status() if statuses is None else statuses[place]
        try:
            results.append(requests[index]._complete(status))
        except MPIException as error:
            status.Set_error(error.Get_error_code())
            failed = failed or error
    if failed is not None:
        if len(which) == 1:
            raise failed
        raise MPIException(ERR_IN_STATUS, f"one of {len(which)} requests failed: {failed}") from failed
    return results


REQUEST_NULL = Request()

__all__ = ["REQUEST_NULL", "Request"]
