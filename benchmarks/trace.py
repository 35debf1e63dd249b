"""Tracing: CPU seconds of a rank's calls with tracing on against the same with it off, in turns
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

PROGRAM = """
import json, time
import numpy as np
from serverless_mpi import MPI, trace
from serverless_mpi.api.observe import observe
from serverless_mpi.runtime import get_runtime

comm, runtime = MPI.COMM_WORLD, get_runtime()
data, x, y = bytearray(%(nbytes)d), np.ones(128), np.ones(128)

def ping():
    if comm.rank: comm.Recv(data, 0); comm.Send(data, 0)
    else: comm.Send(data, 1); comm.Recv(data, 1)

def mixed():
    comm.Allreduce(x, y)
    comm.alltoall([bytes(1000)] * comm.size)
    comm.sendrecv(comm.rank, (comm.rank + 1) %% comm.size, source=(comm.rank - 1) %% comm.size)

# what tracing changes when it begins, so that it can be taken back and done again
places = [MPI.Request, *type(comm).__mro__[:-1]]
before = [dict(vars(place)) for place in places]
observe((MPI.Intracomm, MPI.Request), trace.RECORDER.span)
changed = [
    (place, name, old.get(name), new)
    for place, old in zip(places, before) for name, new in vars(place).items() if name in old and old[name] is not new
    or name not in old
]

tracing = True

def switch(on):
    global tracing
    tracing = on
    runtime.record(trace.RECORDER if on else None)
    for place, name, old, new in changed:
        if on: setattr(place, name, new)
        elif old is None: delattr(place, name)
        else: setattr(place, name, old)

seconds = {False: [], True: []}
for block in range(2 * %(blocks)d + 2):
    on = bool((block + block // 2) %% 2)  # off on, on off, off on, ...
    if tracing != on:
        switch(on)
    comm.barrier()
    start = time.process_time()  # not the wall clock: others use this machine too
    for _ in range(%(turns)d): %(call)s()
    if block > 1:
        seconds[on].append(time.process_time() - start)
if comm.rank == 0: print(json.dumps([seconds[False], seconds[True], len(trace.RECORDER.events)]))
"""

CASES = [
    ("direct, 2 ranks, ping-pong of 8 B", 2, "direct", "ping", 8, 60, 60),
    ("direct, 2 ranks, ping-pong of 64 KB", 2, "direct", "ping", 1 << 16, 40, 60),
    ("direct, 4 ranks, allreduce, alltoall and sendrecv", 4, "direct", "mixed", 8, 15, 40),
    ("hybrid, 4 ranks, allreduce, alltoall and sendrecv", 4, "hybrid", "mixed", 8, 2, 30),
]


def run() -> list[Row]:
    """CPU seconds of rank 0 with tracing over those without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        for what, ranks, channel, call, nbytes, turns, blocks in CASES:
            program.write_text(
                PROGRAM % {"nbytes": nbytes, "blocks": blocks, "turns": turns, "call": call}
            )
            words = [
                sys.executable,
                "-m",
                "serverless_mpi.launch",
                "-n",
                str(ranks),
                "--channel",
                channel,
                str(program),
            ]
            off, on, events = json.loads(
                subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            )
            ratios = [with_it / without for with_it, without in zip(on, off, strict=True)]
            ratio = statistics.median(ratios)
            added = 1e9 * (statistics.median(on) - statistics.median(off)) * blocks / events
            reason = (
                "" if ratio < 1.05 else f"{added:.0f} ns an event, on calls that take microseconds"
            )
            rows.append(
                Row(
                    f"on: {what}",
                    1e6 * statistics.median(on) / turns,
                    "us CPU",
                    ratio,
                    spread(ratios),
                    "< 1.05",
                    ratio < 1.05,
                    reason,
                )
            )
    # off, a call is the function itself: the wrappers are put there when a rank begins with tracing
    # on
    from serverless_mpi import MPI
    from serverless_mpi.runtime import Runtime

    functions = [
        call
        for kind in (MPI.Intracomm, Runtime)
        for base in kind.__mro__
        for call in vars(base).values()
    ]
    wrapped = sum(
        getattr(call, "__code__", run.__code__).co_filename.endswith("api/observe.py")
        for call in functions
    )
    rows.append(
        Row(
            "off: functions that are wrapped",
            wrapped,
            "",
            None,
            "",
            "0: nothing to pay",
            wrapped == 0,
        )
    )
    return rows
