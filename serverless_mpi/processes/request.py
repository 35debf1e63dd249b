"""What a rank asks of the launcher of the job that it spawns, and what the launcher replies.

Both are one line of JSON on a socket pair that only the two processes have, so the key of the
bridge may be in it. If you change a field, also change `VERSION`: the launcher may be another
version of this package, if the environment of the rank was changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from serverless_mpi.errors import JobError
from serverless_mpi.processes.bridge import Member

VERSION = 1


@dataclass(frozen=True)
class Command:
    """A program of a spawned job.

    Attributes
    ----------
    argv
        Program and arguments.
    procs
        Number of ranks that run it.
    folder
        Working folder; None for that of the rank that spawns.
    path
        Folders, separated by colons, in which the program is looked for first; None for none.
    """

    argv: tuple[str, ...]
    procs: int
    folder: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class SpawnRequest:
    """A job to be spawned.

    Attributes
    ----------
    bridge_id, bridge_key
        Of the bridge between the ranks that spawn and the spawned ones.
    parents
        The ranks that spawn, which are the first of the bridge.
    commands
        The programs, in the order of ranks.
    options
        Options of the launcher that the new job has from the old one: fields of its plan.
    """

    bridge_id: str
    bridge_key: bytes = field(repr=False)
    parents: tuple[Member, ...]
    commands: tuple[Command, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the request as one line of JSON."""
        return json.dumps(
            {
                "version": VERSION,
                "bridge_id": self.bridge_id,
                "bridge_key": self.bridge_key.hex(),
                "parents": [member.to_json() for member in self.parents],
                "commands": [asdict(command) for command in self.commands],
                "options": dict(self.options),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SpawnRequest:
        """Rebuild a request from what `to_json` returned.

        Parameters
        ----------
        text
            One line of JSON.

        Raises
        ------
        JobError
            It is not a request of this version.
        """
        try:
            fields = json.loads(text)
            if fields.pop("version") != VERSION:
                raise JobError("a request of another version of serverless_mpi")
            commands = fields.pop("commands")
            return cls(
                bridge_key=bytes.fromhex(fields.pop("bridge_key")),
                parents=tuple(map(Member.from_json, fields.pop("parents"))),
                commands=tuple(
                    Command(**{**command, "argv": tuple(command["argv"])}) for command in commands
                ),
                **fields,
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise JobError("not a request to spawn a job") from error


@dataclass(frozen=True)
class SpawnReply:
    """What became of a request.

    Attributes
    ----------
    job_id
        Of the new job; "" if it was not started.
    children
        Its ranks, which follow the parents in the bridge.
    error
        Why it was not started, in one line; "" if it was.
    """

    job_id: str = ""
    children: tuple[Member, ...] = ()
    error: str = ""

    def to_json(self) -> str:
        """Return the reply as one line of JSON."""
        return json.dumps(
            {
                "version": VERSION,
                "job_id": self.job_id,
                "children": [member.to_json() for member in self.children],
                "error": self.error,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SpawnReply:
        """Rebuild a reply from what `to_json` returned.

        Parameters
        ----------
        text
            One line of JSON.

        Raises
        ------
        JobError
            It is not a reply of this version.
        """
        try:
            fields = json.loads(text)
            if fields["version"] != VERSION:
                raise JobError("a reply of another version of serverless_mpi")
            children = tuple(map(Member.from_json, fields["children"]))
            return cls(str(fields["job_id"]), children, str(fields["error"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise JobError("not a reply to a request to spawn a job") from error
