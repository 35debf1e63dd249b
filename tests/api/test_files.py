"""Files on paths of this machine, on ranks that are threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_mpi import MPI
from tests.harness import run

RW = MPI.MODE_RDWR | MPI.MODE_CREATE


def _class(call: Any) -> int:
    """The error class that a call raises."""
    with pytest.raises(MPI.Exception) as caught:
        call()
    return caught.value.Get_error_class()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_interleaved_collective_writes_are_a_byte_array(tmp_path: Path, data: Any) -> None:
    size = data.draw(st.integers(1, 4))
    unit, disp = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 7))
    counts = [data.draw(st.integers(0, 60)) for _ in range(size)]
    path = tmp_path / "file"

    def body(comm: Any) -> None:
        rank = comm.rank
        file = MPI.File.Open(comm, path, RW)
        file.Set_size(0)
        etype = MPI.BYTE.Create_contiguous(unit).Commit()
        mine = etype.Create_resized(0, unit * size).Commit()
        file.Set_view(disp + unit * rank, etype, mine)
        own = np.full(counts[rank] * unit, rank + 1, np.uint8)
        status = MPI.Status()
        file.Write_all(own, status)
        assert status.Get_count(etype) == counts[rank]
        file.Sync()
        got = np.zeros_like(own)
        file.Seek(0)
        file.Read_all(got, status)
        assert (got == own).all() and status.count == own.nbytes
        file.Close()

    run(size, body)
    model = bytearray()
    for rank, count in enumerate(counts):
        for index in range(count):
            start = disp + unit * (index * size + rank)
            model.extend(bytes(max(0, start + unit - len(model))))
            model[start : start + unit] = bytes([rank + 1]) * unit
    assert path.read_bytes() == bytes(model)


def test_pointers_and_nonblocking_and_split_calls(tmp_path: Path) -> None:
    def body(comm: Any) -> None:
        rank, size = comm.rank, comm.size
        file = MPI.File.Open(comm, tmp_path / "file", RW | MPI.MODE_UNIQUE_OPEN)
        file.Set_view(0, MPI.INT)
        own = np.full(4, rank, "i4")
        requests = [file.Iwrite_at_all(4 * rank, own), file.Iwrite_at(100 + rank, own[:1])]
        if rank:  # a nonblocking collective does not wait for the others
            comm.recv(source=rank - 1)
        if rank + 1 < size:
            comm.send(None, rank + 1)
        MPI.Request.Waitall(requests)
        file.Sync()
        got = np.zeros(4 * size, "i4")
        file.Read_at_all_begin(0, got)
        assert _class(lambda: file.Read_all_begin(got)) == MPI.ERR_IO
        status = MPI.Status()
        file.Read_at_all_end(got, status)
        assert status.Get_count(MPI.INT) == 4 * size
        assert (got == np.repeat(np.arange(size), 4)).all()
        assert file.Get_position() == 0 and file.Get_size() == 4 * (100 + size)
        file.Seek(-1, MPI.SEEK_END)
        file.Read(got, status)
        assert got[0] == size - 1 and status.Get_count(MPI.INT) == 1
        assert file.Get_position() == 100 + size
        file.Seek_shared(2)
        file.Write_ordered(np.full(rank + 1, rank, "i4"))
        total = size * (size + 1) // 2
        assert file.Get_position_shared() == 2 + total
        comm.Barrier()
        number = np.zeros(1, "i4")
        file.Seek_shared(2)
        seen = []
        for _ in range(2):  # six numbers, each read by one rank
            file.Iread_shared(number).Wait(status)
            seen.append(int(number[0]))
        every = [one for part in comm.allgather(seen) for one in part]
        assert sorted(every) == [0, 1, 1, 2, 2, 2]
        file.Set_atomicity(True)
        file.Write_at(rank, own)
        assert file.Get_atomicity()
        file.Close()
        assert not file and file == MPI.FILE_NULL

    run(3, body)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def body(comm: Any) -> None:
        file = MPI.File.Open(comm, path, MPI.MODE_WRONLY | MPI.MODE_CREATE | MPI.MODE_EXCL)
        file.Write_at_all(comm.rank, b"x")
        file.Close()
        both = [MPI.MODE_WRONLY | MPI.MODE_CREATE | MPI.MODE_EXCL, MPI.MODE_RDONLY]
        assert _class(lambda: MPI.File.Open(comm, path, both[0])) == MPI.ERR_FILE_EXISTS
        assert _class(lambda: MPI.File.Open(comm, path, both[comm.rank])) == MPI.ERR_NOT_SAME
        file = MPI.File.Open(comm, path, MPI.MODE_WRONLY | MPI.MODE_APPEND | MPI.MODE_SEQUENTIAL)
        file.Write_ordered(bytes([48 + comm.rank]))
        assert _class(lambda: file.Write_at(0, b"x")) == MPI.ERR_UNSUPPORTED_OPERATION
        file.Set_view(MPI.DISPLACEMENT_CURRENT, MPI.BYTE)
        assert file.Get_view()[0] == 4
        file.Close()
        assert comm.rank or path.read_bytes() == b"xx01"
        comm.Barrier()
        file = MPI.File.Open(comm, path, MPI.MODE_RDWR | MPI.MODE_DELETE_ON_CLOSE)
        views = [MPI.INT, MPI.DOUBLE]
        assert _class(lambda: file.Set_view(0, views[comm.rank])) == MPI.ERR_NOT_SAME
        assert _class(lambda: file.Set_view(-comm.rank)) == MPI.ERR_ARG  # on both ranks
        file.Close()
        assert not path.exists()

    run(2, body)


def test_representations(tmp_path: Path) -> None:
    def extent(datatype: Any) -> int:
        return 2 * int(datatype.extent)

    def read(user: Any, datatype: Any, count: int, file: Any, position: int) -> None:
        np.frombuffer(user, "i4")[:count] = np.frombuffer(file, "i8")[:count] - 1

    def write(user: Any, datatype: Any, count: int, file: Any, position: int) -> None:
        np.frombuffer(file, "i8")[:count] = np.frombuffer(user, "i4")[:count] + 1

    MPI.Register_datarep("wide", read, write, extent)
    file = MPI.File.Open(MPI.COMM_SELF, tmp_path / "file", RW)
    spread = MPI.INT.Create_vector(2, 1, 2).Commit()
    stored = {"native": "i4", "internal": "i4", "external32": ">i4", "wide": "i8"}
    for name, code in stored.items():
        file.Set_size(0)
        file.Set_view(4, MPI.INT, spread, name)
        numbers = np.array([5, -7, 1 << 20], "i4")
        status = MPI.Status()
        file.Write(numbers, status)
        assert status.Get_count(MPI.INT) == 3 and file.Get_position() == 3
        there = np.frombuffer((tmp_path / "file").read_bytes()[4:], code)
        assert (there[[0, 2, 3]] == numbers + (name == "wide")).all()
        assert file.Get_type_extent(MPI.INT) == there.itemsize
        back = np.zeros(5, "i4")
        file.Read_at(0, back, status)
        assert (back[:3] == numbers).all() and status.Get_count(MPI.INT) == 3
    file.Set_view(0, MPI.LONG, MPI.LONG, "external32")
    file.Write_at(0, np.array([1, -2], "i8"))  # four bytes each in external32
    assert file.Get_type_extent(MPI.LONG) == 4
    back = np.zeros(2, "i8")
    file.Read_at(0, back)
    assert back.tolist() == [1, -2]
    assert _class(lambda: file.Write_at(0, np.array([1 << 40]))) == MPI.ERR_CONVERSION
    file.Close()


def test_a_full_disk_and_other_refusals_have_their_class(tmp_path: Path) -> None:
    file = MPI.File.Open(MPI.COMM_SELF, "/dev/full", MPI.MODE_WRONLY)
    assert _class(lambda: file.Write_at_all(0, b"x")) == MPI.ERR_NO_SPACE
    assert _class(file.Iwrite(b"x").Wait) == MPI.ERR_NO_SPACE
    file.Close()
    for name, expected in (
        ("s3://B/x", MPI.ERR_BAD_FILE),
        ("s3:///x", MPI.ERR_BAD_FILE),  # this job has no bucket
        ("ftp://host/x", MPI.ERR_BAD_FILE),
        ("a\0b", MPI.ERR_BAD_FILE),
        (tmp_path / "file" / "x", MPI.ERR_NO_SUCH_FILE),
    ):
        assert _class(lambda name=name: MPI.File.Open(MPI.COMM_SELF, name, RW)) == expected


def test_error_handlers_of_files_and_of_those_to_come(tmp_path: Path) -> None:
    calls: list[tuple[Any, int]] = []
    handler = MPI.File.Create_errhandler(lambda file, code: calls.append((file, code)))
    MPI.FILE_NULL.Set_errhandler(handler)
    try:
        assert _class(lambda: MPI.File.Open(MPI.COMM_SELF, tmp_path / "no")) == calls[0][1]
        assert calls[0] == (MPI.FILE_NULL, MPI.ERR_NO_SUCH_FILE)
        file = MPI.File.Open(MPI.COMM_SELF, tmp_path / "file", RW)
        assert _class(lambda: file.Seek(-1)) == MPI.ERR_ARG == calls[1][1]
        file.Close()
    finally:
        MPI.FILE_NULL.Set_errhandler(MPI.ERRORS_RETURN)
        handler.Free()
    assert len(calls) == 2


def test_no_thread_is_left(tmp_path: Path) -> None:
    file = MPI.File.Open(MPI.COMM_SELF, tmp_path / "file", RW)
    file.Iwrite_all(b"x").Wait()
    file.Iwrite(b"x").Wait()
    workers = [one for one in threading.enumerate() if one.name == "smpi-file"]
    assert len(workers) == 2
    file.Close()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
