"""Writes the C source of the cffi module from its declarations. CMake runs it; nothing is compiled
here.

Usage: emit_cffi.py spdnn.cdef.txt out.c
"""

import sys
from pathlib import Path

from cffi import FFI


def main(declarations: str, out: str) -> None:
    """Reads `declarations` (C, what Python sees of spdnn.h) and writes an API-mode module's source
    to `out`.
    """
    ffi = FFI()
    ffi.cdef(Path(declarations).read_text())
    ffi.set_source("serverless_mpi._spdnn", '#include "spdnn.h"')
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
