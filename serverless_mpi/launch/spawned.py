"""The launcher of a spawned job: `python -m serverless_mpi.launch.spawned DESCRIPTOR`.

The root of a Spawn starts it (processes/spawner.py), with a socket on which it reads one request
and writes one reply. From then on it is `smpirun` for a job over `direct`: output, exit codes,
signals, time limits and the guard are those of local.py. It adds

- to the job: a key that is made from the key of the bridge to the ranks that spawn;
- to each rank: a listening socket in that bridge, and its description in the environment;
- the end: when the rank that spawned the job ends, its socket closes, and the ranks are stopped,
  unless the job is fault tolerant.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
from dataclasses import replace

from serverless_mpi import channels
from serverless_mpi.core.tags import Purpose, make
from serverless_mpi.env import ENV_PARENT
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.job import KEY_BYTES, JobSpec
from serverless_mpi.launch.base import Plan, Program
from serverless_mpi.launch.local import LocalLauncher, Running
from serverless_mpi.launch.output import printable
from serverless_mpi.processes.bridge import Member, bridge_spec, listen
from serverless_mpi.processes.request import Command, SpawnReply, SpawnRequest

EXIT_ORPHAN = 1  # exit code of a job whose parent ended


class SpawnedLauncher(LocalLauncher):
    """Runs a spawned job.

    Parameters
    ----------
    request
        The job.
    parent
        Socket to the rank that spawns it; borrowed.

    Attributes
    ----------
    replied
        Whether the job has begun, and the parent has been told of it.
    """

    def __init__(self, request: SpawnRequest, parent: socket.socket) -> None:
        self._request = request
        self._parent = parent
        self.replied = False

    def plan(self) -> Plan:
        """Return the plan of the job."""
        programs = tuple(map(_program, self._request.commands))
        return Plan(programs, channels.ONE_MACHINE, **self._request.options)

    def _prepare(self, spec: JobSpec) -> JobSpec:
        covered = bytes.fromhex(spec.job_id)
        return replace(spec, key=make(self._request.bridge_key, Purpose.CHILD, covered, KEY_BYTES))

    @property
    def _running(self) -> type[Running]:
        return _RunningChild

    def _adopt(self, job: Running) -> None:
        assert isinstance(job, _RunningChild)
        job.bridge(self, self._request, self._parent)

    def reply(self, reply: SpawnReply) -> None:
        """Send the reply to the parent.

        Parameters
        ----------
        reply
            What became of the job.
        """
        self.replied = True
        self._parent.sendall(reply.to_json().encode() + b"\n")


class _RunningChild(Running):
    """The processes of a spawned job."""

    def bridge(
        self, launcher: SpawnedLauncher, request: SpawnRequest, parent: socket.socket
    ) -> None:
        """Make what each rank has of the bridge; before any is started.

        Parameters
        ----------
        launcher
            Sends the reply when the ranks have been started.
        request
            The job.
        parent
            Socket to the rank that spawns it; borrowed.
        """
        self._launcher, self._request, self._parent = launcher, request, parent
        seats = [listen(self._spec.job_id, rank) for rank in range(self._plan.size)]
        self._children = tuple(member for member, _ in seats)
        self._bridge_sockets = [descriptor for _, descriptor in seats]
        self._inherited += self._bridge_sockets
        self._members: tuple[Member, ...] = (*request.parents, *self._children)
        self._selector.register(parent, selectors.EVENT_READ, ("parent", self._orphaned))

    def start(self) -> None:
        super().start()
        self._launcher.reply(SpawnReply(self._spec.job_id, self._children))

    def _own_variables(self, spec: JobSpec) -> dict[str, str]:
        bridge = bridge_spec(
            self._request.bridge_id,
            self._request.bridge_key,
            self._members,
            len(self._request.parents) + spec.rank,
            self._bridge_sockets[spec.rank],
        )
        return {**super()._own_variables(spec), ENV_PARENT: bridge.to_json()}

    def _descriptors(self, spec: JobSpec) -> tuple[int, ...]:
        return (*super()._descriptors(spec), self._bridge_sockets[spec.rank])

    def close(self) -> None:
        with contextlib.suppress(KeyError):  # it has ended
            self._selector.unregister(self._parent)  # kept open: the launcher may have to reply
        super().close()

    def _orphaned(self) -> None:
        """The parent has ended, or sent something, which it never does."""
        self._selector.unregister(self._parent)
        if not self._plan.ft and self._failure is None:
            self._failure = (EXIT_ORPHAN, ("the rank that spawned this job has ended",))


def _program(command: Command) -> Program:
    """The program of a command; `path` decides where it is looked for first."""
    name, *arguments = command.argv
    for folder in (command.path or "").split(os.pathsep):
        candidate = os.path.join(os.path.abspath(folder), name)
        if folder and os.sep not in name and os.path.isfile(candidate):
            name = candidate
            break
    return Program((name, *arguments), command.procs, folder=command.folder)


def main(descriptor: str) -> int:
    """Run one spawned job to its end.

    Parameters
    ----------
    descriptor
        Number of the socket to the rank that spawns it.

    Returns
    -------
    int
        Exit code of the job; 0 if it was refused, which the reply states.
    """
    parent = socket.socket(fileno=int(descriptor))
    parent.set_inheritable(False)
    with parent, parent.makefile("rb") as stream:
        launcher = None
        try:
            request = SpawnRequest.from_json(stream.readline().decode())
            launcher = SpawnedLauncher(request, parent)
            return launcher.run(launcher.plan())
        except (ChannelError, JobError, TypeError, UsageError) as error:
            text = printable(str(error))
            if launcher is not None and launcher.replied:
                sys.stderr.write(f"smpirun: {text}\n")
                return 1
            parent.sendall(SpawnReply(error=text).to_json().encode() + b"\n")
            return 0
        except BrokenPipeError:  # the parent has ended
            return EXIT_ORPHAN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
