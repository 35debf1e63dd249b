"""Names and sizes of a stack's resources: the template writes them, the launcher derives them.

Every name begins with the name of the stack, so that a role can be limited to the
names of its stack.  The name of a stack has no dash: otherwise the names of one
stack could begin with the name of another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serverless_mpi.aws import limits
from serverless_mpi.errors import UsageError

RANK, REPORT, QUEUE, CONSOLE, TOPIC = "rank", "report", "q", "c", "t"
NAME = re.compile(r"[a-z][a-z0-9]{0,29}")
FILTERS_PER_TOPIC = limits.SNS_FILTERS_PER_TOPIC.value
MAX_RANKS = 220  # a queue and its subscription are two of the 500 resources that a stack may have (CloudFormation quota)
MEMORY_MB = (limits.LAMBDA_LEAST_MB.value, limits.LAMBDA_MOST_MB.value)
PYTHONS = ("3.12", "3.13")  # runtimes that AWS keeps, and that can be snapshotted
ARCHS = ("x86_64", "arm64")
DEFAULT_MEMORY_MB = limits.LAMBDA_VCPU_MB.value
TIME_LIMIT_S = limits.LAMBDA_TIME_S.value
LOG_DAYS = 7
TAG = "serverless-mpi"  # cost allocation: its value is the stack's name


@dataclass(frozen=True)
class Layout:
    """A stack to be made.

    name
        Lower-case letters and digits.
    memory_mb
        Sizes of functions: one function each, ascending.
    ranks
        Queues of the pool: the most ranks that all jobs together have at a time, on channels that use queues.
    jobs
        Console queues of the pool: the most jobs at a time.
    python
        "3.12" or "3.13" on AWS; an emulator runs functions with its own interpreter.
    arch
        "x86_64" or "arm64".
    snapstart
        Functions begin from a snapshot, which AWS charges for while the version exists.
    express
        Availability Zones in which there is a directory bucket of S3 Express.
    """

    name: str = "smpi"
    memory_mb: tuple[int, ...] = (DEFAULT_MEMORY_MB,)
    ranks: int = 64
    jobs: int = 16
    python: str = "3.13"
    arch: str = "x86_64"
    snapstart: bool = False
    express: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"--stack {self.name}: the name of a stack has up to 30 lower-case letters and digits, and begins with a letter"
            )
        low, high = MEMORY_MB
        for size in self.memory_mb:
            if not low <= size <= high:
                raise UsageError(f"--memory {size}: a function has {low} to {high} MB")
        if not self.memory_mb or tuple(sorted(set(self.memory_mb))) != self.memory_mb:
            raise UsageError("--memory takes sizes in MB, each once, ascending: 1769,3008")
        if not 1 <= self.ranks <= MAX_RANKS:
            raise UsageError(
                f"--ranks {self.ranks}: a stack has 1 to {MAX_RANKS} queues; channel object needs none"
            )
        if not 1 <= self.jobs <= 50:
            raise UsageError(f"--jobs {self.jobs}: a stack serves 1 to 50 jobs at a time")
        if self.arch not in ARCHS:
            raise UsageError(f"--arch {self.arch}: known are {', '.join(ARCHS)}")

    @property
    def topics(self) -> int:
        """How many topics the pool's queues need."""
        return -(-self.ranks // FILTERS_PER_TOPIC)


def queue_name(stack: str, slot: int) -> str:
    """Of the queue in `slot` of the pool."""
    return f"{stack}-{QUEUE}-{slot:04d}"


def console_name(stack: str, number: int) -> str:
    """Of the queue on which a job's ranks speak to their launcher."""
    return f"{stack}-{CONSOLE}-{number:04d}"


def topic_name(stack: str, number: int) -> str:
    """Of the topic that serves the slots number*200 .. number*200 + 199."""
    return f"{stack}-{TOPIC}-{number:04d}"


def function_name(stack: str, memory_mb: int) -> str:
    """Of the function that runs ranks with that much memory."""
    return f"{stack}-{RANK}-{memory_mb}"
