"""Count primes: rank 0 sends each task to the next idle rank, found by a wildcard receive.

smpirun -n 4 examples/master_worker.py --limit 20000
"""

import argparse

from serverless_mpi import MPI

TASK, RESULT = 1, 2
STEP = 1000


def primes_in(start: int, stop: int) -> int:
    """Return the number of primes in start..stop-1."""
    return sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(start, stop))


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--limit", type=int, default=20_000)
limit = parser.parse_args().limit

comm = MPI.COMM_WORLD
if comm.size < 2:
    raise SystemExit("rank 0 needs a worker: start the program with -n 2 or more")

if comm.rank == 0:
    tasks = [(start, min(start + STEP, limit)) for start in range(0, limit, STEP)]
    idle = list(range(1, comm.size))
    running = total = 0
    status = MPI.Status()
    while tasks or running:
        while tasks and idle:
            comm.send(tasks.pop(0), dest=idle.pop(0), tag=TASK)
            running += 1
        total += comm.recv(source=MPI.ANY_SOURCE, tag=RESULT, status=status)
        idle.append(status.Get_source())
        running -= 1
    for worker in range(1, comm.size):
        comm.send(None, dest=worker, tag=TASK)
    print(f"{total} primes below {limit}")
else:
    while (task := comm.recv(source=0, tag=TASK)) is not None:
        comm.send(primes_in(*task), dest=0, tag=RESULT)
