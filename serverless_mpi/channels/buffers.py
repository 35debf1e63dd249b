"""Memory for received frames."""

from __future__ import annotations

NUMPY_BYTES = 64 << 10  # from here on clearing costs more than making a NumPy array


def uninitialized(nbytes: int) -> memoryview:
    """Return a writable buffer of bytes; its content is undefined.

    Parameters
    ----------
    nbytes
        Length of the buffer in bytes.
    """
    if nbytes < NUMPY_BYTES:
        return memoryview(bytearray(nbytes))
    import numpy as np  # the launcher loads channels too, and would wait for NumPy 0.1 s

    return np.empty(nbytes, np.uint8).data.cast("B")
