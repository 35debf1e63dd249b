"""What the calls of dynamic processes do: Spawn, ports, Accept, Connect and Join.

Every call that makes an intercommunicator has the same form. Each process of the group binds a
socket for the bridge; the group shares these members; the root meets the other group, by a launcher
that it starts or at a port; the group shares the outcome, which may be an error; and each process
joins the bridge. The root shares an error before it raises it, so no process waits for another.

The public methods are in comm.py, intracomm.py and ports.py; they import this module at their first
call.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, index
from typing import Any

from serverless_mpi.api.comm_constructors import CommConstructors, agree
from serverless_mpi.api.comm_state import State
from serverless_mpi.api.info import Info
from serverless_mpi.api.intracomm import COMM_SELF
from serverless_mpi.core.envelope import derive_context
from serverless_mpi.core.tags import Purpose, make
from serverless_mpi.deaths import NOTICES
from serverless_mpi.env import ENV_ALIAS
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_COMM,
    ERR_ROOT,
    ERR_SPAWN,
    SUCCESS,
    MPIException,
    missing,
)
from serverless_mpi.job import KEY_BYTES
from serverless_mpi.processes import ports, spawner
from serverless_mpi.processes.bridge import Member, bridge_spec, listen
from serverless_mpi.processes.request import Command, SpawnRequest
from serverless_mpi.runtime import Runtime, get_runtime, process

_state_of: Callable[[CommConstructors], State] = attrgetter("_state")

_parent: State | None = None  # of the intercommunicator to the ranks that spawned this one

close_port, unpublish_name, lookup_name = ports.close_port, ports.unpublish, ports.look_up


def open_port() -> str:
    """Open a port, which is closed at the latest when the interpreter ends."""
    _check_platform()
    _close_at_end()
    return ports.open_port()


def publish_name(service: str, port: str) -> None:
    """Publish a service, which is withdrawn at the latest when the interpreter ends.

    Parameters
    ----------
    service, port
        As for `MPI.Publish_name`.
    """
    _close_at_end()
    ports.publish(service, port)


def _close_at_end() -> None:
    if ports.close_all not in process.ending:
        process.ending.append(ports.close_all)


# --- bridges --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Meeting:
    """The outcome of a meeting, as the root shares it with its group.

    The key is sealed with a key of the group, because messages are authenticated, not encrypted.
    """

    bridge_id: str
    sealed: bytes
    remote: tuple[Member, ...]
    first: bool  # whether this group is the first in the bridge
    more: Any = None


def _seal(key: bytes, of_group: bytes, bridge_id: str) -> bytes:
    """Encrypt the key of a bridge, or decrypt it; the pad is used once, since ids are random."""
    pad = make(of_group, Purpose.PORT_SEAL, bytes.fromhex(bridge_id), KEY_BYTES)
    return bytes(a ^ b for a, b in zip(key, pad, strict=True))


def _meet(
    comm: CommConstructors, root: int, meet: Callable[[tuple[Member, ...]], _Meeting]
) -> tuple[State, Any]:
    """Make the intercommunicator with the group that the root meets; all processes call it.

    Parameters
    ----------
    comm
        Communicator of this group.
    root
        Rank that calls `meet` with the members of this group.
    meet
        Its exceptions are raised on every process.

    Returns
    -------
    State, object
        Of the intercommunicator, and what the root adds (`more`).
    """
    state = _state_of(comm)
    if not 0 <= index(root) < len(state.ranks):
        raise MPIException(ERR_ROOT, f"root {root} is outside 0..{len(state.ranks) - 1}")
    _check_platform()
    own = get_runtime()
    member, descriptor = listen(own.spec.job_id, own.spec.rank)
    try:
        members = tuple(agree(comm, member))
        outcome: _Meeting | Exception | None = None
        if state.rank == root:
            try:
                outcome = meet(members)
            except Exception as error:
                outcome = error
        outcome = agree(comm, outcome)[root]
        if not isinstance(outcome, _Meeting):
            assert isinstance(outcome, Exception)
            raise outcome
    except BaseException:
        os.close(descriptor)
        raise
    key = _seal(outcome.sealed, state.runtime.spec.key, outcome.bridge_id)
    groups = (members, outcome.remote) if outcome.first else (outcome.remote, members)
    before = 0 if outcome.first else len(outcome.remote)
    spec = bridge_spec(
        outcome.bridge_id, key, [*groups[0], *groups[1]], before + state.rank, descriptor
    )
    own_ranks = range(before, before + len(members))
    remote_ranks = [rank for rank in range(spec.size) if rank not in own_ranks]
    return _between(process.join_bridge(spec), own_ranks, remote_ranks), outcome.more


def _between(
    runtime: Runtime, ranks: Sequence[int], remote: Sequence[int], name: str = ""
) -> State:
    return State(runtime, derive_context(0, "bridge"), ranks, name, remote=remote)


def parent() -> State | None:
    """Return the intercommunicator to the ranks that spawned this one; see `Comm.Get_parent`."""
    global _parent
    runtime = process.parent_bridge()
    if runtime is None:
        return None
    if _parent is None:
        own = runtime.spec.members[runtime.rank][0]
        mine = [rank for rank, (job, _) in enumerate(runtime.spec.members) if job == own]
        others = range(mine[0])
        _parent = _between(runtime, mine, others, "MPI_COMM_PARENT")
    return None if _parent.freed else _parent


def _check_platform() -> None:
    """Raise MissingError where processes of this user cannot reach each other."""
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        raise missing("dynamic processes on AWS Lambda")


# --- Spawn ----------------------------------------------------------------------------------------


def commands_of(
    command: Sequence[str],
    args: Sequence[Sequence[str]] | None,
    maxprocs: Sequence[int] | int | None,
    info: Sequence[Info] | Info,
) -> list[Command]:
    """Check the arguments of Spawn_multiple, and return the programs.

    Parameters
    ----------
    command, args, maxprocs, info
        As for `Intracomm.Spawn_multiple`.
    """
    if isinstance(command, (str, bytes, os.PathLike)):
        raise ValueError("expecting a sequence of commands, not one")
    names = [os.fsdecode(name) for name in command]
    count = len(names)
    if isinstance(args, (str, bytes)):
        raise ValueError("expecting a sequence of sequences of arguments")
    arguments = [()] * count if args is None else list(args)
    procs = [1] * count if maxprocs is None else maxprocs
    procs = [procs] * count if isinstance(procs, int) else list(procs)
    infos = [info] * count if isinstance(info, Info) else list(info)
    for what, values in (("args", arguments), ("maxprocs", procs), ("info", infos)):
        if len(values) != count:
            raise ValueError(f"{what} has {len(values)} elements for {count} commands")
    return list(map(command_of, names, arguments, procs, infos))


def command_of(command: str, args: Sequence[str] | None, maxprocs: int, info: Info) -> Command:
    """Check the arguments of Spawn, and return the program.

    Parameters
    ----------
    command, args, maxprocs, info
        As for `Intracomm.Spawn`.
    """
    if isinstance(args, (str, bytes)):
        raise ValueError("expecting a sequence of arguments, not one text")
    name = os.fsdecode(command)
    if not name:
        raise MPIException(ERR_ARG, "the command is empty")
    if index(maxprocs) < 1:
        raise MPIException(ERR_ARG, f"maxprocs is {maxprocs}; at least one process is spawned")
    hints = dict(info.items()) if info else {}
    return Command(
        (name, *map(os.fsdecode, args or ())), maxprocs, hints.get("wdir"), hints.get("path")
    )


def spawn(
    comm: CommConstructors, root: int, commands: Callable[[], list[Command]]
) -> tuple[State, list[list[int]]]:
    """Start a job; all processes of the communicator call it.

    Parameters
    ----------
    comm
        Communicator of the ranks that spawn.
    root
        Rank that starts the job.
    commands
        Called on the root.

    Returns
    -------
    State, list of list of int
        Of the intercommunicator, whose remote group are the children; and the error code of each
        process of each command.

    Raises
    ------
    SpawnError
        The job was not started.
    """
    state = _state_of(comm)

    def start(members: tuple[Member, ...]) -> _Meeting:
        programs = tuple(commands())
        bridge_id = secrets.token_hex(8)
        key = make(state.runtime.spec.key, Purpose.SPAWN, bytes.fromhex(bridge_id), KEY_BYTES)
        request = SpawnRequest(bridge_id, key, members, programs, _options())
        reply = spawner.spawn(request, _ignore if _tolerant() else get_runtime().abort)
        counts = [program.procs for program in programs]
        if reply.error:
            raise SpawnError(reply.error, counts)
        if spawner.wait_for_jobs not in process.ending:
            process.ending.append(spawner.wait_for_jobs)
        sealed = _seal(key, state.runtime.spec.key, bridge_id)
        return _Meeting(bridge_id, sealed, reply.children, first=True, more=counts)

    made, counts = _meet(comm, root, start)
    return made, [[SUCCESS] * count for count in counts]


class SpawnError(MPIException):
    """A job that could not be spawned.

    Parameters
    ----------
    message
        Why.
    counts
        Number of processes of each command.
    """

    def __init__(self, message: str, counts: Sequence[int]) -> None:
        super().__init__(ERR_SPAWN, message)
        self.args = (message, counts)  # for pickle
        self.errcodes = [[ERR_SPAWN] * count for count in counts]


def _tolerant() -> bool:
    """Whether the ranks of this job go on when others die."""
    return NOTICES in get_runtime().spec.settings


def _ignore(code: int, reason: str) -> None:
    """A spawned job has failed, which its launcher has reported."""


def _options() -> dict[str, Any]:
    """The options of this rank's launcher that a job that it spawns has, too."""
    spec = get_runtime().spec
    options: dict[str, Any] = {"alias": os.environ.get(ENV_ALIAS) != "0", "ft": _tolerant()}
    if spec.stats_dir is not None:  # it has a launcher
        options["deadlock_s"] = spec.deadlock_s
    return options


