"""Forks ranks from one interpreter that has imported what every rank imports.

A Python process takes 0.1 s of CPU to import NumPy and this package; a fork of one that has them
takes a few milliseconds. The launcher (launch/fork_server.py) starts such a process with the
command line and the environment of the ranks. Its sitecustomize calls `serve`, which imports, and
forks a rank for each request. In a rank `serve` returns, so the interpreter goes on with its start
and runs the program as it would have without this module: `__main__`, `sys.argv`, flags and
`sys.path` are made by the interpreter itself.

What must not differ in a rank:

- Its parent is the launcher, which waits for it: ranks are grandchildren, forked by a process that
  ends at once, and the launcher is the reaper of its orphans. A rank goes on when it has that
  parent and leads a session.
- It has the descriptors that the launcher sent, at their numbers, and no others.
- NumPy is not imported before the program does that (`_Preloaded`): programs set OMP_NUM_THREADS
  and the like first. Random numbers differ between ranks.
- A module of the program may have the name of one that is loaded here. `serve` looks for such files
  and gives up; then the launcher starts ranks as processes of their own.

What differs: `str` hashes are the same in all ranks, and so are addresses.

If you change the protocol, change launch/fork_server.py too.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import json
import os
import socket
import struct
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

READY = b"r"
LENGTH = struct.Struct("<I")  # of a request; 0 ends a batch
PID = struct.Struct("<q")
MOST_DESCRIPTORS = 64  # of a request
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # OpenBLAS's order


class Request(NamedTuple):
    """A rank to be forked.

    Attributes
    ----------
    environ
        Variables that are its own.
    places
        The number that each descriptor shall have in the rank.
    descriptors
        As they were received; owned by this process.
    """

    environ: dict[str, str]
    places: list[int]
    descriptors: list[int]


def serve(settings: str, loaded: Collection[str]) -> None:
    """Fork ranks until the launcher closes its socket; return in each rank.

    Parameters
    ----------
    settings
        JSON: `fd`, the socket to the launcher; `modules` to import; `folder` of the program.
    loaded
        Names of the modules that the interpreter has loaded by itself.
    """
    facts = json.loads(settings)
    launcher = socket.socket(fileno=facts["fd"])
    launcher.set_inheritable(False)
    gc.disable()
    names = sorted(os.listdir(os.path.join(os.path.dirname(__file__), "api")))
    own = [f"serverless_mpi.api.{name[:-3]}" for name in names if name.endswith(".py")]
    for name in (*own, *facts["modules"]):
        try:
            importlib.import_module(name)
        except ImportError:  # the program raises it again, if it needs the module
            continue
    if _hides(facts["folder"], set(sys.modules).difference(loaded)):
        os._exit(0)
    gc.freeze()  # a collection in a rank would copy all pages that it shares with the others
    gc.enable()
    try:
        launcher.sendall(READY)
        while True:
            batch = _read_batch(launcher)
            if batch is None:
                os._exit(0)
            if _fork(batch, launcher):
                break
    except OSError:  # the launcher has ended
        os._exit(0)
    _Preloaded().install()


def _hides(folder: str, names: set[str]) -> bool:
    """Whether the program's folder has a module that a loaded one would hide."""
    try:
        stems = {entry.partition(".")[0] for entry in os.listdir(folder)}
    except OSError:
        return False
    inside = os.path.join(os.path.abspath(folder), "")
    return any(
        not (getattr(sys.modules[name], "__file__", None) or "").startswith(inside)
        for name in stems & names
    )


def _read_batch(launcher: socket.socket) -> list[Request] | None:
    """Read requests until one of length 0; None if the launcher has closed the socket."""
    batch: list[Request] = []
    while True:
        head, descriptors, _, _ = socket.recv_fds(launcher, LENGTH.size, MOST_DESCRIPTORS)
        if not head:
            return None
        (length,) = LENGTH.unpack(head + receive(launcher, LENGTH.size - len(head)))
        if not length:
            return batch
        body = json.loads(receive(launcher, length))
        batch.append(Request(body["environ"], body["places"], list(descriptors)))


