"""Runs a Python program, and leaves how long it took and what it used.

Every rank runs `python -m serverless_mpi.compare.rank FOLDER [-m] PROGRAM ARGUMENTS...`, under
mpiexec and smpirun alike, so times begin and end at the same places: from the program's first
statement, when NumPy and MPI have been imported, to the end of MPI.  smpirun imports both before it
forks ranks, and a real MPI does not, so their import would not compare.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import sys
import time
from pathlib import Path


def _peak_bytes() -> int:
    """Return the most resident memory of this process; 0 where the system does not state it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0][1]) << 10 if lines else 0


def main(words: list[str]) -> None:
    """Run the program.

    Parameters
    ----------
    words
        The arguments.
    """
    folder, *argv = words
    begun: dict[str, float] = {}

    def leave() -> None:
        if not begun:
            return
        facts = {
            "rank": begun["rank"],
            "seconds": time.perf_counter() - begun["at"],
            "cpu_s": time.process_time() - begun["cpu_s"],
            "peak_bytes": _peak_bytes(),
        }
        path = Path(folder, f"{os.getpid()}.tmp")
        path.write_text(json.dumps(facts))
        path.rename(path.with_suffix(".json"))

    atexit.register(leave)  # first, so that it runs after what MPI registers
    importlib.import_module("numpy")
    mpi = importlib.import_module("serverless_mpi.MPI")  # under mpiexec it is mpi4py's
    rank = mpi.COMM_WORLD.Get_rank()
    begun.update(rank=rank, at=time.perf_counter(), cpu_s=time.process_time())
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path[0] = str(Path(argv[0]).resolve().parent)
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
