"""Runs third-party mpi4py programs unchanged under smpirun: python -m tests.thirdparty [--channel NAME] [--mpi] [WORD ...]

The packages are installed by pip into a cache folder, mpi4py's demo programs
come from its source distribution; nothing of them enters the repository. With
words only programs are run whose name has one of them. Exit code 0: each ended
with 0, printed no traceback, and said what it has to say. With --mpi each is run
under MPICH, too, and the ratio of the times is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import suite

PACKAGES = (
    "schwimmbad==0.4.2",
    "emcee==3.1.6",
    "mpipartition==1.5.0",
    "mpipool==2.2.1",
    "distwq==1.3.3",
)
OWN = Path(__file__).with_name("programs")
LIMIT_S = 180.0
FUTURES = Path(__file__).resolve().parent.parent / "futures" / "mpi4pys.py"
FUTURES_SAY = {
    "cpi": ("pi: 3.14159", "4 workers"),
    "hello": tuple(f"I am worker {rank} of 4" for rank in range(4)),
    "primes": (
        "112272535095293 is prime: True",
        "115797848077099 is prime: True",
        "117450548693743 is prime: True",
    ),
    "julia": ("Julia Set 1600x1200",),
    "mandelbrot": ("Mandelbrot Set 750x500",),
}
OSU = (
    "allgather",
    "alltoall",
    "alltoallv",
    "barrier",
    "bcast",
    "bibw",
    "bw",
    "gather",
    "latency",
    "multi_lat",
    "scatter",
)


@dataclass(frozen=True)
class Job:
    """One run: what is typed after `smpirun -n ranks`, from `folder`, and what its output has to contain, all of it."""

    name: str
    ranks: int
    words: tuple[str, ...]
    folder: Path
    says: tuple[str, ...] = ()
    stdin: str = ""


def packages() -> Path:
    """The folder where pip has put the packages and what they need."""
    home = suite.cache() / ("thirdparty-" + "-".join(one.replace("==", "") for one in PACKAGES))
    if not (home / "complete").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--target",
            str(home),
        ]
        subprocess.run([*pip, *PACKAGES], check=True)
        (home / "complete").touch()
    return home


def jobs() -> list[Job]:
    """All of them."""
    demo = suite.folder().parent / "demo"
    found = [
        Job("schwimmbad", 4, ("schwimmbad_pool.py",), OWN, ("held",)),
        Job("emcee", 4, ("emcee_pool.py",), OWN, ("held",)),
        Job("mpipartition", 4, ("mpipartition_square.py",), OWN, ("held",)),
        Job("mpipool", 4, ("mpipool_map.py",), OWN, ("held",)),
        Job("distwq", 4, ("distwq_sum.py",), OWN, ("held",)),
        Job(
            "helloworld",
            3,
            ("helloworld.py",),
            demo,
            tuple(f"I am process {rank} of 3" for rank in range(3)),
        ),
        Job(
            "compute-pi-rma",
            4,
            ("cpi-rma.py",),
            demo / "compute-pi",
            ("pi is approximately 3.14", "error is 0.0000083333"),
            "100\n",
        ),
        Job(
            "compute-pi-dpm",
            1,
            ("cpi-dpm.py", "5"),
            demo / "compute-pi",
            ("computed pi is:  3.14", "error:  0.0000083333", "computing units: 5 processes"),
            "100\n",
        ),
        Job(
            "compute-pi-dpm-ports",
            1,
            ("dpm_pair.py", str(demo / "compute-pi")),
            OWN,
            ("computed pi is:  3.14", "computing units: 2 processes"),
        ),
        Job("nxtval-dynproc", 4, ("nxtval-dynproc.py",), demo / "nxtval"),
        Job("spawning", 1, ("cpi-master.py", "cpi-worker.py"), demo / "spawning", ("pi: 3.14160",)),
        Job(
            "mandelbrot-spawn",
            1,
            ("mandelbrot_spawn.py", str(demo / "mandelbrot")),
            OWN,
            ("(400, 600) points from 7 workers", "the area is right"),
        ),
        *(
            Job(f"nxtval-{kind}", 4, (f"nxtval-{kind}.py",), demo / "nxtval")
            for kind in ("mpi3", "onesided", "scalable")
        ),
        Job(
            "compute-pi",
            4,
            ("cpi-cco.py",),
            demo / "compute-pi",
            ("pi is approximately 3.14", "error is 0.0000083333"),
            "100\n",
        ),
        Job("reductions", 4, ("test_reductions.py", "-q"), demo / "reductions", ("OK",)),
        Job(
            "sequential",
            4,
            ("test_seq.py",),
            demo / "sequential",
            tuple(f"I am process {rank} of 4" for rank in range(4)),
        ),
        Job("nxtval-threads", 4, ("nxtval-threads.py",), demo / "nxtval"),
        Job("threads", 1, ("sendrecv.py",), demo / "threads"),
        Job(
            "futures-test",
            3,
            ("-m", "mpi4py.futures", "test_futures.py"),
            demo / "futures",
            ("OK",),
        ),
        Job(
            "futures-test-1",
            1,
            ("-m", "mpi4py.futures", "test_futures.py"),
            demo / "futures",
            ("OK",),
        ),
    ]
    for ranks in (
        1,
        2,
        3,
    ):  # on this package's futures, with the executors of rank 0 and with MPICommExecutor
        for kind, words in (("", ("-m", "serverless_mpi.futures")), ("comm-", ())):
            found.append(
                Job(
                    f"own-futures-test-{kind}{ranks}",
                    ranks,
                    (*words, str(FUTURES)),
                    demo / "futures",
                    ("OK",),
                )
            )
    for name, says in FUTURES_SAY.items():
        found.append(
            Job(
                f"futures-{name}",
                5,
                ("-m", "mpi4py.futures", f"run_{name}.py"),
                demo / "futures",
                says,
            )
        )
        found.append(
            Job(
                f"own-futures-{name}",
                5,
                ("-m", "serverless_mpi.futures", f"run_{name}.py"),
                demo / "futures",
                says,
            )
        )
    for name in ("julia", "mandelbrot"):  # with MPICommExecutor
        found.append(
            Job(f"futures-comm-{name}", 5, (f"run_{name}.py",), demo / "futures", FUTURES_SAY[name])
        )
    for path in sorted((demo / "mpi-ref-v1").glob("ex-*.py")):
        found.append(Job(f"mpi-ref-v1-{path.stem}", 4, (path.name,), path.parent))
    for name in OSU:
        ranks = 4 if name == "multi_lat" else 2
        found.append(
            Job(
                f"osu-{name}",
                ranks,
                ("osu.py", str(demo), f"osu_{name}"),
                OWN,
                ("# ", "16384" if name != "barrier" else "# MPI Barrier"),
            )
        )
    return found


@dataclass
class Run:
    """What became of a job: what went wrong, or ""; seconds, and the number of cases that pytest passed."""

    wrong: str
    seconds: float
    cases: int


def run(job: Job, channel: str | None, path: Path) -> Run:
    """Run a job, on a channel or under MPICH (None)."""
    demo = suite.folder().parent / "demo" / "futures" / "test_futures.py"
    # under MPICH the mpi4py of this environment, and not one that a package requires
    own = [sysconfig.get_path("purelib")] if channel is None else []
    search = os.pathsep.join([*own, str(path)])
    environ = {**os.environ, "PYTHONPATH": search, "SMPI_TEST_FUTURES": str(demo)}
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(job.ranks), sys.executable]
    smpirun = [
        sys.executable,
        "-m",
        "serverless_mpi.launch",
        "-n",
        str(job.ranks),
        "--channel",
        channel or "",
        "--timeout",
        str(LIMIT_S),
        *("-x", "PYTHONPATH", "-x", "SMPI_TEST_FUTURES"),
    ]
    words = [*(mpiexec if channel is None else smpirun), *job.words]
    began = time.monotonic()
    try:
        done = subprocess.run(
            words,
            cwd=job.folder,
            input=job.stdin,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        return Run(f"longer than {2 * LIMIT_S:g} s", 2 * LIMIT_S, 0)
    seconds = time.monotonic() - began
    wrong = ""
    if done.returncode:
        wrong = f"exit code {done.returncode}"
    elif "Traceback (most recent call last)" in done.stderr:
        wrong = "a traceback"
    elif silent := [words for words in job.says if words not in done.stdout + done.stderr]:
        wrong = f"did not say {silent}"
    cases = max(map(int, re.findall(r"(\d+) passed", done.stdout)), default=0)
    return Run(wrong and f"{wrong}\n{done.stdout}{done.stderr}", seconds, cases)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.thirdparty", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--channel", default="direct")
    parser.add_argument("--mpi", action="store_true", help="compare with MPICH")
    parser.add_argument(
        "words", nargs="*", help="run only programs whose name has one of these in it"
    )
    options = parser.parse_args()
    path = packages()
    failed = []
    for job in jobs():
        if options.words and not any(word in job.name for word in options.words):
            continue
        made = run(job, options.channel, path)
        beside = ""
        if options.mpi:
            real = run(job, None, path)
            ratio = "" if real.wrong else f", {made.seconds / real.seconds:.2f} times"
            beside = f"; MPICH {real.seconds:.1f} s {real.wrong.split(chr(10))[0] or 'ok'}{ratio}"
            if real.cases != made.cases and not made.wrong:
                made.wrong = f"{made.cases} cases passed, and {real.cases} under MPICH"
        print(
            f"{job.name:24} {job.ranks} ranks {made.seconds:6.1f} s  {made.wrong.split(chr(10))[0] or 'ok'}"
            f"{f' ({made.cases} cases)' if made.cases else ''}{beside}",
            flush=True,
        )
        if made.wrong:
            failed.append(job.name)
            print("    " + "\n    ".join(made.wrong.splitlines()[-12:]), flush=True)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
