"""Constants of files, and what the calls of a file and the state of an open one both name."""

from __future__ import annotations

import enum
from typing import Any

MODE_CREATE, MODE_RDONLY, MODE_WRONLY, MODE_RDWR, MODE_DELETE_ON_CLOSE = 1, 2, 4, 8, 16
MODE_UNIQUE_OPEN, MODE_EXCL, MODE_APPEND, MODE_SEQUENTIAL = 32, 64, 128, 256
SEEK_SET, SEEK_CUR, SEEK_END = 600, 602, 604
DISPLACEMENT_CURRENT = DISP_CUR = -54278278


class Way(enum.Enum):
    """Where an access gets its offset from."""

    OFFSET = "explicit offset"
    OWN = "individual file pointer"
    SHARED = "shared file pointer"
    ORDERED = "shared file pointer in rank order"


# data representations of the program: name -> (read_fn, write_fn, extent_fn)
REPRESENTATIONS: dict[str, tuple[Any, Any, Any]] = {}

__all__ = [name for name in list(globals()) if name.startswith(("MODE_", "SEEK_", "DISP"))]
