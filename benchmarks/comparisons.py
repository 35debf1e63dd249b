"""`python -m benchmarks.comparisons [program ...]`: runs `smpi compare` on the examples, and writes the
page docs/benchmarks-comparisons.md.  It takes about ten minutes on a quiet machine with two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks-comparisons.md"
RANKS = "1,2,4"
PROGRAMS = ("pi", "ring", "heat2d", "sample_sort", "master_worker", "sparse_dnn")
HEAD = """\
# Comparison with a real MPI

`python -m benchmarks.comparisons` writes this page: `smpi compare -n {ranks}` on each example, {date},
on {processors} processors of a shared machine. [How to compare](how-to/compare-with-mpi.md) states
what is measured. *Real MPI* is MPICH by mpi4py. On one machine the services of AWS are emulated, so
the seconds of `hybrid`, `queue` and `object` are those of an emulator; their requests and dollars are
those that AWS would bill. *Lambda (forecast)* replays the job's trace on the model of AWS. The start
of the functions is not in its seconds; its dollars have the functions' time.

The examples are small: most take less time than a function needs to start.
{busy}"""

BUSY = """
**The machine was busy when this was recorded**: the load average was {load:.0f} at the end. So the
seconds of what ran here are longer than on a quiet machine, and the forecast, which counts CPU time,
looks better beside them than it is. Outputs, requests, dollars, memory and CPU time do not depend on
that.
"""


def main(wanted: list[str]) -> int:
    """Compare, and write the page."""
    sections = []
    for program in wanted or PROGRAMS:
        path = f"examples/{program}.py"
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder, "results.json")
            words = [sys.executable, "-m", "serverless_mpi.deploy.cli", "compare", "-n", RANKS]
            words += ["--markdown", "--json", str(results), path]
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                print(f"{path}: {done.stderr.strip()}", file=sys.stderr)
                return 1
            processors = json.loads(results.read_text())["processors"]
        sections.append(f"## {path}\n\n{done.stdout}")
        print(f"{path}: {done.stdout.rstrip().splitlines()[-1]}", flush=True)
        load = os.getloadavg()[2]
        busy = BUSY.format(load=load) if load > processors + 1 else ""
        head = HEAD.format(ranks=RANKS, date=date.today(), processors=processors, busy=busy)
        PAGE.write_text("\n".join([head, *sections]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
