"""What a launcher is: it makes a job of a plan, sees it to its end, and leaves nothing behind.

A plan is what the command line says and no more; where processes or functions
come from is the launcher's. A new platform is one file that defines a
`Launcher` and one row in `launch/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar

from serverless_mpi.errors import UsageError

EXIT_USAGE = 2  # the command line cannot work
EXIT_TIMEOUT = 124  # as timeout(1) says it
EXIT_DEADLOCK = 125  # every rank waits, and nothing is in flight


@dataclass(frozen=True)
class Program:
    """One program and the ranks that run it.

    argv
        A `.py` file (or a folder or zip with `__main__.py`) or an executable, and its arguments.
    ranks
        How many ranks run it; at least 1.
    module
        argv[0] is the name of a module, as after `python -m`.
    variables
        Environment variables that the user gave with -x.
    folder
        Working directory; None for the launcher's own.
    """

    argv: tuple[str, ...]
    ranks: int = 1
    module: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None


@dataclass(frozen=True)
class Plan:
    """A job to run.

    programs
        Ranks are numbered through them in order.
    channel
        A name of `serverless_mpi.channels.CHANNELS`.
    endpoint
        URL of an emulator that runs already; None lets the launcher start one where the channel needs it.
    port
        Port of the emulator that the launcher starts; None for a free one.
    host
        Address on which ranks of channel `direct` listen by TCP; None for Unix sockets.
    region
        AWS region, in names and prices; "" for the one that AWS's own settings name.
    alias
        Programs that say `from mpi4py import MPI` get this package.
    tag_output
        Each line of output begins with its rank.
    timeout_s
        The job is stopped after this many seconds; None for never.
    deadlock_s
        The job is stopped when every rank has waited for this many seconds; 0 for never.
    stats
        "text", "json" or "none": what is printed of requests and dollars at the end.
    prices
        File of a price table; None for the package's.
    explain
        Whether it is said at the end which algorithm each collective took, and what it costs.
    algorithms
        Operation -> name of the algorithm that its calls use where it can serve them.
    trace
        File for a trace of what each rank did when; None for none.
    stack
        Platform lambda: the deployed stack.
    memory_mb
        Platform lambda: memory of each rank's function; None for the stack's least.
    branching
        How many ranks each rank starts (`launch/tree.py`); None: the launcher starts all, or on lambda chooses.
    budget_usd
        Platform lambda: the job is not started without consent if it might cost more; None for no limit.
    requirements
        Platform lambda: a requirements file of what the program imports beside numpy.
    """

    programs: tuple[Program, ...]
    channel: str
    endpoint: str | None = None
    port: int | None = None
    host: str | None = None
    region: str = "us-east-1"
    alias: bool = True
    tag_output: bool = False
    timeout_s: float | None = None
    deadlock_s: float = 60.0
    stats: str = "none"
    prices: str | None = None
    explain: bool = False
    algorithms: Mapping[str, str] = field(default_factory=dict)
    trace: str | None = None
    stack: str = "smpi"
    memory_mb: int | None = None
    branching: int | None = None
    budget_usd: float | None = None
    requirements: str | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(program.ranks for program in self.programs)


# How the command line names a field of `Plan`, where it is not the field's own name.
OPTIONS = {
    "algorithms": "--algorithm",
    "alias": "--no-alias",
    "timeout_s": "--timeout",
    "deadlock_s": "--deadlock",
    "memory_mb": "--memory",
    "budget_usd": "--budget",
}
EVERY = frozenset({"programs", "channel"})  # fields that mean something on every platform


class Launcher(ABC):
    """Runs plans on one platform.

    honors: the fields of `Plan`, beside `EVERY`, that have an effect on this
    platform; the command line refuses the others.
    region: the AWS region of a plan that names none.
    """

    honors: ClassVar[frozenset[str]] = frozenset()
    region: ClassVar[str] = "us-east-1"

    @classmethod
    def check(cls, plan: Plan, platform: str) -> None:
        """See that everything the plan asks for is done on this platform.

        Raises
        ------
        UsageError
            A field that it does not honor has not its default.
        """
        for one in fields(plan):
            if one.name in EVERY or one.name in cls.honors:
                continue
            default: object = cls.region if one.name == "region" else one.default
            if one.default_factory is not MISSING:
                default = one.default_factory()
            if getattr(plan, one.name) != default:
                option = OPTIONS.get(one.name, f"--{one.name.replace('_', '-')}")
                raise UsageError(f"{option} has no effect with --platform {platform}: omit it")

    @abstractmethod
    def run(self, plan: Plan) -> int:
        """Run the job to its end; returns the exit code of the whole.

        0 if every rank ended with 0, else the code of the rank that failed
        first (128 + n if signal n ended it), or EXIT_TIMEOUT.

        Raises
        ------
        UsageError, ChannelError
            The job could not begin. Nothing of it is left.
        """

    @abstractmethod
    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        """Remove what dead jobs left behind; returns one line for each job: what was removed, or why it could not be."""
