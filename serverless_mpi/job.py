"""JobSpec: the description of a job, seen from one rank.

It crosses process boundaries in two forms, which share one schema (`_PUBLIC`):
environment variables of a local process (`to_env`, `from_env`), and JSON in the
payload of an invocation and in the record of a job (`public`, `from_public`).
The rank and the key are passed separately.  The key never travels through a
channel and is never written to a file.

If you add a field to `JobSpec`, also add it to `_PUBLIC` and `public`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from serverless_mpi.env import ENV_JOB, ENV_KEY, ENV_PARENT, ENV_RANK
from serverless_mpi.errors import JobError

# Prefix of frames in a bucket; the role of a stack's functions may use this prefix only.
FRAMES = "f/"
# Settings: where frames lie, if not in the setting "bucket"; and, until rank 0 has chosen it, the
# directory buckets that it can be, by zone in JSON.
FRAMES_BUCKET, EXPRESS_BUCKETS = "frames_bucket", "express_buckets"
# Setting of a bridge between two groups: [job id, rank there] of each of its processes, as JSON.
MEMBERS = "members"
KEY_BYTES = 32
# Set for each rank by Hydra and other PMI managers, PMIx (PRRTE, srun) and Open MPI's mpirun.
MPI_LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def frames_prefix(job_id: str) -> str:
    """Return the prefix of a job's frames in its bucket.

    Parameters
    ----------
    job_id
        Id of the job.
    """
    return f"{FRAMES}{job_id}/"


def is_rank(environ: Mapping[str, str]) -> bool:
    """Return whether smpirun, or the launcher of a real MPI, started this process as a rank.

    Parameters
    ----------
    environ
        Environment of the process.
    """
    return (
        _taken is not None
        or ENV_JOB in environ
        or any(name in environ for name in MPI_LAUNCHER_VARIABLES)
    )


_JOB_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_URL = re.compile(r"https?://[^\s]{1,2000}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_seconds(value: object) -> bool:
    """Return whether a JSON value is a finite time of at least 0; `true` is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


# The one schema of a job outside its process: field -> whether a JSON value can be its value.
_PUBLIC: dict[str, Callable[[object], bool]] = {
    "job_id": lambda value: _matches(_JOB_ID, value),
    "size": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    "channel": lambda value: _matches(_NAME, value),
    "endpoint": lambda value: value is None or _matches(_URL, value),
    "region": _is_text,
    "settings": _is_text_table,
    "stats_dir": lambda value: value is None or _is_text(value),
    "deadlock_s": _is_seconds,
    "plugins": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "algorithms": _is_text_table,
}


class JobFieldError(JobError):
    """A description of a job is damaged. The text quotes no value, which could be a secret.

    Parameters
    ----------
    field
        Name of the first invalid field; "" if it is not an object with the fields of a job.
    """

    def __init__(self, field: str) -> None:
        at = f"its field {field}" if field else "it is not a JSON object with the fields of a job"
        super().__init__(f"not a job of this version of serverless_mpi: {at}")
        self.field = field


