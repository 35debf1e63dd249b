"""Attributes: values that programs cache on communicators and datatypes.

A key has two functions of the program: one is called when the object is duplicated, the other when
the value is deleted. They are called only here. The traceback of an exception in one is printed,
and the MPI call that caused it raises.

References
----------
MPI 4.1, section 7.7.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from serverless_mpi.errors import ERR_KEYVAL, ERR_OTHER, MPIException

KEYVAL_INVALID = -1
_FIRST = 100  # below are the keys that MPI defines


@dataclass
class _Key:
    """A key: the class it is for, and the functions of the program."""

    kind: type
    copy: Callable[[Any, int, Any], Any] | bool | None
    delete: Callable[[Any, int, Any], None] | None
    freed: bool = False


_keys: dict[int, _Key] = {}
_numbers = itertools.count(_FIRST)


def reported(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the program and return its result.

    Parameters
    ----------
    call
        The function.
    arguments
        Its positional arguments.

    Raises
    ------
    MPIException
        The function raised: with its own code if that was an MPI.Exception, else ERR_OTHER. The
        traceback is printed to standard error.
    """
    try:
        return call(*arguments)
    except MPIException as error:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        raise MPIException(error.Get_error_code(), "a callback of the program raised it") from error
    except Exception as error:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        raise MPIException(ERR_OTHER, f"a callback of the program failed: {error!r}") from error


def _key(keyval: int, kind: type) -> _Key:
    """The key of a number; ERR_KEYVAL if it is not one for objects of `kind`."""
    key = _keys.get(keyval)
    if key is None or key.kind is not kind:
        raise MPIException(ERR_KEYVAL, f"{keyval} is not a key for attributes of a {kind.__name__}")
    return key


class Attributed:
    """An object with cached attributes. `_attribute_table` returns the table of a live object."""

    _family: ClassVar[tuple[type[Any], ...]]

    def _attribute_table(self) -> dict[int, Any]:
        raise NotImplementedError

    @classmethod
    def Create_keyval(
        cls,
        copy_fn: Callable[[Any, int, Any], Any] | None = None,
        delete_fn: Callable[[Any, int, Any], None] | None = None,
        nopython: bool = False,
    ) -> int:
        """Make a key.

        Parameters
        ----------
        copy_fn
            copy_fn(object, keyval, value) returns the value for a duplicate of the object, or
            NotImplemented for none. True copies the reference; False and None copy nothing.
        delete_fn
            delete_fn(object, keyval, value) is called when the value is deleted.
        nopython
            Not used: values are Python objects.

        References
        ----------
        MPI 4.1, section 7.7.2.
        """
        number = next(_numbers)
        _keys[number] = _Key(cls._family[0], copy_fn, delete_fn or None)
        return number

    @classmethod
    def Free_keyval(cls, keyval: int) -> int:
        """Free a key; values cached under it stay.

        Parameters
        ----------
        keyval
            A key of `Create_keyval` of the same class.

        Returns
        -------
        int
            KEYVAL_INVALID.

        Raises
        ------
        MPIException
            ERR_KEYVAL: not a key for objects of this class.

        References
        ----------
        MPI 4.1, section 7.7.
        """
        _key(keyval, cls._family[0]).freed = True
        return KEYVAL_INVALID

    def Get_attr(self, keyval: int) -> Any:
        """Return the value cached under a key, or None.

        Parameters
        ----------
        keyval
            A key of `Create_keyval` of the same class; it may have been freed.

        Returns
        -------
        object or None
            The cached object itself, not a copy.

        Raises
        ------
        MPIException
            ERR_KEYVAL: not a key for objects of this class.

        References
        ----------
        MPI 4.1, section 7.7.
        """
        table = self._attribute_table()
        _key(keyval, self._family[0])
        return table.get(keyval)

    def Set_attr(self, keyval: int, attrval: Any) -> None:
        """Cache a value under a key; an earlier value is deleted first.

        Parameters
        ----------
        keyval
            A key of `Create_keyval` of the same class, not freed.
        attrval
            Any object; a reference is kept until the value is deleted.

        Raises
        ------
        MPIException
            ERR_KEYVAL: not a key for objects of this class, or freed. If the delete function fails:
            its code if it raised MPI.Exception, else ERR_OTHER; then neither value is cached.

        References
        ----------
        MPI 4.1, section 7.7.
        """
        table = self._attribute_table()
        if _key(keyval, self._family[0]).freed:
            raise MPIException(ERR_KEYVAL, f"key {keyval} has been freed")
        if keyval in table:
            self._delete(table, keyval)
        table[keyval] = attrval

    def Delete_attr(self, keyval: int) -> None:
        """Delete the value cached under a key; does nothing if there is none.

        Parameters
        ----------
        keyval
            A key of `Create_keyval` of the same class; it may have been freed.

        Raises
        ------
        MPIException
            ERR_KEYVAL: not a key for objects of this class. If the delete function fails: its code
            if it raised MPI.Exception, else ERR_OTHER; the value is deleted nevertheless.

        References
        ----------
        MPI 4.1, section 7.7.
        """
        table = self._attribute_table()
        _key(keyval, self._family[0])
        if keyval in table:
            self._delete(table, keyval)

    def _delete(self, table: dict[int, Any], keyval: int) -> None:
        """Delete a value, even if the program's delete function fails."""
        delete = _keys[keyval].delete
        try:
            if delete is not None:
                reported(delete, self, keyval, table[keyval])
        finally:
            table.pop(keyval, None)

    def _copy_attributes(self, new: Attributed) -> None:
        """Copy the values to a duplicate, by the copy functions of their keys."""
        table = self._attribute_table()
        if not table:
            return
        other = new._attribute_table()
        for keyval, value in list(table.items()):
            copy = _keys[keyval].copy
            if copy is True:
                other[keyval] = value
            elif copy:
                made = reported(copy, self, keyval, value)
                if made is not NotImplemented:
                    other[keyval] = made

    def _delete_attributes(self) -> None:
        """Delete all values, the last first, because the object is freed."""
        table = self._attribute_table()
        for keyval in reversed(list(table)):
            self._delete(table, keyval)


__all__ = ["KEYVAL_INVALID"]
