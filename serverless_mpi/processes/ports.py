"""Ports and service names of one user on one machine, and the handshake at a port.

An open port is a listening Unix socket with an abstract name, and a file in a folder that only this
user can read. The file has the socket's name and 32 secret bytes, the port's key; the file's own
name is the port's. A published service is a file, too: it has the name of a port. Whoever made a
file holds a lock on it while it is valid, so a file without a lock was left by a process that was
killed: it counts as absent, and is removed.

At a port the two roots prove to each other that they know its key, and exchange the members of
their groups. `accepting` and `connecting` are the two sides, as generators without IO:

    connecting root    HELLO: magic, id of the port, nonce
    accepting root     nonce, proof over HELLO and the nonce
    connecting root    proof over both, members of its group
    accepting root     id of the bridge, members of its group

The key of the bridge is made from the port's key and everything that was sent, so whoever meets at
the port another time does not know it, and if the two sides have received something else, their
keys differ and no connection of the bridge succeeds. Nothing that a peer sends is interpreted
before its proof, and then it is JSON of a bounded length.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import struct
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serverless_mpi.channels.handshake import same_user
from serverless_mpi.core.tags import PROOF_BYTES, Purpose, make, same
from serverless_mpi.errors import ERR_NAME, ERR_PORT, ERR_SERVICE, JobError, MPIException
from serverless_mpi.forks import receive
from serverless_mpi.job import KEY_BYTES
from serverless_mpi.processes.bridge import Member

MAGIC = b"SMPIPORT"
NONCE_BYTES = 16
ID_BYTES = 8
HELLO = struct.Struct(f"<8s{ID_BYTES}s{NONCE_BYTES}s")  # magic, id of the port, nonce
LENGTH = struct.Struct("<I")
MOST_BYTES = 16 << 20  # of the members of a group, as JSON
STRANGER_S = 10.0  # how long an accepting root waits for the next bytes of a connection
BACKLOG = 128
_PORT_NAME = re.compile(r"smpi-port:([0-9a-f]{16})")

Steps = Generator[tuple[bytes, int], bytes, "Met"]


# --- the handshake --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Met:
    """What a root knows when two groups have met.

    Attributes
    ----------
    bridge_id
        Of the bridge that the groups form, 16 hexadecimal digits.
    key
        Of the bridge.
    remote
        Members of the other group.
    """

    bridge_id: str
    key: bytes
    remote: tuple[Member, ...]


def accepting(
    port_id: bytes, key: bytes, members: Sequence[Member], bridge_id: bytes, nonce: bytes
) -> Steps:
    """Do the handshake as the accepting root.

    Parameters
    ----------
    port_id, key
        Of the port.
    members
        Of the accepting group.
    bridge_id, nonce
        8 and 16 random bytes.

    Yields
    ------
    bytes, int
        What to send, and how many bytes to receive and send into the generator.

    Returns
    -------
    Met
        The result.

    Raises
    ------
    JobError
        The peer does not know the port's key.
    """
    hello = yield b"", HELLO.size
    if hello[: len(MAGIC) + ID_BYTES] != MAGIC + port_id:
        raise JobError("the peer does not ask for this port")
    transcript = hello + nonce
    proof = make(key, Purpose.PORT_ACCEPT, transcript, PROOF_BYTES)
    received = yield nonce + proof, PROOF_BYTES + LENGTH.size
    if not same(received[:PROOF_BYTES], make(key, Purpose.PORT_CONNECT, transcript, PROOF_BYTES)):
        raise JobError("the peer does not know the key of this port")
    body = yield b"", _length(received[PROOF_BYTES:])
    remote = _members(body)
    answer = _frame(members)
    yield bridge_id + answer, 0
    return _met(key, transcript + body + answer[LENGTH.size :], bridge_id, remote)


def connecting(port_id: bytes, key: bytes, members: Sequence[Member], nonce: bytes) -> Steps:
    """Do the handshake as the connecting root; otherwise as `accepting`.

    Parameters
    ----------
    port_id, key
        Of the port.
    members
        Of the connecting group.
    nonce
        16 random bytes.

    Yields
    ------
    bytes, int
        As `accepting`.

    Returns
    -------
    Met
        The result.

    Raises
    ------
    JobError
        The peer does not know the port's key.
    """
    hello = HELLO.pack(MAGIC, port_id, nonce)
    received = yield hello, NONCE_BYTES + PROOF_BYTES
    transcript = hello + received[:NONCE_BYTES]
    if not same(received[NONCE_BYTES:], make(key, Purpose.PORT_ACCEPT, transcript, PROOF_BYTES)):
        raise JobError("the peer does not know the key of this port")
    proof = make(key, Purpose.PORT_CONNECT, transcript, PROOF_BYTES)
    own = _frame(members)
    received = yield proof + own, ID_BYTES + LENGTH.size
    bridge_id = received[:ID_BYTES]
    body = yield b"", _length(received[ID_BYTES:])
    return _met(key, transcript + own[LENGTH.size :] + body, bridge_id, _members(body))


def _met(key: bytes, transcript: bytes, bridge_id: bytes, remote: tuple[Member, ...]) -> Met:
    bridge_key = make(key, Purpose.PORT_BRIDGE, transcript + bridge_id, KEY_BYTES)
    return Met(bridge_id.hex(), bridge_key, remote)


def _frame(members: Sequence[Member]) -> bytes:
    body = json.dumps([member.to_json() for member in members]).encode()
    return LENGTH.pack(len(body)) + body


def _length(data: bytes) -> int:
    (nbytes,) = LENGTH.unpack(data)
    if nbytes > MOST_BYTES:
        raise JobError(f"the peer announced {nbytes} bytes of members")
    return int(nbytes)


def _members(body: bytes) -> tuple[Member, ...]:
    try:
        members = tuple(map(Member.from_json, json.loads(body)))
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError("the peer sent something else than members") from error
    if not members:
        raise JobError("the peer sent an empty group")
    return members


def _drive(sock: socket.socket, steps: Steps) -> Met:
    """Do a handshake on a connected socket."""
    out, needed = next(steps)
    while True:
        if out:  # the peer may have closed the connection after its last bytes
            sock.sendall(out)
        try:
            out, needed = steps.send(receive(sock, needed))
        except StopIteration as end:
            met: Met = end.value
            return met


# --- files ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked_folder() -> Iterator[Path]:
    """Yield the folder of this user's ports and services, locked; it goes with its last file.

    Raises
    ------
    MPIException
        ERR_PORT: another user, or something that is not a folder, has its name.
    """
    folder = Path(tempfile.gettempdir()) / f"smpi-ports-{os.getuid()}"
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # removed in between
            continue
        except OSError as error:
            raise MPIException(ERR_PORT, f"{folder} is not a folder: {error.strerror}") from error
        try:
            entry = os.fstat(fd)
            if entry.st_uid != os.getuid() or stat.S_IMODE(entry.st_mode) & 0o077:
                raise MPIException(
                    ERR_PORT,
                    f"{folder} is open to other users; remove it, or set TMPDIR to another folder",
                )
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.fstat(fd).st_nlink:  # removed before the lock was granted
                continue
            yield folder
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
            return
        finally:
            os.close(fd)


def _write(path: Path, value: object) -> int:
    """Make a file, and return the descriptor that holds its lock; the folder is locked."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps(value).encode())
    return fd