@dataclass(frozen=True)
class JobSpec:
    """One rank's view of a job.

    Attributes
    ----------
    job_id
        16 hexadecimal digits; names every queue, topic and object of the job.
    rank, size
        This process in 0..size-1, and their number.
    channel
        A name of `serverless_mpi.channels.CHANNELS`.
    key
        32 secret bytes that authenticate every frame (BLAKE2b).
    endpoint
        URL of an AWS emulator; None means AWS itself.
    region
        AWS region of queues, topics and buckets.
    settings
        What the channel's `provision` returned: bucket, queue URLs, topics, addresses.
    stats_dir
        Folder in which each rank writes its counters when it ends; None for none.
    deadlock_s
        The launcher stops a job in which every rank has waited for this many seconds; 0 for
        never.  Ranks report long waits in `stats_dir`.
    plugins
        Modules that register collective algorithms; every rank imports them before its first call.
    algorithms
        Operation -> name of the algorithm that its calls use, for those that the user chose.
    """

    job_id: str
    rank: int
    size: int
    channel: str
    key: bytes = field(repr=False)
    endpoint: str | None = None
    region: str = "us-east-1"
    settings: Mapping[str, str] = field(default_factory=dict)
    stats_dir: str | None = None
    deadlock_s: float = 0.0
    plugins: tuple[str, ...] = ()
    algorithms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise JobError(f"a job needs at least 1 rank, not {self.size}")
        if not 0 <= self.rank < self.size:
            raise JobError(f"rank {self.rank} is outside 0..{self.size - 1}")
        if len(self.key) != KEY_BYTES:
            raise JobError(f"the job key has {len(self.key)} bytes; {KEY_BYTES} are needed")
        if _JOB_ID.fullmatch(self.job_id) is None:
            raise JobError(f"job id {self.job_id!r} is not 16 lower-case hexadecimal digits")

    @classmethod
    def new(cls, size: int, channel: str, **more: object) -> JobSpec:
        """Return a new job with a random id and key, as rank 0 sees it.

        Parameters
        ----------
        size
            Number of ranks.
        channel
            Name of the channel.
        **more
            Other fields.

        Raises
        ------
        JobError
            The job has no rank.
        """
        job_id, key = os.urandom(8).hex(), os.urandom(KEY_BYTES)
        return cls(job_id, 0, size, channel, key, **more)  # type: ignore[arg-type]

    @property
    def node(self) -> int | None:
        """Number of the rank's node, which its channel has in `settings`; None if there is one."""
        nodes = self.nodes
        return nodes[self.rank] if nodes else None

    @property
    def nodes(self) -> tuple[int, ...]:
        """Number of each rank's node; empty if all are on one node."""
        nodes = json.loads(self.settings.get("nodes", "[0]"))
        return tuple(nodes) if len(set(nodes)) > 1 else ()

    @property
    def members(self) -> list[tuple[str, int]]:
        """Of a bridge between two groups: the job of each of its processes, and the rank there."""
        return [(str(job), int(rank)) for job, rank in json.loads(self.settings[MEMBERS])]

    def with_rank(self, rank: int) -> JobSpec:
        """Return the job as another rank sees it.

        Parameters
        ----------
        rank
            In 0..size-1.
        """
        return replace(self, rank=rank)

    def public(self) -> dict[str, Any]:
        """Return all fields except the rank and the key as JSON values, for `from_public`."""
        return {
            "job_id": self.job_id,
            "size": self.size,
            "channel": self.channel,
            "endpoint": self.endpoint,
            "region": self.region,
            "settings": dict(self.settings),
            "stats_dir": self.stats_dir,
            "deadlock_s": self.deadlock_s,
            "plugins": list(self.plugins),
            "algorithms": dict(self.algorithms),
        }

    @classmethod
    def from_public(cls, public: Mapping[str, Any], rank: int, key: bytes) -> JobSpec:
        """Rebuild a spec from what `public` returned.

        Parameters
        ----------
        public
            Parsed JSON with exactly the fields that `public` returns.
        rank, key
            As in `JobSpec`; they are passed separately.

        Raises
        ------
        JobFieldError
            A field is unknown, missing, or has a value that it cannot have.
        JobError
            The rank or the key is not one of that job.
        """
        if not isinstance(public, Mapping):
            raise JobFieldError("")
        for name, is_valid in _PUBLIC.items():
            if name not in public or not is_valid(public[name]):
                raise JobFieldError(name)
        if len(public) > len(_PUBLIC):
            raise JobFieldError("")
        return cls(rank=rank, key=key, **{**public, "plugins": tuple(public["plugins"])})

    def to_env(self) -> dict[str, str]:
        """Return environment variables from which `from_env` rebuilds this spec."""
        return {
            ENV_JOB: json.dumps(self.public()),
            ENV_RANK: str(self.rank),
            ENV_KEY: self.key.hex(),
        }

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> JobSpec | None:
        """Return the spec in an environment.

        Parameters
        ----------
        environ
            Environment of the process.

        Returns
        -------
        JobSpec or None
            None if no launcher of this package started the process.

        Raises
        ------
        JobError
            The variables are damaged; the launcher that set them is at fault.
        """
        if ENV_JOB not in environ:
            return None
        try:
            public = json.loads(environ[ENV_JOB])
            rank, key = int(environ[ENV_RANK]), bytes.fromhex(environ[ENV_KEY])
            return cls.from_public(public, rank, key)
        except (KeyError, ValueError, RecursionError, JobError) as error:
            raise JobError(
                f"{ENV_JOB}, {ENV_RANK} and {ENV_KEY} do not describe a job ({error});"
                " start programs with smpirun"
            ) from error

    def to_json(self) -> str:
        """Return the spec as one text, key included, from which `from_json` rebuilds it."""
        return json.dumps({"job": self.public(), "rank": self.rank, "key": self.key.hex()})

    @classmethod
    def from_json(cls, text: str) -> JobSpec:
        """Rebuild a spec from what `to_json` returned.

        Parameters
        ----------
        text
            From a source that is trusted with the key.

        Raises
        ------
        JobError
            It is not such a text; the error does not quote it.
        """
        try:
            fields = json.loads(text)
            return cls.from_public(fields["job"], int(fields["rank"]), bytes.fromhex(fields["key"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise JobError("not the description of a rank and its job") from error


_taken: JobSpec | None = None  # the spec that this process took out of its environment
_taken_parent: JobSpec | None = None  # and of the bridge to the processes that spawned it


def take_spec(environ: MutableMapping[str, str]) -> JobSpec | None:
    """Make this process its rank: return its spec and remove it from the environment.

    The first process that imports MPI is the rank, whether it was launched or is a descendant
    (`smpirun bash -c "python program.py"`).  Processes that it starts do not see the key; each is
    a job of one rank.

    Parameters
    ----------
    environ
        Environment of the process; the job and the key are deleted from it.

    Returns
    -------
    JobSpec or None
        None if no launcher started the process.
    """
    global _taken, _taken_parent
    if _taken is None:
        _taken = JobSpec.from_env(environ)
        if _taken is not None:
            del environ[ENV_JOB], environ[ENV_KEY]
            if ENV_PARENT in environ:
                _taken_parent = JobSpec.from_json(environ.pop(ENV_PARENT))
    return _taken


def parent_spec() -> JobSpec | None:
    """Return the bridge to the processes that spawned this rank, as `take_spec` found it.

    Returns
    -------
    JobSpec or None
        None if the rank was not spawned.
    """
    return _taken_parent


def current_spec(environ: Mapping[str, str]) -> JobSpec | None:
    """Return the spec of this process, whether `take_spec` has removed it or not.

    Parameters
    ----------
    environ
        Environment of the process.
    """
    return _taken or JobSpec.from_env(environ)
