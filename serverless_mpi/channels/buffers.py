"""Memory for received frames."""

from __future__ import annotations

import numpy as np

NUMPY_BYTES = 64 << 10  # from here on clearing costs more than making a NumPy array


def uninitialized(nbytes: int) -> memoryview:
    """Return a writable buffer of bytes; its content is undefined."""
    if nbytes < NUMPY_BYTES:
        return memoryview(bytearray(nbytes))
    return np.empty(nbytes, np.uint8).data.cast("B")
