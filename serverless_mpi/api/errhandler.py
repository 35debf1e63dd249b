"""Error handlers, and error classes and codes that programs add.

By default an error is raised. Setting a handler wraps the public methods of a communicator's or
session's handle, so calls of handles without one cost nothing more.

References
----------
MPI 4.1, sections 9.3 and 9.5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Protocol

from serverless_mpi.api.attributes import reported
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_ERRHANDLER,
    ERR_LASTCODE,
    ERR_OTHER,
    ERROR_STRINGS,
    MPIException,
)
from serverless_mpi.runtime import get_runtime
from serverless_mpi.signals import shield

MOST_HANDLERS = 32  # of one kind at a time: mpi4py's limit, which programs may count on
_made: dict[type, int] = {}
_handled: str = "_smpi_handled"


class _State:
    """State of a handler. function: the program's; fatal: ends the job; kind: object it is for."""

    def __init__(
        self,
        function: Callable[[Any, int], None] | None = None,
        fatal: bool = False,
        kind: type | None = None,
    ) -> None:
        self.function, self.fatal, self.kind = function, fatal, kind
        self.constant: Errhandler | None = None


class Errhandler(Handle):
    """An error handler (MPI 4.1, section 9.3)."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, errhandler: Errhandler | None = None) -> Errhandler:
        return cls._copy(errhandler)  # type: ignore[no-any-return]

    def Free(self) -> None:
        """Make the handle null; objects that have the handler keep it."""
        if self._ob is None:
            raise MPIException(ERR_ERRHANDLER, "the error handler is null")
        if self is self._constant():
            raise MPIException(ERR_ERRHANDLER, f"{self._label} is predefined and cannot be freed")
        state, self._ob = self._ob, None
        if state.kind is not None:
            _made[state.kind] = _made.get(state.kind, 1) - 1
            state.kind = None
            forget(state)

    def free(self) -> None:
        """Free the handler, unless it is null or predefined."""
        if self._ob is not None and self is not self._constant():
            self.Free()


ERRHANDLER_NULL: Errhandler = name_constant(Errhandler(), "ERRHANDLER_NULL")
ERRORS_RETURN: Errhandler = name_constant(handle_of(Errhandler, _State()), "ERRORS_RETURN")
ERRORS_ABORT: Errhandler = name_constant(handle_of(Errhandler, _State(fatal=True)), "ERRORS_ABORT")
ERRORS_ARE_FATAL: Errhandler = name_constant(
    handle_of(Errhandler, _State(fatal=True)), "ERRORS_ARE_FATAL"
)


class Handled(Protocol):
    """State with an error handler: the state of one, or None for ERRORS_RETURN."""

    errhandler: Any


class Guarded:
    """An object with an error handler, which is kept on its state `_ob`.

    `_check_live` raises for a null handle. `_guarded` is overridden where a null handle has an
    error handler, too.
    """

    _family: ClassVar[tuple[type[Any], ...]]
    _ob: Any

    def _check_live(self) -> None:
        raise NotImplementedError

    @property
    def _guarded(self) -> Handled:
        """The state with the attribute `errhandler`."""
        self._check_live()
        state: Handled = self._ob
        return state

    @classmethod
    def Create_errhandler(cls, errhandler_fn: Callable[[Any, int], None]) -> Errhandler:
        """Make an error handler.

        Parameters
        ----------
        errhandler_fn
            Called as errhandler_fn(object, error code) before the failing call raises.

        Raises
        ------
        RuntimeError
            `MOST_HANDLERS` handlers of this kind exist already.

        References
        ----------
        MPI 4.1, section 9.3.
        """
        kind = cls._family[0]
        if not callable(errhandler_fn):
            raise TypeError("an error handler is made of a function")
        if _made.get(kind, 0) >= MOST_HANDLERS:
            raise RuntimeError(
                f"{MOST_HANDLERS} error handlers of a {kind.__name__} exist; free one first"
            )
        _made[kind] = _made.get(kind, 0) + 1
        return handle_of(Errhandler, _State(errhandler_fn, kind=kind))

    def Get_errhandler(self) -> Errhandler:
        """Return a handle to the object's error handler."""
        state = self._guarded
        return handle_of(Errhandler, getattr(state, "errhandler", None) or ERRORS_RETURN._ob)

    def Set_errhandler(self, errhandler: Errhandler) -> None:
        """Set the object's error handler.

        Parameters
        ----------
        errhandler
            Error handler, which must not be null.

        Raises
        ------
        MPIException
            ERR_ERRHANDLER: the handler is null.

        References
        ----------
        MPI 4.1, section 9.3.
        """
        state = self._guarded
        if not errhandler:
            raise MPIException(ERR_ERRHANDLER, "the error handler is null")
        state.errhandler = errhandler._ob
        _arm(self, errhandler._ob)

    def Call_errhandler(self, errorcode: int) -> None:
        """Call the error handler with an error; ERRORS_RETURN does nothing.

        Parameters
        ----------
        errorcode
            Error code that the handler is called with.
        """
        state = self._guarded
        _call(getattr(state, "errhandler", None) or ERRORS_RETURN._ob, self, errorcode, None)


