"""Times of common calls on `direct`, beside MPICH and beside another checkout of this package.

`calls.py` prints the rows. `python -m benchmarks.calls_timed --against CHECKOUT` compares Allreduce
of 8 B on 4 ranks with a checkout that has a .venv of its own.

The two sides take turns. A ratio is that of the smallest times over rounds, because what else runs
on the machine only adds; the spread is that of the ratios within a round.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.interleave import ratio
from benchmarks.table import Row, render

ROUNDS = 5
PAIRED_ROUNDS = 15  # with more ranks than cores, times depend on where the kernel puts them
BUDGET_S = 0.15  # of a call, in each round
TIMEOUT_S = 300.0
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "benchmarks" / "calls_ranks.py"
ALLREDUCE = "Allreduce of 8 B"
# most times MPICH's, between two ranks
TARGETS = {
    "Send and Recv of 8 B": 8,
    "Isend, Irecv and Waitall of 100, per message": 8,
    "Barrier": 10,
    "Bcast of 8 B": 10,
    ALLREDUCE: 10,
    "Allgather of 8 B": 10,
    "bcast of a small object": 10,
    "allreduce of a small object": 10,
    "mpi4py.bench ringtest": 10,
    "mpi4py.bench pingpong": 10,
    "mpi4py.bench pingpong --pickle": 10,
}
PAIRED = 0.6  # most of the other checkout's time


def _here(ranks: int, python: str = sys.executable) -> list[str]:
    return [python, "-m", "serverless_mpi.launch", "-n", str(ranks), "--channel", "direct"]


def _times(
    launcher: Sequence[str], python: str, folder: Path, wanted: Sequence[str]
) -> dict[str, float]:
    """Run the program once, in `folder`, where -m finds the package; microseconds by call."""
    done = subprocess.run(
        [*launcher, python, str(PROGRAM), str(BUDGET_S), *wanted],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        cwd=folder,
    )
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def _rounds(
    sides: Mapping[str, tuple[Sequence[str], str, Path]],
    wanted: Sequence[str] = (),
    rounds: int = ROUNDS,
) -> dict[str, list[dict[str, float]]]:
    """Times of each side, which take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(_times(*side, wanted))
    return found


def _least(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Ratio of the smallest times, and the median and spread of the ratios within a round."""
    middle, wide = ratio(ours, theirs)
    return min(ours) / min(theirs), f"{middle:.2f} {wide}"


def rows(ranks: int) -> list[Row]:
    """Compare every call with MPICH; nothing without it."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if not mpiexec.exists() or not importlib.util.find_spec("mpi4py"):
        return []
    found = _rounds(
        {
            "direct": (_here(ranks), sys.executable, ROOT),
            "mpich": ([str(mpiexec), "-n", str(ranks)], sys.executable, ROOT),
        }
    )
    made = []
    for name in found["direct"][0]:
        ours, theirs = ([times[name] for times in found[side]] for side in ("direct", "mpich"))
        least, wide = _least(ours, theirs)
        what = f"{ranks} ranks: {name} / MPICH's"
        if ranks == 2:
            most = TARGETS[name]
            made.append(Row(what, min(ours), "us", least, wide, f"<= {most}x", least <= most))
        else:  # more ranks than cores: MPICH polls, which its figures suffer from
            made.append(Row(what, min(ours), "us", least, wide))
    return made


def against(checkout: Path) -> Row:
    """Compare Allreduce of 8 B on 4 ranks with another checkout."""
    python = str(checkout / ".venv" / "bin" / "python")
    found = _rounds(
        {"here": (_here(4), sys.executable, ROOT), "there": (_here(4, python), python, checkout)},
        (ALLREDUCE,),
        PAIRED_ROUNDS,
    )
    ours, theirs = ([times[ALLREDUCE] for times in found[side]] for side in ("here", "there"))
    least, wide = _least(ours, theirs)
    what = f"4 ranks: {ALLREDUCE} / that of {checkout}"
    return Row(what, min(ours), "us", least, wide, f"<= {PAIRED}", least <= PAIRED)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--against"]:
        print(render([against(Path(sys.argv[2]).resolve())]))
    else:
        print(render([row for ranks in (2, 4) for row in rows(ranks)]))