# --- Accept and Connect ---------------------------------------------------------------------------


def accept(comm: CommConstructors, port: str, root: int) -> State:
    """Accept a group at a port; see `Intracomm.Accept`.

    Parameters
    ----------
    comm, port, root
        As there.
    """
    return _at_port(comm, port, root, ports.accept, first=True)


def connect(comm: CommConstructors, port: str, root: int) -> State:
    """Connect to the group that accepts at a port; see `Intracomm.Connect`.

    Parameters
    ----------
    comm, port, root
        As there.
    """
    return _at_port(comm, port, root, ports.connect, first=False)


def _at_port(
    comm: CommConstructors,
    port: str,
    root: int,
    meet: Callable[[str, tuple[Member, ...]], ports.Met],
    first: bool,
) -> State:
    of_group = _state_of(comm).runtime.spec.key

    def at_port(members: tuple[Member, ...]) -> _Meeting:
        name = str(port)
        if ports.is_own(name) if first else ports.is_open(name):
            get_runtime().receive_always()  # the root waits outside of it
        met = meet(name, members)
        if {(member.job_id, member.rank) for member in members} & {
            (member.job_id, member.rank) for member in met.remote
        }:
            raise MPIException(
                ERR_COMM, "the groups that meet at a port must have no process in common"
            )
        sealed = _seal(met.key, of_group, met.bridge_id)
        return _Meeting(met.bridge_id, sealed, met.remote, first)

    return _meet(comm, root, at_port)[0]


