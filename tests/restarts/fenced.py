"""A rank that is killed, and comes back while the next incarnation of its job runs.

    smpirun -n 2 --restarts 1 tests/restarts/fenced.py FOLDER

In the first incarnation rank 1 starts a process that has all it has (rank, key, place of checkpoints) and
that the launcher cannot find, since the job's id is not in its environment. It claims the place, prepares a
message for each rank, and stops itself (SIGSTOP). Then rank 1 is killed. In the second incarnation rank 0
wakes it (SIGCONT), and gives it the new addresses as well. It sends what it has, by the old way and by the
new addresses, and publishes its checkpoint.

Rank 0 prints its final state, and what the process that came back reports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serverless_mpi.checkpoint.log import Record, Saved, claim, perform, publish
from serverless_mpi.checkpoint.places import Folder
from serverless_mpi.errors import CheckpointError
from serverless_mpi.job import JobSpec, current_spec, take_spec

STEPS = 20
GIVE_UP_S = 60.0


def until(path: Path) -> None:
    """Wait for a file."""
    end = time.monotonic() + GIVE_UP_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def send(spec: JobSpec) -> str:
    """Send a forged state to both ranks, as point-to-point messages and as a step of a collective."""
    from serverless_mpi.api.intracomm import world_of
    from serverless_mpi.runtime import Runtime

    try:
        runtime = Runtime(spec)
        comm = world_of(runtime)
        for _ in range(3):
            comm.isend(np.full(4, 1e6), 0, 1)
        comm.Iallreduce(np.full(1, 1e6), np.zeros(1))
        time.sleep(1.0)  # a thread puts them
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "sent"


def come_back(folder: Path, name: str) -> None:
    """Be the process that is stopped and wakes late."""
    spec = take_spec(os.environ)
    assert spec is not None
    place = Folder(Path(os.environ["SMPI_CHECKPOINTS"]) / name, durable=False)
    record = perform(claim("dead", "fenced.py", ""), place)
    saved = Saved(record.number + 1, "dead", 2, 3)
    for rank in range(2):
        place.write(saved.part(rank).name, [memoryview(b"forged")])
    (folder / "pid").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    said: dict[str, Any] = {"old way": send(spec)}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen()
    settings = json.loads((folder / "settings").read_text())
    if "fds" in settings:
        settings["fds"] = " ".join([str(listener.fileno())] * spec.size)
    said["new addresses"] = send(replace(spec, settings=settings))
    try:
        perform(publish(record, saved), place)
        said["publish"] = "published"
    except CheckpointError as error:
        said["publish"] = str(error)
    draft = folder / "report.new"
    draft.write_text(json.dumps(said))
    draft.rename(folder / "report")
    os._exit(0)


def first_incarnation(comm: Any, spec: JobSpec, folder: Path, name: str) -> None:
    """Let rank 1 start the process, and be killed."""
    if comm.rank == 0:
        comm.send(None, 1)
        comm.recv()
    comm.recv()
    environ = {key: value for key, value in os.environ.items() if key != "SMPI_LINEAGE"}
    with open(folder / "err", "w") as err:
        subprocess.Popen(
            [sys.executable, __file__, str(folder), name],
            env={**environ, **spec.to_env()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    until(folder / "pid")
    stat = Path("/proc", (folder / "pid").read_text(), "stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    """Be a rank."""
    from serverless_mpi import MPI, checkpoint

    comm = MPI.COMM_WORLD
    spec = current_spec(os.environ)
    assert spec is not None
    name = "fenced"
    disturbed = comm.bcast(folder.name != "undisturbed")
    if disturbed and comm.bcast(not (folder / "pid").exists()):
        first_incarnation(comm, spec, folder, name)
    state = {"u": np.arange(4.0) + comm.rank}
    for step in checkpoint.steps(comm, STEPS, state, "1 step", name=name):
        if disturbed and step == 2 and comm.rank == 0:
            (folder / "settings").write_text(json.dumps(dict(spec.settings)))
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((folder / "pid").read_text()), signal.SIGCONT)
        peer = 1 - comm.rank
        state["u"] += comm.sendrecv(state["u"], peer, 1, None, peer, 1) / 3
        state["u"] += comm.allreduce(float(state["u"][0])) / 7
        if disturbed and step == STEPS // 2:  # the other rank waits in the next step
            until(folder / "report")
    if comm.rank == 0:
        place = Folder(Path(os.environ["SMPI_CHECKPOINTS"]) / name, durable=False)
        last = Record.from_bytes(bytes(place.read(max(place.names())) or b""), b"")
        assert last.owner != "dead" and last.saved is not None and last.saved.owner != "dead"
        report = json.loads((folder / "report").read_text()) if disturbed else None
        print(json.dumps([state["u"].tobytes().hex(), report]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        come_back(Path(sys.argv[1]), sys.argv[2])
    main(Path(sys.argv[1]))
