"""An order: what one rank is told in its invocation.  Event -> JobSpec, the program, and whom to start.

The job's key travels here and nowhere else on the platform: events are not stored in queues or objects, and nobody
may log one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from serverless_mpi.errors import JobError
from serverless_mpi.job import JobSpec

# how a program is started
SCRIPT, MODULE, ENTRY, EXECUTABLE = "script", "module", "entry", "executable"


@dataclass(frozen=True)
class Task:
    """One program and the ranks that run it.

    kind, argv
        SCRIPT: argv[0] is a file or folder below the bundle; MODULE: a module's name; ENTRY: `module:function`, a
        console script; EXECUTABLE: a file below the bundle, or a command of the platform. Then the arguments.
    ranks
        How many ranks run it.
    bundle
        Key of the zip of its files, which is the working directory; None for an empty one.
    variables
        Environment variables that the user gave.
    """

    kind: str
    argv: tuple[str, ...]
    ranks: int
    bundle: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What a rank needs to begin.

    spec
        The job seen from this rank; its settings name the bucket.
    tasks
        Programs; ranks are numbered through them in order.
    function
        Name (or name:alias) with which this rank starts its children.
    branching
        How many children each rank starts.
    console
        URL of the queue that takes what the rank has to say.
    limit_s
        How long the rank may run, in seconds from its own beginning, since clocks differ; None for the platform's limit.
    alias
        Programs that say `from mpi4py import MPI` get this package.
    site
        Key of the zip of the installed requirements; None for none.
    explain, trace
        Whether the rank notes which algorithms were chosen, and leaves a trace below the job's key in the bucket.
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

    def for_rank(self, rank: int) -> Order:
        """The same order to another rank."""
        return replace(self, spec=self.spec.with_rank(rank))

    @property
    def task(self) -> Task:
        """The program of this rank."""
        first = 0
        for task in self.tasks:
            first += task.ranks
            if self.spec.rank < first:
                return task
        raise JobError(f"rank {self.spec.rank} has no program: the order tells of {first} ranks")

    def to_event(self) -> bytes:
        """The payload of an invocation."""
        spec = self.spec
        public = {
            "job_id": spec.job_id,
            "rank": spec.rank,
            "size": spec.size,
            "channel": spec.channel,
            "endpoint": spec.endpoint,
            "region": spec.region,
            "settings": dict(spec.settings),
        }
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
            )
        }
        tasks = [asdict(task) for task in self.tasks]
        return json.dumps({"job": public, "key": spec.key.hex(), "tasks": tasks, **rest}).encode()

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Order:
        """The order that `to_event` wrote.

        Raises
        ------
        JobError
            It is none; whoever invoked the function is at fault.  The text does not quote it.
        """
        try:
            rest = {
                name: value for name, value in event.items() if name not in ("job", "key", "tasks")
            }
            spec = JobSpec(key=bytes.fromhex(event["key"]), **event["job"])
            tasks = tuple(Task(**{**task, "argv": tuple(task["argv"])}) for task in event["tasks"])
            return cls(spec, tasks, **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JobError(
                f"this event is no order of a launcher of this version ({type(error).__name__}); see smpi doctor"
            ) from None
