"""A program that spawns itself in several ways, and asserts what the standard says of it.

spawning.py PART      the parent of a part, which prints "held" on rank 0
spawning.py PART child
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from serverless_mpi import MPI

LARGE = 4 << 20  # bytes: more than a socket takes before its reader receives


def groups_parent() -> None:
    world = MPI.COMM_WORLD
    codes: list[int] = []
    children = world.Spawn(sys.executable, [__file__, "groups", "child"], 2, errcodes=codes)
    assert codes == [MPI.SUCCESS] * 2 and children.Get_remote_size() == 2
    merged = children.Merge(high=False)
    assert MPI.Comm.Compare(merged, world) == MPI.UNEQUAL
    assert merged.allgather(("parent", world.rank))[:2] == [("parent", 0), ("parent", 1)]
    assert merged.group.Translate_ranks(None, world.group) == [0, 1, MPI.UNDEFINED, MPI.UNDEFINED]
    remote = children.Get_remote_group()
    assert MPI.Group.Intersection(remote, world.group) == MPI.GROUP_EMPTY
    assert MPI.Group.Union(world.group, remote).size == 4
    try:
        MPI.Intracomm.Create_from_group(remote)
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_GROUP
    else:
        raise AssertionError("a communicator was made of processes of another job alone")
    half = merged.Create_group(merged.group.Incl([1, 2])) if merged.rank == 1 else None
    assert half is None or half.size == 2
    merged.Free()
    children.Disconnect()
    try:
        world.Spawn("no-such-program", maxprocs=3, errcodes=codes)
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_SPAWN and "no-such-program" in str(error)
    assert codes == [MPI.ERR_SPAWN] * 3


def groups_child(parent: MPI.Intercomm) -> None:
    world = MPI.COMM_WORLD
    merged = parent.Merge(high=True)
    assert merged.allgather(("child", world.rank))[2:] == [("child", 0), ("child", 1)]
    assert merged.group.Translate_ranks(None, world.group) == [MPI.UNDEFINED, MPI.UNDEFINED, 0, 1]
    if world.rank == 0:
        merged.Create_group(merged.group.Incl([1, 2]))
    merged.Free()
    parent.Disconnect()
    assert not MPI.Comm.Get_parent()


def several_parent() -> None:
    folder = tempfile.mkdtemp()
    (Path(folder) / "here.py").write_text(Path(__file__).read_text())
    info = MPI.Info.Create({"wdir": folder, "host": "ignored"})
    program = ["several", "child"]
    children = MPI.COMM_SELF.Spawn_multiple(
        [__file__, "here.py"], [program, program], [1, 2], [MPI.INFO_NULL, info]
    )
    found = [children.recv(source=rank) for rank in range(3)]
    assert [numbers for numbers, _ in found] == [(0, 3), (1, 3), (1, 3)]
    assert [os.path.realpath(where) for _, where in found] == [
        os.getcwd(),
        *[os.path.realpath(folder)] * 2,
    ]
    children.Disconnect()
    children = MPI.COMM_SELF.Spawn(
        "here.py", program, info=MPI.Info.Create({"path": f"/nowhere:{folder}"})
    )
    assert children.recv(source=0)[0] == (0, 1)
    children.Disconnect()


def several_child(parent: MPI.Intercomm) -> None:
    world = MPI.COMM_WORLD
    number = world.Get_attr(MPI.APPNUM)
    # the keys were in the environment, and are not any more; the launcher got them by its socket
    assert not {"SMPI_KEY", "SMPI_PARENT"} & set(os.environ)
    for pid in ("self", os.getppid()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert not any(len(word) >= 64 and b"/" not in word for word in words), words
    parent.send(((number, world.Get_attr(MPI.UNIVERSE_SIZE)), os.getcwd()), 0)
    parent.Disconnect()


def progress_parent() -> None:
    """Long messages both ways while every rank waits elsewhere, and waits for two jobs at once."""
    world = MPI.COMM_WORLD
    children = world.Spawn(sys.executable, [__file__, "progress", "child"], 1)
    if world.rank == 0:
        into = np.zeros(LARGE, "b")
        receive = children.Irecv(into, 0)
        assert world.recv(source=1) == "the child's message has been sent"
        receive.Wait()
        assert into.all()
        both = [world.irecv(source=1, tag=5), children.irecv(source=0, tag=6)]
        first, _ = MPI.Request.waitany(both)
        assert first == 1
        world.send("go", 1)
        assert MPI.Request.waitall([both[0]]) == ["of world"]
        assert MPI.Request.testall([world.isend(0, 0, tag=9), children.isend("end", 0)])[0]
        assert world.recv(source=0, tag=9) == 0
    else:
        world.send(children.recv(source=0), 0)
        assert world.recv(source=0) == "go"
        world.send("of world", 0, tag=5)
    children.Disconnect()


def progress_child(parent: MPI.Intercomm) -> None:
    parent.Send(np.ones(LARGE, "b"), 0)
    parent.send("the child's message has been sent", 1)
    parent.send("of the bridge", 0, tag=6)
    assert parent.recv(source=0) == "end"
    parent.Disconnect()


def main() -> None:
    part, child = sys.argv[1], len(sys.argv) > 2
    if child:
        globals()[f"{part}_child"](MPI.Comm.Get_parent())
    else:
        assert not MPI.Comm.Get_parent()
        globals()[f"{part}_parent"]()
        if MPI.COMM_WORLD.rank == 0:
            print("held")


main()
