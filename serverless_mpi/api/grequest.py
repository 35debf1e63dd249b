"""Generalized requests: operations of the program that are waited for (MPI 4.1, section 13.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serverless_mpi.api.attributes import reported
from serverless_mpi.api.request import Pending, Request
from serverless_mpi.api.status import Status, fill_empty_status
from serverless_mpi.errors import ERR_REQUEST, MPIException
from serverless_mpi.runtime import get_runtime
from serverless_mpi.runtime.operation import Operation


class _General(Pending):
    """The program's functions: query fills the status, free is called last, cancel cancels."""

    __slots__ = ("query", "free", "on_cancel", "args", "kwargs")

    def __init__(
        self, query: Any, free: Any, cancel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(get_runtime(), Operation(), self._take)
        self.query, self.free, self.on_cancel, self.args, self.kwargs = (
            query,
            free,
            cancel,
            args,
            kwargs,
        )

    def _call(self, function: Callable[..., Any] | None, *first: Any) -> None:
        if function is not None:
            reported(lambda: function(*first, *self.args, **self.kwargs))

    def status_of(self, operation: Operation, status: Status) -> None:
        fill_empty_status(status)
        self._call(self.query, status)

    def _take(self, operation: Operation, status: Status) -> Any:
        try:
            self.status_of(operation, status)
        finally:
            self._call(self.free)
        return operation.result

    def cancel(self) -> None:
        assert self.operation is not None
        self._call(self.on_cancel, self.operation.done)


class Grequest(Request):
    """A generalized request: an operation of the program."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, request: Request | None = None) -> Grequest:
        if request and not isinstance(request, Grequest):
            raise TypeError(f"a Grequest is needed, not {type(request).__name__}")
        return cls._copy(request)  # type: ignore[no-any-return]

    @classmethod
    def Start(
        cls,
        query_fn: Callable[..., None] | None = None,
        free_fn: Callable[..., None] | None = None,
        cancel_fn: Callable[..., None] | None = None,
        args: tuple[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Grequest:
        """Start a generalized request.

        query_fn(status, *args, **kwargs) fills the status, free_fn(*args, **kwargs) is called at
        the end, cancel_fn(completed, *args, **kwargs) when it is cancelled.

        Parameters
        ----------
        query_fn
            Called to fill the status; None for nothing.
        free_fn
            Called at the end; None for nothing.
        cancel_fn
            Called when the request is cancelled; None for nothing.
        args, kwargs
            Further arguments of the three functions.

        References
        ----------
        MPI 4.1, section 13.2.
        """
        general = _General(query_fn, free_fn, cancel_fn, tuple(args or ()), dict(kwargs or {}))
        request: Grequest = cls._of_state(general)
        return request

    def Complete(self) -> None:
        """Mark the request as done."""
        self.complete()

    def complete(self, obj: Any = None) -> None:
        """Mark the request as done; `wait` returns `obj`.

        Parameters
        ----------
        obj
            Result of the request.

        Raises
        ------
        MPIException
            ERR_REQUEST: the request is null or over.
        """
        pending = self._ob
        if not isinstance(pending, _General) or pending.operation is None:
            raise MPIException(ERR_REQUEST, "the request is null or over")
        pending.operation.result = obj
        pending.operation.release()
        assert pending.runtime is not None
        pending.runtime.poke()


__all__ = ["Grequest"]
