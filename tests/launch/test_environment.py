"""What an environment of a function has in common for the ranks that it runs: time, memory, random numbers."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

from tests.harness import ROOT

# A process of its own: forks, and a global generator.
RANDOM = """
import os, sys
import numpy.random
from serverless_mpi.launch import handler

def draw(before):
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, str(numpy.random.random()).encode())
        os._exit(0)
    os.close(writing)
    os.wait()
    return os.read(reading, 100)

same = {draw(None), draw(None)}
different = set()
for _ in range(2):
    handler._reseed()
    different.add(draw(None))
print(len(same), len(different))
"""
NOT_IMPORTED = """
import sys
from serverless_mpi.launch import handler
handler._reseed()
print("numpy.random" in sys.modules)
"""
INIT = """
import time
from serverless_mpi.launch import handler
handler.preload()
first = handler._init_s
time.sleep(0.3)
print(0 < first, handler._init_s == first)
"""


def printed(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ranks_of_one_environment_draw_different_random_numbers() -> None:
    assert printed(RANDOM) == "1 2"


def test_random_numbers_that_nobody_draws_are_not_imported() -> None:
    assert printed(NOT_IMPORTED) == "False"


def test_the_time_of_a_start_ends_when_the_environment_is_ready() -> None:
    """And not at the first invocation, for which it may wait for minutes without being billed."""
    assert printed(INIT) == "True True"


def test_memory_that_the_program_shares_is_not_the_functions_own() -> None:
    from serverless_mpi.launch import sandbox

    size = 64 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1
        alone = sandbox.private_bytes()
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent has looked
            os._exit(0)
        shared = sandbox.private_bytes()
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
    assert alone > size and shared < alone - size // 2
