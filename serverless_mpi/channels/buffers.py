"""Memory for what is received."""

from __future__ import annotations

import numpy as np

WORTH_BYTES = 64 << 10


def space(nbytes: int) -> memoryview:
    """Writable bytes whose content nobody has paid to clear, where that is worth it."""
    if nbytes < WORTH_BYTES:
        return memoryview(bytearray(nbytes))
    return np.empty(nbytes, np.uint8).data.cast("B")
