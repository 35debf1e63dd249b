"""Every environment variable of this package: who sets it, what it means, its default.

The table is the one place that spells the names.  Modules import the constants;
`docs/reference/environment.md` has one row per entry, and `tests/docs` compares
the two.  Two places cannot import this module and repeat the names: the kernel
(`kernels/spdnn.c`, in C), and `launch/site/sitecustomize.py`, which runs in
interpreters that may lack this package.

Variables of LAUNCHER are the interface between a launcher and its ranks.  If you
change one, ranks of another version cannot read it.
"""

from __future__ import annotations

from dataclasses import dataclass

USER, LAUNCHER = "user", "launcher"


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes
    ----------
    name
        As in the environment.
    set_by
        USER, or LAUNCHER: a launcher sets it for the processes of a job.
    meaning
        One line of Markdown for the reference page.
    default
        Of variables of USER: the value that applies if it is not set.
    """

    name: str
    set_by: str
    meaning: str
    default: str = ""

    def row(self) -> str:
        """Return its row in the tables of docs/reference/environment.md."""
        cells = [f"`{self.name}`", self.meaning] + [self.default] * (self.set_by == USER)
        return f"| {' | '.join(cells)} |"


ENV_MAX_HELD = "SMPI_MAX_HELD_BYTES"
ENV_THREADS = "SMPI_THREADS"
ENV_KERNEL = "SMPI_KERNEL"
ENV_MAX_WORKERS = "MPI4PY_FUTURES_MAX_WORKERS"
ENV_CONFORMANCE_CACHE = "SMPI_CONFORMANCE_CACHE"
ENV_FORKS = "SMPI_FORKS"
ENV_CHECKPOINT_KEY = "SMPI_CHECKPOINT_KEY"

ENV_JOB = "SMPI_JOB"
ENV_RANK = "SMPI_RANK"
ENV_KEY = "SMPI_KEY"
ENV_ALIAS = "SMPI_ALIAS"
ENV_LOCAL_RANKS = "SMPI_LOCAL_RANKS"
ENV_LINEAGE = "SMPI_LINEAGE"
ENV_BEGUN = "SMPI_BEGUN"
ENV_FORK = "SMPI_FORK"
ENV_PARENT = "SMPI_PARENT"
ENV_APPNUM = "SMPI_APPNUM"
ENV_EXPLAIN = "SMPI_EXPLAIN"
ENV_TRACE = "SMPI_TRACE"
ENV_PROFILE = "SMPI_PROFILE"
ENV_TERMINAL = "SMPI_INFER_TERMINAL"
ENV_CHECKPOINTS = "SMPI_CHECKPOINTS"

VARIABLES = (
    Variable(
        ENV_MAX_HELD,
        USER,
        "bytes of messages that a rank may hold before a receive asks for them;"
        " more is an error that names the sender",
        "half of the machine's memory",
    ),
    Variable(
        ENV_THREADS,
        USER,
        "threads of the sparse kernel in each rank",
        "the processors of the affinity mask, at most the cgroup's quota or Lambda's memory"
        " in vCPUs, divided by the ranks on this machine",
    ),
    Variable(
        ENV_KERNEL,
        USER,
        "instruction set of the kernel: `avx512`, `avx2`, `neon` or `plain`",
        "the best that the machine has",
    ),
    Variable(
        ENV_MAX_WORKERS,
        USER,
        "workers that an MPIPoolExecutor spawns, if it does not say how many",
        "one fewer than the job has ranks, at least 1",
    ),
    Variable(
        ENV_CONFORMANCE_CACHE,
        USER,
        "folder for what `tests.conformance` and `tests.thirdparty` download",
        "the user's cache folder",
    ),
    Variable(
        ENV_FORKS,
        USER,
        "`0`: `smpirun` starts each Python rank by itself, and not as a fork of one process that"
        " has imported NumPy",
        "1",
    ),
    Variable(
        ENV_CHECKPOINT_KEY,
        USER,
        "key that authenticates checkpoints in buckets, 64 hexadecimal digits",
        "`serverless_mpi/checkpoint.key` in the user's configuration folder, made at first use",
    ),
    Variable(ENV_JOB, LAUNCHER, "the job as JSON, without the rank and the key"),
    Variable(ENV_RANK, LAUNCHER, "rank of the process"),
    Variable(
        ENV_KEY,
        LAUNCHER,
        "the job's key, 64 hexadecimal digits; never in a file or on a command line",
    ),
    Variable(ENV_ALIAS, LAUNCHER, "`1`: `from mpi4py import MPI` finds this package; else `0`"),
    Variable(
        ENV_LOCAL_RANKS, LAUNCHER, "ranks of the job on this machine, which share its processors"
    ),
    Variable(
        ENV_LINEAGE,
        LAUNCHER,
        "ids of the job and of the jobs in which it was started, separated by slashes",
    ),
    Variable(
        ENV_BEGUN,
        LAUNCHER,
        "descriptor to which a rank of a start tree writes its number, 4 bytes, little endian",
    ),
    Variable(
        ENV_FORK, LAUNCHER, "makes a Python process fork ranks: its socket to the launcher, as JSON"
    ),
    Variable(
        ENV_PARENT,
        LAUNCHER,
        "of a spawned rank: its bridge to the processes that spawned it, as JSON with the bridge's"
        " key",
    ),
    Variable(ENV_APPNUM, LAUNCHER, "number of the rank's program among those of the job"),
    Variable(ENV_EXPLAIN, LAUNCHER, "set if ranks note which algorithms were chosen (`--explain`)"),
    Variable(ENV_TRACE, LAUNCHER, "set if ranks write a trace (`--trace`)"),
    Variable(ENV_PROFILE, LAUNCHER, "set if ranks write a profile (`--profile`)"),
    Variable(
        ENV_TERMINAL, LAUNCHER, "device on which rank 0 of `smpi-infer run` draws its progress"
    ),
    Variable(
        ENV_CHECKPOINTS,
        LAUNCHER,
        "folder for the checkpoints of loops that name no place (`--restarts`)",
    ),
)
