"""What all MPI objects have in common.

A Python object is a handle: a reference to state that several handles may share, or null. A copy
made by the constructor shares the state; `Free` makes only that handle null. Constants pickle by
name; other objects belong to their process and do not pickle. Handles have numbers, so that they
can be passed through code that takes only integers.

Rule: what other modules of api/ do with a handle is a function of the module that defines the class
(`handle_of`, `name_constant`; `fill_status`, `request_of`, ...). Methods without an underscore are
visible to programs, and error handlers wrap them, so they are mpi4py's alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

_numbers = itertools.count(1)
_states: dict[int, Any] = {}  # number -> state, of those whose number was asked for
_numbered: dict[int, int] = {}  # id of such a state -> its number


def _number(state: Any) -> int:
    """The number of a state; it gets one at the first call."""
    number = _numbered.get(id(state))
    if number is None:
        number = _numbered[id(state)] = next(_numbers)
        _states[number] = state
    return number


def forget(state: Any) -> None:
    """Remove the number of a state that has been freed.

    Parameters
    ----------
    state
        State of the freed object; without effect if it has no number.
    """
    if _numbered:
        _states.pop(_numbered.pop(id(state), 0), None)


H = TypeVar("H", bound="Handle")


class Handle:
    """A reference to MPI state.

    Subclasses check for a null handle themselves and define what freeing does. A state object may
    have an attribute `constant`: the predefined handle (COMM_WORLD, INT, ...) that refers to it.
    """

    # the class within which handles are compared, as isinstance takes it
    _family: ClassVar[tuple[type[Any], ...]]
    _null: ClassVar[Any] = None
    _label: str | None = None  # of a constant: its name in MPI
    _ob: Any

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if Handle in cls.__bases__:
            cls._family = (cls,)

    @classmethod
    def _copy(cls, other: Handle | None) -> Any:
        """Make a handle to what `other` refers to, or a null handle."""
        self = object.__new__(cls)
        if other is None:
            self._ob = None
        elif isinstance(other, cls._family):
            self._ob = other._ob
        else:
            raise TypeError(f"expecting a {cls._family[0].__name__}, not {type(other).__name__}")
        return self

    @classmethod
    def _of_state(cls, state: Any) -> Any:
        """Make a handle to `state`."""
        self = object.__new__(cls)
        self._ob = state
        return self

    def _constant(self) -> Any:
        """The constant that this handle equals, or None."""
        return self._null if self._ob is None else getattr(self._ob, "constant", None)

    def __bool__(self) -> bool:
        return self._ob is not None

    def __eq__(self, other: object) -> bool:
        return self._ob is other._ob if isinstance(other, self._family) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self._ob is not other._ob if isinstance(other, self._family) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equality changes when a handle is freed

    def __reduce__(self) -> str | tuple[Any, ...]:
        constant = self._constant()
        if constant is None:
            raise ValueError(
                f"a {type(self).__name__} belongs to its process and cannot be pickled"
            )
        return str(self._label) if self is constant else (type(self), (constant,))

    def free(self) -> None:
        """Free the object; null and constant handles stay, a copy of a constant becomes null."""
        constant = self._constant()
        if self._ob is None or self is constant:
            return
        if constant is None:
            self.Free()  # type: ignore[attr-defined]
        else:
            self._ob = None

    @property
    def handle(self) -> int:
        """Number of the object; 0 for a null handle."""
        return 0 if self._ob is None else _number(self._ob)

    @classmethod
    def fromhandle(cls, handle: int) -> Any:
        """Return a handle to the object of that number.

        Parameters
        ----------
        handle
            Number from `handle`; 0 for a null handle.

        Raises
        ------
        ValueError
            No object has that number.
        """
        if handle == 0:
            return cls._of_state(None)
        state = _states.get(handle)
        if state is None:
            raise ValueError(f"no object has the handle {handle}")
        return cls._of_state(state)

    def toint(self) -> int:
        """Return the number of the object; 0 for a null handle."""
        return self.handle

    @classmethod
    def fromint(cls, arg: int, /) -> Any:
        """Return a handle to the object of that number.

        Parameters
        ----------
        arg
            Number from `toint`; 0 for a null handle.

        Raises
        ------
        ValueError
            No object has that number.
        """
        return cls.fromhandle(arg)

    def py2f(self) -> int:
        """Return the number of the object, as a Fortran handle."""
        return self.handle

    @classmethod
    def f2py(cls, arg: int) -> Any:
        """Return a handle to the object of that Fortran handle.

        Parameters
        ----------
        arg
            Number from `py2f`; 0 for a null handle.

        Raises
        ------
        ValueError
            No object has that number.
        """
        return cls.fromhandle(arg)


# What the other modules of api/ do with handles. These are functions, because a public method would
# be visible on the objects of a program, where mpi4py has none of that name.


def handle_of(cls: type[H], state: Any) -> H:
    """Make a handle of class `cls` to `state`; a null handle for None.

    Parameters
    ----------
    cls
        Class of the handle.
    state
        State that the handle refers to; None for a null handle.
    """
    handle: H = cls._of_state(state)
    return handle


# State of a handle; None for a null one.
state_of: Callable[[Handle], Any] = attrgetter("_ob")


def name_constant(handle: H, label: str) -> H:
    """Make `handle` the constant `MPI.<label>`, which pickles by that name.

    Parameters
    ----------
    handle
        Handle of the constant; a null handle becomes the null handle of its class.
    label
        Name in `MPI`.

    Returns
    -------
    Handle
        `handle` itself.
    """
    handle._label = label
    if handle._ob is None:
        handle._family[0]._null = handle
    else:
        handle._ob.constant = handle
    return handle


def _sizeof(arg: Any) -> int:
    """Return the bytes of a C variable of the object's kind.

    A handle is as large as a pointer; a status is five 64-bit numbers.
    """
    kind = arg if isinstance(arg, type) else type(arg)
    if issubclass(kind, Handle):
        return 8
    if kind.__name__ == "Status" and hasattr(kind, "tomemory"):
        return 40
    raise TypeError(f"{arg!r} is not an MPI object")


def _addressof(arg: Any) -> int:
    """Return the address of the object."""
    _sizeof(arg)
    return id(arg)


def _handleof(arg: Any) -> int:
    """Return the object's number; 0 for a null handle."""
    _sizeof(arg)
    return arg.handle if isinstance(arg, Handle) else id(arg)


__all__ = ["_addressof", "_handleof", "_sizeof"]
