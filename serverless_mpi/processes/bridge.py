"""Bridges: the job that two groups of processes form, whose ranks are the processes of both.

Every process binds a listening socket of its own (`listen`) and describes itself by a `Member`. The
groups exchange their members, and each process makes the same `JobSpec` of them (`bridge_spec`), as
its own rank sees it. So addresses are known before any runtime of the bridge exists, and an early
connection waits in the backlog, as in any job over `direct`.

A process is named by its own job's id and its rank there (`JobSpec.members`): the numbers within a
bridge mean nothing outside of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi import channels
from serverless_mpi.errors import JobError
from serverless_mpi.job import MEMBERS, JobSpec

_NOT_OURS = -1  # in the place of another rank's descriptor


@dataclass(frozen=True)
class Member:
    """A process of a bridge, as the others see it.

    Attributes
    ----------
    job_id, rank
        Its own job, and its rank there.
    address
        Of its listening socket, as the channel writes it in its settings.
    """

    job_id: str
    rank: int
    address: str

    def to_json(self) -> list[Any]:
        """Return the member as a JSON value."""
        return [self.job_id, self.rank, self.address]

    @classmethod
    def from_json(cls, value: object) -> Member:
        """Rebuild a member from what `to_json` returned.

        Parameters
        ----------
        value
            A JSON value.

        Raises
        ------
        JobError
            It does not describe a member.
        """
        match value:
            case [str(job_id), int(rank), str(address)] if address and " " not in address:
                return cls(job_id, rank, address)
        raise JobError("not the description of a process of a bridge")


def listen(job_id: str, rank: int) -> tuple[Member, int]:
    """Bind a listening socket for a process of a bridge.

    Parameters
    ----------
    job_id, rank
        The process's own job, and its rank there.

    Returns
    -------
    Member, int
        The process, and the descriptor of the socket, which the caller owns.

    Raises
    ------
    ChannelError
        The socket cannot be made.
    """
    alone = JobSpec.new(1, channels.ONE_MACHINE)
    settings = channels.load(channels.ONE_MACHINE).provision(alone)
    return Member(job_id, rank, settings["addresses"]), int(settings["fds"])


def bridge_spec(
    bridge_id: str, key: bytes, members: Sequence[Member], number: int, descriptor: int
) -> JobSpec:
    """Return a bridge, as one of its processes sees it.

    Parameters
    ----------
    bridge_id
        Id of the bridge, 16 hexadecimal digits.
    key
        32 secret bytes that only the processes of the bridge, and who starts them, know.
    members
        All processes of the bridge, in the order of their ranks in it.
    number
        Rank of this process in the bridge.
    descriptor
        Of this process's listening socket; the runtime of the bridge takes it over.
    """
    descriptors = [_NOT_OURS] * len(members)
    descriptors[number] = descriptor
    return JobSpec(
        bridge_id,
        number,
        len(members),
        channels.ONE_MACHINE,
        key,
        settings={
            "addresses": " ".join(member.address for member in members),
            "fds": " ".join(map(str, descriptors)),
            "lanes": str(os.cpu_count() or 1),
            MEMBERS: json.dumps([[member.job_id, member.rank] for member in members]),
        },
    )