def _read(path: Path) -> list[str] | None:
    """Return what a file has; None if it does not exist or its maker has ended. Locked folder."""
    try:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                value: list[str] = json.load(file)
                return value
    except FileNotFoundError:
        return None
    path.unlink()
    return None


# --- ports ----------------------------------------------------------------------------------------


@dataclass
class _Port:
    """A port that this process has opened."""

    port_id: bytes
    key: bytes
    listener: socket.socket
    path: Path
    lock: int


_ports: dict[str, _Port] = {}
_services: dict[str, tuple[str, Path, int]] = {}  # name -> port, its file and that one's lock


def _port_path(folder: Path, port_id: str) -> Path:
    return folder / f"port-{port_id}"


def _service_path(folder: Path, name: str) -> Path:
    return folder / f"service-{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def open_port() -> str:
    """Open a port, and return its name; see `MPI.Open_port`."""
    port_id, key = secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES)
    name = f"smpi-port:{port_id.hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("")  # the kernel chooses an abstract name
        listener.listen(BACKLOG)
        address = listener.getsockname()[1:].decode()
        with _locked_folder() as folder:
            for path in folder.iterdir():
                _read(path)  # removes those of processes that were killed
            path = _port_path(folder, port_id.hex())
            lock = _write(path, [address, key.hex()])
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise MPIException(ERR_PORT, f"no port can be opened: {error.strerror}") from error
        raise
    _ports[name] = _Port(port_id, key, listener, path, lock)
    return name


def close_port(name: str) -> None:
    """Close a port; see `MPI.Close_port`.

    Parameters
    ----------
    name
        Of the port.
    """
    port = _ports.pop(name, None)
    if port is None:
        raise _not_open(name)
    with _locked_folder():
        port.path.unlink(missing_ok=True)
    os.close(port.lock)
    port.listener.close()


