"""48 ranks in 8 functions against the emulator: `python -m tests.launch.packs [RANKS [PER]]`.

Each rank sends to every other one, and all take part in collectives; the bill's line is printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from serverless_mpi.launch.emulator import Emulator
from tests.launch.lambda_stack import SERVICES, Deployed, smpi

PROGRAM = """
from mpi4py import MPI
import numpy as np
c = MPI.COMM_WORLD
requests = [c.isend((c.rank, other), other) for other in range(c.size) if other != c.rank]
got = sorted(c.recv(source=other) for other in range(c.size) if other != c.rank)
assert got == [(other, c.rank) for other in range(c.size) if other != c.rank]
MPI.Request.waitall(requests)
near = c.Split_type(MPI.COMM_TYPE_SHARED)
total = np.zeros(1000)
c.Allreduce(np.full(1000, float(c.rank)), total)
assert (total == c.size * (c.size - 1) / 2).all()
assert c.alltoall([c.rank] * c.size) == list(range(c.size))
sizes = c.gather(near.size)
c.Barrier()
if c.rank == 0:
    print("right:", c.size, "ranks, nodes of", sorted(set(sizes)))
"""


def main(ranks: int = 48, per_function: int = 6) -> int:
    """Deploy, run, and print what the job took; return the job's exit code."""
    functions = -(-ranks // per_function)
    with tempfile.TemporaryDirectory(prefix="smpi-packs-") as folder:
        program = Path(folder, "job", "prog.py")
        program.parent.mkdir()
        program.write_text(PROGRAM)
        emulator = Emulator(Path(folder), services=SERVICES)
        try:
            stack = Deployed(emulator.start())
            sizes = ("--ranks", functions, "--jobs", 1, "--memory", 10240)
            done = smpi("deploy", "--endpoint", stack.endpoint, *sizes)
            if done.returncode:
                print(done.stderr)
                return done.returncode
            began = time.monotonic()
            options = ("-n", ranks, "-ppn", per_function, "--stats", "text", "--deadlock", 0)
            job = stack.run(*options, program)
            print(job.stdout + job.stderr)
            print(f"{time.monotonic() - began:.0f} s, {functions} queues")
            return job.returncode
        finally:
            emulator.stop()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
