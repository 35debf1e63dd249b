"""Memory at an address, and the byte order of format codes; below memory.py and foreign.py."""

from __future__ import annotations

import ctypes
import sys

_NATIVE = "<" if sys.byteorder == "little" else ">"
_NO_BYTES = memoryview(bytearray())


def at_address(address: int, nbytes: int) -> memoryview:
    """Return a view of memory at an address, which must stay valid while the view is used.

    Parameters
    ----------
    address
        Of the first byte.
    nbytes
        Length of the view; with 0 the address does not matter.
    """
    if not nbytes:
        return _NO_BYTES
    return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")


def native(code: str) -> str:
    """Return a format code without its byte order.

    Parameters
    ----------
    code
        Format of one number, as in the struct module; not empty.

    Raises
    ------
    BufferError
        The byte order is not this machine's.
    """
    if code[0] in "@=" or code[0] == _NATIVE:
        return code[1:]
    if code[0] in "<>":
        raise BufferError(
            f"numbers of format {code!r} are not in this machine's byte order;"
            " give a datatype explicitly"
        )
    return code