def _not_open(name: str) -> MPIException:
    return MPIException(ERR_PORT, f"this process has no open port {name!r}; Open_port returns one")


def close_all() -> None:
    """Close every port of this process, and withdraw every service."""
    for name in list(_ports):
        close_port(name)
    for name, (port, _, _) in list(_services.items()):
        unpublish(name, port)


def accept(name: str, members: Sequence[Member]) -> Met:
    """Wait for another group at a port of this process.

    Parameters
    ----------
    name
        Of the port.
    members
        Of this group.

    Raises
    ------
    MPIException
        ERR_PORT: this process has no such open port.
    """
    port = _ports.get(name)
    if port is None:
        raise _not_open(name)
    while True:
        sock, _ = port.listener.accept()
        with sock:
            if not same_user(sock):
                continue
            sock.settimeout(STRANGER_S)
            bridge_id, nonce = secrets.token_bytes(ID_BYTES), secrets.token_bytes(NONCE_BYTES)
            try:
                return _drive(sock, accepting(port.port_id, port.key, members, bridge_id, nonce))
            except (EOFError, JobError, OSError):
                continue  # a stranger, or a process that has ended meanwhile


def is_own(name: str) -> bool:
    """Return whether this process has opened a port.

    Parameters
    ----------
    name
        Of the port.
    """
    return name in _ports


def is_open(name: str) -> bool:
    """Return whether a process of this user has a port open.

    Parameters
    ----------
    name
        Of the port.
    """
    return _find(name) is not None


def _find(name: str) -> tuple[bytes, str, bytes] | None:
    """Id, address and key of a port; None if no process of this user has it open."""
    match = _PORT_NAME.fullmatch(name)
    if match is None:
        return None
    with _locked_folder() as folder:
        found = _read(_port_path(folder, match[1]))
    return None if found is None else (bytes.fromhex(match[1]), found[0], bytes.fromhex(found[1]))


def connect(name: str, members: Sequence[Member]) -> Met:
    """Connect to the group that accepts at a port; wait until it does.

    Parameters
    ----------
    name
        Of the port.
    members
        Of this group.

    Raises
    ------
    MPIException
        ERR_PORT: no process of this user has that port open, or it is closed before it accepts.
    """
    found = _find(name)
    if found is None:
        raise MPIException(
            ERR_PORT, f"no process of this user on this machine has a port {name!r} open"
        )
    port_id, address, key = found
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect("\0" + address)
            if not same_user(sock):
                raise JobError("another user's process answers")
            nonce = secrets.token_bytes(NONCE_BYTES)
            return _drive(sock, connecting(port_id, key, members, nonce))
        except (EOFError, JobError, OSError) as error:
            raise MPIException(
                ERR_PORT, f"port {name!r} was closed before it accepted this group"
            ) from error


# --- services -------------------------------------------------------------------------------------


def publish(name: str, port: str) -> None:
    """Publish a port; see `MPI.Publish_name`.

    Parameters
    ----------
    name
        Of the service.
    port
        Name of a port.
    """
    if not port:
        raise MPIException(ERR_PORT, "the name of a port is not empty")
    with _locked_folder() as folder:
        path = _service_path(folder, name)
        if _read(path) is not None:
            raise MPIException(ERR_SERVICE, f"the service {name!r} is published already")
        _services[name] = port, path, _write(path, [port])


def unpublish(name: str, port: str) -> None:
    """Withdraw a service; see `MPI.Unpublish_name`.

    Parameters
    ----------
    name, port
        As for `publish`.
    """
    if name not in _services or _services[name][0] != port:
        raise MPIException(
            ERR_SERVICE, f"this process has not published {port!r} as the service {name!r}"
        )
    _, path, lock = _services.pop(name)
    with _locked_folder():
        path.unlink(missing_ok=True)
    os.close(lock)


def look_up(name: str) -> str:
    """Return the port of a service; see `MPI.Lookup_name`.

    Parameters
    ----------
    name
        Of the service.
    """
    with _locked_folder() as folder:
        found = _read(_service_path(folder, name))
    if found is None:
        raise MPIException(ERR_NAME, f"no process of this user has published a service {name!r}")
    return found[0]


# --- forks ----------------------------------------------------------------------------------------


def _forked() -> None:
    """In a forked child: the ports are its parent's. The locks end with the last copy of them."""
    for port in _ports.values():
        port.listener.close()
        os.close(port.lock)
    for _, _, lock in _services.values():
        os.close(lock)
    _ports.clear()
    _services.clear()


os.register_at_fork(after_in_child=_forked)
