"""The buffer protocol for a class of handles: `memoryview(handle)`.

Python 3.12 calls `__buffer__`. Before that only a type written in C has a buffer, so the class
derives from NumPy's array there, whose memory is set when a handle is made, and whose other
behaviour is taken back.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

E = TypeVar("E", bound="Exporting")

if TYPE_CHECKING or sys.version_info >= (3, 12):

    class Exporting:
        """A handle with memory; `_exported` returns it."""

        @classmethod
        def _bare(cls: type[E], memory: memoryview) -> E:
            """Make an instance without calling a constructor."""
            return object.__new__(cls)

        def _exported(self) -> memoryview:
            raise NotImplementedError

        def __buffer__(self, flags: int, /) -> memoryview:
            return self._exported()

else:
    import numpy as np

    class Exporting(np.ndarray):
        """A handle with memory: an array of its bytes that does not behave as one."""

        @classmethod
        def _bare(cls: type[E], memory: memoryview) -> E:
            """Make an instance over memory."""
            return np.ndarray.__new__(cls, (memory.nbytes,), np.uint8, memory)

        def __reduce_ex__(self, protocol: int, /) -> object:
            return self.__reduce__()

        def __copy__(self) -> object:
            reduced: object = self.__reduce__()
            if isinstance(reduced, str):
                return self  # a constant, by its name
            assert isinstance(reduced, tuple)
            kind, arguments = reduced
            return kind(*arguments)

        def __deepcopy__(self, memo: object, /) -> object:
            return self.__copy__()

        def _unordered(self, other: object, /) -> bool:
            return NotImplemented

        __lt__ = __le__ = __gt__ = __ge__ = _unordered  # type: ignore[assignment]

        def __len__(self) -> NoReturn:
            raise TypeError(f"object of type {type(self).__name__!r} has no len()")

        def __iter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__!r} object is not iterable")

        def __getitem__(self, item: object) -> NoReturn:
            raise TypeError(f"{type(self).__name__!r} object is not subscriptable")

        def __setitem__(self, item: object, value: object) -> NoReturn:
            raise TypeError(f"{type(self).__name__!r} object does not support item assignment")

        def __repr__(self) -> str:
            return f"<serverless_mpi.MPI.{type(self).__name__} object at {id(self):#x}>"

        __str__ = __repr__
