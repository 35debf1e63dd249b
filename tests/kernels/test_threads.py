"""The kernel's pool of threads: shared by the threads of a process, made anew in a child of fork."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.harness import ROOT

# A process of its own: fork, and threads that are never ended.
PROGRAM = """
import os, signal, sys, threading
import numpy as np
from serverless_mpi import sparse

def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))

rng = np.random.default_rng(7)
w = sparse.SparseRows(np.arange(0, 513, 2), rng.integers(0, 256, 512), 0.25, 256)
x = rng.random((256, 200), dtype=np.float32)
alone, _ = sparse.layer(w, x, -0.1, threads=1)

def same(threads):
    return all((sparse.layer(w, x, -0.1, threads=threads)[0] == alone).all() for _ in range(50))

assert same(4)
most = threads_of_this_process()
assert same(4) and threads_of_this_process() == most, "threads are kept between calls"

answers = []
callers = [threading.Thread(target=lambda: answers.append(same(3))) for _ in range(4)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert answers == [True] * 4

child = os.fork()
if not child:
    os._exit(0 if threads_of_this_process() == 1 and same(4) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same(4)

masks = [open(f"/proc/self/task/{task}/status").read() for task in os.listdir("/proc/self/task")]
blocked = [int(text.partition("SigBlk:")[2].split()[0], 16) for text in masks]
term = 1 << (signal.SIGTERM - 1)
assert sum(not mask & term for mask in blocked) == 1, "the main thread alone takes signals"
print("right")
"""


def test_threads_are_kept_shared_and_made_anew_after_a_fork() -> None:
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=env,
    )
    assert done.stdout == "right\n", done.stderr
