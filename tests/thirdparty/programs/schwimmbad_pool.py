"""schwimmbad's MPIPool: the master maps, and the other ranks run the tasks."""

import sys

from schwimmbad import MPIPool


def worker(task):
    a, b = task
    return a * a + b


with MPIPool() as pool:
    if not pool.is_master():
        pool.wait()
        sys.exit(0)
    tasks = [(n, n + 1) for n in range(200)]
    seen = []
    assert list(pool.map(worker, tasks, callback=seen.append)) == [
        n * n + n + 1 for n in range(200)
    ]
    assert sorted(seen) == [n * n + n + 1 for n in range(200)]
print("schwimmbad: held")