def receive(connection: socket.socket, length: int) -> bytes:
    """Return the next bytes of a connection.

    Parameters
    ----------
    connection
        A blocking socket; borrowed.
    length
        Number of bytes.

    Raises
    ------
    EOFError
        The connection ends before.
    """
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("the connection has ended")
        data += part
    return bytes(data)


def _fork(batch: Sequence[Request], launcher: socket.socket) -> bool:
    """Fork a rank for each request and send their process ids; return True in a rank."""
    pids, pids_end = os.pipe()
    gate, gate_end = os.pipe()  # closed by everyone once the ranks are orphans and lead sessions
    middle = _fork_quietly()
    if not middle:
        for request in batch:
            pid = _fork_quietly()
            if not pid:
                os.setsid()
                for fd in (pids, pids_end, gate_end, launcher.detach()):
                    os.close(fd)
                os.read(gate, 1)
                os.close(gate)
                _become(request, batch)
                return True
            os.write(pids_end, PID.pack(pid))
        os._exit(0)
    os.close(pids_end)
    os.close(gate_end)
    for request in batch:
        for fd in request.descriptors:
            os.close(fd)
    os.waitpid(middle, 0)
    os.read(gate, 1)
    launcher.sendall(os.read(pids, PID.size * len(batch)))
    os.close(pids)
    os.close(gate)
    return False


def _fork_quietly() -> int:
    """os.fork, without the warning of Python 3.12 and later that there may be threads.

    NumPy's OpenBLAS has some; it ends them before a fork, and starts them when they are needed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(request: Request, batch: Sequence[Request]) -> None:
    """Make this process the rank of a request."""
    above = max(request.places) + 1
    own = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in request.descriptors]
    for other in batch:
        for fd in other.descriptors:
            os.close(fd)
    for fd, place in zip(own, request.places, strict=True):
        os.dup2(fd, place)
        os.close(fd)
    os.environ.update(request.environ)


class _Preloaded:
    """A finder and loader: gives the program the NumPy that is loaded already, when it imports it.

    Until then NumPy is not in `sys.modules`. Whoever imports one of its modules imports the package
    first, so the package is all that has to be found.
    """

    def __init__(self) -> None:
        self._threads = _threads(os.environ)
        self._modules = {
            name: module
            for name, module in sys.modules.items()
            if name == "numpy" or name.startswith("numpy.")
        }

    def install(self) -> None:
        """Hide NumPy until it is imported."""
        if self._modules:
            for name in self._modules:
                del sys.modules[name]
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "numpy":
            return None
        own = self._own = self._modules["numpy"].__spec__
        assert own is not None
        spec = importlib.machinery.ModuleSpec(
            fullname,
            self,  # type: ignore[arg-type]  # not a subclass: importlib.abc takes 4 ms
            origin=own.origin,
            is_package=True,
        )
        spec.submodule_search_locations = own.submodule_search_locations
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        sys.meta_path.remove(self)
        sys.modules.update(self._modules)
        if "numpy.random" in self._modules:  # imported with NumPy before version 2
            self._modules["numpy.random"].seed()
        threads = _threads(os.environ)
        if threads != self._threads:
            _set_blas_threads(threads)
        return self._modules["numpy"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # the import machinery has written this finder's into it


def _threads(environ: Mapping[str, str]) -> int | None:
    """The number of threads that OpenBLAS would use; None for its default."""
    for name in _THREADS:
        value = environ.get(name, "")
        if value.isdigit() and int(value):
            return int(value)
    return None


def _set_blas_threads(threads: int | None) -> None:
    """Set what OpenBLAS has read from the environment when it was loaded."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "openblas" in line}
    for path in paths:
        library = ctypes.CDLL(path)
        for name in ("openblas_set_num_threads", "scipy_openblas_set_num_threads"):
            for suffix in ("", "64_"):
                function = getattr(library, name + suffix, None)
                if function is not None:
                    function(threads or len(os.sched_getaffinity(0)))