def _call(handler: _State, obj: Any, errorcode: int, error: BaseException | None) -> None:
    """Handle an error: end the job, or call the function of the program."""
    if handler.fatal:
        text = str(error) if error is not None else MPIException(errorcode).Get_error_string()
        get_runtime().abort(errorcode or 1, f"fatal MPI error: {text}")
    if handler.function is not None:
        reported(handler.function, obj, errorcode)


call_handler = _call


def _arm(obj: Any, handler: _State) -> None:
    """Wrap the public methods of `obj`, so that the handler is called; ERRORS_RETURN unwraps."""
    kind = type(obj)
    names = [
        name
        for name in dir(kind)
        if name[0] != "_" and name not in dir(Guarded) and callable(getattr(kind, name))
    ]
    for name in names:
        obj.__dict__.pop(name, None)
    if not handler.fatal and handler.function is None:
        return
    for name in names:
        if not isinstance(kind.__dict__.get(name), (classmethod, staticmethod)):
            obj.__dict__[name] = _guard(getattr(obj, name), obj, handler)


def _guard(call: Callable[..., Any], obj: Any, handler: _State) -> Callable[..., Any]:
    @functools.wraps(call)
    def guarded(*arguments: Any, **more: Any) -> Any:
        shield.enter()
        try:
            return call(*arguments, **more)
        except MPIException as error:
            if not getattr(
                error, _handled, False
            ):  # calls are made of calls: the innermost one hands it over
                setattr(error, _handled, True)
                _call(handler, obj, error.Get_error_code(), error)
            raise
        finally:
            shield.leave()

    return guarded


# --- classes and codes of the program -----------------------------------------

_codes = MPIException.added_classes  # code -> its class; a class is a code of itself
_strings = MPIException.added_strings
_last = ERR_LASTCODE


def last_used_code() -> int:
    """Return the largest error code that exists (LASTUSEDCODE)."""
    return _last


def Add_error_class() -> int:
    """Add an error class and return it."""
    global _last
    _last += 1
    _codes[_last] = _last
    _strings[_last] = ""
    return _last


def Add_error_code(errorclass: int) -> int:
    """Add an error code to a class and return it.

    Parameters
    ----------
    errorclass
        Error class, of MPI or added by the program.

    Raises
    ------
    MPIException
        ERR_OTHER: `errorclass` does not exist.

    References
    ----------
    MPI 4.1, section 9.5.
    """
    global _last
    if not _known(errorclass):
        _refuse(errorclass, "is not an error class")
    _last += 1
    _codes[_last] = errorclass
    _strings[_last] = ""
    return _last


