"""The interface of a launcher: it runs a plan to its end and leaves nothing behind.

A `Plan` holds the options of the command line, and nothing else.  A `Launcher` starts the processes
or functions of one platform.  A new platform is one file with a `Launcher` and one row: in
`LAUNCHERS` (launch/__init__.py), or in the entry points of another distribution (group
`serverless_mpi.launchers`).

A launcher honors a field of `Plan`, or its option is refused: `honors` is the
list, and `check` refuses.  An option that is silently ignored is a fault.

If you add a field to `Plan`, also add its option in launch/cli.py (and to
`OPTIONS` if the two names differ), put it in `honors` of the launchers that
read it, and give it a value in `serverless_mpi/testing/launchers.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar

from serverless_mpi.errors import UsageError

EXIT_USAGE = 2  # the command line cannot work
EXIT_TIMEOUT = 124  # the code that timeout(1) uses
EXIT_DEADLOCK = 125  # every rank waits, and nothing is in flight


@dataclass(frozen=True)
class Program:
    """One program and the ranks that run it.

    Attributes
    ----------
    argv
        A `.py` file (or a folder or zip with `__main__.py`) or an executable, and its arguments.
    ranks
        How many ranks run it; at least 1.
    module
        argv[0] is the name of a module, as after `python -m`.
    variables
        Environment variables that the user sets with -x.
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

    Attributes
    ----------
    programs
        Ranks are numbered through them in order.
    channel
        A name of `serverless_mpi.channels.CHANNELS`.
    endpoint
        URL of a running emulator; None lets the launcher start one if the channel needs it.
    port
        Port of the emulator that the launcher starts; None for a free one.
    host
        Address on which ranks of channel `direct` listen by TCP; None for Unix sockets.
    ppn
        Channel routed: ranks per node, which reach each other by Unix sockets; None: all ranks.
    echo
        Channel routed: URL that answers with a rank's public address; None: ranks listen on `host`.
    region
        AWS region, in names and prices; "" for the one of AWS's own configuration.
    alias
        Whether `from mpi4py import MPI` imports this package.
    tag_output
        Each line of output begins with its rank.
    outfile, errfile
        Path of a file per rank for its standard output and error, with %r for the rank; None
        for the launcher's own.
    torch
        Whether ranks have the variables by which PyTorch finds its peers.
    debug
        The rank that has the terminal, for a debugger; None for none.
    debugpy
        Rank r waits for a client of debugpy on port debugpy + r of this machine; None: it does not.
    timeout_s
        The job is stopped after this many seconds; None for never.
    deadlock_s
        The job is stopped when every rank has waited for this many seconds; 0 for never.
    ft
        A rank that dies does not end the job: the others are notified of it.
    restarts
        How often the job starts again when a rank dies or is lost.
    stats
        "text", "json" or "none": how requests and dollars are printed at the end.
    prices
        File of a price table; None for the package's.
    explain
        Whether to print at the end which algorithm each collective used, and what it costs.
    figures
        File of figures of AWS, or "stack"; None for those of the stack if it has some, else the
        package's.
    algorithms
        Operation -> name of the algorithm that its calls use if it can serve them.
    trace
        File for a trace of what each rank did when; None for none.
    profile
        File for a profile, besides its text on standard error; "" for the text alone, None for no
        profile.
    stack
        Platform lambda: the deployed stack.
    memory_mb
        Platform lambda: memory of each rank's function; None for the stack's least.
    branching
        Ranks that each rank starts (`launch/tree.py`). None: the launcher starts all, or on lambda
        chooses.
    budget_usd
        Platform lambda: the job needs the user's consent if it might cost more; None for no limit.
    requirements
        Platform lambda: a requirements file of what the program imports in addition to numpy.
    """

    programs: tuple[Program, ...]
    channel: str
    endpoint: str | None = None
    port: int | None = None
    host: str | None = None
    ppn: int | None = None
    echo: str | None = None
    region: str = "us-east-1"
    alias: bool = True
    tag_output: bool = False
    outfile: str | None = None
    errfile: str | None = None
    torch: bool = False
    debug: int | None = None
    debugpy: int | None = None
    timeout_s: float | None = None
    deadlock_s: float = 60.0
    ft: bool = False
    restarts: int = 0
    stats: str = "none"
    prices: str | None = None
    explain: bool = False
    figures: str | None = None
    algorithms: Mapping[str, str] = field(default_factory=dict)
    trace: str | None = None
    profile: str | None = None
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
    "ppn": "-ppn",
    "timeout_s": "--timeout",
    "deadlock_s": "--deadlock",
    "memory_mb": "--memory",
    "budget_usd": "--budget",
}
COMMON_FIELDS = frozenset({"programs", "channel"})  # these have an effect on every platform


def option_of(field_name: str) -> str:
    """Return the option that sets a field of `Plan`, such as "--timeout".

    Parameters
    ----------
    field_name
        Name of the field.
    """
    return OPTIONS.get(field_name, f"--{field_name.replace('_', '-')}")


class Launcher(ABC):
    """Runs plans on one platform.

    Attributes
    ----------
    honors
        The fields of `Plan`, besides `COMMON_FIELDS`, that have an effect on this platform.
        The command line refuses the options of all others.
    region
        AWS region of a plan that names none.
    """

    honors: ClassVar[frozenset[str]] = frozenset()
    region: ClassVar[str] = "us-east-1"

    @classmethod
    def check(cls, plan: Plan, platform: str) -> None:
        """Check that everything the plan asks for has an effect on this platform.

        Parameters
        ----------
        plan
            The job.
        platform
            Name of this launcher, for the error text.

        Raises
        ------
        UsageError
            A field that this launcher does not honor differs from its default.
        """
        for entry in fields(plan):
            if entry.name in COMMON_FIELDS or entry.name in cls.honors:
                continue
            default: object = cls.region if entry.name == "region" else entry.default
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            if getattr(plan, entry.name) != default:
                raise UsageError(
                    f"{option_of(entry.name)} has no effect with --platform {platform}: omit it"
                )

    @abstractmethod
    def run(self, plan: Plan) -> int:
        """Run the job to its end and remove everything that was made for it.

        Parameters
        ----------
        plan
            The job; `check` has accepted it.

        Returns
        -------
        int
            Exit code of smpirun: 0 if every rank ended with 0; else the exit code of the rank
            that failed first, or 128 + N if signal N ended it; `EXIT_TIMEOUT` after
            `timeout_s`; `EXIT_DEADLOCK` after a deadlock; 130 after Ctrl-C.

        Raises
        ------
        UsageError, ChannelError
            The job could not begin.
        """

    @abstractmethod
    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        """Remove what jobs left behind whose launcher was killed (`smpirun --cleanup`).

        Parameters
        ----------
        endpoint
            URL of an emulator in which to look, too; None for no emulator.
        region
            AWS region of what is in the emulator.

        Returns
        -------
        list of str
            One line per job: what was removed, or why it could not be.
        """
