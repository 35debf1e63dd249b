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

RANK, REPORT, ECHO, QUEUE, CONSOLE, TOPIC = "rank", "report", "echo", "q", "c", "t"
NAME = re.compile(r"[a-z][a-z0-9]{0,29}")
FILTERS_PER_TOPIC = limits.SNS_FILTERS_PER_TOPIC.value
# A queue and its subscription are two of the 500 resources that a stack may have.
MAX_RANKS = 220
MEMORY_MB = (limits.LAMBDA_LEAST_MB.value, limits.LAMBDA_MOST_MB.value)
# Managed runtimes that can be snapshotted:
# https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html
PYTHONS = ("3.12", "3.13", "3.14")
# Regions without SnapStart, and beginnings of their names (other partitions):
# https://docs.aws.amazon.com/lambda/latest/dg/snapstart.html
NO_SNAPSTART = ("ap-southeast-6", "ap-east-2", "cn-", "us-gov-", "us-iso", "eu-iso", "eusc-")
MAX_POLICIES = limits.ROLE_POLICIES.value  # of the user's, on the role of the ranks
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_POLICY = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}|aws):policy/[\w+=,.@/-]{1,512}")
ARCHS = ("x86_64", "arm64")
DEFAULT_MEMORY_MB = limits.LAMBDA_VCPU_MB.value
TIME_LIMIT_S = limits.LAMBDA_TIME_S.value
LOG_DAYS = 7
TAG = "serverless-mpi"  # cost allocation: its value is the stack's name


@dataclass(frozen=True)
class Layout:
    """What a stack is to have.

    Attributes
    ----------
    name
        Lower-case letters and digits.
    memory_mb
        Memory sizes, ascending: one function for each.
    ranks
        Queues of the pool: the most functions that all jobs together run at a time, on channels
        that use queues. A function runs one rank, or several with `smpirun -ppn`.
    jobs
        Console queues of the pool: the most jobs at a time.
    python
        One of PYTHONS on AWS; an emulator runs functions with its own interpreter.
    arch
        "x86_64" or "arm64".
    snapstart
        Functions start from a snapshot, for which AWS charges while the version exists.
    read_buckets
        Names of buckets that ranks may read and list.
    policies
        ARNs of managed policies that ranks have besides.
    express
        Availability Zones in which there is a directory bucket of S3 Express.

    Raises
    ------
    UsageError
        A value is out of range; the text names the option.
    """

    name: str = "smpi"
    memory_mb: tuple[int, ...] = (DEFAULT_MEMORY_MB,)
    ranks: int = 64
    jobs: int = 16
    python: str = "3.13"
    arch: str = "x86_64"
    snapstart: bool = False
    read_buckets: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    express: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"--stack {self.name}: the name of a stack has up to 30 lower-case letters and"
                " digits, and begins with a letter"
            )
        low, high = MEMORY_MB
        for size in self.memory_mb:
            if not low <= size <= high:
                raise UsageError(f"--memory {size}: a function has {low} to {high} MB")
        if not self.memory_mb or tuple(sorted(set(self.memory_mb))) != self.memory_mb:
            raise UsageError("--memory takes sizes in MB, each once, ascending: 1769,3008")
        if not 1 <= self.ranks <= MAX_RANKS:
            raise UsageError(
                f"--ranks {self.ranks}: a stack has 1 to {MAX_RANKS} queues;"
                " channel object needs none"
            )
        if not 1 <= self.jobs <= 50:
            raise UsageError(f"--jobs {self.jobs}: a stack serves 1 to 50 jobs at a time")
        if self.arch not in ARCHS:
            raise UsageError(f"--arch {self.arch}: known are {', '.join(ARCHS)}")
        self._check_permissions()

    def _check_permissions(self) -> None:
        for bucket in self.read_buckets:
            if not _BUCKET.fullmatch(bucket):
                raise UsageError(f"--read-bucket {bucket}: not the name of a bucket")
        for policy in self.policies:
            if not _POLICY.fullmatch(policy):
                raise UsageError(
                    f"--policy {policy}: not the ARN of a managed policy, such as"
                    " arn:aws:iam::123456789012:policy/NAME"
                )
        if len(self.policies) > MAX_POLICIES:
            raise UsageError(f"--policy: a role has at most {MAX_POLICIES} managed policies")

    def check_region(self, region: str) -> None:
        """Check that a region has what the layout asks for.

        Parameters
        ----------
        region
            AWS region; "" passes every check.

        Raises
        ------
        UsageError
            It has no SnapStart.
        """
        if self.snapstart and region.startswith(NO_SNAPSTART):
            raise UsageError(f"--snapstart: Lambda in {region} has no SnapStart for Python")

    @property
    def topics(self) -> int:
        """Return the number of topics that the pool's queues need."""
        return -(-self.ranks // FILTERS_PER_TOPIC)


def queue_name(stack: str, slot: int) -> str:
    """Return the name of a queue of the pool.

    Parameters
    ----------
    stack
        Name of the stack, or its pseudo parameter in a template.
    slot
        Number of the queue, from 0.
    """
    return f"{stack}-{QUEUE}-{slot:04d}"


def console_name(stack: str, number: int) -> str:
    """Return the name of a queue on which ranks report to their launcher.

    Parameters
    ----------
    stack
        Name of the stack, or its pseudo parameter in a template.
    number
        Number of the console queue, from 0.
    """
    return f"{stack}-{CONSOLE}-{number:04d}"


def topic_name(stack: str, number: int) -> str:
    """Return the name of a topic of the pool.

    Parameters
    ----------
    stack
        Name of the stack, or its pseudo parameter in a template.
    number
        Number of the topic, which serves slots number*200 to number*200 + 199.
    """
    return f"{stack}-{TOPIC}-{number:04d}"


def function_name(stack: str, memory_mb: int) -> str:
    """Return the name of the function that runs ranks with a memory size.

    Parameters
    ----------
    stack
        Name of the stack, or its pseudo parameter in a template.
    memory_mb
        Memory size in MB.
    """
    return f"{stack}-{RANK}-{memory_mb}"