def Add_error_string(errorcode: int, string: str) -> None:
    """Set the text of an error code or class that the program added.

    Parameters
    ----------
    errorcode
        Error code or class that the program added.
    string
        Text; it replaces an earlier one.

    Raises
    ------
    MPIException
        ERR_ARG: `errorcode` does not exist. ERR_OTHER: it was not added by the program.

    References
    ----------
    MPI 4.1, section 9.5.
    """
    if errorcode not in _codes and not _known(errorcode):
        raise MPIException(ERR_ARG, f"{errorcode} is not an error code")
    if errorcode not in _codes:
        _refuse(errorcode, "was not added by the program")
    _strings[errorcode] = string


def Remove_error_class(errorclass: int) -> None:
    """Remove an error class that has no codes and no text.

    Parameters
    ----------
    errorclass
        Error class that the program added.

    Raises
    ------
    MPIException
        ERR_OTHER: `errorclass` was not added by the program, or still has codes or a text.

    References
    ----------
    MPI 4.1, section 9.5.
    """
    if _codes.get(errorclass) != errorclass:
        _refuse(errorclass, "is not an error class of the program")
    if any(code != errorclass and of == errorclass for code, of in _codes.items()):
        _refuse(errorclass, "still has error codes")
    _remove(errorclass)


def Remove_error_code(errorcode: int) -> None:
    """Remove an error code that has no text.

    Parameters
    ----------
    errorcode
        Error code that the program added; not a class.

    Raises
    ------
    MPIException
        ERR_OTHER: `errorcode` was not added by the program, is a class, or still has a text.

    References
    ----------
    MPI 4.1, section 9.5.
    """
    if errorcode not in _codes or _codes[errorcode] == errorcode:
        _refuse(errorcode, "is not an error code of the program")
    _remove(errorcode)


def Remove_error_string(errorcode: int) -> None:
    """Remove the text of an error code or class.

    Parameters
    ----------
    errorcode
        Error code or class that the program added.

    Raises
    ------
    MPIException
        ERR_ARG: `errorcode` does not exist. ERR_OTHER: it was not added by the program.

    References
    ----------
    MPI 4.1, section 9.5.
    """
    if errorcode not in _codes and not _known(errorcode):
        raise MPIException(ERR_ARG, f"{errorcode} is not an error code")
    if errorcode not in _codes:
        _refuse(errorcode, "was not added by the program")
    _strings[errorcode] = ""


def _known(errorcode: int) -> bool:
    """Whether a code exists, in MPI or added by the program."""
    return errorcode in _codes or errorcode in ERROR_STRINGS


def _remove(errorcode: int) -> None:
    """Remove a code or class that has no text."""
    if _strings.get(errorcode):
        _refuse(errorcode, "still has a text")
    del _codes[errorcode]
    _strings.pop(errorcode, None)


def _refuse(errorcode: int, why: str) -> NoReturn:
    """Raise ERR_OTHER for a code."""
    raise MPIException(ERR_OTHER, f"error code {errorcode} {why}")


def Get_error_class(errorcode: int) -> int:
    """Return the class of an error code.

    Parameters
    ----------
    errorcode
        Error code, of MPI or added by the program.
    """
    return MPIException(errorcode).Get_error_class()


def Get_error_string(errorcode: int) -> str:
    """Return the text of an error code.

    Parameters
    ----------
    errorcode
        Error code or class, of MPI or added by the program.
    """
    return MPIException(errorcode).Get_error_string()


__all__ = [
    "Add_error_class",
    "Add_error_code",
    "Add_error_string",
    "ERRHANDLER_NULL",
    "ERRORS_ABORT",
    "ERRORS_ARE_FATAL",
    "ERRORS_RETURN",
    "Errhandler",
    "Get_error_class",
    "Get_error_string",
    "Remove_error_class",
    "Remove_error_code",
    "Remove_error_string",
]
