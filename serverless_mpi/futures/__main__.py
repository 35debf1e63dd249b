"""The command `smpirun -n N -m serverless_mpi.futures prog.py ...`.

Rank 0 runs the program, and the other ranks are the workers of its executors until it ends. If the
program fails, the launcher stops the workers.
"""

from __future__ import annotations

import os
import runpy
import sys
import types

from serverless_mpi import alias
from serverless_mpi.futures import pool, worker
from serverless_mpi.MPI import COMM_WORLD

USAGE = """\
usage: python -m serverless_mpi.futures prog.py [arg ...]
   or: python -m serverless_mpi.futures -m module [arg ...]
   or: python -m serverless_mpi.futures -c command [arg ...]
"""


def _run(words: list[str]) -> None:
    """Run a program as `python` would."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Run the command on this rank."""
    words = sys.argv[1:]
    bad = (
        not words
        or (words[0] in ("-m", "-c") and len(words) < 2)
        or (words[0][0] == "-" and words[0] not in ("-m", "-c", "-h", "--help"))
    )
    if bad or words[0] in ("-h", "--help"):
        if COMM_WORLD.rank == 0:
            print(USAGE, end="", file=sys.stderr if bad else sys.stdout)
        sys.exit(2 if bad else 0)
    alias.own_futures()
    comm = COMM_WORLD.Dup()
    workers = comm.Split(int(comm.rank == 0), comm.rank)
    if comm.rank:
        worker.run(comm, 0, workers)  # type: ignore[arg-type]
        return
    if words[0][0] != "-" and not os.path.exists(words[0]):
        sys.exit(f"there is no program {words[0]} in {os.getcwd()}")
    pool.shared = pool.RankPool(comm) if comm.size > 1 else pool.ThreadPool(1)
    try:
        _run(words)
    except SystemExit as stop:
        if stop.code:
            raise  # the launcher stops the workers
        pool.shared.close()
        raise
    pool.shared.close()


if __name__ == "__main__":
    main()
