"""Info: tables of text, which give hints to calls and state facts about the process.

A null handle behaves as an empty mapping and cannot be changed, as in mpi4py.

References
----------
MPI 4.1, chapter 10.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_INFO,
    ERR_INFO_KEY,
    ERR_INFO_NOKEY,
    ERR_INFO_VALUE,
    MPIException,
)

MAX_INFO_KEY = 255
MAX_INFO_VAL = 1024

_Items = Any  # Info | Mapping[str, str] | Iterable[tuple[str, str]]


class _State:
    """The table that all handles to one info share."""

    def __init__(self, items: Mapping[str, str] | None = None) -> None:
        self.items: dict[str, str] = dict(items or {})
        self.constant: Info | None = None


class Info(Handle):
    """A table of text, which is also a mapping: `info["key"] = "value"`."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, info: Info | None = None) -> Info:
        return cls._copy(info)  # type: ignore[no-any-return]

    def _table(self) -> dict[str, str]:
        """The table; ERR_ARG for a null handle."""
        if self._ob is None:
            raise MPIException(ERR_ARG, "the info is null or has been freed")
        return self._ob.items  # type: ignore[no-any-return]

    @classmethod
    def Create(cls, items: _Items = None) -> Info:
        """Make a table with `items` in it.

        Parameters
        ----------
        items
            Mapping, or iterable of (key, value) pairs; None for an empty table.

        Raises
        ------
        MPIException
            ERR_INFO_KEY: a key is empty or too long. ERR_INFO_VALUE: a value is too long.
        """
        self = cls._of_state(_State())
        if items is not None:
            self.update(items)
        return self  # type: ignore[no-any-return]

    @classmethod
    def Create_env(cls, args: Sequence[str] | None = None) -> Info:
        """Make a table with the items of INFO_ENV.

        Parameters
        ----------
        args
            Not used.
        """
        return cls._of_state(_State(INFO_ENV._table()))  # type: ignore[no-any-return]

    def Free(self) -> None:
        """Free the table; this handle becomes null."""
        self._table()
        if self is self._constant():
            raise MPIException(ERR_INFO, f"{self._label} is predefined and cannot be freed")
        if self._constant() is None:
            forget(self._ob)
        self._ob = None

    def Dup(self) -> Info:
        """Return a copy."""
        return type(self)._of_state(_State(self._table()))  # type: ignore[no-any-return]

    def Get(self, key: str) -> str | None:
        """Return the value of a key, or None.

        Parameters
        ----------
        key
            Key to look up.
        """
        return self._table().get(_check_key(key))

    def Set(self, key: str, value: str) -> None:
        """Set the value of a key.

        Parameters
        ----------
        key, value
            Key and its new value; an earlier value is replaced.

        Raises
        ------
        MPIException
            ERR_INFO_KEY, ERR_INFO_VALUE: the key or the value is too long.
        """
        table = self._table()
        if len(value) > MAX_INFO_VAL - 1:
            raise MPIException(
                ERR_INFO_VALUE,
                f"a value of {len(value)} characters is longer than {MAX_INFO_VAL - 1}",
            )
        table[_check_key(key)] = value

    def Delete(self, key: str) -> None:
        """Delete a key; ERR_INFO_NOKEY if it does not exist.

        Parameters
        ----------
        key
            Key to delete.
        """
        table = self._table()
        if _check_key(key) not in table:
            raise MPIException(ERR_INFO_NOKEY, f"the info has no key {key!r}")
        del table[key]

    def Get_nkeys(self) -> int:
        """Return the number of keys."""
        return len(self._table())

    def Get_nthkey(self, n: int) -> str:
        """Return the n-th key.

        Parameters
        ----------
        n
            Number of the key, from 0, in the order of insertion.

        Raises
        ------
        MPIException
            ERR_ARG: there is no such key.
        """
        table = self._table()
        if not 0 <= n < len(table):
            raise MPIException(ERR_ARG, f"key number {n} is outside 0..{len(table) - 1}")
        return list(table)[n]

    # --- as a mapping; a null one is empty -------------------------------------

    def _own(self) -> dict[str, str]:
        """The table; an empty one for a null handle."""
        return {} if self._ob is None else self._table()

    def _writable(self, what: object) -> dict[str, str]:
        """The table; KeyError for a null handle."""
        if self._ob is None:
            raise KeyError(what)
        return self._table()

    def __len__(self) -> int:
        return len(self._own())

    def __contains__(self, value: object) -> bool:
        return value in self._own()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, item: str) -> str:
        return self._own()[item]

    def __setitem__(self, item: str, value: str) -> None:
        self._writable(item)
        self.Set(item, value)

    def __delitem__(self, item: str) -> None:
        del self._writable(item)[item]

    def get(self, key: str, default: str | None = None) -> str | None:
        """Return the value of a key, or `default`.

        Parameters
        ----------
        key
            Key to look up; a null handle has none.
        default
            Returned if the key does not exist.
        """
        return self._own().get(key, default)

    def keys(self) -> list[str]:
        """Return the keys."""
        return list(self._own())

    def values(self) -> list[str]:
        """Return the values."""
        return list(self._own().values())

    def items(self) -> list[tuple[str, str]]:
        """Return the pairs of key and value."""
        return list(self._own().items())

    def update(self, items: _Items = (), **kwds: str) -> None:
        """Set the values of `items` and of keyword arguments.

        Parameters
        ----------
        items
            Mapping, or iterable of (key, value) pairs.

        Raises
        ------
        KeyError
            The handle is null.
        MPIException
            ERR_INFO_KEY: a key is empty or too long. ERR_INFO_VALUE: a value is too long.
        """
        self._writable("an info that is null cannot be set")
        pairs: Iterable[tuple[str, str]] = items.items() if hasattr(items, "items") else items
        for key, value in (*pairs, *kwds.items()):
            self.Set(key, value)

    def pop(self, key: str, *default: str) -> str:
        """Delete a key and return its value, or `default`.

        Parameters
        ----------
        key
            Key to delete.

        Raises
        ------
        KeyError
            The key does not exist and no default is given.
        """
        return self._own().pop(key, *default)

    def popitem(self) -> tuple[str, str]:
        """Delete the last key and return it with its value."""
        return self._writable("popitem").popitem()

    def copy(self) -> Info:
        """Return a copy; of a null handle, a null handle."""
        return self.Dup() if self else type(self)()

    def clear(self) -> None:
        """Delete all keys."""
        self._own().clear()

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._constant() is not None:
            return super().__reduce__()
        return _remake, (type(self), self.items())


def _remake(kind: type[Info], items: list[tuple[str, str]]) -> Info:
    """The info of pickled items."""
    return kind.Create(items)


def _check_key(key: str) -> str:
    """The key; TypeError or ERR_INFO_KEY if it cannot be one."""
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}")
    if not 0 < len(key) <= MAX_INFO_KEY:
        raise MPIException(
            ERR_INFO_KEY, f"a key has 1 to {MAX_INFO_KEY} characters, not {len(key)}"
        )
    return key


def _environment() -> dict[str, str]:
    """Facts about how this process was started (MPI 4.1, section 11.2.1)."""
    facts = {
        "command": sys.executable,
        "thread_level": "MPI_THREAD_MULTIPLE",
        "host": os.uname().nodename,
        "arch": os.uname().machine,
    }
    try:
        facts["wdir"] = os.getcwd()
    except OSError:  # the folder is gone
        pass
    return facts


INFO_NULL: Info = name_constant(Info(), "INFO_NULL")
INFO_ENV: Info = name_constant(handle_of(Info, _State(_environment())), "INFO_ENV")

__all__ = ["INFO_ENV", "INFO_NULL", "Info", "MAX_INFO_KEY", "MAX_INFO_VAL"]
