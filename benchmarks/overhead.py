"""CPU seconds of a rank that is observed (traced, profiled) over those of one that is not, in turns
within one job.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, spread

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.05

# Follows the head of a program, which defines MPI, comm, runtime, observer, wrap_calls(classes),
# observed() and the function that is called.
_TURNS = """
import json, time

# what observing changes when it begins, so that it can be taken back and done again
places = [MPI.Request, *type(comm).__mro__[:-1]]
before = [dict(vars(place)) for place in places]
wrap_calls((MPI.Intracomm, MPI.Request))
changed = [
    (place, name, old.get(name), new)
    for place, old in zip(places, before) for name, new in vars(place).items()
    if old.get(name) is not new
]

def switch(on):
    runtime.record(observer if on else None)
    for place, name, old, new in changed:
        if on: setattr(place, name, new)
        elif old is None: delattr(place, name)
        else: setattr(place, name, old)

seconds = {False: [], True: []}
for block in range(2 * %(blocks)d + 2):
    on = bool((block + block // 2) %% 2)  # off on, on off, off on, ...
    switch(on)
    comm.barrier()
    start = time.process_time()  # not the wall clock: others use this machine too
    for _ in range(%(turns)d): %(call)s
    if block > 1:
        seconds[on].append(time.process_time() - start)
if comm.rank == 0: print(json.dumps([seconds[False], seconds[True], observed()]))
"""


def measure(
    what: str, head: str, call: str, ranks: int, channel: str, turns: int, blocks: int, unit: str
) -> Row:
    """Run one job, and return its row.

    Parameters
    ----------
    what
        Name of the row.
    head
        Beginning of the program, see `_TURNS`.
    call
        Expression that is timed.
    ranks, channel
        Of the job.
    turns, blocks
        Calls in a block, and blocks of each kind.
    unit
        What `observed()` counts, with its article, as "a call".
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(head + _TURNS % {"blocks": blocks, "turns": turns, "call": call})
        words = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(ranks)]
        words += ["--channel", channel, str(program)]
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    off, on, count = json.loads(done.stdout)
    ratios = [with_it / without for with_it, without in zip(on, off, strict=True)]
    ratio = statistics.median(ratios)
    added = 1e9 * (statistics.median(on) - statistics.median(off)) * blocks / count
    met = ratio < TARGET
    return Row(
        what,
        1e6 * statistics.median(on) / turns,
        "us CPU",
        ratio,
        spread(ratios),
        f"< {TARGET}",
        met,
        "" if met else f"{added:.0f} ns {unit}, on calls that take microseconds",
    )
