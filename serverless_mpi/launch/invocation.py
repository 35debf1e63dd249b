"""An invocation: what a function receives when it is started for a rank, or a pack of ranks.

`Invocation.to_event` writes the payload, `from_event` checks and reads it: the job
(`JobSpec.public`), the first rank, the key, the programs, and how to start further functions.
Function f runs the ranks pack*f to pack*f + pack - 1; functions form the tree of `launch/tree.py`.

The job's key travels here and nowhere else on the platform.  Lambda stores events
in no queue or bucket of the account; nobody may log one, so errors name a field
and never quote a value.

If you add a field to `Invocation`, also write it in `to_event` and check it in
`from_event`.  There is one version: the launcher refuses a stack of another one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serverless_mpi.errors import JobError
from serverless_mpi.job import JobFieldError, JobSpec
from serverless_mpi.launch import tree
from serverless_mpi.stack import bucket

_FUNCTION = re.compile(r"[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9_-]{1,128})?")
_URL = re.compile(r"https?://[^\s]{1,2000}")

MAX_PACK = 64  # ranks of a function, far more than it has vCPUs

# how a program is started
SCRIPT, MODULE, ENTRY, EXECUTABLE = "script", "module", "entry", "executable"


@dataclass(frozen=True)
class Task:
    """One program and the ranks that run it.

    kind, argv
        SCRIPT: argv[0] is a file or folder below the bundle; MODULE: a module's name; ENTRY:
        `module:function`, a console script; EXECUTABLE: a file below the bundle, or a command of
        the platform. Then the arguments.
    ranks
        How many ranks run it.
    bundle
        Key of the zip of its files, which is the working directory; None for an empty one.  The key
        has the zip's SHA-256 in it, so what lies in the bucket is compared with what the launcher
        sent.
    variables
        Environment variables that the user gave.
    """

    kind: str
    argv: tuple[str, ...]
    ranks: int
    bundle: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Invocation:
    """What a function needs to start.

    spec
        The job seen from the function's first rank; its settings name the bucket.
    tasks
        Programs; ranks are numbered through them in order.
    function
        Name (or name:alias) with which this function starts its children.
    branching
        How many functions each function starts.
    console
        URL of the queue for console messages.
    limit_s
        How long the ranks may run, in seconds from the function's beginning, since clocks differ;
        None for the platform's limit.
    alias
        Programs that say `from mpi4py import MPI` get this package.
    site
        Key of the zip of the installed requirements, with its SHA-256 in it; None for none.
    explain, trace, profile
        Whether each rank notes which algorithms were chosen, and leaves a trace and a profile below
        the job's key in the bucket.
    pack
        Ranks of each function; the last one may have fewer.
    """

    spec: JobSpec
    tasks: tuple[Task, ...]
    function: str
    branching: int
    console: str
    limit_s: float | None = None
    alias: bool = True
    site: str | None = None
    explain: bool = False
    trace: bool = False
    profile: bool = False
    pack: int = 1

    @property
    def ranks(self) -> range:
        """Ranks that this function runs."""
        return range(self.spec.rank, min(self.spec.rank + self.pack, self.spec.size))

    @property
    def children(self) -> list[int]:
        """First ranks of the functions that this function starts."""
        functions = -(-self.spec.size // self.pack)
        own = self.spec.rank // self.pack
        return [self.pack * child for child in tree.children(own, functions, self.branching)]

    def for_rank(self, rank: int) -> Invocation:
        """Return the invocation of another function of the job.

        Parameters
        ----------
        rank
            Its first rank, in 0..size-1.
        """
        return replace(self, spec=self.spec.with_rank(rank))

    def with_settings(self, settings: Mapping[str, str]) -> Invocation:
        """Return the invocation with other settings of the job.

        Parameters
        ----------
        settings
            Name -> text; they replace all settings.
        """
        return replace(self, spec=replace(self.spec, settings=settings))

    def task(self, rank: int) -> Task:
        """Return the program of a rank.

        Parameters
        ----------
        rank
            In 0..size-1.
        """
        first = 0
        for task in self.tasks:
            first += task.ranks
            if rank < first:
                return task
        raise JobError(f"rank {rank} has no program: the tasks have {first} ranks")

    def to_event(self) -> bytes:
        """Return the payload of the invocation: JSON, with the key in it."""
        spec = self.spec
        rest = {
            name: getattr(self, name)
            for name in (
                "function",
                "branching",
                "console",
                "limit_s",
                "alias",
                "site",
                "explain",
                "trace",
                "profile",
                "pack",
            )
        }
        tasks = [asdict(task) for task in self.tasks]
        job = {"job": spec.public(), "rank": spec.rank, "key": spec.key.hex()}
        return json.dumps({**job, "tasks": tasks, **rest}).encode()

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Invocation:
        """Read what `to_event` wrote.

        Parameters
        ----------
        event
            Payload of the invocation as parsed JSON; not trusted.

        Raises
        ------
        JobError
            The event is not valid; the caller of the function is at fault.  The text names the
            first field that is wrong and quotes nothing of the event, which holds the key.
        """
        checked = _Fields(event, "event")
        job = checked.take("job", dict)
        rank = checked.take("rank", int)
        key = checked.take("key", str)
        tasks = tuple(
            _task(task, f"tasks[{number}]")
            for number, task in enumerate(checked.take("tasks", list))
        )
        try:
            spec = JobSpec.from_public(job, rank, bytes.fromhex(key))
        except JobFieldError as error:
            raise _invalid(f"job.{error.field}".rstrip(".")) from None
        except ValueError:
            raise _invalid("key") from None
        if spec.stats_dir is not None:  # a folder of the function, which the rank itself makes
            raise _invalid("job.stats_dir")
        invocation = cls(
            spec,
            tasks,
            function=checked.matching("function", _FUNCTION),
            branching=checked.take("branching", int),
            console=checked.matching("console", _URL),
            limit_s=checked.seconds_or_none("limit_s"),
            alias=checked.take("alias", bool),
            site=checked.zip("site"),
            explain=checked.take("explain", bool),
            trace=checked.take("trace", bool),
            profile=checked.take("profile", bool),
            pack=checked.take("pack", int),
        )
        checked.end()
        if invocation.branching < 1:
            raise _invalid("branching")
        if not 1 <= invocation.pack <= MAX_PACK or spec.rank % invocation.pack:
            raise _invalid("pack")
        if sum(task.ranks for task in tasks) != spec.size:
            raise _invalid("tasks")
        return invocation


def _invalid(field: str) -> JobError:
    return JobError(
        f"this event is not an invocation by a launcher of this version (field {field});"
        " see smpi doctor"
    )


def _task(event: Any, name: str) -> Task:
    task = _Fields(event, name)
    made = Task(
        kind=task.take("kind", str),
        argv=tuple(task.take("argv", list)),
        ranks=task.take("ranks", int),
        bundle=task.zip("bundle"),
        variables=task.texts("variables"),
    )
    task.end()
    if made.kind not in (SCRIPT, MODULE, ENTRY, EXECUTABLE):
        raise _invalid(f"{name}.kind")
    if not made.argv or not all(isinstance(word, str) and "\0" not in word for word in made.argv):
        raise _invalid(f"{name}.argv")
    if made.ranks < 1:
        raise _invalid(f"{name}.ranks")
    for variable, value in made.variables.items():
        if not variable or "=" in variable or "\0" in variable + value:
            raise _invalid(f"{name}.variables")
    return made


class _Fields:
    """An object of an event, read field by field; errors name the field and never its value."""

    def __init__(self, event: Any, name: str) -> None:
        if not isinstance(event, Mapping):
            raise _invalid(name)
        self._left = dict(event)
        self._name = name

    def _path(self, name: str) -> str:
        return name if self._name == "event" else f"{self._name}.{name}"

    def take(self, name: str, kind: type) -> Any:
        """Return a field of that type; true is not a number."""
        value = self._left.pop(name, None)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _invalid(self._path(name))
        return value

    def texts(self, name: str) -> dict[str, str]:
        """Return a table of texts."""
        found: dict[str, str] = self.take(name, dict)
        if not all(isinstance(value, str) for value in found.values()):
            raise _invalid(self._path(name))
        return found

    def seconds_or_none(self, name: str) -> float | None:
        """Return a time in seconds that is neither negative nor infinite, or None."""
        value = self._left.pop(name, math.nan)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise _invalid(self._path(name))
        return float(value)

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return a text that matches."""
        value: str = self.take(name, str)
        if not pattern.fullmatch(value):
            raise _invalid(self._path(name))
        return value

    def zip(self, name: str) -> str | None:
        """Return the key of a zip, which names its content, or None."""
        value = self._left.pop(name, None)
        if value is not None and not bucket.is_zip_key(value):
            raise _invalid(self._path(name))
        return None if value is None else str(value)

    def end(self) -> None:
        """Check that all fields have been taken."""
        if self._left:
            raise _invalid(f"{self._name} has more fields")