# --- Join -----------------------------------------------------------------------------------------

_JOIN = b"SMPIJOIN"
_PORT_BYTES = 64  # of the name of a port, padded with spaces


def join(fd: int) -> State | None:
    """Join the process at the other end of a socket; see `Comm.Join`.

    The two send a nonce each. The one with the lower opens a port, sends its name, and accepts; so
    nothing secret passes the socket, and the other process must be one of this user here.

    Parameters
    ----------
    fd
        Descriptor of a connected socket, on which nothing is under way; borrowed.

    Returns
    -------
    State or None
        None if the two processes cannot reach each other.
    """
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise MPIException(ERR_ARG, f"{fd} is not the descriptor of a socket") from error
    with sock:
        own = secrets.token_bytes(16)
        _send(sock, _JOIN + own)
        answer = _receive(sock, len(_JOIN) + len(own))
        if not answer.startswith(_JOIN) or answer[len(_JOIN) :] == own:
            raise MPIException(ERR_ARG, f"no process that calls Join is at the other end of {fd}")
        if own < answer[len(_JOIN) :]:
            port = open_port()
            try:
                _send(sock, port.encode().ljust(_PORT_BYTES))
                known = _receive(sock, 1) == b"y"
                return accept(COMM_SELF, port, 0) if known else None
            finally:
                close_port(port)
        port = _receive(sock, _PORT_BYTES).decode("ascii", "replace").strip()
        known = ports.is_open(port)
        _send(sock, b"y" if known else b"n")
        return connect(COMM_SELF, port, 0) if known else None


def _send(sock: socket.socket, data: bytes) -> None:
    """Send on a socket that may be nonblocking."""
    view = memoryview(data)
    while view:
        select.select([], [sock], [])
        view = view[os.write(sock.fileno(), view) :]


def _receive(sock: socket.socket, nbytes: int) -> bytes:
    """Receive exactly so many bytes from a socket that may be nonblocking."""
    data = b""
    while len(data) < nbytes:
        select.select([sock], [], [])
        got = os.read(sock.fileno(), nbytes - len(data))
        if not got:
            raise MPIException(ERR_ARG, "the other end of the socket was closed during Join")
        data += got
    return data
